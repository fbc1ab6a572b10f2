"""Ranges of the tensors of an ONNX graph on real inputs, for quantization.

In: a model, names of its tensors, batches of real inputs. Out: a ``Histogram`` per tensor, and a range by
method: "max", "percentile 99.9", "percentile 99.99" or "entropy" (Migacz, 8-bit inference with TensorRT,
GTC 2017).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from calibration.onnx_file import save_graph
from runtime.engines.io import Arrays

METHODS = ("max", "percentile 99.9", "percentile 99.99", "entropy")
BINS = 2048
_LEVELS = 128  # magnitudes of int8


@dataclass
class Histogram:
    """A histogram of a tensor's magnitudes, with its smallest and largest value.

    ``counts``: (BINS,), equal bins from 0 to ``limit``. ``limit`` doubles when a larger magnitude comes.
    ``lowest`` and ``highest`` include 0.
    """

    limit: float = 0.0
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    lowest: float = 0.0
    highest: float = 0.0

    def add(self, values: npt.NDArray[Any]) -> None:
        """Count more values, of any shape. Raises ValueError for NaN and infinity."""
        magnitudes = np.abs(values, dtype=np.float32).ravel()
        if not magnitudes.size:
            return
        largest = float(magnitudes.max())
        if not np.isfinite(largest):
            raise ValueError("a tensor holds NaN or infinity on the calibration samples")
        if largest > self.limit:
            self._widen(largest)
        if self.limit:
            bins = np.minimum((magnitudes * (BINS / self.limit)).astype(np.int64), BINS - 1)
            self.counts += np.bincount(bins, minlength=BINS)
        else:
            self.counts[0] += magnitudes.size
        self.lowest, self.highest = (
            min(self.lowest, float(values.min())),
            max(self.highest, float(values.max())),
        )

    def _widen(self, largest: float) -> None:
        """Double ``limit`` until ``largest`` lies within it; two bins become one each time."""
        if not self.limit:  # only zeros so far: they stay in the first bin
            self.limit = max(largest, 1e-20)
        while self.limit < largest:
            self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(1), np.zeros(BINS // 2, np.int64)])
            self.limit *= 2

    def threshold(self, method: str) -> float:
        """Return the magnitude beyond which values are clipped; ``method``: one of ``METHODS``.

        It is at least the smallest normal float16 (6.2e-5), so that a division by the scale is defined.
        Raises ValueError for an unknown method.
        """
        if method == "max":
            value = max(-self.lowest, self.highest)
        elif method.startswith("percentile "):
            share = np.cumsum(self.counts) / max(1, self.counts.sum())
            value = (np.searchsorted(share, float(method.split()[1]) / 100) + 1) * self.limit / BINS
        elif method == "entropy":
            value = _entropy_bins(self.counts) * self.limit / BINS
        else:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
        return max(float(value), 6.2e-5)

    def clipped_share(self, threshold: float) -> float:
        """Return the share of the values beyond a threshold, exact to a bin's width."""
        first = int(np.ceil(threshold * BINS / self.limit)) if self.limit else BINS
        return float(self.counts[first:].sum() / max(1, self.counts.sum()))


def _entropy_bins(counts: npt.NDArray[np.int64]) -> int:
    """Return how many bins to keep by the entropy method (Migacz 2017).

    For that number, the Kullback-Leibler divergence between the clipped distribution and its 128 levels is
    least.
    """
    best, best_divergence = BINS, np.inf
    for kept in range(_LEVELS, BINS + 1, 16):
        clipped = counts[:kept].astype(np.float64)
        filled = clipped > 0
        level = np.arange(kept) * _LEVELS // kept  # (kept,) level of each bin
        mass = np.bincount(level, weights=clipped, minlength=_LEVELS)
        members = np.bincount(level, weights=filled, minlength=_LEVELS)
        spread = np.divide(mass, members, out=np.zeros(_LEVELS), where=members > 0)[level] * filled
        clipped[-1] += counts[kept:].sum()
        total, spread_total = clipped.sum(), spread.sum()
        both = (clipped > 0) & (spread > 0)
        if not spread_total or not total:
            continue
        p, q = clipped[both] / total, spread[both] / spread_total
        lost = clipped[(clipped > 0) & (spread == 0)].sum() / total  # a clipped tail in an empty last bin
        divergence = float((p * np.log(p / q)).sum()) + lost * 20
        if divergence < best_divergence:
            best, best_divergence = kept, divergence
    return best


def observed(
    model: onnx.ModelProto, tensors: Sequence[str], batches: Iterable[Arrays], threads: int = 2
) -> dict[str, Histogram]:
    """Return histograms of ``tensors`` over all batches of inputs.

    Only the histograms stay in memory, so that it does not grow with the number of batches. Raises
    ValueError where a tensor holds NaN or infinity.
    """
    session = with_outputs(model, tensors, threads)
    histograms = {name: Histogram() for name in tensors}
    for batch in batches:
        for name, values in zip(tensors, session.run(list(tensors), dict(batch)), strict=True):
            histograms[name].add(values)
    return histograms


def with_outputs(model: onnx.ModelProto, tensors: Sequence[str], threads: int) -> Any:
    """Open a CPU session that also returns the named inner tensors."""
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    known = {value.name for value in opened.graph.output}
    opened.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors if name not in known)
    return session_of(opened, threads)


def session_of(model: onnx.ModelProto, threads: int = 2, *, in_order: bool = False) -> Any:
    """Open a CPU session of a model in memory. ``in_order``: run its nodes in the order of the graph."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    # Arena and pattern keep the memory of the largest run.
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    if in_order:
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # as the runtime's engines
    if any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer):
        # ONNX Runtime 1.32 crashes on float16 convolutions when it changes their layout.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    # From a file: a session that is opened from bytes keeps them, and so holds every weight twice.
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.onnx")
        save_graph(model, file)
        return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
