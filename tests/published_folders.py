"""Folders as the authors of models publish them: their JSON files, random weights of a small size.

Nothing that transformers would write today: the names of dtypes, the keys that are left out because they are
defaults, and the files beside are those of ``tests/published``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import ASTConfig, ASTForAudioClassification

from tests.paths import ROOT
from tests.tiny import tiny_tokenizer
from vaemotion.model.families import family_of

PUBLISHED = ROOT / "tests" / "published"
VLMS = ("smolvlm2-256m", "smolvlm2-500m", "smolvlm2-2.2b", "smolvlm-256m")
AST = "ast-audioset"
PICTURE_TOKENS = ("<fake_token_around_image>", "<global-img>", "<|im_end|>")


def published(name: str) -> dict[str, dict[str, Any]]:
    """Return a model's JSON files, by the names that they have in its folder."""
    files = sorted((PUBLISHED / name).glob("*.json"))
    return {f"{file.name.partition('.')[0]}.json": json.loads(file.read_text()) for file in files}


def write_vlm(folder: Path, name: str = VLMS[0], seed: int = 0, **changes: Any) -> Path:
    """Write a vision-language model with one vision layer and two of the decoder; return its folder.

    Its weights have the dtype that its config names. changes: of the config's top level.
    """
    tokenizer = Tokenizer.from_str(tiny_tokenizer().to_str())
    tokenizer.add_special_tokens(list(PICTURE_TOKENS))
    files = published(name)
    config = files["config.json"] = _small(files["config.json"], tokenizer) | changes
    files["generation_config.json"]["eos_token_id"] = tokenizer.token_to_id("<end_of_utterance>")
    torch.manual_seed(seed)
    stored = getattr(torch, config["torch_dtype"])
    network = family_of(config).build(_without_dtypes(config))
    _write(folder, files, {key: value.to(stored) for key, value in network.state_dict().items()})
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def write_ast(folder: Path, seed: int = 0) -> Path:
    """Write an audio classifier of one layer; return its folder."""
    files = published(AST)
    files["config.json"] |= {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    files["config.json"] |= {"intermediate_size": 64, "max_length": 100, "num_mel_bins": 32}
    torch.manual_seed(seed)
    network = ASTForAudioClassification(ASTConfig(**files["config.json"]))
    network.save_pretrained(folder)  # under the old names, which transformers still writes
    _write(folder, files, {})
    return folder


def _small(config: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """Shrink sizes; the proportions of heads stay, and so does every key that is there or missing."""
    vocabulary = tokenizer.get_vocab_size()
    text, vision = dict(config["text_config"]), dict(config["vision_config"])
    text |= {"hidden_size": text["hidden_size"] // 8, "intermediate_size": 96, "num_hidden_layers": 2}
    text |= {"head_dim": 8, "vocab_size": vocabulary}
    vision |= {"hidden_size": 4 * vision["num_attention_heads"], "intermediate_size": 64}
    vision |= {"num_hidden_layers": 1}
    vision |= {"image_size": 2 * config["scale_factor"] * 6, "patch_size": 6}
    image = tokenizer.token_to_id("<image>")
    return config | {
        "text_config": text,
        "vision_config": vision,
        "vocab_size": vocabulary,
        "image_token_id": image,
    }


def _without_dtypes(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "torch_dtype"}


def _write(folder: Path, files: dict[str, dict[str, Any]], tensors: dict[str, torch.Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in files.items():
        (folder / name).write_text(json.dumps(values, indent=2) + "\n")
    if tensors:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
