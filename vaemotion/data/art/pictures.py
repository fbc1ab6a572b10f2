"""Frames of a work, drawn in time with its events.

In: a `Work`, a time, a side. Out: RGB uint8. Colors come from the palette alone. Angularity sets the
contours of halo and ornaments, energy the size of the motion, tempo the length of the trails. The motion
follows the events that the sound shares (`vaemotion.data.art.works`). Every cue is large enough for 96 px:
a model cannot learn what a frame of that side does not show (docs/log.md).
"""

from __future__ import annotations

import numpy as np

from vaemotion.data.art.canvas import Canvas, EventState, event_state, lobed, open_canvas
from vaemotion.data.art.figures import FIGURES
from vaemotion.data.art.works import Work

_PI = np.pi


def draw(work: Work, time_s: float, side_px: int) -> np.ndarray:
    """Draw the frame of a work at a time: (side_px, side_px, 3) uint8 RGB."""
    now = event_state(work, time_s)
    canvas = open_canvas(work, side_px, now.beat, now.sway)
    rng = np.random.default_rng([work.seed, 2])
    _halo(canvas, work, now, rng)
    FIGURES[work.content](canvas, now, rng, work)
    _ornaments(canvas, work, now, rng)
    return canvas.image


def _halo(canvas: Canvas, work: Work, now: EventState, rng: np.random.Generator) -> None:
    """Draw a cloud or a star behind the figure, the largest cue of angularity."""
    shape = lobed(int(rng.integers(6, 10)), work.factors.angularity, 0.45, rng.uniform(0, _PI))
    radius = rng.uniform(1.02, 1.15) * (1 + 0.06 * now.power * now.beat)
    fill = canvas.palette.background_other if rng.random() < 0.75 else None
    canvas.polygon(shape * radius, fill, 0.7, canvas.palette.contour)


def _ornaments(canvas: Canvas, work: Work, now: EventState, rng: np.random.Generator) -> None:
    """Draw shapes that circle the figure.

    Energy sets their number and size, angularity their contour, tempo the length of their trails.
    """
    count = round(1 + 7 * now.power)
    lobes = int(rng.integers(5, 7))
    shape = lobed(lobes, work.factors.angularity, 0.5)
    start, way = rng.uniform(0, 2 * _PI), (-1.0 if rng.random() < 0.5 else 1.0)
    jitter, size = rng.uniform(-0.06, 0.06, 8), rng.uniform(0.9, 1.1, 8) * (0.07 + 0.11 * now.power)
    trail = 0.02 + 0.75 * (work.factors.tempo + 1) / 2  # radians
    angle = (
        start + way * 0.25 * now.position + 2 * _PI * np.arange(count) / count + jitter[:count]
    )  # (count,)
    radius = 1.2 + jitter[:count] + 0.12 * now.power * now.beat
    along = angle[:, None] - way * trail * np.arange(6) / 5  # (count, 6)
    canvas.lines(
        radius[:, None, None] * np.stack([np.cos(along), np.sin(along)], axis=2), canvas.palette.accent, 2.0
    )
    centers = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    canvas.polygons(size[:count, None, None] * shape + centers[:, None], canvas.palette.accent)
