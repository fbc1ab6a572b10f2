"""Replay of a recording of features: the same readings again, bit for bit.

In: a file that ``runtime.perception.recorder`` wrote. Out: perception's readings. The first line is a JSON
header. Then come records, each a JSON line and, where it has "bytes", that many bytes of tokens: float16,
little-endian, or float32 where they are twice as many. No frame, sample or log-mel is in the file. A record
is one write at the end of the file, so that only the last one can be cut off; a reader leaves it out. A
pooled recording, as its header says, holds one mean token for all of a frame or of a window of sound.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import numpy as np

from runtime.machine.stop import Stop
from runtime.perception.perception import Evidence, Perception
from runtime.perception.predictor import Constants
from runtime.perception.recorder import (
    LINE_BYTES,
    SCHEMA,
    TOKEN_DTYPE,
    WIDE_DTYPE,
    Float32,
    RecordingError,
    header_line,
)
from runtime.perception.ticks import Tick
from runtime.show.status import Progress
from runtime.sources.feed import Arrived


@dataclass(frozen=True)
class FrameTokens:
    """A frame's tokens (T, D) at grid point ``index``. ``taken_s``: time at which a camera took it."""

    index: int
    taken_s: float | None
    tokens: Float32


@dataclass(frozen=True)
class RepeatedFrame:
    """A grid point ``index`` for which no newer frame came."""

    index: int


@dataclass(frozen=True)
class AudioTokens:
    """Tokens (N, D) of a window with ``sound_s`` seconds of sound that ended at ``end_s``."""

    end_s: float
    tokens: Float32
    sound_s: float


@dataclass(frozen=True)
class Forgotten:
    """A device that was lost or reopened, so that its tokens were dropped."""

    what: Literal["pictures", "sound"]


@dataclass(frozen=True)
class ReadingRequest:
    """A reading that was asked for at ``now_s``."""

    now_s: float


Record = FrameTokens | RepeatedFrame | AudioTokens | Forgotten | ReadingRequest


def read_recording(
    path: Path, bundle_sha256: str, constants: Constants, *, pooled: bool = False
) -> Iterator[Record]:
    """Return an iterator over a file's records, without one that was cut off at the end.

    ``pooled``: read a pooled recording, whose tokens are (1, D). Raises RecordingError at once for a file
    that is not such a recording of this bundle, and later where the file is damaged.
    """
    try:
        with path.open("rb") as file:
            found = _line(file)
    except OSError as error:
        raise RecordingError(
            f"recording {path} cannot be read ({error.strerror}): give a file that vaemotion record wrote"
        ) from error
    found = found or {}
    schema = found.get("schema")
    if found.get("type") != "vaemotion features" or schema not in (1, SCHEMA):
        raise RecordingError(f"{path} is not a recording of this version: give a file that it wrote")
    if "pooled" in found and not pooled:
        raise RecordingError(
            f"{path} holds pooled tokens, of which no reading can be made: record without --only pooled"
        )
    if found != header_line(bundle_sha256, constants, schema=schema, pooled=pooled):
        raise RecordingError(f"{path} was recorded with another bundle: give the one that it was made with")
    return _records(path, replace(constants, tokens_per_frame=1, audio_tokens=1) if pooled else constants)


def _records(path: Path, constants: Constants) -> Iterator[Record]:
    with path.open("rb") as file:
        _line(file)
        while True:
            begins = file.tell()
            try:
                record = _next(file, constants)
            except (KeyError, TypeError, ValueError) as error:
                raise RecordingError(
                    f"{path} is damaged at byte {begins}: give a whole copy of it, or make it again"
                ) from error
            if record is None:
                return
            yield record


def _line(file: BinaryIO) -> dict[str, Any] | None:
    """Read the next line as a JSON object: {} for anything else, None at the end or where cut off."""
    line = file.readline(LINE_BYTES)
    if not line.endswith(b"\n") and len(line) < LINE_BYTES:
        return None
    try:
        values: Any = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return cast(dict[str, Any], values) if isinstance(values, dict) else {}


