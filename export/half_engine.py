"""The step that converts an engine of an unfinished bundle to FP16.

In: its FP32 graph, and calibration windows on which overflow is looked for. Out: a `Step`.
"""

from __future__ import annotations

from pathlib import Path

from calibration.fp16 import half_precision, overflowing
from export.chain import Chain
from export.clips import CalibrationWindows
from export.graphs import load_fp32, save_engine
from export.int8.search import calibration_inputs
from export.workshop import ExportFolder, Made, Step, onnx_name

SAMPLES = 32  # on which overflow is looked for


def fp16_step(folder: ExportFolder, chain: Chain, windows: CalibrationWindows, role: str) -> Step:
    """Convert one engine to FP16. The notes name the nodes that would overflow and stay FP32."""
    # The EmoAdapter is calibrated on the tokens of both encoders.
    files = chain.files if role == "emo_adapter" else (onnx_name(role, "fp32"),)

    def make(made: Path) -> Made:
        model, samples = load_fp32(folder, role), windows()
        few = samples[:: max(1, len(samples) // SAMPLES)]
        stays = overflowing(model, calibration_inputs(role, few, chain.reference(), {}))
        file = save_engine(made, half_precision(model, stays), role, "fp16")
        return [file], {"stays_fp32": stays}

    reads = {"samples": windows.reads, "constants": chain.engine_reads}
    code = ("calibration.fp16", "export.chain", "export.graphs", "export.int8.search")
    return Step(f"{role} → ONNX FP16", make, code, reads, files)
