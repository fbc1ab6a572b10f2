"""`vaemotion gguf`: folders of a Llama and of a SmolVLM, compared with torch, and folders that it refuses."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config, SmolVLMConfig, SmolVLMForConditionalGeneration

from export.gguf.folder import FolderWeights, write_folder_gguf
from export.gguf.quantise import stored_tensors
from runtime.engines.language_model import LanguageModel
from runtime.engines.llama import tokenize
from tests.llama_fixture import TinyLlama, make_tiny_llama, train_tokenizer
from tests.tiny import tiny_config
from vaemotion.cli.main import main
from vaemotion.contract.errors import UsageError
from vaemotion.training.base_vlm import vlm_config

pytest.importorskip("llama_cpp", reason="needs the extra `llm`")


def save(tiny: TinyLlama, folder: Path) -> Path:
    tiny.model.save_pretrained(folder)
    tiny.tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(make_tiny_llama(hidden_size=96, intermediate_size=160), tmp_path / "llama")


def logits_of(path: Path, table: np.ndarray, rows: np.ndarray) -> np.ndarray:
    with LanguageModel(path, table, context_tokens=64, f32_kv=True) as model:
        return model.logits(rows, all_positions=True)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_llamas_folder_gives_its_logits(tmp_path: Path, tied: bool) -> None:
    tiny = make_tiny_llama(hidden_size=96, intermediate_size=160, tied=tied)
    types = write_folder_gguf(save(tiny, tmp_path / "llama"), tmp_path / "m.gguf", "F32")
    assert ("output.weight" in types) is not tied
    rows = np.random.default_rng(0).normal(size=(20, 96)).astype(np.float32)
    difference = np.abs(logits_of(tmp_path / "m.gguf", tiny.token_embeddings, rows) - tiny.logits(rows))
    print(f"max {difference.max():.2e} mean {difference.mean():.2e}")
    assert difference.max() < 2e-4
    assert {p.name for p in tmp_path.iterdir()} == {"llama", "m.gguf"}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_smolvlms_folder_gives_the_logits_of_its_decoder(tmp_path: Path, tied: bool) -> None:
    """Save a model in shards and in bfloat16, as SmolVLM2 is published."""
    config = tiny_config()
    stored: dict[str, Any] = vlm_config(config.vlm, config.image.side_px) | {"tie_word_embeddings": tied}
    torch.manual_seed(0)
    model: Any = SmolVLMForConditionalGeneration(SmolVLMConfig(**stored))
    model.to(torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6.0)
    folder = tmp_path / "smolvlm"
    model.save_pretrained(folder, max_shard_size="60KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    train_tokenizer(300).save(str(folder / "tokenizer.json"))
    types = write_folder_gguf(folder, tmp_path / "m.gguf", "F32")
    assert ("output.weight" in types) is not tied
    rows = np.random.default_rng(0).normal(size=(20, config.vlm.text_width)).astype(np.float32)
    model = SmolVLMForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        hidden = model.model.text_model(inputs_embeds=torch.from_numpy(rows)[None]).last_hidden_state[0]
        expected = model.lm_head(hidden).numpy()
    table = model.get_input_embeddings().weight.detach().numpy()
    difference = np.abs(logits_of(tmp_path / "m.gguf", table, rows) - expected)
    print(
        f"max {difference.max():.2e} mean {difference.mean():.2e}, logits up to {np.abs(expected).max():.1f}"
    )
    assert difference.max() < 2e-4 * np.abs(expected).max()


def test_the_command_prints_what_each_tensor_became(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "m.gguf"
    assert main(["gguf", str(folder), "--type", "Q4_K_M", "--out", str(out), "--license", "Apache-2.0"]) == 0
    printed = capsys.readouterr().out
    kinds = {tensor.type for tensor in stored_tensors(out)}
    assert kinds == {"F32", "Q5_0", "Q8_0"}
    assert all(f"  {kind} " in printed for kind in kinds)
    assert "blk.*.attn_q.weight: Q5_0, its rows of 96 do not fit, layers 0 1" in printed
    assert "15 matrices fell back" in printed
    assert {p.name for p in tmp_path.iterdir()} == {"llama", "m.gguf"}  # no F32 file stays behind


def test_the_written_tokenizer_knows_added_tokens(folder: Path, tmp_path: Path) -> None:
    tokenizer = train_tokenizer()
    tokenizer.add_tokens(["[joy]"])
    tokenizer.add_special_tokens(["<|hear|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    write_folder_gguf(folder, tmp_path / "m.gguf", "F16")
    texts = ["<|hear|> so [joy] 🎨👩🏽‍🎤", "日本語 한국어 العربية", "Crème brûlée, Zoë — ½ 3,14 €"]
    ours = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    assert tokenize(tmp_path / "m.gguf", texts) == ours


def without_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def with_damaged_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def without_a_shard(folder: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def of_another_architecture(folder: Path) -> None:
    Qwen2Config(num_hidden_layers=1).save_pretrained(folder)


def of_an_unknown_architecture(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "nobody-knows"}')


def change_weights(folder: Path, name: str, value: torch.Tensor | None) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors = {key: tensor for key, tensor in tensors.items() if key != name}
    save_file(tensors if value is None else tensors | {name: value}, folder / "model.safetensors")


def with_nan(folder: Path) -> None:
    change_weights(folder, "model.layers.1.mlp.up_proj.weight", torch.full((160, 96), float("nan")))


def without_a_layer(folder: Path) -> None:
    change_weights(folder, "model.layers.1.mlp.up_proj.weight", None)


def without_embeddings(folder: Path) -> None:
    change_weights(folder, "model.embed_tokens.weight", None)


def with_a_larger_vocabulary(folder: Path) -> None:
    tokenizer = train_tokenizer()
    tokenizer.add_tokens([f"[word{i}]" for i in range(40)])
    tokenizer.save(str(folder / "tokenizer.json"))


def with_an_end_that_the_tokenizer_lacks(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"eos_token_id": [414, 2]}')


def with_no_tokenizer_in_the_file(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (without_config, "no readable config.json"),
        (without_tokenizer, "lacks tokenizer.json; save the model's fast tokenizer"),
        (with_no_tokenizer_in_the_file, "cannot be read as a tokenizer"),
        (without_weights, "no safetensors; save the model with save_pretrained"),
        (with_damaged_weights, "model.safetensors is damaged"),
        (without_a_shard, "lacks model-00002-of-00002.safetensors of its index"),
        (of_another_architecture, "expected model_type 'llama', got 'qwen2'"),
        (of_an_unknown_architecture, "transformers does not know this model"),
        (with_nan, "layers.1.mlp.up_proj.weight: expected finite weights, got 15360 NaN"),
        (without_a_layer, r"layers.1.mlp.up_proj.weight: expected shape \(160, 96\), is missing"),
        (without_embeddings, "expected one tensor called ...embed_tokens.weight, got 0"),
        (with_a_larger_vocabulary, "expected ids below vocab_size 416; resize the embedding"),
        (with_an_end_that_the_tokenizer_lacks, "the tokenizer has no token 414; use the tokenizer"),
    ],
)
def test_a_folder_that_cannot_be_written_is_refused_in_a_sentence(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    words: str,
) -> None:
    damage(folder)
    out = tmp_path / "m.gguf"
    out.write_bytes(b"the older file")
    assert main(["gguf", str(folder), "--type", "Q5_0", "--out", str(out)]) in (1, 2)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(words, error), error
    assert error.startswith("vaemotion: error: ")
    assert "unexpected" not in error
    assert out.read_bytes() == b"the older file"
    assert {p.name for p in tmp_path.iterdir()} == {"llama", "m.gguf"}


def test_wrong_options_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--type: expected one of F32, F16, Q8_0, Q5_0, Q4_K_M, got 'Q3'"):
        write_folder_gguf(folder, tmp_path / "m.gguf", "Q3")
    with pytest.raises(UsageError, match="--importance: Q8_0 takes none"):
        write_folder_gguf(folder, tmp_path / "m.gguf", "Q8_0", tmp_path / "i.gguf")


def test_our_own_checkpoint_is_sent_to_its_own_command(small_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="export it with `vaemotion export`"):
        write_folder_gguf(small_checkpoint, tmp_path / "m.gguf", "F16")


def test_weights_are_read_one_by_one_under_plain_names(folder: Path) -> None:
    weights = FolderWeights(folder)
    assert "embed_tokens.weight" in weights
    assert weights["layers.0.mlp.down_proj.weight"].shape == (96, 160)
    assert weights["norm.weight"].dtype == np.float32
