"""LoRA adapters: merged weights give what base and adapter give beside each other, or a refusal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vaemotion.contract.errors import UsageError
from vaemotion.model.weights_folder import FolderWeights

Q = "model.layers.{}.self_attn.q_proj"
EMBEDDING = "model.embed_tokens.weight"
PEFT = "base_model.model."
RANK = 3


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Write a base of two layers, (10, 6) each, and an embedding of 12 tokens."""
    torch.manual_seed(0)
    tensors = {f"{Q.format(layer)}.weight": torch.randn(10, 6) for layer in range(2)}
    tensors |= {f"{Q.format(layer)}.bias": torch.randn(10) for layer in range(2)}
    return write(tmp_path / "base", {**tensors, EMBEDDING: torch.randn(12, 6)}, {"model_type": "llama"})


def write(
    folder: Path,
    tensors: dict[str, torch.Tensor],
    config: dict[str, Any],
    files: tuple[str, str] = ("config.json", "model.safetensors"),
) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / files[0]).write_text(json.dumps(config))
    save_file(tensors, folder / files[1])
    return folder


def factors(module: str, shape: tuple[int, int], rank: int = RANK) -> dict[str, torch.Tensor]:
    return {
        f"{PEFT}{module}.lora_A.weight": torch.randn(rank, shape[1]),
        f"{PEFT}{module}.lora_B.weight": torch.randn(shape[0], rank),
    }


def adapter(base: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    """Write an adapter beside the base's folder, with alpha 8."""
    values = {"peft_type": "LORA", "r": RANK, "lora_alpha": 8} | config
    files = ("adapter_config.json", "adapter_model.safetensors")
    return write(base.parent / "adapter", tensors, values, files)


def beside(
    base: Path, tensors: dict[str, torch.Tensor], module: str, x: torch.Tensor, scale: float
) -> torch.Tensor:
    """Compute a layer with its adapter beside it, as in training."""
    weight = load_file(base / "model.safetensors")[f"{module}.weight"]
    a, b = (tensors[f"{PEFT}{module}.lora_{part}.weight"] for part in "AB")
    return x @ weight.T + scale * ((x @ a.T) @ b.T)


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 8 / RANK),
        ({"use_rslora": True}, 8 / RANK**0.5),
        ({"alpha_pattern": {"layers.1.self_attn.q_proj": 2}}, 2 / RANK),
        ({"alpha_pattern": {"layers.0.self_attn.q_proj": 2}}, 8 / RANK),
        ({"init_lora_weights": "gaussian", "use_dora": False}, 8 / RANK),
    ],
)
def test_a_merged_layer_is_the_layer_and_its_adapter(
    base: Path, config: dict[str, Any], scale: float
) -> None:
    tensors = factors(Q.format(1), (10, 6))
    weights = FolderWeights(base, adapter(base, tensors, **config))
    x = torch.randn(5, 6)
    merged = x @ torch.from_numpy(weights[Q.format(1) + ".weight"]).T
    torch.testing.assert_close(merged, beside(base, tensors, Q.format(1), x, scale), atol=1e-5, rtol=1e-5)
    untouched = FolderWeights(base)
    for name in set(weights) - {Q.format(1) + ".weight"}:
        np.testing.assert_array_equal(weights[name], untouched[name])


def test_an_embedding_is_merged_transposed(base: Path) -> None:
    a, b = torch.randn(RANK, 12), torch.randn(6, RANK)
    tensors = {
        f"{PEFT}model.embed_tokens.lora_embedding_{part}": value
        for part, value in zip("AB", (a, b), strict=True)
    }
    merged = torch.from_numpy(FolderWeights(base, adapter(base, tensors))[EMBEDDING])
    before = load_file(base / "model.safetensors")[EMBEDDING]
    for token in range(12):
        expected = before[token] + 8 / RANK * (b @ a[:, token])
        torch.testing.assert_close(merged[token], expected, atol=1e-5, rtol=1e-5)


def test_tensors_that_were_trained_whole_take_the_place_of_the_bases(base: Path) -> None:
    trained = {f"{PEFT}model.embed_tokens.modules_to_save.weight": torch.randn(12, 6)}
    trained |= {f"{PEFT}{Q.format(0)}.base_layer.bias": torch.randn(10)}
    weights = FolderWeights(base, adapter(base, factors(Q.format(0), (10, 6)) | trained))
    for name, value in zip((EMBEDDING, Q.format(0) + ".bias"), trained.values(), strict=True):
        np.testing.assert_array_equal(weights[name], value.numpy())


