"""Tensors of ONNX files: the names of the EmoAdapter's outputs, and a reader of names, shapes and types."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from vaemotion.contract.bundle import TensorSpec

OPSET = 20  # opset 23's Attention fails in ONNX Runtime's CPU provider and in TensorRT-RTX
EXPRESSED_OUTPUTS = ("valence_arousal", "spread", "emotions")
TOKEN_OUTPUTS = ("enhanced_audio_tokens", "enhanced_visual_tokens")
INDUCED_OUTPUTS = ("induced_valence_arousal", "induced_spread", "induced_emotions")
ADAPTER_OUTPUTS = (*EXPRESSED_OUTPUTS, *TOKEN_OUTPUTS, *INDUCED_OUTPUTS)


def tensor_specs(values: Iterable[onnx.ValueInfoProto]) -> tuple[TensorSpec, ...]:
    """Read names, shapes and types of a graph's inputs or outputs."""
    specs: list[TensorSpec] = []
    for value in values:
        tensor = value.type.tensor_type
        shape = tuple(d.dim_param or d.dim_value for d in tensor.shape.dim)
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        specs.append(TensorSpec(value.name, shape, dtype))
    return tuple(specs)
