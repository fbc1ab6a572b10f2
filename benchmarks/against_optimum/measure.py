"""Measure exported files against torch and against each other, on ONNX Runtime's CPU provider.

In: a JSON plan (files by key, checkpoint, kind; threads; repetitions). Out: a JSON file with nodes, shapes,
parity and latency. For a file that cannot be checked, loaded or run, its error is recorded.
"""

from __future__ import annotations

import copy
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch

from benchmarks.against_optimum.ours import SIDE_PX, part, smolvlm_inputs
from benchmarks.against_optimum.record import one_line
from benchmarks.timing import interleaved
from vaemotion.contract.audio import AST_LOG_MEL, SAMPLE_RATE_HZ, log_mel, normalized_window
from vaemotion.data.art.art import sample_work, synthesize, work_seed

BATCHES = (1, 2)  # both tools trace at batch 2; a graph with a constant 2 would fail at batch 1


def real_inputs(kind: str, batch: int) -> tuple[npt.NDArray[Any], ...]:
    """Return a part's inputs in their order.

    Log-mel of ``batch`` procedural works (B, 1024, 128), for "vision" and "tower" noise (B, 3, side, side),
    for "smolvlm" a prompt with an image of noise.
    """
    if kind == "smolvlm":
        return tuple(tensor.numpy() for tensor in smolvlm_inputs(batch).values())
    if kind in ("vision", "tower"):
        noise = np.random.default_rng(0).standard_normal((batch, 3, SIDE_PX, SIDE_PX))
        return (noise.astype(np.float32),)
    duration_s = AST_LOG_MEL.samples_for(1024) / SAMPLE_RATE_HZ
    works = (sample_work(work_seed("validation", index)) for index in range(batch))
    mels = [log_mel(synthesize(work, duration_s), AST_LOG_MEL) for work in works]
    return (np.stack([normalized_window(mel, 1024, AST_LOG_MEL) for mel in mels]),)


def facts(file: Path) -> dict[str, Any]:
    """Read a file's nodes, opset, size and shapes, and the result of onnx's full check."""
    model = onnx.load(str(file))
    shapes = {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    try:
        onnx.checker.check_model(model, full_check=True)
        check = "passed"
    except Exception as failure:  # onnx raises several types of its own
        check = one_line(failure)
    return {
        "nodes": len(model.graph.node),
        "opset": {entry.domain: entry.version for entry in model.opset_import}[""],
        "bytes": sum(part.stat().st_size for part in file.parent.glob("model.onnx*")),
        "shapes": shapes,
        "check": check,
    }


def open_session(file: Path, threads: int) -> tuple[Any, int]:
    """Open a session with the runtime's options; also count the nodes after ONNX Runtime's optimization."""
    optimized = file.with_name("optimized.onnx")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.optimized_model_filepath = str(optimized)
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    nodes = len(onnx.load(str(optimized)).graph.node)
    optimized.unlink()
    return session, nodes


def difference(got: npt.NDArray[Any], expected: npt.NDArray[Any]) -> dict[str, float]:
    """Return the largest and the mean absolute difference. Raises ValueError for different shapes."""
    if got.shape != expected.shape:
        raise ValueError(f"the output has shape {got.shape}, torch's has {expected.shape}")
    gap = np.abs(got.astype(np.float64) - expected)
    return {"max_abs": float(gap.max()), "mean_abs": float(gap.mean())}


@torch.no_grad()
def eager(module: torch.nn.Module, inputs: tuple[npt.NDArray[Any], ...]) -> npt.NDArray[Any]:
    """Run a module in PyTorch on arrays, those of float32 in the dtype of its parameters."""
    dtype = next(module.parameters()).dtype
    tensors = (torch.from_numpy(array) for array in inputs)
    return module(*(tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in tensors)).numpy()


def feed(session: Any, inputs: tuple[npt.NDArray[Any], ...]) -> dict[str, npt.NDArray[Any]]:
    """Name arrays after a session's inputs."""
    return {value.name: array for value, array in zip(session.get_inputs(), inputs, strict=True)}


def parity(session: Any, module: torch.nn.Module, kind: str) -> dict[str, Any]:
    """Return, by batch size, the difference from eager torch on the same inputs, or the error."""
    found: dict[str, Any] = {}
    for batch in BATCHES:
        inputs = real_inputs(kind, batch)
        try:
            got = session.run(None, feed(session, inputs))[0]
            found[str(batch)] = difference(got, eager(module, inputs))
        except Exception as failure:  # an unsupported batch size is a result
            found[str(batch)] = {"error": one_line(failure)}
    return found


def measure(plan: dict[str, Any]) -> dict[str, Any]:
    """Measure all files of a plan."""
    torch.set_num_threads(plan["threads"])
    files: dict[str, Any] = {}
    calls: dict[str, Callable[[], Any]] = {}
    for key, entry in plan["files"].items():
        file, kind = Path(entry["file"]), entry["kind"]
        module = part(kind, Path(entry["checkpoint"])).module
        files[key] = found = facts(file)
        try:
            session, found["nodes_in_onnx_runtime"] = open_session(file, plan["threads"])
        except Exception as failure:  # onnxruntime raises types of its own
            found["error"] = one_line(failure)
            continue
        found["parity"] = parity(session, module, kind)
        worst = max(gap.get("max_abs", float("inf")) for gap in found["parity"].values())
        print(f"parity of {key}: largest difference {worst:.1e}", flush=True)
        if kind.startswith("ast") and "error" not in found["parity"]["1"]:
            named = feed(session, real_inputs(kind, 1))
            calls[key] = lambda session=session, named=named: session.run(None, named)
    ast = part("ast", Path(plan["ast"])).module
    inputs = real_inputs("ast", 1)
    floor = difference(eager(ast, inputs), eager(copy.deepcopy(ast).double(), inputs))
    calls["eager"] = lambda: eager(ast, inputs)
    timed = interleaved(calls, plan["repetitions"], log=lambda line: print(f"latency {line}", flush=True))
    for key, times in timed.items():
        files.setdefault(key, {})["latency"] = {
            name: {"median": statistics.median(values), "all": values}
            for name, values in asdict(times).items()
        }
    return {"files": files, "float32_against_float64": floor, "batches": list(BATCHES)}


def main() -> None:
    plan_file, result_file = (Path(word) for word in sys.argv[1:3])
    result = measure(json.loads(plan_file.read_text(encoding="utf-8")))
    result_file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
