"""A checkpoint's modules as ONNX: vision encoder, audio encoder with pooling and projector, EmoAdapter.

In: a model. Out: files by ``torch.onnx.export(dynamo=True)``, opset 20, the batch as a named free dimension.
All other sizes are fixed, so that TensorRT needs no shape inference.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from calibration.qdq import SCOPES
from export.errors import ExportError
from vaemotion.contract.bundle import TensorSpec
from vaemotion.model.emo_adapter import CONSTRUCTS, EmoAdapter
from vaemotion.model.vaemotion_llm import VAEmotionLLM

OPSET = 20  # opset 23's Attention fails in ONNX Runtime's CPU provider and in TensorRT-RTX
EXPRESSED_OUTPUTS = ("valence_arousal", "spread", "emotions")
TOKEN_OUTPUTS = ("enhanced_audio_tokens", "enhanced_visual_tokens")
INDUCED_OUTPUTS = ("induced_valence_arousal", "induced_spread", "induced_emotions")
ADAPTER_OUTPUTS = (*EXPRESSED_OUTPUTS, *TOKEN_OUTPUTS, *INDUCED_OUTPUTS)


@dataclass(frozen=True)
class Part:
    """A module with example inputs by name and the names of its outputs.

    The examples have batch 2, so that the batch is not mistaken for a constant.
    """

    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...]


class DeviceAdapter(nn.Module):
    """The EmoAdapter with the outputs that a device reads.

    Each construct has names of its own, and emotions are probabilities. The runtime publishes the expressed
    emotion; evaluation also reads the induced one.
    """

    def __init__(self, adapter: EmoAdapter) -> None:
        super().__init__()
        self.adapter = adapter

    def forward(
        self,
        audio_tokens: Tensor,  # (B, N_a, D)
        audio_mask: Tensor,  # (B, N_a) bool
        audio_age_s: Tensor,  # (B, N_a)
        visual_tokens: Tensor,  # (B, N_v, D)
        visual_mask: Tensor,  # (B, N_v) bool
        visual_age_s: Tensor,  # (B, N_v)
    ) -> tuple[Tensor, ...]:
        """Compute ``ADAPTER_OUTPUTS`` in their order."""
        out = self.adapter(audio_tokens, audio_mask, audio_age_s, visual_tokens, visual_mask, visual_age_s)
        expressed, induced = (
            (out.valence_arousal[:, k], out.spread[:, k], out.emotion_logits[:, k].softmax(-1))
            for k in (CONSTRUCTS.index("expressed"), CONSTRUCTS.index("induced"))
        )
        return (*expressed, out.audio_tokens, out.visual_tokens, *induced)


def device_parts(model: VAEmotionLLM) -> dict[str, Part]:
    """Collect the parts that become engines, by role. Raises MissingPartError for an unfinished model."""
    audio, adapter = model.audio_pathway, model.emo_adapter
    front_end, width = model.config.front_end, model.width
    side = front_end.image.side_px
    pixels = torch.zeros(2, 3, side, side)
    log_mel = torch.zeros(2, front_end.audio_window_frames, front_end.log_mel.n_mels)
    n_audio, n_visual = audio.n_tokens, front_end.windows.frames * model.tokens_per_frame
    return {
        "vision_encoder": Part(model.vision, {"pixels": pixels}, ("tokens",)),
        "audio_encoder": Part(audio, {"log_mel": log_mel}, ("tokens",)),
        "emo_adapter": Part(
            DeviceAdapter(adapter),
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
    """Write one part as ONNX. Returns its inputs and outputs, whose only free dimension is the batch.

    Raises ExportError for a part that ONNX cannot express, or that came out with other names or shapes.
    """
    module = part.module.eval()
    use_eager_attention(module)
    dynamic = tuple({0: "batch"} for _ in part.inputs)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about itself; the result is checked below
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


def use_eager_attention(module: nn.Module) -> None:
    """Switch transformers' models from fused to plain attention, in place.

    The exporter guards the softmax of fused attention against NaN, which costs a tenth of an engine's time
    (docs/decisions/0005-against-optimum.md).
    """
    for inner in module.modules():
        if isinstance(inner, PreTrainedModel):
            inner.set_attn_implementation("eager")


def _innermost(error: BaseException) -> str:
    """Return the first line of the exception behind the others: torch wraps it in pages."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _strip_metadata(model: onnx.ModelProto) -> None:
    """Keep only the module's name of each node's metadata: stack traces hold paths of this machine."""
    for node in model.graph.node:
        kept = [entry for entry in node.metadata_props if entry.key == SCOPES]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)


def _nested(module: nn.Module, dynamic: tuple[dict[int, str], ...]) -> dict[str, dict[int, str]]:
    """Name the free dimensions by the parameters of ``forward``."""
    names = module.forward.__code__.co_varnames[1 : 1 + len(dynamic)]
    return dict(zip(names, dynamic, strict=True))


def tensor_specs(values: Iterable[onnx.ValueInfoProto]) -> tuple[TensorSpec, ...]:
    """Read names, shapes and types of a graph's inputs or outputs."""
    specs: list[TensorSpec] = []
    for value in values:
        tensor = value.type.tensor_type
        shape = tuple(d.dim_param or d.dim_value for d in tensor.shape.dim)
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        specs.append(TensorSpec(value.name, shape, dtype))
    return tuple(specs)
