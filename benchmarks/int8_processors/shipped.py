"""Graphs that show a bundle's INT8 files on a processor: the files themselves, and their products alone.

The products of a file stand alone in a graph of their own, with the file's integers and scales: other
kernels for floating point cannot change their inputs there.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from calibration.ranges import with_outputs
from vaemotion.contract.bundle import ENGINE_ROLES, component_path, read_manifest

Array = npt.NDArray[Any]
SCHEMES = ("int8", "int8-cpu")


def write_shipped(bundle: Path, folder: Path) -> None:
    """Write every INT8 file of a bundle, and the graph of its products, with inputs for both."""
    manifest = read_manifest(bundle)
    with np.load(component_path(bundle, manifest.component("golden"))) as golden:
        for role in ENGINE_ROLES:
            for scheme in SCHEMES:
                path = component_path(bundle, manifest.component(role, scheme))
                model = onnx.load(str(path))
                arrays = {value.name: golden[f"{role}/in/{value.name}"] for value in model.graph.input}
                shutil.copyfile(path, folder / f"file-{role}.{scheme}.onnx")
                np.savez(folder / f"file-{role}.{scheme}.npz", **arrays)
                graph, inputs = product_graph(model, arrays)
                onnx.save(graph, str(folder / f"products-{role}.{scheme}.onnx"))
                np.savez(folder / f"products-{role}.{scheme}.npz", **inputs)


def product_graph(
    model: onnx.ModelProto, arrays: Mapping[str, Array]
) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Return a graph of the INT8 products of ``model``, each with an input of its own, and those inputs."""
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    source = {node.output[0]: node for node in model.graph.node}
    products = [
        node
        for node in model.graph.node
        if node.op_type in ("MatMul", "Gemm")
        and node.input[1] in source
        and source[node.input[1]].op_type == "DequantizeLinear"
    ]
    quantizers = [source[source[node.input[0]].input[0]] for node in products]
    names = [node.input[0] for node in quantizers]
    session = with_outputs(model, names, 1)
    seen = dict(zip(names, session.run(names, dict(arrays)), strict=True))
    nodes: list[onnx.NodeProto] = []
    stored: list[TensorProto] = []
    inputs: dict[str, Array] = {}
    for index, (product, quantizer) in enumerate(zip(products, quantizers, strict=True)):
        weight, scale = (tensors[name] for name in source[product.input[1]].input[:2])
        if any(attribute.name == "transB" and attribute.i for attribute in product.attribute):
            weight = weight.T
        inputs[f"x{index}"] = seen[quantizer.input[0]].astype(np.float32)
        values = {
            "scale": tensors[quantizer.input[1]].astype(np.float32),
            "zero": tensors[quantizer.input[2]],
            "weight": weight,
            "weight_scale": scale.astype(np.float32),
            "weight_zero": np.zeros(len(scale), weight.dtype),
        }
        stored += [numpy_helper.from_array(value, f"{name}{index}") for name, value in values.items()]
        nodes += _product(index)
    spec = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape) for name, value in inputs.items()
    ]
    outputs = [
        helper.make_tensor_value_info(f"y{index}", TensorProto.FLOAT, None) for index in range(len(products))
    ]
    graph = helper.make_graph(nodes, "products", spec, outputs, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), inputs


def _product(index: int) -> list[onnx.NodeProto]:
    """Return the nodes from input ``x`` to output ``y`` of one product."""
    scales = [f"scale{index}", f"zero{index}"]
    weight = [f"{name}{index}" for name in ("weight", "weight_scale", "weight_zero")]
    return [
        helper.make_node("QuantizeLinear", [f"x{index}", *scales], [f"q{index}"]),
        helper.make_node("DequantizeLinear", [f"q{index}", *scales], [f"d{index}"]),
        helper.make_node("DequantizeLinear", weight, [f"w{index}"], axis=1),
        helper.make_node("MatMul", [f"d{index}", f"w{index}"], [f"y{index}"]),
    ]


def check_products(folder: Path, outputs: Mapping[str, Array]) -> int:
    """Count the products whose integers are those of NumPy; ``outputs``: by ``GRAPH:OUTPUT``."""
    exact = 0
    for name, output in outputs.items():
        stem, _, tensor = name.partition(":")
        index = tensor.removeprefix("y")
        model = onnx.load(str(folder / f"{stem}.onnx"))
        tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        scale, zero, weight = (tensors[f"{part}{index}"] for part in ("scale", "zero", "weight"))
        with np.load(folder / f"{stem}.npz") as arrays:
            levels = np.rint(arrays[f"x{index}"] / scale) + zero
        limits = np.iinfo(zero.dtype)
        activations = np.clip(levels, limits.min, limits.max).astype(np.int64) - int(zero)
        expected = activations @ weight.astype(np.int64)
        got = output / (np.float64(scale) * tensors[f"weight_scale{index}"])
        exact += bool((np.abs(got - expected) < 0.5).all())
    return exact
