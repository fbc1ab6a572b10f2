"""Windows of procedural works as the encoders take them: the newest frames, and the log-mel of the sound."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vaemotion.contract.front_end import FrontEnd, audio_window
from vaemotion.contract.image import prepare_frame
from vaemotion.data.art.art import Work, draw_frame, synthesize

Float32 = npt.NDArray[np.float32]
# A window ends at most this long after the first moment at which it has all its frames.
SPREAD_S = 1.1


def frames_at(work: Work, now_s: float, count: int, front_end: FrontEnd) -> Float32:
    """Draw the newest ``count`` frames of the window at ``now_s``, (count, 3, side, side) normalized."""
    times = [now_s - k * front_end.windows.frame_spacing_s for k in reversed(range(count))]
    return np.stack([prepare_frame(draw_frame(work, t), front_end.image) for t in times])


def window_log_mel(work: Work, now_s: float, front_end: FrontEnd) -> Float32:
    """Compute the work's normalized log-mel window that ends at ``now_s``, (frames, mels)."""
    return audio_window(synthesize(work, now_s), now_s, front_end)
