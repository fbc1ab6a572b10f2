"""Sets of art that everybody gets from its publisher: paintings with what they make people feel (ArtEmis), video game music
with what it expresses (VGMIDI).

In: the set's folder. Out: its items and their folds; `published` makes a manifest of them.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path, PurePosixPath

from vaemotion.contract.emotions import EMOTIONS
from vaemotion.contract.errors import UserError
from vaemotion.data.adapter import ItemsAndFolds, Source, dealt_folds, reading
from vaemotion.data.item import Item
from vaemotion.data.label_table import Row, read_table

ARTEMIS_TABLE = "artemis_dataset_release_v0.csv"
_ARTEMIS_LAYOUT = f"the folder with {ARTEMIS_TABLE} and WikiArt's pictures as art_style/painting.jpg"
VGMIDI_TABLE = "vgmidi_labelled.csv"
_VGMIDI_LAYOUT = f"the folder of github.com/lucasnfe/vgmidi with {VGMIDI_TABLE}"
_VGMIDI_COLUMNS = ("id", "series", "game", "midi", "valence", "arousal")
RENDERED_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")


def artemis(source: Source) -> ItemsAndFolds:
    """Achlioptas et al. 2021, "ArtEmis: Affective Language for Visual Art", CVPR: each annotator named the emotion that a
    painting made them feel. It has no valence and no arousal, so neither have the items. Raises UserError for a folder
    that is laid out otherwise."""
    rows = read_table(source.folder / ARTEMIS_TABLE, ("art_style", "painting", "emotion"), _ARTEMIS_LAYOUT)
    annotations: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        annotations.setdefault((row.text("art_style"), row.text("painting")), []).append(row)
    paintings = reading(list(annotations), "artemis")
    items = [
        _artemis_item(style, painting, annotations[style, painting], source) for style, painting in paintings
    ]
    return items, dealt_folds([_artist(painting) for _, painting in annotations])


def _artemis_item(style: str, painting: str, rows: list[Row], source: Source) -> Item:
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
        n_raters=len(rows),
        split="train",
        work_id=f"wikiart-{painting}",  # WikiArt shows some paintings under two styles
        creator_id=f"wikiart:{_artist(painting)}",
        source="artemis",
        # The annotations are given for research under terms of their own, the pictures under WikiArt's.
        license="LicenseRef-ArtEmis-Terms-of-Use",
        sha256=sha256,
    )


def _artist(painting: str) -> str:
    """What stands before the first underscore; empty without one."""
    return painting.partition("_")[0] if "_" in painting else ""


def vgmidi(source: Source) -> ItemsAndFolds:
    """Ferreira & Whitehead 2019, "Learning to Generate Music with Sentiment", ISMIR: piano arrangements of video game music
    in phrases, each -1 or +1 in valence and in arousal. The set holds MIDI: the user renders it to sound beside the
    .mid files. Raises UserError for a folder that is laid out otherwise."""
    rows = read_table(source.folder / VGMIDI_TABLE, _VGMIDI_COLUMNS, _VGMIDI_LAYOUT)
    items = [_vgmidi_item(row, source) for row in reading(rows, "vgmidi")]
    return items, dealt_folds([_series(row) for row in rows])


def _vgmidi_item(row: Row, source: Source) -> Item:
    midi = PurePosixPath(row.text("midi"))
    path, sha256 = source.medium(_rendered(row, midi, source.folder), row.where)
    return Item(
        id=f"vgmidi-{midi.stem}",
        audio=path,
        pairing="none",
        task="emotion",
        audible=True,
        modality="audio",
        valence=_sign(row, "valence"),
        arousal=_sign(row, "arousal"),
        # The annotation tool asked for "the sentiment of the piece" and "the intensity of the piece", not for one's own.
        construct="expressed",
        # No n_raters: thirty people heard each piece, but a label comes from those who remained after outliers were dropped.
        split="train",
        work_id=f"vgmidi-{row.text('id')}",
        creator_id=f"vgmidi:{_series(row)}",
        source="vgmidi",
        license="NOASSERTION",  # SPDX for: the repository names none, and the music is its publishers'
        sha256=sha256,
    )


def _sign(row: Row, column: str) -> float:
    return float(row.one_of(column, ("-1", "1")))


def _series(row: Row) -> str:
    """A series shares its composers and themes; "Other" is not one, so there the game takes its place."""
    series = row.text("series")
    return row.text("game") if series == "Other" else series


def _rendered(row: Row, midi: PurePosixPath, folder: Path) -> str:
    """The name of the sound beside a MIDI file."""
    names = [str(midi.with_suffix(suffix)) for suffix in RENDERED_SUFFIXES]
    for name in names:
        if (folder / name).is_file():
            return name
    raise UserError(
        f"{row.where}: {midi} has no sound beside it, render it to {PurePosixPath(names[0]).name} "
        f"(or {', '.join(RENDERED_SUFFIXES[1:])}) with a synthesiser as FluidSynth"
    )
