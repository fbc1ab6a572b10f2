"""The model's part of a checkpoint's ``config.json``: sizes, constants of the front end, prompt."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from vaemotion.contract.front_end import FrontEnd
from vaemotion.contract.prompts import PromptTemplate
from vaemotion.model.audio_pathway import AudioPathwayConfig
from vaemotion.model.emo_adapter import EmoAdapterConfig


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the base and of what the stages add, with the constants that training and device share."""

    vlm: dict[str, Any]  # the dictionary of a ``SmolVLMConfig``
    front_end: FrontEnd = field(default_factory=FrontEnd)
    prompt: PromptTemplate = field(default_factory=PromptTemplate)
    audio: AudioPathwayConfig | None = None  # None before stage 1
    adapter: EmoAdapterConfig | None = None  # None before stage 2

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Build the configuration from what ``to_dict`` returned."""
        return cls(
            vlm=values["vlm"],
            front_end=FrontEnd.from_dict(values["front_end"]),
            prompt=PromptTemplate(**values["prompt"]),
            audio=AudioPathwayConfig(**values["audio"]) if values.get("audio") else None,
            adapter=EmoAdapterConfig.from_dict(values["adapter"]) if values.get("adapter") else None,
        )
