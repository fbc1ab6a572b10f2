"""Checkpoints: a folder with ``config.json``, safetensors, tokenizer and hashes, without any pickle.

``config.json`` holds the model's sizes and constants, the lineage of each stage and, for every component,
its file and sha256. A pretrained base is not copied. Its folder is named with the sha256 of each of its
files, and these are verified when it is loaded; ``VAEMOTION_BASE`` overrides the folder. Weights are stored
in float16, the EmoAdapter's in float32. Each stage rounds its weights *in the model* when it ends, so that
loading gives back exactly the weights that the later stages were trained on.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import nn

from vaemotion.contract.bundle import sha256_of
from vaemotion.contract.errors import UserError
from vaemotion.contract.files import whole_file, whole_folder
from vaemotion.model.checkpoint_config import ModelConfig
from vaemotion.model.pretrained import load_base
from vaemotion.model.vaemotion_llm import VAEmotionLLM

SCHEMA_VERSION = 1
COMPONENT_DTYPE = {"base": torch.float16, "audio": torch.float16, "adapter": torch.float32}


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or at odds with its own config."""


@torch.no_grad()
def round_in_place(module: nn.Module, dtype: torch.dtype) -> None:
    """Round every weight to ``dtype`` and back, so that the module equals its stored form."""
    for parameter in module.parameters():
        parameter.copy_(parameter.to(dtype).to(parameter.dtype))


def components(model: VAEmotionLLM) -> dict[str, nn.Module]:
    """Return the parts that the model has, by the names under which they are stored."""
    parts = {"base": model.base, "audio": model.audio, "adapter": model.adapter}
    return {name: part for name, part in parts.items() if part is not None}


def component_tensors(model: VAEmotionLLM, name: str) -> dict[str, torch.Tensor]:
    """Return a component's weights as stored: contiguous, in its dtype, tied weights once."""
    tensors: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for key, tensor in components(model)[name].state_dict().items():
        if tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        tensors[key] = tensor.detach().to(COMPONENT_DTYPE[name]).contiguous()
    return tensors


