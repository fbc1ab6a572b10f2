"""Moments: what a run's loop takes in until something is due, encoded and read several at once where nobody waits for the first of them.

A run over live devices has one moment at a time. At full pace a file's moments become tokens and readings in batches, which use cores and GPUs better;
the engines give the same bits on a processor whatever the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime.engine_cache import BatchProfile
from runtime.perception import Evidence, Perception, Window
from runtime.sources import Arrived

Float32 = npt.NDArray[np.float32]

AT_ONCE = BatchProfile().maximum  # moments at full pace: a TensorRT engine takes no more


def moments_at_once(pace: str) -> int:
    """How many a run at this pace computes in one batch."""
    return AT_ONCE if pace == "max" else 1


@dataclass
class Moment:
    """A moment at which something may be due, and what came until then, ready for the encoders: ``pixels`` (3, S, S) of the picture for the
    grid point ``index``, None where the newest is still the newest; ``log_mel`` (frames, mels) of the sound until ``heard_s``. ``visual``
    (T, D) and ``audio`` (N, D) are their tokens; ``evidence``: what was read, None where nothing was due, or nothing was seen or heard lately."""

    time_s: float
    arrived: Arrived
    due: bool
    index: int | None = None
    pixels: Float32 | None = None
    taken_s: float | None = None
    log_mel: Float32 | None = None
    heard_s: float = 0.0
    visual: Float32 | None = None
    audio: Float32 | None = None
    evidence: Evidence | None = None


def encode(perception: Perception, moments: Sequence[Moment]) -> None:
    """The moments' pictures and sounds become tokens, each kind in one batch."""
    seen = [(moment, moment.pixels) for moment in moments if moment.pixels is not None]
    heard = [(moment, moment.log_mel) for moment in moments if moment.log_mel is not None]
    visual = perception.encode("vision_encoder", [pixels for _, pixels in seen])
    audio = perception.encode("audio_encoder", [log_mel for _, log_mel in heard])
    for (moment, _), tokens in zip(seen, visual, strict=True):
        moment.visual = tokens
    for (moment, _), tokens in zip(heard, audio, strict=True):
        moment.audio = tokens


def read(perception: Perception, moments: Sequence[Moment]) -> None:
    """Perception sees and hears what the moments have, each in its place among the others, and reads them in one batch."""
    asked = [(moment, window) for moment in moments if (window := _window(perception, moment)) is not None]
    evidence = perception.read_all([window for _, window in asked])
    for (moment, _), found in zip(asked, evidence, strict=True):
        moment.evidence = found


def _window(perception: Perception, moment: Moment) -> Window | None:
    if moment.visual is not None and moment.index is not None:
        perception.restore_picture(moment.index, moment.visual, moment.taken_s)
    elif moment.index is not None:
        perception.still(moment.index)
    if moment.audio is not None:
        perception.restore_sound(moment.heard_s, moment.audio)
    return perception.window(moment.arrived.now_s(moment.time_s)) if moment.due else None
