"""Linear baselines on simple statistics, which a trained model must at least equal.

In: manifests with a split ``train`` to fit on and another split to measure. Out: a table with intervals over
works. Content of sounds: logistic regression on mean and standard deviation of the log-mel over time. Valence
and arousal of sounds: ridge regression on the same features. Valence and arousal of images: ridge regression
on statistics of image gradients (edge strength by direction, at three scales), which carry no semantics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from rich.progress import track

from vaemotion.contract.audio import LogMelConfig, log_mel
from vaemotion.contract.errors import UsageError
from vaemotion.contract.front_end import Clip
from vaemotion.contract.terminal import Terminal, tell
from vaemotion.contract.words import markdown_table
from vaemotion.data.manifest.item import Item
from vaemotion.data.manifest.loader import load_clip
from vaemotion.data.manifest.manifest import read_manifests
from vaemotion.evaluation.benchmark.rows import DIMENSIONS, Array, Bootstrap, Picked, grouped
from vaemotion.evaluation.metrics import accuracy, ccc

_LOG_MEL = LogMelConfig(n_mels=64, hop_samples=320)
_ALPHAS = tuple(10.0**power for power in range(-2, 5))
_SCALES_PX = (128, 64, 32)
_DIRECTIONS = 8


def run_baselines(manifests: Sequence[Path], media_root: Path, split: str, bootstrap: int, seed: int) -> None:
    """Fit the baselines on manifests and print a table of their figures on ``split``.

    Raises UsageError when no source has labels in both splits.
    """
    placed = read_manifests(manifests, media_root)
    items = [one.item for one in placed if one.item.modality != "audio-visual"]
    rows: list[tuple[object, ...]] = []
    for group in grouped(items, lambda item: (item.source, item.modality)):
        rows += _source_rows(group, media_root, split, Bootstrap(bootstrap, seed))
    if not rows:
        raise UsageError(
            f"nothing to measure: no source has labeled items of both splits, train and {split}; "
            "give manifests that have both, or choose another --split"
        )
    tell(markdown_table(("source", "what", "features", "learner", "train", split, "figure", "value"), rows))
    tell(f"\nBrackets: 95 % bootstrap intervals over works, {bootstrap} resamples, seed {seed}.")


def _source_rows(
    items: Sequence[Item], media_root: Path, split: str, bootstrap: Bootstrap
) -> list[tuple[object, ...]]:
    """Return one table row for content and for each dimension, where both splits have labels of it."""
    wanted = [
        item for item in items if item.split in ("train", split) and (item.options or _labels(item).any())
    ]
    held_out = np.array([item.split == split for item in wanted], np.bool_)
    if held_out.all() or not held_out.any():
        return []
    is_sound = wanted[0].modality == "audio"
    statistics = sound_statistics if is_sound else gradient_statistics
    shown = track(wanted, wanted[0].source, console=Terminal(stderr=True))
    features = np.stack([statistics(load_clip(item, media_root)) for item in shown])
    name = "log-mel statistics" if is_sound else "gradient statistics"
    rows: list[tuple[object, ...]] = []
    names = sorted({_answer(item) for item in wanted} - {""})
    numbers = np.array([names.index(_answer(item)) if _answer(item) else -1 for item in wanted])
    labels = np.stack([_labels(item) for item in wanted])
    targets = {"content": numbers, **{dimension: labels[:, k] for k, dimension in enumerate(DIMENSIONS)}}
    for what, truth in targets.items():
        figure = accuracy if what == "content" else ccc
        known = numbers >= 0 if what == "content" else np.isfinite(truth)
        train, test = known & ~held_out, known & held_out
        if not train.any() or not test.any():
            continue
        learner, predicted = _fit_and_predict(features, truth, train, test, classes=what == "content")
        works = [item.work_id for item, inside in zip(wanted, test, strict=True) if inside]
        value = bootstrap.estimate(partial(_figure, figure, predicted, truth[test]), works)
        measured = "accuracy" if what == "content" else "CCC"
        rows.append((wanted[0].source, what, name, learner, train.sum(), test.sum(), measured, value))
    return rows


def _fit_and_predict(
    features: Array,
    truth: npt.NDArray[np.generic],
    train: npt.NDArray[np.bool_],
    test: npt.NDArray[np.bool_],
    *,
    classes: bool,
) -> tuple[str, npt.NDArray[Any]]:
    """Return the learner's name and its predictions for the test rows.

    ``train`` and ``test`` are masks over the rows. The ridge penalty is chosen on the training rows alone.
    """
    from sklearn.linear_model import LogisticRegression, RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    learner = LogisticRegression(C=0.1, max_iter=1000) if classes else RidgeCV(_ALPHAS)
    model = make_pipeline(StandardScaler(), learner).fit(features[train], truth[train])
    return ("logistic regression" if classes else "ridge"), model.predict(features[test])


def _figure(figure: Callable[[Array, Array], float], predicted: Array, truth: Array, picked: Picked) -> float:
    return figure(predicted[picked], truth[picked])


def sound_statistics(clip: Clip) -> Array:
    """Return mean and standard deviation over time of a clip's log-mel, (128,)."""
    assert clip.samples is not None, "the manifest's rules: an item of the audio path has sound"
    mel = log_mel(clip.samples, _LOG_MEL).astype(np.float64)
    return np.concatenate([mel.mean(axis=0), mel.std(axis=0)])


def gradient_statistics(clip: Clip) -> Array:
    """Return gradient statistics of a clip's first frame at three scales, (36,).

    Per scale: edge strength in each of eight directions; mean, standard deviation, upper decile and maximum
    of the gradient's magnitude.
    """
    gray = cv2.cvtColor(clip.frames[0], cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    parts: list[Array] = []
    for side_px in _SCALES_PX:
        small = cv2.resize(gray, (side_px, side_px), interpolation=cv2.INTER_AREA)
        x, y = cv2.Sobel(small, cv2.CV_32F, 1, 0), cv2.Sobel(small, cv2.CV_32F, 0, 1)
        magnitude, direction = np.hypot(x, y).ravel(), np.arctan2(y, x).ravel() % np.pi
        cells = np.minimum((direction / np.pi * _DIRECTIONS).astype(int), _DIRECTIONS - 1)
        edges = np.bincount(cells, magnitude, _DIRECTIONS) / magnitude.size
        spread = [magnitude.mean(), magnitude.std(), np.quantile(magnitude, 0.9), magnitude.max()]
        parts.append(np.concatenate([edges, spread]).astype(np.float64))
    return np.concatenate(parts)


def _answer(item: Item) -> str:
    return (item.options or ("",))[item.answer_index or 0] if item.task == "content" else ""


def _labels(item: Item) -> Array:
    values = (item.valence, item.arousal)
    return np.array([np.nan if value is None else value for value in values])
