"""Folders of weights from elsewhere: ``config.json`` and safetensors, as ``transformers`` saves them.

In: a local folder, and on request the folder of a LoRA adapter for it. Out: the configuration as a
dictionary, and the tensors as float32 arrays that are read one at a time. Nothing is fetched and nothing is
unpickled. Every folder that cannot be read exactly is refused with a UsageError that names the way out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vaemotion.contract.errors import UsageError
from vaemotion.model import lora_adapter
from vaemotion.model.lora_adapter import MERGE_RECIPE, LoraAdapter, refuse_unmerged
from vaemotion.model.tensor_files import read_json, read_tensor, tensors_in

_CONFIG, _WEIGHTS, _INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_FLOATS = {"F64", "F32", "F16", "BF16"}


def read_folder_config(folder: Path, wanted: str) -> dict[str, Any]:
    """Read the folder's ``config.json``, without the dtypes that it names: weights are float32 here.

    wanted: a phrase for the message, such as "a SmolVLM2 checkpoint". Raises UsageError for anything that is
    not the folder of a whole, unquantized model as ``transformers`` saves it.
    """
    _refuse_other_places(folder, wanted)
    config = read_json(folder / _CONFIG)
    if "model_type" not in config:
        if "schema_version" in config:
            raise UsageError(
                f"{folder} is a checkpoint of this project, expected {wanted}; `vaemotion export` makes its "
                f"bundle"
            )
        raise UsageError(
            f"{folder / _CONFIG} names no model_type, so `transformers` did not write it; give the folder of "
            f"{wanted}"
        )
    _refuse_quantized(folder, config)
    return _without_dtypes(config)


class FolderWeights(Mapping[str, np.ndarray]):
    """The tensors of a folder by the names under which they are stored, with a LoRA adapter merged if given.

    Each is read from its file on access, as a float32 array of its own. Raises UsageError for files that are
    missing, damaged, not fetched, quantized, pickled or unmerged, for an adapter that lies beside without
    being asked for, and for an adapter that does not fit or cannot be merged.
    """

    def __init__(self, folder: Path, adapter: Path | None = None) -> None:
        self._file_of: dict[str, Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        _refuse_adapter_beside(folder, adapter)
        self.files = _weight_files(folder)
        for path in self.files:
            self._add(path)
        refuse_unmerged(folder, self._file_of)
        self._adapter = (
            LoraAdapter(adapter, self._shapes, _tied_rows(folder)) if adapter is not None else None
        )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor; no data is read."""
        return dict(self._shapes)

    def __getitem__(self, name: str) -> np.ndarray:
        values = read_tensor(self._file_of[name], name)
        return values if self._adapter is None else self._adapter.merged(name, values)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)

    def _add(self, path: Path) -> None:
        for name, (dtype, shape) in tensors_in(path).items():
            if name in self._file_of:
                raise UsageError(
                    f"{path.parent}: {self._file_of[name].name} and {path.name} both hold {name}; "
                    f"leave only the files of one model in the folder"
                )
            if name.endswith(("weight", "bias")) and dtype not in _FLOATS:
                raise UsageError(
                    f"{path} is quantized: {name} is stored as {dtype}; give the unquantized model's folder"
                )
            self._file_of[name], self._shapes[name] = path, shape


# -- what the folder is ---------------------------------------------------------------------------------


def _refuse_other_places(folder: Path, wanted: str) -> None:
    """Raise UsageError for a path that is no folder with a ``config.json``, by what it is instead."""
    if not folder.exists():
        name = str(folder)
        if re.fullmatch(r"[\w.-]+/[\w.-]+", name):  # as the names of models on a hub
            raise UsageError(
                f"there is no folder {name}, and nothing is fetched from a hub; "
                f"`hf download {name} --local-dir FOLDER` fetches it, then give that FOLDER"
            )
        raise UsageError(f"there is no folder {name}; give the folder of {wanted}")
    if not folder.is_dir():
        raise UsageError(f"{folder} is a file; give the folder of {wanted}")
    if (folder / _CONFIG).is_file():
        return
    if (folder / "snapshots").is_dir():
        found = sorted(path for path in (folder / "snapshots").iterdir() if (path / _CONFIG).is_file())
        place = found[-1] if found else folder / "snapshots" / "HASH"
        raise UsageError(f"{folder} is a repository of the Hugging Face cache; give its snapshot {place}")
    if (folder / lora_adapter.CONFIG).is_file():
        base = read_json(folder / lora_adapter.CONFIG).get("base_model_name_or_path") or "its base"
        raise UsageError(
            f"{folder} is an adapter alone; give the folder of {base}, and {folder} with --adapter"
        )
    raise UsageError(f"{folder} holds no {_CONFIG}; give the folder of {wanted}, as `transformers` saves it")


