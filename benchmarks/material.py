"""Material for the benchmarks: a bundle of ``vaemotion-tiny`` and procedural clips.

In: the suite's working folder, and a clip's length, rate and size. Out: paths in the folder. Existing clips
are used again.
"""

from __future__ import annotations

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
from vaemotion.contract.files import whole_file
from vaemotion.data.art.art import Work, draw_frame, synthesize, works_of_all_contents

CHECKPOINT = Path("models/vaemotion-tiny")
WORK_S, MINUTE_S = 5, 60  # a minute shows twelve works; longer clips repeat it
DRAWN_SIDE_PX = 320  # resized to the clip's size: drawing at full size takes longer and adds no detail
X264 = {"preset": "veryfast", "crf": "23", "bf": "0"}  # without B-frames, as cameras encode
SOUND_RATE_HZ = 48_000  # as in cameras and films; the runtime resamples it

RgbImage = npt.NDArray[np.uint8]  # (height, width, 3)


def tiny_bundle(folder: Path) -> Path:
    """Export ``vaemotion-tiny`` as a bundle (about 90 s); an up-to-date bundle is used again."""
    bundle = folder / "bundle"
    command = [sys.executable, "-m", "vaemotion", "export", str(CHECKPOINT), "--out", str(bundle)]
    subprocess.run(command, check=True)
    return bundle


def clip(folder: Path, seconds: float, fps: int = 30, width: int = 854, height: int = 480) -> Path:
    """Write a clip of works one after the other: H.264 and FLAC (mono, 48 kHz) in Matroska.

    A minute at most is drawn and encoded; a longer clip repeats its packets.
    """
    path = folder / f"clip-{seconds:g}s-{fps}fps-{width}x{height}.mkv"
    if path.is_file():
        return path
    with whole_file(path) as temporary:
        if seconds > MINUTE_S:
            _repeat(clip(folder, MINUTE_S, fps, width, height), temporary, seconds)
        else:
            _encode(temporary, seconds, fps, width, height)
    return path


def works() -> list[Work]:
    """Return the works of a clip, each of another class."""
    return works_of_all_contents("test", MINUTE_S // WORK_S)


def draw_frames(work: Work, n: int, fps: float, width: int, height: int) -> Iterator[RgbImage]:
    """Draw the first ``n`` frames of a work, (height, width, 3) uint8 RGB each."""
    for k in range(n):
        yield np.asarray(cv2.resize(draw_frame(work, k / fps, DRAWN_SIDE_PX), (width, height)), np.uint8)


def _encode(path: Path, seconds: float, fps: int, width: int, height: int) -> None:
    """Encode each work's frames, then its sound; the last work is cut off at ``seconds``."""
    with av.open(str(path), "w", format="matroska") as container:
        video = container.add_stream("libx264", rate=fps, options=X264)
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"  # pyright: ignore
        audio: Any = container.add_stream("flac", rate=SOUND_RATE_HZ, layout="mono", format="s16")
        for number, work in enumerate(works()):
            length_s = min(WORK_S, seconds - number * WORK_S)
            if length_s <= 0:
                break
            for image in draw_frames(work, round(length_s * fps), fps, width, height):
                container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))  # pyright: ignore
            container.mux(audio.encode(_sound(work, length_s, number * WORK_S)))
        container.mux(video.encode(None))  # pyright: ignore
        container.mux(audio.encode(None))


def _sound(work: Work, length_s: float, begin_s: int) -> av.AudioFrame:
    resampled = soxr.resample(synthesize(work, length_s), SAMPLE_RATE_HZ, SOUND_RATE_HZ)  # pyright: ignore
    integers = np.round(np.clip(resampled, -1, 1) * 32767).astype(np.int16)
    frame = av.AudioFrame.from_ndarray(integers[None], format="s16", layout="mono")
    frame.sample_rate, frame.pts = SOUND_RATE_HZ, begin_s * SOUND_RATE_HZ
    return frame


def _repeat(minute: Path, path: Path, seconds: float) -> None:
    """Repeat the packets of ``minute`` until ``seconds``; FFmpeg's concat demuxer shifts their timestamps."""
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
