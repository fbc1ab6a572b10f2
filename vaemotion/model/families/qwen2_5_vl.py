"""Qwen2.5-VL: a tower with attention in windows, a patch merger, and a Qwen2 decoder with M-RoPE.

Pictures of any size enter the published model. Here they are squares of one side, so that the windows, their
order and the rotary angles are constants that can be exported.
Source: Bai et al. 2025, "Qwen2.5-VL Technical Report", arXiv 2502.13923.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from vaemotion.contract.errors import UsageError
from vaemotion.contract.positions import PictureGrid
from vaemotion.model.backbone import Family, VlmBackbone

# Pixels arrive normalized to [-1, 1]; the tower was trained on CLIP's mean and deviation of each channel.
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_DEVIATION = (0.26862954, 0.26130258, 0.27577711)


class VisionEncoder(nn.Module):
    """The tower and its merger: pixels (B, 3, side, side) → tokens (B, T, D).

    The published module takes the patches of all pictures in one row and splits them by lengths that depend
    on the data. With one side, all windows are equally large, and the batch is a dimension of its own.
    """

    window_order: Tensor
    cosines: Tensor
    sines: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, visual: Any, side_px: int) -> None:
        super().__init__()
        self.visual = visual
        config = visual.config
        self.merge = int(config.spatial_merge_size)
        self.per_side = side_px // config.patch_size // self.merge  # groups of merged patches
        self.per_window = (config.window_size // config.patch_size) ** 2  # patches
        grid = torch.tensor([[1, side_px // config.patch_size, side_px // config.patch_size]])
        order, _ = get_vision_window_index(grid, self.merge, config.window_size, config.patch_size)
        positions = get_vision_position_ids(grid, self.merge)
        angles = visual.rotary_pos_emb(torch.zeros(1), positions)  # cosines and sines, (patches, head) each
        cosines, sines = (part.unflatten(0, (-1, self.merge**2))[order].flatten(0, 1) for part in angles)
        std = torch.tensor(_CLIP_DEVIATION).view(3, 1, 1)
        constants = {
            "window_order": order,  # (groups,)
            "cosines": cosines,  # (patches, head)
            "sines": sines,
            "scale": 0.5 / std,  # of pixels in [-1, 1]
            "shift": (0.5 - torch.tensor(_CLIP_MEAN).view(3, 1, 1)) / std,
        }
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode normalized images (B, 3, side, side) as visual tokens (B, T, D)."""
        visual, merge, per_side = self.visual, self.merge, self.per_side
        embedding = visual.patch_embed
        # A still picture is twice the same frame, so the two kernels of the frames add up.
        kernel = embedding.proj.weight.sum(2)  # (width, 3, patch, patch)
        patches = F.conv2d(pixels * self.scale + self.shift, kernel, stride=embedding.patch_size)
        # (B, width, rows, columns) → groups of merge × merge patches: (B, groups, merge², width)
        patches = patches.unflatten(3, (per_side, merge)).unflatten(2, (per_side, merge))
        hidden = patches.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)
        hidden = hidden[:, self.window_order].flatten(1, 2)  # (B, patches, width)
        for number, block in enumerate(visual.blocks):
            whole = number in visual.fullatt_block_indexes
            hidden = hidden + self._attended(block.attn, block.norm1(hidden), whole)
            hidden = hidden + block.mlp(block.norm2(hidden))
        merger = visual.merger
        merged = merger.mlp(merger.ln_q(hidden).unflatten(1, (-1, merge**2)).flatten(2))  # (B, groups, D)
        return merged[:, self.window_order.argsort()]  # row by row

    def _attended(self, attention: Any, hidden: Tensor, whole: bool) -> Tensor:
        """Attend within the picture, or within each of its windows, (B, patches, width)."""
        packed = attention.qkv(hidden).unflatten(2, (3, attention.num_heads, -1))
        query, key, value = packed.permute(2, 0, 3, 1, 4).unbind(0)  # three of (B, heads, patches, head)
        query, key = (part * self.cosines + _half_turned(part) * self.sines for part in (query, key))
        if not whole:  # (B, heads, windows, patches of a window, head)
            query, key, value = (part.unflatten(2, (-1, self.per_window)) for part in (query, key, value))
        weights = (query @ key.transpose(-1, -2) * attention.scaling).softmax(-1)
        mixed = weights @ value
        if not whole:
            mixed = mixed.flatten(2, 3)
        return attention.proj(mixed.transpose(1, 2).flatten(2))  # (B, patches, width)


def _half_turned(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


def _parts(network: Any, side_px: int) -> VlmBackbone:
    vision = network.config.vision_config
    window_px = vision.window_size
    if side_px % window_px:
        raise UsageError(
            f"Qwen2.5-VL attends in windows of {window_px} px, and image.side_px is {side_px}; set a "
            f"multiple, such as --set image.side_px={max(1, round(side_px / window_px)) * window_px}"
        )
    encoder = VisionEncoder(network.model.visual, side_px)
    grid = PictureGrid(encoder.per_side, encoder.per_side)
    decoder = network.model.language_model
    return VlmBackbone(network, encoder, decoder, network.lm_head, decoder.config, grid.tokens, grid)


def _side_px(_: Mapping[str, Any]) -> None:
    return None


QWEN2_5_VL = Family(
    "Qwen2.5-VL", "qwen2_5_vl", Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, _parts, _side_px
)
