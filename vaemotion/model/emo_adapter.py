"""EmoAdapter: Emotion Enhancer (residuals on tokens), Emotion Supervisor (valence, arousal, emotions).

A path (audio, visual, audio-visual) is a mask, not a branch: one module takes inputs of fixed lengths on
all of them. Sizes in the shapes: B rows, N_a audio tokens, N_v visual tokens, N tokens of either, D the
language model's width, Q emotion queries, H heads, C constructs, E emotions.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaemotion.contract.emotions import EMOTIONS

CONSTRUCTS = ("expressed", "induced")  # what the work expresses; what people felt in front of it
EXPRESSED = CONSTRUCTS.index("expressed")
SPREAD_FLOOR = 0.02


@dataclass(frozen=True)
class EmoAdapterConfig:
    """Sizes of the EmoAdapter, and the names of the emotions that it tells apart."""

    queries: int = 8
    heads: int = 4
    rank: int = 64  # of the Enhancer's residual
    hidden: int = 256  # of the Supervisor
    emotions: tuple[str, ...] = EMOTIONS
    dropout: float = 0.15
    age_frequencies: int = 8  # octaves of the age encoding
    age_period_s: float = 16.0  # period of the slowest of them
    shared_enhancer: bool = False  # one Enhancer for the tokens of both modalities instead of one each

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EmoAdapterConfig:
        """Return the configuration that a checkpoint holds.

        One that is older than the names has only their number: the nine of ``EMOTIONS``. Raises TypeError
        for unknown fields, ValueError for another number.
        """
        known = dict(values)
        if known.pop("n_emotions", len(EMOTIONS)) != len(EMOTIONS):
            raise ValueError(f"adapter.n_emotions must be {len(EMOTIONS)}, got {values['n_emotions']}")
        return cls(**{**known, "emotions": tuple(known.get("emotions", EMOTIONS))})


class AdapterOutput(NamedTuple):
    """Enhanced tokens and, for each of the ``CONSTRUCTS``, the Supervisor's readout."""

    audio_tokens: Tensor  # (B, N_a, D)
    visual_tokens: Tensor  # (B, N_v, D)
    valence_arousal: Tensor  # (B, C, 2) in [-1, 1]
    spread: Tensor  # (B, C, 2), predictive standard deviation, at least SPREAD_FLOOR
    emotion_logits: Tensor  # (B, C, E)


class Whitening(nn.Module):
    """Frozen affine map of one modality's tokens to about zero mean and unit covariance.

    What people react to in line art and in tone lies in directions of tiny variance. Without whitening it
    is lost.
    """

    mean: Tensor
    matrix: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("matrix", torch.eye(width))

    @torch.no_grad()
    def fit(self, tokens_by_domain: list[Tensor], shrinkage: float = 0.05) -> None:
        """Fit a ZCA to the average within-domain covariance, shrunk towards its mean variance.

        tokens_by_domain: one (n, D) tensor per domain. Source of the shrinkage: Ledoit & Wolf 2004, here
        with a fixed weight.
        """
        covariances = [torch.cov(tokens.double().T) for tokens in tokens_by_domain]  # each (D, D)
        covariance = torch.stack(covariances).mean(0)  # (D, D)
        mean_variance = covariance.diagonal().mean()
        shrunk = (1 - shrinkage) * covariance + shrinkage * mean_variance * torch.eye(len(covariance))
        values, vectors = torch.linalg.eigh(shrunk)  # (D,), (D, D)
        self.matrix.copy_(vectors @ torch.diag(values.clamp_min(1e-12).rsqrt()) @ vectors.T)
        self.mean.copy_(torch.stack([tokens.double().mean(0) for tokens in tokens_by_domain]).mean(0))

    def forward(self, tokens: Tensor) -> Tensor:
        """Whiten tokens, (B, N, D) → (B, N, D)."""
        return (tokens - self.mean) @ self.matrix


