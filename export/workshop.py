"""Folder in which a bundle is made, step by step.

In: the bundle's final name, and steps with everything that they read. Out: the files of the bundle, and the
notes of each step. A hidden folder beside it holds the bundle until it is complete. Finished steps stay in
the store ``NAME.steps``, each under a key of its own: the next export makes only the steps whose key changed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from export.errors import ExportError
from export.step_key import step_key
from export.step_store import Finished, MadeFile, StepStore, link
from runtime.machine.facts import peak_memory_bytes, reset_peak_memory
from vaemotion.contract.bundle import Component, sha256_of
from vaemotion.contract.files import followed, is_own_name, locked_folder, own_name
from vaemotion.contract.onnx_weights import DATA_SUFFIX, data_file
from vaemotion.contract.terminal import Terminal

STEPS_VARIABLE = "VAEMOTION_EXPORT_STEPS"
"""Environment variable: one store of steps for all exports, instead of ``NAME.steps`` for each."""

Made = tuple[list[MadeFile], dict[str, Any]]
_UNFINISHED = ".export"  # how the hidden folder's name ends


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


def _data_of(files: Sequence[MadeFile], folder: Path) -> list[MadeFile]:
    """List the files with weights of the graphs among ``files``, which `save_graph` writes beside them."""
    beside = [data_file(folder / made.name) for made in files]
    return [MadeFile(file.name) for file in beside if file.is_file()]


def gguf_name(file_type: str) -> str:
    """Name the file of a language model."""
    return f"language_model.{file_type}.gguf"


class ExportFolder:
    """The unfinished bundle, with the ``components`` of the steps so far and their ``notes`` by step name.

    ``license``: SPDX expression of every component. ``checkpoint``: hash of the checkpoint's config. As a
    context, it leaves nothing but the store. What a killed export left is removed by the next one.
    """

    def __init__(self, final: Path, license: str, checkpoint: str, console: Terminal) -> None:
        final = followed(final)
        self.folder = own_name(final, _UNFINISHED)
        self.console = console
        self.components: list[Component] = []
        self.notes: dict[str, dict[str, Any]] = {}
        self.peak_bytes = 0  # of this process's memory, so far
        self._license = license
        shared = os.environ.get(STEPS_VARIABLE)
        self._is_shared = bool(shared)
        own = final.with_name(final.name + ".steps")
        self.store = StepStore(Path(shared)) if shared else StepStore(own, checkpoint)
        self._keys: dict[str, str] = {}  # by step name
        self._sha256: dict[str, str] = {}  # by file name
        self._remove_abandoned(final)
        self.directory.mkdir(parents=True)
        self._lock = locked_folder(self.folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the folder, unless it was published."""
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)

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
        self.console.print(f"  {step.name}: made before", style="dim")
        return self._add(step.name, key, found)

    def forget(self, name: str) -> None:
        """Let a step run again in the next export."""
        self.store.forget(self._keys[name])

    def finish(self) -> None:
        """Remove from the folder what is not listed as a component, and steps of other checkpoints."""
        listed = {self.folder / name for component in self.components for name in component.files}
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
        working = Path(tempfile.mkdtemp(prefix="working", dir=self.folder))
        began = time.monotonic()
        self.peak_bytes = max(self.peak_bytes, peak_memory_bytes())
        reset_peak_memory()
        try:
            with self.console.status(step.name):
                files, notes = step.make(working)
            finished = self.store.keep(key, step.name, working, [*files, *_data_of(files, working)], notes)
        finally:
            shutil.rmtree(working, ignore_errors=True)
        size = sum(file.bytes for file in finished.files)
        made = f"{size / 1e6:.1f} MB, " if size else ""
        peak_bytes = peak_memory_bytes()
        self.peak_bytes = max(self.peak_bytes, peak_bytes)
        took = f"{time.monotonic() - began:.0f} s, peak memory {peak_bytes / 1e9:.2f} GB"
        self.console.print(f"  {step.name}: {made}{took}")
        return finished

    def _add(self, name: str, key: str, finished: Finished) -> dict[str, Any]:
        data = {file.made.name: file for file in finished.files if file.made.name.endswith(DATA_SUFFIX)}
        for file in finished.files:
            made, outside = file.made, data.get(file.made.name + DATA_SUFFIX)
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
                        file.bytes + (outside.bytes if outside else 0),
                        self._license,
                        made.inputs,
                        made.outputs,
                        data_sha256=outside.sha256 if outside else "",
                        data_bytes=outside.bytes if outside else 0,
                    )
                )
        self._keys[name] = key
        self.notes[name] = finished.notes
        return finished.notes

    def _remove_abandoned(self, final: Path) -> None:
        """Remove the folders of killed exports to the same name: no process holds their lock."""
        for path in final.parent.iterdir() if final.parent.is_dir() else ():
            if is_own_name(path, final, _UNFINISHED):
                with contextlib.suppress(OSError):  # BlockingIOError: that export still runs
                    lock = locked_folder(path)
                    shutil.rmtree(path, ignore_errors=True)
                    os.close(lock)
