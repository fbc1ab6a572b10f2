"""Integer arithmetic of INT8 graphs in NumPy, the same on every processor that runs a test."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import numpy_helper


def quantized_products(model: onnx.ModelProto) -> list[tuple[str, np.ndarray]]:
    """List the INT8 products of a graph: name of the quantized activation, and stored weight (in, out)."""
    tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    restored = {
        node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"
    }
    products = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm")]
    found: list[tuple[str, np.ndarray]] = []
    for node in products:
        if (stored := tensors.get(restored.get(node.input[1], ""))) is not None:
            transposed = any(a.name == "transB" and a.i for a in node.attribute)
            found.append((restored[node.input[0]], stored.T if transposed else stored))
    return found


def largest_pair(weight: np.ndarray) -> int:
    """Return the largest magnitude of two products of u8 activations with any two weights of one channel."""
    two_largest = np.sort(np.abs(weight.astype(np.int64)), axis=0)[-2:]  # (2, out)
    return 255 * int(two_largest.sum(axis=0).max())


def saturating_product(activations: np.ndarray, weight: np.ndarray, order: Sequence[int]) -> np.ndarray:
    """Multiply u8 (n, in) by s8 (in, out) as x86 processors without VNNI do (vpmaddubsw).

    Products are added in pairs, in int16, which saturates; ``order`` of the inputs says which two are a pair.
    """
    products = activations.astype(np.int64)[:, order, None] * weight.astype(np.int64)[None, order]
    pairs = products[:, ::2] + products[:, 1::2]  # (n, in / 2, out)
    limits = np.iinfo(np.int16)
    return np.clip(pairs, limits.min, limits.max).sum(axis=1)
