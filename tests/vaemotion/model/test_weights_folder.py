"""Folders of weights from elsewhere: read exactly, or refused with the way out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vaemotion.contract.errors import UsageError
from vaemotion.model.weights_folder import FolderWeights, read_folder_config

WANTED = "a Llama checkpoint"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab\nsize 4096\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write a model of two layers as three tensors."""
    place = tmp_path / "model"
    place.mkdir()
    config = {"model_type": "llama", "torch_dtype": "bfloat16", "hidden_size": 4, "vocab_size": 6}
    (place / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    save_file(
        {
            "model.embed_tokens.weight": torch.randn(6, 4),
            "model.layers.0.mlp.up_proj.weight": torch.randn(8, 4).bfloat16(),
            "model.layers.1.mlp.up_proj.weight": torch.randn(8, 4).half(),
        },
        place / "model.safetensors",
    )
    return place


def read(folder: Path) -> FolderWeights:
    """Read a folder as its users do: first the configuration, then the weights."""
    read_folder_config(folder, WANTED)
    return FolderWeights(folder)


def test_tensors_of_every_float_dtype_are_read_exactly(folder: Path) -> None:
    weights = read(folder)
    stored = load_file(folder / "model.safetensors")
    assert set(weights) == set(stored)
    assert weights.shapes() == {name: tuple(tensor.shape) for name, tensor in stored.items()}
    for name, tensor in stored.items():
        assert weights[name].dtype == np.float32
        np.testing.assert_array_equal(weights[name], tensor.float().numpy())


def test_a_tensor_is_an_array_of_its_own(folder: Path) -> None:
    before = (folder / "model.safetensors").read_bytes()
    weights = read(folder)
    name = next(iter(weights))
    weights[name][:] = 0
    assert np.any(weights[name] != 0)
    assert (folder / "model.safetensors").read_bytes() == before


def test_shards_are_read_by_their_index_and_other_files_are_left_alone(folder: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for number, (name, tensor) in enumerate(stored.items(), 1):
        file = f"model-0000{number}-of-00003.safetensors"
        save_file({name: tensor}, folder / file)
        weight_map[name] = file
    save_file({"tok_embeddings.weight": torch.zeros(2)}, folder / "consolidated.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert set(read(folder)) == set(stored)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UsageError, match=r"lacks model-00002-of-00003\.safetensors of its index; copy"):
        read(folder)
    (folder / "model.safetensors.index.json").unlink()
    (folder / "consolidated.safetensors").unlink()
    with pytest.raises(UsageError, match=r"lacks some of its 3 parts model-…; copy the folder again"):
        read(folder)


def test_a_snapshot_of_symlinks_is_a_folder_like_any_other(folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for file in folder.iterdir():
        (snapshot / file.name).symlink_to(file)
    assert set(read(snapshot)) == set(read(folder))
    with pytest.raises(UsageError, match=r"repository of the Hugging Face cache; give its snapshot .*/abc$"):
        read(snapshot.parents[1])


def test_names_of_dtypes_are_left_out_at_every_level(folder: Path) -> None:
    change_config(
        folder, torch_dtype="float16", dtype="x", text_config={"dtype": "bfloat16", "hidden_size": 4}
    )
    config = read_folder_config(folder, WANTED)
    assert config == {
        "model_type": "llama",
        "hidden_size": 4,
        "vocab_size": 6,
        "text_config": {"hidden_size": 4},
    }


# -- what is refused ------------------------------------------------------------------------------------


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def be_pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(LFS)


def be_pointer_of_config(folder: Path) -> None:
    (folder / "config.json").write_bytes(LFS)


def be_cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-40])


def be_page(folder: Path) -> None:
    (folder / "model.safetensors").write_text("<!doctype html><title>Sign in</title>" * 9)


def be_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def be_empty_of_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def be_bitsandbytes(folder: Path) -> None:
    change_config(folder, quantization_config={"load_in_4bit": True, "quant_method": "bitsandbytes"})


def be_gptq(folder: Path) -> None:
    change_config(folder, quantization_config={"bits": 4, "quant_method": "gptq"})


def be_awq_in_the_decoder(folder: Path) -> None:
    change_config(folder, text_config={"quantization_config": {"bits": 4, "quant_method": "awq"}})


def be_fp8_without_a_word(folder: Path) -> None:
    change_weights(
        folder,
        lambda tensors: tensors.update(
            {name: tensor.to(torch.float8_e4m3fn) for name, tensor in tensors.items() if tensor.ndim == 2}
        ),
    )


def be_int8_without_a_word(folder: Path) -> None:
    change_weights(
        folder,
        lambda tensors: tensors.update(
            {"model.layers.0.mlp.up_proj.weight": torch.zeros(8, 4).to(torch.int8)}
        ),
    )


def be_unmerged(folder: Path) -> None:
    old = "model.layers.0.mlp.up_proj.weight"
    change_weights(
        folder,
        lambda tensors: tensors.update({"model.layers.0.mlp.up_proj.base_layer.weight": tensors.pop(old)}),
    )


def have_adapter_beside(folder: Path) -> None:
    save_file({"a": torch.zeros(1)}, folder / "adapter_model.safetensors")


def be_adapter_alone(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/Llama"}))


def be_doubled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    (folder / "model.bf16.safetensors").write_bytes((folder / "model.fp16.safetensors").read_bytes())


def point_outside(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../other.safetensors"}}')


def have_no_model_type(folder: Path) -> None:
    (folder / "config.json").write_text('{"dim": 4096, "n_layers": 32}')


def be_own_checkpoint(folder: Path) -> None:
    (folder / "config.json").write_text('{"schema_version": 1}')


def be_list(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def be_half_a_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama"')


def have_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (be_pointer, r"model\.safetensors is a Git LFS pointer.*`git lfs pull` in "),
        (be_pointer_of_config, r"config\.json is a Git LFS pointer"),
        (be_cut, r"model\.safetensors is damaged or incomplete .*; copy it again"),
        (be_page, r"model\.safetensors is damaged or incomplete .*; copy it again"),
        (be_pickle, r"holds no safetensors beside pytorch_model\.bin.* save_pretrained\(\)"),
        (be_empty_of_weights, r"holds no safetensors, and no other format is opened"),
        (be_bitsandbytes, r"is quantized by bitsandbytes; give the unquantized"),
        (be_gptq, r"is quantized by gptq; give the unquantized"),
        (be_awq_in_the_decoder, r"is quantized by awq; give the unquantized"),
        (be_fp8_without_a_word, r"is quantized: model\.embed_tokens\.weight is stored as F8_E4M3"),
        (be_int8_without_a_word, r"is quantized: model\.layers\.0\.mlp\.up_proj\.weight is stored as I8"),
        (be_unmerged, r"unmerged LoRA \(model\.layers\.0\.mlp\.up_proj\.base_layer\.weight\); merge it with"),
        (
            have_adapter_beside,
            r"adapter beside its weights \(adapter_model\.safetensors\); use it with --adapter",
        ),
        (be_adapter_alone, r"is an adapter alone; give the folder of org/Llama, and .* with --adapter"),
        (be_doubled, r"model\.bf16\.safetensors and model\.fp16\.safetensors both hold"),
        (point_outside, r"index\.json names no files of this folder"),
        (have_no_model_type, r"names no model_type.*give the folder of a Llama checkpoint"),
        (be_own_checkpoint, r"is a checkpoint of this project, expected a Llama checkpoint"),
        (be_list, r"config\.json holds no JSON object"),
        (be_half_a_config, r"config\.json cannot be read \(.*\); copy the folder again"),
        (have_no_config, r"holds no config\.json; give the folder of a Llama checkpoint"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_folder_that_is_not_whole_is_refused_with_the_way_out(
    folder: Path, damage: Callable[[Path], None], sentence: str
) -> None:
    assert len(read(folder)) == 3  # before
    damage(folder)
    with pytest.raises(UsageError, match=sentence):
        read(folder)


def test_the_name_of_a_model_on_the_hub_is_not_fetched() -> None:
    with pytest.raises(
        UsageError, match=r"nothing is fetched.*`hf download org/Llama-1B --local-dir FOLDER`"
    ):
        read_folder_config(Path("org/Llama-1B"), WANTED)
    with pytest.raises(UsageError, match=r"^there is no folder /nowhere; give the folder of a Llama"):
        read_folder_config(Path("/nowhere"), WANTED)


def test_a_file_is_no_folder(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"is a file; give the folder of a Llama checkpoint"):
        read_folder_config(folder / "model.safetensors", WANTED)
