"""Calibrate the confidence of readings, and evaluate the calibration on other works.

In: a predictor's readings of labeled works on each path, and the labels. Out: the record for the bundle
(``vaemotion.contract.confidence.Confidence``). Half of the works, drawn by the seed, fit the parameters.
The other half evaluates the readings before and after.

A window that has begun to fill is read less well than a filled one. Paths with sound are therefore
calibrated in stages by the seconds of sound in the window: sounds that end before
``Confidence.least_sound_s``, the first and the second half of the time from there to a filled window, and
filled windows (Mondrian conformal prediction: Vovk et al. 2005, chapter 4).

- Emotions: one temperature (Guo et al. 2017, "On Calibration of Modern Neural Networks", ICML) that
  minimizes KL(label ‖ emotions).
- Valence and arousal: split-conformal intervals (Vovk et al. 2005, "Algorithmic Learning in a Random
  World"), |y - ŷ| normalized by the predicted standard deviation (Lei et al. 2018, JASA 113:1094, section
  5.2). Their coverage holds for works that are exchangeable with the fitting ones, whatever the model.
- Standard deviations of windows that are not filled: the factor that maximizes the Gaussian likelihood, never
  below 1. Those of filled windows stay as the model was trained to give them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track

from calibration.samples import procedural_window_clip
from runtime.perception.predictor import Predictor, Tokens
from vaemotion.contract.audio import SAMPLE_RATE_HZ
from vaemotion.contract.confidence import Confidence, Quality, StageConfidence, tempered
from vaemotion.contract.errors import UserError
from vaemotion.contract.front_end import (
    LEAST_SOUND_SHARE,
    PATHS,
    Clip,
    FrontEnd,
    reads_sound,
    window_at,
)
from vaemotion.contract.prediction import Affect
from vaemotion.data.art.art import Work, sample_work, work_seed

Array = npt.NDArray[np.float64]

ALPHA = 0.1  # an interval misses one label in ten
# Of a standard normal's absolute value at 1 - ALPHA: the interval before calibration.
GAUSSIAN_QUANTILE = 1.6448536
ECE_BINS = 15
LEAST_WORKS = 20  # half of them fit, and a quantile of 0.9 needs 9
MOST_S = 60.0  # time limit of this step in an export
_TEMPERATURES = (0.05, 20.0)
_SEED = 41

# Readings of a work: by path, those of each stage.
Readings = Mapping[str, Sequence[Affect]]


@dataclass(frozen=True)
class Label:
    """The label of a work: valence and arousal in [-1, 1], and its raters' shares over the emotions (k,)."""

    valence: float
    arousal: float
    emotions: npt.NDArray[Any]

    @classmethod
    def of(cls, work: Work) -> Label:
        return cls(work.valence, work.arousal, np.array(work.emotion_distribution))


# --- from predictions -------------------------------------------------------------------------------------