def write_tensors(
    file: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file atomically. Raises WriteError."""
    with whole_file(file) as temporary:
        try:
            save_file(dict(tensors), temporary, metadata=metadata)
        except SafetensorError as error:  # a full disk, among others
            raise OSError(errno.EIO, str(error)) from error
        temporary.chmod(0o644)  # safetensors leaves it unreadable for others


def save_checkpoint(model: VAEmotionLLM, folder: Path, lineage: dict[str, Any], license: str) -> None:
    """Write a checkpoint under a temporary name and move it into place when it is complete.

    What else lies in ``folder``, such as a model card, stays there.

    lineage: JSON about the stages so far; license: SPDX id of the weights.
    """
    with whole_folder(folder, _own_files(folder)) as temporary:
        files: dict[str, Any] = {}
        for name in components(model):
            if name == "base" and model.base_folder is not None:
                files[name] = _reference(model.base_folder, folder)
                continue
            file = temporary / f"{name}.safetensors"
            write_tensors(file, component_tensors(model, name))
            files[name] = {"file": file.name, "sha256": sha256_of(file), "bytes": file.stat().st_size}
        model.tokenizer.save(str(temporary / "tokenizer.json"))
        files["tokenizer"] = {"file": "tokenizer.json", "sha256": sha256_of(temporary / "tokenizer.json")}
        config = {
            "schema_version": SCHEMA_VERSION,
            "licence": license,
            "model": model.config.to_dict(),
            "components": files,
            "lineage": lineage,
        }
        (temporary / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def _own_files(folder: Path) -> set[str]:
    """Return the files of the checkpoint in ``folder``; none where there is no checkpoint."""
    try:
        components = json.loads((folder / "config.json").read_text())["components"]
        files = {entry.get("file") for entry in components.values()} - {None}
        return {"config.json", *files}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()


def _reference(base: Path, folder: Path) -> dict[str, Any]:
    """Describe a base that a checkpoint in ``folder`` names: relative path, hash of each file and of all."""
    files = {
        file.name: sha256_of(file) for file in sorted([base / "config.json", *base.glob("*.safetensors")])
    }
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    return {"reference": os.path.relpath(base.resolve(), folder.resolve()), "files": files, "sha256": digest}


def _referenced_base(folder: Path, entry: dict[str, Any]) -> Path:
    """Find the folder of the pretrained base that a checkpoint names, and verify each of its files."""
    base = Path(os.environ.get("VAEMOTION_BASE") or folder.resolve() / entry["reference"])
    for name, sha256 in entry["files"].items():
        file = base / name
        if Path(name).name != name or not file.is_file():
            raise CheckpointError(
                f"{folder} was trained on the base {Path(entry['reference']).name}, and {file} is missing; "
                f"set VAEMOTION_BASE to the folder of that base"
            )
        if sha256_of(file) != sha256:
            raise CheckpointError(
                f"{file} is not the base that {folder} was trained on: its sha256 differs; "
                f"set VAEMOTION_BASE to the folder of the right base"
            )
    return base


def read_config(folder: Path) -> dict[str, Any]:
    """Read ``config.json`` and check its schema version. Raises CheckpointError."""
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text())
        version = config["schema_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder} is not a checkpoint of this project: {file.name} is missing or unreadable ({error}); "
            f"give a folder that `vaemotion train` wrote"
        ) from error
    if version != SCHEMA_VERSION:
        raise CheckpointError(
            f"{file} has schema version {version}, this version of vaemotion reads {SCHEMA_VERSION}; "
            f"train again or install the version that wrote it"
        )
    return config


def load_checkpoint(folder: Path) -> VAEmotionLLM:
    """Load a model with float32 weights, in evaluation mode.

    Every file's hash is checked before it is read. Raises CheckpointError for a folder that is missing,
    damaged, or at odds with its own config.
    """
    config = read_config(folder)
    base = base_folder = None
    try:
        for name, entry in config["components"].items():
            if name == "base" and "reference" in entry:
                base_folder = _referenced_base(folder, entry)
                continue
            _check_hash(folder, name, entry)
        tokenizer = Tokenizer.from_file(str(folder / config["components"]["tokenizer"]["file"]))
        if base_folder is not None:
            base = load_base(base_folder, config["model"]["vlm"])
        model = VAEmotionLLM(ModelConfig.from_dict(config["model"]), tokenizer, base)
    except (AttributeError, KeyError, StrictDataclassError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder / 'config.json'} does not describe a model that this version can build: {error}"
        ) from error
    for name, part in components(model).items():
        if name not in config["components"]:
            raise CheckpointError(f"{folder / 'config.json'} describes {name!r} but lists no file for it")
        if name == "base" and base_folder is not None:
            model.base_folder = base_folder
            continue
        _load_component(part, folder / config["components"][name]["file"])
    return model.eval()


def _check_hash(folder: Path, name: str, entry: dict[str, Any]) -> None:
    file = folder / entry["file"]
    if Path(entry["file"]).name != entry["file"]:
        raise CheckpointError(
            f"component {name!r} names the file {entry['file']!r}, which is not inside {folder}"
        )
    if not file.is_file():
        raise CheckpointError(f"{file} is missing; copy the checkpoint again")
    if sha256_of(file) != entry["sha256"]:
        raise CheckpointError(
            f"{file} is damaged: its sha256 differs from config.json; copy the checkpoint again"
        )


def _load_component(module: nn.Module, file: Path) -> None:
    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise CheckpointError(f"{file} cannot be read as safetensors: {error}") from error
    expected = module.state_dict()
    for key, tensor in tensors.items():
        if key not in expected or expected[key].shape != tensor.shape:
            wanted = tuple(expected[key].shape) if key in expected else "no such tensor"
            raise CheckpointError(
                f"{file}: tensor {key!r} has shape {tuple(tensor.shape)}, the config says {wanted}; "
                f"config.json and weights are of different models"
            )
    loaded = {key: tensor.float() for key, tensor in tensors.items()}
    # Tied weights are stored under the first of their names.
    stored = {expected[key].data_ptr() for key in loaded}
    missing = [
        key
        for key in module.load_state_dict(loaded, strict=False).missing_keys
        if expected[key].data_ptr() not in stored
    ]
    if missing:
        raise CheckpointError(f"{file} lacks {len(missing)} tensors, the first is {missing[0]!r}")