def test_an_adapter_in_the_bases_own_folder_may_be_asked_for(base: Path) -> None:
    beside_it = adapter(base, factors(Q.format(0), (10, 6)))
    for file in beside_it.iterdir():
        file.rename(base / file.name)
    with pytest.raises(UsageError, match="an adapter beside its weights"):
        FolderWeights(base)
    assert len(FolderWeights(base, base)) == 5


def test_the_start_of_names_may_be_that_of_another_class(base: Path) -> None:
    tensors = factors("language_model.layers.1.self_attn.q_proj", (10, 6))
    weights = FolderWeights(base, adapter(base, tensors))
    assert not np.array_equal(weights[Q.format(1) + ".weight"], FolderWeights(base)[Q.format(1) + ".weight"])


@pytest.mark.parametrize(
    ("tensors", "config", "sentence"),
    [
        (
            factors(Q.format(2), (10, 6)),
            {},
            r"layers\.2\.self_attn\.q_proj\.lora_A\.weight .*no place in this base",
        ),
        (
            factors(Q.format(0), (10, 5)),
            {},
            r"lora_A\.weight \[3, 5\] and .*lora_B\.weight \[10, 3\] do not fit",
        ),
        (factors(Q.format(0), (6, 10)), {}, r"do not fit .*q_proj\.weight \[10, 6\]"),
        (
            {f"{PEFT}{Q.format(0)}.lora_A.weight": torch.zeros(RANK, 6)},
            {},
            r"lora_A\.weight without its other factor",
        ),
        (
            factors(Q.format(0), (10, 6)) | {f"{PEFT}{Q.format(0)}.lora_magnitude_vector": torch.zeros(10)},
            {},
            r"lora_magnitude_vector \[10\] has no place",
        ),
        (
            factors(Q.format(0), (10, 6)) | {f"{PEFT}{Q.format(0)}.lora_B.bias": torch.zeros(10)},
            {},
            r"lora_B\.bias \[10\] has no place",
        ),
        (
            factors(Q.format(0), (10, 6)) | {f"{PEFT}model.embed_tokens.weight": torch.zeros(14, 6)},
            {},
            r"embed_tokens\.weight \[14, 6\] has no place",
        ),
        (factors(Q.format(0), (10, 6)), {"use_dora": True}, r"sets use_dora = True, which is no plain LoRA"),
        (
            factors(Q.format(0), (10, 6)),
            {"init_lora_weights": "pissa_niter_4"},
            r"sets init_lora_weights = pissa",
        ),
        (factors(Q.format(0), (10, 6)), {"alora_invocation_tokens": [1]}, r"sets alora_invocation_tokens"),
        (factors(Q.format(0), (10, 6)), {"peft_type": "IA3"}, r"adapter of type IA3, expected LORA"),
        (factors(Q.format(0), (10, 6)), {"lora_alpha": None}, r"names no lora_alpha"),
        (factors(Q.format(0), (10, 6)), {"lora_alpha": "much"}, r"does not say the scale of .*q_proj"),
        (factors(Q.format(0), (10, 6)), {"alpha_pattern": {"(": 2}}, r"does not say the scale of .*q_proj"),
        (factors(Q.format(0), (10, 6), rank=0), {}, r"do not fit .*q_proj"),
        (factors("a.layers.0.x", (10, 6)), {}, r"no place in this base"),
    ],
)
def test_what_cannot_be_merged_is_refused_by_its_name(
    base: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        FolderWeights(base, adapter(base, tensors, **config))


def test_an_adapter_of_the_tied_embedding_is_refused(base: Path) -> None:
    whole = adapter(base, {f"{PEFT}model.embed_tokens.weight": torch.zeros(12, 6)})
    assert len(FolderWeights(base, whole)) == 5
    (base / "config.json").write_text(
        '{"model_type": "llama", "tie_word_embeddings": true, "vocab_size": 12}'
    )
    with pytest.raises(UsageError, match=r"changes model\.embed_tokens\.weight, which the base ties"):
        FolderWeights(base, whole)


def test_an_adapter_that_makes_infinity_is_refused(base: Path) -> None:
    tensors = {name: torch.full_like(value, 1e30) for name, value in factors(Q.format(0), (10, 6)).items()}
    weights = FolderWeights(base, adapter(base, tensors))
    with pytest.raises(UsageError, match=r"q_proj\.weight infinite or not a number"):
        weights[Q.format(0) + ".weight"]


def test_a_folder_without_an_adapter_or_with_a_pickled_one_is_refused(base: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no adapter_config\.json; give the folder of a LoRA adapter"):
        FolderWeights(base, base)
    pickled = adapter(base, factors(Q.format(0), (10, 6)))
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    with pytest.raises(UsageError, match=r"lacks adapter_model\.safetensors \(pickles are not opened\)"):
        FolderWeights(base, pickled)
