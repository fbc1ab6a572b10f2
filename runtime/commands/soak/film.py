"""The video and sound that a soak's simulated devices deliver: from files, or generated from a seed.

In: files, or a seed. Out: a ``Recording``, decoded and scaled down once, so that a tick of the soak only
reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from runtime.messages import Frame, Picture, Sound
from runtime.sources.file import FileSource
from vaemotion.contract.audio import SAMPLE_RATE_HZ
from vaemotion.contract.image import squash
from vaemotion.contract.media.files import MediaError

FRAMES_PER_S = 10.0  # of a recording and of the camera
LONGEST_S = 120.0  # of all recordings together: they are held in memory
LARGEST_PX = 160  # a frame's side in memory
SCENE_S = 5.0  # of the generated film


@dataclass(frozen=True)
class Recording:
    """Frames and sound that the simulated devices repeat without end."""

    frames: npt.NDArray[np.uint8]  # (n, side, side, 3) RGB, ``FRAMES_PER_S``
    samples: npt.NDArray[np.float32]  # (m,) at 16 kHz


def read_recording(files: Sequence[Path], side_px: int) -> Recording:
    """Read files one after the other, of long ones the beginning.

    Raises MediaError unless they hold frames and at least a second of sound.
    """
    frames: list[Picture] = []
    samples: list[npt.NDArray[np.float32]] = []
    for file in files:
        next_s = 0.0
        for event in FileSource(file).events():
            if event.time_s > LONGEST_S / len(files):
                break
            if isinstance(event, Sound):
                samples.append(event.samples)
            elif isinstance(event, Frame) and event.time_s >= next_s - 1e-3:
                next_s += 1 / FRAMES_PER_S
                frames.append(squash(event.picture(), min(side_px, LARGEST_PX)))
    if not frames or sum(len(block) for block in samples) < SAMPLE_RATE_HZ:
        missing = "no video frames" if not frames else "less than a second of sound"
        raise MediaError(f"--media: {missing} in {', '.join(map(str, files))}; add a file that has some")
    return Recording(np.stack(frames), np.concatenate(samples))


def make_recording(side_px: int, seed: int, duration_s: float = 60.0) -> Recording:
    """Generate a recording: scenes of moving discs and bars on changing grounds; tones, noise, silence."""
    random, side_px = np.random.default_rng(seed), min(side_px, LARGEST_PX)
    frames: list[Picture] = []
    sounds: list[npt.NDArray[np.float32]] = []
    for _ in range(round(duration_s / SCENE_S)):
        frames += _scene_frames(side_px, random)
        sounds.append(_scene_sound(random))
    return Recording(np.stack(frames), np.concatenate(sounds))


def _scene_frames(side_px: int, random: np.random.Generator) -> list[Picture]:
    """Draw one scene: (side, side, 3) uint8 each, a disc and a bar that move across a plain ground."""
    ground, ink = random.integers(0, 256, (2, 3)).tolist()
    start, speed = random.uniform(0, side_px, 2), random.uniform(-0.08, 0.08, 2) * side_px
    radius_px = int(random.uniform(0.08, 0.3) * side_px)
    frames: list[Picture] = []
    for k in range(round(SCENE_S * FRAMES_PER_S)):
        frame = np.full((side_px, side_px, 3), ground, np.uint8)
        x, y = ((start + k * speed) % side_px).astype(int).tolist()
        cv2.circle(frame, (x, y), radius_px, ink, -1, cv2.LINE_AA)
        cv2.rectangle(frame, (0, y), (side_px, y + radius_px // 3), ink, -1)
        frames.append(np.asarray(frame, np.uint8))
    return frames


def _scene_sound(random: np.random.Generator) -> npt.NDArray[np.float32]:
    """Synthesize one scene's sound (n,): a modulated tone, bursts of noise, and a quiet noise floor."""
    time_s = np.arange(round(SCENE_S * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    tone = np.sin(2 * np.pi * random.uniform(80, 2000) * time_s)
    tone = tone * (1 + np.sin(2 * np.pi * random.uniform(0.5, 8) * time_s))
    noise = random.standard_normal(len(time_s)) * (time_s % random.uniform(0.3, 2) < 0.1)
    loudness = 10 ** random.uniform(-3, -0.6, 2)
    floor = 1e-4 * random.standard_normal(len(time_s))
    mixed = np.clip(loudness[0] * tone / 2 + loudness[1] * noise / 3, -1, 1) + floor
    return mixed.astype(np.float32)
