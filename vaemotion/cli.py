"""The command line: `vaemotion <command>`. One lazy line per command, no logic.

Heavy imports stand inside the functions, so that `vaemotion --help` answers at once and each command works with
the packages that it needs itself. `main` is the single error boundary: exit codes are 0 fine, 1 failed, 2 wrong
usage, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import Abort, TyperException

from vaemotion.contract.errors import UserError

_HELP = "Teach a vision-language model to hear and to feel, export it, and run it on a small device."


def _group(help_text: str) -> typer.Typer:
    # Tracebacks belong to --debug, and `main` sees to them. Help in plain text: Rich's would take as long again as everything else.
    return typer.Typer(
        help=help_text,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"max_content_width": 120},
    )


app = _group(_HELP)
train_app = _group("Train the tiny model: base, then align, then emotion.")
bundle_app = _group("Look into bundles.")
evaluate_app = _group("Measure a checkpoint or a bundle.")
data_app = _group("Check, describe and make data.")
build_app = _group("Write a data set to disk.")
app.add_typer(train_app, name="train")
app.add_typer(bundle_app, name="bundle")
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(data_app, name="data")
data_app.add_typer(build_app, name="build")

Config = Annotated[Path, typer.Option("--config", help="TOML file with the configuration.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one value; may be repeated.")
]
TrainOut = Annotated[
    Path | None, typer.Option("--out", help="Folder for the run; default: the config's own.")
]
Resume = Annotated[bool, typer.Option("--resume/--no-resume", help="Continue from the newest saved state.")]
Manifest = Annotated[Path, typer.Argument(help="Data manifest, JSON lines.")]
Manifests = Annotated[list[Path], typer.Argument(help="Data manifests, JSON lines.")]
MediaRoot = Annotated[Path, typer.Option("--media-root", help="Folder that the manifest's paths start from.")]
Bundle = Annotated[Path, typer.Argument(help="Bundle folder.")]
Timeline = Annotated[
    Path, typer.Argument(help="Timeline: JSON lines that `vaemotion run --out jsonl:FILE` wrote.")
]
FileOut = Annotated[Path | None, typer.Option("--out", help="File to write; default: beside the timeline.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed; the same seed gives the same result.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"vaemotion {version('vaemotion')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere.")] = False,
) -> None:
    """Options of every command; `main` takes --debug out before the parser sees it, so here it is help text only."""


@train_app.command("base")
def train_base(
    config: Config, overrides: Overrides = None, out: TrainOut = None, resume: Resume = True
) -> None:
    """Train the tiny vision-language base from scratch."""
    from vaemotion.training.base_vlm import train

    train(config, overrides or [], out, resume)


@train_app.command("align")
def train_align(
    config: Config,
    overrides: Overrides = None,
    out: TrainOut = None,
    resume: Resume = True,
    vlm: Annotated[
        Path | None, typer.Option("--vlm", help="Local folder of a SmolVLM2, taken as the base.")
    ] = None,
    ear: Annotated[
        Path | None, typer.Option("--audio-encoder", help="Local folder of an AST that the ear starts from.")
    ] = None,
) -> None:
    """Stage 1: teach the frozen base to hear by seeing."""
    from vaemotion.training.vg_align import train

    train(config, overrides or [], out, resume, vlm, ear)


@train_app.command("emotion")
def train_emotion(
    config: Config, overrides: Overrides = None, out: TrainOut = None, resume: Resume = True
) -> None:
    """Stage 2: train the EmoAdapter on what works express."""
    from vaemotion.training.emotion import train

    train(config, overrides or [], out, resume)


@train_app.command("ablations")
def train_ablations(
    config: Config,
    base: Annotated[Path, typer.Option("--base", help="Checkpoint folder; its base is used, nothing else.")],
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for the results.")] = Path("runs/ablations"),
    document: Annotated[
        Path, typer.Option("--doc", help="Markdown file to write; its plot lies beside it.")
    ] = Path("docs/ablations.md"),
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="How often each variant is trained.")] = 3,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="GROUP", help="Run this group; may be repeated.")
    ] = None,
) -> None:
    """Many short trainings that differ in one thing each; goes on where it stopped."""
    from vaemotion.training.ablations import train

    train(config, overrides or [], base, out, document, seeds, only or ())


@app.command("export")
def export_checkpoint(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the bundle; a bundle there is replaced.")],
    precision: Annotated[
        str, typer.Option("--precision", help="fp32; fp16: FP32 and FP16; int8: these and INT8.")
    ] = "fp32",
    max_drop: Annotated[
        str,
        typer.Option(
            "--max-drop",
            metavar="POINTS",
            help="What INT8 may cost at most in CCC on each path and in content accuracy, with 95 % confidence; none: do not judge.",
        ),
    ] = "0.5pp",
    windows: Annotated[int, typer.Option("--windows", min=16, help="Windows that judge INT8.")] = 2000,
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration", help="Manifest whose split 'train' calibrates; default: procedural art."
        ),
    ] = None,
    media_root: MediaRoot = Path(),
    calibration_windows: Annotated[
        int, typer.Option("--calibration-windows", min=16, help="Windows that calibrate.")
    ] = 256,
    clips: Annotated[int, typer.Option("--clips", min=1, help="Clips on which every edge is verified.")] = 40,
) -> None:
    """Turn a checkpoint into a verified bundle. Exit code 3: INT8 does not fit into what --max-drop allows.

    What is finished stays in OUT.partial when something fails, and the same command goes on there.
    """
    from export.pack import Options, export_bundle, parse_drop

    drop = parse_drop(max_drop)
    export_bundle(
        checkpoint,
        out,
        Options(precision, drop, windows, calibration, media_root, calibration_windows, clips),
    )


@app.command("gguf")
def gguf_of_folder(
    folder: Annotated[Path, typer.Argument(help="Folder of a Llama or SmolVLM as transformers saves it.")],
    out: Annotated[Path, typer.Option("--out", help="GGUF file to write.")],
    file_type: Annotated[str, typer.Option("--type", help="F32, F16, Q8_0, Q5_0 or Q4_K_M.")] = "Q8_0",
    importance: Annotated[
        Path | None, typer.Option("--importance", help="Importance matrix for Q5_0 and Q4_K_M.")
    ] = None,
    licence: Annotated[
        str, typer.Option("--license", help="SPDX licence to note in the file.")
    ] = "NOASSERTION",
) -> None:
    """Write the language model of a local folder as GGUF, and say what each tensor really became."""
    from export.llama_folder import folder_to_gguf

    folder_to_gguf(folder, out, file_type, importance, licence)


@app.command("verify")
def verify_bundle(
    bundle: Bundle,
    against: Annotated[
        Path | None, typer.Option("--against", help="Checkpoint that the bundle must agree with.")
    ] = None,
) -> None:
    """Prove that a bundle is whole and still computes what it did when it was exported."""
    if against is None:
        from runtime.self_test import self_test

        self_test(bundle)
    else:
        from export.verify import verify

        verify(bundle, against)


@app.command("engines")
def build_engines_ahead(
    bundle: Bundle,
    precision: Annotated[
        str | None, typer.Option("--precision", help="int8, fp16 or fp32; default: all of the bundle's.")
    ] = None,
) -> None:
    """Build a bundle's TensorRT engines ahead of time, on the device that will run them."""
    from export.to_tensorrt import build_engines

    build_engines(bundle, precision)


