"""The runtime's engines at true shapes and its language model on an NVIDIA GPU, against PyTorch.

The section is not part of the plain suite; run it with ``python -m benchmarks gpu``. It needs
onnxruntime-gpu, PyTorch for CUDA, and llama-cpp-python built with ``CMAKE_ARGS="-DGGML_CUDA=on"``. TensorRT
is measured if it is installed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from benchmarks.encoders import NAMES, Arrays, Work, component, fp32_file, true_shapes, works
from benchmarks.figures import Figure, Section, times_as_fast
from benchmarks.language_model import (
    NEW_TOKENS,
    OURS,
    PROMPT_TOKENS,
    QUESTION_TOKENS,
    RAW,
    choices,
    loops,
    opened,
    token_rates,
    windows,
)
from benchmarks.llama_peers import RawLlama, smollm2_135m
from benchmarks.material import CHECKPOINT
from benchmarks.timing import interleaved
from calibration.fp16 import half_precision
from runtime.engines.golden import GPU_TOLERANCE
from runtime.engines.io import Engine, EngineUnavailable
from runtime.engines.onnx import OnnxRuntimeEngine
from runtime.machine.facts import usable_cpus
from vaemotion.contract.files import whole_file

PLAIN = "ONNX Runtime CUDA, no graph"
GRAPH = "ONNX Runtime CUDA"
TENSORRT = "TensorRT"
EAGER, COMPILED = "PyTorch eager", 'torch.compile(mode="reduce-overhead")'
PROCESSOR = "raw llama_decode on the processor"
METHOD = """{gpu}. The same work as above at the true shapes, batch 1, random weights. Every contender takes
NumPy arrays in the processor's memory and returns NumPy arrays, so copies are included. FP32 means 32 bits
for all (TF32 is off). FP16 is `module.half()` with FP32 in and out for PyTorch; for the engines it is the
file that `vaemotion export --precision fp16` writes. `{graph}` is the runtime's engine, which records a batch
of one as a CUDA graph; `reduce-overhead` is PyTorch's mode that does the same. Outputs are asserted to agree
with eager in FP32 within {fp32:g} (FP32) and {fp16:g} (FP16) of the largest value, the tolerance of
`vaemotion verify` on a GPU. {tensorrt} The language model is the 135M of its section, with all layers on the
GPU. Its peers are the same raw loop on the GPU, and on {threads} threads of the processor."""


def measure(folder: Path, full: bool) -> Section:
    """Measure the section; ``full``: with twice the repetitions."""
    if not torch.cuda.is_available():
        raise SystemExit(
            "python -m benchmarks gpu: PyTorch finds no CUDA GPU; install its CUDA build and the GPU's driver"
        )
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    section = Section("On a GPU", "")
    for work in works(true_shapes(), "true shapes"):
        for precision in ("fp32", "fp16"):
            section.figures += encoder_figures(work, precision, folder, 14 if full else 7)
    threads = min(4, usable_cpus())
    section.figures += language_model_figures(folder, threads, 14 if full else 7)
    section.method = METHOD.format(
        gpu=torch.cuda.get_device_name(0),
        graph=GRAPH,
        tensorrt=tensorrt_note(),
        threads=threads,
        **GPU_TOLERANCE,
    )
    return section


def encoder_figures(work: Work, precision: str, folder: Path, repetitions: int) -> list[Figure]:
    """Time the contenders of one part in one precision and compare them."""
    label = f"{NAMES[work.role]}, {precision.upper()}"
    calls = contenders(work, precision, folder)
    times = interleaved(calls, repetitions, log=lambda line: print(f"{label}: {line}", flush=True))
    pairs = [(GRAPH, COMPILED), (GRAPH, EAGER), (GRAPH, PLAIN), (TENSORRT, COMPILED), (TENSORRT, GRAPH)]
    return [
        times_as_fast(label, times, ours, peer) for ours, peer in pairs if ours in times and peer in times
    ]


def contenders(work: Work, precision: str, folder: Path) -> dict[str, Callable[[], object]]:
    """Return one call per contender that does the work once.

    Raises RuntimeError if a contender's outputs differ from eager's in FP32.
    """
    file = exported(work, precision, folder)
    part = component(file, work.role, precision)
    module = copy.deepcopy(work.part.module).eval().cuda()
    expected = on_gpu(work, module, torch.float32)()
    module = module.half() if precision == "fp16" else module
    dtype = next(module.parameters()).dtype
    calls: dict[str, Callable[[], Mapping[str, Any]]] = {
        EAGER: on_gpu(work, module, dtype),
        COMPILED: on_gpu(work, torch.compile(module, mode="reduce-overhead"), dtype),
    }
    for name, engine in engines(file, part).items():
        calls[name] = lambda engine=engine: engine.run(work.arrays)
    for name, call in calls.items():
        gap = max(
            np.abs(got - expected[output]).max() / np.abs(expected[output]).max()
            for output, got in call().items()
        )
        print(f"{work.role} {precision}, {name}: {gap:.1e} of the largest value off", flush=True)
        if not gap <= GPU_TOLERANCE[precision]:
            raise RuntimeError(f"{work.file_stem} ({precision}), {name}: differs from eager by {gap:.1e}")
    return dict(calls)


def exported(work: Work, precision: str, folder: Path) -> Path:
    """Export a part to ONNX in one precision; the file stays in ``folder`` for later calls."""
    fp32 = fp32_file(work, folder)
    if precision == "fp32":
        return fp32
    file = folder / f"{work.file_stem}-{precision}.onnx"
    if not file.is_file():
        with whole_file(file) as temporary:
            onnx.save(half_precision(onnx.load(str(fp32)), []), str(temporary))
    return file


def on_gpu(work: Work, module: Callable[..., Any], dtype: torch.dtype) -> Callable[[], Arrays]:
    """Return a call that copies arrays to the GPU, runs the module there and copies its outputs back."""

    def call() -> Arrays:
        with torch.inference_mode():
            given = [
                torch.from_numpy(work.arrays[name]).to("cuda", non_blocking=True) for name in work.part.inputs
            ]
            found = module(*(x.to(dtype) if x.is_floating_point() else x for x in given))
            values = found if isinstance(found, tuple) else (found,)
            return {
                name: value.float().cpu().numpy()
                for name, value in zip(work.part.outputs, values, strict=True)
            }

    return call


def engines(file: Path, part: Any) -> dict[str, Engine]:
    """Open the runtime's engines for a file: with and without a CUDA graph, and TensorRT if installed."""
    graph = OnnxRuntimeEngine(file, part, cuda=True)
    plain = OnnxRuntimeEngine(file, part, cuda=True)
    plain._one = None
    found: dict[str, Engine] = {GRAPH: graph, PLAIN: plain}
    print(graph.announcement, flush=True)
    try:
        found[TENSORRT] = tensorrt_engine(file, part)
    except EngineUnavailable as reason:
        print(f"no TensorRT: {reason}", flush=True)
    return found


