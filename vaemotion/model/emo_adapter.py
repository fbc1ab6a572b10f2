"""EmoAdapter: Emotion Enhancer (emotion-sensitive residuals) and Emotion Supervisor (valence, arousal, emotions).

A path is a mask, not a branch: one module serves audio, visual and audio-visual input of fixed lengths.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONSTRUCTS = ("expressed", "induced")  # what the work expresses; what people felt before it
SPREAD_FLOOR = 0.02


@dataclass(frozen=True)
class EmoAdapterConfig:
    """Sizes. ``age_frequencies``: octaves of the age encoding, the slowest with a period of ``age_period_s``."""

    queries: int = 8
    heads: int = 4
    rank: int = 64
    hidden: int = 256
    n_emotions: int = 9
    dropout: float = 0.15
    age_frequencies: int = 8
    age_period_s: float = 16.0


class AdapterOutput(NamedTuple):
    """Enhanced tokens as the input's; per construct (see ``CONSTRUCTS``): ``valence_arousal`` (B, C, 2) in [-1, 1], its
    predictive standard deviation ``spread`` (B, C, 2), and ``emotion_logits`` (B, C, 9)."""

    audio_tokens: Tensor
    visual_tokens: Tensor
    valence_arousal: Tensor
    spread: Tensor
    emotion_logits: Tensor


class Whitening(nn.Module):
    """Frozen affine map of one modality's tokens to about zero mean and unit covariance.

    What people react to in line art and in tone lies in directions of tiny variance; unwhitened, it is lost.
    """

    mean: Tensor
    matrix: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("matrix", torch.eye(width))

    @torch.no_grad()
    def fit(self, tokens_by_domain: list[Tensor], shrinkage: float = 0.05) -> None:
        """ZCA of the average within-domain covariance, shrunk towards its mean variance (Ledoit & Wolf 2004, with a
        fixed weight). tokens_by_domain: one (n, D) tensor per domain."""
        covariances = [torch.cov(tokens.double().T) for tokens in tokens_by_domain]
        covariance = torch.stack(covariances).mean(0)  # (D, D)
        mean_variance = covariance.diagonal().mean()
        shrunk = (1 - shrinkage) * covariance + shrinkage * mean_variance * torch.eye(len(covariance))
        values, vectors = torch.linalg.eigh(shrunk)
        self.matrix.copy_(vectors @ torch.diag(values.clamp_min(1e-12).rsqrt()) @ vectors.T)
        self.mean.copy_(torch.stack([tokens.double().mean(0) for tokens in tokens_by_domain]).mean(0))

    def forward(self, tokens: Tensor) -> Tensor:
        return (tokens - self.mean) @ self.matrix


class TokenFeatures(nn.Module):
    """What combinations of a token's whitened directions say, (B, N, D) → (B, N, D): contours and onsets show in no single direction,
    and an average over tokens keeps only what was made linear before."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, whitened: Tensor) -> Tensor:
        return F.gelu(self.second(F.gelu(self.first(whitened))))