def calibrate(
    predictions: Sequence[Readings], labels: Sequence[Label], front_end: FrontEnd, seed: int = 0
) -> Confidence:
    """Fit and evaluate the confidence of each path, at each of its stages.

    ``predictions``: one for each label, in the same order, with as many readings of a path as it has stages
    (see ``stages_s``). Raises ValueError for fewer than ``LEAST_WORKS`` labels or another number of
    predictions.
    """
    if len(labels) < LEAST_WORKS or len(predictions) != len(labels):
        raise ValueError(
            f"calibration needs {LEAST_WORKS} labels and as many predictions, got {len(labels)} and "
            f"{len(predictions)}"
        )
    order = np.random.default_rng([seed, _SEED]).permutation(len(labels))
    fitting, judging = order[: (len(order) + 1) // 2], order[(len(order) + 1) // 2 :]
    truth = _Columns.of(labels)
    paths: dict[str, tuple[StageConfidence, ...]] = {}
    for path in predictions[0]:
        starts_s = stages_s(path, front_end)
        by_stage = zip(*(readings[path] for readings in predictions), strict=True)
        paths[path] = tuple(
            _calibrate_stage(
                from_s, _Columns.of(affects), truth, fitting, judging, filled=from_s == starts_s[-1]
            )
            for from_s, affects in zip(starts_s, by_stage, strict=True)
        )
    return Confidence(paths, 1 - ALPHA, len(fitting), len(judging), seed, _least_sound_s(front_end))


def stages_s(path: str, front_end: FrontEnd) -> tuple[float, ...]:
    """Return the seconds of sound from which each stage of a path counts, ascending; the last is filled."""
    if not reads_sound(path):
        return (0.0,)
    least_s, filled_s = _least_sound_s(front_end), front_end.windows.audio_window_s
    return (0.0, least_s, (least_s + filled_s) / 2, filled_s)


def _least_sound_s(front_end: FrontEnd) -> float:
    return LEAST_SOUND_SHARE * front_end.windows.audio_window_s


@dataclass(frozen=True)
class _Columns:
    """Readings or labels as arrays.

    ``values``: (n, 2), valence and arousal. ``spreads``: (n, 2), their standard deviations; 0 for labels.
    ``emotions``: (n, k).
    """

    values: Array
    spreads: Array
    emotions: Array

    @classmethod
    def of(cls, rows: Sequence[Affect] | Sequence[Label]) -> _Columns:
        spreads = [(r.valence_sd, r.arousal_sd) if isinstance(r, Affect) else (0.0, 0.0) for r in rows]
        values, emotions = [(r.valence, r.arousal) for r in rows], [r.emotions for r in rows]
        return cls(np.array(values), np.array(spreads), np.array(emotions, np.float64))

    def at(self, rows: npt.NDArray[np.intp]) -> _Columns:
        return _Columns(self.values[rows], self.spreads[rows], self.emotions[rows])

    def spread_by(self, scales: Array) -> _Columns:
        """Multiply the standard deviations by ``scales``, (2,)."""
        return _Columns(self.values, self.spreads * scales, self.emotions)


def _calibrate_stage(
    from_s: float,
    predicted: _Columns,
    truth: _Columns,
    fitting: npt.NDArray[np.intp],
    judging: npt.NDArray[np.intp],
    *,
    filled: bool,
) -> StageConfidence:
    """Fit on the rows ``fitting``, and evaluate on the rows ``judging``."""
    fit, fit_truth = predicted.at(fitting), truth.at(fitting)
    temperature = round(fit_temperature(fit.emotions, fit_truth.emotions), 6)
    scores = np.abs(fit_truth.values - fit.values) / fit.spreads  # (n, 2)
    scales = np.ones(2) if filled else np.maximum(1.0, np.sqrt(np.square(scores).mean(axis=0))).round(6)
    scores /= scales
    quantiles = np.array([round(conformal_quantile(scores[:, column], ALPHA), 6) for column in (0, 1)])
    judged, judged_truth = predicted.at(judging), truth.at(judging)
    return StageConfidence(
        round(from_s, 6),
        temperature,
        float(scales[0]),
        float(scales[1]),
        float(quantiles[0]),
        float(quantiles[1]),
        _quality(judged, judged_truth, 1.0, np.full(2, GAUSSIAN_QUANTILE)),
        _quality(judged.spread_by(scales), judged_truth, temperature, quantiles),
    )


def _quality(predicted: _Columns, truth: _Columns, temperature: float, quantiles: Array) -> Quality:
    errors = np.abs(truth.values - predicted.values)  # (n, 2)
    covered = (errors <= quantiles * predicted.spreads).mean(axis=0)  # (2,)
    nll = (np.square(errors / predicted.spreads) / 2 + np.log(predicted.spreads)).mean(axis=0)  # (2,)
    ece = expected_calibration_error(tempered(predicted.emotions, temperature), truth.emotions)
    return Quality(
        round(ece, 6), *(round(float(figure), 6) for figure in (covered[0], covered[1], nll[0], nll[1]))
    )


def fit_temperature(emotions: Array, truth: Array) -> float:
    """Return the temperature at which KL(truth ‖ emotions) is least; both (n, k).

    Golden-section search in the temperature's logarithm. The divergence is convex in 1 / temperature, so
    that there is one minimum.
    """

    def cross_entropy(log_temperature: float) -> float:
        shares = tempered(emotions, math.exp(log_temperature))
        return -float((truth * np.log(np.maximum(shares, 1e-300))).sum(axis=1).mean())

    ratio = (math.sqrt(5) - 1) / 2
    low, high = (math.log(temperature) for temperature in _TEMPERATURES)
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = cross_entropy(left), cross_entropy(right)
    while high - low > 1e-5:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = cross_entropy(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = cross_entropy(right)
    return math.exp((low + high) / 2)


def conformal_quantile(scores: Array, alpha: float) -> float:
    """Return the ⌈(n + 1)(1 - alpha)⌉-th smallest of (n,) scores.

    An exchangeable new score is at most that with probability 1 - alpha or more. Raises ValueError where n
    is too small for such a rank.
    """
    rank = math.ceil((len(scores) + 1) * (1 - alpha) - 1e-9)
    if not 1 <= rank <= len(scores):
        raise ValueError(f"{len(scores)} scores are too few for a quantile of {1 - alpha:g}")
    return float(np.sort(scores)[rank - 1])


def expected_calibration_error(emotions: Array, truth: Array, bins: int = ECE_BINS) -> float:
    """Return the expected calibration error (Guo et al. 2017, eq. 3), in [0, 1]; both (n, k).

    It is the sum over equal bins of confidence of share · |mean confidence - mean accuracy|. Accuracy is
    the strongest emotion's share among the raters; with one rater per work it is the usual one.
    """
    strongest = emotions.argmax(axis=1)
    rows = np.arange(len(emotions))
    confidence, accuracy = emotions[rows, strongest], truth[rows, strongest]
    gaps = np.bincount(np.minimum((confidence * bins).astype(int), bins - 1), confidence - accuracy, bins)
    return float(np.abs(gaps).sum() / len(emotions))


# --- from a predictor -------------------------------------------------------------------------------------


def fit_confidence(
    predictor: Predictor[Any], count: int = 200, seed: int = 0, most_s: float = MOST_S
) -> Confidence:
    """Calibrate a predictor on up to ``count`` procedural works of the split "validation".

    One window of each work is read at each stage. The predictor must have no confidence yet. It takes as many
    works as ``most_s`` seconds allow. Raises UserError where those are fewer than ``LEAST_WORKS``.
    """
    assert predictor.confidence is None, "its standard deviations would be scaled"
    # The engines warm up on the first work; the second one is timed.
    readings: list[Readings] = [read_paths(predictor, _validation_work(0), seed)]
    began_s = time.monotonic()
    readings.append(read_paths(predictor, _validation_work(1), seed))
    count = affordable(count, time.monotonic() - began_s, most_s)
    rest = range(2, count)
    for index in track(rest, "confidence", console=Console(stderr=True), transient=True):
        readings.append(read_paths(predictor, _validation_work(index), seed))
    labels = [Label.of(_validation_work(index)) for index in range(count)]
    return calibrate(readings, labels, predictor.constants.front_end, seed)


def affordable(count: int, work_s: float, most_s: float) -> int:
    """Return how many works of ``work_s`` seconds each fit into ``most_s`` seconds, at most ``count``.

    Raises UserError for fewer than ``LEAST_WORKS``.
    """
    affordable_count = min(count, int(most_s / work_s)) if work_s > 0 else count
    if affordable_count < LEAST_WORKS:
        raise UserError(
            f"confidence is not calibrated: a work takes {work_s:.1f} s on this machine, too slow for "
            f"the minimum of {LEAST_WORKS} works; export on a faster machine to get it"
        )
    return affordable_count


def read_paths(predictor: Predictor[Any], work: Work, seed: int) -> dict[str, list[Affect]]:
    """Read a work on each path, at each of its stages; every frame is encoded once.

    All windows end at the same time. That of an earlier stage is of a stream that has just begun: it holds
    the newest part of the sound, of a length drawn from ``seed`` and the work, and the frames since then.
    """
    front_end = predictor.constants.front_end
    clip = procedural_window_clip(work, front_end, seed)
    whole = predictor.encode(window_at(clip, clip.duration_s, "audio-visual", front_end))
    windows = [*_begun(predictor, clip, whole, np.random.default_rng([seed, 43, work.seed])), whole]
    return {
        path: [predictor.adapt(tokens.only(path))[0] for tokens in windows[-len(stages_s(path, front_end)) :]]
        for path in PATHS
    }


def _begun(
    predictor: Predictor[Any], clip: Clip, whole: Tokens, rng: np.random.Generator
) -> Iterator[Tokens]:
    """Yield the tokens of a clip's last window as if the stream had begun within it, one at each stage."""
    front_end = predictor.constants.front_end
    assert clip.samples is not None
    for from_s, to_s in pairwise(stages_s("audio", front_end)):
        sound_s = rng.uniform(max(from_s, front_end.windows.audio_stride_s), to_s)
        heard = Clip(samples=clip.samples[-round(sound_s * SAMPLE_RATE_HZ) :])
        audio = predictor.encode(window_at(heard, heard.duration_s, "audio", front_end))
        shown = max(1, int((whole.frame_ages_s <= sound_s).sum()))
        yield replace(
            whole,
            visual=whole.visual[-shown:],
            frame_ages_s=whole.frame_ages_s[-shown:],
            audio=audio.audio,
            sound_s=audio.sound_s,
        )


def _validation_work(index: int) -> Work:
    return sample_work(work_seed("validation", index))