Outs = Annotated[
    list[str] | None,
    typer.Option(
        "--out",
        help="console, jsonl:FILE, jsonl:- (standard output), osc:HOST:PORT or web:PORT; may be repeated. Default: console.",
    ),
]
LiveSource = Annotated[
    Path | None,
    typer.Argument(help="Video, sound file or picture; without one: the camera and the microphone."),
]
LiveConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="TOML file of a live installation; configs/live.toml shows every key."),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="Cores to share between engines and narrator; default: all."),
]


@app.command("run")
def run_bundle(
    bundle: Bundle,
    source: LiveSource = None,
    config: LiveConfigFile = None,
    overrides: Overrides = None,
    out: Outs = None,
    pace: Annotated[
        str,
        typer.Option(
            "--pace", help="real: as live devices do. max: as fast as possible, and always the same."
        ),
    ] = "real",
    narrate_every_s: Annotated[
        float | None,
        typer.Option(
            "--narrate-every", metavar="SECONDS", help="One narration in this long; 0: none. Default: 2."
        ),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            "--engine",
            metavar="NAME",
            help="tensorrt, cuda or cpu for the encoders and the EmoAdapter; default: the fastest that is here.",
        ),
    ] = None,
    threads: Threads = None,
    osc_in: Annotated[
        str | None,
        typer.Option(
            "--osc-in", metavar="[HOST:]PORT", help="Take /control/... here; default host: loopback."
        ),
    ] = None,
    keep_media: Annotated[
        Path | None,
        typer.Option(
            "--keep-media",
            metavar="FOLDER",
            help="Write down what the camera sees and the microphone hears: faces and voices. Without it nothing of them is written.",
        ),
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="At the end, print where the time went: per stage and sink.")
    ] = False,
    replay: Annotated[
        Path | None,
        typer.Option(
            "--replay", metavar="FILE", help="Read a recording of features again instead (vaemotion record)."
        ),
    ] = None,
) -> int:
    """Stream a file, or a live camera and microphone, through a bundle: valence and arousal ten times a second, narration beside it."""
    from runtime.run import replay_recording, run

    if replay is not None:
        return replay_recording(bundle, replay, out or [], threads)
    return run(
        bundle, source, config, overrides or [], outs=out or [], pace=pace, narrate_every_s=narrate_every_s,
        engine=engine, threads=threads, osc_in=osc_in, keep_media=keep_media, profile=profile,
    )  # fmt: skip