class TokenFeatures(nn.Module):
    """Non-linear features of each whitened token, (B, N, D) → (B, N, D).

    Contours and onsets show in combinations of directions, in no single one. An average over tokens keeps
    only what was made linear before it.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, whitened: Tensor) -> Tensor:
        """Compute the features of whitened tokens, (B, N, D) → (B, N, D)."""
        return F.gelu(self.second(F.gelu(self.first(whitened))))


class Enhancer(nn.Module):
    """``X' = X + g · W_up · GELU(W_down · LN[X_white ; mean c])``.

    ``W_up`` starts at 0, so that the Enhancer is the identity before its first step.
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2 * width)
        self.down = nn.Linear(2 * width, rank)
        self.up = nn.Linear(rank, width, bias=False)
        self.gain = nn.Parameter(torch.ones(()))
        nn.init.zeros_(self.up.weight)

    def forward(self, tokens: Tensor, whitened: Tensor, context: Tensor) -> Tensor:
        """Add the residual to tokens, (B, N, D) → (B, N, D). whitened: (B, N, D); context: (B, 1, D)."""
        context = context.expand(-1, tokens.shape[1], -1)  # (B, N, D)
        normed = self.norm(torch.cat([whitened, context], dim=-1))  # (B, N, 2 D)
        residual = self.up(F.gelu(self.down(normed)))  # (B, N, D)
        return tokens + self.gain * residual


