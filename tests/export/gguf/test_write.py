"""The GGUF writer: its tensors, its refusals, and that llama.cpp tokenizes as `tokenizers` does."""

import dataclasses
import json
import random
import unicodedata
from pathlib import Path

import gguf
import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer
from transformers import LlamaConfig, Qwen2Config

from export.gguf.write import GGUF_TYPES, GgufTokenizer, LlamaShape, SpecialTokens, write_llama_gguf
from runtime.engines.llama import tokenize
from tests.llama_fixture import SPECIAL, TinyLlama, make_tiny_llama, train_tokenizer

TEXTS = [
    "The painting feels calm.",
    "<|im_start|>user\nWhat do you hear?<|im_end|>\n<|im_start|>assistant\n",
    "<image><image>Describe it, please!!!  two  spaces   three",
    "In 1874, 3.14159 and 20 000 or ½ and Ⅷ and ٣",
    "Où est la lumière? Ça déçoit, naïve Ærøskøbing.",
    "🎨🔥 emoji 👩‍🎨 and 感情 and эмоция and שלום",
    "tabs\tand\r\nwindows lines\n\n\n  indented\n",
    "it's we've I'll you're he'd O'Neil 'quoted' \"double\" (brackets) [x] {y} <z>",
    "trailing spaces   ",
    "   leading",
    " ",
    "\n",
    "a\u00a0b\u2003c\u200bd",
]


@pytest.fixture(scope="module")
def tiny() -> TinyLlama:
    return make_tiny_llama()


def write(
    tiny: TinyLlama, path: Path, *, tensors=None, shape=None, tokenizer=None, special=SPECIAL, file_type="F32"
):
    return write_llama_gguf(
        path,
        tiny.tensors if tensors is None else tensors,
        tiny.shape if shape is None else shape,
        GgufTokenizer(tiny.tokenizer.to_str() if tokenizer is None else tokenizer, special),
        file_type=file_type,
        name="tiny",
        license="Apache-2.0",
    )


def field(reader: gguf.GGUFReader, key: str):
    found = reader.get_field(key)
    assert found is not None, key
    return found.contents()


@pytest.mark.parametrize("file_type", GGUF_TYPES)
def test_tensors_come_back_from_the_file(tmp_path: Path, tiny: TinyLlama, file_type: str) -> None:
    types = write(tiny, tmp_path / "m.gguf", file_type=file_type)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    assert {t.name: t.tensor_type.name for t in reader.tensors} == types
    assert types["blk.0.attn_norm.weight"] == "F32"
    assert types["blk.1.ffn_down.weight"] == file_type
    assert "output.weight" not in types
    by_name = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    for ours, theirs in (
        ("embed_tokens.weight", "token_embd.weight"),
        ("layers.1.mlp.up_proj.weight", "blk.1.ffn_up.weight"),
    ):
        difference = np.abs(by_name[theirs] - tiny.tensors[ours])
        print(f"{file_type} {theirs}: max {difference.max():.2e} mean {difference.mean():.2e}")
        assert difference.max() <= {"F32": 0.0, "F16": 2e-4, "Q8_0": 2e-3}[file_type]
    assert field(reader, "general.license") == "Apache-2.0"
    assert field(reader, "llama.rope.freq_base") == tiny.shape.rope_theta
    assert len(field(reader, "tokenizer.ggml.tokens")) == tiny.shape.vocab_size
    assert not field(reader, "tokenizer.ggml.add_bos_token")


def test_narrow_rows_fall_back_to_f16_and_are_reported(tmp_path: Path) -> None:
    narrow = make_tiny_llama(hidden_size=128, intermediate_size=200)
    types = narrow.write(tmp_path / "m.gguf", "Q8_0")
    assert types["blk.0.ffn_down.weight"] == "F16"  # rows of 200, not a multiple of 32
    assert types["blk.0.ffn_up.weight"] == "Q8_0"


def test_untied_head_is_written_and_a_foreign_head_refused_when_tied(tmp_path: Path, tiny: TinyLlama) -> None:
    untied = make_tiny_llama(tied=False)
    assert untied.write(tmp_path / "m.gguf")["output.weight"] == "F32"
    tensors = tiny.tensors | {"lm_head.weight": untied.tensors["lm_head.weight"]}
    with pytest.raises(ValueError, match=r"lm_head\.weight: differs"):
        write(tiny, tmp_path / "n.gguf", tensors=tensors)