@app.command("record")
def record_features(
    bundle: Bundle,
    to: Annotated[Path, typer.Option("--to", metavar="FILE", help="New file for the features.")],
    source: LiveSource = None,
    config: LiveConfigFile = None,
    overrides: Overrides = None,
    out: Outs = None,
    pace: Annotated[str, typer.Option("--pace", help="As for vaemotion run.")] = "real",
    threads: Threads = None,
) -> int:
    """Run, and keep what was perceived as features: no picture, no sound. `vaemotion run BUNDLE --replay FILE` reads them again."""
    from runtime.run import run

    return run(bundle, source, config, overrides or [], outs=out or [], pace=pace, threads=threads, record=to)


@app.command("soak")
def soak_bundle(
    bundle: Bundle,
    hours: Annotated[float, typer.Option("--hours", min=0.01, help="Simulated hours.")] = 24.0,
    speed: Annotated[
        str, typer.Option("--speed", help="max, real, or simulated seconds per second.")
    ] = "max",
    media: Annotated[
        list[Path] | None,
        typer.Option("--media", metavar="FILE", help="Film or sound that the devices give; may be repeated."),
    ] = None,
    faults: Annotated[
        int | None, typer.Option("--faults", help="How many, at least 15; default: 16 an hour.")
    ] = None,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option("--out", help="Folder for the report.")] = Path("soak"),
) -> int:
    """Rehearse weeks: simulated devices with seeded faults through the real wiring, and a report of what it did to the runtime."""
    from runtime.soak import soak

    return soak(bundle, hours, speed, faults, seed, out, media or ())


@app.command("install-service")
def install_service(
    bundle: Bundle,
    config: Annotated[Path, typer.Option("--config", help="TOML file of the installation.")],
    user: Annotated[str | None, typer.Option("--user", help="Runs as this user; default: who calls.")] = None,
    only_print: Annotated[bool, typer.Option("--print", help="Print the unit and write nothing.")] = False,
) -> int:
    """Make the installation start with the machine: a systemd unit with a watchdog that is fed by progress."""
    from runtime.service_unit import install_service as install

    return install(bundle, config, user, only_print)


