"""Calibrate the confidence of readings, and evaluate the calibration on other works.

In: a predictor's readings of rated works, and the ratings of each path. Out: the record for the bundle
(``vaemotion.contract.confidence.Confidence``). Of the works that are rated on a path, half, drawn by the
seed, fit the parameters. The other half evaluates the readings before and after.

A window that has begun to fill is read less well than a filled one. Paths with sound are therefore
calibrated in stages by the seconds of sound in the window: sounds that end before
``Confidence.least_sound_s``, the first and the second half of the time from there to a filled window, and
filled windows (Mondrian conformal prediction: Vovk et al. 2005, chapter 4).

- Emotions: one temperature (Guo et al. 2017, "On Calibration of Modern Neural Networks", ICML) that
  minimizes KL(label ‖ emotions). It is 1 where too few works have labels of emotions.
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
from rich.progress import track

from calibration.rated import Label, RatedMaterial, RatedWindow
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
from vaemotion.contract.terminal import Terminal
from vaemotion.data.clips.held_out import paths_of, report_left_out
from vaemotion.data.clips.source import DamagedClip

Array = npt.NDArray[np.float64]

ALPHA = 0.1  # an interval misses one label in ten
# Of a standard normal's absolute value at 1 - ALPHA: the interval before calibration.
GAUSSIAN_QUANTILE = 1.6448536
ECE_BINS = 15
LEAST_WORKS = 20  # half of them fit, and a quantile of 0.9 needs 9
MOST_S = 60.0  # time limit of this step in an export
_TEMPERATURES = (0.05, 20.0)
_SEED = 41


@dataclass(frozen=True)
class RatedReadings:
    """Readings of a window by path, those of each stage (see ``stages_s``), and its labels by path."""

    work: str
    labels: Mapping[str, Label]
    readings: Mapping[str, Sequence[Affect]]


# --- from predictions -------------------------------------------------------------------------------------


def calibrate(rated: Sequence[RatedReadings], front_end: FrontEnd, seed: int = 0) -> Confidence:
    """Fit and evaluate the confidence of each path, at each of its stages.

    A path with fewer than ``LEAST_WORKS`` rated works is left out. Raises ValueError where all are.
    """
    works = list(dict.fromkeys(each.work for each in rated))
    order = [works[k] for k in np.random.default_rng([seed, _SEED]).permutation(len(works))]
    paths: dict[str, tuple[StageConfidence, ...]] = {}
    counts: list[tuple[int, int]] = []
    for path in PATHS:
        by_work: dict[str, list[RatedReadings]] = {}
        for each in rated:
            if path in each.labels:
                by_work.setdefault(each.work, []).append(each)
        drawn = [by_work[work] for work in order if work in by_work]
        if len(drawn) >= LEAST_WORKS:
            half = (len(drawn) + 1) // 2
            paths[path] = _calibrate_path(path, _joined(drawn[:half]), _joined(drawn[half:]), front_end)
            counts.append((half, len(drawn) - half))
    if not paths:
        most = max(sum(path in each.labels for each in rated) for path in PATHS)
        raise ValueError(f"calibration needs {LEAST_WORKS} works rated on one path, got {most}")
    fitted_on, judged_on = min(counts)  # of the path with the fewest
    return Confidence(paths, 1 - ALPHA, fitted_on, judged_on, seed, _least_sound_s(front_end))


def _joined(by_work: Sequence[Sequence[RatedReadings]]) -> list[RatedReadings]:
    return [each for group in by_work for each in group]


def _calibrate_path(
    path: str, fitting: Sequence[RatedReadings], judging: Sequence[RatedReadings], front_end: FrontEnd
) -> tuple[StageConfidence, ...]:
    starts_s = stages_s(path, front_end)
    halves = (fitting, judging)
    truth = [_Columns.of([each.labels[path] for each in half]) for half in halves]
    return tuple(
        _calibrate_stage(
            from_s,
            [_Columns.of([each.readings[path][stage] for each in half]) for half in halves],
            truth,
            filled=from_s == starts_s[-1],
        )
        for stage, from_s in enumerate(starts_s)
    )


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
    ``emotions``: (m, k) of the rows ``named`` (n,), which have emotions.
    """

    values: Array
    spreads: Array
    emotions: Array
    named: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, rows: Sequence[Affect] | Sequence[Label]) -> _Columns:
        spreads = [(r.valence_sd, r.arousal_sd) if isinstance(r, Affect) else (0.0, 0.0) for r in rows]
        values = [(r.valence, r.arousal) for r in rows]
        emotions = [r.emotions for r in rows if r.emotions is not None]
        named = np.array([r.emotions is not None for r in rows])
        return cls(np.array(values), np.array(spreads), np.array(emotions, np.float64), named)

    def spread_by(self, scales: Array) -> _Columns:
        """Multiply the standard deviations by ``scales``, (2,)."""
        return replace(self, spreads=self.spreads * scales)


