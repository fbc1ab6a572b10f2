"""Store of finished export steps: each is whole under its key, or not there.

In: a key, the files and the notes of a step. Out: the same again, as long as nothing of it was changed.
Files lie under their SHA-256, records under their key. Several processes may use one store at once.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vaemotion.contract.bundle import TensorSpec, sha256_of
from vaemotion.contract.files import whole_file, write_whole


@dataclass(frozen=True)
class MadeFile:
    """A file that a step wrote into its folder. Without a role it is no component of the bundle."""

    name: str
    role: str = ""
    precision: str = "none"
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()


@dataclass(frozen=True)
class StoredFile:
    """A file in the store."""

    made: MadeFile
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Finished:
    """A finished step: its files, and its notes in JSON's types."""

    files: tuple[StoredFile, ...]
    notes: dict[str, Any]


class StepStore:
    """A folder of finished steps.

    ``checkpoint``: hash that marks the steps in use, for `prune`. Without it no step is marked.
    """

    def __init__(self, folder: Path, checkpoint: str = "") -> None:
        self.folder = folder
        self._checkpoint = checkpoint

    @contextmanager
    def locked(self, key: str) -> Iterator[None]:
        """Wait until no other process makes this step. A killed process frees its lock."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{key}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def find(self, key: str) -> Finished | None:
        """Return a finished step, or None where it is missing, damaged or edited."""
        try:
            stored = json.loads(self._record(key).read_text())
            finished = _finished(stored["step"])
            if stored["sha256"] != _digest(key, stored["step"]):
                return None
            if any(sha256_of(self.path(file.sha256)) != file.sha256 for file in finished.files):
                return None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if self._checkpoint and stored["checkpoint"] != self._checkpoint:
            self._write(key, stored["name"], stored["step"])
        return finished

    def keep(
        self, key: str, name: str, folder: Path, files: Sequence[MadeFile], notes: dict[str, Any]
    ) -> Finished:
        """Move the files of a step into the store, then write its record. Raises WriteError.

        ``name`` is for people who look into the store.
        """
        entries: list[dict[str, Any]] = []
        for made in files:
            path = folder / made.name
            entries.append({**asdict(made), "sha256": sha256_of(path), "bytes": path.stat().st_size})
            with whole_file(self.path(entries[-1]["sha256"])) as temporary:
                shutil.move(path, temporary)
        step = json.loads(json.dumps({"files": entries, "notes": notes}))
        self._write(key, name, step)
        return _finished(step)

    def forget(self, key: str) -> None:
        """Remove the record of a step, so that it runs again."""
        self._record(key).unlink(missing_ok=True)

    def path(self, sha256: str) -> Path:
        """Return the place of a file by its hash."""
        return self.folder / "files" / sha256

    def size(self) -> int:
        """Sum the bytes of all files."""
        return sum(path.stat().st_size for path in self.folder.glob("files/*"))

    def prune(self) -> None:
        """Remove the steps of other checkpoints, and the files that no step has any more."""
        used: set[str] = set()
        for record in self._ours(".", ".json"):
            try:
                stored = json.loads(record.read_text())
                in_use = stored["checkpoint"] == self._checkpoint
                hashes = [file["sha256"] for file in stored["step"]["files"]]
            except (ValueError, KeyError, TypeError):
                in_use, hashes = False, []
            if in_use:
                used.update(hashes)
            else:
                record.unlink()
        for path in (*self._ours("files", ""), *self._ours(".", ".lock")):
            if path.name not in used:
                path.unlink()

    def _ours(self, folder: str, suffix: str) -> list[Path]:
        """List the files that a store has written: each is named by a hash."""
        found = (self.folder / folder).glob(f"*{suffix}")
        name = re.compile(rf"[0-9a-f]{{64}}{re.escape(suffix)}")
        return [path for path in found if name.fullmatch(path.name) and path.is_file()]

    def _record(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def _write(self, key: str, name: str, step: dict[str, Any]) -> None:
        sha256 = _digest(key, step)
        record = {"name": name, "checkpoint": self._checkpoint, "sha256": sha256, "step": step}
        write_whole(self._record(key), json.dumps(record, indent=1) + "\n")


def link(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system has no links."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _finished(step: dict[str, Any]) -> Finished:
    files: list[StoredFile] = []
    for entry in step["files"]:
        inputs, outputs = (
            tuple(TensorSpec(s["name"], tuple(s["shape"]), s["dtype"]) for s in entry[side])
            for side in ("inputs", "outputs")
        )
        made = MadeFile(entry["name"], entry["role"], entry["precision"], inputs, outputs)
        files.append(StoredFile(made, entry["sha256"], entry["bytes"]))
    return Finished(tuple(files), step["notes"])


def _digest(key: str, step: dict[str, Any]) -> str:
    """Hash a record with its key, so that an edited or renamed one is noticed."""
    return hashlib.sha256(json.dumps([key, step], sort_keys=True).encode()).hexdigest()
