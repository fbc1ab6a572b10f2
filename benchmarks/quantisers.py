"""Compare INT8 quantizers (ours, ONNX Runtime's, NVIDIA's modelopt) on the same graphs and samples.

    python -m benchmarks.quantisers BUNDLE --out docs/decisions/0006-quantisers.md

In: a bundle with FP32 engines, exported from a checkpoint that was trained on procedural art. Out: per engine
and quantizer the damage (1 - CCC between readings, the worst of the paths) on windows of the validation split
and the signal to noise of the tokens, as a Markdown table between the document's markers. modelopt requires
old versions of other packages, so install it by hand without them; its rows are left out if it is missing:

    pip install --no-deps nvidia-modelopt onnx-graphsurgeon polygraphy nvidia-ml-py onnxslim lief
"""

from __future__ import annotations

import argparse
import importlib.metadata
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from rich.console import Console

from calibration.qdq import blocks, quantize, weight_products
from calibration.ranges import METHODS, observed
from calibration.samples import Sample, content_hash, procedural_samples
from export.half_weights import load_fp32_graph
from export.int8.material import judging_clips
from export.int8.search import SearchWindows, SessionEngine, calibration_inputs
from export.verify import sqnr_db
from runtime.perception.predictor import open_predictor
from vaemotion.contract.bundle import ENGINE_ROLES, component_path, read_manifest
from vaemotion.contract.front_end import window_at
from vaemotion.contract.words import markdown_table

BEGIN, END = "<!-- measured -->", "<!-- end -->"
Batches = list[Mapping[str, np.ndarray[Any, Any]]]


class Reader(CalibrationDataReader):
    """A reader that gives each batch of samples once."""

    def __init__(self, batches: Batches) -> None:
        self._left = iter(batches)

    def get_next(self) -> dict[str, Any]:
        """Return the next batch, or None at the end."""
        return dict(next(self._left, {})) or None  # type: ignore[return-value]


def ours(model: onnx.ModelProto, batches: Batches, _: Path) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Yield graphs of this project's quantizer, by name."""
    products = weight_products(model)
    histograms = observed(model, sorted({p.activation for p in products if not p.stays_high}), batches)
    for method in METHODS:
        yield f"ours, {method}", quantize(model, histograms, method, "int8", blocks(products))


def onnxruntimes(
    model: onnx.ModelProto, batches: Batches, folder: Path
) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Yield graphs of ONNX Runtime's static quantizer, by name."""
    nodes = [p.node for p in weight_products(model) if not p.stays_high]
    logging.getLogger().setLevel(logging.ERROR)  # it advises preprocessing at every call
    source, target = folder / "fp32.onnx", folder / "int8.onnx"
    onnx.save(model, str(source))
    for name in ("MinMax", "Entropy", "Percentile"):
        quantize_static(
            source,
            target,
            Reader(batches),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,  # weights in 7 bits, as ours (docs/decisions/0007-int8-on-every-processor.md)
            nodes_to_quantize=nodes,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod[name],
            extra_options={
                "ActivationSymmetric": True,
                "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],
            },
        )
        yield f"ONNX Runtime, {name}", onnx.load(str(target))


def modelopts(
    model: onnx.ModelProto, batches: Batches, folder: Path
) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Yield graphs of NVIDIA's modelopt, by name. Raises ImportError if it is not installed."""
    from modelopt.onnx.quantization import quantize  # type: ignore[import-not-found]

    nodes = [p.node for p in weight_products(model) if not p.stays_high]
    source, target = folder / "fp32.onnx", folder / "int8.onnx"
    onnx.save(model, str(source))
    data = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    for method in ("max", "entropy"):
        quantize(
            str(source),
            calibration_data=data,
            calibration_method=method,
            calibration_eps=["cpu"],
            nodes_to_quantize=nodes,
            op_types_to_quantize=["MatMul", "Gemm"],
            high_precision_dtype="fp32",
            output_path=str(target),
            log_level="ERROR",
        )
        yield f"modelopt, {method}", onnx.load(str(target))


