"""Line drawings in unlimited number: one thin closed line on an empty background, round to jagged.

In: a seed. Out: a `LineShape` with its outline, its measures and its affect. The base model learns to see
thin lines from them: at 96 px such a line is half a pixel wide, and the other procedural art has none.

The affect follows published relations, not ratings. Corners and fast changes of direction along the outline
raise arousal (Sievers et al. 2019, Proc. R. Soc. B 286:20190513; Aronoff 2006). Sharp contours lower
valence (Bar & Neta 2006).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

SIDE_PX = 500
MEASURES = ("turning", "length", "sharpness")
_SHIFT = 4  # fractional bits of OpenCV's fixed-point coordinates
_CORNER_RAD = np.radians(35)


@dataclass(frozen=True)
class LineShape:
    """A closed line with its measures and its affect.

    ``points`` (n, 2): the outline, in units of the image side. ``measures`` (3,) in the order of
    ``MEASURES``, each about in [-1, 1]: log of the total turning, log of the length, share of the turning
    that lies in corners. ``valence``, ``arousal``: in [-1, 1].
    """

    seed: int
    points: np.ndarray
    measures: tuple[float, float, float]
    valence: float
    arousal: float


def sample_line_shape(seed: int) -> LineShape:
    """Sample a shape: a ring with dents and spikes, or a line through scattered points.

    Its corners are sharp, rounded or mixed.
    """
    rng = np.random.default_rng([seed, 5])
    count = int(rng.integers(3, 15))
    ring = rng.random() < 0.5
    if ring:
        angle = np.sort(rng.uniform(0, 2 * np.pi, count + 3))
        radius = 1 + rng.uniform(0, 0.9) * rng.uniform(-1, 1, count + 3) * (rng.random(count + 3) < 0.6)
        points = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    else:
        points = rng.uniform(-1, 1, (count, 2))
    smooth = rng.random(len(points)) < rng.choice([0.0, 0.5, 1.0])
    outline = _rounded(points * rng.uniform(0.5, 1.0, 2), smooth)
    reach = np.abs(outline).max()
    outline = outline * (rng.uniform(0.12, 0.44) / reach)
    outline += 0.5 + rng.uniform(-1, 1, 2) * (0.47 - np.abs(outline).max())
    turning, length, sharpness = measures = _measured(outline)
    arousal = float(np.tanh(0.9 * turning + 0.5 * length + 0.3 * sharpness))
    valence = float(np.clip(0.15 - 0.55 * sharpness - 0.3 * turning, -1, 1))
    return LineShape(seed, outline, measures, valence, arousal)


def _rounded(points: np.ndarray, smooth: np.ndarray) -> np.ndarray:
    """Round the corners of a closed line by four passes of corner cutting (Chaikin 1974).

    points: (n, 2); smooth: (n,) bool, the corners to round. Returns (m, 2).
    """
    for _ in range(4):
        before, after = np.roll(points, 1, axis=0), np.roll(points, -1, axis=0)
        first = np.where(smooth[:, None], 0.75 * points + 0.25 * before, points)
        second = np.where(smooth[:, None], 0.75 * points + 0.25 * after, points)
        both = np.stack([first, second], axis=1)  # (n, 2, 2); a sharp corner stays one point
        keep = np.stack([np.ones_like(smooth), smooth], axis=1)
        points, smooth = both[keep], np.repeat(smooth, 2)[keep.ravel()]
    return points


def _measured(outline: np.ndarray) -> tuple[float, float, float]:
    """Compute the three ``MEASURES`` of a closed line (n, 2)."""
    steps = np.roll(outline, -1, axis=0) - outline
    lengths = np.hypot(*steps.T)
    heading = np.arctan2(steps[:, 1], steps[:, 0])[lengths > 1e-9]
    turns = np.abs((np.roll(heading, -1) - heading + np.pi) % (2 * np.pi) - np.pi)
    total = float(turns.sum())
    turning = np.log(total / (5 * np.pi)) / np.log(3.0)
    length = np.log(float(lengths.sum()) / 1.8) / np.log(3.0)
    sharpness = 2 * float(turns[turns > _CORNER_RAD].sum()) / max(total, 1e-9) - 1
    return float(turning), float(length), sharpness


def draw_line_shape(shape: LineShape) -> np.ndarray:
    """Draw a shape as (500, 500, 3) uint8 RGB.

    In most drawings a black line of 2 px stands on white; some have another background or a thicker line.
    """
    rng = np.random.default_rng([shape.seed, 6])
    ground, ink = 255, 0
    if rng.random() < 0.25:
        ground = int(rng.integers(0, 256))
        ink = 0 if ground > 127 else 255
    width_px = 2 if rng.random() < 0.7 else int(rng.integers(2, 9))
    image = np.full((SIDE_PX, SIDE_PX, 3), ground, np.uint8)
    pixels = np.rint(shape.points * SIDE_PX * (1 << _SHIFT)).astype(np.int32)
    cv2.polylines(image, [pixels], True, (ink, ink, ink), width_px, cv2.LINE_AA, _SHIFT)
    return image
