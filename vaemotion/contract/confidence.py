"""Calibrated confidence of readings: the record in a bundle, and its application on the device.

In: the EmoAdapter's ``Affect`` and its path. Out: the emotions after temperature scaling, the probability
of the strongest, and intervals of valence and arousal that hold the label 90 times in 100.
``calibration.confidence`` fits the record on procedural works of the split "validation". It holds for works
like those.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from vaemotion.contract.bundle import BundleError, Manifest
from vaemotion.contract.front_end import PATHS
from vaemotion.contract.prediction import Affect
from vaemotion.contract.records import strict_record
from vaemotion.contract.settings import shown

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Quality:
    """Calibration measured on works that were not fitted, all in [0, 1].

    ``ece``: expected calibration error of the strongest emotion. Coverages: share of labels within the
    interval.
    """

    ece: float
    valence_coverage: float
    arousal_coverage: float


@dataclass(frozen=True)
class PathConfidence:
    """The calibration of one path.

    ``temperature``: of the emotions. Quantiles: half an interval's width as a multiple of the predictive
    standard deviation. ``before``: quality with temperature 1 and a Gaussian's interval; ``after``: with
    these numbers.
    """

    temperature: float
    valence_quantile: float
    arousal_quantile: float
    before: Quality
    after: Quality


@dataclass(frozen=True)
class Confidence:
    """The calibration of a bundle.

    ``paths``: by the names in ``PATHS``. ``coverage``: the share of labels that an interval should hold.
    ``fitted_on``, ``judged_on``: numbers of works, none of them in both.
    """

    paths: dict[str, PathConfidence]
    coverage: float
    fitted_on: int
    judged_on: int
    seed: int

    def as_json(self) -> dict[str, Any]:
        """Return the record for a manifest's lineage."""
        return {"schema": SCHEMA_VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, values: object) -> Confidence:
        """Return the calibration that ``as_json`` wrote. Raises ValueError for any other value."""
        record = dict(_mapping("confidence", values))
        if record.pop("schema", None) != SCHEMA_VERSION:
            raise ValueError(f"confidence must have the schema {SCHEMA_VERSION}")
        paths = _mapping("paths", record.get("paths"))
        if not paths or not set(paths) <= set(PATHS):
            raise ValueError(f"paths must be some of {', '.join(PATHS)}, got {', '.join(paths) or 'none'}")
        record["paths"] = {path: _path(path, entry) for path, entry in paths.items()}
        found = strict_record(cls, record, "confidence")
        _number("coverage", found.coverage, 0, 1)
        for name in ("fitted_on", "judged_on", "seed"):
            if type(record[name]) is not int or record[name] < 0:
                raise ValueError(f"{name} must be a whole number, at least 0, got {shown(record[name])}")
        return found


@dataclass(frozen=True)
class Calibrated:
    """A calibrated reading.

    ``emotions``: (9,) after temperature scaling. ``confidence``: the largest of them. Intervals: half of
    their widths.
    """

    emotions: npt.NDArray[np.float32]
    confidence: float
    valence_interval: float
    arousal_interval: float


def apply(confidence: Confidence, path: str, affect: Affect) -> Calibrated | None:
    """Calibrate an affect that was read on ``path``. Returns None for a path without calibration."""
    found = confidence.paths.get(path)
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
        return Confidence.from_json(values)
    except ValueError as error:
        raise BundleError(
            f"the manifest's calibration of confidence cannot be read ({error}); export the checkpoint again"
        ) from error


def _path(path: str, values: object) -> PathConfidence:
    record = dict(_mapping(path, values))
    for side in ("before", "after"):
        where = f"{path}.{side}"
        quality = strict_record(Quality, _mapping(where, record.get(side)), where)
        for name, value in asdict(quality).items():
            _number(f"{where}.{name}", value, 0, 1)
        record[side] = quality
    found = strict_record(PathConfidence, record, path)
    for name in ("temperature", "valence_quantile", "arousal_quantile"):
        _number(f"{path}.{name}", getattr(found, name), 1e-9, 1e9)
    return found


def _mapping(where: str, values: object) -> Mapping[str, Any]:
    if not isinstance(values, dict):
        raise ValueError(f"{where} must be an object, got {shown(values)}")
    return cast(dict[str, Any], values)


def _number(where: str, value: object, low: float, high: float) -> None:
    if type(value) not in (int, float) or not low <= cast(float, value) <= high:
        raise ValueError(f"{where} must be a number from {low:g} to {high:g}, got {shown(value)}")