class EmoAdapter(nn.Module):
    """Emotion queries over the tokens of both modalities, with Enhancer and Supervisor behind them.

    Source: arXiv 2511.12077 names the two parts; their inside is ours (docs/paper.md).
    """

    def __init__(self, config: EmoAdapterConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.audio_whitening, self.visual_whitening = Whitening(width), Whitening(width)
        self.audio_features, self.visual_features = TokenFeatures(width), TokenFeatures(width)
        self.queries = nn.Parameter(torch.randn(config.queries, width) * 0.5)
        self.null = nn.Parameter(torch.randn(1, 1, width) * 0.5)
        self.modality = nn.Parameter(torch.randn(2, width) * 0.1)  # added to the keys: audio, visual
        self.age = nn.Linear(2 * config.age_frequencies, width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.audio_enhancer = Enhancer(width, config.rank)
        self.visual_enhancer = self.audio_enhancer if config.shared_enhancer else Enhancer(width, config.rank)
        outputs = len(CONSTRUCTS) * (4 + len(config.emotions))
        self.supervisor = nn.Sequential(
            nn.LayerNorm(config.queries * width),
            nn.Dropout(config.dropout),
            nn.Linear(config.queries * width, config.hidden),
        )
        self.statistics = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(8 * width + 2, config.hidden))
        self.heads = nn.Sequential(nn.GELU(), nn.Dropout(config.dropout), nn.Linear(config.hidden, outputs))

    def encode_age(self, age_s: Tensor) -> Tensor:
        """Encode ages as sines and cosines at octave-spaced periods: (B, N) seconds → (B, N, D)."""
        octaves = 2.0 ** torch.arange(self.config.age_frequencies, device=age_s.device, dtype=age_s.dtype)
        age_s = age_s[..., None]  # (B, N, 1)
        phase = age_s * (octaves * (2 * torch.pi / self.config.age_period_s))  # (B, N, frequencies)
        return self.age(torch.cat([phase.sin(), phase.cos()], dim=-1))  # (B, N, D)

    def attend(self, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Attend with the emotion queries, (B, Q, D). keys, values: (B, N, D); mask: (B, N) bool."""
        heads = self.config.heads
        query = self.query(self.queries)[None].unflatten(-1, (heads, -1)).transpose(1, 2)  # (1, H, Q, D / H)
        key = self.key(keys).unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, H, N, D / H)
        value = self.value(values).unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, H, N, D / H)
        scores = query @ key.transpose(-1, -2) / key.shape[-1] ** 0.5  # (B, H, Q, N)
        # Finite in at least one place of each row, because the null key is never masked.
        scores = scores.masked_fill(~mask[:, None, None], float("-inf"))
        return self.out((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))  # (B, Q, D)

    def forward(
        self,
        audio_tokens: Tensor,  # (B, N_a, D)
        audio_mask: Tensor,  # (B, N_a) bool, False where the token is absent
        audio_age_s: Tensor,  # (B, N_a)
        visual_tokens: Tensor,  # (B, N_v, D)
        visual_mask: Tensor,  # (B, N_v) bool
        visual_age_s: Tensor,  # (B, N_v)
    ) -> AdapterOutput:
        """Enhance the tokens and predict valence, arousal and emotions from them."""
        audio = _zero_masked(self.audio_whitening(audio_tokens), audio_mask)  # (B, N_a, D)
        visual = _zero_masked(self.visual_whitening(visual_tokens), visual_mask)  # (B, N_v, D)
        audio_features = self.audio_features(audio)  # (B, N_a, D)
        visual_features = self.visual_features(visual)  # (B, N_v, D)
        null = self.null.expand(audio.shape[0], -1, -1)  # (B, 1, D)
        placed = torch.cat([audio + self.modality[0], visual + self.modality[1]], dim=1)  # (B, N_a + N_v, D)
        ages = self.encode_age(torch.cat([audio_age_s, visual_age_s], dim=1))  # (B, N_a + N_v, D)
        keys = torch.cat([null, placed + ages], dim=1)  # (B, 1 + N_a + N_v, D)
        unmasked = torch.ones_like(audio_mask[:, :1])  # (B, 1), for the null key
        mask = torch.cat([unmasked, audio_mask, visual_mask], dim=1)  # (B, 1 + N_a + N_v)
        values = torch.cat([null, audio_features, visual_features], dim=1)  # (B, 1 + N_a + N_v, D)
        context = self.attend(keys, values, mask)  # (B, Q, D)
        dtype = self.null.dtype
        audio_weights, any_audio = _mean_weights(audio_mask, dtype)  # (B, 1, N_a), (B, 1, 1)
        visual_weights, any_visual = _mean_weights(visual_mask, dtype)  # (B, 1, N_v), (B, 1, 1)
        moments = [
            _moments(audio, audio_weights),
            _moments(audio_features, audio_weights),
            _moments(visual, visual_weights),
            _moments(visual_features, visual_weights),
        ]  # each (B, 1, 2 D)
        statistics = torch.cat([*moments, any_audio, any_visual], dim=-1).flatten(1)  # (B, 8 D + 2)
        readout = self.heads(self.supervisor(context.flatten(1)) + self.statistics(statistics))
        readout = readout.unflatten(1, (len(CONSTRUCTS), -1))  # (B, C, 4 + E)
        query_weights = self.null.new_full((1, 1, context.shape[1]), 1 / context.shape[1])  # (1, 1, Q)
        mean_context = _mean(context, query_weights)  # (B, 1, D)
        return AdapterOutput(
            self.audio_enhancer(audio_tokens, audio, mean_context),
            self.visual_enhancer(visual_tokens, visual, mean_context),
            readout[..., :2].tanh(),
            SPREAD_FLOOR + F.softplus(readout[..., 2:4] - 1.0),
            readout[..., 4:],
        )


def _zero_masked(tokens: Tensor, mask: Tensor) -> Tensor:
    """Set masked tokens to zero, NaN among them. tokens: (B, N, D); mask: (B, N) bool. Returns (B, N, D)."""
    return torch.where(mask[..., None], tokens, 0.0)


def _mean_weights(mask: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Weigh the unmasked tokens for a mean, mask (B, N) bool.

    Returns the weights (B, 1, N), and (B, 1, 1): 1 where any token is unmasked, else 0.
    """
    kept = mask.to(dtype)[:, None]  # (B, 1, N)
    count = kept.sum(-1, keepdim=True)  # (B, 1, 1)
    return kept / count.clamp_min(1.0), count.clamp_max(1.0)


def _moments(tokens: Tensor, weights: Tensor) -> Tensor:
    """Compute mean and standard deviation over the unmasked tokens, (B, 1, 2 D).

    tokens: (B, N, D), 0 where masked; weights: (B, 1, N) from ``_mean_weights``.
    """
    mean = _mean(tokens, weights)  # (B, 1, D)
    variance = _mean((tokens - mean) ** 2, weights)  # (B, 1, D)
    return torch.cat([mean, (variance + 1e-8).sqrt()], dim=-1)


def _mean(tokens: Tensor, weights: Tensor) -> Tensor:
    """Average tokens (B, N, D) in the weights' precision, (B, 1, D). weights: (B or 1, 1, N).

    A matrix product, because ONNX Runtime rounds a sum over a middle axis differently when the batch is
    one, and the reading of a tick must not depend on what else is in its batch.
    """
    kind = tokens.device.type
    with torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext():
        return weights @ tokens.to(weights.dtype)
