"""Pretrained parts from local folders: SmolVLM2 as the base, AST as the audio encoder.

In: a folder as the authors publish it, with ``config.json`` and safetensors (SmolVLM2: also
``tokenizer.json``). Nothing is fetched, nothing is unpickled.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import ASTConfig, ASTModel, SmolVLMForConditionalGeneration

from vaemotion.contract.errors import UsageError
from vaemotion.contract.front_end import FrontEnd
from vaemotion.contract.prompts import SMOLVLM2
from vaemotion.model.checkpoint_config import ModelConfig
from vaemotion.model.vaemotion_llm import VAEmotionLLM


def pretrained_base(folder: Path, front_end: FrontEnd) -> VAEmotionLLM:
    """Load a SmolVLM (256M, 500M, 2.2B) as the base, its weights rounded to float16 and held in float32.

    Raises UsageError for another model, another image side than the front end's, or a tokenizer without the
    template's special tokens.
    """
    config = _config(folder, "smolvlm", "SmolVLM2")
    side_px = config["vision_config"]["image_size"]
    if front_end.image.side_px != side_px:
        raise UsageError(
            f"{folder} takes images of {side_px} px, the configuration has image.side_px = "
            f"{front_end.image.side_px}; add --set image.side_px={side_px}"
        )
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # tokenizers raises plain Exception
        raise UsageError(f"{folder / 'tokenizer.json'} cannot be read as a tokenizer: {error}") from error
    for token in (SMOLVLM2.stop, "<fake_token_around_image>", "<global-img>"):
        if len(tokenizer.encode(token, add_special_tokens=False).ids) != 1:
            raise UsageError(
                f"{folder}: the tokenizer has no token {token}; give the folder of a SmolVLM2 chat model"
            )
    model = VAEmotionLLM(ModelConfig(vlm=config, front_end=front_end, prompt=SMOLVLM2), tokenizer)
    load_base_weights(model, folder)
    return model


def load_base_weights(model: VAEmotionLLM, folder: Path) -> None:
    """Load the base's weights from a folder, rounded to float16 as shipped, and keep the folder's path."""
    model.base.load_state_dict(_weights(SmolVLMForConditionalGeneration, folder).state_dict())
    with torch.no_grad():
        for parameter in model.base.parameters():
            parameter.copy_(parameter.half().float())
    model.base_folder = folder


def pretrained_audio_encoder(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Read an AST: its ``AudioPathwayConfig.encoder``, and the weights of ``AstEncoder.ast``.

    Raises UsageError for another model or unreadable weights.
    """
    known = ASTConfig().to_dict()
    stored = _config(folder, "audio-spectrogram-transformer", "AST")
    values = {key: value for key, value in stored.items() if key in known and _is_plain(value)}
    for key in ("model_type", "transformers_version", "architectures", "dtype", "id2label", "label2id"):
        values.pop(key, None)
    return {"kind": "ast", **values}, _weights(ASTModel, folder).state_dict()


def _is_plain(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str))


def _config(folder: Path, model_type: str, name: str) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{folder} holds no readable config.json ({error}); give the folder of a {name} checkpoint"
        ) from error
    if config.get("model_type") != model_type:
        raise UsageError(
            f"{folder} has model type {config.get('model_type')!r}, expected {model_type!r} ({name})"
        )
    return config


def _weights(kind: Any, folder: Path) -> Any:
    try:
        return kind.from_pretrained(folder, dtype=torch.float32, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise UsageError(
            f"{folder}: its weights cannot be loaded ({first}); give safetensors that match its config.json"
        ) from error
