"""The ways in which weights can be kept in 8 bits, as graphs and with their accuracy."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

from benchmarks.encoders import fp32_file, true_shapes, works
from benchmarks.quantisers import Reader
from calibration.qdq import SCHEMES, WEIGHT_LIMIT, blocks, quantize, weight_products
from calibration.ranges import Histogram, observed
from calibration.samples import Sample, content_hash, procedural_samples
from export.int8.material import judging_clips
from export.int8.search import SearchWindows, SessionEngine, calibration_inputs
from export.verify import sqnr_db
from runtime.engines.io import Arrays
from runtime.perception.predictor import Predictor, open_predictor
from vaemotion.contract.bundle import ENGINE_ROLES, component_path, read_manifest
from vaemotion.contract.front_end import FrontEnd, window_at

# By name: the largest magnitude of a weight, and whether it is stored without a sign (zero point 128).
STORED = {
    "s8, 7 bits (ours)": (WEIGHT_LIMIT, False),
    "s8, 8 bits": (127, False),
    "u8, 8 bits": (127, True),
}
PRECISE = "s8, 8 bits, precise"  # ONNX Runtime's session option session.x64quantprecision
CHOICES = (*STORED, PRECISE)
THEIRS = "ONNX Runtime's reduce_range"
WINDOWS = 64


def with_weights(
    quantized: onnx.ModelProto, model: onnx.ModelProto, limit: int, *, unsigned: bool
) -> onnx.ModelProto:
    """Return ``quantized`` with its INT8 weights rounded anew from the FP32 ``model``."""
    changed = onnx.ModelProto()
    changed.CopyFrom(quantized)
    tensors = {tensor.name: tensor for tensor in changed.graph.initializer}
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in changed.graph.node:
        name = node.input[0].removesuffix("/int8") if node.op_type == "DequantizeLinear" else ""
        if name not in weights:
            continue
        weight = numpy_helper.to_array(weights[name])
        axis = next(attribute.i for attribute in node.attribute if attribute.name == "axis")
        scale = (np.abs(weight).max(axis=1 - axis) / limit).astype(np.float32)
        zero = np.full(len(scale), 128 if unsigned else 0, np.uint8 if unsigned else np.int8)
        levels = np.clip(np.rint(weight / np.expand_dims(scale, 1 - axis)), -limit, limit)
        stored = ((levels + int(zero[0])).astype(zero.dtype), scale, zero)
        for tensor, values in zip(node.input, stored, strict=True):
            tensors[tensor].CopyFrom(numpy_helper.from_array(values, tensor))
    return changed


def write_choices(bundle: Path, folder: Path, windows: int) -> list[list[object]]:
    """Write each engine of a bundle and a large tower in every choice; return rows of accuracy."""
    manifest = read_manifest(bundle)
    rows: list[list[object]] = []
    with open_predictor(bundle, precision="fp32", language_type="F16") as reference:
        samples = list(procedural_samples(manifest.front_end, windows))
        judged = list(_judged(manifest.front_end))
        for role in ENGINE_ROLES:
            model = onnx.load(str(component_path(bundle, manifest.component(role, "fp32"))))
            batches = list(calibration_inputs(role, samples, reference, {}))
            trial = calibration_inputs(role, judged, reference, {})
            _write(folder, role, model, _ranges(model, batches), trial[0])
            rows += _accuracy(role, model, batches, trial, SearchWindows(reference, judged), reference)
    for work in works(true_shapes(224, 2), "at 224 px", ["vision_encoder"]):
        model = onnx.load(str(fp32_file(work, folder.parent)))
        _write(folder, "tower at 224 px", model, _ranges(model, [work.arrays]), work.arrays)
    return rows


def _judged(front_end: FrontEnd) -> Iterator[Sample]:
    """Yield windows of the validation split as samples."""
    for _, clip in judging_clips(front_end, WINDOWS):
        inputs = window_at(clip, clip.duration_s, "audio-visual", front_end)
        yield Sample("scene", None, content_hash(clip), inputs)


def _ranges(model: onnx.ModelProto, batches: Sequence[Arrays]) -> dict[str, Histogram]:
    tensors = sorted({p.activation for p in weight_products(model) if not p.stays_high})
    return observed(model, tensors, batches)


def _write(
    folder: Path, stem: str, model: onnx.ModelProto, ranges: Mapping[str, Histogram], arrays: Arrays
) -> None:
    chosen = blocks(weight_products(model))
    quantized = quantize(model, ranges, "max", "int8-cpu", chosen)
    graphs = {name: with_weights(quantized, model, limit, unsigned=u) for name, (limit, u) in STORED.items()}
    for name, graph in {"fp32": model, **graphs, PRECISE: graphs["s8, 8 bits"]}.items():
        onnx.save(graph, str(folder / f"{stem}~{name}.onnx"))
        np.savez(folder / f"{stem}~{name}.npz", **arrays)


def _accuracy(
    role: str,
    model: onnx.ModelProto,
    batches: Sequence[Arrays],
    trial: Sequence[Arrays],
    search: SearchWindows,
    reference: Predictor[Any],
) -> Iterator[list[object]]:
    """Yield a row per scheme and choice: damage to the readings, and signal to noise of the outputs."""
    expected = [reference.engines[role].run(arrays) for arrays in trial]
    ranges = _ranges(model, batches)
    for scheme in SCHEMES:
        quantized = quantize(model, ranges, "max", scheme, blocks(weight_products(model)))
        graphs = {
            name: with_weights(quantized, model, limit, unsigned=unsigned)
            for name, (limit, unsigned) in STORED.items()
            if not (unsigned and scheme == "int8")  # TensorRT takes signed weights only
        }
        for name, graph in {**graphs, THEIRS: _theirs(model, batches, scheme)}.items():
            if graph is None:
                yield [role, scheme, name, "refused", ""]
                continue
            engine = SessionEngine(graph)
            got = [engine.run(arrays) for arrays in trial]
            noise = min(
                sqnr_db(
                    np.concatenate([e[output] for e in expected]), np.concatenate([g[output] for g in got])
                )
                for output in expected[0]
            )
            yield [role, scheme, name, f"{search.damage({role: engine}):.1e}", f"{noise:.1f}"]


def _theirs(model: onnx.ModelProto, batches: Sequence[Arrays], scheme: str) -> onnx.ModelProto | None:
    """Quantize the same products with ONNX Runtime's static quantiser; None where it refuses the graph."""
    logging.getLogger().setLevel(logging.ERROR)  # it advises preprocessing at every call
    signed = scheme == "int8"
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, str(source))
        try:
            quantize_static(
                source,
                target,
                Reader(list(batches)),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=True,
                nodes_to_quantize=[p.node for p in weight_products(model) if not p.stays_high],
                activation_type=QuantType.QInt8 if signed else QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                extra_options={
                    "ActivationSymmetric": signed,
                    "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],
                },
            )
        except ValueError:
            return None
        return onnx.load(str(target))
