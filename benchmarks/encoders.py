"""The parts that become engines: PyTorch eager (and ``torch.compile``) against the device's own engine on ONNX Runtime, FP32 and INT8."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch

from benchmarks.figures import Figure, Section, times_as_fast
from benchmarks.material import CHECKPOINT
from benchmarks.timing import interleaved
from benchmarks.true_shapes import SCALE_FACTOR, TEXT, VISION
from calibration.qdq import blocks, quantise, weight_products
from calibration.ranges import observed
from export.to_onnx import Part, device_parts, export_onnx, tensor_specs
from runtime.engines import OnnxRuntimeEngine
from vaemotion.contract.audio import SAMPLE_RATE_HZ
from vaemotion.contract.bundle import ENGINE_ROLES, Component
from vaemotion.contract.front_end import Clip, FrontEnd, window_at
from vaemotion.data.procedural_art import draw_frame, sample_work, synthesise, work_seed
from vaemotion.model.audio_pathway import AudioPathwayConfig
from vaemotion.model.checkpoint import load_checkpoint
from vaemotion.model.checkpoint_config import ModelConfig
from vaemotion.model.emo_adapter import EmoAdapterConfig
from vaemotion.model.vaemotion_llm import VAEmotionLLM
from vaemotion.training.config import read_training_config

Arrays = dict[str, npt.NDArray[Any]]
TRUE_SHAPES = Path("configs/smolvlm2-500m-ast.toml")
NAMES = {"vision_encoder": "vision encoder", "audio_encoder": "audio encoder", "emo_adapter": "EmoAdapter"}
BOUND = "I/O bound once"
CALIBRATION_WINDOWS = 2  # speed does not depend on what the ranges are
CLOSE = 2e-3  # largest difference between eager and ONNX in FP32, relative to the largest value
METHOD = """`tiny` is the shipped model, `true shapes` are SigLIP-base (512 px, 1,024 patches) with SmolVLM2's connector, AST-base (10.24 s) with its projector,
and the EmoAdapter over 512 visual and the sound's tokens at width 960, all with random weights; `at 224 px` is the same tower over 196 patches, ViT-base's usual work. One window of a procedural work, batch 1, {threads} threads for
every contender. The peer is the same PyTorch module in FP32 under `inference_mode`, with PyTorch's own fused attention. Ours is the file that `vaemotion export`
writes, in the runtime's engine (its checks of the inputs included); *I/O bound once* is the same session without them, writing into arrays that stay. FP32 outputs are asserted to agree within {close:g} of the largest value; INT8 is `int8-cpu`
(u8 activations, per-channel weights) over every block, its accuracy is not judged here.

PyTorch's OpenMP threads spin while they wait, its default, which on idle cores is twice as fast at the tiny sizes as `OMP_WAIT_POLICY=passive`, and on busy ones collapses; ours sleep, because a
device has other work. In FP32 both are bound by the same matrix products at the processor's own rate (105 to 140 GFLOP/s a core on the two that were looked at): twice as fast as an eager run
that has idle cores is out of reach there, whatever executes it."""


@dataclass(frozen=True)
class Work:
    """One part with an input. ``size``: "tiny" or "true shapes"."""

    size: str
    role: str
    part: Part
    arrays: Arrays

    @property
    def file_stem(self) -> str:
        return f"{self.size.replace(' ', '-')}-{self.role}"


def true_shapes(side_px: int = 512, scale_factor: int = SCALE_FACTOR) -> VAEmotionLLM:
    """Random weights; of the language model, which is no engine, one layer and no vocabulary to speak of."""
    torch.manual_seed(0)
    config = read_training_config(TRUE_SHAPES, [f"image.side_px={side_px}"])
    text = {**TEXT, "num_hidden_layers": 1, "vocab_size": 512}
    vision = {**VISION, "image_size": side_px}
    vlm = {"vision_config": vision, "text_config": text, "scale_factor": scale_factor, "image_token_id": 3}
    sizes = ModelConfig(
        vlm,
        front_end=FrontEnd(config.log_mel, config.image, config.windows),
        audio=AudioPathwayConfig({"kind": "ast", "max_length": 1024, "num_mel_bins": 128}),
        adapter=EmoAdapterConfig(),
    )
    return VAEmotionLLM(sizes, load_checkpoint(CHECKPOINT).tokenizer).eval()


def inputs_of(model: VAEmotionLLM, part: Part, role: str) -> Arrays:
    """One window of a procedural work for an encoder; for the EmoAdapter seeded tokens, nothing masked."""
    front_end = model.config.front_end
    if role == "emo_adapter":
        noise = np.random.default_rng(0)
        shapes = {name: (1, *tensor.shape[1:]) for name, tensor in part.inputs.items()}
        return {
            name: np.ones(shape, np.bool_) if name.endswith("mask") else noise.random(shape, np.float32)
            for name, shape in shapes.items()
        }
    work, duration_s = sample_work(work_seed("validation", 0)), front_end.filled_audio_window_s
    samples = synthesise(work, duration_s)[: round(duration_s * SAMPLE_RATE_HZ)]
    window = window_at(Clip((draw_frame(work, 0.0),), (0.0,), samples), duration_s, "audio-visual", front_end)
    return {"pixels": window.pixels[-1:]} if role == "vision_encoder" else {"log_mel": window.log_mel}


def works(model: VAEmotionLLM, size: str, roles: Sequence[str] = ENGINE_ROLES) -> list[Work]:
    parts = device_parts(model)
    return [Work(size, role, parts[role], inputs_of(model, parts[role], role)) for role in roles]


def fp32_file(work: Work, folder: Path) -> Path:
    """What an export writes; it stays in ``folder`` for the next call."""
    file = folder / f"{work.file_stem}-fp32.onnx"
    if not file.is_file():
        print(f"exporting {work.file_stem}", flush=True)
        copied = copy.deepcopy(work.part.module)  # the export sets another attention; the peer keeps its own
        export_onnx(replace(work.part, module=copied), file.with_suffix(".tmp"))
        file.with_suffix(".tmp").replace(file)
    return file


def exported(work: Work, folder: Path, threads: int) -> dict[str, OnnxRuntimeEngine]:
    """FP32 and INT8 in the device's engine; the files stay in ``folder`` for the next call."""
    fp32, int8 = fp32_file(work, folder), folder / f"{work.file_stem}-int8-cpu.onnx"
    if not int8.is_file():
        model = onnx.load(str(fp32))
        products = weight_products(model)
        samples = [work.arrays] * CALIBRATION_WINDOWS
        histograms = observed(model, sorted({p.activation for p in products}), samples, threads)
        onnx.save(
            quantise(model, histograms, "max", "int8-cpu", blocks(products)), str(int8.with_suffix(".tmp"))
        )
        int8.with_suffix(".tmp").replace(int8)
    return {
        name: OnnxRuntimeEngine(file, component(file, work.role, name), threads)
        for name, file in (("fp32", fp32), ("int8-cpu", int8))
    }


