"""Sizes of the published models that a bundle is made from: SmolVLM2-500M and AST-base.

SmolVLM2-500M consists of SigLIP-base and SmolLM2-360M.
"""

from __future__ import annotations

# SigLIP-base, patch 16, 512 px
VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 512,
    "patch_size": 16,
}
# SmolLM2-360M
TEXT = {
    "model_type": "llama",
    "hidden_size": 960,
    "intermediate_size": 2560,
    "num_hidden_layers": 32,
    "num_attention_heads": 15,
    "num_key_value_heads": 5,
    "vocab_size": 49280,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}
SCALE_FACTOR = 4  # of SmolVLM2's connector: 64 tokens from 1,024 patches
