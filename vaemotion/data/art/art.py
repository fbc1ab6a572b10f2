"""Procedural audio-visual art with known content and known affect, in unlimited number.

In: a seed. Out: a `Work` with its labels, its frames at any time and its sound from any time on.
Every function is pure and writes nothing to disk, so training streams works by their number:

    work = sample_work(work_seed("train", 17))
    frame = draw_frame(work, time_s=0.8)          # (160, 160, 3) uint8 RGB
    waveform = synthesize(work, duration_s=3.0)   # (48000,) float32 in [-1, 1] at 16 kHz

Frames and sound of a work share content, event times, tempo and energy. Palette and angularity are visible
only; mode, register and roughness are audible only. The label follows from all factors. `oracle_ceilings`
gives the upper bound of what each path can predict of the label.
"""

from __future__ import annotations

import numpy as np

from vaemotion.contract.audio import SAMPLE_RATE_HZ
from vaemotion.contract.concordance import ccc
from vaemotion.data.art import pictures, sounds
from vaemotion.data.art.contents import CONTENT_CLASSES
from vaemotion.data.art.works import (
    AUDIBLE,
    FACTOR_NAMES,
    SHARED,
    SPLITS,
    VISIBLE,
    Factors,
    Work,
    beat_position,
    event_rate_hz,
    event_times,
    factor_values,
    labels_from_factors,
    sample_work,
    work_seed,
)

__all__ = [
    "AUDIBLE",
    "FACTOR_NAMES",
    "PATH_FACTORS",
    "SAMPLE_RATE_HZ",
    "SHARED",
    "SPLITS",
    "VISIBLE",
    "Factors",
    "Work",
    "beat_position",
    "draw_frame",
    "event_rate_hz",
    "event_times",
    "factor_values",
    "labels_from_factors",
    "oracle_ceilings",
    "sample_work",
    "synthesize",
    "work_seed",
    "works_of_all_contents",
]

PATH_FACTORS: dict[str, tuple[str, ...]] = {
    "audio": AUDIBLE,
    "visual": VISIBLE,
    "audio-visual": FACTOR_NAMES,
}


def draw_frame(work: Work, time_s: float, side_px: int = 160) -> np.ndarray:
    """Draw the work at one time.

    Returns (side_px, side_px, 3) uint8 RGB; the same arguments give the same frame. Raises ValueError for a
    side below 16 px.
    """
    if side_px < 16:
        raise ValueError(f"side_px: expected at least 16, got {side_px}")
    return pictures.draw(work, float(time_s), int(side_px))


def synthesize(work: Work, duration_s: float, start_s: float = 0.0) -> np.ndarray:
    """Synthesize the work's sound from `start_s` on.

    Returns (round(duration_s * 16000),) float32 in [-1, 1], mono at 16 kHz. When `start_s` falls on a whole
    sample, a part equals the same part of a longer synthesis sample by sample. Raises ValueError for a
    duration of 0 or less.
    """
    if duration_s <= 0:
        raise ValueError(f"duration_s: expected more than 0, got {duration_s}")
    first_sample = round(start_s * SAMPLE_RATE_HZ)
    return sounds.synthesize_samples(work, first_sample, round(duration_s * SAMPLE_RATE_HZ))


def works_of_all_contents(split: str, count: int) -> list[Work]:
    """Return ``count`` works of a split, the first of each content in turn."""
    return [
        sample_work(work_seed(split, index), CONTENT_CLASSES[index % len(CONTENT_CLASSES)])
        for index in range(count)
    ]


def oracle_ceilings(split: str = "validation", count: int = 2000) -> dict[str, dict[str, float]]:
    """Compute the highest CCC with the labels that each path's perceptible factors allow.

    Least squares on linear, squared and product terms of the path's factors, fitted on `count` train works.
    The prediction is rescaled to the label's standard deviation, which maximizes CCC, and scored on `count`
    works of `split`. Returns `{"audio" | "visual" | "audio-visual": {"valence" | "arousal": ccc}}`.
    """
    train_x, train_y = _factors_and_labels("train", count)
    test_x, test_y = _factors_and_labels(split, count)
    ceilings: dict[str, dict[str, float]] = {}
    for path, names in PATH_FACTORS.items():
        columns = [FACTOR_NAMES.index(name) for name in names]
        design, test_design = _quadratic(train_x[:, columns]), _quadratic(test_x[:, columns])
        solution = np.linalg.lstsq(design, train_y, rcond=None)[0]
        fitted, predicted = design @ solution, test_design @ solution
        predicted = train_y.mean(0) + (predicted - fitted.mean(0)) * train_y.std(0) / fitted.std(0)
        ceilings[path] = {
            "valence": ccc(predicted[:, 0], test_y[:, 0]),
            "arousal": ccc(predicted[:, 1], test_y[:, 1]),
        }
    return ceilings


def _factors_and_labels(split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    works = [sample_work(work_seed(split, index)) for index in range(count)]
    labels = np.array([(work.valence, work.arousal) for work in works])
    return np.array([factor_values(work) for work in works]), labels  # (count, 9), (count, 2)


def _quadratic(x: np.ndarray) -> np.ndarray:
    """Expand (n, d) to (n, 1 + d + d (d + 1) / 2): constant, linear terms, squares and products."""
    row, column = np.triu_indices(x.shape[1])
    return np.concatenate([np.ones((len(x), 1)), x, x[:, row] * x[:, column]], axis=1)
