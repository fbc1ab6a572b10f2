"""Encoders and EmoAdapter: the runtime's ONNX Runtime engines in FP32 and INT8 against PyTorch eager.

The full set also compares with ``torch.compile``.
"""

from __future__ import annotations

import copy
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
from calibration.qdq import blocks, quantize, weight_products
from calibration.ranges import observed
from export.to_onnx import Part, device_parts, export_onnx, tensor_specs
from runtime.engines.open import OnnxRuntimeEngine
from runtime.machine.facts import usable_cpus
from vaemotion.contract.audio import SAMPLE_RATE_HZ
from vaemotion.contract.bundle import ENGINE_ROLES, Component
from vaemotion.contract.files import whole_file
from vaemotion.contract.front_end import Clip, FrontEnd, window_at
from vaemotion.data.art.art import draw_frame, sample_work, synthesize, work_seed
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
CALIBRATION_WINDOWS = 2  # few are enough: speed does not depend on the ranges
CLOSE = 2e-3  # largest difference between eager and ONNX in FP32, relative to the largest value
METHOD = """`tiny` is the shipped model. `true shapes` are SigLIP-base (512 px, 1,024 patches) with SmolVLM2's
connector, AST-base (10.24 s) with its projector, and the EmoAdapter over 512 visual tokens and the sound's
tokens at width 960, all with random weights. `at 224 px` is the same vision tower over 196 patches, the usual
size of ViT-base. The input is one window of a procedural work, batch 1; every contender has {threads}
threads.

The peer is the same PyTorch module in FP32 under `inference_mode`, with PyTorch's fused attention. Ours is
the file that `vaemotion export` writes, in the runtime's engine, with its checks of the inputs. *I/O bound
once* is the same session without these checks, writing into arrays that are allocated once. FP32 outputs are
asserted to agree within {close:g} of the largest value. INT8 is `int8-cpu` (u8 activations, per-channel
weights) over every block; its accuracy is not judged here.

PyTorch's OpenMP threads spin while they wait, which is its default. On idle cores that is twice as fast at
the tiny sizes as `OMP_WAIT_POLICY=passive`; on busy cores it collapses. The runtime's threads sleep, because
a device has other work. In FP32 both are bound by the same matrix products at the processor's own rate (105
to 140 GFLOP/s per core on the two processors that were measured), so twice the speed of an eager run with
idle cores is out of reach."""


@dataclass(frozen=True)
class Work:
    """One part of a model with an input. ``size``: "tiny", "true shapes" or "at 224 px"."""

    size: str
    role: str
    part: Part
    arrays: Arrays

    @property
    def file_stem(self) -> str:
        """Start of the names of the part's files."""
        return f"{self.size.replace(' ', '-')}-{self.role}"


def true_shapes(side_px: int = 512, scale_factor: int = SCALE_FACTOR) -> VAEmotionLLM:
    """Build a model with random weights at the published sizes.

    The language model is not measured here, so it has one layer and a small vocabulary.
    """
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
    """Make the input of a part: a window of a procedural work; for the EmoAdapter seeded tokens, unmasked."""
    front_end = model.config.front_end
    if role == "emo_adapter":
        noise = np.random.default_rng(0)
        shapes = {name: (1, *tensor.shape[1:]) for name, tensor in part.inputs.items()}
        return {
            name: np.ones(shape, np.bool_) if name.endswith("mask") else noise.random(shape, np.float32)
            for name, shape in shapes.items()
        }
    work, duration_s = sample_work(work_seed("validation", 0)), front_end.filled_audio_window_s
    samples = synthesize(work, duration_s)[: round(duration_s * SAMPLE_RATE_HZ)]
    window = window_at(Clip((draw_frame(work, 0.0),), (0.0,), samples), duration_s, "audio-visual", front_end)
    return {"pixels": window.pixels[-1:]} if role == "vision_encoder" else {"log_mel": window.log_mel}


