"""The frozen base and the encoders: a vision-language model through ``transformers``, AST, and our small audio encoder.

Audio encoders keep one contract: normalised log-mel (B, frames, mels) in, (B, steps, width) out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ASTConfig, ASTModel, SmolVLMConfig, SmolVLMForConditionalGeneration


def build_vlm(config: dict[str, Any]) -> Any:
    """A ``SmolVLMForConditionalGeneration`` with random weights from the dictionary of its ``config.json``.

    Typed Any: transformers declares its sub-configs as optional dictionaries and its submodules as tensors.
    """
    return SmolVLMForConditionalGeneration(SmolVLMConfig(**config))


def baked_position_ids(patches_per_side: int) -> Tensor:
    """Position ids of a whole square picture, (patches²,), by the arithmetic of ``SmolVLMVisionEmbeddings``.

    The buckets are kept as that code rounds them, because pretrained weights were trained with them.
    """
    boundaries = torch.arange(1 / patches_per_side, 1.0, 1 / patches_per_side)
    step = 1.0 / torch.tensor(patches_per_side)
    coordinates = torch.clamp(torch.arange(patches_per_side, dtype=torch.float32) * step, max=1.0 - 1e-6)
    buckets = torch.bucketize(coordinates, boundaries, right=True)
    return (buckets[:, None] * patches_per_side + buckets[None, :]).flatten()


class VisionEncoder(nn.Module):
    """The base's own vision model and connector, called directly: pixels (B, 3, side, side) → tokens (B, T, D).

    ``get_image_features`` would drop all-zero pictures, which depends on the data and cannot be exported.
    """

    position_ids: Tensor

    def __init__(self, vlm: Any) -> None:
        super().__init__()
        self.vision_model: Any = vlm.model.vision_model
        self.connector: Any = vlm.model.connector
        side = vlm.config.vision_config.image_size // vlm.config.vision_config.patch_size
        self.register_buffer("position_ids", baked_position_ids(side), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        embeddings = self.vision_model.embeddings
        patches = embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)  # (B, patches, width)
        hidden = patches + embeddings.position_embedding(self.position_ids)
        hidden = self.vision_model.encoder(inputs_embeds=hidden, attention_mask=None).last_hidden_state
        return self.connector(self.vision_model.post_layernorm(hidden))  # (B, T, D)


@dataclass(frozen=True)
class ConvTransformerConfig:
    """Our small audio encoder. Time shrinks by 2 in the first convolution; each convolution halves the mels."""

    frames: int = 150
    n_mels: int = 64
    channels: tuple[int, ...] = (32, 64, 96, 128)
    width: int = 192
    layers: int = 4
    heads: int = 4
    dropout: float = 0.1

    @property
    def steps(self) -> int:
        return (self.frames + 1) // 2


class EncoderLayer(nn.TransformerEncoderLayer):
    """Its attention written out: ``nn.MultiheadAttention`` puts the sequence first, which is exported as ten transpositions a layer."""

    def _sa_block(
        self, x: Tensor, attn_mask: Tensor | None, key_padding_mask: Tensor | None, is_causal: bool = False
    ) -> Tensor:
        """x: (B, N, D), nothing masked."""
        attention = self.self_attn
        packed = F.linear(x, attention.in_proj_weight, attention.in_proj_bias).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in packed)
        scores = query @ key.transpose(-1, -2) * attention.head_dim**-0.5  # (B, H, N, N)
        weights = F.dropout(scores.softmax(-1), attention.dropout, self.training)
        return self.dropout1(attention.out_proj((weights @ value).transpose(1, 2).flatten(2)))


class ConvTransformer(nn.Module):
    """Convolutional stem and transformer, (B, frames, mels) → (B, steps, width).

    From scratch on little data convolutions hear far better than patches: a pitch shift stays a shift.
    GroupNorm, not BatchNorm: the result may not depend on what else is in the batch or on the number of processes.
    """

    def __init__(self, config: ConvTransformerConfig) -> None:
        super().__init__()
        self.config = config
        stem: list[nn.Module] = []
        inputs = 1
        for index, outputs in enumerate(config.channels):
            stride = (2, 2) if index == 0 else (1, 2)  # (time, mel)
            stem += [
                nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
                nn.GroupNorm(8, outputs),
                nn.GELU(),
            ]
            inputs = outputs
        self.stem = nn.Sequential(*stem)
        rows = config.n_mels
        for _ in config.channels:
            rows = (rows + 1) // 2
        self.project = nn.Linear(inputs * rows, config.width)
        self.position = nn.Parameter(torch.randn(config.steps, config.width) * 0.02)
        layer = EncoderLayer(
            config.width,
            config.heads,
            4 * config.width,
            config.dropout,
            "gelu",
            batch_first=True,
            norm_first=True,
        )
        self.transformer = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, log_mel: Tensor) -> Tensor:
        hidden = self.stem(log_mel[:, None])  # (B, channels, steps, rows)
        hidden = hidden.permute(0, 2, 1, 3).flatten(2)  # (B, steps, channels * rows)
        return self.norm(self.transformer(self.project(hidden) + self.position))


class AstEncoder(nn.Module):
    """``ASTModel`` with the mean over its frequency rows, (B, frames, mels) → (B, steps, width)."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.ast = ASTModel(config)
        self.rows = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1

    def forward(self, log_mel: Tensor) -> Tensor:
        # Its layers called directly: its own forward would have the export add a mask of zeros to every layer's steps × steps scores.
        hidden = self.ast.embeddings(log_mel)
        for layer in self.ast.layers:
            hidden = layer(hidden, None)
        tokens = self.ast.layernorm(hidden)[:, 2:]  # without [CLS] and distillation: (B, rows * steps, width)
        return tokens.unflatten(1, (self.rows, -1)).mean(1)


def build_audio_encoder(config: dict[str, Any]) -> tuple[nn.Module, int, int]:
    """The encoder that ``config["kind"]`` names ("conv" or "ast"; the other entries are its own config).

    Returns (encoder, steps, width).
    """
    kind, values = config["kind"], {key: value for key, value in config.items() if key != "kind"}
    if kind == "conv":
        conv = ConvTransformerConfig(**{**values, "channels": tuple(values["channels"])})
        return ConvTransformer(conv), conv.steps, conv.width
    if kind == "ast":
        ast: Any = ASTConfig(**values)
        steps = (ast.max_length - ast.patch_size) // ast.time_stride + 1
        return AstEncoder(ast), steps, ast.hidden_size
    raise ValueError(f"audio encoder kind must be 'conv' or 'ast', got {kind!r}")
