"""A random Whisper as its authors save theirs, small enough for a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import WhisperConfig, WhisperModel


def write_whisper(folder: Path, kind: Any = WhisperModel) -> Any:
    """Save a Whisper of 80 mels and 3 s of sound, 32 wide, and return it. kind: its class."""
    torch.manual_seed(5)
    model = kind(
        WhisperConfig(
            vocab_size=16,
            d_model=32,
            encoder_layers=2,
            encoder_attention_heads=2,
            encoder_ffn_dim=64,
            decoder_layers=1,
            decoder_attention_heads=2,
            decoder_ffn_dim=64,
            max_source_positions=150,
            pad_token_id=0,
            bos_token_id=0,
            eos_token_id=0,
            decoder_start_token_id=1,
            begin_suppress_tokens=None,
        )
    ).eval()
    model.save_pretrained(folder)
    return model
