"""Layers in INT8 are read from the engine: both inspectors' formats, fused and data-moving layers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from runtime.engines.tensorrt.layers import int8_report, layers_of


def tensor(version: int, kind: str) -> dict[str, Any]:
    """Describe a tensor as TensorRT 10 or 11 does."""
    if version == 10:
        return {"Name": "t", "Dimensions": [1, 64], "Format/Datatype": kind}
    return {"Name": "t", "Dimensions": [1, 64], "Format": "Row major linear", "DataType": kind}


def engine(version: int) -> str:
    int8, half, real = (tensor(version, kind) for kind in ("Int8", "Half", "Float"))
    layers = [
        {"Name": "quantize", "LayerType": "Reformat", "Inputs": [real], "Outputs": [int8]},
        {
            "Name": "query",
            "LayerType": "gemm",
            "TacticName": "sm80_xmma_gemm_i8i8_i8i32_f32_tn",
            "Metadata": "[ONNX Layer: q_QuantizeLinear]\u001e[ONNX Layer: q_MatMul]",
            "Inputs": [int8],
            "Outputs": [half],
        },
        {"Name": "stem", "LayerType": "CaskConvolution", "Weights": {"Type": "Int8"}, "Inputs": [int8]},
        {"Name": "fused", "LayerType": "kgen", "TacticName": "_gemm_mha_v2_tactic", "Inputs": [int8, int8]},
        {"Name": "requested", "LayerType": "CaskConvolution", "Weights": {"Type": "Half"}, "Inputs": [int8]},
        {"Name": "head", "LayerType": "gemm", "TacticName": "sm80_f16f16_gemm", "Inputs": [half]},
        {"Name": "add", "LayerType": "PointWise", "Inputs": [half, int8], "Outputs": [half]},
        {"Name": "convert", "LayerType": "kgen", "TacticName": "convert_layout", "Inputs": [int8]},
    ]
    return json.dumps({"Layers": layers, "Bindings": []})


@pytest.mark.parametrize("version", [10, 11])
def test_matrix_products_in_int8_are_told_apart_from_other_layers(version: int) -> None:
    layers = layers_of(engine(version))
    report = int8_report(layers)
    assert report.int8 == ("query", "stem", "fused")
    assert report.other == ("requested", "head")
    assert report.share == pytest.approx(3 / 5)
    assert report.sentence() == "3 of 5 matrix products run in INT8"
    assert layers[1].nodes == ("q_QuantizeLinear", "q_MatMul")
    assert layers[0].input_types == ("Float",)


def test_an_engine_without_details_claims_nothing() -> None:
    report = int8_report(layers_of('{"Layers": ["gemm_1", "gemm_2"]}'))
    assert (report.int8, report.other, report.share) == ((), (), 0.0)
