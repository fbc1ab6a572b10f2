"""Media files for tests: real files with known frames, tones and damage."""

from __future__ import annotations

import wave
from pathlib import Path

import av
import numpy as np

from vaemotion.contract.audio import SAMPLE_RATE_HZ
from vaemotion.data.art.art import draw_frame, sample_work, synthesize, work_seed
from vaemotion.data.manifest.writer import write_clip


def write_work(
    path: Path, duration_s: float, index: int = 0, rate_hz: float = 10, *, sound: bool = True
) -> Path:
    """Write a procedural work as a clip."""
    work = sample_work(work_seed("validation", index))
    frames = np.stack([draw_frame(work, k / rate_hz) for k in range(round(duration_s * rate_hz))])
    write_clip(path, frames, rate_hz, synthesize(work, duration_s) if sound else None)
    return path


def tone(duration_s: float, hertz: float = 440.0, rate_hz: int = SAMPLE_RATE_HZ) -> np.ndarray:
    time_s = np.arange(round(duration_s * rate_hz)) / rate_hz
    return (0.5 * np.sin(2 * np.pi * hertz * time_s)).astype(np.float32)


def write_wav(path: Path, samples: np.ndarray, rate_hz: int) -> Path:
    """Write a WAV file. ``samples``: (n,) or (n, channels)."""
    samples = samples.reshape(len(samples), -1)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(np.round(samples * 32767).astype("<i2").tobytes())
    return path


def encode_sound(path: Path, codec: str, samples: np.ndarray, rate_hz: int, layout: str) -> Path:
    """Encode samples (n, channels) by an encoder of FFmpeg, in the container of the path's suffix."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate_hz, layout=layout)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T), format="fltp", layout=layout)
        frame.sample_rate, frame.pts = rate_hz, 0
        for block in av.AudioResampler(stream.codec_context.format.name, layout, rate_hz, 1024).resample(
            frame
        ):
            container.mux(stream.encode(block))
        container.mux(stream.encode(None))
    return path


def write_mp4(path: Path, duration_s: float) -> Path:
    """Write a procedural work's frames as MPEG-4, 10 a second, without sound."""
    work = sample_work(work_seed("validation", 0))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 160, 160, "yuv420p"
        for k in range(round(duration_s * 10)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(draw_frame(work, k / 10), format="rgb24")))
        container.mux(stream.encode(None))
    return path