class Enhancer(nn.Module):
    """``X' = X + g · W_up · GELU(W_down · LN[X_white ; mean c])``; ``W_up`` starts at 0, so that step 0 is the identity. context: (B, 1, D)."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2 * width)
        self.down = nn.Linear(2 * width, rank)
        self.up = nn.Linear(rank, width, bias=False)
        self.gain = nn.Parameter(torch.ones(()))
        nn.init.zeros_(self.up.weight)

    def forward(self, tokens: Tensor, whitened: Tensor, context: Tensor) -> Tensor:
        context = context.expand(-1, tokens.shape[1], -1)  # (B, N, D)
        residual = self.up(F.gelu(self.down(self.norm(torch.cat([whitened, context], dim=-1)))))
        return tokens + self.gain * residual


class EmoAdapter(nn.Module):
    """See the module's docstring; ``width`` is the language model's."""

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
        self.audio_enhancer, self.visual_enhancer = Enhancer(width, config.rank), Enhancer(width, config.rank)
        outputs = len(CONSTRUCTS) * (4 + config.n_emotions)
        self.supervisor = nn.Sequential(
            nn.LayerNorm(config.queries * width),
            nn.Dropout(config.dropout),
            nn.Linear(config.queries * width, config.hidden),
        )
        self.statistics = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(8 * width + 2, config.hidden))
        self.heads = nn.Sequential(nn.GELU(), nn.Dropout(config.dropout), nn.Linear(config.hidden, outputs))

    def encode_age(self, age_s: Tensor) -> Tensor:
        """Sines and cosines of the age at octave-spaced periods: (B, N) seconds → (B, N, D)."""
        octaves = 2.0 ** torch.arange(self.config.age_frequencies, device=age_s.device, dtype=age_s.dtype)
        phase = age_s[..., None] * (octaves * (2 * torch.pi / self.config.age_period_s))
        return self.age(torch.cat([phase.sin(), phase.cos()], dim=-1))

    def attend(self, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Multi-head attention of the emotion queries. keys, values: (B, N, D); mask: (B, N) bool. Returns (B, Q, D)."""
        heads = self.config.heads
        query = self.query(self.queries)[None].unflatten(-1, (heads, -1)).transpose(1, 2)  # (1, H, Q, d)
        key = self.key(keys).unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, H, N, d)
        value = self.value(values).unflatten(-1, (heads, -1)).transpose(1, 2)
        scores = query @ key.transpose(-1, -2) / key.shape[-1] ** 0.5  # (B, H, Q, N)
        scores = scores.masked_fill(
            ~mask[:, None, None], float("-inf")
        )  # finite somewhere: the null key is never masked
        return self.out((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))

    def forward(
        self,
        audio_tokens: Tensor,  # (B, N_a, D)
        audio_mask: Tensor,  # (B, N_a) bool
        audio_age_s: Tensor,  # (B, N_a)
        visual_tokens: Tensor,  # (B, N_v, D)
        visual_mask: Tensor,
        visual_age_s: Tensor,
    ) -> AdapterOutput:
        audio = _kept(self.audio_whitening(audio_tokens), audio_mask)
        visual = _kept(self.visual_whitening(visual_tokens), visual_mask)
        heard, seen = self.audio_features(audio), self.visual_features(visual)
        null = self.null.expand(audio.shape[0], -1, -1)
        placed = torch.cat([audio + self.modality[0], visual + self.modality[1]], dim=1)
        keys = torch.cat(
            [null, placed + self.encode_age(torch.cat([audio_age_s, visual_age_s], dim=1))], dim=1
        )
        mask = torch.cat([torch.ones_like(audio_mask[:, :1]), audio_mask, visual_mask], dim=1)
        context = self.attend(keys, torch.cat([null, heard, seen], dim=1), mask)  # (B, Q, D)
        dtype = self.null.dtype
        (audio_weights, heard_any), (visual_weights, seen_any) = (
            _weights(audio_mask, dtype), _weights(visual_mask, dtype)
        )  # fmt: skip
        moments = [_moments(x, audio_weights) for x in (audio, heard)] + [
            _moments(x, visual_weights) for x in (visual, seen)
        ]
        statistics = torch.cat([*moments, heard_any, seen_any], dim=-1).flatten(1)  # (B, 8 D + 2)
        readout = self.heads(self.supervisor(context.flatten(1)) + self.statistics(statistics))
        readout = readout.unflatten(1, (len(CONSTRUCTS), -1))  # (B, C, 4 + emotions)
        mean_context = _mean(context, self.null.new_full((1, 1, context.shape[1]), 1 / context.shape[1]))
        return AdapterOutput(
            self.audio_enhancer(audio_tokens, audio, mean_context),
            self.visual_enhancer(visual_tokens, visual, mean_context),
            readout[..., :2].tanh(),
            SPREAD_FLOOR + F.softplus(readout[..., 2:4] - 1.0),
            readout[..., 4:],
        )


def _kept(tokens: Tensor, mask: Tensor) -> Tensor:
    """Zero where masked, whatever stood there. tokens: (B, N, D); mask: (B, N) bool."""
    return torch.where(mask[..., None], tokens, 0.0)


def _weights(mask: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """For a mean over the unmasked tokens: what each weighs, (B, 1, N), and whether there is any, (B, 1, 1). mask: (B, N) bool."""
    kept = mask.to(dtype)[:, None]
    count = kept.sum(-1, keepdim=True)
    return kept / count.clamp_min(1.0), count.clamp_max(1.0)


def _moments(tokens: Tensor, weights: Tensor) -> Tensor:
    """Mean and standard deviation over the unmasked tokens, (B, 1, 2 D); zero where all are masked. tokens: (B, N, D)."""
    mean = _mean(tokens, weights)
    variance = _mean((tokens - mean) ** 2, weights)
    return torch.cat([mean, (variance + 1e-8).sqrt()], dim=-1)


def _mean(tokens: Tensor, weights: Tensor) -> Tensor:
    """(B, N, D) → (B, 1, D) in the weights' precision. weights: (B or 1, 1, N).

    A matrix product: ONNX Runtime rounds a sum over an axis in the middle otherwise where the batch is one, and a moment's reading shall not depend on
    what it was computed together with.
    """
    kind = tokens.device.type
    with torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext():
        return weights @ tokens.to(weights.dtype)
