"""Audio encoders: our small convolutional transformer, and AST and Whisper's encoder by ``transformers``.

Every audio encoder takes normalized log-mel (B, frames, mels) and returns (B, steps, width).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ASTConfig, ASTModel, WhisperConfig
from transformers.models.whisper import modeling_whisper


@dataclass(frozen=True)
class ConvTransformerConfig:
    """Sizes of our small audio encoder.

    The first convolution halves the time steps; every convolution halves the mel bins.
    """

    frames: int = 150
    n_mels: int = 64
    channels: tuple[int, ...] = (32, 64, 96, 128)
    width: int = 192
    layers: int = 4
    heads: int = 4
    dropout: float = 0.1

    @property
    def steps(self) -> int:
        """Number of time steps that come out."""
        return (self.frames + 1) // 2


class EncoderLayer(nn.TransformerEncoderLayer):
    """A transformer layer whose attention is written out.

    ``nn.MultiheadAttention`` puts the sequence first, which is exported as ten transpositions a layer.
    """

    def _sa_block(
        self, x: Tensor, attn_mask: Tensor | None, key_padding_mask: Tensor | None, is_causal: bool = False
    ) -> Tensor:
        """Attend within x, (B, N, D) → (B, N, D); nothing is masked."""
        attention = self.self_attn
        # three of (B, N, D)
        packed = F.linear(x, attention.in_proj_weight, attention.in_proj_bias).chunk(3, dim=-1)
        # each (B, H, N, D / H)
        query, key, value = (part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in packed)
        scores = query @ key.transpose(-1, -2) * attention.head_dim**-0.5  # (B, H, N, N)
        weights = F.dropout(scores.softmax(-1), attention.dropout, self.training)
        return self.dropout1(attention.out_proj((weights @ value).transpose(1, 2).flatten(2)))  # (B, N, D)


class ConvTransformer(nn.Module):
    """Convolutional stem and transformer, (B, frames, mels) → (B, steps, width).

    Trained from scratch on little data, convolutions recognize sounds far better than patches: a pitch
    shift stays a shift. GroupNorm instead of BatchNorm, because the result must depend neither on the rest
    of the batch nor on the number of processes.
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
        """Encode normalized log-mel windows (B, frames, mels) as (B, steps, width)."""
        hidden = self.stem(log_mel[:, None])  # (B, channels, steps, rows)
        hidden = hidden.permute(0, 2, 1, 3).flatten(2)  # (B, steps, channels · rows)
        hidden = self.project(hidden) + self.position  # (B, steps, width)
        return self.norm(self.transformer(hidden))  # (B, steps, width)


class AstEncoder(nn.Module):
    """``ASTModel`` with the mean over its frequency rows, (B, frames, mels) → (B, steps, width).

    Source: Gong, Chung and Glass 2021, "AST: Audio Spectrogram Transformer".
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.ast = ASTModel(config)
        self.rows = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1

    def forward(self, log_mel: Tensor) -> Tensor:
        """Encode normalized log-mel windows (B, frames, mels) as (B, steps, width)."""
        # The layers are called directly: ASTModel.forward would have the export add a mask of zeros to the
        # steps × steps scores of every layer.
        hidden = self.ast.embeddings(log_mel)  # (B, 2 + rows · steps, width)
        for layer in self.ast.layers:
            hidden = layer(hidden, None)
        # without [CLS] and the distillation token: (B, rows · steps, width)
        patches = self.ast.layernorm(hidden)[:, 2:]
        return patches.unflatten(1, (self.rows, -1)).mean(1)  # (B, steps, width)


@dataclass(frozen=True)
class WhisperEncoderConfig:
    """Sizes of Whisper's encoder over a window of ``frames`` log-mel frames; the defaults are Whisper-base's.

    ``max_source_positions`` of the published models is 1,500 steps, 30 s. Here it follows from ``frames``.
    """

    frames: int = 1000  # 10 s
    n_mels: int = 80
    width: int = 512
    layers: int = 6
    heads: int = 8
    mlp: int = 2048
    activation: str = "gelu"
    dropout: float = 0.0

    @property
    def steps(self) -> int:
        """Number of time steps that come out, 20 ms each."""
        return (self.frames + 1) // 2

    def by_transformers(self) -> WhisperConfig:
        """Return the configuration of ``transformers``; its decoder is not built."""
        return WhisperConfig(
            num_mel_bins=self.n_mels,
            d_model=self.width,
            encoder_layers=self.layers,
            encoder_attention_heads=self.heads,
            encoder_ffn_dim=self.mlp,
            activation_function=self.activation,
            dropout=self.dropout,
            max_source_positions=self.steps,
        )


class WhisperEncoder(nn.Module):
    """Whisper's encoder, (B, frames, mels) → (B, steps, width).

    The published one takes 30 s, filled up with silence, because its table of positions is that long. Here
    the table ends with the window. Source: Radford et al. 2022, "Robust Speech Recognition via Large-Scale
    Weak Supervision".
    """

    def __init__(self, config: WhisperEncoderConfig) -> None:
        super().__init__()
        self.config = config
        # Typed Any: its layers and convolutions are declared as tensors or modules.
        self.whisper: Any = modeling_whisper.WhisperEncoder(config.by_transformers())

    def forward(self, log_mel: Tensor) -> Tensor:
        """Encode normalized log-mel windows (B, frames, mels) as (B, steps, width)."""
        return self.whisper.layer_norm(self.layers(log_mel)[-1])

    def layers(self, log_mel: Tensor) -> list[Tensor]:
        """Return what each layer gives, (B, steps, width), without the norm behind the last."""
        # The parts are called directly: the positions then are a constant of the export, not a look-up.
        whisper = self.whisper
        hidden = F.gelu(whisper.conv1(log_mel.transpose(1, 2)))  # (B, width, frames)
        hidden = F.gelu(whisper.conv2(hidden)).transpose(1, 2)  # (B, steps, width)
        hidden = hidden + whisper.embed_positions.weight
        hidden = F.dropout(hidden, self.config.dropout, self.training)
        given: list[Tensor] = []
        for layer in whisper.layers:
            hidden = layer(hidden, None)
            given.append(hidden)
        return given


def build_audio_encoder(config: dict[str, Any]) -> tuple[nn.Module, int, int]:
    """Build the audio encoder that ``config["kind"]`` names and return (encoder, steps, width).

    The kinds are "conv" (``ConvTransformerConfig``), "ast" (``ASTConfig``) and "whisper"
    (``WhisperEncoderConfig``); the other entries are the encoder's own configuration. Raises ValueError for
    another kind.
    """
    kind, values = config["kind"], {key: value for key, value in config.items() if key != "kind"}
    if kind == "conv":
        conv = ConvTransformerConfig(**{**values, "channels": tuple(values["channels"])})
        return ConvTransformer(conv), conv.steps, conv.width
    if kind == "ast":
        ast: Any = ASTConfig(**values)
        steps = (ast.max_length - ast.patch_size) // ast.time_stride + 1
        return AstEncoder(ast), steps, ast.hidden_size
    if kind == "whisper":
        whisper = WhisperEncoderConfig(**values)
        return WhisperEncoder(whisper), whisper.steps, whisper.width
    raise ValueError(f"audio encoder kind must be 'conv', 'ast' or 'whisper', got {kind!r}")
