"""Readings of a file by the device and the loader, in numbers that can be compared."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from runtime.messages import Frame, Notice, Sound
from runtime.sources.file import FileSource
from tests.zoo.card import Read, read_card
from vaemotion.contract.audio import SAMPLE_RATE_HZ
from vaemotion.contract.media.files import MediaError
from vaemotion.data.manifest.loader import Media, load_clip

Picture = npt.NDArray[np.uint8]


@dataclass
class Seen:
    """Reading of a file by one decoder."""

    times_s: list[float] = field(default_factory=list)
    ends_s: list[float] = field(default_factory=list)
    cards: list[Read] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)
    size_px: tuple[int, int] | None = None  # of the first picture: width, height
    picture: Picture | None = None  # the first, as it is shown
    samples: npt.NDArray[np.float32] | None = None  # (n,) at 16 kHz; None: no sound
    notices: list[str] = field(default_factory=list)
    error: str = ""
    # Faults of the decoder's own form: blocks out of order, times that do not count samples.
    faults: list[str] = field(default_factory=list)

    def add(self, picture: Picture, turns: int, mirrored: bool) -> None:
        """Add a shown picture, which is a card turned clockwise and then mirrored."""
        if self.picture is None:
            self.picture, self.size_px = picture, (picture.shape[1], picture.shape[0])
        self.hashes.append(hashlib.blake2b(picture.tobytes(), digest_size=8).hexdigest())
        self.cards.append(read_card(upright_card(picture, turns, mirrored)))


def upright_card(picture: Picture, turns: int, mirrored: bool) -> Picture:
    """Undo a mirror image, and then quarter turns clockwise."""
    unmirrored = picture[:, ::-1] if mirrored else picture
    return np.ascontiguousarray(np.rot90(unmirrored, turns))


def by_device(path: Path, turns: int = 0, mirrored: bool = False) -> Seen:
    """Read a file as the device does."""
    seen, blocks, given, newest_s = Seen(), list[npt.NDArray[np.float32]](), 0, -1.0
    try:
        source = FileSource(path)
        for event in source.events():
            if isinstance(event, Notice):
                seen.notices.append(event.text)
                continue
            if event.time_s < newest_s - 1e-6:
                seen.faults.append(
                    f"{type(event).__name__} at {event.time_s:.3f} s comes after {newest_s:.3f} s"
                )
            newest_s = event.time_s
            if isinstance(event, Frame):
                seen.times_s.append(event.time_s)
                seen.ends_s.append(event.end_s)
                seen.add(event.picture(), turns, mirrored)
            elif isinstance(event, Sound):
                given += len(event.samples)
                blocks.append(event.samples)
                if abs(event.time_s - given / SAMPLE_RATE_HZ) > 1e-6:
                    seen.faults.append(
                        f"block ends at {event.time_s:.4f} s, its samples at {given / SAMPLE_RATE_HZ:.4f} s"
                    )
                if not np.isfinite(event.samples).all() or event.samples.dtype != np.float32:
                    seen.faults.append("samples that are not finite float32")
        if source.has_sound:
            seen.samples = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    except MediaError as error:
        seen.error = str(error)
    del seen.faults[3:]
    return seen


def by_loader(path: Path, kind: str, turns: int = 0, mirrored: bool = False) -> Seen:
    """Read a file as training does. kind: "video", "audio" or "image"."""
    seen = Seen()
    try:
        clip = load_clip(Media(**{kind: str(path)}))
    except MediaError as error:
        seen.error = str(error)
        return seen
    seen.times_s = list(clip.frame_times_s)
    for picture in clip.frames:
        seen.add(picture, turns, mirrored)
    seen.samples = clip.samples
    return seen
