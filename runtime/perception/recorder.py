"""Recording of a run's features: tokens in float16, and when readings were made of them.

Tokens show what was seen: a linear decoder computes pictures from them in which heads, eyes and clothes stand
(docs/live.md). A recording is as private as a film. Pooled ones, a mean token for each frame, show less.

In: each change of perception's state. Out: a file whose format ``runtime.perception.replay`` describes. A
live run's recording has parts of a bounded size: ``features`` is the newest, ``features.1`` the one before.
Each begins with what perception holds at that time, so that each gives its readings again by itself.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from runtime.losses import Losses
from runtime.perception.predictor import Constants
from runtime.sinks.rotated_file import FileKind, RotatedFile
from vaemotion.contract.errors import UsageError, UserError

Float32 = npt.NDArray[np.float32]
SCHEMA = 2
# What a recording tells of those who were seen and heard (``tests/runtime/perception/test_privacy.py``).
PRIVACY = (
    "the recording holds tokens, not pictures, but pictures of people can be computed from them: keep it as "
    "you would keep a film, or record less of them with --only pooled or --only readings"
)
LINE_BYTES = 4096  # at most, for the header's or a record's JSON line
TOKEN_DTYPE = np.dtype("<f2")
WIDE_DTYPE = np.dtype("<f4")  # of tokens beyond float16, and of all tokens of schema 1
RECORDING = FileKind("recording", "--to", b'{"type": "vaemotion features"', 0o600)


class RecordingError(UserError):
    """A file that is not a recording, is damaged, or was recorded with another bundle."""


@dataclass(frozen=True)
class PartLimits:
    """Bounds of a live run's recording.

    A part ends with the first reading that finds it larger than ``max_bytes``. ``keep`` older parts stay.
    """

    max_bytes: int = 1_000_000_000
    keep: int = 4


def header_line(
    bundle_sha256: str, constants: Constants, *, schema: int = SCHEMA, pooled: bool = False
) -> dict[str, Any]:
    """Return the first line of a recording as a JSON object."""
    return {
        "type": "vaemotion features",
        "schema": schema,
        "bundle_sha256": bundle_sha256,
        "dtype": (TOKEN_DTYPE if schema > 1 else WIDE_DTYPE).str,
        "picture": [1 if pooled else constants.tokens_per_frame, constants.token_width],
        "sound": [1 if pooled else constants.audio_tokens, constants.token_width],
        **({"pooled": True} if pooled else {}),
    }


def as_recorded(tokens: Float32) -> Float32:
    """Round tokens to float16, as a recording holds them; return them unchanged where one is beyond it."""
    return _stored(tokens).astype(np.float32)


def _stored(tokens: Float32) -> npt.NDArray[Any]:
    with np.errstate(over="ignore"):
        rounded = tokens.astype(TOKEN_DTYPE)
    return rounded if np.isfinite(rounded).all() else tokens.astype(WIDE_DTYPE)


class FeatureRecorder:
    """A writer of perception's inputs. One thread owns it.

    ``losses``: readings of a live run that could not be recorded. What came meanwhile is left out as a whole:
    the next ``begin`` writes the state that perception has then.
    """

    def __init__(
        self,
        path: Path,
        bundle_sha256: str,
        constants: Constants,
        limits: PartLimits | None = None,
        *,
        pooled: bool = False,
    ) -> None:
        """Create the file with its header. ``bundle_sha256``: of the bundle's manifest.

        ``limits``: of a live run, in which an earlier recording becomes ``features.1`` and a failed write
        costs readings; None for one file, in which a failed write is an error. ``pooled``: record the mean of
        the tokens of each frame and of each window of sound, which cannot be replayed. Raises UsageError
        where that one file exists, because a recording cannot be made again, and UserError when it cannot be
        written.
        """
        self.path, self._limits, self._pooled = path, limits, pooled
        self.losses = Losses("recorded readings")
        if limits is None and os.path.lexists(path):
            raise UsageError(f"{path} exists; give a new file for the recording")
        self._header = json.dumps(header_line(bundle_sha256, constants, pooled=pooled)).encode() + b"\n"
        self._file = RotatedFile(
            path,
            RECORDING,
            None if limits is None else limits.max_bytes,
            None if limits is None else limits.keep,
            patient=limits is not None,
        )
        self._follows = limits is None  # the file has every change of perception's state
        self._reason = "the file was emptied"  # for which it has not
        if limits is None:
            self._write(self._header)

    def add_frame_tokens(self, index: int, tokens: Float32, taken_s: float | None = None) -> None:
        """Record the tokens (T, D) of the frame of grid point ``index``."""
        self._append(self._picture(index, tokens, taken_s))

    def repeat_frame(self, index: int) -> None:
        """Record that no newer frame came for grid point ``index``."""
        self._append(_record({"kind": "still", "index": index}))

    def add_audio_tokens(self, end_s: float, tokens: Float32, sound_s: float) -> None:
        """Record the tokens (N, D) of a window with ``sound_s`` s of sound that ended at ``end_s``."""
        self._append(self._sound(end_s, tokens, sound_s))

    def forget(self, what: Literal["pictures", "sound"]) -> None:
        """Record that a device was lost or reopened, so that its tokens were dropped."""
        self._append(_record({"kind": "forget", "what": what}))

    def read(self, now_s: float) -> None:
        """Record that a reading was asked for at ``now_s``."""
        if self._append(_record({"kind": "read", "now_s": now_s})):
            self.losses.end()
        else:
            self.losses.add(self._reason)

    def needs_state(self) -> bool:
        """Start a new part where one is due; return True where ``begin`` has to write perception's state."""
        if self._limits is None:
            return False
        try:
            self._file.prepare(0, len(self._header))
        except OSError as error:  # nothing is written, or a part would grow beyond its limit
            self._fail(error)
            return False
        return not self._follows or self._file.is_empty

    def begin(
        self,
        frames: Mapping[int, Float32],
        taken_s: float | None,
        audio: tuple[float, Float32, float] | None,
    ) -> None:
        """Write perception's state in one piece, so that a reader needs nothing from before.

        ``frames``: tokens by ascending grid point; ``taken_s``: time at which a camera took the newest one;
        ``audio``: arguments of ``add_audio_tokens``.
        """
        head = [self._header] if self._file.is_empty else []
        head += [_record({"kind": "forget", "what": what}) for what in ("pictures", "sound")]
        newest: Float32 | None = None
        for index, tokens in frames.items():
            is_still = tokens is newest
            newest = tokens
            still = {"kind": "still", "index": index}
            head.append(_record(still) if is_still else self._picture(index, tokens, taken_s))
        if audio is not None:
            head.append(self._sound(*audio))
        self._follows = True
        self._write(b"".join(head))

    def close(self) -> None:
        self._file.close()

    def _append(self, data: bytes) -> bool:
        """Write a record, all of it or nothing. Returns False where it is lost."""
        self._follows = self._follows and not self._file.is_empty
        if self._follows:
            self._write(data)
        return self._follows

    def _write(self, data: bytes) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        """Take note of a failed write. Raises UserError unless the run is live."""
        reason = f"cannot write to {self.path.name}: {error.strerror}"
        if self._limits is None:
            raise UserError(f"{reason}; make room or choose another file") from error
        self._follows, self._reason = False, reason

    def _picture(self, index: int, tokens: Float32, taken_s: float | None) -> bytes:
        return _record({"kind": "picture", "index": index, "taken_s": taken_s}, self._kept(tokens))

    def _sound(self, end_s: float, tokens: Float32, sound_s: float) -> bytes:
        return _record({"kind": "sound", "heard_s": end_s, "sound_s": sound_s}, self._kept(tokens))

    def _kept(self, tokens: Float32) -> Float32:
        return pooled_tokens(tokens) if self._pooled else tokens


def pooled_tokens(tokens: Float32) -> Float32:
    """Return the mean of tokens (n, D), (1, D)."""
    return tokens.mean(axis=0, keepdims=True)


def _record(values: dict[str, Any], tokens: Float32 | None = None) -> bytes:
    """Return a record: a JSON line, and tokens where it has them."""
    data = b""
    if tokens is not None:
        assert tokens.dtype == np.float32, tokens.dtype
        data = _stored(tokens).tobytes()
        values |= {"bytes": len(data), "crc32": zlib.crc32(data)}
    return json.dumps(values, allow_nan=False).encode() + b"\n" + data
