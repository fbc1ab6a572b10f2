"""This project's side: write checkpoints with random weights, and export them with ``export.to_onnx``.

In: the kind of part to export, an exporter and a checkpoint's folder. Out: ``model.onnx`` in a folder, and a
record.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ASTConfig, ASTModel, AutoModel, SmolVLMForConditionalGeneration

from benchmarks.against_optimum.record import record
from export.to_onnx import Part, export_onnx
from vaemotion.model.audio_encoders import AstEncoder
from vaemotion.model.families.smolvlm import SMOLVLM, VisionEncoder

PACKAGES = ("transformers", "torch", "onnx", "onnxscript", "onnxruntime")
SIDE_PX = 64
SMALL_VLM: dict[str, Any] = {
    "vision_config": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE_PX,
        "patch_size": 16,
    },
    "text_config": {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 128,
    },
    "scale_factor": 2,
    "image_token_id": 3,
}


class LastHiddenState(nn.Module):
    """A model with the one output that is compared, such as (B, frames, mels) → (B, tokens, width)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_values: Tensor) -> Tensor:
        """Return the last hidden state."""
        return self.model(input_values).last_hidden_state


class Logits(nn.Module):
    """SmolVLM with the one output that is compared, (B, T, vocabulary)."""

    def __init__(self, vlm: nn.Module) -> None:
        super().__init__()
        self.vlm = vlm

    def forward(self, input_ids: Tensor, pixel_values: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the logits of every position."""
        return self.vlm(
            input_ids=input_ids, pixel_values=pixel_values, attention_mask=attention_mask, use_cache=False
        ).logits


def smolvlm_inputs(batch: int) -> dict[str, Tensor]:
    """Return a prompt with one image of noise for each row, for the small SmolVLM."""
    tokens = (SIDE_PX // SMALL_VLM["vision_config"]["patch_size"] // SMALL_VLM["scale_factor"]) ** 2
    ids = torch.tensor([[5, *[SMALL_VLM["image_token_id"]] * tokens, 7]]).repeat(batch, 1)
    noise = torch.randn(batch, 1, 3, SIDE_PX, SIDE_PX, generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "pixel_values": noise, "attention_mask": torch.ones_like(ids)}


def write_checkpoints(folder: Path) -> None:
    """Write the checkpoints as config.json and safetensors.

    ``ast`` has AST-base's true shapes; ``smolvlm`` and ``smolvlm-vision`` are small.
    """
    torch.manual_seed(0)
    ASTModel(ASTConfig()).save_pretrained(folder / "ast")
    vlm: Any = SMOLVLM.build(SMALL_VLM)
    vlm.save_pretrained(folder / "smolvlm")
    vlm.model.vision_model.save_pretrained(folder / "smolvlm-vision")


def part(kind: str, checkpoint: Path) -> Part:
    """Build the part to export from a checkpoint.

    ``kind``: "ast" has the same output as optimum's; "ast-mean" is the product's encoder; "vision" is
    SmolVLM's vision tower with its connector, "tower" without it, "smolvlm" the whole model.
    """
    pixels = torch.zeros(2, 3, SIDE_PX, SIDE_PX)
    if kind == "tower":
        tower: Any = AutoModel.from_pretrained(checkpoint)
        return Part(LastHiddenState(tower).eval(), {"pixel_values": pixels}, ("last_hidden_state",))
    if kind in ("vision", "smolvlm"):
        vlm: Any = SmolVLMForConditionalGeneration.from_pretrained(checkpoint)
        if kind == "smolvlm":
            return Part(Logits(vlm).eval(), smolvlm_inputs(2), ("logits",))
        return Part(VisionEncoder(vlm).eval(), {"pixels": pixels}, ("tokens",))
    ast: Any = ASTModel.from_pretrained(checkpoint)
    log_mel = torch.zeros(2, ast.config.max_length, ast.config.num_mel_bins)
    if kind == "ast":
        return Part(LastHiddenState(ast).eval(), {"input_values": log_mel}, ("last_hidden_state",))
    if kind == "ast-mean":
        encoder = AstEncoder(ast.config)
        encoder.ast = ast
        return Part(encoder.eval(), {"log_mel": log_mel}, ("tokens",))
    raise ValueError(f"kind must be 'ast', 'ast-mean', 'vision', 'tower' or 'smolvlm', got {kind!r}")


def main() -> None:
    if sys.argv[1] == "checkpoints":
        write_checkpoints(Path(sys.argv[2]))
        return
    kind, exporter = sys.argv[1:3]
    checkpoint, folder, record_file = (Path(word) for word in sys.argv[3:6])

    def export() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        export_onnx(part(kind, checkpoint), folder / "model.onnx", exporter)

    record(export, record_file, PACKAGES)


if __name__ == "__main__":
    main()
