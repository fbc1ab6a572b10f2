"""Folder in which a bundle is made, step by step.

In: the bundle's final name, and steps with everything that they read. Out: the files of the bundle, and the
notes of each step. ``NAME.partial`` holds the bundle until it is complete. Finished steps stay in the store
``NAME.steps`` beside it, each under a key of its own: the next export makes only the steps whose key changed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from export.errors import ExportError
from export.step_key import step_key
from export.step_store import Finished, MadeFile, StepStore, link
from vaemotion.contract.bundle import MANIFEST_FILE, Component, sha256_of

STEPS_VARIABLE = "VAEMOTION_EXPORT_STEPS"
"""Environment variable: one store of steps for all exports, instead of ``NAME.steps`` for each."""

Made = tuple[list[MadeFile], dict[str, Any]]
_OLD_JOURNAL = "journal.json"  # of versions before 0.2
_WORKING = "working"
_OURS = {"components", MANIFEST_FILE, _WORKING, _OLD_JOURNAL, "importance.gguf"}


@dataclass(frozen=True)
class Step:
    """One step of an export, and everything that its result depends on.

    ``make`` writes files into an empty folder and returns them with its notes, in JSON's types. The module
    that defines ``make`` counts for the key, and so do the modules in ``code`` with all that they import.
    ``reads``: values, in JSON's types. ``files``: names of files that earlier steps made.
    """

    name: str
    make: Callable[[Path], Made]
    code: tuple[str, ...]
    reads: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = ()


def onnx_name(role: str, precision: str) -> str:
    """Name the file of an engine."""
    return f"{role}.{precision}.onnx"


def gguf_name(file_type: str) -> str:
    """Name the file of a language model."""
    return f"language_model.{file_type}.gguf"


class ExportFolder:
    """The unfinished bundle, with the ``components`` of the steps so far and their ``notes`` by step name.

    ``license``: SPDX expression of every component. ``checkpoint``: hash of the checkpoint's config.
    """

    def __init__(self, final: Path, license: str, checkpoint: str, console: Console) -> None:
        self.folder = final.with_name(final.name + ".partial")
        self.console = console
        self.components: list[Component] = []
        self.notes: dict[str, dict[str, Any]] = {}
        self._license = license
        shared = os.environ.get(STEPS_VARIABLE)
        self._is_shared = bool(shared)
        own = final.with_name(final.name + ".steps")
        self.store = StepStore(Path(shared)) if shared else StepStore(own, checkpoint)
        self._keys: dict[str, str] = {}  # by step name
        self._sha256: dict[str, str] = {}  # by file name
        self._clear()
        self.directory.mkdir(parents=True)

    @property
    def directory(self) -> Path:
        """The folder of the components, and of files that only later steps read."""
        return self.folder / "components"

    def file(self, name: str) -> Path:
        """Return the path of a file that a step made."""
        return self.directory / name

    def step(self, step: Step) -> dict[str, Any]:
        """Make a step or find it made. Returns its notes."""
        assert step.name not in self.notes, f"two steps are called {step.name}"
        files = {name: self._sha256[name] for name in step.files}
        key = step_key(step.name, step.code, step.make.__module__, step.reads, files)
        found = self.store.find(key)
        if found is None:
            with self.store.locked(key):
                found = self.store.find(key)  # another process may have made it
                if found is None:
                    return self._add(step.name, key, self._make(step, key))
        self.console.print(f"  {step.name}: made before", style="dim", highlight=False)
        return self._add(step.name, key, found)

    def forget(self, name: str) -> None:
        """Let a step run again in the next export."""
        self.store.forget(self._keys[name])

    def finish(self) -> None:
        """Remove from the folder what is not listed as a component, and steps of other checkpoints."""
        listed = {self.folder / component.path for component in self.components}
        for path in self.directory.iterdir():
            if path not in listed:
                path.unlink()
        if not self._is_shared:
            self.store.prune()

    def _make(self, step: Step, key: str) -> Finished:
        for name in step.files:
            if sha256_of(self.file(name)) != self._sha256[name]:
                raise ExportError(
                    f"{self.file(name)} was changed while the export ran; run the same command again"
                )
        working = Path(tempfile.mkdtemp(prefix=_WORKING, dir=self.folder))
        try:
            with self.console.status(step.name):
                files, notes = step.make(working)
            finished = self.store.keep(key, step.name, working, files, notes)
        finally:
            shutil.rmtree(working, ignore_errors=True)
        size = sum(file.bytes for file in finished.files)
        self.console.print(f"  {step.name}" + (f": {size / 1e6:.1f} MB" if size else ""), highlight=False)
        return finished

    def _add(self, name: str, key: str, finished: Finished) -> dict[str, Any]:
        for file in finished.files:
            made = file.made
            link(self.store.path(file.sha256), self.file(made.name))
            self._sha256[made.name] = file.sha256
            if made.role:
                path = f"{self.directory.name}/{made.name}"
                self.components.append(
                    Component(
                        made.role,
                        made.precision,
                        path,
                        file.sha256,
                        file.bytes,
                        self._license,
                        made.inputs,
                        made.outputs,
                    )
                )
        self._keys[name] = key
        self.notes[name] = finished.notes
        return finished.notes

    def _clear(self) -> None:
        """Remove what an earlier, unfinished export left under the same name. Its steps are in the store."""
        if not self.folder.exists():
            return
        left = {path.name for path in self.folder.iterdir()}
        if alien := sorted(n for n in left - _OURS if not n.startswith(_WORKING) and not n.endswith(".tmp")):
            raise ExportError(
                f"{self.folder} holds {alien[0]}, which no unfinished export has; move the folder away"
            )
        if _OLD_JOURNAL in left:
            self.console.print(
                f"{self.folder.name} is of an older version; its steps are made again", highlight=False
            )
        shutil.rmtree(self.folder)
