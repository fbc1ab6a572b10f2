"""What a soak's camera and microphone see and hear: recordings, or a film that is made up.

In: files, or a seed. Out: a ``Recording``, decoded and shrunk once, so that a moment of the soak costs nothing but a look at it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from runtime.messages import Frame, Picture, Sound
from runtime.sources import FileSource
from vaemotion.contract.audio import SAMPLE_RATE_HZ
from vaemotion.contract.image import squash
from vaemotion.contract.media import MediaError

PICTURES_HZ = 10.0  # of a recording and of the camera
LONGEST_S = 120.0  # of all recordings together; they are kept in memory
LARGEST_PX = 160  # a picture's side in memory
SCENE_S = 5.0  # of the film that is made up


@dataclass(frozen=True)
class Recording:
    """``pictures`` (n, side, side, 3) uint8 RGB, ``PICTURES_HZ`` a second; ``samples`` (m,) float32 at 16 kHz. Both go round and round."""

    pictures: npt.NDArray[np.uint8]
    samples: npt.NDArray[np.float32]


def record_files(files: Sequence[Path], side_px: int) -> Recording:
    """Files one after the other, the beginning of each where they are long. Raises MediaError unless there are pictures and a second of
    sound."""
    pictures: list[Picture] = []
    samples: list[npt.NDArray[np.float32]] = []
    for file in files:
        next_s = 0.0
        for event in FileSource(file).events():
            if event.time_s > LONGEST_S / len(files):
                break
            if isinstance(event, Sound):
                samples.append(event.samples)
            elif isinstance(event, Frame) and event.time_s >= next_s - 1e-3:
                next_s += 1 / PICTURES_HZ
                pictures.append(squash(event.picture(), min(side_px, LARGEST_PX)))
    heard = sum(len(block) for block in samples) >= SAMPLE_RATE_HZ
    if not pictures or not heard:
        missing = "are no pictures" if not pictures else "is less than a second of sound"
        raise MediaError(
            f"--media: there {missing} in {', '.join(map(str, files))}: add a file that has some"
        )
    return Recording(np.stack(pictures), np.concatenate(samples))


def make_recording(side_px: int, seed: int, duration_s: float = 60.0) -> Recording:
    """A film for those who have none at hand: scenes with moving discs and bars on changing grounds, tones, noise and quiet."""
    chance, side_px = np.random.default_rng(seed), min(side_px, LARGEST_PX)
    per_scene = round(SCENE_S * PICTURES_HZ)
    pictures: list[Picture] = []
    sounds: list[npt.NDArray[np.float32]] = []
    for _ in range(round(duration_s / SCENE_S)):
        ground, ink = chance.integers(0, 256, (2, 3)).tolist()
        start, speed = chance.uniform(0, side_px, 2), chance.uniform(-0.08, 0.08, 2) * side_px
        radius_px = int(chance.uniform(0.08, 0.3) * side_px)
        for k in range(per_scene):
            picture = np.full((side_px, side_px, 3), ground, np.uint8)
            x, y = ((start + k * speed) % side_px).astype(int).tolist()
            cv2.circle(picture, (x, y), radius_px, ink, -1, cv2.LINE_AA)
            cv2.rectangle(picture, (0, y), (side_px, y + radius_px // 3), ink, -1)
            pictures.append(np.asarray(picture, np.uint8))
        time_s = np.arange(round(SCENE_S * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
        tone = np.sin(2 * np.pi * chance.uniform(80, 2000) * time_s) * (
            1 + np.sin(2 * np.pi * chance.uniform(0.5, 8) * time_s)
        )
        noise = chance.standard_normal(len(time_s)) * (time_s % chance.uniform(0.3, 2) < 0.1)
        loudness = 10 ** chance.uniform(-3, -0.6, 2)
        room = 1e-4 * chance.standard_normal(len(time_s))
        sounds.append(
            (np.clip(loudness[0] * tone / 2 + loudness[1] * noise / 3, -1, 1) + room).astype(np.float32)
        )
    return Recording(np.stack(pictures), np.concatenate(sounds))
