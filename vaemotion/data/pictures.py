"""Drawing of a work, in time with its events.

In: a `Work`, a time, a side. Out: RGB uint8. Colours come from the palette only, contours of halo and ornaments from
angularity, motion from the events that the sound shares (`vaemotion.data.works`), its size from energy, and the length
of the trails from tempo. Every sign is bold enough for 96 px: what a small picture does not show, no training finds (docs/log.md).
"""

from __future__ import annotations

import numpy as np

from vaemotion.data.canvas import Canvas, Moment, lobed, moment, open_canvas
from vaemotion.data.figures import FIGURES
from vaemotion.data.works import Work

_PI = np.pi


def draw(work: Work, time_s: float, side_px: int) -> np.ndarray:
    """(side_px, side_px, 3) uint8 RGB."""
    now = moment(work, time_s)
    canvas = open_canvas(work, side_px, now.beat, now.sway)
    rng = np.random.default_rng([work.seed, 2])
    _halo(canvas, work, now, rng)
    FIGURES[work.content](canvas, now, rng, work)
    _ornaments(canvas, work, now, rng)
    return canvas.image


def _halo(canvas: Canvas, work: Work, now: Moment, rng: np.random.Generator) -> None:
    """A cloud or star behind the figure: angularity's largest sign."""
    shape = lobed(int(rng.integers(6, 10)), work.factors.angularity, 0.45, rng.uniform(0, _PI))
    radius = rng.uniform(1.02, 1.15) * (1 + 0.06 * now.power * now.beat)
    fill = canvas.palette.background_other if rng.random() < 0.75 else None
    canvas.polygon(shape * radius, fill, 0.7, canvas.palette.contour)


def _ornaments(canvas: Canvas, work: Work, now: Moment, rng: np.random.Generator) -> None:
    """Shapes circling round the figure: their number and size are energy, their contour angularity, their trails tempo."""
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
    centres = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    canvas.polygons(size[:count, None, None] * shape + centres[:, None], canvas.palette.accent)
