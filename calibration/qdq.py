"""Explicit INT8 in an ONNX graph: QuantizeLinear / DequantizeLinear around weighted matrix products.

In: an FP32 model and the ranges of its tensors on real inputs (``calibration.ranges``). Out: the model with
some of its *blocks* in INT8. A block is a transformer layer's attention or MLP, or a Linear outside of
them.

There are two schemes. "int8" is for TensorRT: activations are s8 with zero point 0. "int8-cpu" is for ONNX
Runtime on processors: activations are u8. In both, weights are s8, symmetric per output channel, with a
magnitude of at most ``WEIGHT_LIMIT``. Everything else stays in floating point: residual sums, norms,
softmax, activation functions, convolutions, positions, whitening and the last heads
(docs/decisions/0006-quantisers.md).
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
# x86 processors without VNNI add pairs of u8 x s8 products in 16 bits (vpmaddubsw), which saturate. ONNX
# Runtime gives them s8 activations as u8, too. Up to a weight of 64, every pair is exact: 255 * (64 + 64) =
# 32,640 (docs/decisions/0007-int8-on-every-processor.md).
WEIGHT_LIMIT = 32_767 // (2 * 255)
SCOPES = "pkg.torch.onnx.name_scopes"
# Whitening divides by the smallest deviations, heads write the results, ages are 16 numbers wide, queries
# are constants.
STAYS_HIGH = re.compile(r"whitening|(^|\.)(heads|age|query)(\.|$)")
_LAYER = re.compile(r"^(.*?layers?\.\d+\.[^.]+)")


@dataclass(frozen=True)
class WeightProduct:
    """A MatMul or Gemm with a constant weight (in, out), or (out, in) for a Gemm with ``transB``.

    ``axis``: the weight's axis of output channels. ``weight_bytes``: its size in FP32.
    """

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
    """List the matrix products that have a two-dimensional constant weight, in the graph's order."""
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
    """Name the module of a node, cut to a layer's attention or MLP; without a scope, the node itself."""
    scopes = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), "")
    modules = re.findall(r"'([^']*)'", scopes)[:-1]
    module = modules[-1] if modules else node.name
    layer = _LAYER.match(module)
    return layer.group(1) if layer else module


def blocks(products: Sequence[WeightProduct]) -> dict[str, int]:
    """Return the blocks that may become INT8, with the bytes of their weights in FP32."""
    sizes: dict[str, int] = {}
    for product in products:
        if not product.stays_high:
            sizes[product.block] = sizes.get(product.block, 0) + product.weight_bytes
    return sizes


def quantize(
    model: onnx.ModelProto,
    histograms: Mapping[str, Histogram],
    method: str,
    scheme: str,
    chosen: Collection[str],
) -> onnx.ModelProto:
    """Return a copy of ``model`` with the chosen blocks in INT8.

    ``histograms``: of each product's activation. ``method``: one of ``calibration.ranges.METHODS``, for
    activations; weights take their largest magnitude per output channel. Raises ValueError for an unknown
    block or scheme.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"scheme must be one of {', '.join(SCHEMES)}, got {scheme!r}")
    products = [p for p in weight_products(model) if p.block in chosen]
    if unknown := set(chosen) - {p.block for p in products}:
        raise ValueError(f"the graph has no block {sorted(unknown)[0]!r}")
    quantized = onnx.ModelProto()
    quantized.CopyFrom(model)
    graph = quantized.graph
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
    onnx.checker.check_model(quantized, full_check=True)
    return quantized


def _activation_scale(
    histogram: Histogram, method: str, scheme: str
) -> tuple[np.float32, npt.NDArray[np.generic]]:
    """Return scale and zero point of an activation: ``value ≈ (q - zero) * scale``."""
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
    """Add Q and DQ of an activation to ``added``; return the name of the dequantized tensor."""
    scale_name, zero_name = f"{tensor}/scale", f"{tensor}/zero"
    graph.initializer.extend([_tensor(scale_name, np.array(scale)), _tensor(zero_name, zero)])
    quantized, restored = f"{tensor}/quantised", f"{tensor}/restored"
    added.append(
        helper.make_node("QuantizeLinear", [tensor, scale_name, zero_name], [quantized], f"{tensor}/Q")
    )
    added.append(
        helper.make_node("DequantizeLinear", [quantized, scale_name, zero_name], [restored], f"{tensor}/DQ")
    )
    return restored


def _weight(
    graph: onnx.GraphProto,
    added: list[onnx.NodeProto],
    weight: npt.NDArray[np.float32],
    product: WeightProduct,
) -> str:
    """Store a weight in INT8 with a scale per output channel; return the name of the dequantized tensor."""
    largest = np.abs(weight).max(axis=1 - product.axis)  # (channels,)
    scale = np.maximum(largest / WEIGHT_LIMIT, 1e-9).astype(np.float32)
    spread = np.expand_dims(scale, 1 - product.axis)
    values = np.clip(np.rint(weight / spread), -WEIGHT_LIMIT, WEIGHT_LIMIT).astype(np.int8)
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
    """Remove the initializers that no node reads."""
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def int8_share(model: onnx.ModelProto) -> tuple[int, int]:
    """Return the bytes (as FP32) of the matrix weights that are in INT8, and of all matrix weights."""
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