def tensorrt_engine(file: Path, part: Any) -> Engine:
    """Build a TensorRT engine without caching it. Raises EngineUnavailable."""
    from runtime.engines.cache import BatchProfile
    from runtime.engines.gpu import free_device_bytes
    from runtime.engines.tensorrt.build import build
    from runtime.engines.tensorrt.engine import TensorRtEngine
    from runtime.engines.tensorrt.open import find_tensorrt

    found, profile = find_tensorrt(), BatchProfile()
    built = build(found.module, file, profile, free_bytes=free_device_bytes(found.cudart))
    return TensorRtEngine(found.module, found.cudart, built.plan, part, profile)


def tensorrt_note() -> str:
    """State TensorRT's version, or why it is not measured."""
    from runtime.engines.tensorrt.open import find_tensorrt

    try:
        return f"TensorRT is {find_tensorrt().module.__version__}."
    except EngineUnavailable as reason:
        return f"No TensorRT: {reason}."


def language_model_figures(folder: Path, threads: int, repetitions: int) -> list[Figure]:
    """Measure the language model on the GPU; the targets are dropped, as they are for processors."""
    path = smollm2_135m(folder, CHECKPOINT / "tokenizer.json")
    with opened("135M", path, folder, threads) as contest, RawLlama(path, threads, on_gpu=False) as processor:
        prompt = contest.ids(PROMPT_TOKENS, 1)
        calls = loops(contest) | {PROCESSOR: lambda: processor.generate(prompt, NEW_TOKENS)}
        times = contest.timed("generation", calls, repetitions)
        found = [times_as_fast("generation, 135M", times, OURS, peer) for peer in (RAW, PROCESSOR)]
        found += token_rates("135M", times["the prompt alone"], times[OURS])
        found += windows(contest, repetitions)
        found += choices(contest, QUESTION_TOKENS, repetitions)
    return [replace(figure, at_least=None, at_most=None) for figure in found]
