"""The new audio pathway of stage 1: encoder → pooling → projector → tokens in the language model's embedding space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vaemotion.model.backbones import build_audio_encoder


@dataclass(frozen=True)
class AudioPathwayConfig:
    """``encoder``: see ``build_audio_encoder``. ``steps_per_token``: neighbouring steps concatenated into one token."""

    encoder: dict[str, Any]
    steps_per_token: int = 5
    hidden: int = 512


class AudioPathway(nn.Module):
    """Normalised log-mel (B, frames, mels) → tokens (B, N_a, D); steps beyond the last whole token are dropped.

    ``delimiters`` (2, D) are the learned vectors before and after the audio tokens: they have no token ids, so
    that vocabulary and LM head stay untouched. A LayerNorm's gain matches the norm of the visual tokens.
    """

    def __init__(self, config: AudioPathwayConfig, token_width: int) -> None:
        super().__init__()
        self.encoder, steps, width = build_audio_encoder(config.encoder)
        self.steps_per_token = config.steps_per_token
        self.n_tokens = steps // config.steps_per_token
        self.projector = nn.Sequential(
            nn.Linear(config.steps_per_token * width, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, token_width),
            nn.LayerNorm(token_width),
        )
        self.delimiters = nn.Parameter(torch.randn(2, token_width) * 0.02)

    def match_norm(self, visual_token_norm: float, text_embedding_norm: float) -> None:
        """Start from the scale that the language model is used to: audio tokens as long as visual ones (mean L2
        norm), delimiters as long as text embeddings."""
        norm = self.projector[-1]
        assert isinstance(norm, nn.LayerNorm)
        width = norm.normalized_shape[0]
        with torch.no_grad():
            norm.weight.fill_(visual_token_norm / width**0.5)
            self.delimiters.mul_(text_embedding_norm / self.delimiters.norm(dim=1, keepdim=True))

    def forward(self, log_mel: Tensor) -> Tensor:
        steps = self.encoder(log_mel)[:, : self.n_tokens * self.steps_per_token]  # (B, N_a * 5, width)
        return self.projector(steps.unflatten(1, (self.n_tokens, self.steps_per_token)).flatten(2))