def works(model: VAEmotionLLM, size: str, roles: Sequence[str] = ENGINE_ROLES) -> list[Work]:
    """Return the parts of a model with their inputs."""
    parts = device_parts(model)
    return [Work(size, role, parts[role], inputs_of(model, parts[role], role)) for role in roles]


def fp32_file(work: Work, folder: Path) -> Path:
    """Export a part to ONNX in FP32; the file stays in ``folder`` for later calls."""
    file = folder / f"{work.file_stem}-fp32.onnx"
    if not file.is_file():
        print(f"exporting {work.file_stem}", flush=True)
        copied = copy.deepcopy(work.part.module)  # the export replaces the attention; the peer keeps its own
        with whole_file(file) as temporary:
            export_onnx(replace(work.part, module=copied), temporary)
    return file


def exported(work: Work, folder: Path, threads: int) -> dict[str, OnnxRuntimeEngine]:
    """Open FP32 and INT8 files in the runtime's engine; the files stay in ``folder`` for later calls."""
    fp32, int8 = fp32_file(work, folder), folder / f"{work.file_stem}-int8-cpu.onnx"
    if not int8.is_file():
        model = onnx.load(str(fp32))
        products = weight_products(model)
        samples = [work.arrays] * CALIBRATION_WINDOWS
        histograms = observed(model, sorted({p.activation for p in products}), samples, threads)
        with whole_file(int8) as temporary:
            onnx.save(quantize(model, histograms, "max", "int8-cpu", blocks(products)), str(temporary))
    return {
        name: OnnxRuntimeEngine(file, component(file, work.role, name), threads)
        for name, file in (("fp32", fp32), ("int8-cpu", int8))
    }


def component(file: Path, role: str, precision: str) -> Component:
    """Describe an ONNX file as a bundle's manifest does, without its hash."""
    graph = onnx.load(str(file)).graph
    inputs, outputs = tensor_specs(graph.input), tensor_specs(graph.output)
    return Component(role, precision, file.name, "", file.stat().st_size, "", inputs, outputs)


def contenders(work: Work, folder: Path, threads: int, with_compile: bool) -> dict[str, Callable[[], object]]:
    """Return one call per contender that does the work once.

    Raises RuntimeError if the FP32 outputs of ONNX Runtime differ from eager's.
    """
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
    """Bind an engine's inputs and outputs once to fixed arrays; a run then allocates and copies nothing."""
    session, outputs = engine._session, engine.run(arrays)
    binding = session.io_binding()
    for name, array in arrays.items():
        binding.bind_cpu_input(name, array)
    for name, array in outputs.items():
        binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def call() -> dict[str, npt.NDArray[Any]]:
        session.run_with_iobinding(binding)
        return outputs  # keeps the arrays alive while the binding writes into them

    return call


def check_equal(
    work: Work, module: torch.nn.Module, tensors: list[torch.Tensor], engine: OnnxRuntimeEngine
) -> None:
    """Raise RuntimeError if an engine's outputs differ from eager's by more than ``CLOSE``."""
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
    """Time the contenders of one part and compare them."""
    label = f"{NAMES[work.role]}, {work.size}"
    times = interleaved(calls, repetitions, log=lambda line: print(f"{label}: {line}", flush=True))
    transformer = work.size != "tiny" and work.role != "emo_adapter"
    targets = {"fp32": 2.0, "int8-cpu": 3.0 if transformer else None}
    found: list[Figure] = []
    for name, at_least in targets.items():
        what, ours = f"{label}, {name.upper().partition('-')[0]}", f"ONNX Runtime {name}"
        found.append(times_as_fast(what, times, ours, "PyTorch eager", at_least=at_least))
    if work.size == "tiny":
        found.append(times_as_fast(f"{label}, FP32, {BOUND}", times, BOUND, "ONNX Runtime fp32"))
    if "torch.compile" in calls:
        found.append(times_as_fast(f"{label}, FP32", times, "ONNX Runtime fp32", "torch.compile"))
    return found


def measure(folder: Path, full: bool) -> Section:
    """Measure the section; ``full``: also against ``torch.compile``, which takes minutes to compile."""
    threads = usable_cpus()
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