def component(file: Path, role: str, precision: str) -> Component:
    """As a manifest would tell it, without its hash."""
    graph = onnx.load(str(file)).graph
    inputs, outputs = tensor_specs(graph.input), tensor_specs(graph.output)
    return Component(role, precision, file.name, "", file.stat().st_size, "", inputs, outputs)


def contenders(work: Work, folder: Path, threads: int, with_compile: bool) -> dict[str, Callable[[], object]]:
    """Each a call that does the work once. Raises RuntimeError where ONNX in FP32 gives something else than eager."""
    module = work.part.module.eval()
    tensors = [torch.from_numpy(work.arrays[name]) for name in work.part.inputs]
    engines = exported(work, folder, threads)
    check_equal(work, module, tensors, engines["fp32"])

    def eager(module: Callable[..., object] = module) -> object:
        with torch.inference_mode():
            return module(*tensors)

    calls: dict[str, Callable[[], object]] = {"PyTorch eager": eager}
    if with_compile:
        compiled = torch.compile(module)
        calls["torch.compile"] = lambda: eager(compiled)
    for name, engine in engines.items():
        calls[f"ONNX Runtime {name}"] = lambda engine=engine: engine.run(work.arrays)
    calls[BOUND] = bound(engines["fp32"], work.arrays)
    return calls


def bound(engine: OnnxRuntimeEngine, arrays: Arrays) -> Callable[[], object]:
    """The engine's session with inputs and outputs bound once to arrays that stay where they are: nothing is allocated and nothing copied."""
    session, outputs = engine._session, engine.run(arrays)
    binding = session.io_binding()
    for name, array in arrays.items():
        binding.bind_cpu_input(name, array)
    for name, array in outputs.items():
        binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def call() -> dict[str, npt.NDArray[Any]]:
        session.run_with_iobinding(binding)
        return outputs  # kept as long as the binding writes into them

    return call


def check_equal(
    work: Work, module: torch.nn.Module, tensors: list[torch.Tensor], engine: OnnxRuntimeEngine
) -> None:
    with torch.inference_mode():
        expected = module(*tensors)
    values = expected if isinstance(expected, tuple) else (expected,)
    got: Mapping[str, npt.NDArray[Any]] = engine.run(work.arrays)
    for name, value in zip(work.part.outputs, values, strict=True):
        gap = np.abs(got[name] - value.numpy()).max() / np.abs(value.numpy()).max()
        if not gap <= CLOSE:
            raise RuntimeError(
                f"{work.file_stem}: {name} differs from eager by {gap:.1e} of its largest value"
            )


def figures(work: Work, calls: dict[str, Callable[[], object]], repetitions: int) -> list[Figure]:
    label = f"{NAMES[work.role]}, {work.size}"
    times = interleaved(calls, repetitions, tell=lambda told: print(f"{label}: {told}", flush=True))
    transformer = work.size != "tiny" and work.role != "emo_adapter"
    targets = {"fp32": 2.0, "int8-cpu": 3.0 if transformer else None}
    found = [
        times_as_fast(
            f"{label}, {name.upper().partition('-')[0]}",
            times, f"ONNX Runtime {name}", "PyTorch eager", at_least=at_least,
        )
        for name, at_least in targets.items()
    ]  # fmt: skip
    if work.size == "tiny":
        found.append(times_as_fast(f"{label}, FP32, {BOUND}", times, BOUND, "ONNX Runtime fp32"))
    if "torch.compile" in calls:
        found.append(times_as_fast(f"{label}, FP32", times, "ONNX Runtime fp32", "torch.compile"))
    return found


def measure(folder: Path, full: bool) -> Section:
    """See the module's docstring; ``full``: with ``torch.compile``, which takes minutes to compile."""
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    section = Section("Encoders and EmoAdapter", METHOD.format(threads=threads, close=CLOSE))
    measured = [
        *works(load_checkpoint(CHECKPOINT), "tiny"),
        *works(true_shapes(), "true shapes"),
        *works(true_shapes(224, 2), "at 224 px", ["vision_encoder"]),
    ]
    for work in measured:
        section.figures += figures(work, contenders(work, folder, threads, full), 7)
    return section
