"""Canvas of a procedural frame: palette, background, placement of the figure, drawing calls.

In: a `Work` and a side in pixels. Out: a `Canvas` with its background drawn. Its methods take object
coordinates: x to the right, y down, the figure within about the unit circle.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import cv2
import numpy as np

from vaemotion.data.art.works import Work, beat_position

Color = tuple[int, int, int]
_SHIFT = 4  # fractional bits of OpenCV's fixed-point coordinates
_ANGLES = np.linspace(0.0, 2 * np.pi, 24, endpoint=False)
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)  # (24, 2)


@dataclass(frozen=True)
class Palette:
    """The colors of a work, which follow from warmth, brightness and saturation and not from the content."""

    background: Color
    background_other: Color
    ink: Color  # outlines and details of the figure, far from it in lightness
    contour: Color  # lines on the background, far from it in lightness
    main: Color
    second: Color
    accent: Color


@dataclass(frozen=True)
class Canvas:
    """An RGB image (side_px, side_px, 3) uint8 being drawn, with the placement of the figure."""

    image: np.ndarray
    palette: Palette
    matrix: np.ndarray  # (2, 3) object coordinates -> pixels
    line_px: float
    side_px: int

    def _pixels(self, points: np.ndarray) -> np.ndarray:
        placed = points @ self.matrix[:, :2].T + self.matrix[:, 2]
        return np.rint(placed * (1 << _SHIFT)).astype(np.int32)

    def polygon(
        self, points: np.ndarray | list, fill: Color | None, outline: float = 1.0, ink: Color | None = None
    ) -> None:
        """Draw a closed shape (n, 2).

        `outline` is a multiple of the work's line width, 0 for none; `ink` replaces the palette's outline
        color.
        """
        pixels = [self._pixels(np.asarray(points, dtype=np.float64))]
        if fill is not None:
            cv2.fillPoly(self.image, pixels, fill, cv2.LINE_AA, _SHIFT)
        if outline:
            width = max(1, round(self.line_px * outline))
            cv2.polylines(self.image, pixels, True, ink or self.palette.ink, width, cv2.LINE_AA, _SHIFT)

    def line(self, points: np.ndarray | list, color: Color, width: float = 1.0) -> None:
        """Draw an open line (n, 2); `width` is a multiple of the work's line width."""
        pixels = [self._pixels(np.asarray(points, dtype=np.float64))]
        width_px = max(1, round(self.line_px * width))
        cv2.polylines(self.image, pixels, False, color, width_px, cv2.LINE_AA, _SHIFT)

    def lines(self, points: np.ndarray, color: Color, width: float = 1.0) -> None:
        """Draw several open lines, (lines, n, 2)."""
        width_px = max(1, round(self.line_px * width))
        cv2.polylines(self.image, list(self._pixels(points)), False, color, width_px, cv2.LINE_AA, _SHIFT)

    def polygons(self, points: np.ndarray, fill: Color) -> None:
        """Fill several shapes that do not overlap, (shapes, n, 2)."""
        cv2.fillPoly(self.image, list(self._pixels(points)), fill, cv2.LINE_AA, _SHIFT)

    def ellipse(
        self,
        x: float,
        y: float,
        rx: float,
        ry: float,
        fill: Color | None,
        outline: float = 1.0,
        turn: float = 0.0,
    ) -> None:
        """Draw an ellipse around (x, y), turned clockwise by `turn` radians."""
        corners = _CIRCLE if max(rx, ry) > 0.22 else _CIRCLE[::2]
        points = corners * np.array([rx, ry])
        if turn:
            points = points @ rotation(turn)
        self.polygon(points + np.array([x, y]), fill, outline)


@dataclass(frozen=True)
class EventState:
    """The position of a frame in the work's sequence of events."""

    index: int  # number of the latest event
    phase: float  # 0 at that event, 1 at the next one
    beat: float  # 1 at an event, then decays to about 0
    sway: float  # -1 .. 1: one extreme at an event, the other at the next
    power: float  # 0.25 .. 1, from energy
    position: float  # index + phase


