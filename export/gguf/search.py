"""Search for the type of each matrix of a GGUF file: the smallest file within a loss, or the best in a size.

In: a GGUF file in F32 or F16, an importance matrix (`calibration.importance`), and a judge that measures the
divergence of any file from it. Out: plans with a type for each matrix, measured, beside llama.cpp's own file
types; and the one that holds the limit.

The divergence is nearly linear in the squared rounding error of each matrix (Malinovskii et al. 2024,
"Pushing the Limits of Large Language Model Quantization via the Linearity Theorem"). It is measured once for
each group of matrices, rounded alone. With the importance-weighted errors of the types it foretells the loss
of any plan (`export.gguf.plans`). The loss that decides is measured on the whole file.
"""

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from export.gguf.plans import Choice, Plan, plans_by_loss
from export.gguf.quality import KlReport
from export.gguf.quantise import (
    QUANTIZED_TYPES,
    StoredTensor,
    Weights,
    channel_means,
    fits,
    matrix_bytes,
    quantize_by_plan,
    quantize_gguf,
    round_trip,
    stored_tensors,
)

FILE_TYPES = ("Q8_0", *QUANTIZED_TYPES)
"""llama.cpp's own mixtures, which are measured beside the plans."""
TENSOR_TYPES = ("Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "IQ4_NL", "Q4_0")
"""Types that a plan may give to a matrix, beside its float type."""
MIXED = "mixed"

_SAMPLED_ROWS = 512  # of each matrix, for the errors of its types
_TRIES = 4  # plans that are measured until one comes close to the largest loss
_CLOSE = 0.9  # share of the largest loss that is close
_AROUND = (0.5, 2.0)  # of the largest loss: what more and fewer bytes would give
_AROUND_BYTES = (0.9, 1.1)
_LARGEST_F16 = 65504.0
_ALIGNMENT_BYTES = 32  # of each tensor in a GGUF file

Judge = Callable[[Path], KlReport]
Matrix = npt.NDArray[np.float32]
Means = Mapping[str, Matrix]


@dataclass(frozen=True)
class Search:
    """The limit of a search: the best file in `max_bytes`, or where it is None the smallest in the loss."""

    max_kl_nats: float = 0.02
    """Largest mean divergence of a token."""
    max_bytes: int | None = None
    without: tuple[str, ...] = ()
    """Types such as IQ4_NL that are not used, neither in plans nor as file types."""


@dataclass(frozen=True)
class Candidate:
    """A file that was made and measured."""

    name: str
    """llama.cpp's name of the file type, or `MIXED`."""
    plan: Mapping[str, str]
    """The type of each matrix; `quantize_by_plan` makes the file again."""
    bytes: int
    quality: KlReport


@dataclass(frozen=True)
class SearchResult:
    """All candidates, the smallest file first, and the one that holds the limit."""

    candidates: tuple[Candidate, ...]
    chosen: Candidate

    def front(self) -> list[Candidate]:
        """List the candidates with less loss than every smaller file: the Pareto front."""
        least, found = float("inf"), list[Candidate]()
        for candidate in self.candidates:
            if candidate.quality.mean_kl_nats < least:
                least = candidate.quality.mean_kl_nats
                found.append(candidate)
        return found


def search_types(
    search: Search,
    source: Path,
    importance: Path | Mapping[str, Weights] | None,
    judge: Judge,
    *,
    probe: Judge | None = None,
    say: Callable[[str], None] = lambda _: None,
    threads: int = 2,
) -> SearchResult:
    """Measure llama.cpp's file types and mixed plans of the F32 or F16 file `source`.

    `judge` measures the loss of a file. `probe` measures that of single groups, on other material, so that
    plans are not made on what judges them; the judge, where it is absent. `say` is told what is being done.
    Work files, up to twice the size of `source`, lie beside it until the end. Raises ValueError where no file
    holds the limit.
    """
    matrices = [tensor for tensor in stored_tensors(source) if len(tensor.shape) > 1]
    means = channel_means(importance) or {}
    candidates: list[Candidate] = []
    with tempfile.TemporaryDirectory(prefix=f".{source.name}.", dir=source.parent) as work:
        made = Path(work) / "made.gguf"

        def measure(name: str, plan: Mapping[str, str]) -> Candidate:
            candidates.append(Candidate(name, plan, made.stat().st_size, judge(made)))
            return candidates[-1]

        for file_type in FILE_TYPES:
            if file_type.removesuffix("_M") not in search.without:
                say(f"measuring {file_type}")
                written = quantize_gguf(source, made, file_type, importance, threads=threads)
                measure(file_type, {tensor.name: written[tensor.name] for tensor in matrices})
        say("rounding errors of the types")
        kinds = [kind for kind in TENSOR_TYPES if kind not in search.without]
        errors = _errors(source, matrices, kinds, means, threads)
        say("sensitivity of the groups of matrices")
        factors = _sensitivities(source, Path(work), errors, means, probe or judge, threads)
        plans = plans_by_loss(_choices(matrices, errors, factors))

        def measure_mixed(plan: Plan) -> Candidate:
            say(f"measuring a mixed plan, {plan.bytes / 1e6:.1f} MB of matrices")
            quantize_by_plan(source, made, plan.types, importance, threads=threads)
            return measure(MIXED, plan.types)

        if search.max_bytes is None:
            _approach_loss(plans, search.max_kl_nats, measure_mixed)
        else:
            # Norms and metadata, and the padding behind each tensor.
            others = source.stat().st_size - sum(tensor.bytes for tensor in matrices)
            room = search.max_bytes - others - _ALIGNMENT_BYTES * (len(matrices) + 1)
            within = [next((p for p in plans if p.bytes <= room * s), None) for s in (1.0, *_AROUND_BYTES)]
            for plan in {id(plan): plan for plan in within if plan is not None}.values():
                measure_mixed(plan)
    ordered = tuple(sorted(candidates, key=lambda c: (c.bytes, c.quality.mean_kl_nats)))
    return SearchResult(ordered, _chosen(ordered, search))


def _chosen(candidates: Sequence[Candidate], search: Search) -> Candidate:
    """Return the best candidate in the size, or the smallest in the loss."""
    if search.max_bytes is not None:
        if held := [c for c in candidates if c.bytes <= search.max_bytes]:
            return min(held, key=lambda c: c.quality.mean_kl_nats)
        raise ValueError(
            f"no file of {search.max_bytes / 1e6:.2f} MB; the smallest has {candidates[0].bytes / 1e6:.2f} MB"
        )
    if held := [c for c in candidates if c.quality.mean_kl_nats <= search.max_kl_nats]:
        return held[0]
    best = min(candidates, key=lambda c: c.quality.mean_kl_nats)
    raise ValueError(
        f"no file loses at most {search.max_kl_nats:g} nats a token; the best, {best.name} of "
        f"{best.bytes / 1e6:.1f} MB, loses {best.quality.mean_kl_nats:.2g}"
    )


def _approach_loss(plans: Sequence[Plan], limit: float, measure: Callable[[Plan], Candidate]) -> None:
    """Measure plans until one is close below the limit, and two around it."""
    scale, measured = 1.0, set[int]()  # the measured loss for each foretold one

    def nearest(loss: float) -> int:
        return max(i for i, plan in enumerate(plans) if plan.kl_nats * scale <= loss or i == 0)

    for _ in range(_TRIES):
        index = nearest(limit * _CLOSE**0.5)
        if index in measured:
            break
        measured.add(index)
        found = measure(plans[index]).quality.mean_kl_nats
        if plans[index].kl_nats > 0:
            scale = found / plans[index].kl_nats
        if _CLOSE * limit <= found <= limit:
            break
    for share in _AROUND:
        if (index := nearest(limit * share)) not in measured:
            measured.add(index)
            measure(plans[index])


# -- what the types cost --------------------------------------------------------------------------------


Errors = Mapping[str, Mapping[str, float]]


def _errors(
    source: Path, matrices: Sequence[StoredTensor], kinds: Sequence[str], means: Means, threads: int
) -> dict[str, dict[str, float]]:
    """Sum the importance-weighted squared errors of each matrix in each type that fits its rows.

    The type without loss, F16 or else the matrix's own, has the error 0.
    """
    found: dict[str, dict[str, float]] = {}
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(source).tensors}
    for matrix in matrices:
        values = gguf.quants.dequantize(stored[matrix.name].data, stored[matrix.name].tensor_type)
        is_f16 = np.abs(values).max() <= _LARGEST_F16
        weights = means.get(matrix.name, np.ones(matrix.shape[-1], np.float32))
        rows = np.linspace(0, len(values) - 1, min(len(values), _SAMPLED_ROWS)).astype(int)
        sample = values[rows]
        found[matrix.name] = {"F16" if is_f16 else matrix.type: 0.0}
        for kind in kinds:
            if fits(kind, matrix.shape[-1]):
                difference = sample - round_trip(sample, kind, means.get(matrix.name), threads=threads)
                error = float((np.square(difference, dtype=np.float64) @ weights).sum())
                found[matrix.name][kind] = error * len(values) / len(sample)
    return found


