"""Read a timeline file: JSON lines as ``runtime.messages.record`` makes them.

In: a file. Out: a ``Timeline`` of message objects, and ``Points`` along its time axis.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from runtime.messages import TIMELINE_SCHEMA, End, Message, Narration, Notice, Reading, Start
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.front_end import PATHS
from vaemotion.contract.plain_text import plain, plain_values

_KIND_WORDS: dict[type[Any], str] = {str: "a text", bool: "true or false", dict: "an object", list: "a list"}
_OPTIONAL = ("visual_age_s", "audio_age_s", "latency_ms")  # null where there is nothing to measure
_CALIBRATED = ("confidence", "valence_interval", "arousal_interval")  # null or missing without calibration
Float64 = npt.NDArray[np.float64]
MOST_POINTS = 600  # along a time axis; more would be finer than a screen's pixels


class TimelineError(UserError):
    """A file that is not a timeline, or a damaged one."""


@dataclass(frozen=True)
class Timeline:
    """The messages of one run with at least one reading, in the order of the file."""

    start: Start | None  # None where the file lacks its first line
    readings: tuple[Reading, ...]
    narrations: tuple[Narration, ...]
    notices: tuple[Notice, ...]
    end: End | None  # None where the run was killed

    @property
    def duration_s(self) -> float:
        """Time from the run's beginning to its end, or to the last message."""
        last_s = max(message.time_s for message in (*self.readings, *self.narrations, *self.notices))
        return max(last_s, self.end.time_s if self.end else 0.0)

    def mean(self, name: str) -> float:
        """Return the mean of a field of the readings, such as "valence"."""
        return float(np.mean([getattr(reading, name) for reading in self.readings]))


def read_timeline(file: Path) -> Timeline:
    """Read a timeline.

    Left out are a last line that was cut off when the process was killed, and record types that this version
    does not know. Raises TimelineError, with the line number, for any other damage and for a file without a
    reading.
    """
    messages: list[Message] = []
    lines = _lines(file)
    for number, line in enumerate(lines, start=1):
        try:
            message = _message(json.loads(line))
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            if number == len(lines) and not line.endswith(b"\n"):
                break
            raise _damage(file, number, "not JSON") from error
        except (KeyError, ValueError) as error:
            what = f"field {error} is missing" if isinstance(error, KeyError) else str(error)
            raise _damage(file, number, what) from error
        if isinstance(message, Start) and any(isinstance(earlier, Start) for earlier in messages):
            raise _damage(file, number, "a second run starts here, but a timeline holds one")
        if message is not None:
            messages.append(message)
    readings = tuple(m for m in messages if isinstance(m, Reading))
    if not readings:
        raise TimelineError(
            f"{file} has no reading in its {len(lines)} line(s): the run ended before the first one, "
            "or this is not a timeline; give a file that a run wrote"
        )
    return Timeline(
        next((m for m in messages if isinstance(m, Start)), None),
        readings,
        tuple(m for m in messages if isinstance(m, Narration)),
        tuple(m for m in messages if isinstance(m, Notice)),
        next((m for m in reversed(messages) if isinstance(m, End)), None),
    )


def _lines(file: Path) -> list[bytes]:
    """Return the file's lines as bytes with their line feeds: the last one may end within a character.

    JSON escapes every other line end.
    """
    try:
        return file.read_bytes().splitlines(keepends=True)
    except FileNotFoundError as error:
        raise TimelineError(f"timeline {file} does not exist; give a file that a run wrote") from error
    except OSError as error:
        raise TimelineError(
            f"timeline {file} cannot be read ({error.strerror}); give a file that a run wrote"
        ) from error


def _damage(file: Path, number: int, what: str) -> TimelineError:
    return TimelineError(f"{file} line {number}: {what}; give a timeline as this version's runs write it")


def _message(values: Any) -> Message | None:
    """Return a record as its message; None for a type of a later version.

    Raises KeyError for a missing field, ValueError for any other damage.
    """
    if not isinstance(values, dict):
        raise ValueError("not a JSON object")
    fields = cast(dict[str, Any], values)
    kind = _text(fields, "type")
    makers: dict[str, Callable[[dict[str, Any]], Message]] = {
        "start": _start,
        "reading": _reading,
        "narration": lambda v: Narration(_number(v, "time_s"), _number(v, "about_s"), _spoken(v)),
        "notice": lambda v: Notice(_number(v, "time_s"), _text(v, "text")),
        "end": _end,
    }
    return makers[kind](fields) if kind in makers else None


def _spoken(values: dict[str, Any]) -> str:
    """Return a narration's text, with "…" where an earlier version published one that was cut."""
    text = _text(values, "text")
    return text if values.get("complete", True) is True else f"{text.rstrip()} …"


def _start(values: dict[str, Any]) -> Start:
    schema: Any = values["schema"]
    if schema != TIMELINE_SCHEMA:
        writer = f"vaemotion {values.get('version', 'of unknown version')}"
        raise ValueError(f"{writer} wrote schema {schema!r:.40}, this version reads schema {TIMELINE_SCHEMA}")
    return Start(
        bundle=_text(values, "bundle"),
        bundle_sha256=_text(values, "bundle_sha256"),
        source=_text(values, "source"),
        pace=_text(values, "pace"),
        engines=tuple(str(engine) for engine in _typed(values, "engines", list)),
        lineage=plain_values(_typed(values, "lineage", dict)),
        version=_text(values, "version"),
    )


