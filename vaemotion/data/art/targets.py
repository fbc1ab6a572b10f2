"""Targets of the auxiliary head of a base from scratch: what it predicts of a drawn frame."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vaemotion.data.art.art import VISIBLE, Work
from vaemotion.data.art.contents import CONTENT_CLASSES
from vaemotion.data.art.line_shapes import MEASURES, LineShape
from vaemotion.data.instructions import LINE_CONTENT

N_CONTENTS = len(CONTENT_CLASSES)
N_VALUES = 2 + len(VISIBLE) + len(MEASURES)


@dataclass(frozen=True)
class Targets:
    """Targets of the auxiliary head for one sample."""

    content: int  # index, below ``N_CONTENTS``
    # Valence, arousal, the visible factors of a work, the measures of a line; NaN where there is none.
    values: tuple[float, ...]


def targets_of(work: Work | LineShape) -> Targets:
    """Return the auxiliary head's targets for a work or a line drawing."""
    if isinstance(work, LineShape):
        unknown = (math.nan,) * len(VISIBLE)
        return Targets(
            CONTENT_CLASSES.index(LINE_CONTENT), (work.valence, work.arousal, *unknown, *work.measures)
        )
    factors = tuple(getattr(work.factors, name) for name in VISIBLE)
    unknown = (math.nan,) * len(MEASURES)
    return Targets(CONTENT_CLASSES.index(work.content), (work.valence, work.arousal, *factors, *unknown))
