"""musicnn: a tagger of music, trained on the Million Song Dataset, read at its middle layers and its tags.

In: 3 s of log-mel. Out: means and maxima of 753 features over time, and the probabilities of 50 tags.

Source: Pons and Serra 2019, "musicnn: Pre-trained convolutional neural networks for music audio tagging",
whose ``models.py`` is followed layer by layer.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaemotion.contract.audio import WHISPER, LogMelConfig
from vaemotion.contract.errors import UsageError
from vaemotion.model.towers.loading import load_exactly
from vaemotion.model.towers.tensor_bundle import read_tensor_bundle

# The published front end is librosa's ``melspectrogram`` at its defaults, which is this kind of log-mel.
# ``mean`` and ``std`` leave the natural logarithm as it is.
LOG_MEL = LogMelConfig(
    n_mels=96,
    hop_samples=256,
    frame_samples=512,
    fft_samples=512,
    low_hz=0.0,
    high_hz=8000.0,
    preemphasis=0.0,
    mel_floor=1e-10,
    mean=0.0,
    std=0.5,
    kind=WHISPER,
)
FRAMES = 187  # 2.99 s; the published network was trained on windows of this length
GAIN = 10_000.0  # the network is given log10(GAIN · power + 1)
TIMBRAL = ((204, 38), (204, 67))  # channels and mels of filters that see 7 frames
TEMPORAL = ((51, 128), (51, 64), (51, 32))  # channels and frames of filters that see one mel
FRONT_END, MIDDLE, DENSE, TAGS = 561, 64, 200, 50  # channels
FEATURES = FRONT_END + 3 * MIDDLE
_EPSILON = 1e-3  # of the published batch normalizations
_TRAINING = re.compile(r"beta[12]_power|.+/Adam(_1)?")  # the optimizer's state, known and left out


class Scaled(nn.Module):
    """A batch normalization with constant statistics: x · factor + offset, for each channel."""

    factor: Tensor
    offset: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("factor", torch.ones(channels))
        self.register_buffer("offset", torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Scale channels, which stand last: (..., channels)."""
        return x * self.factor + self.offset


class Layer(nn.Module):
    """Convolution, ReLU and normalization; the filters' maximum over mels, or features as one column.

    (B, 1, T, bins) → (B, T, channels). Time keeps its length; of an odd total of padding, the greater half
    lies at the end.
    """

    def __init__(self, channels: int, kernel: tuple[int, int]) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, channels, kernel)
        self.normalization = Scaled(channels)
        before = (kernel[0] - 1) // 2
        self.margin = (0, 0, before, kernel[0] - 1 - before)

    def forward(self, x: Tensor) -> Tensor:
        """Compute (B, 1, T, bins) → (B, T, channels)."""
        hidden = F.relu(self.convolution(F.pad(x, self.margin)))  # (B, channels, T, bins - k + 1)
        # The factor of a normalization may be negative: first the normalization, then the maximum.
        return self.normalization(hidden.permute(0, 2, 3, 1)).amax(2)  # (B, T, channels)


