"""Writer of clips, as H.264 and FLAC in Matroska and written atomically, and of sounds as FLAC."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.codec.context import Flags

from vaemotion.contract.audio import SAMPLE_RATE_HZ
from vaemotion.contract.files import whole_file
from vaemotion.contract.front_end import Clip
from vaemotion.contract.media.files import ffmpeg_name

CRF = 16  # visually lossless on drawn scenes
_MILLISECOND = Fraction(1, 1000)  # the resolution of Matroska's times


def write_clip(
    path: Path,
    frames: npt.NDArray[np.uint8],
    frame_rate_hz: float,
    samples: npt.NDArray[np.float32] | None = None,
) -> None:
    """Write a clip as H.264 (crf 16, yuv420p) and FLAC (16 bits) in Matroska.

    frames: (n, H, W, 3) uint8 RGB, H and W even; samples: (m,) float32 in [-1, 1] at 16 kHz, or None. Frame k
    is shown at k / frame_rate_hz, rounded to Matroska's millisecond. The same input gives the same bytes.
    The file is complete under its name or absent. Raises ValueError for other shapes, WriteError where the
    file cannot be written.
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"frames must be (n, H, W, 3) uint8 with n > 0, got {frames.shape} {frames.dtype}")
    if frames.shape[1] % 2 or frames.shape[2] % 2:
        raise ValueError(f"frames must have an even height and width (yuv420p), got {frames.shape[1:3]}")
    if samples is not None and samples.ndim != 1:
        raise ValueError(f"samples must be one channel, (m,), got shape {samples.shape}")
    # bitexact: no random segment id and no encoder name, so that equal clips have equal hashes.
    options = {"fflags": "+bitexact"}
    with (
        whole_file(path) as temporary,
        av.open(ffmpeg_name(temporary), "w", format="matroska", options=options) as container,
    ):
        video = _add_video(container, frames.shape[1:3], frame_rate_hz)
        audio = None if samples is None else _add_audio(container)
        for number, rgb in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts, frame.time_base = number, video.codec_context.time_base
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio is not None and samples is not None:
            container.mux(audio.encode(_audio_frame(samples)))
            container.mux(audio.encode(None))


def clip_bytes(clip: Clip) -> bytes:
    """Encode a decoded clip as ``write_clip`` does, each frame at its own time, and return the file.

    An odd row or column of the frames is cut off. Raises ValueError for a clip without frames.
    """
    if not clip.frames:
        raise ValueError("the clip has no frames")
    height, width = (side // 2 * 2 for side in clip.frames[0].shape[:2])
    seconds = clip.frame_times_s[-1] - clip.frame_times_s[0]
    rate_hz = (len(clip.frames) - 1) / seconds if seconds > 0 else 25.0
    written = io.BytesIO()
    with av.open(written, "w", format="matroska", options={"fflags": "+bitexact"}) as container:
        video = _add_video(container, (height, width), rate_hz)
        video.codec_context.time_base = _MILLISECOND
        audio = None if clip.samples is None else _add_audio(container)
        for time_s, rgb in zip(clip.frame_times_s, clip.frames, strict=True):
            frame = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(rgb[:height, :width]), format="rgb24"
            ).reformat(width, height, "yuv420p")
            frame.pts, frame.time_base = round(1000 * time_s), _MILLISECOND
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio is not None and clip.samples is not None:
            container.mux(audio.encode(_audio_frame(clip.samples)))
            container.mux(audio.encode(None))
    return written.getvalue()


def _add_video(container: Any, height_width: tuple[int, ...], frame_rate_hz: float) -> Any:
    rate = Fraction(frame_rate_hz).limit_denominator(1001)
    # One thread: with more, x264's rate control depends on how the threads interleave. No macroblock tree:
    # with AVX-512 it sometimes gives other bytes for the same frames (docs/log.md).
    options = {"crf": str(CRF), "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}
    stream = container.add_stream("libx264", rate=rate, options=options)
    stream.height, stream.width = height_width
    stream.pix_fmt = "yuv420p"
    stream.codec_context.time_base = 1 / rate
    stream.codec_context.flags |= Flags.bitexact
    return stream


def flac_bytes(samples: npt.NDArray[np.float32], rate_hz: int = SAMPLE_RATE_HZ) -> bytes:
    """Encode one channel (n,) float32 in [-1, 1] as FLAC (16 bits); equal samples give equal bytes."""
    written = io.BytesIO()
    with av.open(written, "w", format="flac", options={"fflags": "+bitexact"}) as container:
        stream = _add_audio(container, rate_hz)
        container.mux(stream.encode(_audio_frame(samples, rate_hz)))
        container.mux(stream.encode(None))
    return written.getvalue()


def _add_audio(container: Any, rate_hz: int = SAMPLE_RATE_HZ) -> Any:
    stream = container.add_stream("flac", rate=rate_hz, layout="mono", format="s16")
    stream.codec_context.flags |= Flags.bitexact
    return stream


def _audio_frame(samples: npt.NDArray[np.float32], rate_hz: int = SAMPLE_RATE_HZ) -> Any:
    integers = np.round(np.clip(samples, -1, 1) * 32767).astype(np.int16)
    frame = av.AudioFrame.from_ndarray(integers[None], format="s16", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = rate_hz, 0, Fraction(1, rate_hz)
    return frame
