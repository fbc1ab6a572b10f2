"""Explicit INT8 in an ONNX graph: QuantizeLinear / DequantizeLinear around weighted matrix products, and nothing else.

In: an FP32 model and what its tensors hold on real inputs (``calibration.ranges``). Out: the model with some of its *blocks*
in INT8. A block is a transformer layer's attention or MLP, or a Linear outside of them. Two schemes: "int8" is
what TensorRT takes (symmetric, zero point 0), "int8-cpu" is what ONNX Runtime's kernels for processors are fast with (activations
in 8 bits without sign). Weights are symmetric per output channel in both, stored as INT8. All else stays in floating point: residual sums,
norms, softmax, activations, convolutions, positions, whitening and the last heads (docs/decisions/0006-int8.md).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from calibration.ranges import Histogram

SCHEMES = ("int8", "int8-cpu")
SCOPES = "pkg.torch.onnx.name_scopes"
# Whitening divides by the smallest deviations, heads write the results, ages are 16 numbers wide, queries are constants.
STAYS_HIGH = re.compile(r"whitening|(^|\.)(heads|age|query)(\.|$)")
_LAYER = re.compile(r"^(.*?layers?\.\d+\.[^.]+)")


@dataclass(frozen=True)
class WeightProduct:
    """A MatMul or Gemm with a constant weight. ``axis``: the weight's output channels; ``weight_bytes``: in FP32."""

    node: str
    block: str
    activation: str
    weight: str
    axis: int
    weight_bytes: int

    @property
    def stays_high(self) -> bool:
        return bool(STAYS_HIGH.search(self.block))


def weight_products(model: onnx.ModelProto) -> list[WeightProduct]:
    """Every matrix product of the graph with a two-dimensional constant weight, in the graph's order."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    found: list[WeightProduct] = []
    for node in model.graph.node:
        if node.op_type not in ("MatMul", "Gemm") or node.input[0] in shapes:
            continue
        shape = shapes.get(node.input[1], ())
        if len(shape) != 2:
            continue
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        size = 4 * shape[0] * shape[1]
        found.append(
            WeightProduct(
                node.name, block_of(node), node.input[0], node.input[1], 0 if transposed else 1, size
            )
        )
    return found


def block_of(node: onnx.NodeProto) -> str:
    """The module that a node belongs to, cut to a layer's attention or MLP; its own name where the exporter left no scope."""
    scopes = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), "")
    modules = re.findall(r"'([^']*)'", scopes)[:-1]
    module = modules[-1] if modules else node.name
    layer = _LAYER.match(module)
    return layer.group(1) if layer else module


def blocks(products: Sequence[WeightProduct]) -> dict[str, int]:
    """Blocks that may become INT8, with their weights' FP32 bytes."""
    sizes: dict[str, int] = {}
    for product in products:
        if not product.stays_high:
            sizes[product.block] = sizes.get(product.block, 0) + product.weight_bytes
    return sizes


def quantise(
    model: onnx.ModelProto,
    histograms: Mapping[str, Histogram],
    method: str,
    scheme: str,
    chosen: Collection[str],
) -> onnx.ModelProto:
    """A copy of ``model`` with the chosen blocks in INT8. Raises ValueError for an unknown block or scheme."""
    if scheme not in SCHEMES:
        raise ValueError(f"scheme must be one of {SCHEMES}, got {scheme!r}")
    products = [p for p in weight_products(model) if p.block in chosen]
    if unknown := set(chosen) - {p.block for p in products}:
        raise ValueError(f"the graph has no block {sorted(unknown)[0]!r}")
    quantised = onnx.ModelProto()
    quantised.CopyFrom(model)
    graph = quantised.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    before: dict[str, list[onnx.NodeProto]] = {}
    done: dict[str, str] = {}
    nodes = {node.name: node for node in graph.node}
    for product in products:
        node = nodes[product.node]
        added: list[onnx.NodeProto] = []
        if product.activation not in done:
            scale, zero = _activation_scale(histograms[product.activation], method, scheme)
            done[product.activation] = _pair(graph, added, product.activation, scale, zero)
        if product.weight not in done:
            done[product.weight] = _weight(
                graph, added, numpy_helper.to_array(weights[product.weight]), product
            )
        node.input[0], node.input[1] = done[product.activation], done[product.weight]
        before[node.name] = added
    ordered = [new for node in graph.node for new in (*before.get(node.name, ()), node)]
    del graph.node[:]
    graph.node.extend(ordered)
    _drop_unused(graph)
    onnx.checker.check_model(quantised, full_check=True)
    return quantised


