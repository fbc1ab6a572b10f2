"""Figures of the content classes: stylized drawings that move with the work's events.

In: a `Canvas`, an `EventState`, a random generator of the work and the work. Figures are drawn in the
canvas's object coordinates. The class determines the shapes; colors come from the palette alone.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vaemotion.data.art.canvas import Canvas, EventState, arc, rotation
from vaemotion.data.art.works import Work

_PI = np.pi


def _baby_cry(c: Canvas, now: EventState, rng: np.random.Generator, work: Work) -> None:
    p, mouth = c.palette, 0.12 + 0.26 * now.beat * now.power
    c.ellipse(-0.82, 0.05, 0.16, 0.2, p.main)
    c.ellipse(0.82, 0.05, 0.16, 0.2, p.main)
    c.ellipse(0, 0, 0.82, 0.85, p.main)
    c.line(arc(0.05, -0.86, 0.16, 0.2, 0.5 * _PI, 2.1 * _PI), p.contour, 1.2)
    for side in (-1, 1):
        c.line(arc(0.38 * side, -0.2, 0.2, 0.14, 0.05 * _PI, 0.95 * _PI, 7), p.ink, 1.3)
        c.line([(0.16 * side, -0.42), (0.5 * side, -0.52)], p.ink)
        drop = (now.position * 0.7 + 0.3 * side) % 1.0
        c.ellipse(0.5 * side, 0.05 + 0.55 * drop, 0.09, 0.15, p.accent, 0.6)
    c.ellipse(0, 0.45, 0.2 + 0.1 * now.beat, mouth, p.ink, 0.0)
    c.ellipse(0, 0.45 + 0.5 * mouth, 0.13, 0.4 * mouth, p.accent, 0.0)


def _chainsaw(c: Canvas, now: EventState, rng: np.random.Generator, work: Work) -> None:
    p, shake = c.palette, 0.025 * now.power * np.sin(40 * now.position)
    jolt = np.array([0.0, shake])
    bar = np.concatenate(
        [[(-0.1, -0.14)], arc(0.95, 0.02, 0.16, 0.16, -0.5 * _PI, 0.5 * _PI, 7), [(-0.1, 0.18)]]
    )
    step = 0.18
    slide = (now.position * 0.9) % 1.0 * step
    for x in np.arange(-0.08, 0.88, step) + slide:
        c.polygon([(x, -0.14), (x + 0.1, -0.14), (x + 0.09, -0.29)], p.contour, 0.0)
        c.polygon([(x, 0.18), (x + 0.1, 0.18), (x + 0.01, 0.33)], p.contour, 0.0)
    c.polygon(bar + jolt, p.second)
    c.line([(0.0, 0.02 + shake), (0.9, 0.02 + shake)], p.ink, 0.7)
    c.line(arc(-0.5, -0.34, 0.42, 0.34, _PI, 2 * _PI, 9), p.contour, 2.2)
    body = np.array([(-1.0, -0.35), (-0.05, -0.35), (0.05, 0.1), (-0.05, 0.42), (-0.85, 0.42), (-1.0, 0.2)])
    c.polygon(body + jolt, p.main)
    c.ellipse(-0.5, 0.05, 0.2, 0.2, p.accent)
    c.line([(-1.0, 0.0), (-1.15, 0.1), (-1.1, 0.4), (-0.9, 0.42)], p.contour, 1.6)


def _clock_tick(c: Canvas, now: EventState, rng: np.random.Generator, work: Work) -> None:
    p, bob = c.palette, 0.5 * now.power * now.sway
    tip = np.array([np.sin(bob), np.cos(bob)])
    c.line([(0, 0.4), 0.4 * np.array([0.0, 1.0]) + 0.68 * tip], p.contour, 1.2)
    c.ellipse(0.68 * tip[0], 0.4 + 0.68 * tip[1] - 0.08, 0.17, 0.17, p.accent)
    c.ellipse(0, -0.2, 0.78, 0.78, p.main)
    c.ellipse(0, -0.2, 0.63, 0.63, p.second, 0.6)
    for hour in range(12):
        way = np.array([np.sin(hour * _PI / 6), -np.cos(hour * _PI / 6)])
        c.line([(0, -0.2) + 0.48 * way, (0, -0.2) + 0.6 * way], p.ink, 1.4 if hour % 3 == 0 else 0.7)
    for angle, length, width in (
        (rng.uniform(0, 2 * _PI), 0.32, 2.0),
        (rng.uniform(0, 2 * _PI), 0.5, 1.4),
        (now.index * _PI / 6, 0.55, 0.8),
    ):
        c.line([(0, -0.2), (length * np.sin(angle), -0.2 - length * np.cos(angle))], p.ink, width)


def _dog_bark(c: Canvas, now: EventState, rng: np.random.Generator, work: Work) -> None:
    p, gape = c.palette, 0.06 + 0.3 * now.beat * now.power
    c.ellipse(0, -0.1, 0.62, 0.68, p.main)
    for side in (-1, 1):
        ear = np.array([(0.42, -0.72), (0.78, -0.62), (0.95, 0.1), (0.78, 0.3), (0.6, 0.05)]) * (side, 1)
        c.polygon(ear, p.second)
        c.ellipse(0.26 * side, -0.28, 0.1, 0.12, p.ink, 0.0)
    c.polygon(arc(0, 0.42, 0.34, 0.2 + gape, 0, _PI, 10), p.ink)
    c.ellipse(0, 0.42 + 0.75 * gape, 0.17, 0.12 + 0.55 * gape, p.accent, 0.6)
    c.ellipse(-0.19, 0.3, 0.25, 0.22, p.second)
    c.ellipse(0.19, 0.3, 0.25, 0.22, p.second)
    c.ellipse(0, 0.12, 0.18, 0.13, p.ink, 0.0)


def _fire(c: Canvas, now: EventState, rng: np.random.Generator, work: Work) -> None:
    p, spark = c.palette, rng.uniform(-1, 1, (6, 2))
    for fill, width, height, salt in (
        (p.main, 0.72, 1.5, 0.0),
        (p.accent, 0.48, 1.0, 1.7),
        (p.second, 0.25, 0.6, 3.1),
    ):
        tongues = np.linspace(-1, 1, 7)
        tall = np.array([0.25, 0.6, 0.3, 1.0, 0.35, 0.7, 0.25])
        flicker = 1 + 0.25 * now.power * np.sin(7 * now.position + 2.4 * np.arange(7) + salt)
        top = 0.55 - height * tall * flicker
        lean = 0.12 * now.sway * tall + 0.1 * now.power * np.sin(3 * now.position + np.arange(7))
        upper = np.stack([width * tongues * (1 - 0.25 * tall) + lean, top], axis=1)
        c.polygon(np.concatenate([upper, arc(0, 0.5, width, 0.3, 0, _PI, 7)]), fill, 0.5)
    for turn in (-0.32, 0.32):
        log = np.array([(-0.95, -0.12), (0.95, -0.12), (0.95, 0.12), (-0.95, 0.12)])
        log = log @ rotation(turn) + (0, 0.75)
        c.polygon(log, p.second)
        c.ellipse(float(log[1:3, 0].mean()), float(log[1:3, 1].mean()), 0.09, 0.12, p.main, 0.7)
    for x, y in spark[: 2 + round(4 * now.power)]:
        rise = (0.5 * now.position + y) % 1.0
        c.ellipse(0.7 * x, 0.2 - 1.2 * rise, 0.06, 0.06, p.accent, 0.0)


def _helicopter(c: Canvas, now: EventState, rng: np.random.Generator, work: Work) -> None:
    p, turn, hub = c.palette, 2 * _PI * now.position * 1.25, np.array([-1.15, -0.25])
    c.polygon(
        [(-0.2, -0.12), (-1.05, -0.22), (-1.12, -0.45), (-1.22, -0.45), (-1.18, -0.02), (-0.2, 0.2)], p.main
    )
    for blade in range(2):
        way = 0.26 * np.array([np.cos(turn + blade * _PI / 2), np.sin(turn + blade * _PI / 2)])
        c.line([hub - way, hub + way], p.contour)
    for foot in (-0.15, 0.45):
        c.line([(foot, 0.3), (foot + 0.05, 0.66)], p.contour)
    c.line([(-0.5, 0.66), (0.75, 0.66), (0.9, 0.56)], p.contour, 1.4)
    c.ellipse(0.2, 0.05, 0.66, 0.42, p.main)
    c.polygon(
        np.concatenate([arc(0.24, 0.03, 0.55, 0.32, -0.5 * _PI, 0.05 * _PI, 8), [(0.24, 0.08)]]), p.accent
    )
    c.line([(0.1, -0.38), (0.1, -0.62)], p.contour, 1.6)
    for blade in range(3):
        reach = 1.15 * np.cos(turn + blade * _PI / 3)
        c.line(
            [(0.1 - reach, -0.62 - 0.05 * blade + 0.05), (0.1 + reach, -0.62 + 0.05 * blade - 0.05)],
            p.contour,
            1.3,
        )


def _rain(c: Canvas, now: EventState, rng: np.random.Generator, work: Work) -> None:
    p, count = c.palette, 8 + round(14 * now.power)
    drops = rng.uniform(0, 1, (24, 2))
    slant = rng.uniform(-0.25, 0.25)
    fall = (drops[:count, 1] + 0.8 * now.position) % 1.0
    x, y = 1.7 * drops[:count, 0] - 0.85, 1.25 * fall - 0.2
    ends = np.stack([x + slant * y, y, x + slant * (y + 0.2), y + 0.2], axis=1).reshape(count, 2, 2)
    c.lines(ends[: count // 2], p.accent, 0.9)
    c.lines(ends[count // 2 :], p.contour, 0.9)
    puffs = ((-0.55, -0.45, 0.38), (0.55, -0.42, 0.36), (-0.15, -0.65, 0.42), (0.25, -0.58, 0.38))
    for x, y, r in puffs:
        c.ellipse(x, y, r, r, p.main)
    for x, y, r in (*puffs, (0.0, -0.35, 0.3)):
        c.ellipse(x, y, 0.88 * r, 0.86 * r, p.main, 0.0)


def _rooster(c: Canvas, now: EventState, rng: np.random.Generator, work: Work) -> None:
    p, gape, up = c.palette, 0.05 + 0.16 * now.beat, 0.12 * now.power * now.beat
    for i, fill in enumerate((p.second, p.accent, p.main)):
        c.polygon(
            np.concatenate(
                [
                    arc(-0.35, 0.15, 0.75 - 0.1 * i, 0.95 - 0.22 * i, _PI, 1.4 * _PI, 7),
                    arc(-0.35, 0.2, 0.35 - 0.1 * i, 0.55 - 0.2 * i, 1.45 * _PI, _PI, 6),
                ]
            ),
            fill,
        )
    for foot in (-0.12, 0.2):
        c.line([(foot, 0.6), (foot, 0.92), (foot + 0.2, 0.98)], p.contour, 1.3)
        c.line([(foot, 0.92), (foot - 0.14, 0.98)], p.contour, 1.3)
    c.ellipse(0.0, 0.3, 0.58, 0.4, p.main, turn=-0.35)
    c.polygon([(0.1, 0.1), (0.28, -0.55 - up), (0.62, -0.55 - up), (0.56, 0.3), (0.3, 0.55)], p.main)
    for x, y in ((0.24, -0.78), (0.42, -0.86), (0.6, -0.76)):
        c.ellipse(x, y - up, 0.12, 0.15, p.accent)
    c.ellipse(0.45, -0.52 - up, 0.26, 0.24, p.main)
    c.polygon([(0.64, -0.6 - up), (1.0, -0.56 - up - gape), (0.68, -0.48 - up)], p.second)
    c.polygon([(0.64, -0.5 - up), (0.94, -0.44 - up + gape), (0.6, -0.38 - up)], p.second)
    c.ellipse(0.6, -0.2 - up, 0.09, 0.15, p.accent)
    c.ellipse(0.5, -0.57 - up, 0.06, 0.06, p.ink, 0.0)
    c.ellipse(-0.1, 0.28, 0.3, 0.2, p.second, turn=-0.3)


def _sea_waves(c: Canvas, now: EventState, rng: np.random.Generator, work: Work) -> None:
    p, height = c.palette, 0.09 + 0.12 * now.power
    along = np.linspace(-1.25, 1.25, 45)
    c.ellipse(rng.uniform(-0.5, 0.5), -0.55, 0.28, 0.28, p.accent)
    for row, fill in enumerate((p.second, p.main, p.second)):
        turn = 8.5 * along - _PI * now.position * (1 + 0.2 * row) + 2.1 * row
        # Gerstner waves: water moves in circles, crests are steep and lean forward.
        x = along - 0.8 * height * np.sin(turn - 0.7)
        y = -0.12 + 0.34 * row - height * np.cos(turn) - 0.05 * now.power * now.beat
        surface = np.stack([np.clip(x, -1.1, 1.1), y], axis=1)
        c.polygon(np.concatenate([surface, [(1.1, 0.95), (-1.1, 0.95)]]), fill)
        c.line(surface + np.array([0.0, 0.1]), p.background, 0.8)


def _sneeze(c: Canvas, now: EventState, rng: np.random.Generator, work: Work) -> None:
    p, puff = c.palette, now.phase
    spray = rng.uniform(-1, 1, (14, 2))
    face = [(-0.75, -0.75), (-0.3, -1.0), (0.1, -0.9), (0.2, -0.45), (0.55, 0.0), (0.5, 0.12), (0.22, 0.14)]
    jaw = [
        (0.34, 0.26),
        (0.12, 0.34),
        (0.34, 0.46),
        (0.2, 0.8),
        (-0.2, 0.85),
        (-0.25, 1.0),
        (-0.8, 1.0),
        (-0.9, -0.2),
    ]
    c.polygon([*face, *jaw], p.main)
    c.polygon([*arc(-0.45, -0.5, 0.55, 0.5, 0.75 * _PI, 1.8 * _PI, 9), (-0.3, -0.5)], p.second)
    c.line(arc(-0.02, -0.32, 0.16, 0.1, 0.0, _PI, 7), p.ink, 1.3)
    c.line([(-0.2, -0.55), (0.12, -0.5)], p.ink, 1.3)
    c.ellipse(-0.45, 0.0, 0.13, 0.18, p.main)
    for i in range(6 + round(8 * now.power)):
        reach = 0.12 + (0.75 * puff + 0.5 * abs(spray[i, 0])) % 0.8
        x, y = 0.5 + reach, 0.3 + 0.55 * reach * spray[i, 1]
        size = 0.035 + 0.06 * reach
        c.ellipse(x, y, size, size, p.accent, 0.4)
    c.lines(np.array([[(0.55, 0.3), (1.1, 0.22)], [(0.5, 0.4), (1.0, 0.62)]]), p.contour, 0.8)


def _bell(c: Canvas, now: EventState, rng: np.random.Generator, work: Work) -> None:
    p, swing = c.palette, 0.5 * now.power * now.sway
    tilt, hang = rotation(swing), np.array([0.0, -0.85])
    x = np.array([0.1, 0.3, 0.42, 0.48, 0.56, 0.82])
    y = np.array([0.0, 0.1, 0.4, 0.8, 1.15, 1.4])
    side = np.stack([x, y], axis=1)
    clapper = np.array([(0.0, 1.5)]) @ rotation(1.3 * swing) + hang
    c.ellipse(float(clapper[0, 0]), float(clapper[0, 1]), 0.17, 0.17, p.accent)
    c.polygon(np.concatenate([side, side[::-1] * (-1, 1)]) @ tilt + hang, p.main)
    c.line(np.array([(-0.68, 1.22), (0.68, 1.22)]) @ tilt + hang, p.ink)
    c.line(np.array([(-0.45, 0.5), (0.45, 0.5)]) @ tilt + hang, p.second, 1.6)
    c.ellipse(0, -0.92, 0.14, 0.14, None, 1.5)
    for reach in (0.85, 1.05):
        spread = 0.28 * (0.4 + now.beat)
        c.line(arc(0, 0.2, reach, reach, -spread, spread, 6), p.contour)
        c.line(arc(0, 0.2, reach, reach, _PI - spread, _PI + spread, 6), p.contour)


def _drum(c: Canvas, now: EventState, rng: np.random.Generator, work: Work) -> None:
    p = c.palette
    c.polygon(
        np.concatenate([arc(0, -0.15, 0.85, 0.26, 0, _PI, 8)[::-1], arc(0, 0.65, 0.85, 0.26, 0, _PI, 8)]),
        p.main,
    )
    zigzag = [
        (0.83 * np.cos(a), (-0.12 if i % 2 else 0.6) + 0.26 * np.sin(a))
        for i, a in enumerate(np.linspace(0, _PI, 9))
    ]
    c.line(zigzag, p.ink, 1.1)
    c.line(arc(0, 0.55, 0.85, 0.26, 0, _PI, 10), p.ink, 1.4)
    c.ellipse(0, -0.15, 0.85, 0.26 + 0.03 * now.beat, p.second)
    for side in (-1, 1):
        mine = (now.index % 2 == 0) == (side > 0)
        lift = 0.75 * now.power * (1 - now.beat) if mine else 0.75 * now.power
        tip = np.array([0.18 * side, -0.22 - lift])
        c.line([tip, tip + np.array([0.75 * side, -0.45])], p.contour, 1.8)
        c.ellipse(float(tip[0]), float(tip[1]), 0.11, 0.11, p.accent)


def _piano(c: Canvas, now: EventState, rng: np.random.Generator, work: Work) -> None:
    p, keys = c.palette, 7
    pressed = {(now.index * 3 + k * 2) % keys for k in range(1 + round(2 * now.power))}
    lid = [
        (-1.0, -0.1),
        (-1.0, -0.7),
        *arc(-0.35, -0.72, 0.5, 0.3, 1.2 * _PI, 1.9 * _PI, 6),
        (0.4, -0.62),
        (1.0, -0.5),
        (1.0, -0.1),
    ]
    c.polygon(lid, p.main)
    c.polygon([(-1.0, -0.15), (1.0, -0.15), (1.0, 0.75), (-1.0, 0.75)], p.main)
    width = 1.8 / keys
    for key in range(keys):
        x = -0.9 + key * width
        down = key in pressed
        low = 0.62 + (0.1 * now.beat if down else 0.0)
        fill = p.accent if down and now.phase < 0.6 else p.background
        c.polygon([(x, 0.0), (x + width, 0.0), (x + width, low), (x, low)], fill, 0.8)
    for key in (0, 1, 3, 4, 5):
        x = -0.9 + (key + 1) * width
        c.polygon([(x - 0.08, 0.0), (x + 0.08, 0.0), (x + 0.08, 0.36), (x - 0.08, 0.36)], p.ink, 0.0)


def _strings(c: Canvas, now: EventState, rng: np.random.Generator, work: Work) -> None:
    p = c.palette
    x = np.array([0.0, 0.26, 0.42, 0.38, 0.24, 0.26, 0.5, 0.52, 0.3, 0.0])
    y = np.array([-0.12, -0.1, 0.06, 0.24, 0.36, 0.5, 0.66, 0.9, 1.06, 1.08])
    right = np.stack([x, y], axis=1)
    c.polygon(np.concatenate([right, right[::-1] * (-1, 1)]), p.main)
    c.polygon([(-0.08, -0.95), (0.08, -0.95), (0.09, 0.45), (-0.09, 0.45)], p.second)
    c.ellipse(0, -1.0, 0.13, 0.13, p.second)
    for peg in (-0.9, -0.75):
        c.line([(-0.22, peg), (0.22, peg)], p.contour, 1.3)
    for side in (-1, 1):
        c.line([(0.24 * side, 0.42), (0.2 * side, 0.5), (0.28 * side, 0.62), (0.22 * side, 0.7)], p.ink)
        c.line([(0.035 * side, -0.9), (0.035 * side, 0.9)], p.ink, 0.5)
    slide = 0.45 * now.power * now.sway
    ends = np.array([(-0.85 + slide, 0.62), (0.95 + slide, 0.22)])
    c.line(ends, p.contour, 2.2)
    c.line(ends, p.accent, 1.0)


def _abstract(c: Canvas, now: EventState, rng: np.random.Generator, work: Work) -> None:
    """Draw a closed thick line, curvy or spiky, after Sievers et al. (2019)."""
    p, count = c.palette, int(rng.integers(5, 12))
    spiky = (work.factors.angularity + 1) / 2
    radius = rng.uniform(0.4, 1.1, count)
    radius[::2] *= 1 - 0.45 * spiky
    wobble = 0.16 * now.power * now.beat * np.cos(_PI * (np.arange(count) + now.index))
    angles = (
        2 * _PI * np.arange(count) / count + rng.uniform(-0.25, 0.25, count) + 0.15 * now.power * now.sway
    )
    corners = ((radius + wobble) * np.array([np.cos(angles), np.sin(angles)])).T  # (count, 2)
    steps = np.linspace(0, 1, 6, endpoint=False)[:, None]
    after, before, second = np.roll(corners, -1, 0), np.roll(corners, 1, 0), np.roll(corners, -2, 0)
    sharp = corners[:, None] * (1 - steps) + after[:, None] * steps  # (count, 6, 2)
    tangent, tangent_after = (after - before) / 2, (second - corners) / 2
    s2, s3 = steps**2, steps**3
    smooth = (
        (2 * s3 - 3 * s2 + 1) * corners[:, None]
        + (s3 - 2 * s2 + steps) * tangent[:, None]
        + (3 * s2 - 2 * s3) * after[:, None]
        + (s3 - s2) * tangent_after[:, None]
    )
    line = ((1 - spiky) * smooth + spiky * sharp).reshape(-1, 2)
    c.polygon(line, p.background if rng.random() < 0.5 else None, rng.uniform(1.6, 2.6), p.contour)


FIGURES: dict[str, Callable[[Canvas, EventState, np.random.Generator, Work], None]] = {
    "baby cry": _baby_cry,
    "chainsaw": _chainsaw,
    "clock tick": _clock_tick,
    "dog bark": _dog_bark,
    "fire crackling": _fire,
    "helicopter": _helicopter,
    "rain": _rain,
    "rooster": _rooster,
    "sea waves": _sea_waves,
    "sneeze": _sneeze,
    "bell": _bell,
    "drum": _drum,
    "piano": _piano,
    "strings": _strings,
    "abstract shape": _abstract,
}
