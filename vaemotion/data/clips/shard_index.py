"""Index of WebDataset shards: where each sample's members lie in which tar file.

In: local ``.tar`` files. Out: for sample i, parts of files that the decoder reads where they are; nothing is
ever unpacked. Building it reads the headers and the small text members, never the media. It is stored once
(about 60 bytes a sample and the length of its key) and read from the disk as needed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tarfile
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vaemotion.contract.errors import UserError
from vaemotion.contract.files import WriteError, whole_file
from vaemotion.contract.media.files import FilePart
from vaemotion.contract.plain_text import plain
from vaemotion.contract.terminal import Terminal
from vaemotion.contract.words import counted
from vaemotion.data.clips.shard_sample import TEXTS, key_and_suffix, sample_of
from vaemotion.data.manifest.item import SPLITS

VERSION = 1
# A description that is longer is taken for a medium's own data, and not read.
MOST_TEXT_BYTES = 16 << 20
_EXAMPLES = 3  # of samples that are left out, in a message


@dataclass(frozen=True)
class Members:
    """One sample: its key, its shard's number, and its members by the part of their names behind the key."""

    key: str
    shard: int
    parts: dict[str, FilePart]

    def texts(self) -> dict[str, bytes]:
        """Read the small members that describe the sample."""
        return {name: _read(part) for name, part in self.parts.items() if name in TEXTS}


class ShardIndex:
    """The stored index of some shards. Instances are small, and can be sent to worker processes."""

    def __init__(self, file: Path, shards: Sequence[Path]) -> None:
        self.file, self.shards = file, tuple(shards)
        self._opened: Any = None
        metadata = self._open().metadata()
        self._suffixes: list[str] = json.loads(metadata["suffixes"])
        self.identity: str = metadata["identity"]

    def __getstate__(self) -> dict[str, object]:
        """Return what a worker process needs: not the open file."""
        return {**self.__dict__, "_opened": None}

    def _open(self) -> Any:
        if self._opened is None:
            self._opened = safe_open(self.file, framework="np").__enter__()
        return self._opened

    def _values(self, name: str, first: int, last: int) -> npt.NDArray[Any]:
        return self._open().get_slice(name)[first:last]

    def of_split(self, split: str) -> npt.NDArray[np.int64]:
        """Return the numbers of a split's samples, (n,), in the order of the shards."""
        return np.flatnonzero(self._open().get_tensor("split") == SPLITS.index(split))

    def members(self, number: int) -> Members:
        """Look up the members of a sample."""
        first, last = self._values("first_member", number, number + 2).tolist()
        key_begin, key_end = self._values("key_begin", number, number + 2).tolist()
        key = os.fsdecode(self._values("keys", key_begin, key_end).tobytes())
        shard = int(self._values("shard", number, number + 1)[0])
        offsets, sizes, suffixes = (
            self._values(name, first, last).tolist() for name in ("offset", "size", "suffix")
        )
        parts: dict[str, FilePart] = {}
        for offset, size, suffix in zip(offsets, sizes, suffixes, strict=True):
            name = self._suffixes[suffix]
            parts[name] = FilePart(self.shards[shard], offset, size, f"{key}.{name}")
        return Members(key, shard, parts)


def open_index(shards: Sequence[Path], cache_folder: Path | None = None) -> ShardIndex:
    """Open the index of shards; build and store it where it is missing or the shards have changed.

    It lies in ``cache_folder``, by default beside the first shard, or where that folder is read-only in the
    user's cache. Raises UserError for a shard that is missing or no tar file.
    """
    state = _state(shards)
    name = hashlib.sha256(json.dumps([path.name for path in shards]).encode()).hexdigest()[:16]
    folder = cache_folder or (shards[0].parent if os.access(shards[0].parent, os.W_OK) else _user_cache())
    file = folder / f".vaemotion-shards-{name}.safetensors"
    with contextlib.suppress(FileNotFoundError, SafetensorError):
        with safe_open(file, framework="np") as stored:
            fresh = (stored.metadata() or {}).get("state") == state
        if fresh:
            return ShardIndex(file, shards)
    _Builder(shards).build(file, state)
    return ShardIndex(file, shards)


def _state(shards: Sequence[Path]) -> str:
    """Return a hash of the shards' names, sizes and times of change."""
    try:
        status = [path.stat() for path in shards]
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from None
    known = [(path.name, s.st_size, s.st_mtime_ns) for path, s in zip(shards, status, strict=True)]
    return hashlib.sha256(json.dumps([VERSION, known]).encode()).hexdigest()


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vaemotion" / "shards"


