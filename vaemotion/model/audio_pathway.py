"""The audio pathway of stage 1: encoder → pooling → projector → tokens that the language model reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vaemotion.model.audio_encoders import build_audio_encoder

# Whisper's steps are 20 ms long, as against 100 ms of AST and 40 ms of ``vaemotion-tiny``'s encoder.
STEPS_PER_TOKEN, WHISPER_STEPS_PER_TOKEN = 5, 25


@dataclass(frozen=True)
class AudioPathwayConfig:
    """Sizes of the audio pathway."""

    encoder: dict[str, Any]  # see ``build_audio_encoder``
    steps_per_token: int = STEPS_PER_TOKEN  # neighboring encoder steps that are concatenated into one token
    hidden: int = 512  # width of the projector's hidden layer

    @classmethod
    def of(cls, section: Mapping[str, Any]) -> AudioPathwayConfig:
        """Return the configuration of a pathway whose encoder the section ``[audio_encoder]`` describes.

        It may hold ``steps_per_token``, which is 25 for Whisper (half a second) and 5 for others by default.
        """
        encoder = dict(section)
        default = WHISPER_STEPS_PER_TOKEN if encoder.get("kind") == "whisper" else STEPS_PER_TOKEN
        return cls(steps_per_token=encoder.pop("steps_per_token", default), encoder=encoder)


class AudioPathway(nn.Module):
    """Normalized log-mel (B, frames, mels) → audio tokens (B, N_a, D).

    Encoder steps beyond the last whole token are dropped. ``delimiters`` (2, D) are the learned vectors
    before and after the audio tokens. They have no token ids, so that vocabulary and LM head stay
    untouched. The gain of the last LayerNorm matches the norm of the visual tokens.
    """

    def __init__(self, config: AudioPathwayConfig, token_width: int) -> None:
        super().__init__()
        self.config = config
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
        """Scale the new tokens to those that the language model is used to.

        Audio tokens get the mean L2 norm of visual tokens, delimiters that of text embeddings.
        """
        norm = self.projector[-1]
        assert isinstance(norm, nn.LayerNorm)
        width = norm.normalized_shape[0]
        with torch.no_grad():
            norm.weight.fill_(visual_token_norm / width**0.5)
            self.delimiters.mul_(text_embedding_norm / self.delimiters.norm(dim=1, keepdim=True))

    def forward(self, log_mel: Tensor) -> Tensor:
        """Encode normalized log-mel windows (B, frames, mels) as audio tokens (B, N_a, D)."""
        steps = self.encoder(log_mel)  # (B, steps, width)
        steps = steps[:, : self.n_tokens * self.steps_per_token]  # (B, N_a · 5, width)
        pooled = steps.unflatten(1, (self.n_tokens, self.steps_per_token)).flatten(2)  # (B, N_a, 5 · width)
        return self.projector(pooled)  # (B, N_a, D)
