"""Commands that run a bundle, and commands that present the results of a run."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vaemotion.cli.app import (
    AsJson,
    Bundle,
    EngineName,
    Overrides,
    Pace,
    PathName,
    Seed,
    Task,
    app,
    live_source,
    local_path,
)

Timeline = Annotated[
    Path,
    typer.Argument(
        parser=local_path, help="Timeline (JSON lines), written by `vaemotion run --out jsonl:FILE`."
    ),
]
FileOut = Annotated[Path | None, typer.Option("--out", help="File to write; default: beside the timeline.")]
Outs = Annotated[
    list[str] | None,
    typer.Option(
        "--out",
        metavar="SINK",
        help="console, jsonl:FILE, jsonl:- (standard output), osc:HOST:PORT or web:PORT; may be repeated. "
        "Default: console.",
    ),
]
LiveSource = Annotated[
    Path | None,
    typer.Argument(
        parser=live_source,
        metavar="source",
        help="Video, sound file or image; default: live camera and microphone.",
    ),
]
LiveConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        parser=local_path,
        metavar="FILE",
        help="TOML file of a live installation; configs/live.toml lists every key.",
    ),
]
RunPace = Annotated[
    Pace,
    typer.Option(
        "--pace",
        help="real: the pace of live devices. max: as fast as possible, with reproducible results.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=1, max=256, help="Cores shared by engines and narrator; default: all."),
]


@app.command("run")
def run_bundle(
    bundle: Bundle,
    source: LiveSource = None,
    config: LiveConfigFile = None,
    overrides: Overrides = None,
    out: Outs = None,
    pace: RunPace = Pace.REAL,
    narrate_every_s: Annotated[
        float | None,
        typer.Option(
            "--narrate-every",
            metavar="SECONDS",
            help="Seconds between narrations; 0 disables them. Default: 2.",
        ),
    ] = None,
    engine: Annotated[
        EngineName | None,
        typer.Option(
            "--engine", help="Engine of the encoders and the EmoAdapter; default: fastest available."
        ),
    ] = None,
    threads: Threads = None,
    osc_in: Annotated[
        str | None,
        typer.Option(
            "--osc-in",
            metavar="[HOST:]PORT",
            help="Receive control messages (/control/...) here; default host: loopback.",
        ),
    ] = None,
    keep_media: Annotated[
        Path | None,
        typer.Option(
            "--keep-media",
            metavar="FOLDER",
            help="Record camera frames and microphone sound, faces and voices included. Without this option "
            "none are stored.",
        ),
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Print the time spent per stage and sink at the end.")
    ] = False,
    replay: Annotated[
        Path | None,
        typer.Option(
            "--replay",
            parser=local_path,
            metavar="FILE",
            help="Replay recorded features (vaemotion record) instead of a source.",
        ),
    ] = None,
) -> int:
    """Stream a file or live devices through a bundle.

    The sinks receive valence and arousal ten times per second, and narrations.
    """
    from runtime.run import RunOptions, replay_recording, run

    if replay is not None:
        return replay_recording(bundle, replay, out or [], threads)
    options = RunOptions(
        outs=out or [],
        pace=pace,
        narrate_every_s=narrate_every_s,
        engine=engine,
        threads=threads,
        osc_in=osc_in,
        keep_media=keep_media,
        profile=profile,
    )
    return run(bundle, source, options, config, overrides or [])


class RecordOnly(StrEnum):
    """Content of a recording that is less than the tokens."""

    POOLED = "pooled"
    READINGS = "readings"


@app.command("record")
def record_features(
    bundle: Bundle,
    to: Annotated[Path, typer.Option("--to", metavar="FILE", help="New file for the features.")],
    source: LiveSource = None,
    config: LiveConfigFile = None,
    overrides: Overrides = None,
    out: Outs = None,
    pace: RunPace = Pace.REAL,
    threads: Threads = None,
    only: Annotated[
        RecordOnly | None,
        typer.Option(
            "--only",
            help="Record less of those who are seen. pooled: one mean token for each frame; readings: a "
            "timeline. Neither can be replayed.",
        ),
    ] = None,
) -> int:
    """Run a bundle and record its features.

    The recording holds neither frames nor sound, but pictures of people can be computed from it: keep it as
    you would keep a film. `vaemotion run BUNDLE --replay FILE` replays it.
    """
    from runtime.run import RunOptions, run

    if only is RecordOnly.READINGS:
        outs = [*(out or ["console"]), f"jsonl:{to}"]
        options = RunOptions(outs=outs, pace=pace, threads=threads)
    else:
        options = RunOptions(
            outs=out or [], pace=pace, threads=threads, record=to, pooled=only is RecordOnly.POOLED
        )
    return run(bundle, source, options, config, overrides or [])


@app.command("soak")
def soak_bundle(
    bundle: Bundle,
    hours: Annotated[float, typer.Option("--hours", min=0.01, help="Simulated hours.")] = 24.0,
    speed: Annotated[
        str, typer.Option("--speed", help="max, real, or simulated seconds per second.")
    ] = "max",
    media: Annotated[
        list[Path] | None,
        typer.Option(
            "--media",
            parser=local_path,
            metavar="FILE",
            help="Video or sound file that the simulated devices play; may be repeated.",
        ),
    ] = None,
    faults: Annotated[
        int | None,
        typer.Option("--faults", max=1_000_000, help="Number of faults, at least 15; default: 16 per hour."),
    ] = None,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option("--out", help="Folder for the report.")] = Path("soak"),
) -> int:
    """Test long operation with simulated devices and faults.

    Seeded faults occur while simulated devices feed the complete runtime. The report describes their effects.
    """
    from runtime.commands.soak.soak import SoakOptions, soak

    return soak(bundle, SoakOptions(hours, speed, faults, seed, media or ()), out)


@app.command("install-service")
def install_service(
    bundle: Bundle,
    config: Annotated[
        Path,
        typer.Option("--config", parser=local_path, metavar="FILE", help="TOML file of the installation."),
    ],
    user: Annotated[
        str | None, typer.Option("--user", help="User of the service; default: the calling user.")
    ] = None,
    only_print: Annotated[
        bool, typer.Option("--print", help="Print the unit file and write nothing.")
    ] = False,
) -> int:
    """Install a systemd service that starts at boot.

    Its watchdog restarts the runtime when readings stop.
    """
    from runtime.commands.install_service import install_service as install

    return install(bundle, config, user, only_print)


@app.command("ask")
def ask_bundle(
    bundle: Bundle,
    source: Annotated[
        Path, typer.Argument(parser=local_path, metavar="source", help="Video, sound file or image.")
    ],
    question: Annotated[str, typer.Argument(help="Question, for example 'What is this?'")],
    options: Annotated[
        str | None, typer.Option("--options", help="Answers to choose from, separated by commas.")
    ] = None,
    at_s: Annotated[
        float | None,
        typer.Option("--at", metavar="SECONDS", min=0, help="Time in the source; default: its end."),
    ] = None,
    path: Annotated[
        PathName | None, typer.Option("--path", help="Path to use; default: all that the source has.")
    ] = None,
    task: Annotated[
        Task | None,
        typer.Option(
            "--task", help="Kind of question, which selects the tokens to read; default: from its text."
        ),
    ] = None,
    max_tokens: Annotated[
        int,
        typer.Option("--tokens", min=1, max=500, help="Tokens of a free answer, at most."),
    ] = 60,
    as_json: AsJson = False,
) -> None:
    """Ask a question about a video, a sound or an image."""
    from runtime.commands.ask import AskOptions, ask

    ask(bundle, source, question, AskOptions(options, at_s, path, task, max_tokens), as_json)


@app.command("plot")
def plot_timeline(timeline: Timeline, out: FileOut = None) -> None:
    """Plot a timeline's valence, arousal and narrations."""
    from runtime.commands.timeline.plot import plot

    plot(timeline, out)


@app.command("report")
def report_timeline(timeline: Timeline, out: FileOut = None) -> None:
    """Write a timeline as one self-contained HTML page."""
    from runtime.commands.timeline.report import report

    report(timeline, out)


@app.command("doctor")
def doctor_machine(
    bundle: Annotated[
        Path | None,
        typer.Argument(parser=local_path, metavar="bundle", help="Bundle folder to test on this machine."),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Check this machine and say how to fix problems."""
    from runtime.commands.doctor.doctor import doctor

    return doctor(bundle, as_json)
