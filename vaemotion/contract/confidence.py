"""Calibrated confidence of readings: the record in a bundle, and its application on the device.

In: the EmoAdapter's ``Affect``, its path, and the seconds of sound in its window. Out: the emotions after
temperature scaling, the probability of the strongest, standard deviations that hold while a window fills, and
intervals of valence and arousal that hold the label 90 times in 100. ``calibration.confidence`` fits the
record on procedural works of the split "validation". It holds for works like those.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from vaemotion.contract.bundle import BundleError, Manifest
from vaemotion.contract.front_end import PATHS, FrontEnd, reads_sound
from vaemotion.contract.prediction import Affect
from vaemotion.contract.records import strict_record
from vaemotion.contract.settings import shown
from vaemotion.contract.windows import EPSILON_S

SCHEMA_VERSION = 2
# Records of this schema hold one stage a path, of filled windows, and no ``least_sound_s``.
_FILLED_WINDOWS_SCHEMA = 1


@dataclass(frozen=True)
class Quality:
    """Calibration measured on works that were not fitted.

    ``ece``: expected calibration error of the strongest emotion, in [0, 1]; None where works had no labels of
    emotions. Coverages: share of labels within the interval, in [0, 1]. ``*_nll``: mean Gaussian negative
    log-likelihood in nats, without the constant ½ ln 2π; None in records that are older than it.
    """

    ece: float | None
    valence_coverage: float
    arousal_coverage: float
    valence_nll: float | None = None
    arousal_nll: float | None = None


@dataclass(frozen=True)
class StageConfidence:
    """The calibration of one path for windows with ``from_s`` seconds of sound or more.

    It ends where the path's next stage begins. ``temperature``: of the emotions. ``*_scale``: factor of the
    predictive standard deviation. Quantiles: half an interval's width as a multiple of the scaled one.
    ``before``: quality with temperature and scale 1 and a Gaussian's interval; ``after``: with these numbers.
    """

    from_s: float
    temperature: float
    valence_scale: float
    arousal_scale: float
    valence_quantile: float
    arousal_quantile: float
    before: Quality
    after: Quality


@dataclass(frozen=True)
class Confidence:
    """The calibration of a bundle.

    ``paths``: the stages of a path, ascending, by the names in ``PATHS``. ``coverage``: the share of labels
    that an interval should hold. ``fitted_on``, ``judged_on``: numbers of works, none of them in both.
    ``least_sound_s``: seconds of sound from which a stream is heard; a stage below it is that of sounds which
    end before.
    """

    paths: dict[str, tuple[StageConfidence, ...]]
    coverage: float
    fitted_on: int
    judged_on: int
    seed: int
    least_sound_s: float

    def as_json(self) -> dict[str, Any]:
        """Return the record for a manifest's lineage."""
        paths = {path: [asdict(stage) for stage in stages] for path, stages in self.paths.items()}
        return {"schema": SCHEMA_VERSION, **asdict(self), "paths": paths}

    def stage(self, path: str, sound_s: float) -> StageConfidence | None:
        """Return the calibration of a window with ``sound_s`` seconds of sound, None where there is none."""
        covering = [s for s in self.paths.get(path, ()) if s.from_s <= sound_s + EPSILON_S]
        return covering[-1] if covering else None

    @classmethod
    def from_json(cls, values: object, front_end: FrontEnd) -> Confidence:
        """Return the calibration that ``as_json`` wrote for a model with this front end.

        Raises ValueError for any other value.
        """
        record = dict(_mapping("confidence", values))
        schema = record.pop("schema", None)
        if schema not in (_FILLED_WINDOWS_SCHEMA, SCHEMA_VERSION):
            raise ValueError(f"confidence must have the schema {SCHEMA_VERSION}")
        paths = _mapping("paths", record.get("paths"))
        if not paths or not set(paths) <= set(PATHS):
            raise ValueError(f"paths must be some of {', '.join(PATHS)}, got {', '.join(paths) or 'none'}")
        if schema == _FILLED_WINDOWS_SCHEMA:
            filled_s = front_end.windows.audio_window_s
            paths = {path: [_staged(path, entry, filled_s)] for path, entry in paths.items()}
            record["least_sound_s"] = front_end.least_sound_s
        record["paths"] = {path: _stages(path, entries) for path, entries in paths.items()}
        found = strict_record(cls, record, "confidence")
        _number("coverage", found.coverage, 0, 1)
        _number("least_sound_s", found.least_sound_s, 0, front_end.windows.audio_window_s)
        for name in ("fitted_on", "judged_on", "seed"):
            if type(record[name]) is not int or record[name] < 0:
                raise ValueError(f"{name} must be a whole number, at least 0, got {shown(record[name])}")
        return found