def compare(
    bundle: Path, windows: int, console: Console, refused: list[str]
) -> list[tuple[str, str, float, float]]:
    """Return rows of engine, quantizer, damage and signal to noise in dB.

    Quantizers that fail on an engine are appended to ``refused``, with the reason.
    """
    manifest = read_manifest(bundle)
    rows: list[tuple[str, str, float, float]] = []
    with open_predictor(bundle, precision="fp32", language_type="F16") as reference:
        front_end = manifest.front_end
        samples = list(procedural_samples(front_end, windows))
        judged = [
            Sample(
                "scene", None, content_hash(clip), window_at(clip, clip.duration_s, "audio-visual", front_end)
            )
            for _, clip in judging_clips(front_end, 64)
        ]
        search = SearchWindows(reference, judged)
        for role in ENGINE_ROLES:
            model = load_fp32_graph(component_path(bundle, manifest.component(role, "fp32")))
            batches = list(calibration_inputs(role, samples, reference, {}))
            trial = calibration_inputs(role, judged, reference, {})
            expected = [reference.engines[role].run(arrays) for arrays in trial]
            for name, graph in _quantized(role, model, batches, console, refused):
                engine = SessionEngine(graph)
                got = [engine.run(arrays) for arrays in trial]
                noise = min(
                    sqnr_db(_joined(expected, output), _joined(got, output)) for output in expected[0]
                )
                rows.append((role, name, search.damage({role: engine}), noise))
                console.print(f"  {role}: {name}: damage {rows[-1][2]:.2e}, {noise:.1f} dB", highlight=False)
    return rows


def _joined(results: list[dict[str, Any]], output: str) -> np.ndarray[Any, Any]:
    return np.concatenate([result[output] for result in results])


def _quantized(
    role: str, model: onnx.ModelProto, batches: Batches, console: Console, refused: list[str]
) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Yield the graphs of all quantizers, by name."""
    quantizers: list[Callable[..., Iterator[tuple[str, onnx.ModelProto]]]] = [ours, onnxruntimes, modelopts]
    for quantizer in quantizers:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                yield from quantizer(model, batches, Path(folder))
            except (ImportError, ValueError) as error:  # a tool's failure is a result
                refused.append(f"{quantizer.__name__} on {role}: {str(error).splitlines()[0]}")
                console.print(f"  refused: {refused[-1]}", highlight=False)


def document(rows: list[tuple[str, str, float, float]], windows: int, refused: list[str]) -> str:
    """Return the measured section of the document as Markdown."""
    version = importlib.metadata.version("onnxruntime")
    lines = [
        f"`python -m benchmarks.quantisers BUNDLE`: {windows} calibration windows, 64 others to look at; "
        f"onnxruntime {version}. Damage: 1 - CCC between the readings with and without INT8.",
        "",
    ]
    head = ("engine", "quantiser", "damage", "signal to noise, dB")
    cells = [(role, name, f"{damage:.1e}", f"{noise:.1f}") for role, name, damage, noise in rows]
    lines.append(markdown_table(head, cells))
    return "\n".join([*lines, "", *(f"Refused: {sentence}." for sentence in refused)])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path, help="bundle with FP32 engines")
    parser.add_argument("--windows", type=int, default=64, help="number of calibration windows")
    document_file = Path("docs/decisions/0006-quantisers.md")
    parser.add_argument("--out", type=Path, default=document_file, help="document to write the table into")
    arguments = parser.parse_args()
    refused: list[str] = []
    rows = compare(arguments.bundle, arguments.windows, Console(stderr=True), refused)
    table = document(rows, arguments.windows, refused)
    text = arguments.out.read_text()
    before, _, rest = text.partition(BEGIN)
    arguments.out.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
