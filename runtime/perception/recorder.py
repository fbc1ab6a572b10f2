"""Recording of a run's features: tokens, in which no face can be seen and no voice heard.

In: each change of perception's state. Out: a file whose format ``runtime.perception.replay`` describes.
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from runtime.perception.predictor import Constants
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.files import append_whole

Float32 = npt.NDArray[np.float32]
SCHEMA = 1
LINE_BYTES = 4096  # at most, for the header's or a record's JSON line
TOKEN_DTYPE = np.dtype("<f4")


class RecordingError(UserError):
    """A file that is not a recording, is damaged, or was recorded with another bundle."""


def header_line(bundle_sha256: str, constants: Constants) -> dict[str, Any]:
    """Return the first line of a recording as a JSON object."""
    return {
        "type": "vaemotion features",
        "schema": SCHEMA,
        "bundle_sha256": bundle_sha256,
        "dtype": TOKEN_DTYPE.str,
        "picture": [constants.tokens_per_frame, constants.token_width],
        "sound": [constants.audio_tokens, constants.token_width],
    }


class FeatureRecorder:
    """A writer that appends perception's inputs to a new file. One thread owns it."""

    def __init__(self, path: Path, bundle_sha256: str, constants: Constants) -> None:
        """Create the file with its header. ``bundle_sha256``: of the bundle's manifest.

        Raises UsageError when the file exists, because a recording cannot be made again, and UserError
        when it cannot be written.
        """
        self.path = path
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError as error:
            raise UsageError(f"{path} exists; give a new file for the recording") from error
        except OSError as error:
            raise UserError(f"cannot write the recording {path}: {error.strerror}") from error
        self._append(header_line(bundle_sha256, constants))

    def add_frame_tokens(self, index: int, tokens: Float32, taken_s: float | None = None) -> None:
        """Record the tokens (T, D) of the frame of grid point ``index``."""
        self._append({"kind": "picture", "index": index, "taken_s": taken_s}, tokens)

    def repeat_frame(self, index: int) -> None:
        """Record that no newer frame came for grid point ``index``."""
        self._append({"kind": "still", "index": index})

    def add_audio_tokens(self, end_s: float, tokens: Float32, sound_s: float) -> None:
        """Record the tokens (N, D) of a window with ``sound_s`` s of sound that ended at ``end_s``."""
        self._append({"kind": "sound", "heard_s": end_s, "sound_s": sound_s}, tokens)

    def forget(self, what: Literal["pictures", "sound"]) -> None:
        """Record that a device was lost or reopened, so that its tokens were dropped."""
        self._append({"kind": "forget", "what": what})

    def read(self, now_s: float) -> None:
        """Record that a reading was asked for at ``now_s``."""
        self._append({"kind": "read", "now_s": now_s})

    def close(self) -> None:
        os.close(self._file)

    def _append(self, values: dict[str, Any], tokens: Float32 | None = None) -> None:
        """Write one record, all of it or nothing. Raises UserError when the disk is full."""
        data = b""
        if tokens is not None:
            assert tokens.dtype == np.float32, tokens.dtype
            data = tokens.astype(TOKEN_DTYPE).tobytes()
            values |= {"bytes": len(data), "crc32": zlib.crc32(data)}
        try:
            append_whole(self._file, json.dumps(values, allow_nan=False).encode() + b"\n" + data)
        except OSError as error:
            raise UserError(
                f"cannot write to {self.path}: {error.strerror}; make room or choose another file"
            ) from error