class MusicNN(nn.Module):
    """musicnn (MSD), (B, 187, 96) → mean, max, penultimate, tags.

    Input ``log_mel``: the natural logarithm of power, ``log_mel(samples, LOG_MEL)``, 62.5 frames a second.
    Outputs: ``mean`` and ``max`` (B, 753) over time, of 561 features of the front end and 3 × 64 of the
    middle layers; ``penultimate`` (B, 200); ``tags`` (B, 50), a probability for each, of which several may
    hold.
    """

    inputs: ClassVar[Mapping[str, tuple[int, ...]]] = {"log_mel": (FRAMES, LOG_MEL.n_mels)}
    outputs: ClassVar[Mapping[str, tuple[int, ...]]] = {
        "mean": (FEATURES,),
        "max": (FEATURES,),
        "penultimate": (DENSE,),
        "tags": (TAGS,),
    }

    def __init__(self) -> None:
        super().__init__()
        self.normalization = Scaled(1)
        kernels = [(channels, (7, mels)) for channels, mels in TIMBRAL]
        kernels += [(channels, (frames, 1)) for channels, frames in TEMPORAL]
        self.front_end = nn.ModuleList(Layer(channels, kernel) for channels, kernel in kernels)
        self.middle = nn.ModuleList(Layer(MIDDLE, (7, width)) for width in (FRONT_END, MIDDLE, MIDDLE))
        self.pool_normalization = Scaled(2 * FEATURES)
        self.dense = nn.Linear(2 * FEATURES, DENSE)
        self.dense_normalization = Scaled(DENSE)
        self.tagger = nn.Linear(DENSE, TAGS)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> MusicNN:
        """Build the tower from tensors as ``read_published`` names them. Raises UsageError."""
        return load_exactly(cls(), tensors)

    def forward(self, log_mel: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compute ``mean``, ``max``, ``penultimate`` and ``tags`` of log-mel windows (B, 187, 96)."""
        return self.of_compressed(torch.log10(GAIN * log_mel.exp() + 1))

    def of_compressed(self, spectrogram: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compute the outputs of log10(GAIN · power + 1), (B, 187, 96), the published input."""
        x = self.normalization(spectrogram[..., None])[..., 0][:, None]  # (B, 1, T, 96)
        features = [torch.cat([layer(x) for layer in self.front_end], 2)]  # (B, T, 561)
        first, second, third = self.middle
        hidden = first(features[0][:, None])  # (B, T, 64)
        features.append(hidden)
        for layer in (second, third):
            hidden = layer(hidden[:, None]) + hidden
            features.append(hidden)
        of_frames = torch.cat(features, 2)  # (B, T, 753)
        mean, most = of_frames.mean(1), of_frames.amax(1)  # (B, 753)
        pooled = self.pool_normalization(torch.stack([most, mean], 2).flatten(1))  # (B, 1506), in turns
        penultimate = self.dense_normalization(F.relu(self.dense(pooled)))  # (B, 200)
        return mean, most, penultimate, self.tagger(penultimate).sigmoid()


def read_published(index: bytes, shard: bytes) -> dict[str, Tensor]:
    """Read the published checkpoint, its index and its data, as this tower's tensors.

    Raises UsageError for other files, and for tensors that are missing or unknown.
    """
    stored = read_tensor_bundle(index, shard, lambda name: not _TRAINING.fullmatch(name))
    try:
        tensors = {name: torch.from_numpy(np.array(values)) for name, values in _renamed(stored)}
    except KeyError as error:
        raise UsageError(f"musicnn's checkpoint lacks {error}; download its wheel again") from error
    if stored:
        raise UsageError(f"musicnn's checkpoint holds an unknown {min(stored)}; take the model MSD_musicnn")
    return tensors


def read_tags(configuration: bytes) -> tuple[str, ...]:
    """Read the names of the tags from the published ``configuration.py``, in the order of the outputs.

    The file is parsed, not run. Raises UsageError where it has no 50 names for the MSD.
    """
    try:
        for statement in ast.parse(configuration).body:
            if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "MSD_LABELS":
                names = tuple(map(str, ast.literal_eval(statement.value)))
                if len(names) == TAGS:
                    return names
    except (SyntaxError, ValueError, TypeError) as error:
        raise UsageError(
            f"musicnn's configuration.py cannot be read ({error}); download its wheel again"
        ) from error
    raise UsageError(f"musicnn's configuration.py has no {TAGS} MSD_LABELS; download its wheel again")


def _renamed(stored: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Take the published arrays one by one; yield them under our names, kernels as torch has them."""
    layers = [f"front_end.{index}" for index in range(5)] + [f"middle.{index}" for index in range(3)]
    for index, layer in enumerate(layers):
        source = _numbered("conv2d", index)
        # (frames, bins, 1, channels) → (channels, 1, frames, bins)
        yield f"{layer}.convolution.weight", stored.pop(f"{source}/kernel").transpose(3, 2, 0, 1)
        yield f"{layer}.convolution.bias", stored.pop(f"{source}/bias")
    normalized = ("normalization", *(f"{layer}.normalization" for layer in layers))
    for index, name in enumerate((*normalized, "pool_normalization", "dense_normalization")):
        source = _numbered("batch_normalization", index)
        gamma, beta, mean, variance = (
            stored.pop(f"{source}/{part}").astype(np.float64)
            for part in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        factor = gamma / np.sqrt(variance + _EPSILON)
        yield f"{name}.factor", factor.astype(np.float32)
        yield f"{name}.offset", (beta - mean * factor).astype(np.float32)
    for index, name in enumerate(("dense", "tagger")):
        source = _numbered("dense", index)
        yield f"{name}.weight", stored.pop(f"{source}/kernel").T
        yield f"{name}.bias", stored.pop(f"{source}/bias")


def _numbered(kind: str, index: int) -> str:
    """Name a layer as TensorFlow 1 does: conv2d, conv2d_1 and so on."""
    return kind if index == 0 else f"{kind}_{index}"
