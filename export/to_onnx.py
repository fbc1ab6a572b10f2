"""A checkpoint's modules as ONNX: vision encoder, audio encoder with pooling and projector, EmoAdapter.

In: a model. Out: files in opset 20, by ``torch.onnx.export(dynamo=True)``, or by ``transformers.exporters``,
which calls it with patches of its own. The batch is the only free dimension, so that TensorRT needs no shape
inference.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from calibration.onnx_file import save_graph
from calibration.qdq import SCOPES
from export.errors import ExportError
from export.tensors import ADAPTER_OUTPUTS, OPSET, tensor_specs
from vaemotion.contract.bundle import TensorSpec
from vaemotion.model.emo_adapter import CONSTRUCTS, EmoAdapter
from vaemotion.model.vaemotion_llm import VAEmotionLLM


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


def export_onnx(
    part: Part, path: Path, exporter: str = "torch"
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Write one part as ONNX. Returns its inputs and outputs, whose only free dimension is the batch.

    ``exporter``: a key of ``EXPORTERS``. Raises ExportError for a part that ONNX cannot express, or that came
    out with other names, shapes or operators.
    """
    use_eager_attention(part.module.eval())
    for name in ("torch.onnx", "transformers.exporters"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about itself; the result is checked below
        try:
            EXPORTERS[exporter](part, path)
        except RuntimeError as error:  # torch.onnx.OnnxExporterError, and what torch.export raises
            raise ExportError(
                f"{path.name}: ONNX has no form for a part of this model: {_innermost(error)}"
            ) from error
    model = onnx.load(str(path))
    _strip_metadata(model)
    if foreign := sorted({node.domain for node in model.graph.node} - {""}):
        raise ExportError(f"{path.name}: has operators of {', '.join(foreign)}, expected ONNX's own only")
    save_graph(model, path)
    onnx.checker.check_model(str(path), full_check=True)
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


def _by_torch(part: Part, path: Path) -> None:
    """Write a part by ``torch.onnx.export``."""
    torch.onnx.export(
        part.module,
        tuple(part.inputs.values()),
        str(path),
        dynamo=True,
        opset_version=OPSET,
        input_names=list(part.inputs),
        output_names=list(part.outputs),
        dynamic_shapes={name: {0: "batch"} for name in _parameters(part)},
        external_data=False,  # but where one file cannot hold them
        verbose=False,
    )


def _by_transformers(part: Part, path: Path) -> None:
    """Write a part by ``transformers.exporters``, the successor of optimum's exporter.

    It is written for models of ``transformers``, and takes every module. Its names of outputs and of the
    batch are replaced.
    """
    from transformers.exporters.configs import OnnxConfig
    from transformers.exporters.exporter_onnx import OnnxExporter

    batch = torch.export.Dim("batch")
    inputs: dict[str, Any] = dict(zip(_parameters(part), part.inputs.values(), strict=True))
    config = OnnxConfig(dynamic_shapes={name: {0: batch} for name in inputs}, opset_version=OPSET)
    module: Any = part.module  # annotated as a PreTrainedModel
    with redirect_stdout(io.StringIO()):  # its progress
        program = OnnxExporter().export(module, inputs, config).program
    for value, name in zip(
        (*program.graph.inputs, *program.graph.outputs), (*part.inputs, *part.outputs), strict=False
    ):
        value.name = name
    model = onnx_ir.to_proto(program)
    free = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param == free:
                size.dim_param = "batch"
    save_graph(model, path)


EXPORTERS: Mapping[str, Callable[[Part, Path], None]] = {"torch": _by_torch, "transformers": _by_transformers}


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


def _parameters(part: Part) -> tuple[str, ...]:
    """Name the parameters of a part's ``forward``, one for each input."""
    return part.module.forward.__code__.co_varnames[1 : 1 + len(part.inputs)]
