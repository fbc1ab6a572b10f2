"""An encoder that encodes each frame or window of sound once, for windows that share them.

In: rows of an encoder's input. Out: their tokens. The windows of a clip share frames, and so do its paths;
calibration asks about the same windows in several steps. At the sizes of a real vision encoder one frame
costs seconds of a processor, and finding it again a few milliseconds.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import numpy as np
import numpy.typing as npt

from runtime.engines.io import Engine

Float32 = npt.NDArray[np.float32]

# Of input that is encoded at once: eight frames of 96 px, one of 512 px. A transformer's intermediate results
# are some hundred times as large.
BYTES_AT_ONCE = 4 << 20
ENCODER_INPUTS = {"vision_encoder": "pixels", "audio_encoder": "log_mel"}  # by the encoder's role
MEMORY_BYTES = 128 << 20  # of tokens that are remembered


class EncoderMemory:
    """Tokens by the content of what ``engine`` encoded; the oldest are forgotten first.

    On a processor an engine gives the same bits whatever else is in the batch.
    """

    def __init__(self, engine: Engine, input_name: str) -> None:
        self.engine = engine
        self._input_name = input_name
        self._tokens: OrderedDict[bytes, Float32] = OrderedDict()
        self._bytes = 0

    def tokens(self, rows: Float32) -> Float32:
        """Return the tokens (n, T, D) of at least one row of the encoder's input (n, ...)."""
        keys = [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows]
        found = {key: self._tokens[key] for key in keys if key in self._tokens}
        new = {key: row for key, row in zip(keys, rows, strict=True) if key not in found}
        at_once = max(1, BYTES_AT_ONCE // rows[0].nbytes)
        for start in range(0, len(new), at_once):
            part = list(new)[start : start + at_once]
            encoded = self.engine.run({self._input_name: np.stack([new[key] for key in part])})["tokens"]
            for key, tokens in zip(part, encoded, strict=True):
                # A copy, because a row would keep its whole batch.
                found[key] = self._tokens[key] = tokens.copy()
                self._bytes += tokens.nbytes
        while self._bytes > MEMORY_BYTES:
            self._bytes -= self._tokens.popitem(last=False)[1].nbytes
        return np.stack([found[key] for key in keys])
