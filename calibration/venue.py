"""The noise floor of a venue, from a recording of its silent room.

In: a recording of the empty room through the installed microphone, 16 kHz. Out: its level and its mean
log-mel. It runs on the device: NumPy and the contract only. No command calls it yet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vaemotion.contract.audio import SAMPLE_RATE_HZ, LogMelConfig, level_dbfs, log_mel
from vaemotion.contract.errors import UserError

MINIMUM_S = 1.0
SILENT_DBFS = 20 * math.log10(math.sqrt(2) * 1e-9)  # below the last bit of 24-bit audio


@dataclass(frozen=True)
class NoiseFloor:
    """The noise floor of a room.

    ``level_dbfs``: its level in dB relative to a full-scale sine (AES17). ``log_mel_mean``: its mean
    spectrum, (mels,) float32, natural logarithm, not normalized. A live signal below it cannot be told from
    the room's own noise.
    """

    level_dbfs: float
    log_mel_mean: npt.NDArray[np.float32]


def measure_noise_floor(samples: npt.NDArray[np.float32], config: LogMelConfig | None = None) -> NoiseFloor:
    """Measure level and mean log-mel of a silent room.

    ``samples``: (n,) float32 in [-1, 1] at 16 kHz, at least one second. ``config``: the constants of the
    log-mel, by default those of ``vaemotion-tiny``. The level is 20 log10(√2 · RMS) without the DC offset
    (AES17-2020: a full-scale sine is 0 dBFS). Raises UserError for a recording that is too short, not
    finite, or digital silence, which means a muted microphone. Raises ValueError for more than one channel.
    """
    if samples.ndim != 1:
        raise ValueError(f"samples must be one channel, (n,), got shape {samples.shape}")
    duration_s = samples.size / SAMPLE_RATE_HZ
    if duration_s < MINIMUM_S:
        raise UserError(
            f"the recording lasts {duration_s:.2f} s, record at least {MINIMUM_S:.0f} s of the silent room"
        )
    if not np.isfinite(samples).all():
        raise UserError("the recording holds values that are not finite, record it again")
    level = level_dbfs(samples)
    if level < SILENT_DBFS:
        raise UserError("the recording is digital silence: is the microphone muted?")
    log_mels = log_mel(samples, config or LogMelConfig())  # (frames, mels)
    return NoiseFloor(level, log_mels.mean(axis=0, dtype=np.float64).astype(np.float32))
