"""The side of ``transformers.exporters``, which succeeds optimum's exporter, in this project's environment.

In: a setting and a checkpoint's folder. Out: what the exporter saves in a folder, and a record. The example
inputs have batch 2, as ours have.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, SmolVLMForConditionalGeneration
from transformers.exporters.configs import OnnxConfig
from transformers.exporters.exporter_onnx import OnnxExporter

from benchmarks.against_optimum.ours import PACKAGES, smolvlm_inputs
from benchmarks.against_optimum.record import record


def example(checkpoint: Path) -> tuple[Any, dict[str, Any]]:
    """Load the model that a checkpoint's folder is named after, with inputs for it by name."""
    if checkpoint.name == "smolvlm":
        vlm: Any = SmolVLMForConditionalGeneration.from_pretrained(checkpoint)
        return vlm, dict(smolvlm_inputs(2))
    model: Any = AutoModel.from_pretrained(checkpoint)
    if checkpoint.name == "ast":
        return model, {"input_values": torch.zeros(2, model.config.max_length, model.config.num_mel_bins)}
    side = model.config.image_size
    return model, {"pixel_values": torch.zeros(2, 3, side, side)}


def config(setting: str, inputs: dict[str, Any]) -> OnnxConfig:
    """Configure the exporter: "defaults" (all sizes fixed), "batch" (only the batch free) or "dynamic"."""
    if setting == "batch":
        batch = torch.export.Dim("batch")
        return OnnxConfig(dynamic_shapes={name: {0: batch} for name in inputs})
    return OnnxConfig(dynamic=setting == "dynamic")


def main() -> None:
    setting, (checkpoint, folder, record_file) = sys.argv[1], (Path(word) for word in sys.argv[2:5])

    def export() -> None:
        model, inputs = example(checkpoint)
        OnnxExporter().export(model.eval(), inputs, config(setting, inputs)).save_pretrained(folder)

    record(export, record_file, PACKAGES)


if __name__ == "__main__":
    main()