def _activation_scale(
    histogram: Histogram, method: str, scheme: str
) -> tuple[np.float32, npt.NDArray[np.generic]]:
    """Scale and zero point; ``range ≈ (q - zero) * scale``."""
    threshold = histogram.threshold(method)
    if scheme == "int8":
        return np.float32(threshold / 127), np.array(0, np.int8)
    low, high = max(histogram.lowest, -threshold), min(histogram.highest, threshold)  # both hold 0
    scale = max((high - low) / 255, 1e-9)
    return np.float32(scale), np.array(round(-low / scale), np.uint8)


def _pair(
    graph: onnx.GraphProto,
    added: list[onnx.NodeProto],
    tensor: str,
    scale: np.float32,
    zero: npt.NDArray[np.generic],
) -> str:
    """Quantise and dequantise an activation; returns the name of what comes out."""
    scale_name, zero_name = f"{tensor}/scale", f"{tensor}/zero"
    graph.initializer.extend([_tensor(scale_name, np.array(scale)), _tensor(zero_name, zero)])
    quantised, restored = f"{tensor}/quantised", f"{tensor}/restored"
    added.append(
        helper.make_node("QuantizeLinear", [tensor, scale_name, zero_name], [quantised], f"{tensor}/Q")
    )
    added.append(
        helper.make_node("DequantizeLinear", [quantised, scale_name, zero_name], [restored], f"{tensor}/DQ")
    )
    return restored


def _weight(
    graph: onnx.GraphProto,
    added: list[onnx.NodeProto],
    weight: npt.NDArray[np.float32],
    product: WeightProduct,
) -> str:
    """Store a weight in INT8 with a scale per output channel; returns the name of what it is restored to."""
    scale = np.maximum(np.abs(weight).max(axis=1 - product.axis) / 127, 1e-9).astype(
        np.float32
    )  # (channels,)
    spread = scale[:, None] if product.axis == 0 else scale[None]
    values = np.clip(np.rint(weight / spread), -127, 127).astype(np.int8)
    names = [f"{product.weight}/{part}" for part in ("int8", "scale", "zero")]
    tensors = (values, scale, np.zeros(len(scale), np.int8))
    graph.initializer.extend(_tensor(name, tensor) for name, tensor in zip(names, tensors, strict=True))
    restored = f"{product.weight}/restored"
    added.append(
        helper.make_node("DequantizeLinear", names, [restored], f"{product.weight}/DQ", axis=product.axis)
    )
    return restored


def _tensor(name: str, values: npt.NDArray[np.generic]) -> TensorProto:
    return numpy_helper.from_array(values, name)


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def int8_share(model: onnx.ModelProto) -> tuple[int, int]:
    """Bytes of MatMul weights (as FP32) that are in INT8, and of all."""
    restored = {
        node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"
    }
    sizes = {tensor.name: 4 * int(np.prod(tensor.dims)) for tensor in model.graph.initializer}
    int8 = high = 0
    for node in model.graph.node:
        if node.op_type in ("MatMul", "Gemm"):
            int8 += sizes.get(restored.get(node.input[1], ""), 0)
            high += sizes.get(node.input[1], 0)
    return int8, int8 + high
