"""Trivial baselines that must fail on the content of the procedural art.

Each is a multinomial logistic regression on features without shape, time or rhythm: a color histogram of
one frame, or the log-mel averaged over three seconds. Train and validation works are disjoint. Needs
scikit-learn (extra `train`).
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from vaemotion.contract.audio import LogMelConfig, log_mel
from vaemotion.data.art.art import Work, draw_frame, sample_work, synthesize, work_seed
from vaemotion.data.art.contents import CONTENT_CLASSES

COLOR_HISTOGRAM_LIMIT = 0.5  # content accuracy over 15 classes; chance is 0.067
MEAN_LOG_MEL_LIMIT = 0.6
_SIDE_PX = 96
_WINDOW_S = 3.0
_TINY_LOG_MEL = LogMelConfig(n_mels=64, hop_samples=320)


def color_histogram(work: Work, time_s: float) -> np.ndarray:
    """Compute (512,) square roots of the shares of 8 x 8 x 8 RGB cells in one frame at 96 px."""
    frame = cv2.resize(draw_frame(work, time_s), (_SIDE_PX, _SIDE_PX), interpolation=cv2.INTER_AREA)
    cells = (frame.reshape(-1, 3).astype(np.int64) // 32) @ np.array([64, 8, 1])
    return np.sqrt(np.bincount(cells, minlength=512) / len(cells))


def mean_log_mel(work: Work, start_s: float) -> np.ndarray:
    """Compute the log-mel (64,) of three seconds of sound, averaged over time."""
    return log_mel(synthesize(work, _WINDOW_S, start_s), _TINY_LOG_MEL).mean(axis=0)


def color_histogram_accuracy(train_count: int = 3000, val_count: int = 1500, seed: int = 0) -> float:
    """Measure content accuracy on validation works from a color histogram.

    The art counts as non-trivial while this stays below `COLOR_HISTOGRAM_LIMIT`.
    """
    return _accuracy(color_histogram, train_count, val_count, seed)


def mean_log_mel_accuracy(train_count: int = 3000, val_count: int = 1500, seed: int = 0) -> float:
    """Measure content accuracy on validation works from the mean log-mel.

    The art counts as non-trivial while this stays below `MEAN_LOG_MEL_LIMIT`.
    """
    return _accuracy(mean_log_mel, train_count, val_count, seed)


def _accuracy(
    features: Callable[[Work, float], np.ndarray], train_count: int, val_count: int, seed: int
) -> float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train_x, train_y = _data(features, "train", train_count, seed)
    val_x, val_y = _data(features, "validation", val_count, seed)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300))
    classifier.fit(train_x, train_y)
    return float(classifier.score(val_x, val_y))


def _data(
    features: Callable[[Work, float], np.ndarray], split: str, count: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Compute features (count, d) and class numbers (count,) of works at random times.

    Another `seed` gives other works.
    """
    rng = np.random.default_rng([seed, len(split)])
    works = [sample_work(work_seed(split, seed * 10_000_000 + index)) for index in range(count)]
    x = np.stack([features(work, float(rng.uniform(0, 4))) for work in works])
    return x, np.array([CONTENT_CLASSES.index(work.content) for work in works])
