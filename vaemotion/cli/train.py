"""Commands of ``vaemotion train``: the stages of training, and ablations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vaemotion.cli.app import Config, Overrides, local_path, train_app

TrainOut = Annotated[
    Path | None, typer.Option("--out", help="Folder for the run; default: from the configuration.")
]
Resume = Annotated[bool, typer.Option("--resume/--no-resume", help="Continue from the newest saved state.")]


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
        Path | None,
        typer.Option(
            "--vlm",
            parser=local_path,
            metavar="FOLDER",
            help="Local vision-language model to use as the base, such as SmolVLM2.",
        ),
    ] = None,
    adapter: Annotated[
        Path | None,
        typer.Option(
            "--adapter",
            parser=local_path,
            metavar="FOLDER",
            help="LoRA adapter to merge into the base of --vlm, saved by PEFT.",
        ),
    ] = None,
    audio_encoder: Annotated[
        Path | None,
        typer.Option(
            "--audio-encoder",
            parser=local_path,
            metavar="FOLDER",
            help="Local AST or Whisper with the initial weights of the audio encoder.",
        ),
    ] = None,
) -> None:
    """Stage 1: align audio tokens with the frozen base.

    Distills the base's answers about frames into the audio pathway (VG-Align).
    """
    from vaemotion.training.vg_align import train

    train(config, overrides or [], out, resume, vlm, audio_encoder, adapter)


@train_app.command("emotion")
def train_emotion(
    config: Config, overrides: Overrides = None, out: TrainOut = None, resume: Resume = True
) -> None:
    """Stage 2: train the EmoAdapter on expressed emotion."""
    from vaemotion.training.emotion import train

    train(config, overrides or [], out, resume)


@train_app.command("ablations")
def train_ablations(
    config: Config,
    base: Annotated[Path, typer.Option("--base", help="Checkpoint folder whose base is used.")],
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for the results.")] = Path("runs/ablations"),
    document: Annotated[
        Path, typer.Option("--doc", help="Markdown file (.md) to write; its plot is written beside it.")
    ] = Path("docs/ablations.md"),
    seeds: Annotated[int, typer.Option("--seeds", min=1, max=1000, help="Training seeds per variant.")] = 3,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="GROUP", help="Group to run; may be repeated. Default: all."),
    ] = None,
) -> None:
    """Run short trainings that differ in one setting each.

    An interrupted series continues where it stopped.
    """
    from vaemotion.training.ablations.run import train

    train(config, overrides or [], base, out, document, seeds, only or ())
