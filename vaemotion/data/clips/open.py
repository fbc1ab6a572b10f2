"""Clips by the names that configurations and commands give them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from vaemotion.contract.errors import UsageError
from vaemotion.contract.front_end import FrontEnd
from vaemotion.data.clips.of_art import ArtClips
from vaemotion.data.clips.of_manifest import ManifestClips
from vaemotion.data.clips.of_shards import PipedClips, ShardClips
from vaemotion.data.clips.source import ClipSource, ClipStream, ClipWindow
from vaemotion.data.manifest.item import Item

_ART = re.compile(r"art:(\d+)")


def open_clips(
    spec: str, media_root: Path, front_end: FrontEnd, split: str = "train"
) -> ClipSource | ClipStream:
    """Open a source by its name.

    ``art:N`` is N procedural works of the split; ``pipe:COMMAND`` a stream of WebDataset samples; a folder
    or a pattern of ``.tar`` files WebDataset shards; anything else a data manifest, whose paths start from
    ``media_root``. Raises UsageError for a source without clips of the split.
    """
    if spec.startswith("art:"):
        art = _ART.fullmatch(spec)
        if art is None or not int(art[1]):
            raise UsageError(f"art:N takes a number of works, at least 1, for example art:6000; got {spec!r}")
        return ArtClips(int(art[1]), split, front_end.windows)
    if spec.startswith("pipe:"):
        return PipedClips(spec.removeprefix("pipe:"), front_end.windows.frame_hop_s)
    if Path(spec).expanduser().is_dir() or ".tar" in spec:
        return ShardClips.open(spec, split, front_end.windows.frame_hop_s)
    return ManifestClips(Path(spec).expanduser(), media_root, split, front_end.windows.frame_hop_s)


def open_all(
    specs: Sequence[str], media_root: Path, front_end: FrontEnd, split: str = "train"
) -> ClipSource | ClipStream:
    """Open several sources as one, in this order.

    Raises UsageError for none, and for a stream among others.
    """
    if not specs:
        raise UsageError("no clips; name manifests, shards or art:N")
    sources = [open_clips(spec, media_root, front_end, split) for spec in specs]
    if len(sources) == 1:
        return sources[0]
    counted: list[ClipSource] = []
    for spec, source in zip(specs, sources, strict=True):
        if not hasattr(source, "window"):
            raise UsageError(f"{spec} is a stream, which can only be a training's sole source of clips")
        counted.append(source)  # pyright: ignore[reportArgumentType]
    return JoinedClips(counted)


class JoinedClips:
    """A `ClipSource` of several, one after the other."""

    def __init__(self, sources: Sequence[ClipSource]) -> None:
        self.sources = sources
        self.name = ", ".join(source.name for source in sources)
        self.identity = " and ".join(source.identity for source in sources)
        self.procedural = all(source.procedural for source in sources)

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources)

    def _place(self, index: int) -> tuple[ClipSource, int]:
        for source in self.sources:
            if index < len(source):
                return source, index
            index -= len(source)
        raise IndexError(index)

    def item(self, index: int) -> Item:
        """Return the item of clip ``index``."""
        source, index = self._place(index)
        return source.item(index)

    def window(self, index: int, seed: int, span_s: float) -> ClipWindow:
        """Decode a window of clip ``index``; see `ClipSource`."""
        source, index = self._place(index)
        return source.window(index, seed, span_s)
