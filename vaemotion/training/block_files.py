"""Block files: numbered safetensors in a folder, each written once, whole or not at all."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

from safetensors import safe_open

_MOST_OPEN = 256


def block_file(folder: Path, number: int) -> Path:
    """Return the file of a block."""
    return folder / f"block-{number:06d}.safetensors"


class OpenBlocks:
    """The block files of a folder, of which those that were read last are held open."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: OrderedDict[int, Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """Return what a worker process needs: no open files."""
        return {"folder": self.folder, "_open": OrderedDict()}

    def __getitem__(self, number: int) -> Any:
        """Return a block, opened by safetensors."""
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        self._open[number] = safe_open(block_file(self.folder, number), framework="pt").__enter__()
        if len(self._open) > _MOST_OPEN:
            self._open.popitem(last=False)[1].__exit__(None, None, None)
        return self._open[number]
