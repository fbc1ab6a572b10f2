"""What a few statistics and a linear model reach on manifests: the peers that a trained model must at least equal.

In: manifests whose split ``train`` is learnt from and whose other split is measured. Out: a table with intervals over works.
Recordings: logistic regression on the mean and the deviation over time of the log-mel. Rated sounds: ridge on the same. Rated
pictures: ridge on statistics of their gradients (how much edge, in which directions, at three scales), which need no semantics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track

from vaemotion.contract.audio import LogMelConfig, log_mel
from vaemotion.contract.errors import UsageError
from vaemotion.contract.front_end import Clip
from vaemotion.data.item import Item
from vaemotion.data.loader import load_clip
from vaemotion.data.manifest import read_manifests
from vaemotion.evaluation.metrics import accuracy, ccc
from vaemotion.evaluation.report import table
from vaemotion.evaluation.rows import DIMENSIONS, Array, Bootstrap, Estimate, Picked, grouped

_LOG_MEL = LogMelConfig(n_mels=64, hop_samples=320)
_ALPHAS = tuple(10.0**power for power in range(-2, 5))
_SCALES_PX = (128, 64, 32)
_DIRECTIONS = 8


def run_baselines(manifests: Sequence[Path], media_root: Path, split: str, bootstrap: int, seed: int) -> None:
    """The command: print the table. Raises UsageError when nothing can be learnt or measured."""
    placed = read_manifests(manifests, media_root)
    items = [one.item for one in placed if one.item.modality != "audio-visual"]
    rows: list[tuple[object, ...]] = []
    for group in grouped(items, lambda item: (item.source, item.modality)):
        rows += _source_rows(group, media_root, split, Bootstrap(bootstrap, seed))
    if not rows:
        raise UsageError(f"there is nothing to measure: no labelled items of both splits, train and {split}")
    print(table(("source", "what", "features", "learner", "train", split, "figure", "value"), rows))
    print(f"\nBrackets: 95 % bootstrap intervals over works, {bootstrap} resamples, seed {seed}.")


def _source_rows(
    items: Sequence[Item], media_root: Path, split: str, bootstrap: Bootstrap
) -> list[tuple[object, ...]]:
    """One row for the content and for each dimension that both splits have labels of."""
    wanted = [
        item for item in items if item.split in ("train", split) and (item.options or _labels(item).any())
    ]
    held_out = np.array([item.split == split for item in wanted], np.bool_)
    if held_out.all() or not held_out.any():
        return []
    heard = wanted[0].modality == "audio"
    features = np.stack([
        (sound_statistics if heard else gradient_statistics)(load_clip(item, media_root))
        for item in track(wanted, wanted[0].source, console=Console(stderr=True))
    ])  # fmt: skip
    name = "log-mel statistics" if heard else "gradient statistics"
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
        learner, predicted = _learnt(features, truth, train, test, classes=what == "content")
        works = [item.work_id for item, inside in zip(wanted, test, strict=True) if inside]
        value = bootstrap.estimate(partial(_figure, figure, predicted, truth[test]), works)
        measured = "accuracy" if what == "content" else "CCC"
        rows.append((wanted[0].source, what, name, learner, train.sum(), test.sum(), measured, _shown(value)))
    return rows


def _learnt(
    features: Array, truth: npt.NDArray[np.generic], train: npt.NDArray[np.bool_], test: npt.NDArray[np.bool_], *, classes: bool
) -> tuple[str, npt.NDArray[Any]]:  # fmt: skip
    """The learner's name and what it says of the held-out rows. Its penalty is chosen on the training rows alone."""
    from sklearn.linear_model import LogisticRegression, RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    learner = LogisticRegression(C=0.1, max_iter=1000) if classes else RidgeCV(_ALPHAS)
    model = make_pipeline(StandardScaler(), learner).fit(features[train], truth[train])
    return ("logistic regression" if classes else "ridge"), model.predict(features[test])


def _figure(figure: Callable[[Array, Array], float], predicted: Array, truth: Array, picked: Picked) -> float:
    return figure(predicted[picked], truth[picked])


def sound_statistics(clip: Clip) -> Array:
    """(128,): mean and standard deviation over time of a clip's log-mel."""
    assert clip.samples is not None, "the manifest's rules: an item of the audio path has sound"
    mel = log_mel(clip.samples, _LOG_MEL).astype(np.float64)
    return np.concatenate([mel.mean(axis=0), mel.std(axis=0)])


def gradient_statistics(clip: Clip) -> Array:
    """(36,): of the first picture at three scales, the share of edge in each of eight directions, and the mean, deviation, upper decile
    and maximum of the gradient's length."""
    grey = cv2.cvtColor(clip.frames[0], cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    parts: list[Array] = []
    for side_px in _SCALES_PX:
        small = cv2.resize(grey, (side_px, side_px), interpolation=cv2.INTER_AREA)
        x, y = cv2.Sobel(small, cv2.CV_32F, 1, 0), cv2.Sobel(small, cv2.CV_32F, 0, 1)
        length, direction = np.hypot(x, y).ravel(), np.arctan2(y, x).ravel() % np.pi
        cells = np.minimum((direction / np.pi * _DIRECTIONS).astype(int), _DIRECTIONS - 1)
        edges = np.bincount(cells, length, _DIRECTIONS) / length.size
        spread = [length.mean(), length.std(), np.quantile(length, 0.9), length.max()]
        parts.append(np.concatenate([edges, spread]).astype(np.float64))
    return np.concatenate(parts)


def _answer(item: Item) -> str:
    return (item.options or ("",))[item.answer_index or 0] if item.task == "content" else ""


def _labels(item: Item) -> Array:
    values = (item.valence, item.arousal)
    return np.array([np.nan if value is None else value for value in values])


def _shown(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