def _reading(values: dict[str, Any]) -> Reading:
    path = _text(values, "path")
    if path not in PATHS:
        raise ValueError(f"field 'path' must be one of {', '.join(PATHS)}, got {path!r}")
    return Reading(
        time_s=_number(values, "time_s"),
        valence=_number(values, "valence"),
        arousal=_number(values, "arousal"),
        valence_sd=_number(values, "valence_sd"),
        arousal_sd=_number(values, "arousal_sd"),
        emotions=_numbers(values, "emotions"),
        path=path,
        **{name: None if values[name] is None else _number(values, name) for name in _OPTIONAL},
        **{name: None if values.get(name) is None else _number(values, name) for name in _CALIBRATED},
        label=None if values.get("label") is None else _text(values, "label"),
        state=None if values.get("state") is None else _text(values, "state"),
    )


def _end(values: dict[str, Any]) -> End:
    stages: dict[str, Any] = _typed(values, "stages_ms", dict)
    return End(
        time_s=_number(values, "time_s"),
        reason=_text(values, "reason"),
        started_at=_text(values, "started_at"),
        wall_s=_number(values, "wall_s"),
        readings=int(_number(values, "readings")),
        narrations=int(_number(values, "narrations")),
        encodes={name: int(count) for name, count in _numbers(values, "encodes").items()},
        dropped={name: int(count) for name, count in _numbers(values, "dropped").items()},
        stages_ms={stage: _numbers(stages, stage) for stage in stages},
        deepest=_later_counts(values, "deepest"),
        narrations_withheld=_later_counts(values, "narrations_withheld"),
    )


def _later_counts(values: dict[str, Any], name: str) -> dict[str, int]:
    """Return counts that earlier versions did not write."""
    return {key: int(count) for key, count in _numbers({name: {}, **values}, name).items()}


def _number(values: dict[str, Any], name: str) -> float:
    value: Any = values[name]
    # In Python a bool is an int, its JSON parser accepts 1e999 and NaN, and an int may be too large for a
    # float.
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e15:
        return float(value)
    raise ValueError(f"field {name!r} must be a finite number, got {value!r:.40}")


def _typed(values: dict[str, Any], name: str, kind: type[Any]) -> Any:
    value: Any = values[name]
    if not isinstance(value, kind):
        raise ValueError(f"field {name!r} must be {_KIND_WORDS[kind]}, got {value!r:.40}")
    return value


def _text(values: dict[str, Any], name: str) -> str:
    return plain(_typed(values, name, str))


def _numbers(values: dict[str, Any], name: str) -> dict[str, float]:
    inner: dict[str, Any] = _typed(values, name, dict)
    return {plain(key): _number(inner, key) for key in inner}


@dataclass(frozen=True)
class Points:
    """Readings along the time axis, at most ``MOST_POINTS``; each array (n,)."""

    time_s: Float64
    valence: Float64
    valence_sd: Float64
    arousal: Float64
    arousal_sd: Float64
    audio: npt.NDArray[np.bool_]  # True where at least half of the readings have audio in their path
    visual: npt.NDArray[np.bool_]
    step_s: float  # median time between two points
    hold_s: float  # a longer gap is one in which nothing was published
    bin_s: float | None  # time that a mean covers; None where each point is a reading


def points_of(timeline: Timeline) -> Points:
    """Return the readings as points, or as means over equal bins of time beyond ``MOST_POINTS``.

    The spread of a bin is that of the mixture: mean variance plus variance of the means. So the band shows
    what the mean hides.
    """
    readings = sorted(timeline.readings, key=lambda reading: reading.time_s)
    time_s = np.array([reading.time_s for reading in readings])
    span_s = float(time_s[-1] - time_s[0])
    bin_s = span_s / MOST_POINTS if len(readings) > MOST_POINTS and span_s > 0 else None
    group = np.arange(len(time_s))
    if bin_s is not None:
        group = np.unique(
            np.minimum((time_s - time_s[0]) / bin_s, MOST_POINTS - 1).astype(int), return_inverse=True
        )[1]
    count = np.bincount(group)

    def mean(values: list[float]) -> Float64:
        return np.bincount(group, weights=np.array(values)) / count

    valence, arousal = mean([r.valence for r in readings]), mean([r.arousal for r in readings])
    valence_square = mean([r.valence**2 + r.valence_sd**2 for r in readings])
    arousal_square = mean([r.arousal**2 + r.arousal_sd**2 for r in readings])
    center_s = mean([r.time_s for r in readings])
    step_s = float(np.median(np.diff(center_s))) if len(center_s) > 1 else 0.1
    return Points(
        time_s=center_s,
        valence=valence,
        valence_sd=np.sqrt(np.maximum(valence_square - valence**2, 0)),
        arousal=arousal,
        arousal_sd=np.sqrt(np.maximum(arousal_square - arousal**2, 0)),
        audio=mean([float("audio" in r.path) for r in readings]) >= 0.5,
        visual=mean([float("visual" in r.path) for r in readings]) >= 0.5,
        step_s=step_s,
        hold_s=max(3 * step_s, 1.0),
        bin_s=bin_s,
    )


def output_file(timeline_file: Path, out: Path | None, suffix: str) -> Path:
    """Return the path of a plot or report: ``out``, or beside the timeline with ``suffix``.

    Raises UsageError for another ending, and for the timeline itself.
    """
    file = out or timeline_file.with_suffix(suffix)
    if file.suffix.lower() != suffix:
        raise UsageError(f"--out must name a file that ends in {suffix}, got {file}; give it that ending")
    if file.absolute() == timeline_file.absolute():
        raise UsageError(f"--out {file} is the timeline itself; give another name, such as x{suffix}")
    return file
