"""Quantizer of a GGUF file in F32 or F16, by llama.cpp itself, and reader of the types in the result.

In: a GGUF file and, optionally, an importance matrix (`calibration.importance`): the mean square of each
input channel on real prompts, which weighs the rounding errors. Out: one `.gguf` file that stock llama.cpp
loads.

llama.cpp mixes types (Q4_K_M: Q4_K and Q6_K) and falls back without a message where a row is not divisible by
a type's block of 256 or 32. Therefore types, counts and bytes are read from the file, never assumed.
"""

import ctypes
import errno
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from calibration.importance import read_importance
from runtime.engines.llama import Backend, backend
from vaemotion.contract.files import whole_file

QUANTIZED_TYPES = ("Q5_0", "Q4_K_M")
"""File types that `quantize_gguf` makes."""

# The types of matrices with wide enough rows. llama.cpp chooses Q5_1 for the first ffn_down under an
# importance matrix.
_INTENDED = {
    "F32": {"F32"},
    "F16": {"F16"},
    "Q8_0": {"Q8_0"},
    "Q5_0": {"Q5_0", "Q5_1", "Q6_K"},
    "Q4_K_M": {"Q4_K", "Q6_K"},
}

Weights = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as it lies in a GGUF file."""

    name: str
    type: str
    shape: tuple[int, ...]
    """(out, in), or (n,) of a norm."""
    bytes: int


def quantize_gguf(
    source: Path,
    target: Path,
    file_type: str,
    importance: Path | Mapping[str, Weights] | None = None,
    *,
    threads: int = 2,
) -> dict[str, str]:
    """Quantize the F32 or F16 file `source` and return the type that each GGUF tensor received.

    `file_type` is one of `QUANTIZED_TYPES`. `importance` is a file of `calibration.importance`, or the mean
    square of each input channel, (in,), under the GGUF names of the matrices; every matrix of a block must be
    in it. The result does not depend on `threads`. After any error, `target` is left as it was.

    Raises ValueError, OSError for a full disk, or LanguageModelError without llama.cpp.
    """
    if file_type not in QUANTIZED_TYPES:
        raise ValueError(f"file_type: expected one of {', '.join(QUANTIZED_TYPES)}, got {file_type!r}")
    stored = stored_tensors(source)
    _check_source(source, stored)
    means = _channel_means(importance)
    if means is not None:
        _check_importance(means, stored)
    library = backend()
    with whole_file(target) as partial:
        _run_quantizer(library, source, partial, file_type, means, threads)
        types = {tensor.name: tensor.type for tensor in stored_tensors(partial)}
        if set(types) != {tensor.name for tensor in stored}:
            raise ValueError(
                f"{target.name}: llama.cpp wrote other tensors than {source.name} holds; export it again"
            )
    return types


def stored_tensors(path: Path) -> list[StoredTensor]:
    """List the tensors of a GGUF file, in file order; ValueError for a file that is damaged or cut short."""
    if not path.is_file():
        raise ValueError(f"no GGUF file at {path}; write it first")
    try:
        tensors = gguf.GGUFReader(path).tensors
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise ValueError(
            f"{path.name} is damaged or cut short; look for space on the disk and write it again ({error})"
        ) from error
    return [
        StoredTensor(t.name, t.tensor_type.name, tuple(int(n) for n in reversed(t.shape)), int(t.n_bytes))
        for t in tensors
    ]


def fallbacks(stored: list[StoredTensor], file_type: str) -> dict[str, str]:
    """Find the matrices whose rows do not fit the blocks of `file_type`, with their own type."""
    return {t.name: t.type for t in stored if len(t.shape) > 1 and t.type not in _INTENDED[file_type]}


# -- before ---------------------------------------------------------------------------------------------


def _check_source(source: Path, stored: list[StoredTensor]) -> None:
    for tensor in stored:
        if tensor.type not in ("F32", "F16", "BF16"):
            raise ValueError(
                f"{source.name}: {tensor.name} is {tensor.type} already; quantize an F16 or F32 file, "
                "because rounding twice loses more"
            )


def _channel_means(
    importance: Path | Mapping[str, Weights] | None,
) -> dict[str, npt.NDArray[np.float32]] | None:
    if importance is None:
        return None
    if isinstance(importance, Path):
        return {name: channels.mean_squares for name, channels in read_importance(importance).items()}
    return {name: np.ascontiguousarray(values, np.float32) for name, values in importance.items()}


def _check_importance(means: Mapping[str, npt.NDArray[np.float32]], stored: list[StoredTensor]) -> None:
    """Raise ValueError for a matrix without a usable importance, which llama.cpp would only log."""
    for tensor in stored:
        values = means.get(tensor.name)
        if len(tensor.shape) == 1:
            continue  # norms stay F32
        if values is None:
            if tensor.name.startswith("blk."):
                raise ValueError(
                    f"importance: has nothing for {tensor.name}; collect it from this very model"
                )
            continue  # llama-imatrix leaves out the head, and the embedding table multiplies nothing
        if values.shape != (tensor.shape[-1],):
            raise ValueError(
                f"importance: {tensor.name} has {tensor.shape[-1]} input channels, got an array "
                f"{values.shape}; collect it from this very model"
            )
        if not np.isfinite(values).all() or values.min() < 0:
            raise ValueError(
                f"importance: {tensor.name} has values that are negative or not finite; collect it again"
            )


# -- llama.cpp ------------------------------------------------------------------------------------------


def _run_quantizer(
    library: Backend,
    source: Path,
    target: Path,
    file_type: str,
    means: Mapping[str, npt.NDArray[np.float32]] | None,
    threads: int,
) -> None:
    llama = library.llama
    params: Any = llama.llama_model_quantize_default_params()
    params.ftype = getattr(llama, f"LLAMA_FTYPE_MOSTLY_{file_type}")
    params.nthread = threads
    entries: Any = None
    if means is not None:  # an array that ends with an entry without a name
        entries = (llama.llama_model_imatrix_data * (len(means) + 1))()
        for entry, (name, values) in zip(entries, means.items(), strict=False):
            entry.name = name.encode()
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            entry.size = values.size
        params.imatrix = entries
    library.log.clear()
    if llama.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)):
        if "iostream error" in library.reason():
            raise OSError(
                errno.EIO, "llama.cpp could not write it all; look for space on the disk", str(target)
            )
        raise ValueError(
            f"llama.cpp could not quantize {source.name} to {file_type}, export it again ({library.reason()})"
        )
