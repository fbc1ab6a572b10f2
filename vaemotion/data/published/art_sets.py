"""Adapters of art data sets that users download: ArtEmis (paintings) and VGMIDI (video game music).

ArtEmis has the emotions that paintings induce, VGMIDI the valence and arousal that music expresses. In: the
set's folder. Out: its items and their folds, from which `build` makes a manifest.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path, PurePosixPath

from vaemotion.contract.emotions import EMOTIONS
from vaemotion.contract.errors import UserError
from vaemotion.data.manifest.item import Item
from vaemotion.data.published.adapter import ItemsAndFolds, Source, assign_folds, track_reading
from vaemotion.data.published.label_table import LabelRow, read_table

ARTEMIS_TABLE = "artemis_dataset_release_v0.csv"
_ARTEMIS_COLUMNS = ("art_style", "painting", "emotion", "utterance")
_ARTEMIS_LAYOUT = f"the folder with {ARTEMIS_TABLE} and WikiArt's images as art_style/painting.jpg"
VGMIDI_TABLE = "vgmidi_labelled.csv"
_VGMIDI_LAYOUT = f"the folder of github.com/lucasnfe/vgmidi with {VGMIDI_TABLE}"
_VGMIDI_COLUMNS = ("id", "series", "game", "midi", "valence", "arousal")
RENDERED_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")


def artemis(source: Source) -> ItemsAndFolds:
    """Read ArtEmis: paintings with the distribution of the emotions that annotators felt.

    Source: Achlioptas et al. 2021, "ArtEmis: Affective Language for Visual Art", CVPR. The set has no
    valence and no arousal, so the items have none; the annotators' explanations are the utterances. Raises
    UserError for a folder in another layout.
    """
    rows = read_table(source.folder / ARTEMIS_TABLE, _ARTEMIS_COLUMNS, _ARTEMIS_LAYOUT)
    annotations: dict[tuple[str, str], list[LabelRow]] = {}
    for row in rows:
        annotations.setdefault((row.text("art_style"), row.text("painting")), []).append(row)
    paintings = track_reading(list(annotations), "artemis")
    items = [
        _artemis_item(style, painting, annotations[style, painting], source) for style, painting in paintings
    ]
    return items, assign_folds([_artist(painting) for _, painting in annotations])


def _artemis_item(style: str, painting: str, rows: list[LabelRow], source: Source) -> Item:
    path, sha256 = source.medium(f"{style}/{painting}.jpg", rows[0].where)
    if not _artist(painting):
        raise UserError(f"{rows[0].where}: painting must be artist_title, got {painting!r}")
    counts = Counter(row.one_of("emotion", EMOTIONS) for row in rows)
    return Item(
        id=f"artemis-{style}/{painting}",
        image=path,
        pairing="none",
        task="emotion",
        audible=False,
        modality="visual",
        construct="induced",
        emotion_distribution=tuple(round(counts[emotion] / len(rows), 6) for emotion in EMOTIONS),
        utterances=tuple(row.text("utterance") for row in rows),
        n_raters=len(rows),
        split="train",
        work_id=f"wikiart-{painting}",  # WikiArt lists some paintings under two styles
        creator_id=f"wikiart:{_artist(painting)}",
        source="artemis",
        # The annotations have their own terms of use (research), the images have WikiArt's.
        license="LicenseRef-ArtEmis-Terms-of-Use",
        sha256=sha256,
    )


def _artist(painting: str) -> str:
    """Return the part of a painting's name before the first underscore; empty without one."""
    return painting.partition("_")[0] if "_" in painting else ""


def vgmidi(source: Source) -> ItemsAndFolds:
    """Read VGMIDI: phrases of video game music for piano, each -1 or +1 in valence and in arousal.

    Source: Ferreira & Whitehead 2019, "Learning to Generate Music with Sentiment", ISMIR. The set holds
    MIDI; the user renders it to sound files beside the .mid files. Raises UserError for a folder in another
    layout.
    """
    rows = read_table(source.folder / VGMIDI_TABLE, _VGMIDI_COLUMNS, _VGMIDI_LAYOUT)
    items = [_vgmidi_item(row, source) for row in track_reading(rows, "vgmidi")]
    return items, assign_folds([_series(row) for row in rows])


def _vgmidi_item(row: LabelRow, source: Source) -> Item:
    midi = PurePosixPath(row.text("midi"))
    path, sha256 = source.medium(rendered(row.where, midi, source.folder), row.where)
    return Item(
        id=f"vgmidi-{midi.stem}",
        audio=path,
        pairing="none",
        task="emotion",
        audible=True,
        modality="audio",
        valence=_sign(row, "valence"),
        arousal=_sign(row, "arousal"),
        # The annotation tool asked for the sentiment and the intensity "of the piece", not of the annotator.
        construct="expressed",
        # No n_raters: thirty people rated each piece, and an unknown number were dropped as outliers.
        split="train",
        work_id=f"vgmidi-{row.text('id')}",
        creator_id=f"vgmidi:{_series(row)}",
        source="vgmidi",
        license="NOASSERTION",  # the repository names no license, and the music belongs to its publishers
        sha256=sha256,
    )


def _sign(row: LabelRow, column: str) -> float:
    return float(row.one_of(column, ("-1", "1")))


def _series(row: LabelRow) -> str:
    """Return the game series, whose pieces share composers and themes; for "Other", the game."""
    series = row.text("series")
    return row.text("game") if series == "Other" else series


def rendered(where: str, midi: PurePosixPath, folder: Path) -> str:
    """Return the name of the sound file beside a MIDI file, which ``where`` names. Raises UserError."""
    names = [str(midi.with_suffix(suffix)) for suffix in RENDERED_SUFFIXES]
    for name in names:
        if (folder / name).is_file():
            return name
    raise UserError(
        f"{where}: {midi} has no sound file beside it; render it to {PurePosixPath(names[0]).name} "
        f"(or {', '.join(RENDERED_SUFFIXES[1:])}) with a synthesizer such as FluidSynth"
    )
