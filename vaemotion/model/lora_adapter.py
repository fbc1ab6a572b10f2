"""LoRA adapters of PEFT: their weights are added to those of the base, W + scale · B A.

In: a folder with ``adapter_config.json`` and ``adapter_model.safetensors``, and the shapes of the base's
tensors. Out: merged tensors. Whatever cannot be merged exactly is refused by its name.
Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models"; scale and names as in PEFT.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vaemotion.contract.errors import UsageError
from vaemotion.model.tensor_files import read_json, read_tensor, tensors_in

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MERGE_RECIPE = "merge it with PEFT's merge_and_unload() and save_pretrained()"
# Starting points that leave the base's weights as they are; the others train against a changed base.
_PLAIN_STARTS = {"gaussian", "eva", "orthogonal"}
# Beside the keys that begin with "use_": these switch on what is not W + scale · B A.
_VARIANTS = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "monteclora_config",
)
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<part>embedding_A|embedding_B|A|B)(?:\.(?!bias$)[^.]+)*")


def refuse_unmerged(folder: Path, names: Iterable[str]) -> None:
    """Raise UsageError when tensors of a base have the names of a model with an unmerged LoRA."""
    for name in names:
        if re.search(r"\.(base_layer|lora_[AB])\b|^base_model\.model\.", name):
            raise UsageError(
                f"{folder} holds a model with an unmerged LoRA ({name}); {MERGE_RECIPE}, or give the base's "
                f"folder and the adapter's with --adapter"
            )


class LoraAdapter:
    """An adapter for the tensors of one base.

    base: shapes of the base's tensors by their stored names. tied_rows: rows of the token embedding where the
    base ties it to its output, else None. Raises UsageError for an adapter that does not fit or cannot be
    merged.
    """

    def __init__(
        self, folder: Path, base: Mapping[str, tuple[int, ...]], tied_rows: int | None = None
    ) -> None:
        self.folder = folder
        self._config = _read_config(folder)
        self._file = folder / WEIGHTS
        if not self._file.is_file():
            raise UsageError(
                f"{folder} lacks {WEIGHTS} (pickles are not opened); save the adapter with save_pretrained()"
            )
        self._factors: dict[str, dict[str, str]] = {}  # base's tensor → A and B → adapter's tensor
        self._modules: dict[str, str] = {}  # base's tensor → module, as the adapter calls it
        self._replaced: dict[str, str] = {}  # base's tensor → adapter's tensor that takes its place
        self._shapes = {name: shape for name, (_, shape) in tensors_in(self._file).items()}
        for name in self._shapes:
            self._place(name, base)
        for name in self._factors:
            self._check_factors(name, base[name])
        self._scales = {name: self._scale(name) for name in self._factors}
        if not self._shapes:
            raise UsageError(f"{self._file} holds no tensors; save the adapter again")
        for name in (*self._factors, *self._replaced):
            if base[name][:1] == (tied_rows,):
                raise UsageError(
                    f"{folder} changes {name}, which the base ties to its output; {MERGE_RECIPE} with "
                    f"tie_word_embeddings off"
                )

    def merged(self, name: str, values: np.ndarray) -> np.ndarray:
        """Return the base's tensor ``name`` with the adapter's part, float32; ``values`` may be changed."""
        if name in self._replaced:
            values = read_tensor(self._file, self._replaced[name])
        if name in self._factors:
            names = self._factors[name]
            a, b = (read_tensor(self._file, names[part]) for part in "AB")  # (r, inputs), (outputs, r)
            with np.errstate(over="ignore", invalid="ignore"):
                change = self._scales[name] * (b @ a)
                values += change.T if self._is_transposed(name) else change
            if not np.isfinite(values).all():
                raise UsageError(
                    f"{self.folder} makes {name} infinite or not a number; train the adapter again"
                )
        return values

    def _place(self, name: str, base: Mapping[str, tuple[int, ...]]) -> None:
        """Find the base's tensor that an adapter's tensor belongs to."""
        path = name.removeprefix("base_model.model.")
        factor = _FACTOR.fullmatch(path)
        if factor is None:
            plain = re.sub(r"\.(base_layer|modules_to_save)\b(\.default\b)?", "", path)
            target = _target(plain, base) if ".lora_" not in plain else None
            if target is None or base[target] != self._shapes[name]:
                raise self._refusal(name)
            self._replaced[target] = name
            return
        target = _target(factor["module"] + ".weight", base)
        part = factor["part"][-1]
        if target is None or part in self._factors.get(target, {}):
            raise self._refusal(name)
        self._factors.setdefault(target, {})[part] = name
        self._modules[target] = factor["module"]

    def _check_factors(self, target: str, shape: tuple[int, ...]) -> None:
        names = self._factors[target]
        if set(names) != {"A", "B"}:
            raise UsageError(
                f"{self.folder} holds {next(iter(names.values()))} without its other factor; save it again"
            )
        a, b = self._shapes[names["A"]], self._shapes[names["B"]]
        fits = len(a) == len(b) == 2 and a[0] == b[1] > 0
        change = (b[0], a[1]) if fits else ()
        if (change[::-1] if self._is_transposed(target) else change) != shape:
            raise UsageError(
                f"{self.folder}: {names['A']} {list(a)} and {names['B']} {list(b)} do not fit {target} "
                f"{list(shape)}; give the adapter of this very base"
            )

    def _is_transposed(self, target: str) -> bool:
        """Tell whether the base stores this matrix as (inputs, outputs)."""
        return "lora_embedding_" in self._factors[target]["A"] or bool(self._config.get("fan_in_fan_out"))

    def _scale(self, target: str) -> float:
        rank = self._shapes[self._factors[target]["A"]][0]
        patterns: dict[str, float] = self._config.get("alpha_pattern") or {}
        module = self._modules[target]
        try:
            found = [patterns[key] for key in patterns if re.fullmatch(rf"(.*\.)?({key})", module)]
            alpha = float([*found, self._config["lora_alpha"]][0])
        except (TypeError, ValueError, re.error) as error:
            raise UsageError(
                f"{self.folder / CONFIG} does not say the scale of {module} ({error}); save the adapter again"
            ) from error
        return alpha / rank**0.5 if self._config.get("use_rslora") else alpha / rank

    def _refusal(self, name: str) -> UsageError:
        return UsageError(
            f"{self.folder}: {name} {list(self._shapes[name])} has no place in this base; give the adapter's "
            f"own base, or {MERGE_RECIPE}"
        )


def _read_config(folder: Path) -> dict[str, Any]:
    if not (folder / CONFIG).is_file():
        raise UsageError(f"{folder} holds no {CONFIG}; give the folder of a LoRA adapter that PEFT saved")
    config = read_json(folder / CONFIG)
    if config.get("peft_type") != "LORA":
        kind = config.get("peft_type")
        raise UsageError(f"{folder} is an adapter of type {kind}, expected LORA; {MERGE_RECIPE}")
    if config.get("lora_alpha") is None:
        raise UsageError(f"{folder / CONFIG} names no lora_alpha; save the adapter again")
    start = config.get("init_lora_weights", True)
    variants = [key for key in config if key.startswith("use_") and key != "use_rslora"]
    variants += [key for key in _VARIANTS if key in config]
    variants += ["init_lora_weights"] if not isinstance(start, bool) and start not in _PLAIN_STARTS else []
    for key in variants:
        if config[key]:
            raise UsageError(f"{folder} sets {key} = {config[key]}, which is no plain LoRA; {MERGE_RECIPE}")
    return config


def _target(name: str, base: Mapping[str, tuple[int, ...]]) -> str | None:
    """Find the base's tensor by the adapter's name, whose start may be that of another class.

    From the word before the first number on, both names must be the same, and only one tensor may fit.
    """
    if name in base:
        return name
    found = [stored for stored in base if tail(stored) == tail(name)]
    return found[0] if len(found) == 1 else None


def tail(name: str) -> str:
    """Return a tensor's name from the word before its first number on: ``layers.0.mlp.up_proj.weight``.

    Programs differ in what stands before it. Of a name without a number the last two words are returned.
    """
    numbered = re.search(r"[^.]+\.\d+\..*", name)
    return numbered.group() if numbered else ".".join(name.split(".")[-2:])
