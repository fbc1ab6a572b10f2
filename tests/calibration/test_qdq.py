"""Explicit INT8: which products are quantized, exact arithmetic on every processor, and accuracy.

The accuracy is compared with that of ONNX Runtime's own quantizer.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from calibration.fp16 import half_precision, overflowing
from calibration.qdq import (
    SCHEMES,
    SCOPES,
    WEIGHT_LIMIT,
    block_of,
    blocks,
    int8_share,
    quantize,
    weight_products,
)
from calibration.ranges import observed, session_of
from export.half_weights import load_fp32_graph
from tests.int8_arithmetic import largest_pair, quantized_products, saturating_product
from tests.rtx import builds_in_tensorrt_rtx
from vaemotion.contract.bundle import ENGINE_ROLES, component_path, read_manifest

WIDTH = 48


def scoped(node: onnx.NodeProto, module: str) -> onnx.NodeProto:
    node.metadata_props.add(key=SCOPES, value=f"['', '{module}', 'linear']")
    return node


def two_layers(outlier: float = 1.0) -> onnx.ModelProto:
    """Return a graph: x → layer 0's MLP → layer 1's MLP → heads.

    ``outlier``: gain of one channel between the products of layer 1. The next weight divides by it, so that
    the function stays the same up to rounding.
    """
    rng = np.random.default_rng(3)
    weights = {
        name: rng.normal(0, WIDTH**-0.5, (WIDTH, WIDTH)).astype(np.float32) for name in ("a", "b", "c", "d")
    }
    weights["c"][:, 5] *= outlier
    weights["d"][5] /= outlier
    layers = ("m.layers.0.mlp.fc1", "m.layers.0.mlp.fc2", "m.layers.1.mlp.fc1", "m.layers.1.mlp.fc2")
    nodes, last = [], "x"
    for name, module in zip(weights, layers, strict=True):
        nodes.append(
            scoped(helper.make_node("MatMul", [last, name], [f"{name}_out"], f"product_{name}"), module)
        )
        last = f"{name}_out"
        if name == "a":
            nodes.append(helper.make_node("Gelu", [last], ["gelu"], "gelu"))
            last = "gelu"
    nodes.append(scoped(helper.make_node("MatMul", [last, "h"], ["y"], "product_h"), "m.heads.2"))
    weights["h"] = rng.normal(0, 1, (WIDTH, 4)).astype(np.float32)
    spec = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", w]) for n, w in (("x", WIDTH), ("y", 4))
    ]
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", spec[:1], spec[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def inputs(seed: int = 0, rows: int = 64) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).normal(size=(rows, WIDTH)).astype(np.float32)}


def quantized(model: onnx.ModelProto, scheme: str, chosen: list[str] | None = None) -> onnx.ModelProto:
    products = weight_products(model)
    histograms = observed(
        model, sorted({p.activation for p in products}), [inputs(seed) for seed in range(4)]
    )
    return quantize(model, histograms, "max", scheme, blocks(products) if chosen is None else chosen)


def run(model: onnx.ModelProto, arrays: dict[str, np.ndarray]) -> np.ndarray:
    return session_of(model, 1).run(None, arrays)[0]


def snr(expected: np.ndarray, got: np.ndarray) -> float:
    return float(np.square(expected).sum() / np.square(expected - got).sum())


def evaluate(model: onnx.ModelProto, tensors: list[str]) -> list[np.ndarray]:
    """Evaluate tensors of a graph on ``inputs(9)`` with ONNX's reference implementation, in NumPy."""
    return [np.asarray(values) for values in ReferenceEvaluator(model).run(tensors, dict(inputs(9)))]


def test_blocks_are_a_layers_mlp_and_heads_stay_high() -> None:
    products = weight_products(two_layers())
    assert [p.block for p in products] == ["m.layers.0.mlp"] * 2 + ["m.layers.1.mlp"] * 2 + ["m.heads.2"]
    assert [p.stays_high for p in products] == [False] * 4 + [True]
    assert blocks(products) == {"m.layers.0.mlp": 2 * 4 * WIDTH**2, "m.layers.1.mlp": 2 * 4 * WIDTH**2}


