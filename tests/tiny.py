"""A model of the real classes, small enough for a test.

It has about 80,000 random weights, 4 visual tokens a frame and 5 audio tokens a window.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from tests.paths import ROOT
from vaemotion.contract.front_end import Clip, FrontEnd
from vaemotion.data.art.art import sample_work, work_seed
from vaemotion.data.instructions import procedural_clip, tokenizer_corpus
from vaemotion.model.audio_pathway import AudioPathwayConfig
from vaemotion.model.checkpoint import COMPONENT_DTYPE, components, round_in_place, save_checkpoint
from vaemotion.model.checkpoint_config import ModelConfig
from vaemotion.model.emo_adapter import EmoAdapter, EmoAdapterConfig
from vaemotion.model.tokenizer import train_tokenizer
from vaemotion.model.vaemotion_llm import VAEmotionLLM
from vaemotion.training.base_vlm import vlm_config
from vaemotion.training.config import TrainingConfig, read_training_config

CONFIG_FILE = ROOT / "configs" / "tiny.toml"
SMALL = (
    "image.side_px=24",
    "log_mel.n_mels=32",
    "windows.audio_window_s=1.0",
    "windows.frames=4",
    "windows.language_frames=2",
    "vlm.vision_width=32",
    "vlm.vision_layers=1",
    "vlm.vision_heads=2",
    "vlm.patch_px=6",
    "vlm.text_width=64",
    "vlm.text_layers=2",
    "vlm.text_mlp=96",
    "vlm.vocabulary=384",
    "audio_encoder.frames=50",
    "audio_encoder.n_mels=32",
    "audio_encoder.channels=[8,16]",
    "audio_encoder.width=32",
    "audio_encoder.layers=1",
    "audio_encoder.heads=2",
    # Some processors compute bfloat16 a hundred times more slowly.
    'base.optimisation.precision="no"',
    'align.optimisation.precision="no"',
)


def tiny_config(*overrides: str) -> TrainingConfig:
    """Read ``configs/tiny.toml`` at a test's size."""
    return read_training_config(CONFIG_FILE, [*SMALL, *overrides])


def with_many_stops(set_attribute: Callable[[Any, str, Any], None]) -> None:
    """Let every third token end an answer, so that models with random weights give short whole answers."""

    def stops(model: VAEmotionLLM) -> tuple[int, ...]:
        return (model.token_ids(model.template.stop)[0], *range(1, model.vocabulary, 3))

    set_attribute(VAEmotionLLM, "stop_ids", property(stops))


@cache
def tiny_tokenizer() -> Tokenizer:
    return train_tokenizer(tokenizer_corpus(), tiny_config().vlm.vocabulary)


def tiny_model(*, audio: bool = True, adapter: bool = True, seed: int = 0) -> VAEmotionLLM:
    """Make a new model in evaluation mode.

    The adapter's ``W_up`` and whitening are random, so that it changes its tokens.
    """
    config = tiny_config()
    torch.manual_seed(seed)
    model = VAEmotionLLM(
        ModelConfig(
            vlm=vlm_config(config.vlm, config.image.side_px),
            front_end=FrontEnd(config.log_mel, config.image, config.windows),
            audio=AudioPathwayConfig(config.audio_encoder) if audio else None,
            adapter=EmoAdapterConfig() if adapter else None,
        ),
        tiny_tokenizer(),
    )
    with torch.no_grad():
        # SmolVLM's own initial weights are so small that every logit is the same.
        for parameter in model.base.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(6.0)
    if model.adapter is not None:
        randomize(model.adapter)
    return model.eval()


@torch.no_grad()
def randomize(adapter: EmoAdapter) -> None:
    """Change an adapter as training does: residuals, gains and whitening other than those of step 0."""
    for enhancer in (adapter.audio_enhancer, adapter.visual_enhancer):
        enhancer.up.weight.normal_(std=0.2)
        enhancer.gain.fill_(0.7)
    for whitening in (adapter.audio_whitening, adapter.visual_whitening):
        whitening.mean.normal_(std=0.3)
        whitening.matrix.add_(torch.randn_like(whitening.matrix) * 0.1)


def save_tiny_checkpoint(folder: Path, *, seed: int = 0) -> Path:
    """Save a new model as a complete checkpoint, its weights rounded as the stages round them."""
    model = tiny_model(seed=seed)
    for name, part in components(model).items():
        round_in_place(part, COMPONENT_DTYPE[name])
    lineage = {"name": "small", "align": {}}  # as after stage 1 on procedural art
    save_checkpoint(model, folder, lineage, "Apache-2.0")
    return folder


def tiny_clip(index: int = 0, duration_s: float = 2.0) -> Clip:
    """Render a procedural work as a decoded clip of 10 frames a second."""
    return procedural_clip(sample_work(work_seed("validation", index)), duration_s, 0.1)