def _next(file: BinaryIO, constants: Constants) -> Record | None:
    """Read the next record, None at the end. Raises KeyError, TypeError or ValueError for damage."""
    values = _line(file)
    if values is None:
        return None
    match values["kind"]:
        case "picture" | "sound" as kind:
            tokens = _tokens(file, values, constants, kind == "picture")
            if tokens is None:
                return None
            if kind == "sound":
                # Recordings that are older than the field took every window for a filled one.
                filled_s = constants.front_end.windows.audio_window_s
                return AudioTokens(float(values["heard_s"]), tokens, float(values.get("sound_s", filled_s)))
            taken_s = values["taken_s"]
            return FrameTokens(int(values["index"]), None if taken_s is None else float(taken_s), tokens)
        case "still":
            return RepeatedFrame(int(values["index"]))
        case "forget" if values["what"] in ("pictures", "sound"):
            return Forgotten(values["what"])
        case "read":
            return ReadingRequest(float(values["now_s"]))
        case _:
            raise ValueError("not a record of this version")


def _tokens(file: BinaryIO, values: dict[str, Any], constants: Constants, is_frame: bool) -> Float32 | None:
    """Read a record's tokens, None where they were cut off. Raises ValueError for damage."""
    shape = (constants.tokens_per_frame if is_frame else constants.audio_tokens, constants.token_width)
    sizes_bytes = {shape[0] * shape[1] * dtype.itemsize: dtype for dtype in (TOKEN_DTYPE, WIDE_DTYPE)}
    size_bytes = int(values["bytes"])
    if size_bytes not in sizes_bytes:
        raise ValueError("tokens of another size")
    data = file.read(size_bytes)
    if len(data) < size_bytes:
        return None
    if zlib.crc32(data) != values["crc32"]:
        raise ValueError("the tokens' checksum differs")
    return np.frombuffer(data, sizes_bytes[size_bytes]).reshape(shape).astype(np.float32)


def replay(path: Path, bundle_sha256: str, perception: Perception) -> Iterator[Evidence]:
    """Yield a recording's readings again, without encoding anything.

    Raises RecordingError as ``read_recording`` does.
    """
    for record in read_recording(path, bundle_sha256, perception.predictor.constants):
        match record:
            case FrameTokens():
                perception.add_frame_tokens(record.index, record.tokens, record.taken_s)
            case RepeatedFrame():
                perception.repeat_frame(record.index)
            case AudioTokens():
                perception.add_audio_tokens(record.end_s, record.tokens, record.sound_s)
            case Forgotten():
                (perception.forget_frames if record.what == "pictures" else perception.forget_sound)()
            case ReadingRequest():
                evidence = perception.read(record.now_s)
                if evidence is not None:  # None without recent evidence
                    yield evidence


class Replay:
    """The ticks of a recording: its readings again, without encoding anything."""

    def __init__(self, path: Path, bundle_sha256: str, perception: Perception, stop: Stop) -> None:
        """Take a recording of the bundle whose manifest has ``bundle_sha256``."""
        self._path, self._sha256, self._perception, self._stop = path, bundle_sha256, perception, stop
        self._ticks = 0

    @property
    def progress(self) -> Progress:
        """Counts since the run began."""
        return Progress(readings=self._ticks, ticks=self._ticks, skipped=0)

    @property
    def dropped(self) -> dict[str, int]:
        """Counts of what was dropped: nothing."""
        return {"moments": 0}

    @property
    def encodes(self) -> dict[str, int]:
        """Runs of each encoder: none."""
        return self._perception.encodes

    @property
    def stages_ms(self) -> dict[str, dict[str, float]]:
        """Times of the EmoAdapter, as in ``End.stages_ms``."""
        return self._perception.times.summary()

    def read(self) -> Iterator[Tick]:
        """Yield a tick for each reading. Raises RecordingError as ``read_recording`` does."""
        for evidence in replay(self._path, self._sha256, self._perception):
            if self._stop.is_set():
                return
            self._ticks += 1
            yield Tick(evidence.reading.time_s, Arrived(), due=True, evidence=evidence)
