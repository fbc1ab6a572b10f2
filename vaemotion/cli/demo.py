"""``vaemotion demo``: play the shipped model over a clip, and leave a timeline, a plot and a report."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from vaemotion.cli.app import app, local_path
from vaemotion.contract.errors import UsageError

READY_BUNDLE = Path("models/vaemotion-tiny-bundle")


@app.command("demo")
def demo(
    clip: Annotated[
        Path | None,
        typer.Option(
            "--clip",
            parser=local_path,
            metavar="FILE",
            help="Film, sound file or image; default: procedural art.",
        ),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(
            "--bundle",
            parser=local_path,
            metavar="FOLDER",
            help=f"Bundle folder; default: {READY_BUNDLE}.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for what the demo makes.")] = Path("demo"),
) -> int:
    """Play the shipped model over a clip, in the terminal.

    It needs neither torch nor an export. Leaves the clip, timeline.jsonl, timeline.png and report.html in
    --out.
    """
    from runtime.commands.timeline.plot import plot
    from runtime.commands.timeline.report import report
    from runtime.commands.verify import verify_bundle
    from runtime.run import RunOptions, run

    bundle = bundle or _ready_bundle()
    verify_bundle(bundle)
    out.mkdir(parents=True, exist_ok=True)
    if clip is None:
        from vaemotion.data.art.build import build_medley

        clip = out / "clip.mkv"
        build_medley(clip, count=5, seed=0)
    timeline = out / "timeline.jsonl"
    code = run(bundle, clip, RunOptions(outs=("console", f"jsonl:{timeline}")))
    if code:
        return code
    made = [timeline]
    if find_spec("matplotlib") is None:
        typer.echo("no plot and no report without matplotlib: pip install 'vaemotion[plot]'", err=True)
    else:
        made += [out / "timeline.png", out / "report.html"]
        plot(timeline, made[1])
        report(timeline, made[2])
    typer.echo(f"\nmade {', '.join(map(str, made))}")
    return 0


def _ready_bundle() -> Path:
    """Return the shipped model's bundle: below the working folder, or in this package's checkout."""
    for folder in (Path(), Path(__file__).resolve().parents[2]):
        if (folder / READY_BUNDLE / "manifest.json").is_file():
            return folder / READY_BUNDLE
    raise UsageError(f"no bundle at {str(READY_BUNDLE)!r}: give one with --bundle, or run from the checkout")
