"""Commands of ``vaemotion data``: validate, describe and build data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vaemotion.cli.app import Manifests, MediaRoot, Seed, Split, build_app, data_app, local_path


@data_app.command("validate")
def data_validate(
    manifests: Manifests,
    media_root: MediaRoot,
    hashes: Annotated[
        bool, typer.Option("--hashes/--no-hashes", help="Compare the SHA-256 of the media.")
    ] = True,
    allow_licenses: Annotated[
        str | None,
        typer.Option(
            "--allow-licenses",
            metavar="SPDX,...",
            help="Allowed licenses, separated by commas; default: any.",
        ),
    ] = None,
) -> None:
    """Report all problems of manifests with line numbers.

    Several manifests are checked as one.
    """
    from vaemotion.data.manifest.manifest import validate

    validate(manifests, media_root, check_hashes=hashes, allow_licenses=allow_licenses)


@data_app.command("stats")
def data_stats(
    manifests: Annotated[
        list[Path] | None, typer.Argument(parser=local_path, help="Data manifests (JSON lines).")
    ] = None,
    media_root: Annotated[
        Path | None,
        typer.Option("--media-root", help="Root folder of the manifests' paths, to count seconds of sound."),
    ] = None,
    split: Annotated[
        Split | None, typer.Option("--split", help="Split of the procedural art; default: validation.")
    ] = None,
    count: Annotated[
        int | None,
        typer.Option("--count", min=50, max=1_000_000, help="Works of procedural art; default: 600."),
    ] = None,
    train_count: Annotated[
        int | None,
        typer.Option(
            "--train-count",
            min=100,
            max=1_000_000,
            help="Works that train the trivial baselines; default: 1500.",
        ),
    ] = None,
) -> None:
    """Describe manifests, or the procedural art.

    Without a manifest: the procedural art with its oracle ceilings and the accuracy of trivial baselines.
    """
    from vaemotion.data.stats.stats import describe

    describe(manifests or [], media_root, split, count, train_count)


@build_app.command("procedural")
def data_build_procedural(
    out: Annotated[Path, typer.Option("--out", help="Folder for the media and manifest.jsonl.")],
    split: Annotated[Split, typer.Option("--split", help="Split of the works.")],
    count: Annotated[int, typer.Option("--count", min=1, max=1_000_000, help="Number of works.")],
    seed: Seed = 0,
) -> None:
    """Write works of procedural art as clips with a manifest."""
    from vaemotion.data.art.build import build_procedural

    build_procedural(out, split, count, seed)


@build_app.command("artemo-open")
def data_build_artemo_open(
    out: Annotated[Path, typer.Option("--out", help="Folder for the media and the manifests.")],
    data: Annotated[
        Path | None,
        typer.Option("--from", help="Folder with sievers/ and bass/; default: procedural art only."),
    ] = None,
    count: Annotated[
        int,
        typer.Option(
            "--count", min=1, max=1_000_000, help="Number of works, and of pairs for each question."
        ),
    ] = 100,
    seed: Seed = 0,
    split: Annotated[Split, typer.Option("--split", help="Split of all items.")] = Split.TEST,
    fold: Annotated[int, typer.Option("--fold", help="Fold of the human-rated sets, 1 to 5.")] = 1,
) -> None:
    """Write an open benchmark after ArtEmoBenchmark.

    Its questions are about content, emotion, and an image compared with a sound.
    """
    from vaemotion.data.artemo_open import build_artemo_open

    build_artemo_open(out, data, split, count, seed, fold)


@build_app.command("medley")
def data_build_medley(
    out: Annotated[Path, typer.Option("--out", help="Video file to write (.mkv).")],
    count: Annotated[
        int, typer.Option("--count", min=1, max=1_000_000, help="Number of works, 5 s each.")
    ] = 5,
    seed: Seed = 0,
) -> None:
    """Write several works of procedural art as one clip."""
    from vaemotion.data.art.build import build_medley

    build_medley(out, count, seed)


def _add_published_set(name: str, title: str, contents: str) -> None:
    @build_app.command(name, help=f"Write a manifest of {title}.\n\nThe data set holds {contents}.")
    def build_published_set(  # pyright: ignore[reportUnusedFunction]
        folder: Annotated[Path, typer.Option("--from", help="Folder of the data set as published.")],
        out: Annotated[Path, typer.Option("--out", help="Manifest to write; media are not copied.")],
        media_root: Annotated[
            Path | None,
            typer.Option("--media-root", help="Root folder of its paths; default: the data set's folder."),
        ] = None,
        test_fold: Annotated[
            int | None, typer.Option("--test-fold", help="Fold of the split test, 1 to 5; default: none.")
        ] = None,
        validation_fold: Annotated[
            int | None,
            typer.Option("--validation-fold", help="Fold of the split validation, 1 to 5; default: none."),
        ] = None,
    ) -> None:
        from vaemotion.data.published.build import ADAPTERS, build

        build(ADAPTERS[name], folder, out, media_root, test_fold, validation_fold)


_add_published_set(
    "sievers", "the Sievers set", "abstract shapes and sounds with the arousal that they express"
)
_add_published_set("bass", "BASS", "silhouettes with valence and arousal")
_add_published_set("esc10", "ESC-10", "recordings of ten classes, in folds of its own")
_add_published_set("artemis", "ArtEmis", "paintings with the emotions that they induce")
_add_published_set(
    "vgmidi", "VGMIDI", "video game music with valence and arousal, to be rendered from MIDI first"
)
