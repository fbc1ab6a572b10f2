"""Calibrated confidence of readings: the record that a bundle carries, and what the device makes of it.

In: an ``Affect`` as the EmoAdapter gives it, on a path. Out: the emotions after temperature scaling, the probability of the strongest, and how
far valence and arousal may be off, each label lying within 90 times in 100. ``calibration.confidence`` fits it on procedural works of the split
"validation"; what it promises, it promises for works like those.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

from vaemotion.contract.bundle import BundleError, Manifest
from vaemotion.contract.front_end import PATHS
from vaemotion.contract.prediction import Affect

SCHEMA_VERSION = 1
_Record = TypeVar("_Record")


@dataclass(frozen=True)
class Quality:
    """How honest readings are on works that fitted nothing, all in [0, 1]. ``ece``: expected calibration error of the strongest emotion;
    coverages: how often the label lies within the interval."""

    ece: float
    valence_coverage: float
    arousal_coverage: float


@dataclass(frozen=True)
class PathConfidence:
    """``temperature`` of the emotions; half an interval's width as a multiple of the predictive spread. ``before``: of the emotions as they
    are, and of the interval that a Gaussian of that spread would have; ``after``: with these numbers."""

    temperature: float
    valence_quantile: float
    arousal_quantile: float
    before: Quality
    after: Quality


@dataclass(frozen=True)
class Confidence:
    """``paths``: by the names in ``PATHS``; ``coverage``: what an interval is to hold; ``fitted_on`` and ``judged_on``: how many works each,
    none of them in both."""

    paths: dict[str, PathConfidence]
    coverage: float
    fitted_on: int
    judged_on: int
    seed: int

    def as_json(self) -> dict[str, Any]:
        """For a manifest."""
        return {"schema": SCHEMA_VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, values: object) -> Confidence:
        """Strict. Raises ValueError for everything that ``as_json`` does not write."""
        record = dict(_mapping("confidence", values))
        if record.pop("schema", None) != SCHEMA_VERSION:
            raise ValueError(f"confidence must have the schema {SCHEMA_VERSION}")
        paths = _mapping("paths", record.get("paths"))
        if not paths or not set(paths) <= set(PATHS):
            raise ValueError(f"paths must be some of {', '.join(PATHS)}, got {', '.join(paths) or 'none'}")
        record["paths"] = {path: _path(path, entry) for path, entry in paths.items()}
        found = _record(cls, "confidence", record)
        _number("coverage", found.coverage, 0, 1)
        for name in ("fitted_on", "judged_on", "seed"):
            if type(record[name]) is not int or record[name] < 0:
                raise ValueError(f"{name} must be a whole number, at least 0, got {record[name]!r:.80}")
        return found


@dataclass(frozen=True)
class Calibrated:
    """``emotions`` (9,) after temperature scaling; ``confidence``: the largest of them; intervals: half their widths."""

    emotions: npt.NDArray[np.float32]
    confidence: float
    valence_interval: float
    arousal_interval: float


def apply(confidence: Confidence, path: str, affect: Affect) -> Calibrated | None:
    """What may be claimed of ``affect``, which was read on ``path``; None for a path without calibration."""
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
    """Distributions (..., k) with their logits divided by ``temperature`` (Guo et al. 2017, arXiv 1706.04599): above 1 less sure. Which is
    the strongest stays as it is."""
    logits = np.log(np.maximum(np.asarray(emotions, np.float64), 1e-12)) / temperature
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def confidence_of(manifest: Manifest) -> Confidence | None:
    """A bundle's record, None where it has none. Raises BundleError for one that cannot be read."""
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
        quality = _record(Quality, where, _mapping(where, record.get(side)))
        for name, value in asdict(quality).items():
            _number(f"{where}.{name}", value, 0, 1)
        record[side] = quality
    found = _record(PathConfidence, path, record)
    for name in ("temperature", "valence_quantile", "arousal_quantile"):
        _number(f"{path}.{name}", getattr(found, name), 1e-9, 1e9)
    return found


def _mapping(where: str, values: object) -> Mapping[str, Any]:
    if not isinstance(values, dict):
        raise ValueError(f"{where} must be an object, got {values!r:.80}")
    return cast(dict[str, Any], values)


def _record(kind: type[_Record], where: str, values: Mapping[str, Any]) -> _Record:
    names = {f.name for f in fields(cast(Any, kind))}
    if set(values) != names:
        raise ValueError(f"{where} must have exactly {sorted(names)}, got {sorted(values)}")
    return kind(**values)


def _number(where: str, value: object, low: float, high: float) -> None:
    if type(value) not in (int, float) or not low <= cast(float, value) <= high:
        raise ValueError(f"{where} must be a number from {low:g} to {high:g}, got {value!r:.80}")
