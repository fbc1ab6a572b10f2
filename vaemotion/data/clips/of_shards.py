"""Clips of WebDataset shards: local tar files by their number, or a stream through a pipe.

In: a folder or a pattern of ``.tar`` files, or a command that writes tar files. Out: a `ClipSource` whose
clip i is the same for any number of processes, or a `ClipStream` without that promise. Members are decoded
where they lie; nothing is unpacked.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import braceexpand
import numpy as np

from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.media.files import FilePart, MediaError
from vaemotion.contract.media.medium import Medium
from vaemotion.contract.windows import EPSILON_S
from vaemotion.contract.words import counted
from vaemotion.data.clips.of_manifest import whole_window
from vaemotion.data.clips.shard_index import open_index, say
from vaemotion.data.clips.shard_sample import TEXTS, UNKNOWN_LICENSE, Sample, sample_of
from vaemotion.data.clips.source import ClipWindow, DamagedClip, window_start_s
from vaemotion.data.manifest.item import Item
from vaemotion.data.manifest.loader import Media, load_clip


class ShardClips:
    """A `ClipSource` of one split's samples in local shards."""

    procedural = False

    def __init__(
        self,
        shards: list[Path],
        split: str,
        frame_grid_s: float | None = None,
        cache_folder: Path | None = None,
    ) -> None:
        """Index the shards, or read their index where it is stored already.

        ``frame_grid_s``: frames between the points of this grid are not kept. ``cache_folder``: where the
        index lies, see `open_index`. Raises UserError for a shard that is missing or no tar file, UsageError
        for shards without clips of the split.
        """
        self.frame_grid_s = frame_grid_s
        self.index = open_index(shards, cache_folder)
        self.name = shards[0].name if len(shards) == 1 else f"{len(shards)} shards of {shards[0].parent.name}"
        self._numbers = self.index.of_split(split).astype(np.uint32)
        self.identity = f"{self.index.identity} {split} {frame_grid_s}"
        if not len(self._numbers):
            raise UsageError(
                f"{self.name} hold no clip of split {split!r}; shards of other makers are of split 'train', "
                "those of `vaemotion data shard` of the splits of their manifest"
            )
        if self.item(0).license == UNKNOWN_LICENSE:
            say(
                f"{self.name}: no license, split and content hash in the samples; they are taken as split "
                f"train with license {UNKNOWN_LICENSE}"
            )

    @classmethod
    def open(
        cls, spec: str, split: str, frame_grid_s: float | None = None, cache_folder: Path | None = None
    ) -> ShardClips:
        """Open a folder of ``.tar`` files, or a pattern of them such as ``shards/train-{000..009}.tar``.

        Raises UsageError for a folder or a pattern without shards, and as the constructor does.
        """
        folder = Path(spec).expanduser()
        if folder.is_dir():
            shards = sorted(path for path in folder.rglob("*.tar") if path.is_file())
        else:
            shards = _matching(str(folder))
        if not shards:
            raise UsageError(f"no .tar files at {spec}; give their folder, or a pattern like DIR/*.tar")
        return cls(shards, split, frame_grid_s, cache_folder)

    def __len__(self) -> int:
        return len(self._numbers)

    def item(self, index: int) -> Item:
        """Read the item of clip ``index``."""
        return self._sample(index)[0].item

    def window(self, index: int, seed: int, span_s: float) -> ClipWindow:
        """Decode a window of clip ``index``; see `ClipSource`."""
        sample, parts = self._sample(index)
        return _window(sample, parts, index, seed, span_s, self.frame_grid_s)

    def _sample(self, index: int) -> tuple[Sample, dict[str, FilePart]]:
        members = self.index.members(int(self._numbers[index]))
        source = self.index.shards[members.shard].parent.name
        try:
            return sample_of(members.key, list(members.parts), members.texts(), source), members.parts
        except (ValueError, OSError):
            shard = self.index.shards[members.shard]
            raise UserError(f"{shard} was changed or cannot be read; start again") from None


def _matching(pattern: str) -> list[Path]:
    """Return the files of a pattern with braces and wildcards; a brace names files that must exist."""
    if Path(pattern).is_file():
        return [Path(pattern)]
    names = _expanded(pattern)
    found = [
        [name] if glob.escape(name) == name else sorted(glob.glob(name, recursive=True)) for name in names
    ]
    return [Path(name) for names in found for name in names]


def _expanded(text: str) -> list[str]:
    """Return what a text with braces stands for, as in a shell. Raises UsageError for unbalanced braces."""
    try:
        return list(braceexpand.braceexpand(text, escape=False))
    except ValueError:
        raise UsageError(f"unbalanced braces in {text!r}") from None


