"""The frozen base: SmolVLM through ``transformers``, and its vision encoder as it is exported."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration


def build_vlm(config: dict[str, Any]) -> Any:
    """Build a SmolVLM with random weights from the dictionary of its ``config.json``.

    Typed Any: transformers declares its sub-configs as optional dictionaries and its submodules as tensors.
    """
    return SmolVLMForConditionalGeneration(SmolVLMConfig(**config))


def baked_position_ids(patches_per_side: int) -> Tensor:
    """Compute the position ids of a whole square image, (patches²,), as ``SmolVLMVisionEmbeddings`` does.

    The buckets are rounded as in that code, because pretrained weights were trained with them.
    """
    boundaries = torch.arange(1 / patches_per_side, 1.0, 1 / patches_per_side)
    step = 1.0 / torch.tensor(patches_per_side)
    coordinates = torch.clamp(torch.arange(patches_per_side, dtype=torch.float32) * step, max=1.0 - 1e-6)
    buckets = torch.bucketize(coordinates, boundaries, right=True)  # (patches,)
    return (buckets[:, None] * patches_per_side + buckets[None, :]).flatten()


class VisionEncoder(nn.Module):
    """The base's vision model and connector: pixels (B, 3, side, side) → tokens (B, T, D).

    Both are called directly, because ``get_image_features`` would drop images that are all zero, which
    depends on the data and cannot be exported.
    """

    position_ids: Tensor

    def __init__(self, vlm: Any) -> None:
        super().__init__()
        self.vision_model: Any = vlm.model.vision_model
        self.connector: Any = vlm.model.connector
        side = vlm.config.vision_config.image_size // vlm.config.vision_config.patch_size
        self.register_buffer("position_ids", baked_position_ids(side), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode normalized images (B, 3, side, side) as visual tokens (B, T, D)."""
        embeddings = self.vision_model.embeddings
        patches = embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)  # (B, patches, width)
        hidden = patches + embeddings.position_embedding(self.position_ids)  # (B, patches, width)
        hidden = self.vision_model.encoder(inputs_embeds=hidden, attention_mask=None).last_hidden_state
        return self.connector(self.vision_model.post_layernorm(hidden))  # (B, T, D)