def _calibrate_stage(
    from_s: float, predicted: Sequence[_Columns], truth: Sequence[_Columns], *, filled: bool
) -> StageConfidence:
    """Fit on the first of two halves, and evaluate on the second."""
    (fit, judged), (fit_truth, judged_truth) = predicted, truth
    temperature = 1.0
    if fit_truth.named.sum() >= LEAST_WORKS // 2:
        temperature = round(fit_temperature(fit.emotions[fit_truth.named], fit_truth.emotions), 6)
    scores = np.abs(fit_truth.values - fit.values) / fit.spreads  # (n, 2)
    scales = np.ones(2) if filled else np.maximum(1.0, np.sqrt(np.square(scores).mean(axis=0))).round(6)
    scores /= scales
    quantiles = np.array([round(conformal_quantile(scores[:, column], ALPHA), 6) for column in (0, 1)])
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
    ece: float | None = None
    if truth.named.any():
        shares = tempered(predicted.emotions[truth.named], temperature)
        ece = round(expected_calibration_error(shares, truth.emotions), 6)
    return Quality(ece, *(round(float(figure), 6) for figure in (covered[0], covered[1], nll[0], nll[1])))


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
    predictor: Predictor[Any], material: RatedMaterial, seed: int = 0, most_s: float = MOST_S
) -> Confidence:
    """Calibrate a predictor on rated windows.

    Each window is read at each stage. The predictor must have no confidence yet. It takes as many windows as
    ``most_s`` seconds allow. Raises UserError where those are of fewer than ``LEAST_WORKS`` works.
    """
    assert predictor.confidence is None, "its standard deviations would be scaled"
    rated: list[RatedReadings] = []
    left_out: list[DamagedClip] = []
    count = len(material)

    def read(index: int) -> None:
        window = material.window(index)
        if isinstance(window, DamagedClip):
            left_out.append(window)
        elif window.labels:
            readings = read_paths(predictor, window, seed)
            rated.append(RatedReadings(window.work, window.labels, readings))

    if count >= LEAST_WORKS:
        read(0)  # the engines warm up on the first window; the second one is timed
        began_s = time.monotonic()
        read(1)
        count = affordable(count, time.monotonic() - began_s, most_s)
        for index in track(range(2, count), "confidence", console=Terminal(stderr=True), transient=True):
            read(index)
    report_left_out(left_out, count, material.name)
    try:
        return calibrate(rated, predictor.constants.front_end, seed)
    except ValueError as error:
        raise UserError(f"confidence is not calibrated on {material.name}: {error}") from error


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


def read_paths(predictor: Predictor[Any], window: RatedWindow, seed: int) -> dict[str, list[Affect]]:
    """Read a window on each path that it has a label for, at each stage; every frame is encoded once.

    All stages end at the same time. An earlier one is of a stream that has just begun: it holds the newest
    part of the sound, of a length drawn from ``seed`` and the window, and the frames since then.
    """
    front_end, clip = predictor.constants.front_end, window.clip
    whole = predictor.encode(window_at(clip, window.now_s, paths_of(clip)[-1], front_end))
    stages = [whole]
    if any(map(reads_sound, window.labels)):
        rng = np.random.default_rng([seed, 43, window.number])
        stages = [*_begun(predictor, window, whole, rng), whole]
    return {
        path: [predictor.adapt(tokens.only(path))[0] for tokens in stages[-len(stages_s(path, front_end)) :]]
        for path in PATHS
        if path in window.labels
    }


def _begun(
    predictor: Predictor[Any], window: RatedWindow, whole: Tokens, rng: np.random.Generator
) -> Iterator[Tokens]:
    """Yield the tokens of a window as if the stream had begun within it, one at each stage."""
    front_end = predictor.constants.front_end
    assert window.clip.samples is not None
    samples = window.clip.samples[: round(window.now_s * SAMPLE_RATE_HZ)]
    for from_s, to_s in pairwise(stages_s("audio", front_end)):
        sound_s = rng.uniform(max(from_s, front_end.windows.audio_stride_s), to_s)
        heard = Clip(samples=samples[-round(sound_s * SAMPLE_RATE_HZ) :])
        audio = predictor.encode(window_at(heard, heard.duration_s, "audio", front_end))
        shown = max(1, int((whole.frame_ages_s <= sound_s).sum()))
        yield replace(
            whole,
            visual=whole.visual[-shown:],
            frame_ages_s=whole.frame_ages_s[-shown:],
            audio=audio.audio,
            sound_s=audio.sound_s,
        )