def _window(
    sample: Sample, parts: dict[str, FilePart], index: int, seed: int, span_s: float, grid_s: float | None
) -> ClipWindow:
    """Decode the window of a sample that ``seed`` and ``index`` name."""
    item = sample.item
    video, image, audio = (
        None if name is None else parts[name] for name in (sample.video, sample.image, sample.audio)
    )
    begin_s, end_s = item.t0 or 0.0, item.t1
    timed = audio if image is not None else video
    if end_s is None and timed is not None:
        end_s = Medium(timed).declared_end_s
    start_s = begin_s + window_start_s((end_s or 0.0) - begin_s, span_s, seed, index)
    media = Media(video, image, audio, start_s, start_s + span_s + EPSILON_S)
    clip = load_clip(media, frame_grid_s=grid_s)
    return ClipWindow(item, whole_window(clip, span_s), span_s, start_s - begin_s)


class PipedClips:
    """A `ClipStream` of what commands write to their standard output, by webdataset's own reader.

    Braces make several commands that run one after the other, as in ``curl -s URL/{000..009}.tar``.
    """

    def __init__(self, command: str, frame_grid_s: float | None = None) -> None:
        """``frame_grid_s``: frames between the points of this grid are not kept."""
        self.command, self.frame_grid_s = command, frame_grid_s
        # A command may hold a password: its program alone is named.
        words = [word for word in command.split() if "=" not in word]
        self.name = f"pipe:{words[0] if words else ''}"
        self.identity = f"pipe {hashlib.sha256(command.encode()).hexdigest()} {frame_grid_s}"
        if not words:
            raise UsageError("pipe: takes a command that writes a tar file, such as pipe:cat shard.tar")

    def windows(self, seed: int, span_s: float) -> Iterator[ClipWindow | DamagedClip]:
        """Run the commands and decode one window of each sample; see `ClipStream`.

        Raises UserError for a command that fails, and for more than one tar file from one command.
        """
        say(
            f"{self.name}: a stream; clips come in the order of the pipe, each once, and a run that is taken "
            "up again reads it from its start"
        )
        number = 0
        for command in _expanded(self.command):
            for sample in _piped_samples(command, self.name):
                damaged = isinstance(sample, DamagedClip)
                yield sample if damaged else self._window(sample, number, seed, span_s)
                number += 1

    def _window(
        self, found: dict[str, Any], number: int, seed: int, span_s: float
    ) -> ClipWindow | DamagedClip:
        key = found["__key__"]
        members: dict[str, bytes] = {name: data for name, data in found.items() if not name.startswith("__")}
        texts = {name: data for name, data in members.items() if name in TEXTS}
        try:
            sample = sample_of(key, list(members), texts, self.name)
            with contextlib.ExitStack() as stack:
                parts = {
                    name: stack.enter_context(_in_memory(members[name], f"{key}.{name}"))
                    for name in (sample.video, sample.image, sample.audio)
                    if name is not None
                }
                return _window(sample, parts, number, seed, span_s, self.frame_grid_s)
        except (ValueError, MediaError) as error:
            return DamagedClip(key, str(error))


def _piped_samples(command: str, name: str) -> Iterator[dict[str, Any] | DamagedClip]:
    """Yield the samples of one command, each as bytes by the names of its members, and what is damaged."""
    from webdataset.gopen import gopen
    from webdataset.tariterators import group_by_keys, tar_file_expander

    faults: list[Exception] = []

    def keep(error: Exception) -> bool:
        faults.append(error)
        return True  # read on

    stream: Any = gopen(f"pipe:{command}", "rb")
    count = 0
    try:
        files = tar_file_expander([{"url": name, "stream": stream}], handler=keep)
        for sample in group_by_keys(files, handler=keep):
            yield sample
            count += 1
        more = _holds_more(stream.stream)
    except GeneratorExit:
        stream.proc.kill()
        raise
    finally:
        stream.stream.close()
        code = stream.proc.wait()
    if code:
        raise UserError(
            f"the command of {name} ended with exit code {code} after {counted(count, 'sample')}; run "
            "it by itself to see why"
        )
    if more:
        raise UserError(
            f"the command of {name} writes several tar files, of which only the first can be read; make one "
            "command of each, with braces as in cat shard-{000..009}.tar"
        )
    for fault in dict.fromkeys(_reason(fault) for fault in faults):
        yield DamagedClip(f"{name} behind sample {count}", fault)


def _reason(fault: Exception) -> str:
    """Return what a reader found, without the command that webdataset adds to it."""
    return str(fault.args[0] if fault.args else fault).partition(" @ ")[0]


def _holds_more(stream: Any) -> bool:
    """Read a stream to its end, so that its command can end; return True for data behind the tar file."""
    more = False
    while block := stream.read(1 << 20):
        more = more or any(block)
    return more


@contextmanager
def _in_memory(data: bytes, name: str) -> Generator[FilePart]:
    """Yield a file in memory that holds ``data``; a temporary file where the system has none."""
    if hasattr(os, "memfd_create"):
        with os.fdopen(os.memfd_create("clip"), "wb") as file:
            file.write(data)
            file.flush()
            yield FilePart(Path(f"/proc/self/fd/{file.fileno()}"), 0, len(data), name)
    else:
        with tempfile.NamedTemporaryFile() as file:
            file.write(data)
            file.flush()
            yield FilePart(Path(file.name), 0, len(data), name)
