"""One interface for vision-language models, whatever their family.

A family is a small module of facts in ``vaemotion.model.families``: how its network is built from its
``config.json``, and which modules of it are the vision encoder, the decoder and the head. Nothing outside
names a family's parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vaemotion.contract.positions import PictureGrid


@dataclass(frozen=True)
class VlmBackbone:
    """The parts of a vision-language model that the project uses.

    ``network`` holds all weights, as a checkpoint stores them; the other modules are parts of it.
    """

    network: nn.Module
    vision: nn.Module  # normalized pixels (B, 3, side, side) → visual tokens (B, T, D), exportable
    decoder: Any  # takes inputs_embeds (B, L, D), gives last_hidden_state; without its head
    head: Any  # states (..., D) → logits (..., vocab), a matrix without bias
    text_config: Any  # the decoder's configuration, by transformers
    tokens_per_picture: int  # T
    grid: PictureGrid | None = None  # of a picture, for decoders with M-RoPE; the others count rows

    @property
    def embedding(self) -> nn.Embedding:
        """The table of token embeddings, (vocab, D)."""
        return self.decoder.get_input_embeddings()

    @property
    def tied(self) -> bool:
        """True where the head is the table of embeddings."""
        return self.head.weight is self.embedding.weight

    @property
    def width(self) -> int:
        """Width of the decoder, D."""
        return self.text_config.hidden_size

    @property
    def vocabulary(self) -> int:
        """Number of logits at each position."""
        return self.text_config.vocab_size

    @property
    def longest_context(self) -> int:
        """Positions that the decoder was trained for."""
        return self.text_config.max_position_embeddings

    def decoder_tensors(self) -> dict[str, Tensor]:
        """Collect the decoder's weights under its own names, with ``lm_head.weight`` unless tied."""
        tensors: dict[str, Tensor] = dict(self.decoder.state_dict())
        if not self.tied:
            tensors["lm_head.weight"] = self.head.weight
        return {name: tensor.detach() for name, tensor in tensors.items()}


@dataclass(frozen=True)
class Family:
    """A family of vision-language models.

    ``model_type``: as its ``config.json`` says it. ``network_class``: the class of ``transformers`` that
    holds the weights. ``parts``: the backbone in a built network, for square pictures of a side; raises
    UsageError for a side that it cannot take. ``side_px``: the side that a config asks for, None for any.
    """

    name: str
    model_type: str
    config_class: Any
    network_class: Any
    parts: Callable[[Any, int], VlmBackbone]
    side_px: Callable[[Mapping[str, Any]], int | None]

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        """Build the network with random weights in float32 from the dictionary of its ``config.json``."""
        # Published configs name a half-precision type for the whole, or for the decoder alone.
        return self.network_class(self.config_class(**config)).float()