def _sensitivities(
    source: Path, work: Path, errors: Errors, means: Means, probe: Judge, threads: int
) -> dict[str, float]:
    """Measure the loss for each unit of error, of each matrix by its group.

    A group is a role, such as `ffn_down`, in the first eighth of the layers, the last, or between them. Its
    matrices are rounded to their coarsest type in a copy of the file, while all others stay as they are.
    """
    coarsest = {name: max(of_type, key=of_type.__getitem__) for name, of_type in errors.items()}
    copy = work / "probe.gguf"
    shutil.copyfile(source, copy)
    factors: dict[str, float] = {}
    for members in _groups(list(errors)).values():
        error = sum(errors[name][coarsest[name]] for name in members)
        factor = 0.0
        if error > 0:
            with _rounded(copy, {name: coarsest[name] for name in members}, means, threads):
                factor = max(probe(copy).mean_kl_nats, 0.0) / error
        factors |= dict.fromkeys(members, factor)
    copy.unlink()
    return factors


def _groups(names: Sequence[str]) -> dict[str, list[str]]:
    layer_of = {name: int(found[1]) for name in names if (found := re.match(r"blk\.(\d+)\.", name))}
    layers = max(layer_of.values(), default=0) + 1
    groups: dict[str, list[str]] = {}
    for name in names:
        layer, edge = layer_of.get(name, 0), layers // 8
        band = "first" if layer < edge else "last" if layer >= layers - edge else "middle"
        groups.setdefault(re.sub(r"^blk\.\d+\.", f"{band} ", name), []).append(name)
    return groups


@contextmanager
def _rounded(path: Path, kinds: Mapping[str, str], means: Means, threads: int) -> Iterator[None]:
    """Hold the values of the named types in the F32 or F16 matrices of a file, within the block."""
    tensors = [tensor for tensor in gguf.GGUFReader(path, "r+").tensors if tensor.name in kinds]
    before = [np.array(tensor.data) for tensor in tensors]
    for tensor in tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        values = round_trip(values, kinds[tensor.name], means.get(tensor.name), threads=threads)
        tensor.data[:] = gguf.quants.quantize(values, tensor.tensor_type)
    try:
        yield
    finally:
        for tensor, data in zip(tensors, before, strict=True):
            tensor.data[:] = data


def _choices(
    matrices: Sequence[StoredTensor], errors: Errors, factors: Mapping[str, float]
) -> dict[str, list[Choice]]:
    return {
        m.name: [
            Choice(kind, matrix_bytes(kind, m.shape), factors[m.name] * error)
            for kind, error in errors[m.name].items()
        ]
        for m in matrices
    }
