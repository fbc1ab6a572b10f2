"""SmolVLM2 and SmolVLM 1: a SigLIP tower, pixel shuffle with one projection, and a Llama decoder.

Both have the same network; SmolVLM 1 is published under the type of its predecessor, Idefics3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from vaemotion.model.backbone import Family, VlmBackbone


class VisionEncoder(nn.Module):
    """The vision model and the connector: pixels (B, 3, side, side) → tokens (B, T, D).

    Both are called directly, because ``get_image_features`` would drop images that are all zero, which
    depends on the data and cannot be exported.
    """

    position_ids: Tensor

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.vision_model: Any = network.model.vision_model
        self.connector: Any = network.model.connector
        side = network.config.vision_config.image_size // network.config.vision_config.patch_size
        self.register_buffer("position_ids", baked_position_ids(side), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode normalized images (B, 3, side, side) as visual tokens (B, T, D)."""
        embeddings = self.vision_model.embeddings
        patches = embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)  # (B, patches, width)
        hidden = patches + embeddings.position_embedding(self.position_ids)  # (B, patches, width)
        hidden = self.vision_model.encoder(inputs_embeds=hidden, attention_mask=None).last_hidden_state
        return self.connector(self.vision_model.post_layernorm(hidden))  # (B, T, D)


def baked_position_ids(patches_per_side: int) -> Tensor:
    """Compute the position ids of a whole square image, (patches²,), as ``SmolVLMVisionEmbeddings`` does.

    The buckets are rounded as in that code, because pretrained weights were trained with them.
    """
    boundaries = torch.arange(1 / patches_per_side, 1.0, 1 / patches_per_side)
    step = 1.0 / torch.tensor(patches_per_side)
    coordinates = torch.clamp(torch.arange(patches_per_side, dtype=torch.float32) * step, max=1.0 - 1e-6)
    buckets = torch.bucketize(coordinates, boundaries, right=True)  # (patches,)
    return (buckets[:, None] * patches_per_side + buckets[None, :]).flatten()


def _parts(network: Any, _: int) -> VlmBackbone:
    config = network.config
    per_side = config.vision_config.image_size // config.vision_config.patch_size // config.scale_factor
    return VlmBackbone(
        network,
        VisionEncoder(network),
        network.model.text_model,
        network.lm_head,
        config.text_config,
        tokens_per_picture=per_side**2,
    )


def _side_px(config: Mapping[str, Any]) -> int:
    return int(config["vision_config"]["image_size"])


SMOLVLM = Family("SmolVLM2", "smolvlm", SmolVLMConfig, SmolVLMForConditionalGeneration, _parts, _side_px)
IDEFICS3 = Family("SmolVLM", "idefics3", Idefics3Config, Idefics3ForConditionalGeneration, _parts, _side_px)