@dataclass
class _Builder:
    """Knowledge of the samples so far, in flat arrays."""

    shards: Sequence[Path]
    first_member: array[int] = field(default_factory=lambda: array("q", [0]))
    key_begin: array[int] = field(default_factory=lambda: array("q", [0]))
    shard: array[int] = field(default_factory=lambda: array("i"))
    split: array[int] = field(default_factory=lambda: array("B"))
    offset: array[int] = field(default_factory=lambda: array("q"))
    size: array[int] = field(default_factory=lambda: array("q"))
    suffix: array[int] = field(default_factory=lambda: array("i"))
    keys: bytearray = field(default_factory=bytearray)
    suffixes: dict[str, int] = field(default_factory=dict[str, int])
    left_out: list[str] = field(default_factory=list[str])
    n_left_out: int = 0

    def build(self, file: Path, state: str) -> None:
        """Read all shards and store the index."""
        for number in track(
            range(len(self.shards)), "indexing shards", console=Terminal(stderr=True), transient=True
        ):
            shard = self.shards[number]
            for key, parts in _samples(shard):
                try:
                    sample = Members(key, number, parts)
                    split = sample_of(key, list(parts), sample.texts(), shard.parent.name).item.split
                except ValueError as error:
                    self.n_left_out += 1
                    if len(self.left_out) < _EXAMPLES:
                        self.left_out.append(f"{key} in {shard.name}: {error}")
                else:
                    self._add(sample, split)
        if self.left_out:
            say(f"{counted(self.n_left_out, 'sample')} left out, such as {'; '.join(self.left_out)}")
        self._store(file, state)

    def _add(self, sample: Members, split: str) -> None:
        for name, part in sample.parts.items():
            self.offset.append(part.start_bytes)
            self.size.append(part.size_bytes)
            self.suffix.append(self.suffixes.setdefault(name, len(self.suffixes)))
        self.first_member.append(len(self.offset))
        self.keys += os.fsencode(sample.key)
        self.key_begin.append(len(self.keys))
        self.shard.append(sample.shard)
        self.split.append(SPLITS.index(split))

    def _store(self, file: Path, state: str) -> None:
        arrays: dict[str, npt.NDArray[Any]] = {
            name: np.array(getattr(self, name))
            for name in ("first_member", "key_begin", "shard", "split", "offset", "size", "suffix")
        }
        arrays["keys"] = np.frombuffer(bytes(self.keys), np.uint8)
        digest = hashlib.sha256(json.dumps([[path.name for path in self.shards], self.suffixes]).encode())
        for values in arrays.values():
            digest.update(values.tobytes())
        metadata = {
            "state": state,
            "identity": digest.hexdigest(),
            "suffixes": json.dumps(list(self.suffixes)),
        }
        try:
            with whole_file(file) as temporary:
                save_file(arrays, temporary, metadata)
        except WriteError as error:
            raise UserError(f"the shards' index cannot be stored: {error}") from None


def _samples(shard: Path) -> Iterator[tuple[str, dict[str, FilePart]]]:
    """Yield key and members of each sample of a shard; members of one key stand one after the other."""
    current: str | None = None
    parts: dict[str, FilePart] = {}
    for name, offset, size in _members(shard):
        split_name = key_and_suffix(name)
        if split_name is None:
            continue
        key, suffix = split_name
        if key != current:
            if current is not None:
                yield current, parts
            current, parts = key, {}
        parts.setdefault(suffix, FilePart(shard, offset, size, name))
    if current is not None:
        yield current, parts


def _members(shard: Path) -> Iterator[tuple[str, int, int]]:
    """Yield name, offset and size of each file in a tar; of a damaged one what precedes the damage."""
    held, newest = shard.stat().st_size, "its start"
    try:
        with tarfile.open(shard, "r:", errors="surrogateescape") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep all headers
                if member.offset_data + member.size > held:
                    break
                newest = member.name
                if member.isreg() and not member.issparse():
                    yield member.name, member.offset_data, member.size
            whole = _ends_at(shard, tar.offset)  # type: ignore[attr-defined]
    except tarfile.ReadError as error:
        if newest == "its start":
            raise UserError(
                f"{shard} is not an uncompressed tar file: {error}; unpack a compressed one first"
            ) from None
        whole = False
    except OSError as error:
        raise UserError(f"{shard} cannot be read: {error.strerror}") from None
    if not whole:
        say(f"{shard} is truncated or damaged behind {newest}: what follows is left out")


def _ends_at(shard: Path, offset: int) -> bool:
    """Return True where a block of zeros, the end mark of a tar file, stands."""
    with shard.open("rb") as file:
        file.seek(offset)
        block = file.read(tarfile.BLOCKSIZE)
    return len(block) == tarfile.BLOCKSIZE and not any(block)


def _read(part: FilePart) -> bytes:
    if part.size_bytes > MOST_TEXT_BYTES:
        raise ValueError(f"its member {part.name} has {part.size_bytes} bytes")
    with part.path.open("rb") as file:
        file.seek(part.start_bytes)
        return file.read(part.size_bytes)


def say(text: str) -> None:
    """Print one line about the shards to standard error."""
    Terminal(stderr=True).print(plain(text), style="yellow", soft_wrap=True)