def event_state(work: Work, time_s: float) -> EventState:
    """Compute the event state of a work at a time in seconds."""
    position = float(beat_position(work, time_s))
    index = int(np.floor(position))
    phase = position - index
    beat = float(np.exp(-4.0 * phase))
    power = 0.25 + 0.75 * (work.factors.energy + 1) / 2
    return EventState(index, phase, beat, float(np.cos(np.pi * position)), power, position)


def rotation(angle: float) -> np.ndarray:
    """Return the matrix R (2, 2) whose product `points @ R` turns points clockwise by `angle` radians."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, s], [-s, c]])


def arc(x: float, y: float, rx: float, ry: float, start: float, end: float, count: int = 12) -> np.ndarray:
    """Return points (count, 2) on an ellipse from angle `start` to `end`.

    Angles are in radians, clockwise from the right.
    """
    angles = start + (end - start) / (count - 1) * np.arange(count)
    points = np.empty((count, 2))
    points[:, 0], points[:, 1] = x + rx * np.cos(angles), y + ry * np.sin(angles)
    return points


def lobed(lobes: int, angularity: float, depth: float, phase: float = 0.0) -> np.ndarray:
    """Return a closed contour (8 * lobes, 2) of radius about 1: a cloud at angularity -1, a star at +1."""
    angles = np.linspace(0.0, 2 * np.pi, 8 * lobes, endpoint=False)
    turn = lobes * angles
    spiky = (angularity + 1) / 2
    triangle = 1 - 2 * np.abs((turn / (2 * np.pi)) % 1.0 * 2 - 1)  # -1 .. 1, one sharp tip per lobe
    bump = 2 * np.abs(np.sin(turn / 2)) - 1  # round tips
    spike = np.sign(triangle) * np.abs(triangle) ** (1.0 if spiky < 0.5 else 1.5)
    radius = 1 + depth * (0.45 + 0.55 * spiky) * ((1 - spiky) * bump + spiky * spike)
    return np.stack([radius * np.cos(angles + phase), radius * np.sin(angles + phase)], axis=1)


def _rgb(hue: float, saturation: float, value: float) -> Color:
    r, g, b = colorsys.hsv_to_rgb(hue % 1.0, min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0))
    return round(255 * r), round(255 * g), round(255 * b)


def _palette(work: Work, rng: np.random.Generator) -> Palette:
    factors = work.factors
    warm = (factors.warmth + 1) / 2
    # From blue (cool) through violet or green to orange-red (warm): either way around the color circle.
    cool_hue, warm_hue = 0.58, 0.06
    way = -1.0 if rng.random() < 0.5 else 1.0
    distance = (warm_hue - cool_hue) % 1.0 if way > 0 else (cool_hue - warm_hue) % 1.0
    hue = cool_hue + way * distance * warm
    saturation = 0.06 + 0.86 * (factors.saturation + 1) / 2
    value = 0.22 + 0.66 * (factors.brightness + 1) / 2
    up = value < 0.55 or (value < 0.68 and rng.random() < 0.5)  # figure lighter than the background
    step = rng.uniform(0.36, 0.46)
    figure = min(value + step, 1.0) if up else value - step
    spread = rng.uniform(-0.05, 0.05, 5)
    tints = rng.uniform(0.75, 1.1, 5)
    jitter = rng.uniform(-0.05, 0.05, 3)
    return Palette(
        background=_rgb(hue + spread[0], saturation * tints[0], value),
        background_other=_rgb(hue + spread[1], saturation * tints[1], value + (-0.13 if up else 0.13)),
        ink=_rgb(hue, saturation * 0.4, 0.97 if figure < 0.42 else 0.05),
        contour=_rgb(hue, saturation * 0.4, 0.97 if value < 0.42 else 0.05),
        main=_rgb(hue + spread[2] * 1.5, saturation * tints[2], figure + jitter[0]),
        second=_rgb(hue + spread[3] * 2, saturation * tints[3], (figure + value) / 2 + jitter[1]),
        accent=_rgb(
            hue + spread[4] + 0.08 * way, min(1.0, saturation * 1.25), figure + (0.2 if up else -0.15)
        ),
    )


def _background(side: int, palette: Palette, rng: np.random.Generator) -> np.ndarray:
    """Draw a background (side, side, 3) uint8: flat, a gradient, clouds, stripes or discs."""
    kind = int(rng.integers(5))
    first, other = np.array(palette.background, np.float32), np.array(palette.background_other, np.float32)
    image = np.empty((side, side, 3), np.uint8)
    # Many times faster than NumPy's assignment.
    cv2.rectangle(image, (0, 0), (side, side), palette.background, -1)
    if kind == 1:
        corners = first + rng.uniform(0, 1, (2, 2, 1)).astype(np.float32) * (other - first)
        image = cv2.resize(corners.astype(np.uint8), (side, side), interpolation=cv2.INTER_LINEAR)
    elif kind == 2:
        cells = int(rng.integers(4, 20))
        grid = first + rng.uniform(0, 1, (cells, cells, 1)).astype(np.float32) * (other - first)
        image = cv2.resize(grid.astype(np.uint8), (side, side), interpolation=cv2.INTER_LINEAR)
    elif kind == 3:
        angle, count = rng.uniform(0, np.pi), int(rng.integers(3, 9))
        direction = np.array([np.cos(angle), np.sin(angle)])
        across = np.array([-direction[1], direction[0]])
        center, width = np.array([side / 2, side / 2]), 1.5 * side / count
        for stripe in np.arange(count) - (count - 1) / 2:
            middle = center + across * stripe * width
            ends = np.rint([middle - direction * side, middle + direction * side]).astype(int)
            start, end = (int(ends[0][0]), int(ends[0][1])), (int(ends[1][0]), int(ends[1][1]))
            cv2.line(image, start, end, palette.background_other, max(1, round(width * 0.45)), cv2.LINE_AA)
    elif kind == 4:
        for x, y, radius in rng.uniform(0, 1, (int(rng.integers(3, 9)), 3)):
            center_px, radius_px = (round(x * side), round(y * side)), round((0.04 + 0.12 * radius) * side)
            cv2.circle(image, center_px, radius_px, palette.background_other, -1, cv2.LINE_AA)
    return image


def open_canvas(work: Work, side_px: int, beat: float, sway: float) -> Canvas:
    """Draw the background of a work and place its figure.

    `beat` in [0, 1] decays after each event and `sway` in [-1, 1] swings with the events; see `EventState`.
    """
    rng = np.random.default_rng([work.seed, 1])
    palette = _palette(work, rng)
    # Loud sounds correspond to large and heavy objects (Spence 2011, crossmodal correspondences).
    loud = (work.factors.energy + 1) / 2
    scale = 0.55 + 0.3 * loud + rng.uniform(0.0, 0.15)
    x, y = rng.uniform(-1, 1, 2) * (1.08 - scale) * 0.5
    angle = float(np.clip(rng.normal(0, 0.12), -0.3, 0.3))
    line = 0.012 + 0.014 * loud + rng.uniform(0.0, 0.004)
    mirror = -1.0 if rng.random() < 0.5 else 1.0
    image = _background(side_px, palette, rng)
    power = 0.15 + 0.85 * (work.factors.energy + 1) / 2
    x, y = x + 0.05 * power * sway, y - 0.09 * power * beat
    half = side_px / 2
    zoom = half * 0.78 * scale * (1 + 0.08 * power * beat)
    linear = zoom * rotation(angle + 0.12 * power * sway).T * np.array([mirror, 1.0])
    matrix = np.concatenate([linear, [[half * (1 + x)], [half * (1 + y)]]], axis=1)
    return Canvas(image, palette, matrix, max(1.0, line * side_px), side_px)
