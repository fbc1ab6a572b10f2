"""This project's side: write checkpoints with random weights, and export them with ``export.to_onnx``.

In: a checkpoint's folder and the kind of part to export. Out: ``model.onnx`` in a folder, and a record.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ASTConfig, ASTModel, SmolVLMForConditionalGeneration

from benchmarks.against_optimum.record import record
from export.to_onnx import Part, export_onnx
from vaemotion.model.audio_encoders import AstEncoder
from vaemotion.model.backbones import VisionEncoder, build_vlm

PACKAGES = ("transformers", "torch", "onnx", "onnxscript", "onnxruntime")
SIDE_PX = 64
SMALL_VLM = {
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
    """``ASTModel`` with the one output that is compared: (B, frames, mels) → (B, tokens, width)."""

    def __init__(self, ast: nn.Module) -> None:
        super().__init__()
        self.ast = ast

    def forward(self, input_values: Tensor) -> Tensor:
        """Return the last hidden state."""
        return self.ast(input_values).last_hidden_state


def write_checkpoints(folder: Path) -> None:
    """Write the checkpoints as config.json and safetensors.

    ``ast`` has AST-base's true shapes; ``smolvlm`` and ``smolvlm-vision`` are small.
    """
    torch.manual_seed(0)
    ASTModel(ASTConfig()).save_pretrained(folder / "ast")
    vlm = build_vlm(SMALL_VLM)
    vlm.save_pretrained(folder / "smolvlm")
    vlm.model.vision_model.save_pretrained(folder / "smolvlm-vision")


def part(kind: str, checkpoint: Path) -> Part:
    """Build the part to export from a checkpoint.

    ``kind``: "ast" has the same output as optimum's; "ast-plain" also has attention written out instead of
    torch's fused operator; "ast-mean" is the product's encoder; "vision" is SmolVLM's vision tower with its
    connector.
    """
    if kind == "vision":
        vlm: Any = SmolVLMForConditionalGeneration.from_pretrained(checkpoint)
        return Part(VisionEncoder(vlm).eval(), {"pixels": torch.zeros(2, 3, SIDE_PX, SIDE_PX)}, ("tokens",))
    attention = "eager" if kind == "ast-plain" else "sdpa"
    ast: Any = ASTModel.from_pretrained(checkpoint, attn_implementation=attention)
    log_mel = torch.zeros(2, ast.config.max_length, ast.config.num_mel_bins)
    if kind in ("ast", "ast-plain"):
        return Part(LastHiddenState(ast).eval(), {"input_values": log_mel}, ("last_hidden_state",))
    if kind == "ast-mean":
        encoder = AstEncoder(ast.config)
        encoder.ast = ast
        return Part(encoder.eval(), {"log_mel": log_mel}, ("tokens",))
    raise ValueError(f"kind must be 'ast', 'ast-plain', 'ast-mean' or 'vision', got {kind!r}")


def main() -> None:
    if sys.argv[1] == "checkpoints":
        write_checkpoints(Path(sys.argv[2]))
        return
    kind, (checkpoint, folder, record_file) = sys.argv[1], (Path(word) for word in sys.argv[2:5])

    def export() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        export_onnx(part(kind, checkpoint), folder / "model.onnx")

    record(export, record_file, PACKAGES)


if __name__ == "__main__":
    main()
