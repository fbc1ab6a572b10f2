"""What the sections measure on: a bundle of ``vaemotion-tiny``, and procedural clips of any length, rate and size.

In: the suite's working folder. Out: paths in it. What is there already is taken as it is.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import numpy.typing as npt
import soxr  # pyright: ignore[reportMissingTypeStubs]

from vaemotion.contract.audio import SAMPLE_RATE_HZ
from vaemotion.data.procedural_art import (
    CONTENT_CLASSES,
    Work,
    draw_frame,
    sample_work,
    synthesise,
    work_seed,
)

CHECKPOINT = Path("models/vaemotion-tiny")
WORK_S, MINUTE_S = 5, 60  # a minute shows twelve works; after it a clip begins again
DRAWN_SIDE_PX = 320  # stretched to the clip's size: drawing larger takes longer and shows nothing else
X264 = {"preset": "veryfast", "crf": "23", "bf": "0"}  # without B-frames, as cameras give it
SOUND_RATE_HZ = 48_000  # as cameras and films have it: the runtime resamples

Picture = npt.NDArray[np.uint8]


def tiny_bundle(folder: Path) -> Path:
    """``vaemotion-tiny`` as a bundle (about 90 s); the export does nothing where it is there, of this checkpoint and this code."""
    bundle = folder / "bundle"
    command = [sys.executable, "-m", "vaemotion.cli", "export", str(CHECKPOINT), "--out", str(bundle)]
    subprocess.run(command, check=True)
    return bundle


def clip(folder: Path, seconds: float, fps: int = 30, width: int = 854, height: int = 480) -> Path:
    """Works one after the other: H.264 and FLAC, one channel at 48 kHz, in Matroska. A minute at most is drawn and encoded; a longer clip
    repeats its packets."""
    path = folder / f"clip-{seconds:g}s-{fps}fps-{width}x{height}.mkv"
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if seconds > MINUTE_S:
            _repeat(clip(folder, MINUTE_S, fps, width, height), temporary, seconds)
        else:
            _encode(temporary, seconds, fps, width, height)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def works() -> list[Work]:
    """The works of a clip, each of another class."""
    return [sample_work(work_seed("test", k), CONTENT_CLASSES[k]) for k in range(MINUTE_S // WORK_S)]


def pictures(work: Work, n: int, fps: float, width: int, height: int) -> Iterator[Picture]:
    """The first ``n`` pictures of a work, (height, width, 3) uint8 RGB."""
    for k in range(n):
        yield np.asarray(cv2.resize(draw_frame(work, k / fps, DRAWN_SIDE_PX), (width, height)), np.uint8)


def _encode(path: Path, seconds: float, fps: int, width: int, height: int) -> None:
    """One work's pictures, then its sound, then the next work's; the last work is cut off at ``seconds``."""
    with av.open(str(path), "w", format="matroska") as container:
        video = container.add_stream("libx264", rate=fps, options=X264)
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"  # pyright: ignore
        audio: Any = container.add_stream("flac", rate=SOUND_RATE_HZ, layout="mono", format="s16")
        for number, work in enumerate(works()):
            length_s = min(WORK_S, seconds - number * WORK_S)
            if length_s <= 0:
                break
            for picture in pictures(work, round(length_s * fps), fps, width, height):
                container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))  # pyright: ignore
            container.mux(audio.encode(_sound(work, length_s, number * WORK_S)))
        container.mux(video.encode(None))  # pyright: ignore
        container.mux(audio.encode(None))


def _sound(work: Work, length_s: float, begin_s: int) -> av.AudioFrame:
    resampled = soxr.resample(synthesise(work, length_s), SAMPLE_RATE_HZ, SOUND_RATE_HZ)  # pyright: ignore
    integers = np.round(np.clip(resampled, -1, 1) * 32767).astype(np.int16)
    frame = av.AudioFrame.from_ndarray(integers[None], format="s16", layout="mono")
    frame.sample_rate, frame.pts = SOUND_RATE_HZ, begin_s * SOUND_RATE_HZ
    return frame


def _repeat(minute: Path, path: Path, seconds: float) -> None:
    """The packets of ``minute`` over and over until ``seconds``: FFmpeg's concat demuxer shifts their times."""
    listed = path.with_suffix(".txt")
    entry = f"file '{minute.resolve()}'\nduration {MINUTE_S}\n"
    listed.write_text("ffconcat version 1.0\n" + entry * -int(-seconds // MINUTE_S), encoding="utf-8")
    try:
        with (
            av.open(str(listed), format="concat", options={"safe": "0"}) as given,
            av.open(str(path), "w", format="matroska") as container,
        ):
            streams = [container.add_stream_from_template(stream) for stream in given.streams]
            for packet in given.demux():
                if packet.pts is None or packet.pts * packet.time_base >= seconds:
                    continue
                packet.stream = streams[packet.stream.index]
                container.mux(packet)
    finally:
        listed.unlink(missing_ok=True)
