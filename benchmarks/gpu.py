"""On an NVIDIA GPU: the true shapes in the device's engines against PyTorch and ``torch.compile``, and the language model with all its layers there.

It is no part of the suite's plain run: ``python -m benchmarks gpu``, with onnxruntime-gpu, PyTorch for CUDA, and llama-cpp-python built with
``CMAKE_ARGS="-DGGML_CUDA=on"``; TensorRT takes part where it is there.
"""

from __future__ import annotations

import copy
import os
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
from runtime.engine_io import Engine, EngineUnavailable
from runtime.onnx_engine import OnnxRuntimeEngine
from runtime.self_test import GPU_TOLERANCE

PLAIN = "ONNX Runtime CUDA, no graph"
GRAPH = "ONNX Runtime CUDA"
TENSORRT = "TensorRT"
EAGER, COMPILED = "PyTorch eager", 'torch.compile(mode="reduce-overhead")'
PROCESSOR = "raw llama_decode on the processor"
METHOD = """{gpu}. The same works as above at the true shapes, batch 1, random weights. Every contender takes NumPy arrays from the processor's memory and gives NumPy arrays back: copies are
part of it. FP32 means 32 bits for everybody (TF32 off); FP16 is `module.half()` with FP32 in and out for PyTorch, and for the engines the file that `vaemotion export --precision fp16` writes.
`{graph}` is the runtime's engine, which records a batch of one as a CUDA graph; `reduce-overhead` is PyTorch's mode that does the same. Outputs are asserted to agree with eager in FP32 within
{fp32:g} (FP32) and {fp16:g} (FP16) of the largest value, which is what `vaemotion verify` allows on a GPU. {tensorrt} The language model is the section above's 135M with all layers on the GPU, its peers the same raw loop there and on {threads} threads of the processor."""


def measure(folder: Path, full: bool) -> Section:
    """See the module's docstring; ``full``: with twice the repetitions."""
    if not torch.cuda.is_available():
        raise SystemExit("python -m benchmarks gpu: PyTorch sees no CUDA GPU here")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    section = Section("On a GPU", "")
    for work in works(true_shapes(), "true shapes"):
        for precision in ("fp32", "fp16"):
            section.figures += encoder_figures(work, precision, folder, 14 if full else 7)
    threads = min(4, len(os.sched_getaffinity(0)))
    section.figures += language_model_figures(folder, threads, 14 if full else 7)
    section.method = METHOD.format(
        gpu=torch.cuda.get_device_name(0),
        graph=GRAPH,
        tensorrt=tensorrt_told(),
        threads=threads,
        **GPU_TOLERANCE,
    )
    return section


def encoder_figures(work: Work, precision: str, folder: Path, repetitions: int) -> list[Figure]:
    label = f"{NAMES[work.role]}, {precision.upper()}"
    calls = contenders(work, precision, folder)
    times = interleaved(calls, repetitions, tell=lambda told: print(f"{label}: {told}", flush=True))
    pairs = [(GRAPH, COMPILED), (GRAPH, EAGER), (GRAPH, PLAIN), (TENSORRT, COMPILED), (TENSORRT, GRAPH)]
    return [
        times_as_fast(label, times, ours, peer) for ours, peer in pairs if ours in times and peer in times
    ]


def contenders(work: Work, precision: str, folder: Path) -> dict[str, Callable[[], object]]:
    """Each a call that does the work once. Raises RuntimeError where one gives something else than eager in FP32."""
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
    """The ONNX file that an export writes; it stays in ``folder`` for the next call."""
    fp32 = fp32_file(work, folder)
    if precision == "fp32":
        return fp32
    file = folder / f"{work.file_stem}-{precision}.onnx"
    if not file.is_file():
        onnx.save(half_precision(onnx.load(str(fp32)), []), str(file.with_suffix(".tmp")))
        file.with_suffix(".tmp").replace(file)
    return file


def on_gpu(work: Work, module: Callable[..., Any], dtype: torch.dtype) -> Callable[[], Arrays]:
    """Arrays to the GPU, the module there, arrays back."""

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
    """The runtime's own on this machine, and the same without its graph."""
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
    """Built here and now, kept nowhere. Raises EngineUnavailable."""
    from runtime.engine_cache import BatchProfile
    from runtime.gpu import free_device_bytes
    from runtime.tensorrt_build import build
    from runtime.tensorrt_engine import TensorRtEngine
    from runtime.tensorrt_open import find_tensorrt

    found, profile = find_tensorrt(), BatchProfile()
    built = build(found.module, file, profile, free_bytes=free_device_bytes(found.cudart))
    return TensorRtEngine(found.module, found.cudart, built.plan, part, profile)


def tensorrt_told() -> str:
    from runtime.tensorrt_open import find_tensorrt

    try:
        return f"TensorRT is {find_tensorrt().module.__version__}."
    except EngineUnavailable as reason:
        return f"No TensorRT: {reason}."


def language_model_figures(folder: Path, threads: int, repetitions: int) -> list[Figure]:
    """Without their targets, which are of processors."""
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
