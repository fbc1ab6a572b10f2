"""The folder in which a bundle is made, with a journal: what is finished is not made again.

In: the bundle's final name and everything that its content depends on. Out: components, made once each. The folder ``NAME.partial``
survives a kill, a full disk and an error; the next call with the same source and options goes on in it, any other starts anew.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from vaemotion.contract.bundle import Component, TensorSpec, sha256_of

JOURNAL = "journal.json"
Made = tuple[list[Component], dict[str, Any]]


class Workshop:
    """``components`` and ``notes`` (what a step found out besides) of the steps done so far. ``licence``: SPDX, of every component."""

    def __init__(self, final: Path, identity: dict[str, Any], licence: str, console: Console) -> None:
        self.folder = final.with_name(final.name + ".partial")
        self.licence = licence
        self.console = console
        self.components: list[Component] = []
        self.notes: dict[str, dict[str, Any]] = {}
        self._journal: dict[str, Any] = {"identity": json.loads(json.dumps(identity)), "steps": {}}
        if (self.folder / JOURNAL).is_file():
            kept = json.loads((self.folder / JOURNAL).read_text())
            if kept["identity"] == self._journal["identity"]:
                self._journal = kept
                console.print(f"going on in {self.folder.name}", highlight=False)
            else:
                shutil.rmtree(self.folder)
        self.directory.mkdir(parents=True, exist_ok=True)

    @property
    def directory(self) -> Path:
        return self.folder / "components"

    def component(
        self, role: str, precision: str, path: Path, inputs: tuple[TensorSpec, ...] = (), outputs: tuple[TensorSpec, ...] = ()
    ) -> Component:  # fmt: skip
        """The record of a file that lies in the folder."""
        relative = path.relative_to(self.folder).as_posix()
        return Component(
            role, precision, relative, sha256_of(path), path.stat().st_size, self.licence, inputs, outputs
        )

    def step(self, name: str, make: Callable[[], Made]) -> dict[str, Any]:
        """Make something, or find it made; returns the step's notes."""
        done = self._done(name)
        if done is None:
            with self.console.status(name):
                done = make()
            entry = {"components": [asdict(c) for c in done[0]], "notes": done[1]}
            self._journal["steps"][name] = json.loads(json.dumps(entry))
            self._save()
            size = sum(c.bytes for c in done[0])
            self.console.print(f"  {name}" + (f": {size / 1e6:.1f} MB" if size else ""), highlight=False)
        else:
            self.console.print(f"  {name}: made before", style="dim", highlight=False)
        self.components += done[0]
        self.notes[name] = self._journal["steps"][name]["notes"]
        return self.notes[name]

    def _done(self, name: str) -> Made | None:
        """What a finished step made, if every file of it is whole."""
        entry = self._journal["steps"].get(name)
        if entry is None:
            return None
        components = [_component(values) for values in entry["components"]]
        for component in components:
            path = self.folder / component.path
            if not path.is_file() or sha256_of(path) != component.sha256:
                return None
        return components, entry["notes"]

    def _save(self) -> None:
        temporary = self.folder / (JOURNAL + ".tmp")
        temporary.write_text(json.dumps(self._journal, indent=1))
        os.replace(temporary, self.folder / JOURNAL)

    def finish(self) -> None:
        """Remove what does not belong into a bundle."""
        (self.folder / JOURNAL).unlink(missing_ok=True)
        listed = {self.folder / component.path for component in self.components}
        for path in self.directory.iterdir():
            if path not in listed:
                path.unlink()


def _component(values: dict[str, Any]) -> Component:
    specs = {
        side: tuple(TensorSpec(s["name"], tuple(s["shape"]), s["dtype"]) for s in values[side])
        for side in ("inputs", "outputs")
    }
    return Component(**{**values, **specs})
