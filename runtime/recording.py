"""Recordings of what was perceived: tokens, from which neither a face nor a voice can be seen or heard, and the same readings again.

In: what perception does, in its order. Out: a file that ``replay`` puts back into perception, bit for bit. The first line is a JSON header; then
come records, each a JSON line and, where it says so, the bytes of its tokens (float32, little-endian). No picture, sample or log-mel is in it.
A record is one write at the end of the file: whatever happens, only the last one can be cut off, and a reader leaves it out.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast

import numpy as np
import numpy.typing as npt

from runtime.predictor import Constants
from runtime.sinks.jsonl import append_whole
from vaemotion.contract.errors import UsageError, UserError

if TYPE_CHECKING:  # perception knows the recorder
    from runtime.perception import Evidence, Perception

Float32 = npt.NDArray[np.float32]

SCHEMA = 1
_LINE_BYTES = 4096  # of a header or a record, without its tokens
_DTYPE = np.dtype("<f4")


class RecordingError(UserError):
    """A file is no recording, a damaged one, or one of another bundle."""


@dataclass(frozen=True)
class Seen:
    """A picture's tokens (T, D) at grid point ``index``. ``taken_s``: when a camera took it."""

    index: int
    taken_s: float | None
    tokens: Float32


@dataclass(frozen=True)
class Still:
    """At grid point ``index`` the newest picture was still the newest."""

    index: int


@dataclass(frozen=True)
class Heard:
    """A window's tokens (N, D); its sound ended at ``heard_s``."""

    heard_s: float
    tokens: Float32


@dataclass(frozen=True)
class Forgotten:
    """A device was lost or reopened: what it gave does not count any more."""

    what: Literal["pictures", "sound"]


@dataclass(frozen=True)
class Asked:
    """A reading was made."""

    now_s: float


Record = Seen | Still | Heard | Forgotten | Asked


def _header(bundle_sha256: str, constants: Constants) -> dict[str, Any]:
    return {
        "type": "vaemotion features",
        "schema": SCHEMA,
        "bundle_sha256": bundle_sha256,
        "dtype": _DTYPE.str,
        "picture": [constants.tokens_per_frame, constants.token_width],
        "sound": [constants.audio_tokens, constants.token_width],
    }


class FeatureRecorder:
    """Appends what perception does to a new file. One thread owns it."""

    def __init__(self, path: Path, bundle_sha256: str, constants: Constants) -> None:
        """``bundle_sha256``: of the bundle's manifest. Raises UsageError when the file exists: a recording cannot be made again."""
        self.path = path
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError as error:
            raise UsageError(f"{path} exists; give a new file for the recording") from error
        except OSError as error:
            raise UserError(f"cannot write the recording {path}: {error.strerror}") from error
        self._append(_header(bundle_sha256, constants))

    def picture(self, index: int, tokens: Float32, taken_s: float | None = None) -> None:
        """A picture became tokens (T, D)."""
        self._append({"kind": "picture", "index": index, "taken_s": taken_s}, tokens)

    def still(self, index: int) -> None:
        self._append({"kind": "still", "index": index})

    def sound(self, heard_s: float, tokens: Float32) -> None:
        """A window of sound became tokens (N, D)."""
        self._append({"kind": "sound", "heard_s": heard_s}, tokens)

    def forget(self, what: Literal["pictures", "sound"]) -> None:
        self._append({"kind": "forget", "what": what})

    def read(self, now_s: float) -> None:
        self._append({"kind": "read", "now_s": now_s})

    def close(self) -> None:
        os.close(self._file)

    def _append(self, values: dict[str, Any], tokens: Float32 | None = None) -> None:
        """One record is one write, all of it or nothing. Raises UserError when the disk is full."""
        data = b""
        if tokens is not None:
            assert tokens.dtype == np.float32, tokens.dtype
            data = tokens.astype(_DTYPE).tobytes()
            values |= {"bytes": len(data), "crc32": zlib.crc32(data)}
        try:
            append_whole(self._file, json.dumps(values, allow_nan=False).encode() + b"\n" + data)
        except OSError as error:
            raise UserError(
                f"cannot write to {self.path}: {error.strerror}; make room or choose another file"
            ) from error


def read_recording(path: Path, bundle_sha256: str, constants: Constants) -> Iterator[Record]:
    """The records of a file, one after the other; one that was cut off is left out. Raises RecordingError for a file that is no recording of
    this bundle, at once, and where it is damaged."""
    try:
        with path.open("rb") as file:
            found = _line(file)
    except OSError as error:
        raise RecordingError(
            f"recording {path} cannot be read ({error.strerror}): give a file that vaemotion record wrote"
        ) from error
    if found is None or found.get("type") != "vaemotion features" or found.get("schema") != SCHEMA:
        raise RecordingError(f"{path} is not a recording of this version: give a file that it wrote")
    if found != _header(bundle_sha256, constants):
        raise RecordingError(f"{path} was recorded with another bundle: give the one that it was made with")
    return _records(path, constants)


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
    """The next line as a JSON object; None at the end, and for a line that was cut off. {} for what is no object."""
    line = file.readline(_LINE_BYTES)
    if not line.endswith(b"\n") and len(line) < _LINE_BYTES:
        return None
    try:
        values: Any = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return cast(dict[str, Any], values) if isinstance(values, dict) else {}


def _next(file: BinaryIO, constants: Constants) -> Record | None:
    """None at the end. Raises when it is not as it was written."""
    values = _line(file)
    if values is None:
        return None
    match values["kind"]:
        case "picture" | "sound" as kind:
            tokens = _tokens(file, values, constants, kind == "picture")
            if tokens is None:
                return None
            if kind == "sound":
                return Heard(float(values["heard_s"]), tokens)
            taken_s = values["taken_s"]
            return Seen(int(values["index"]), None if taken_s is None else float(taken_s), tokens)
        case "still":
            return Still(int(values["index"]))
        case "forget" if values["what"] in ("pictures", "sound"):
            return Forgotten(values["what"])
        case "read":
            return Asked(float(values["now_s"]))
        case _:
            raise ValueError("no record of this version")


def _tokens(file: BinaryIO, values: dict[str, Any], constants: Constants, is_picture: bool) -> Float32 | None:
    shape = (constants.tokens_per_frame if is_picture else constants.audio_tokens, constants.token_width)
    size_bytes = shape[0] * shape[1] * _DTYPE.itemsize
    if values["bytes"] != size_bytes:
        raise ValueError("tokens of another size")
    data = file.read(size_bytes)
    if len(data) < size_bytes:
        return None
    if zlib.crc32(data) != values["crc32"]:
        raise ValueError("tokens that are not those that were written")
    return np.frombuffer(data, _DTYPE).reshape(shape).astype(np.float32)


def replay(path: Path, bundle_sha256: str, perception: Perception) -> Iterator[Evidence]:
    """What a recording's perception read, read again: nothing is encoded. Raises RecordingError as ``read_recording`` does."""
    for record in read_recording(path, bundle_sha256, perception.predictor.constants):
        match record:
            case Seen():
                perception.restore_picture(record.index, record.tokens, record.taken_s)
            case Still():
                perception.still(record.index)
            case Heard():
                perception.restore_sound(record.heard_s, record.tokens)
            case Forgotten():
                (perception.forget_pictures if record.what == "pictures" else perception.forget_sound)()
            case Asked() if (evidence := perception.read(record.now_s)) is not None:
                yield evidence
            case Asked():  # nothing had been seen or heard lately
                pass
