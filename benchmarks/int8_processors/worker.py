"""Run INT8 graphs on this processor, in a process that imports ONNX Runtime and NumPy only.

    python -m benchmarks.int8_processors.worker FOLDER RESULTS.npz [--timed]

In: a folder with ``NAME.onnx`` graphs, each with its inputs in ``NAME.npz``. Out: the outputs, under
``NAME:OUTPUT``. With ``--timed`` also the CPU time of one run of each graph, under ``NAME:cpu_ms``
(repetitions,). Graphs with the same name up to a ``~`` are timed interleaved.
"""

from __future__ import annotations

import itertools
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from benchmarks.timing import interleaved

REPETITIONS = 15
LEAST_S = 0.05
PRECISE = "precise"  # the suffix of graphs that run with ONNX Runtime's option for exact u8 x s8 products


def session(path: Path) -> Any:
    """Open a graph on the CPU with one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    if path.stem.endswith(".int8"):  # as the runtime opens graphs with FP16 tensors
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    if path.stem.endswith(PRECISE):
        options.add_session_config_entry("session.x64quantprecision", "1")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def main(folder: Path, results: Path, timed: bool) -> None:
    """Run every graph of ``folder`` once, and with ``timed`` repeatedly; write the results."""
    found: dict[str, Any] = {}
    paths = sorted(folder.glob("*.onnx"))
    for _, group in itertools.groupby(paths, key=lambda path: path.stem.partition("~")[0]):
        calls: dict[str, Any] = {}
        for path in group:
            opened = session(path)
            arrays = dict(np.load(path.with_suffix(".npz")))
            names = [output.name for output in opened.get_outputs()]
            for name, values in zip(names, opened.run(None, arrays), strict=True):
                found[f"{path.stem}:{name}"] = values
            calls[path.stem] = partial(opened.run, None, arrays)
        if timed:
            for name, times in interleaved(calls, REPETITIONS, LEAST_S).items():
                found[f"{name}:cpu_ms"] = np.array(times.cpu_ms)
    np.savez(results, **found)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), "--timed" in sys.argv[3:])
