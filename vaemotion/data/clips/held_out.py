"""Held-out media that a model is judged on, each with everything that is known of it.

In: a manifest (videos, pictures and sounds alike) or shards, and a split that nothing was trained on. Out:
windows by the number of their medium, and all items about it. A window may be shorter than asked for, and may
lack frames or sound.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.front_end import PATHS, Clip, FrontEnd, reads_frames, reads_sound
from vaemotion.contract.media.medium import Medium
from vaemotion.contract.terminal import Terminal
from vaemotion.contract.windows import EPSILON_S
from vaemotion.data.clips.open import open_clips
from vaemotion.data.clips.source import ClipSource, ClipStream, ClipWindow, DamagedClip, window_start_s
from vaemotion.data.manifest.item import Item, content_sha256
from vaemotion.data.manifest.loader import Media, load_clip
from vaemotion.data.manifest.manifest import read_manifest

HELD_OUT_SPLITS = ("validation", "test")  # the first that has items is judged
MOST_DAMAGED = 0.05  # share of the media; one is always allowed


class HeldOut(Protocol):
    """Media by their number. ``identity``: a hash of everything that the windows and items depend on."""

    name: str  # for logs, without folders
    split: str
    identity: str

    def __len__(self) -> int: ...

    def items(self, index: int) -> tuple[Item, ...]:
        """Return all items about medium ``index``."""
        ...

    def window(self, index: int, seed: int, span_s: float) -> ClipWindow:
        """Decode up to ``span_s`` seconds of medium ``index``; ``seed`` says where in it they lie.

        Raises MediaError for a medium that cannot be decoded, UserError for one that is not the file which
        the manifest describes.
        """
        ...


def open_held_out(
    spec: str, media_root: Path, front_end: FrontEnd, splits: Sequence[str] = HELD_OUT_SPLITS
) -> HeldOut:
    """Open a manifest, whose paths start from ``media_root``, or any other source that can be counted.

    Takes the first of ``splits`` that has items. Raises UsageError where none has, and for a stream;
    ManifestError for an invalid manifest.
    """
    if ".tar" not in spec and not Path(spec).is_dir() and not spec.startswith(("art:", "pipe:")):
        items = read_manifest(Path(spec), media_root)
        for split in splits:
            if chosen := [item for item in items if item.split == split]:
                return ManifestMedia(Path(spec), media_root, split, chosen, front_end.windows.frame_hop_s)
        present = ", ".join(sorted({item.split for item in items}))
        raise UsageError(f"{spec} has no item of split {' or '.join(splits)}; its splits: {present}")
    refused: UsageError | None = None
    for split in splits:
        try:
            source = open_clips(spec, media_root, front_end, split)
        except UsageError as error:
            refused = refused or error
            continue
        if isinstance(source, ClipStream):
            raise UsageError(f"{spec} is a stream; a model is judged on a manifest or on shards in a folder")
        return SourceMedia(source, split)
    raise refused or UsageError(f"{spec} has no clip of split {' or '.join(splits)}")


class ManifestMedia:
    """The media of one split of a manifest, in the manifest's order."""

    def __init__(
        self, manifest: Path, media_root: Path, split: str, items: Sequence[Item], frame_grid_s: float
    ) -> None:
        self.name, self.split = manifest.name, split
        self._media_root, self._frame_grid_s = media_root, frame_grid_s
        by_part: dict[tuple[object, ...], list[Item]] = {}
        for item in items:
            by_part.setdefault((item.video, item.image, item.audio, item.t0, item.t1), []).append(item)
        self._media = [tuple(about) for about in by_part.values()]
        self._checked: set[tuple[str, ...]] = set()
        # Items hold the hashes of their media, which `window` compares with the files.
        described = "\n".join([split, str(frame_grid_s), *(item.to_json() for item in items)])
        self.identity = hashlib.sha256(described.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._media)

    def items(self, index: int) -> tuple[Item, ...]:
        """Return all items about medium ``index``."""
        return self._media[index]

    def window(self, index: int, seed: int, span_s: float) -> ClipWindow:
        """Decode a window of medium ``index``; see `HeldOut`."""
        item = self._media[index][0]
        self._check(item)
        start_s = window_start_s(self._duration_s(item), span_s, seed, index)
        from_s = (item.t0 or 0.0) + start_s
        to_s = min(from_s + span_s + EPSILON_S, math.inf if item.t1 is None else item.t1)
        media = Media(item.video, item.image, item.audio, from_s, to_s)
        clip = load_clip(media, self._media_root, self._frame_grid_s)
        # A clip ends up to one frame before its last frame does.
        now_s = span_s if clip.duration_s >= span_s - self._frame_grid_s else clip.duration_s
        return ClipWindow(item, clip, now_s, start_s)

    def _check(self, item: Item) -> None:
        if item.media in self._checked:
            return
        if content_sha256(self._media_root / path for path in item.media) != item.sha256:
            raise UserError(
                f"{' and '.join(item.media)} is not the file that {self.name} describes (sha256 differs); "
                "build the manifest again"
            )
        self._checked.add(item.media)

    def _duration_s(self, item: Item) -> float:
        """Return the seconds of an item's part of its medium; 0 for a picture alone."""
        path = item.video or item.audio
        if path is None:
            return 0.0
        end_s = item.t1 if item.t1 is not None else Medium(self._media_root / path).declared_end_s
        return max(0.0, (end_s or 0.0) - (item.t0 or 0.0))


class SourceMedia:
    """The clips of a `ClipSource`, one item each."""

    def __init__(self, source: ClipSource, split: str) -> None:
        self.name, self.split, self.identity = source.name, split, f"{split} {source.identity}"
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def items(self, index: int) -> tuple[Item, ...]:
        """Return the item of clip ``index``."""
        return (self._source.item(index),)

    def window(self, index: int, seed: int, span_s: float) -> ClipWindow:
        """Decode a window of clip ``index``; see `HeldOut`."""
        return self._source.window(index, seed, span_s)


def paths_of(clip: Clip) -> tuple[str, ...]:
    """Return the paths that a clip has the media for."""
    return tuple(
        path
        for path in PATHS
        if not (reads_frames(path) and not clip.frames) and not (reads_sound(path) and clip.samples is None)
    )


def report_left_out(left_out: Sequence[DamagedClip], media: int, name: str) -> None:
    """Print the media that could not be decoded. Raises UserError where they are too many of ``media``."""
    if not left_out:
        return
    listed = "; ".join(f"{clip.name}: {clip.reason}" for clip in left_out[:5])
    more = f" and {len(left_out) - 5} more" if len(left_out) > 5 else ""
    text = f"{len(left_out)} of {media} media of {name} cannot be used ({listed}{more})"
    if len(left_out) > max(1, MOST_DAMAGED * media):
        raise UserError(f"{text}; repair them or take them out of the manifest")
    Terminal(stderr=True).print(f"{text}; they are left out", style="yellow")
