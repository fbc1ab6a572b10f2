"""The GGUF writer: its tensors, its refusals, and that llama.cpp tokenizes as `tokenizers` does."""

import dataclasses
from pathlib import Path

import gguf
import numpy as np
import pytest

from export.gguf.write import GGUF_TYPES, GgufTokenizer, SpecialTokens, write_decoder_gguf
from tests.llama_fixture import SPECIAL, TinyLlama, make_tiny_llama


@pytest.fixture(scope="module")
def tiny() -> TinyLlama:
    return make_tiny_llama()


def write(
    tiny: TinyLlama, path: Path, *, tensors=None, shape=None, tokenizer=None, special=SPECIAL, file_type="F32"
):
    return write_decoder_gguf(
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
    assert field(reader, "llama.rope.freq_base") == tiny.shape.rope.theta
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


def test_a_tokenizer_with_more_tokens_than_the_embedding_is_refused(tmp_path: Path, tiny: TinyLlama) -> None:
    small = dataclasses.replace(tiny.shape, vocab_size=300)
    tensors = tiny.tensors | {"embed_tokens.weight": tiny.tensors["embed_tokens.weight"][:300]}
    with pytest.raises(ValueError, match="expected ids below vocab_size 300"):
        write(tiny, tmp_path / "m.gguf", tensors=without(tensors, "lm_head.weight"), shape=small)
