"""GGUF back to a folder of `transformers`, compared with the model it was written from."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from export.gguf.dequantise import dequantize_gguf
from export.gguf.quantise import quantize_gguf
from tests.llama_fixture import CORPUS, SPECIAL, make_tiny_llama


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a small Llama as F16. Its embedding is also its head."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    make_tiny_llama(hidden_size=64, intermediate_size=96).write(path, "F16")
    return path


@pytest.mark.parametrize("tied", [True, False])
def test_a_folder_computes_what_the_model_computed(tied: bool, tmp_path: Path) -> None:
    tiny = make_tiny_llama(tied=tied, hidden_size=64, intermediate_size=96)
    tiny.write(tmp_path / "tiny.gguf", "F16")
    dequantize_gguf(tmp_path / "tiny.gguf", tmp_path / "folder")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "folder", dtype=torch.float32)
    for name, tensor in tiny.model.state_dict().items():
        expected = tensor.half().float() if tensor.ndim > 1 else tensor
        torch.testing.assert_close(loaded.state_dict()[name], expected, rtol=1e-3, atol=0, msg=name)
    for key in (
        "rope_parameters",
        "rms_norm_eps",
        "tie_word_embeddings",
        "head_dim",
        "max_position_embeddings",
    ):
        assert getattr(loaded.config, key) == getattr(tiny.model.config, key), key
    ids = torch.tensor([tiny.tokenizer.encode(CORPUS[0]).ids])
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, tiny.model(ids).logits, rtol=0, atol=5e-3)


def test_a_folder_tokenizes_as_the_tokenizer_did(written: Path, tmp_path: Path) -> None:
    tiny = make_tiny_llama(hidden_size=64, intermediate_size=96)
    dequantize_gguf(written, tmp_path / "folder")
    for loaded in (
        Tokenizer.from_file(str(tmp_path / "folder" / "tokenizer.json")),
        AutoTokenizer.from_pretrained(tmp_path / "folder"),
    ):
        for text in (*CORPUS, "<|im_start|>a 1874<image><|im_end|>", "naïve 🎨 日本"):
            expected, got = tiny.tokenizer.encode(text).ids, loaded.encode(text)
            assert (got.ids if hasattr(got, "ids") else got) == expected
            assert loaded.decode(expected, skip_special_tokens=False) == tiny.tokenizer.decode(
                expected, skip_special_tokens=False
            )
    generation = GenerationConfig.from_pretrained(tmp_path / "folder")
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (
        SPECIAL.bos_id,
        SPECIAL.eos_id,
        SPECIAL.pad_id,
    )


def test_quantized_values_are_those_of_transformers_own_reader(tmp_path: Path) -> None:
    make_tiny_llama().write(tmp_path / "f16.gguf", "F16")
    quantize_gguf(tmp_path / "f16.gguf", tmp_path / "small.gguf", "Q4_K_M")
    dequantize_gguf(tmp_path / "small.gguf", tmp_path / "folder")
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "folder", dtype=torch.float32).state_dict()
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="small.gguf", dtype=torch.float32
    ).state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        np.testing.assert_allclose(ours[name].numpy(), tensor.numpy(), rtol=2**-11, atol=2**-25, err_msg=name)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"llama", b"qwen2", "general.architecture is 'qwen2', expected 'llama'"),
        (b"smollm", b"tekken", "tokenizer.ggml.pre is 'tekken', expected 'gpt-2' or 'smollm'"),
        (b"gpt2", b"bert", "tokenizer.ggml.model is 'bert', expected 'gpt2'"),
        (b"blk.1.ffn_up", b"blk.1.ffn_op", "lacks the tensor blk.1.ffn_up.weight"),
        (b"llama.block_count", b"llama.block_kount", "lacks llama.block_count"),
        (b"GGUF", b"GGML", "is no GGUF file, or damaged"),
    ],
)
def test_what_is_no_plain_llama_is_refused_by_name(
    old: bytes, new: bytes, message: str, written: Path, tmp_path: Path
) -> None:
    changed = tmp_path / "changed.gguf"
    changed.write_bytes(written.read_bytes().replace(old, new))
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=f"changed.gguf:? {message}"):
        dequantize_gguf(changed, tmp_path / "folder")
    assert list((tmp_path / "folder").iterdir()) == []


def test_a_file_that_is_cut_short_is_refused(written: Path, tmp_path: Path) -> None:
    whole = written.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.gguf is no GGUF file, or damaged"):
        dequantize_gguf(tmp_path / "cut.gguf", tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
