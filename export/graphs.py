"""ONNX graphs of an unfinished bundle: read an engine in FP32, write one in another precision."""

from __future__ import annotations

from pathlib import Path

import onnx

from calibration.onnx_file import save_graph
from export.half_weights import load_fp32_graph
from export.step_store import MadeFile
from export.tensors import tensor_specs
from export.workshop import ExportFolder, onnx_name


def load_fp32(folder: ExportFolder, role: str) -> onnx.ModelProto:
    """Read an engine's FP32 graph."""
    return load_fp32_graph(folder.file(onnx_name(role, "fp32")))


def save_engine(folder: Path, model: onnx.ModelProto, role: str, precision: str) -> MadeFile:
    """Write a graph into the folder of a step."""
    name = onnx_name(role, precision)
    save_graph(model, folder / name)
    return MadeFile(name, role, precision, tensor_specs(model.graph.input), tensor_specs(model.graph.output))
