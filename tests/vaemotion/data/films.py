"""Small films for the tests of clips and shards, made here."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import av
import numpy as np

from vaemotion.contract.audio import SAMPLE_RATE_HZ
from vaemotion.data.manifest.writer import write_clip

HEIGHT, WIDTH, RATE_HZ = 48, 64, 10


def frames(seconds: float, seed: int = 0, *, moving: bool = True) -> np.ndarray:
    """Draw (n, 48, 64, 3) frames of a bright square that wanders, or that stands still."""
    drawn: list[np.ndarray] = []
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    colors = np.stack([rows, columns, np.full_like(rows, 40 + 7 * seed)], axis=2).astype(np.uint8)
    for number in range(round(seconds * RATE_HZ)):
        frame = colors.copy()
        left = (3 * number * moving + 5 * seed) % (WIDTH - 16)
        frame[16:32, left : left + 16] = 255
        drawn.append(frame)
    return np.stack(drawn)


def noise(seconds: float, seed: int = 0, rate_hz: int = SAMPLE_RATE_HZ) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * rate_hz)).astype(np.float32)


def film(
    path: Path, seconds: float, seed: int = 0, *, moving: bool = True, sound: bool | None = True
) -> Path:
    """Write a Matroska film. ``sound`` False is silence, None no track."""
    samples = None if sound is None else noise(seconds, seed) * sound
    path.parent.mkdir(parents=True, exist_ok=True)
    write_clip(path, frames(seconds, seed, moving=moving), RATE_HZ, samples)
    return path


def film_mp4(path: Path, seconds: float, seed: int = 0) -> Path:
    """Write an MP4 film as most are: H.264 with B-frames and a keyframe every 2 s, AAC at 44.1 kHz."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=RATE_HZ, options={"g": "20", "bf": "2"})
        video.height, video.width, video.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        audio = container.add_stream("aac", rate=44_100, layout="mono")
        for rgb in frames(seconds, seed):
            container.mux(video.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(video.encode(None))
        samples = noise(seconds, seed, 44_100)[None]
        for first in range(0, samples.shape[1] - 1023, 1024):
            block = np.ascontiguousarray(samples[:, first : first + 1024])
            frame = av.AudioFrame.from_ndarray(block, "fltp", "mono")
            frame.sample_rate, frame.pts = 44_100, first
            container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
    return path


def tar(path: Path, members: Mapping[str, bytes]) -> Path:
    """Write a tar file with these members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", errors="surrogateescape") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path
