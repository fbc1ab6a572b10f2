"""What a checkpoint's ``config.json`` says of the model: the sizes, the constants of the front end, the prompt."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from vaemotion.contract.front_end import FrontEnd
from vaemotion.contract.prompts import PromptTemplate
from vaemotion.model.audio_pathway import AudioPathwayConfig
from vaemotion.model.emo_adapter import EmoAdapterConfig


@dataclass(frozen=True)
class ModelConfig:
    """``vlm``: a ``SmolVLMConfig`` as dictionary. ``audio`` and ``adapter`` are None before their stages."""

    vlm: dict[str, Any]
    front_end: FrontEnd = field(default_factory=FrontEnd)
    prompt: PromptTemplate = field(default_factory=PromptTemplate)
    audio: AudioPathwayConfig | None = None
    adapter: EmoAdapterConfig | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        return cls(
            vlm=values["vlm"],
            front_end=FrontEnd.from_dict(values["front_end"]),
            prompt=PromptTemplate(**values["prompt"]),
            audio=AudioPathwayConfig(**values["audio"]) if values.get("audio") else None,
            adapter=EmoAdapterConfig(**values["adapter"]) if values.get("adapter") else None,
        )
