"""Commands of ``vaemotion data``: validate, describe and build data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vaemotion.cli.app import Manifest, Manifests, MediaRoot, Seed, Split, build_app, data_app, local_path


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


@build_app.command("music")
def data_build_music(
    out: Annotated[Path, typer.Option("--out", help="Folder for the sounds, scores and manifest.jsonl.")],
    count: Annotated[int, typer.Option("--count", min=1, max=1_000_000, help="Number of pieces.")] = 100,
    soundfont: Annotated[
        Path | None,
        typer.Option(
            "--soundfont",
            parser=local_path,
            metavar="FILE",
            help="Soundfont (.sf2, .sf3); default: a free one that is installed.",
        ),
    ] = None,
    soundfont_license: Annotated[
        str | None,
        typer.Option(
            "--soundfont-license", metavar="SPDX", help="License of another soundfont, such as MIT."
        ),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Write procedural music with a manifest.

    FluidSynth plays it. Its labels follow from mode, tempo and other cues by a published rule; no people
    rated it.
    """
    from vaemotion.data.music.build import build_music

    build_music(out, count, seed, soundfont, soundfont_license)


@build_app.command("soundscapes")
def data_build_soundscapes(
    out: Annotated[Path, typer.Option("--out", help="Folder for the sounds and manifest.jsonl.")],
    count: Annotated[int, typer.Option("--count", min=1, max=1_000_000, help="Number of scenes.")] = 100,
    recordings: Annotated[
        Path | None,
        typer.Option(
            "--recordings",
            parser=local_path,
            metavar="MANIFEST",
            help="Manifest of recordings, such as ESC-10's, which replace about half of the sources of their "
            "name. Default: everything is synthesized.",
        ),
    ] = None,
    media_root: Annotated[
        Path | None,
        typer.Option("--media-root", help="Root folder of the recordings; default: their manifest's folder."),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Write procedural soundscapes with a manifest.

    Their labels follow from sources, level and variability by a published rule; no people rated them.
    """
    from vaemotion.data.soundscapes.build import build_soundscapes

    build_soundscapes(out, count, seed, recordings, media_root)


@build_app.command("clips")
def data_build_clips(
    folder: Annotated[Path, typer.Option("--from", help="Folder with the videos, searched recursively.")],
    out: Annotated[Path, typer.Option("--out", help="Manifest to write; media are not copied.")],
    license_name: Annotated[
        str | None,
        typer.Option("--license", metavar="SPDX", help="License of the videos, such as CC-BY-4.0; required."),
    ] = None,
    media_root: Annotated[
        Path | None,
        typer.Option("--media-root", help="Root folder of its paths; default: the folder of the videos."),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(
            "--csv",
            metavar="FILE",
            help="Table of clips: VGGSound, AudioSet, or columns id, start, end, label; or FineVideo's "
            "folder of JSON files. Default: all videos, whole.",
        ),
    ] = None,
    source: Annotated[
        str | None, typer.Option("--source", help="Name of the data set; default: that of table or folder.")
    ] = None,
    clip_s: Annotated[
        float, typer.Option("--clip-s", help="Without a table: length of a longer video's clips.")
    ] = 10.0,
    window_s: Annotated[
        float | None,
        typer.Option("--window-s", help="Shortest clip; default: a window of the default configuration."),
    ] = None,
    validation: Annotated[
        float, typer.Option("--validation", help="Share of the videos for the split validation.")
    ] = 0.1,
    test: Annotated[float, typer.Option("--test", help="Share of the videos for the split test.")] = 0.1,
    parts_of_one_film: Annotated[
        bool,
        typer.Option(
            "--parts-of-one-film",
            help="With fewer videos than splits, put parts of each video, with a gap between them, into the "
            "splits; they are written beside the manifest, which names them so.",
        ),
    ] = False,
) -> None:
    """Write a manifest of the videos in a folder.

    Clips without sound, pictures or change, and those shorter than a window, are left out and counted.
    """
    from vaemotion.data.build_clips import ClipsOptions, build_clips

    shortest = {} if window_s is None else {"window_s": window_s}
    options = ClipsOptions(
        license=license_name,
        table=table,
        source=source,
        clip_s=clip_s,
        validation=validation,
        test=test,
        parts_of_one_film=parts_of_one_film,
        **shortest,
    )
    build_clips(folder, out, media_root, options)


@data_app.command("shard")
def data_shard(
    manifest: Manifest,
    out: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="Folder for the shards.")],
    media_root: MediaRoot,
    samples_per_shard: Annotated[
        int, typer.Option("--samples-per-shard", min=1, help="Most clips in a shard.")
    ] = 1000,
    max_mb: Annotated[float, typer.Option("--max-mb", help="Most megabytes in a shard.")] = 1000.0,
    re_encode: Annotated[
        bool,
        typer.Option(
            "--re-encode", help="Encode the clips again, as H.264 and FLAC at 16 kHz; default: copy packets."
        ),
    ] = False,
) -> None:
    """Write the clips of a manifest as WebDataset shards.

    A run that was ended goes on behind the last whole shard.
    """
    from vaemotion.data.shard import ShardOptions, write_shards

    write_shards(manifest, out, media_root, ShardOptions(samples_per_shard, max_mb, re_encode))


# Command -> title of the set, and what it holds. `published.build.ADAPTERS` has the same names.
_PUBLISHED_SETS = {
    "sievers": ("the Sievers set", "abstract shapes and sounds with the arousal that they express"),
    "bass": ("BASS", "silhouettes with valence and arousal"),
    "oasis": ("OASIS", "photographs with the valence and arousal that they induce"),
    "esc10": ("ESC-10", "recordings of ten classes, in folds of its own"),
    "artemis": ("ArtEmis", "paintings with the emotions that they induce, and why"),
    "wikiart-emotions": ("WikiArt Emotions", "art with votes for twenty emotions that it evokes"),
    "vgmidi": ("VGMIDI", "video game music with valence and arousal, to be rendered from MIDI first"),
    "emopia": ("EMOPIA", "piano music with quadrants of valence and arousal, to be rendered from MIDI first"),
    "emotify": ("Emotify", "music with votes for nine emotions that it induces"),
    "pmemo": ("PMEmo", "choruses of songs with the valence and arousal that they induce over time"),
    "deam": ("DEAM", "songs with the valence and arousal that they express over time"),
    "muvi": ("MuVi", "music videos with valence and arousal over time, of music, picture and both"),
    "liris-accede": ("LIRIS-ACCEDE", "films with the valence and arousal that they induce each second"),
}


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
        reaction_lag_s: Annotated[
            float | None,
            typer.Option(
                "--reaction-lag",
                help="Seconds by which raters answered late, for sets rated over time; default: 0.",
            ),
        ] = None,
    ) -> None:
        from vaemotion.data.published.build import ADAPTERS, build

        build(ADAPTERS[name], folder, out, media_root, test_fold, validation_fold, reaction_lag_s)


for _name, (_title, _contents) in _PUBLISHED_SETS.items():
    _add_published_set(_name, _title, _contents)