def test_a_node_without_a_scope_is_a_block_by_itself() -> None:
    assert block_of(helper.make_node("MatMul", ["x", "w"], ["y"], "product_7")) == "product_7"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_two_products_leave_int16(scheme: str) -> None:
    """Check the bound for any two weights of a channel: the pairs depend on how a kernel packs them."""
    for model in (two_layers(), two_layers(outlier=3000.0)):
        for _, weight in quantized_products(quantized(model, scheme)):
            assert largest_pair(weight) <= np.iinfo(np.int16).max
            assert np.abs(weight).max() == WEIGHT_LIMIT  # every bit that the bound leaves is used


@pytest.mark.parametrize("scheme", SCHEMES)
def test_saturating_arithmetic_is_exact_for_our_weights_and_not_for_eight_bits(scheme: str) -> None:
    """Integer arithmetic in NumPy: the result does not depend on the processor that runs the test."""
    small = quantized(two_layers(), scheme)
    products = quantized_products(small)
    names = list(dict.fromkeys(name for name, _ in products))
    seen = dict(zip(names, evaluate(small, names), strict=True))
    orders = [np.arange(WIDTH), np.random.default_rng(4).permutation(WIDTH)]
    for name, weight in products:
        shift = (
            128 if seen[name].dtype == np.int8 else 0
        )  # ONNX Runtime gives kernels for u8 x s8 an s8 activation so
        real = (seen[name].astype(np.int16) + shift).astype(np.uint8)  # (n, in)
        worst = np.where(np.concatenate([weight.T, -weight.T]) > 0, 255, 0).astype(np.uint8)  # (2 out, in)
        activations = np.concatenate([real, worst])
        exact = activations.astype(np.int64) @ weight.astype(np.int64)
        eight_bits = np.rint(weight * (127 / WEIGHT_LIMIT)).astype(np.int8)
        for order in orders:
            np.testing.assert_array_equal(saturating_product(activations, weight, order), exact)
            wrong = saturating_product(activations, eight_bits, order)
            assert (wrong != activations.astype(np.int64) @ eight_bits.astype(np.int64)).any()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_this_processor_computes_what_numpy_does(scheme: str) -> None:
    small = quantized(two_layers(), scheme)
    expected = evaluate(small, ["y"])[0]
    np.testing.assert_allclose(run(small, inputs(9)), expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_int8_is_near_fp32_and_smaller(scheme: str) -> None:
    model = two_layers()
    small = quantized(model, scheme)
    assert snr(run(model, inputs(9)), run(small, inputs(9))) > 300
    assert len(small.SerializeToString()) < 0.5 * len(model.SerializeToString())
    int8, whole = int8_share(small)
    assert int8 == 4 * 4 * WIDTH**2
    assert whole == int8 + 4 * WIDTH * 4


def test_only_the_chosen_blocks_change() -> None:
    model = two_layers()
    partly = quantized(model, "int8", ["m.layers.1.mlp"])
    kept = {t.name for t in partly.graph.initializer}
    assert {"a", "b", "h"} <= kept
    assert not {"c", "d"} & kept
    with pytest.raises(ValueError, match=r"no block 'm\.layers\.7'"):
        quantized(model, "int8", ["m.layers.7"])


def test_tensorrts_scheme_is_symmetric_with_signed_activations_and_channel_scales() -> None:
    small = quantized(two_layers(), "int8")
    tensors = {t.name: numpy_helper.to_array(t) for t in small.graph.initializer}
    for node in small.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = tensors[node.input[2]]
            assert zero.dtype == np.int8
            assert not zero.any()
    assert tensors["a/scale"].shape == (WIDTH,)
    assert np.abs(tensors["a/int8"]).max() <= WEIGHT_LIMIT


def test_as_near_as_onnxruntimes_own_quantizer(tmp_path: Path) -> None:
    """Compare with an independent implementation: symmetric static Q/DQ of the same products.

    Weights per channel with ``reduce_range`` (7 bits), activations by their maximum.
    """

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter([inputs(seed) for seed in range(4)])

        def get_next(self) -> dict[str, np.ndarray]:
            return next(self.left, None)  # type: ignore[return-value]

    model = two_layers()
    onnx.save(model, str(tmp_path / "fp32.onnx"))
    quantize_static(
        tmp_path / "fp32.onnx",
        tmp_path / "theirs.onnx",
        Reader(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        reduce_range=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=["product_h"],
        extra_options={"ActivationSymmetric": True, "OpTypesToExcludeOutputQuantization": ["MatMul"]},
    )
    expected = run(model, inputs(9))
    ours, theirs = (
        snr(expected, run(m, inputs(9)))
        for m in (quantized(model, "int8"), onnx.load(str(tmp_path / "theirs.onnx")))
    )
    print(f"signal to noise: ours {ours:.0f}, ONNX Runtime's {theirs:.0f}")
    assert ours > 0.8 * theirs


def test_a_planted_outlier_makes_its_block_the_worst() -> None:
    plain, spiked = two_layers(), two_layers(outlier=3000.0)
    np.testing.assert_allclose(run(plain, inputs(9)), run(spiked, inputs(9)), rtol=2e-3, atol=2e-3)
    noise = {
        block: 1 / snr(run(spiked, inputs(9)), run(quantized(spiked, "int8", [block]), inputs(9)))
        for block in blocks(weight_products(spiked))
    }
    assert noise["m.layers.1.mlp"] > 10 * noise["m.layers.0.mlp"]


def test_what_overflows_float16_stays_in_fp32() -> None:
    model = two_layers(outlier=3e4)  # products beyond 16 376, a quarter of float16's range
    stays = overflowing(model, [inputs(0)])
    assert stays == ["product_c", "product_d"]
    half = half_precision(model, stays)
    types = {t.name: t.data_type for t in half.graph.initializer}
    assert types["a"] == types["h"] == TensorProto.FLOAT16
    assert types["c"] == types["d"] == TensorProto.FLOAT
    expected = run(model, inputs(9))
    assert snr(expected, run(half, inputs(9))) > 1e4


def test_nothing_overflows_in_a_tame_graph_and_all_of_it_is_halved() -> None:
    model = two_layers()
    assert overflowing(model, [inputs(0)]) == []
    half = half_precision(model, [])
    assert {t.data_type for t in half.graph.initializer} == {TensorProto.FLOAT16}
    assert [v.type.tensor_type.elem_type for v in (*half.graph.input, *half.graph.output)] == [
        TensorProto.FLOAT
    ] * 2


@pytest.mark.parametrize("role", ENGINE_ROLES)
def test_every_variant_of_the_real_graphs_builds_in_tensorrt_rtx(
    small_bundle: Path, role: str, tmp_path: Path
) -> None:
    manifest = read_manifest(small_bundle)
    model = load_fp32_graph(component_path(small_bundle, manifest.component(role, "fp32")))
    with np.load(component_path(small_bundle, manifest.component("golden"))) as golden:
        arrays = {v.name: golden[f"{role}/in/{v.name}"] for v in model.graph.input}
    products = weight_products(model)
    histograms = observed(model, sorted({p.activation for p in products if not p.stays_high}), [arrays])
    int8 = quantize(model, histograms, "max", "int8", blocks(products))
    for name, graph in {"fp16": half_precision(model, []), "int8": half_precision(int8, [])}.items():
        onnx.save(graph, str(tmp_path / f"{name}.onnx"))
        builds_in_tensorrt_rtx(tmp_path / f"{name}.onnx")
