"""Adapter of OASIS: photographs with the valence and the arousal that they induce.

In: the set's folder, as its authors publish it or as a table like that of `human_labels.bass`. Out: its items
and their folds, from which `build` makes a manifest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from vaemotion.data.manifest.item import Item
from vaemotion.data.published.adapter import ItemsAndFolds, Source, assign_folds, track_reading
from vaemotion.data.published.label_table import LabelRow, read_table

OASIS_TABLE = "OASIS.csv"
_LAYOUT = f"the folder of OASIS with {OASIS_TABLE} and Images/, or with labels.csv and pictures/"
_COLUMNS = ("Theme", "Valence_mean", "Valence_SD", "Valence_N", "Arousal_mean", "Arousal_SD", "Arousal_N")
_LABEL_COLUMNS = ("file", "title", "valence", "arousal", "valence_sd", "arousal_sd", "n_raters")


@dataclass(frozen=True)
class _Photograph:
    """One row of either table; the labels are in [-1, 1], their standard deviations on that scale."""

    where: str
    file: str
    title: str
    valence: float
    arousal: float
    valence_sd: float
    arousal_sd: float
    n_raters: int

    @property
    def theme(self) -> str:
        """Its subject; photographs of one theme are numbered, as "Acorns 1" and "Acorns 2"."""
        return re.sub(r"\s+\d+$", "", self.title)


def oasis(source: Source) -> ItemsAndFolds:
    """Read OASIS. ``labels.csv`` is read where the publisher's table is missing.

    Source: Kurdi, Lozano & Banaji 2017, "Introducing the Open Affective Standardized Image Set (OASIS)",
    Behav. Res. Methods 49:457; scales of 1 to 7, of which 4 is the middle. Raises UserError for a folder in
    another layout.
    """
    labels = source.folder / "labels.csv"
    if labels.is_file() and not (source.folder / OASIS_TABLE).is_file():
        photographs = [_of_labels(row) for row in read_table(labels, _LABEL_COLUMNS, _LAYOUT)]
    else:
        photographs = [
            _as_published(row) for row in read_table(source.folder / OASIS_TABLE, _COLUMNS, _LAYOUT)
        ]
    items = [_item(photograph, source) for photograph in track_reading(photographs, "oasis")]
    return items, assign_folds([photograph.theme for photograph in photographs])


def _as_published(row: LabelRow) -> _Photograph:
    title = row.text("Theme")
    return _Photograph(
        where=row.where,
        file=f"Images/{title}.jpg",
        title=title,
        valence=round((row.number("Valence_mean", 1, 7) - 4) / 3, 6),
        arousal=round((row.number("Arousal_mean", 1, 7) - 4) / 3, 6),
        valence_sd=round(row.number("Valence_SD", 0, 6) / 3, 6),
        arousal_sd=round(row.number("Arousal_SD", 0, 6) / 3, 6),
        n_raters=min(row.count("Valence_N"), row.count("Arousal_N")),  # each rater judged one of the two
    )


def _of_labels(row: LabelRow) -> _Photograph:
    return _Photograph(
        where=row.where,
        file=row.text("file"),
        title=row.text("title"),
        valence=row.number("valence", -1, 1),
        arousal=row.number("arousal", -1, 1),
        valence_sd=row.number("valence_sd", 0, 2),
        arousal_sd=row.number("arousal_sd", 0, 2),
        n_raters=row.count("n_raters"),
    )


def _item(photograph: _Photograph, source: Source) -> Item:
    path, sha256 = source.medium(photograph.file, photograph.where)
    return Item(
        id=f"oasis-{photograph.title}",
        image=path,
        pairing="none",
        task="emotion",
        label=photograph.theme,
        audible=False,
        modality="visual",
        valence=photograph.valence,
        arousal=photograph.arousal,
        valence_sd=photograph.valence_sd,
        arousal_sd=photograph.arousal_sd,
        construct="induced",
        n_raters=photograph.n_raters or None,
        split="train",
        work_id=f"oasis-{photograph.title}",
        # Photographs of one theme may show the same scene. The authors' names are not given.
        creator_id=f"oasis:{photograph.theme}",
        source="oasis",
        license="NOASSERTION",  # published as open access; each photograph has the license of its site
        sha256=sha256,
    )
