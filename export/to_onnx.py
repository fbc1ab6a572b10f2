"""A checkpoint's modules as ONNX: vision encoder, audio encoder (with pooling and projector), EmoAdapter.

``torch.onnx.export(dynamo=True)``, opset 20, the batch as a named free dimension. Everything else is fixed, so that TensorRT
needs no shape inference.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from calibration.qdq import SCOPES
from vaemotion.contract.bundle import TensorSpec
from vaemotion.contract.errors import UserError
from vaemotion.model.emo_adapter import CONSTRUCTS, EmoAdapter
from vaemotion.model.vaemotion_llm import VAEmotionLLM

OPSET = 20  # opset 23's Attention fails in ONNX Runtime's CPU provider and in TensorRT-RTX
_TYPES = {torch.float32: "float32", torch.bool: "bool"}
# The first three are what a work expresses, the last three what it induces.
ADAPTER_OUTPUTS = (
    "valence_arousal", "spread", "emotions", "enhanced_audio_tokens", "enhanced_visual_tokens",
    "induced_valence_arousal", "induced_spread", "induced_emotions",
)  # fmt: skip


class ExportError(UserError):
    """An export that could not be made, or is not what it must be."""


@dataclass(frozen=True)
class Part:
    """A module with example inputs by name (batch 2, so that the batch is not mistaken for a constant) and its outputs' names."""

    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...]


class DeviceAdapter(nn.Module):
    """The EmoAdapter as the device reads it: each construct under its own names, and probabilities instead of logits. The runtime
    publishes what is expressed; evaluation also asks for what is induced."""

    def __init__(self, adapter: EmoAdapter) -> None:
        super().__init__()
        self.adapter = adapter

    def forward(
        self, audio_tokens: Tensor, audio_mask: Tensor, audio_age_s: Tensor, visual_tokens: Tensor,
        visual_mask: Tensor, visual_age_s: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        out = self.adapter(audio_tokens, audio_mask, audio_age_s, visual_tokens, visual_mask, visual_age_s)
        expressed, induced = (
            (out.valence_arousal[:, k], out.spread[:, k], out.emotion_logits[:, k].softmax(-1))
            for k in (CONSTRUCTS.index("expressed"), CONSTRUCTS.index("induced"))
        )
        return (*expressed, out.audio_tokens, out.visual_tokens, *induced)


def device_parts(model: VAEmotionLLM) -> dict[str, Part]:
    """The parts that become engines, by role."""
    if model.audio is None or model.adapter is None:
        missing = "audio pathway" if model.audio is None else "EmoAdapter"
        raise ExportError(
            f"the checkpoint has no {missing}; run `vaemotion train align` and `vaemotion train emotion` first"
        )
    front_end, width = model.config.front_end, model.width
    side = front_end.image.side_px
    pixels = torch.zeros(2, 3, side, side)
    log_mel = torch.zeros(2, front_end.audio_window_frames, front_end.log_mel.n_mels)
    n_audio, n_visual = model.audio.n_tokens, front_end.windows.frames * model.tokens_per_picture
    return {
        "vision_encoder": Part(model.vision, {"pixels": pixels}, ("tokens",)),
        "audio_encoder": Part(model.audio, {"log_mel": log_mel}, ("tokens",)),
        "emo_adapter": Part(
            DeviceAdapter(model.adapter),
            {
                "audio_tokens": torch.zeros(2, n_audio, width),
                "audio_mask": torch.ones(2, n_audio, dtype=torch.bool),
                "audio_age_s": torch.zeros(2, n_audio),
                "visual_tokens": torch.zeros(2, n_visual, width),
                "visual_mask": torch.ones(2, n_visual, dtype=torch.bool),
                "visual_age_s": torch.zeros(2, n_visual),
            },
            ADAPTER_OUTPUTS,
        ),
    }


def export_onnx(part: Part, path: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Write one part; returns its I/O contract. The batch dimension is asserted to be free."""
    module = part.module.eval()
    for inner in module.modules():
        if isinstance(
            inner, PreTrainedModel
        ):  # the exporter guards the softmax of fused attention against NaN, at a tenth of the time
            inner.set_attn_implementation("eager")  # (docs/decisions/0005-against-optimum.md)
    dynamic = tuple({0: "batch"} for _ in part.inputs)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own making; the result is checked below
        try:
            torch.onnx.export(
                module,
                tuple(part.inputs.values()),
                str(path),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(part.inputs),
                output_names=list(part.outputs),
                dynamic_shapes=_nested(module, dynamic),
                external_data=False,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise ExportError(
                f"{path.name}: ONNX has no form for a part of this model: {_innermost(error)}"
            ) from error
    model = onnx.load(str(path))
    _strip_metadata(model)
    onnx.save(model, str(path))
    onnx.checker.check_model(model, full_check=True)
    inputs, outputs = tensor_specs(model.graph.input), tensor_specs(model.graph.output)
    for spec in (*inputs, *outputs):
        if spec.shape[0] != "batch" or any(isinstance(size, str) for size in spec.shape[1:]):
            raise ExportError(
                f"{path.name}: {spec.name!r} came out with shape {spec.shape}, expected a free batch only"
            )
    if [spec.name for spec in inputs] != list(part.inputs) or [s.name for s in outputs] != list(part.outputs):
        raise ExportError(
            f"{path.name}: the exporter renamed inputs or outputs: {[s.name for s in (*inputs, *outputs)]}"
        )
    return inputs, outputs


def _innermost(error: BaseException) -> str:
    """The first line of what an exception came from: torch wraps it in pages about itself."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _strip_metadata(model: onnx.ModelProto) -> None:
    """Of what the exporter notes beside each node only the module's name stays: stack traces are of this machine."""
    for node in model.graph.node:
        kept = [entry for entry in node.metadata_props if entry.key == SCOPES]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)


def _nested(module: nn.Module, dynamic: tuple[dict[int, str], ...]) -> dict[str, dict[int, str]]:
    """Free dimensions by the names of ``forward``'s parameters."""
    names = module.forward.__code__.co_varnames[1 : 1 + len(dynamic)]
    return dict(zip(names, dynamic, strict=True))


def tensor_specs(values: object) -> tuple[TensorSpec, ...]:
    specs: list[TensorSpec] = []
    for value in values:  # type: ignore[attr-defined]
        tensor = value.type.tensor_type
        shape = tuple(d.dim_param or d.dim_value for d in tensor.shape.dim)
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        specs.append(TensorSpec(value.name, shape, dtype))
    return tuple(specs)