def without(tensors: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {key: value for key, value in tensors.items() if key != name}


def test_every_wrong_tensor_is_named(tmp_path: Path, tiny: TinyLlama) -> None:
    tensors = without(tiny.tensors, "layers.1.mlp.up_proj.weight")
    tensors |= {"norm.weight": np.ones(3, np.float32), "layers.2.norm.weight": np.ones(3, np.float32)}
    with pytest.raises(ValueError, match="tensors: ") as error:
        write(tiny, tmp_path / "m.gguf", tensors=tensors)
    message = str(error.value)
    assert "layers.1.mlp.up_proj.weight: expected shape (768, 256), is missing" in message
    assert "norm.weight: expected shape (256,), got (3,)" in message
    assert "layers.2.norm.weight: not a tensor" in message


@pytest.mark.parametrize(
    ("file_type", "value", "words"),
    [("F32", np.nan, "1 NaN or infinite"), ("F16", 7e4, "beyond F16"), ("Q8_0", 1e7, "beyond Q8_0")],
)
def test_failing_writer_names_the_tensor_and_leaves_what_was_there(
    tmp_path: Path, tiny: TinyLlama, file_type: str, value: float, words: str
) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"the older file")
    name = "layers.1.mlp.down_proj.weight"
    damaged = tiny.tensors[name].copy()
    damaged[3, 5] = value
    with pytest.raises(ValueError, match=f"{name}.*{words}"):
        write(tiny, path, tensors=tiny.tensors | {name: damaged}, file_type=file_type)
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]
    assert path.read_bytes() == b"the older file"


def test_wrong_file_type_and_special_ids_are_refused(tmp_path: Path, tiny: TinyLlama) -> None:
    with pytest.raises(ValueError, match="file_type: expected one of F32, F16, Q8_0, got 'Q4_K'"):
        write(tiny, tmp_path / "m.gguf", file_type="Q4_K")
    with pytest.raises(ValueError, match=r"special\.eos_id: expected an id below vocab_size"):
        write(tiny, tmp_path / "m.gguf", special=SpecialTokens(None, 10_000, None))
    unused = tiny.shape.vocab_size - 1
    with pytest.raises(ValueError, match=rf"special\.eos_id: the tokenizer has no token {unused}; use"):
        write(tiny, tmp_path / "m.gguf", special=SpecialTokens(None, unused, None))
    assert not list(tmp_path.iterdir())


def test_shape_refuses_foreign_architectures() -> None:
    with pytest.raises(ValueError, match="expected model_type 'llama', got 'qwen2'"):
        LlamaShape.from_config(Qwen2Config())  # pyright: ignore[reportArgumentType]
    scaled = {"rope_theta": 10_000.0, "rope_type": "linear", "factor": 2.0}
    with pytest.raises(ValueError, match=r"rope_type.*expected 'default', got 'linear'"):
        LlamaShape.from_config(LlamaConfig(rope_parameters=scaled))
    with pytest.raises(ValueError, match="attention_bias"):
        LlamaShape.from_config(LlamaConfig(attention_bias=True))


def test_tokenizers_that_llama_cpp_would_split_differently_are_refused(
    tmp_path: Path, tiny: TinyLlama
) -> None:
    good = json.loads(tiny.tokenizer.to_str())
    cases = {
        "normalizer": ({"normalizer": {"type": "Lowercase"}}, "expected no normalizer or NFC"),
        "split": ({"pre_tokenizer": {"type": "Whitespace"}}, "expected the pre_tokenizer ByteLevel"),
        "no split": ({"pre_tokenizer": None}, "expected the pre_tokenizer ByteLevel"),
        "model": ({"model": {"type": "Unigram"}}, "expected a byte-level BPE model, got 'Unigram'"),
        "merges": ({"model": good["model"] | {"merges": []}}, "expected at least one merge"),
    }
    for change, words in cases.values():
        with pytest.raises(ValueError, match=words):
            write(tiny, tmp_path / "m.gguf", tokenizer=json.dumps(good | change))
    small = dataclasses.replace(tiny.shape, vocab_size=300)
    tensors = tiny.tensors | {"embed_tokens.weight": tiny.tensors["embed_tokens.weight"][:300]}
    with pytest.raises(ValueError, match="expected ids below vocab_size 300"):
        write(tiny, tmp_path / "m.gguf", tensors=without(tensors, "lm_head.weight"), shape=small)


def random_texts(count: int) -> list[str]:
    generator = random.Random(0)
    alphabets = [
        "abc DEF 019 .,!?'\n\t",
        "éàüßœ ñ 12",
        "日本語 かな 한글",
        "🎨🎭😀👍🏽 ",
        "¼²³ ⅳ ٤ ४",
        "<|im_end|>\n ",
    ]
    return [
        "".join(generator.choices(generator.choice(alphabets) + " ", k=generator.randint(1, 30)))
        for _ in range(count)
    ]


def with_user_token(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_tokens([AddedToken("[angry]", special=False, normalized=False)])
    return tokenizer


@pytest.mark.parametrize("split_digits", [True, False])
def test_llama_cpp_tokenises_as_tokenizers(tmp_path: Path, tiny: TinyLlama, split_digits: bool) -> None:
    pytest.importorskip("llama_cpp", reason="needs the extra `llm`")
    tokenizer = with_user_token(train_tokenizer(split_digits=split_digits))
    json_path = tmp_path / "tokenizer.json"
    tokenizer.save(str(json_path))
    write(tiny, tmp_path / "m.gguf", tokenizer=json_path)
    texts = [unicodedata.normalize("NFC", text) for text in [*TEXTS, "so [angry] now", *random_texts(400)]]
    ours = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    theirs = tokenize(tmp_path / "m.gguf", texts)
    different = [(text, a, b) for text, a, b in zip(texts, ours, theirs, strict=True) if a != b]
    assert not different, different[:3]
