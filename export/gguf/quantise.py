"""Quantizer of a GGUF file in F32 or F16, by llama.cpp itself, and reader of the types in the result.

In: a GGUF file; a file type, or a plan with the type of each matrix (`export.gguf.search`); and, optionally,
an importance matrix (`calibration.importance`): the mean square of each input channel on real prompts, which
weighs the rounding errors. Out: one `.gguf` file that stock llama.cpp loads.

For a file type llama.cpp mixes types (Q4_K_M: Q4_K and Q6_K) and falls back without a message where a row is
not divisible by a type's block of 256 or 32. Therefore types, counts and bytes are read from the file, never
assumed.
"""

import ctypes
import errno
import re
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from calibration.importance import read_importance
from runtime.engines.llama import Backend, backend
from vaemotion.contract.files import whole_file

QUANTIZED_TYPES = ("Q6_K", "Q5_K_M", "Q5_1", "Q5_0", "Q4_K_M", "Q4_1", "IQ4_NL", "Q4_0")
"""File types that `quantize_gguf` makes, beside Q8_0; the largest first."""

_FLOATS = ("F32", "F16", "BF16")

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

    `file_type` is Q8_0 or one of `QUANTIZED_TYPES`. `importance` is a file of `calibration.importance`, or
    the mean square of each input channel, (in,), under the GGUF names of the matrices; every matrix of a
    block must be in it. The result does not depend on `threads`. After any error, `target` is left as it was.

    Raises ValueError, OSError for a full disk, or LanguageModelError without llama.cpp.
    """
    if file_type not in ("Q8_0", *QUANTIZED_TYPES):
        raise ValueError(
            f"file_type: expected one of {', '.join(('Q8_0', *QUANTIZED_TYPES))}, got {file_type!r}"
        )
    return _quantize(source, target, file_type, {}, importance, threads)


def quantize_by_plan(
    source: Path,
    target: Path,
    plan: Mapping[str, str],
    importance: Path | Mapping[str, Weights] | None = None,
    *,
    threads: int = 2,
) -> dict[str, str]:
    """Quantize the F32 or F16 file `source` with the type that `plan` names for each matrix.

    `plan`: GGUF tensor names to types such as Q5_0, Q4_K or F16; it names every tensor with two dimensions,
    and only types whose blocks divide its rows. The rest, return value and errors as of `quantize_gguf`.
    """
    matrices = {tensor.name: tensor for tensor in stored_tensors(source) if len(tensor.shape) > 1}
    if plan.keys() != matrices.keys():
        name = min(plan.keys() ^ matrices.keys())
        raise ValueError(f"plan: {name} is in only one of plan and {source.name}; name each matrix once")
    for name, kind in plan.items():
        if not fits(kind, width := matrices[name].shape[-1]):
            raise ValueError(f"plan: blocks of {kind} do not divide rows of {width} ({name})")
    types = _quantize(source, target, _recorded_type(plan, matrices), plan, importance, threads)
    assert all(types[name] == kind for name, kind in plan.items()), "llama.cpp takes each override"
    return types


def fits(kind: str, width: int) -> bool:
    """Return True where rows of `width` divide into the blocks of a tensor type such as Q4_K."""
    block, _ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return width % block == 0


def matrix_bytes(kind: str, shape: tuple[int, ...]) -> int:
    """Compute the bytes of a matrix (out, in) in a tensor type that fits it."""
    block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return int(np.prod(shape)) // block * block_bytes


def round_trip(
    values: npt.NDArray[np.float32],
    kind: str,
    mean_squares: npt.NDArray[np.float32] | None = None,
    *,
    threads: int = 2,
) -> npt.NDArray[np.float32]:
    """Round a matrix (out, in) to a type as `quantize_gguf` does, and return what the file then holds.

    `mean_squares` (in,) weighs the rounding errors. The rows must fit the type's blocks.
    """
    backend()  # raises with what to install where llama_cpp is missing
    from llama_cpp._ggml import libggml  # pyright: ignore[reportMissingImports]

    pointer, count = ctypes.c_void_p, ctypes.c_int64
    function = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_int, pointer, pointer, count, count, count, pointer)
    quantize = function(("ggml_quantize_chunk", libggml))
    number = gguf.GGMLQuantizationType[kind]
    weights = None if mean_squares is None else np.ascontiguousarray(mean_squares, np.float32)

    def rounded(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        rows = np.ascontiguousarray(rows, np.float32)
        stored = np.empty((len(rows), matrix_bytes(kind, (rows.shape[1],))), np.uint8)
        used = weights.ctypes.data if weights is not None else None
        quantize(int(number), rows.ctypes.data, stored.ctypes.data, 0, *rows.shape, used)
        return gguf.quants.dequantize(stored, number)

    with ThreadPoolExecutor(threads) as pool:
        parts = [part for part in np.array_split(values, threads) if len(part)]
        return np.concatenate(list(pool.map(rounded, parts)))


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
    """Find the matrices whose rows do not fit the type that llama.cpp wanted, with the type they got.

    A matrix of another type than the file's own either fell back, or llama.cpp gave it more bits: in a K type
    with blocks of 256, or Q5_1 for Q5_0 in the first `ffn_down` under an importance matrix.
    """
    own = file_type.removesuffix("_M")
    chosen = (own, own.replace("_0", "_1"))
    return {
        t.name: t.type
        for t in stored
        if len(t.shape) > 1 and t.type not in chosen and not t.type.endswith("_K")
    }


def channel_means(
    importance: Path | Mapping[str, Weights] | None,
) -> dict[str, npt.NDArray[np.float32]] | None:
    """Return the mean squares (in,) of each matrix, of a file or of arrays; None for none."""
    if importance is None:
        return None
    if isinstance(importance, Path):
        return {name: channels.mean_squares for name, channels in read_importance(importance).items()}
    return {name: np.ascontiguousarray(values, np.float32) for name, values in importance.items()}


# -- before ---------------------------------------------------------------------------------------------


def _check_source(source: Path, stored: list[StoredTensor]) -> None:
    for tensor in stored:
        if tensor.type not in _FLOATS:
            raise ValueError(
                f"{source.name}: {tensor.name} is {tensor.type} already; quantize an F16 or F32 file, "
                "because rounding twice loses more"
            )


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


def _quantize(
    source: Path,
    target: Path,
    file_type: str,
    plan: Mapping[str, str],
    importance: Path | Mapping[str, Weights] | None,
    threads: int,
) -> dict[str, str]:
    stored = stored_tensors(source)
    _check_source(source, stored)
    means = channel_means(importance)
    if means is not None:
        _check_importance(means, stored)
    library = backend()
    params: Any = library.llama.llama_model_quantize_default_params()
    params.ftype = getattr(library.llama, f"LLAMA_FTYPE_MOSTLY_{file_type}")
    params.nthread = threads
    if plan:
        params.tt_overrides = _overrides(library.llama, plan)
    if means is not None:
        params.imatrix = _entries(library.llama, means)
    with whole_file(target) as partial:
        _run_quantizer(library, source, partial, params)
        types = {tensor.name: tensor.type for tensor in stored_tensors(partial)}
        if set(types) != {tensor.name for tensor in stored}:
            raise ValueError(
                f"{target.name}: llama.cpp wrote other tensors than {source.name} holds; export it again"
            )
    return types


def _recorded_type(plan: Mapping[str, str], matrices: Mapping[str, StoredTensor]) -> str:
    """Return the file type that a planned file records: that of most of its bytes."""
    sizes: Counter[str] = Counter({"Q8_0": 0})  # where nothing is quantized
    for name, kind in plan.items():
        if kind not in _FLOATS:
            sizes[kind] += matrix_bytes(kind, matrices[name].shape)
    kind = max(sizes, key=sizes.__getitem__)
    return f"{kind}_M" if f"{kind}_M" in QUANTIZED_TYPES else kind


def _overrides(llama: Any, plan: Mapping[str, str]) -> Any:
    """Make the array of name patterns with types that llama.cpp takes; an entry without a name ends it."""
    overrides = (llama.llama_model_tensor_override * (len(plan) + 1))()
    for override, (name, kind) in zip(overrides, plan.items(), strict=False):
        override.pattern = f"^{re.escape(name)}$".encode()
        override.type = int(gguf.GGMLQuantizationType[kind])
    return overrides


def _entries(llama: Any, means: Mapping[str, npt.NDArray[np.float32]]) -> Any:
    """Make the array of channel importances that llama.cpp takes; an entry without a name ends it."""
    entries = (llama.llama_model_imatrix_data * (len(means) + 1))()
    for entry, (name, values) in zip(entries, means.items(), strict=False):
        entry.name = name.encode()
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = values.size
    return entries


def _run_quantizer(library: Backend, source: Path, target: Path, params: Any) -> None:
    library.log.clear()
    if library.llama.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)):
        if "iostream error" in library.reason():
            raise OSError(
                errno.EIO, "llama.cpp could not write it all; look for space on the disk", str(target)
            )
        raise ValueError(f"llama.cpp could not quantize {source.name}, export it again ({library.reason()})")
