"""Pretrained parts from local folders: a vision-language model as the base, AST or Whisper as audio encoder.

In: a folder as the authors publish it, with ``config.json`` and safetensors (the base also: tokenizer and
chat template), and on request a LoRA adapter of the base. Out: weights in float32, every one of them from the
folder. Nothing is fetched, nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from tokenizers import Tokenizer
from torch import Tensor
from transformers import ASTConfig, ASTModel, PreTrainedConfig

from vaemotion.contract.errors import UsageError
from vaemotion.contract.front_end import FrontEnd
from vaemotion.model import whisper
from vaemotion.model.chat_template import prompt_template
from vaemotion.model.checkpoint_config import ModelConfig
from vaemotion.model.families import FAMILIES, family_of
from vaemotion.model.strict_loading import load_strictly
from vaemotion.model.tensor_files import refuse_lfs_pointer
from vaemotion.model.vaemotion_llm import VAEmotionLLM
from vaemotion.model.weights_folder import FolderWeights, read_folder_config

_AST = "audio-spectrogram-transformer"


# -- the base -------------------------------------------------------------------------------------------


def pretrained_base(folder: Path, front_end: FrontEnd, adapter: Path | None = None) -> VAEmotionLLM:
    """Load a vision-language model as the base, its weights rounded to float16 and held in float32.

    adapter: folder of a LoRA adapter, which is merged first; a checkpoint then stores the base itself. Raises
    UsageError for a model of no known family, another image side than the front end's, weights that are not
    those of the configuration, or a tokenizer or chat template that makes no prompt.
    """
    config = read_folder_config(folder, _a_base())
    _check_type(folder, config, {name: family.name for name, family in FAMILIES.items()})
    _check_side(folder, config, front_end.image.side_px)
    tokenizer = _tokenizer(folder)
    model_config = ModelConfig(vlm=config, front_end=front_end, prompt=prompt_template(folder, tokenizer))
    model = VAEmotionLLM(model_config, tokenizer, load_base(folder, config, adapter))
    model.base_folder = folder if adapter is None else None
    return model


def load_base(folder: Path, config: Mapping[str, Any], adapter: Path | None = None) -> Any:
    """Load the network of a base from its folder, its weights rounded to float16 as shipped.

    config: the folder's, of a known family, without dtypes. Raises UsageError for weights that are not those
    of the configuration.
    """
    family = family_of(config)
    built = _built(folder, family.config_class, config, family.name)
    network = load_strictly(family.network_class, built, folder, FolderWeights(folder, adapter))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(parameter.half())
            if not parameter.isfinite().all():
                raise UsageError(f"{folder}: {name} is not finite in float16, in which bases are stored")
    return network


def _a_base() -> str:
    return f"a {' or '.join(family.name for family in FAMILIES.values())} checkpoint"


def _check_side(folder: Path, config: Mapping[str, Any], side_px: int) -> None:
    """Raise UsageError unless the base takes images of the front end's side."""
    try:
        expected_px = family_of(config).side_px(config)
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else error
        raise UsageError(
            f"{folder / 'config.json'} does not say the side of the model's images ({reason}); copy the "
            f"config.json that belongs to these weights"
        ) from error
    if expected_px is not None and side_px != expected_px:
        raise UsageError(
            f"{folder} takes images of {expected_px} px, the configuration has image.side_px = {side_px}; "
            f"add --set image.side_px={expected_px}"
        )


def _tokenizer(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UsageError(
            f"{folder} lacks tokenizer.json; save the model's fast tokenizer into it with save_pretrained()"
        )
    refuse_lfs_pointer(path)
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise UsageError(f"{path} cannot be read as a tokenizer ({error}); copy it again") from error


# -- the audio encoder ----------------------------------------------------------------------------------


def pretrained_audio_encoder(folder: Path, front_end: FrontEnd) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read an AST or a Whisper: ``AudioPathwayConfig.encoder``, and the weights of that encoder.

    Raises UsageError for another model, for one that does not fit the front end, or for weights that are not
    those of its configuration.
    """
    stored = read_folder_config(folder, "an AST or Whisper checkpoint")
    _check_type(folder, stored, {_AST: "AST", whisper.MODEL_TYPE: "Whisper"})
    if stored["model_type"] == whisper.MODEL_TYPE:
        return whisper.read_whisper(folder, stored, front_end)
    return _read_ast(folder, stored, front_end)


def _read_ast(
    folder: Path, stored: Mapping[str, Any], front_end: FrontEnd
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    own = set(ASTConfig().to_dict()) - set(PreTrainedConfig().to_dict())
    values = {key: value for key, value in stored.items() if key in own}
    built: Any = _built(folder, ASTConfig, values, "AST")
    expected = (built.max_length, built.num_mel_bins)
    given = (front_end.audio_window_frames, front_end.log_mel.n_mels)
    if expected != given:
        raise UsageError(
            f"{folder} takes {expected[0]} frames of {expected[1]} mels, the configuration gives {given[0]} "
            f"of {given[1]}; set log_mel.n_mels, log_mel.hop_samples and windows.audio_window_s to match"
        )
    network = load_strictly(ASTModel, built, folder, FolderWeights(folder), unused=("classifier.",))
    return {"kind": "ast", **values}, {f"ast.{name}": tensor for name, tensor in network.state_dict().items()}


# -- configurations -------------------------------------------------------------------------------------


def _check_type(folder: Path, config: Mapping[str, Any], known: Mapping[str, str]) -> None:
    """Raise UsageError unless the model's type is known. known: type → name."""
    if config["model_type"] not in known:
        expected = " or ".join(f"{name!r} ({of})" for name, of in known.items())
        raise UsageError(f"{folder} has model type {config['model_type']!r}, expected {expected}")


def _built(folder: Path, config_class: Any, values: Mapping[str, Any], name: str) -> Any:
    """Build a configuration of ``transformers``. Raises UsageError for values that it refuses."""
    try:
        return config_class(**values)
    except (AttributeError, KeyError, TypeError, ValueError, StrictDataclassError) as error:
        raise UsageError(
            f"{folder / 'config.json'} does not describe a {name} ({' '.join(str(error).split())}); copy the "
            f"config.json that belongs to these weights"
        ) from error
