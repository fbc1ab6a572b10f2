"""`vaemotion gguf`: folders of a Llama and of a SmolVLM, compared with torch, and folders that it refuses."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

from export.gguf.decoder_folder import DecoderTensors
from export.gguf.folder import Material, write_folder_gguf
from export.gguf.quantise import stored_tensors
from export.gguf.text import SHIPPED_TEXT, TextJudge, text_windows
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
    types = write_folder_gguf(save(tiny, tmp_path / "llama"), tmp_path / "m.gguf", "F32").types
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
    types = write_folder_gguf(folder, tmp_path / "m.gguf", "F32").types
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


def test_the_command_prints_what_each_tensor_became_and_what_the_file_loses(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "m.gguf"
    assert main(["gguf", str(folder), "--type", "Q4_K_M", "--out", str(out), "--license", "Apache-2.0"]) == 0
    printed = capsys.readouterr().out
    kinds = {tensor.type for tensor in stored_tensors(out)}
    assert kinds == {"F32", "Q5_0", "Q8_0"}
    assert all(f"  {kind} " in printed for kind in kinds)
    assert "blk.*.attn_q.weight: Q5_0, as llama.cpp's first choice has blocks of 256" in printed
    assert "which do not divide rows of 96, layers 0 1" in " ".join(printed.split())
    assert "15 matrices fell back" in printed
    assert re.search(r"held-out text: KL mean \S+, p99 ", printed), printed
    assert {p.name for p in tmp_path.iterdir()} == {"llama", "m.gguf"}  # no F32 file stays behind


def test_importance_of_the_text_weighs_the_errors(folder: Path, tmp_path: Path) -> None:
    plain, weighted, f32 = (tmp_path / f"{name}.gguf" for name in ("plain", "weighted", "f32"))
    text = tmp_path / "text.txt"
    text.write_text(SHIPPED_TEXT.read_text("utf-8")[:5000])
    found = write_folder_gguf(folder, weighted, "Q4_0", Material(text)).quality
    assert write_folder_gguf(folder, plain, "Q4_0", Material(text=None)).quality is None
    write_folder_gguf(folder, f32, "F32")
    judge = TextJudge(f32, text_windows(f32, text, 2048).held_out)
    assert found is not None
    assert judge(weighted).mean_kl_nats == pytest.approx(found.mean_kl_nats, rel=1e-3)
    assert judge(weighted).mean_kl_nats < judge(plain).mean_kl_nats


@pytest.mark.parametrize("failing", ["judging", "search"])
def test_a_file_that_is_not_accepted_leaves_the_one_before_as_it_was(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    out = tmp_path / "m.gguf"
    out.write_bytes(b"the file before")
    names: list[str] = []

    def refuse(judge: TextJudge, path: Path) -> None:
        names.append(path.name)
        raise ValueError("its logits are not finite")

    wanted: tuple[str, ...] = ("--type", "Q4_0")
    if failing == "judging":
        monkeypatch.setattr(TextJudge, "__call__", refuse)
    else:
        wanted = ("--type", "auto", "--max-mb", "0.001")
    assert main(["gguf", str(folder), "--out", str(out), *wanted]) == 1
    assert out.name not in names
    assert bool(names) == (failing == "judging")
    assert out.read_bytes() == b"the file before"
    assert {path.name for path in tmp_path.iterdir()} == {"llama", "m.gguf"}


def test_a_search_prints_every_file_that_it_measured(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, text = tmp_path / "m.gguf", tmp_path / "text.txt"
    text.write_text("The painting feels calm and warm, like rain on a summer evening. " * 60)
    without = [word for kind in ("Q6_K", "Q5_K", "Q5_1", "Q4_K", "Q4_1") for word in ("--without", kind)]
    command = ["gguf", str(folder), "--type", "auto", "--max-mb", "0.2", "--text", str(text), *without]
    assert main([*command, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert out.stat().st_size <= 200_000
    rows = {
        line.split()[0]: line for line in printed.splitlines() if re.match(r"  (mixed|Q\w+|IQ\w+) .*%", line)
    }
    assert {"mixed", "Q8_0", "Q5_0", "IQ4_NL", "Q4_0"} <= rows.keys()
    assert not {"Q6_K", "Q4_1", "Q4_K_M"} & rows.keys()
    assert printed.count("chosen") == 1
    assert "types by search" in printed
    assert {p.name for p in tmp_path.iterdir()} == {"llama", "m.gguf", "text.txt"}


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


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def with_damaged_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


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
        (without_config, "holds no config.json; give the folder of a decoder"),
        (without_tokenizer, "lacks tokenizer.json; save the model's fast tokenizer"),
        (with_no_tokenizer_in_the_file, "cannot be read as a tokenizer"),
        (with_damaged_weights, "model.safetensors is damaged"),
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


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--type", "Q8_0", "--importance", "i.gguf"],
            "--importance: Q8_0 takes none; it is for auto, Q6_K,",
        ),
        (["--type", "F16", "--text", "text.txt"], "--text: F16 takes none"),
        (["--type", "auto", "--text", "none"], "--text none: a search needs a text that judges"),
        (["--type", "auto", "--max-kl", "0.1", "--max-mb", "3"], "--max-kl and --max-mb: give one of them"),
        (["--type", "Q4_0", "--max-mb", "3"], "go with --type auto, got --type Q4_0"),
        (["--type", "Q4_0", "--text", "absent.txt"], "--text absent.txt: cannot be read"),
    ],
)
def test_wrong_options_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert main(["gguf", str(folder), "--out", str(tmp_path / "m.gguf"), *options]) in (1, 2)
    error = capsys.readouterr().err
    assert words in " ".join(error.split()), error
    assert {p.name for p in tmp_path.iterdir()} == {"llama"}


def test_a_type_that_there_is_not_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--type: expected one of F32, F16, Q8_0, Q6_K, .* got 'Q3'"):
        write_folder_gguf(folder, tmp_path / "m.gguf", "Q3")


def test_weights_are_read_one_by_one_under_plain_names(folder: Path) -> None:
    weights = DecoderTensors(folder)
    assert "embed_tokens.weight" in weights
    assert weights["layers.0.mlp.down_proj.weight"].shape == (96, 160)
    assert weights["norm.weight"].dtype == np.float32
