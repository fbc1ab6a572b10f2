"""Reading of single files of weights: JSON beside them, and safetensors one tensor at a time.

In: a path. Out: its content, or a UsageError that says what is wrong with the file and how to get a good one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from vaemotion.contract.errors import UsageError

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises UsageError for a file that is missing, unreadable or holds another thing."""
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        refuse_lfs_pointer(path)
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{path} cannot be read ({reason}); copy the folder again") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path} holds no JSON object; copy the folder again")
    return values


def tensors_in(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """List a file's tensors as name → (dtype in the words of safetensors, shape); no data is read.

    Raises UsageError for a file that was not fetched, is cut off or is no safetensors file.
    """
    try:
        with safe_open(path, "pt") as file:
            slices = ((name, file.get_slice(name)) for name in file.keys())  # noqa: SIM118 - no dictionary
            return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices}
    except (SafetensorError, OSError) as error:
        refuse_lfs_pointer(path)
        raise UsageError(f"{path} is damaged or incomplete ({error}); copy it again") from error


def read_tensor(path: Path, name: str) -> np.ndarray:
    """Read a tensor as a float32 array of its own. Raises UsageError for a file that cannot be read."""
    try:
        # NumPy has no bfloat16, and a mapped file would count as memory for as long as it is open.
        with safe_open(path, "pt", backend="pread") as file:
            return file.get_tensor(name).float().numpy()
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path} cannot be read ({error}); copy it again") from error


def refuse_lfs_pointer(path: Path) -> None:
    """Raise UsageError when the file is the text that Git LFS leaves in its place."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_LFS_POINTER))
    except OSError:
        return
    if start == _LFS_POINTER:
        raise UsageError(
            f"{path} is a Git LFS pointer, not the file itself; run `git lfs pull` in {path.parent}"
        )