@dataclass(frozen=True)
class Calibrated:
    """A calibrated reading.

    ``emotions``: (E,) after temperature scaling. ``confidence``: the largest of them. Intervals: half of
    their widths.
    """

    emotions: npt.NDArray[np.float32]
    confidence: float
    valence_interval: float
    arousal_interval: float


def scaled(confidence: Confidence, path: str, affect: Affect, sound_s: float) -> Affect:
    """Scale the standard deviations of an affect that was read on ``path`` with ``sound_s`` s of sound.

    Returns the affect unchanged where nothing is calibrated.
    """
    found = confidence.stage(path, sound_s)
    if found is None:
        return affect
    return replace(
        affect,
        valence_sd=found.valence_scale * affect.valence_sd,
        arousal_sd=found.arousal_scale * affect.arousal_sd,
    )


def apply(confidence: Confidence, path: str, affect: Affect, sound_s: float) -> Calibrated | None:
    """Calibrate an affect that ``scaled`` gave.

    Returns None for a path without calibration, or without one of so little sound.
    """
    found = confidence.stage(path, sound_s)
    if found is None:
        return None
    emotions = tempered(affect.emotions, found.temperature).astype(np.float32)
    return Calibrated(
        emotions,
        float(emotions.max()),
        found.valence_quantile * affect.valence_sd,
        found.arousal_quantile * affect.arousal_sd,
    )


def tempered(emotions: npt.NDArray[Any], temperature: float) -> npt.NDArray[np.float64]:
    """Divide the logits of distributions (..., k) by ``temperature``. Returns distributions (..., k).

    A temperature above 1 makes them flatter; their order stays. Source: Guo et al. 2017, arXiv 1706.04599.
    """
    logits = np.log(np.maximum(np.asarray(emotions, np.float64), 1e-12)) / temperature
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def confidence_of(manifest: Manifest) -> Confidence | None:
    """Return a bundle's calibration, None where it has none. Raises BundleError for an unreadable one."""
    values = manifest.lineage.get("confidence")
    if values is None:
        return None
    try:
        return Confidence.from_json(values, manifest.front_end)
    except ValueError as error:
        raise BundleError(
            f"the manifest's calibration of confidence cannot be read ({error}); export the checkpoint again"
        ) from error


def _staged(path: str, values: object, filled_s: float) -> dict[str, Any]:
    """Return a path's calibration of the older schema as that of its filled windows."""
    unscaled = {"valence_scale": 1.0, "arousal_scale": 1.0}
    record = {**_mapping(path, values), **unscaled, "from_s": filled_s if reads_sound(path) else 0.0}
    for side in ("before", "after"):
        unmeasured = {"valence_nll": None, "arousal_nll": None}
        record[side] = {**_mapping(f"{path}.{side}", record.get(side)), **unmeasured}
    return record


def _stages(path: str, values: object) -> tuple[StageConfidence, ...]:
    if not isinstance(values, list) or not values:
        raise ValueError(f"{path} must be a list of stages, got {shown(cast(object, values))}")
    stages = tuple(_stage(path, entry) for entry in cast(list[object], values))
    if any(b.from_s <= a.from_s for a, b in pairwise(stages)):
        raise ValueError(f"{path}: the stages' from_s must ascend, got {[s.from_s for s in stages]}")
    return stages


def _stage(path: str, values: object) -> StageConfidence:
    record = dict(_mapping(path, values))
    for side in ("before", "after"):
        where = f"{path}.{side}"
        quality = strict_record(Quality, _mapping(where, record.get(side)), where)
        for name in ("valence_coverage", "arousal_coverage"):
            _number(f"{where}.{name}", getattr(quality, name), 0, 1)
        for name, low, high in (("ece", 0, 1), ("valence_nll", -1e9, 1e9), ("arousal_nll", -1e9, 1e9)):
            if getattr(quality, name) is not None:
                _number(f"{where}.{name}", getattr(quality, name), low, high)
        record[side] = quality
    found = strict_record(StageConfidence, record, path)
    _number(f"{path}.from_s", found.from_s, 0, 1e9)
    for name in ("temperature", "valence_scale", "arousal_scale", "valence_quantile", "arousal_quantile"):
        _number(f"{path}.{name}", getattr(found, name), 1e-9, 1e9)
    return found


def _mapping(where: str, values: object) -> Mapping[str, Any]:
    if not isinstance(values, dict):
        raise ValueError(f"{where} must be an object, got {shown(values)}")
    return cast(dict[str, Any], values)


def _number(where: str, value: object, low: float, high: float) -> None:
    if type(value) not in (int, float) or not low <= cast(float, value) <= high:
        raise ValueError(f"{where} must be a number from {low:g} to {high:g}, got {shown(value)}")