@app.command("ask")
def ask_bundle(
    bundle: Bundle,
    source: Annotated[Path, typer.Argument(help="Video, sound file or picture.")],
    question: Annotated[str, typer.Argument(help="For example 'What is this?'")],
    options: Annotated[
        str | None, typer.Option("--options", help="Answers to choose from, separated by commas.")
    ] = None,
    at_s: Annotated[
        float | None,
        typer.Option("--at", metavar="SECONDS", min=0, help="The moment to ask about; default: the end."),
    ] = None,
    path: Annotated[
        str | None, typer.Option("--path", help="audio, visual or audio-visual; default: whatever there is.")
    ] = None,
    task: Annotated[
        str | None, typer.Option("--task", help="content or emotion: which tokens the question reads.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Ask a question about a clip, a sound or a picture."""
    from runtime.ask import ask

    ask(bundle, source, question, options, at_s, path, task, as_json)


@app.command("plot")
def plot_timeline(timeline: Timeline, out: FileOut = None) -> None:
    """Plot valence and arousal over a timeline, with narrations (PNG)."""
    from runtime.plot import plot

    plot(timeline, out)


@app.command("report")
def report_timeline(timeline: Timeline, out: FileOut = None) -> None:
    """Make one self-contained HTML page of a timeline."""
    from runtime.report import report

    report(timeline, out)


@app.command("doctor")
def doctor_machine(
    bundle: Annotated[Path | None, typer.Argument(help="Bundle folder, to be tried on this machine.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Say what this machine is, what works on it, and what to do about the rest."""
    from runtime.doctor import doctor

    return doctor(bundle, as_json)


@app.command("bench")
def bench_bundle(
    bundle: Bundle,
    out: Annotated[Path, typer.Option("--out", help="Folder for bench.json, bench.md and bench.png.")] = Path(
        "bench"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
    rounds: Annotated[
        int,
        typer.Option(
            "--rounds", min=1, help="Times that every file has its turn; more where more runs beside."
        ),
    ] = 5,
) -> None:
    """What each file of a bundle costs on this machine: size, load time, memory, p50 and p95 of its time, and accuracy.

    Every precision is measured in processes of its own, in turns; it says so where a smaller one does not win.
    Figures of a busy machine are worse than they need be: let nothing else run.
    """
    from runtime.bench import bench

    bench(bundle, out, as_json, rounds)


@bundle_app.command("inspect")
def bundle_inspect(
    bundle: Bundle, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False
) -> None:
    """Print what a bundle holds and where it comes from."""
    from runtime.inspection import inspect

    inspect(bundle, as_json)


@bundle_app.command("diff")
def bundle_diff(
    a: Annotated[Path, typer.Argument(help="Bundle folder.")],
    b: Annotated[Path, typer.Argument(help="Bundle folder to compare it with.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Say what two bundles differ in: weights, precisions, front end, prompt; calibration, accuracy, licences, tools.

    Exit code 0: equal in everything that counts for results; 1: not. Manifests are compared; whether the files
    are what their manifest says is for `vaemotion verify`.
    """
    from runtime.bundle_diff import diff

    return diff(a, b, as_json)


@evaluate_app.command("benchmark")
def evaluate_benchmark(
    manifest: Manifest,
    model: Annotated[
        list[Path],
        typer.Option(
            "--model", help="Bundle or checkpoint folder; repeat it for models of several training seeds."
        ),
    ],
    media_root: MediaRoot,
    out: Annotated[Path, typer.Option("--out", help="Folder for the results.")],
    split: Annotated[str | None, typer.Option("--split", help="Use this split only; default: all.")] = None,
    path: Annotated[
        str | None,
        typer.Option("--path", help="Ask every item on this path instead of its own, as a control."),
    ] = None,
    rotations: Annotated[
        int,
        typer.Option(
            "--rotations",
            min=0,
            help="Also list the options in the prompt, rotated so often (at most once an option); 0: not at all.",
        ),
    ] = 2,
    bootstrap: Annotated[int, typer.Option("--bootstrap", min=1, help="Bootstrap resamples.")] = 1000,
    seed: Seed = 0,
) -> None:
    """Answer a manifest's questions and report accuracy, agreement with the labels, and their intervals, per path."""
    from export.load import load_predictor
    from vaemotion.evaluation.benchmark import run_benchmark

    run_benchmark(
        manifest, media_root, model, load_predictor, out, split=split, path=path, rotations=rotations,
        bootstrap=bootstrap, seed=seed,
    )  # fmt: skip


@evaluate_app.command("hearing")
def evaluate_hearing(
    model: Annotated[Path, typer.Option("--model", help="Checkpoint after stage 1, or a complete one.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the report.")],
    shuffled: Annotated[
        Path | None,
        typer.Option("--shuffled", help="Control: a checkpoint trained with --set align.pairing=shuffled."),
    ] = None,
    ce_only: Annotated[
        Path | None,
        typer.Option("--ce-only", help="To compare: a checkpoint trained with --set align.kd_weight=0."),
    ] = None,
    recordings: Annotated[
        Path | None, typer.Option("--recordings", help="Data manifest of recordings, JSON lines.")
    ] = None,
    media_root: Annotated[
        Path | None, typer.Option("--media-root", help="Folder that the manifest's paths start from.")
    ] = None,
    split: Annotated[
        str, typer.Option("--split", help="Works and recordings to hear: test or validation.")
    ] = "test",
    works: Annotated[int, typer.Option("--works", help="Procedural works to hear, at least 20.")] = 300,
    bootstrap: Annotated[int, typer.Option("--bootstrap", min=1, help="Bootstrap resamples.")] = 1000,
    seed: Seed = 0,
) -> None:
    """Does it hear? What is named from sound alone, against every control; one page, one verdict."""
    from vaemotion.evaluation.hearing import run_hearing

    run_hearing(
        model, out, shuffled=shuffled, ce_only=ce_only, recordings=recordings, media_root=media_root, split=split,
        works=works, seed=seed, bootstrap=bootstrap,
    )  # fmt: skip


@evaluate_app.command("baselines")
def evaluate_baselines(
    manifests: Manifests,
    media_root: MediaRoot,
    split: Annotated[str, typer.Option("--split", help="Split to measure; `train` is learnt from.")] = "test",
    bootstrap: Annotated[int, typer.Option("--bootstrap", min=1, help="Bootstrap resamples.")] = 1000,
    seed: Seed = 0,
) -> None:
    """What a linear model on a few statistics reaches on manifests: the peer that a trained model must at least equal."""
    from vaemotion.evaluation.baselines import run_baselines

    run_baselines(manifests, media_root, split, bootstrap, seed)


@data_app.command("validate")
def data_validate(
    manifests: Manifests,
    media_root: MediaRoot,
    hashes: Annotated[
        bool, typer.Option("--hashes/--no-hashes", help="Compare SHA-256 of the media.")
    ] = True,
    allow_licenses: Annotated[
        str | None,
        typer.Option("--allow-licenses", help="SPDX licences, separated by commas; default: any."),
    ] = None,
) -> None:
    """Report every problem of data manifests at once, with line numbers; several are checked as one."""
    from vaemotion.data.manifest import validate

    validate(manifests, media_root, check_hashes=hashes, allow_licenses=allow_licenses)


@data_app.command("stats")
def data_stats(
    manifests: Annotated[list[Path] | None, typer.Argument(help="Data manifests, JSON lines.")] = None,
    media_root: Annotated[
        Path | None, typer.Option("--media-root", help="Media of the manifests, for seconds of sound.")
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="Split of the procedural art; default: validation.")
    ] = None,
    count: Annotated[
        int | None, typer.Option("--count", min=50, help="Works of it to look at; default: 600.")
    ] = None,
    train_count: Annotated[
        int | None,
        typer.Option(
            "--train-count", min=100, help="Works that the trivial baselines learn from; default: 1500."
        ),
    ] = None,
) -> None:
    """Describe manifests; without one the procedural art, with oracle ceilings and what trivial baselines reach on it."""
    from vaemotion.data.stats import describe

    describe(manifests or [], media_root, split, count, train_count)


@build_app.command("procedural")
def data_build_procedural(
    out: Annotated[Path, typer.Option("--out", help="Folder for the media and manifest.jsonl.")],
    split: Annotated[str, typer.Option("--split", help="train, validation or test.")],
    count: Annotated[int, typer.Option("--count", min=1, help="Works to write.")],
    seed: Seed = 0,
) -> None:
    """Write works of procedural art as clips with a manifest."""
    from vaemotion.data.build import build_procedural

    build_procedural(out, split, count, seed)


@build_app.command("artemo-open")
def data_build_artemo_open(
    out: Annotated[Path, typer.Option("--out", help="Folder for the media and the manifests.")],
    data: Annotated[
        Path | None,
        typer.Option("--from", help="Folder that holds sievers/ and bass/; default: procedural art only."),
    ] = None,
    count: Annotated[int, typer.Option("--count", min=1, help="Works, and pairs for each question.")] = 100,
    seed: Seed = 0,
    split: Annotated[str, typer.Option("--split", help="train, validation or test.")] = "test",
    fold: Annotated[int, typer.Option("--fold", help="Fold 1 to 5 of the human-rated sets.")] = 1,
) -> None:
    """Write an open benchmark in the manner of ArtEmoBenchmark: content, emotion, and picture against sound."""
    from vaemotion.data.artemo_open import build_artemo_open

    build_artemo_open(out, data, split, count, seed, fold)


@build_app.command("medley")
def data_build_medley(
    out: Annotated[Path, typer.Option("--out", help="Video file to write (.mkv).")],
    count: Annotated[int, typer.Option("--count", min=1, help="Works in it, 5 s each.")] = 5,
    seed: Seed = 0,
) -> None:
    """Write several works of procedural art as one clip, to look at and to run."""
    from vaemotion.data.build import build_medley

    build_medley(out, count, seed)


def _add_published_set(name: str, what: str) -> None:
    @build_app.command(name, help=f"Write a manifest of {what}")
    def build_published_set(  # pyright: ignore[reportUnusedFunction]
        folder: Annotated[Path, typer.Option("--from", help="Folder of the data set, as it is published.")],
        out: Annotated[Path, typer.Option("--out", help="Manifest to write; no medium is copied.")],
        media_root: Annotated[
            Path | None,
            typer.Option("--media-root", help="Folder that its paths start from; default: the data set's."),
        ] = None,
        test_fold: Annotated[
            int | None, typer.Option("--test-fold", help="Fold 1 to 5 for the split test; default: none.")
        ] = None,
        validation_fold: Annotated[
            int | None, typer.Option("--validation-fold", help="Fold 1 to 5 for validation; default: none.")
        ] = None,
    ) -> None:
        from vaemotion.data.published import ADAPTERS, build

        build(ADAPTERS[name], folder, out, media_root, test_fold, validation_fold)


_add_published_set("sievers", "abstract shapes and sounds with the arousal that they express.")
_add_published_set("bass", "the silhouettes of BASS with valence and arousal.")
_add_published_set("esc10", "the recordings of ESC-10 in ten classes and its own folds.")
_add_published_set("artemis", "the paintings of ArtEmis with the emotions that they induce.")
_add_published_set("vgmidi", "the game music of VGMIDI, rendered by you, with valence and arousal.")


# The extra that brings a package which some command needs and a device may lack.
_EXTRA_OF = {
    "accelerate": "train",
    "gguf": "export",
    "llama_cpp": "llm",
    "matplotlib": "plot",
    "onnx": "export",
    "onnxruntime": "cpu",
    "onnxscript": "export",
    "safetensors": "train",
    "sklearn": "train",
    "tensorboard": "train",
    "torch": "train",
    "transformers": "train",
}


def _sentence_and_code(error: BaseException) -> tuple[str, int]:
    """What to print about an error, and the exit code that goes with it."""
    if isinstance(error, UserError):
        return str(error), error.exit_code
    if isinstance(error, TyperException):
        return error.format_message(), error.exit_code
    if isinstance(error, (KeyboardInterrupt, Abort)):
        return "interrupted", 130
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        if extra := _EXTRA_OF.get(package):
            return f"this command needs {package}: install it with `pip install 'vaemotion[{extra}]'`", 1
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{error.strerror}", 1
    return f"unexpected {type(error).__name__}: {error}; run again with --debug", 1


def _refuse_foreign_packages() -> None:
    """This is an application for its own environment: its plain package names may be taken by somebody else."""
    from importlib.util import find_spec

    home = Path(__file__).resolve().parents[1]
    for name in ("runtime", "calibration", "export"):
        spec = find_spec(name)
        found = Path(spec.origin).resolve().parents[1] if spec and spec.origin else None
        if found != home:
            what = "is missing" if found is None else f"in {found} is another project's"
            raise UserError(f"package {name!r} {what}: install vaemotion into an environment of its own")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. arguments: without the program's name; default: the process's own. Returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"] or ["--help"]
    # OpenMP reads this once, when a command first loads it. By default llama.cpp's and torch's threads spin while they
    # wait for each other; on cores that have other work too, two of them then take fifty times as long as one (docs/log.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # NumPy's matrix products here are small: on a second thread, which then spins, they take as long and twice the processor time.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Since 1.29 ONNX Runtime tells its maker about each model that is opened, and keeps a database for it, unless it is told not to.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        _refuse_foreign_packages()
        result: object = app(words, prog_name="vaemotion", standalone_mode=False)
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            import traceback

            traceback.print_exc()
        sentence, exit_code = _sentence_and_code(error)
        print(f"vaemotion: error: {sentence}", file=sys.stderr)
        return exit_code
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    sys.exit(main())