def _refuse_quantized(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise UsageError when the configuration, or that of a part, says that weights are quantized."""
    for key, values in config.items():
        if isinstance(values, dict) and re.fullmatch(r"quantization_config|compression_config", key):
            method = values.get("quant_method") or key
            raise UsageError(
                f"{folder} is quantized by {method}; give the unquantized model's folder, because export and "
                f"gguf quantize themselves"
            )
        if isinstance(values, dict):
            _refuse_quantized(folder, values)


def _without_dtypes(values: Any) -> Any:
    if isinstance(values, dict):
        kept = {key: value for key, value in values.items() if key not in ("dtype", "torch_dtype")}
        return {key: _without_dtypes(value) for key, value in kept.items()}
    return [_without_dtypes(value) for value in values] if isinstance(values, list) else values


def _tied_rows(folder: Path) -> int | None:
    """Read the rows of the token embedding where the base ties it to its output, else None."""
    config = read_json(folder / _CONFIG) if (folder / _CONFIG).is_file() else {}
    text = config.get("text_config") or config
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings"))
    return text.get("vocab_size") if tied else None


# -- its files ------------------------------------------------------------------------------------------


def _refuse_adapter_beside(folder: Path, adapter: Path | None) -> None:
    if adapter is not None and adapter.resolve() == folder.resolve():
        return
    for name in (lora_adapter.WEIGHTS, lora_adapter.CONFIG, "adapter_model.bin"):
        if (folder / name).exists():
            raise UsageError(
                f"{folder} holds an adapter beside its weights ({name}); use it with --adapter {folder}, "
                f"{MERGE_RECIPE}, or move it away"
            )


def _weight_files(folder: Path) -> tuple[Path, ...]:
    """Find the files of the model, by the names that `transformers` gives them, in its order."""
    single, index = folder / _WEIGHTS, folder / _INDEX
    if single.exists():
        return (single,)
    if index.exists():
        return _indexed_files(index)
    files = sorted(path for path in folder.glob("*.safetensors") if path.name != lora_adapter.WEIGHTS)
    if not files:
        raise _no_safetensors(folder)
    for path in files:
        part = re.fullmatch(r"(.+-)(\d+)-of-(\d+)\.safetensors", path.name)
        if part and len([other for other in files if other.name.startswith(part[1])]) != int(part[3]):
            raise UsageError(
                f"{folder} lacks some of its {int(part[3])} parts {part[1]}…; copy the folder again, whole"
            )
    return tuple(files)


def _indexed_files(index: Path) -> tuple[Path, ...]:
    weight_map = read_json(index).get("weight_map")
    names = sorted(map(str, set(weight_map.values()))) if isinstance(weight_map, dict) else []
    if not names or any(Path(name).name != name for name in names):
        raise UsageError(f"{index} names no files of this folder; copy the folder again")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise UsageError(
            f"{index.parent} lacks {', '.join(missing)} of its index; copy the folder again, whole"
        )
    return tuple(index.parent / name for name in names)


def _no_safetensors(folder: Path) -> UsageError:
    # Other formats of weights, none of which is opened here; found by their size, not by their name.
    files = [
        path for path in folder.iterdir() if path.is_file() and path.suffix not in (".json", ".txt", ".md")
    ]
    largest = max(files, key=lambda path: path.stat().st_size, default=None)
    beside = f" beside {largest.name}" if largest is not None else ""
    return UsageError(
        f"{folder} holds no safetensors{beside}, and no other format is opened; load the model with "
        f"`transformers` and save it with save_pretrained()"
    )
