"""Rated works for the tests of stage 2, made here: sounds, images and films with labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
import torch
from torch import Tensor

from vaemotion.contract.audio import SAMPLE_RATE_HZ
from vaemotion.contract.emotions import EMOTIONS
from vaemotion.data.manifest.item import Item, content_sha256
from vaemotion.data.manifest.writer import write_clip
from vaemotion.training.rated_sets import RatedSet, WindowTokens, labeled_set
from vaemotion.training.rated_windows import RatedWork

COMMON = {"pairing": "none", "split": "train", "license": "CC0-1.0", "task": "emotion"}


def item(folder: Path, name: str, **values: object) -> Item:
    """Make an item of media in ``folder``; its id, work and creator have one name."""
    media = [folder / str(values[kind]) for kind in ("video", "image", "audio") if kind in values]
    owners = {"work_id": name, "creator_id": name}
    known = {**COMMON, "construct": "expressed", **owners, "sha256": content_sha256(media), **values}
    return Item(id=name, **known)  # type: ignore[arg-type]


def write_sound(path: Path, samples: np.ndarray) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("flac", rate=SAMPLE_RATE_HZ, layout="mono", format="s16")
        frame = av.AudioFrame.from_ndarray(
            (samples * 32767).astype(np.int16)[None], format="s16", layout="mono"
        )
        frame.sample_rate = SAMPLE_RATE_HZ
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_image(path: Path, radius: int = 10) -> None:
    image = np.full((60, 40, 3), 255, np.uint8)
    cv2.circle(image, (20, 30), radius, (0, 0, 0), 2)
    cv2.imwrite(str(path), image)


def write_film(path: Path, seconds: float, *, seed: int = 0, sound: bool = True) -> None:
    """Write a film of 10 frames a second that grows brighter, with a tone that rises."""
    count = round(10 * seconds)
    shades = np.linspace(20, 230, count).astype(np.uint8)
    frames = np.broadcast_to(shades[:, None, None, None], (count, 32, 32, 3)).copy()
    frames[:, 8 : 12 + seed, 8:12] = 255
    time_s = np.arange(round(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    tone = (0.3 * np.sin(2 * np.pi * (100 + 60 * seed + 50 * time_s) * time_s)).astype(np.float32)
    write_clip(path, frames, 10, tone if sound else None)


@dataclass(frozen=True)
class MadeTokens:
    """A `TokenReader` of tokens in memory."""

    tokens: WindowTokens

    def read(self, windows: Sequence[int]) -> WindowTokens:
        chosen = list(windows)
        return WindowTokens(*(getattr(self.tokens, name)[chosen] for name in WindowTokens.__annotations__))


def made_set(
    items: Sequence[Item], paths: tuple[str, ...], views: int = 1, emotions: tuple[str, ...] = EMOTIONS
) -> RatedSet:
    """Make a set with random tokens of the size of ``tests.tiny``: 4 frames of 4 tokens, 5 audio tokens."""
    works = [RatedWork(each) for each in items]
    count, generator = len(items) * views, torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(count, *shape, generator=generator).half().float()

    # a still is the same in every frame
    visual = random(1, 4, 64).expand(-1, 4, -1, -1) if works[0].kind == "still" else random(4, 4, 64)
    ages_s = ((3 - torch.arange(4)) * 0.4).expand(count, -1)
    tokens = WindowTokens(random(5, 64), torch.zeros(count), visual, torch.full((count,), 4), ages_s)
    return labeled_set(works, [[0.0] * views] * len(works), MadeTokens(tokens), emotions, paths)


def bare_item(name: str, **values: object) -> Item:
    """Make an item whose media nobody opens."""
    known = {**COMMON, "construct": "expressed", "work_id": name, "creator_id": name, "sha256": "0" * 64}
    return Item(id=name, **{"source": "s", "modality": "audio-visual", **known, **values})  # type: ignore[arg-type]
