"""Tokenizers as GGUF: llama.cpp gives the ids of `tokenizers`, or the tokenizer is refused."""

import functools
import json
import random
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import LlamaConfig
from transformers.convert_slow_tokenizer import generate_merges

from export.gguf.shape import expected_shapes
from export.gguf.tokenizer import read_vocabulary
from export.gguf.write import DecoderShape, GgufTokenizer, SpecialTokens, write_decoder_gguf
from runtime.engines.llama import backend, model_parameters, tokenize
from tests.llama_cpp_sources import known_texts, metadata
from tests.llama_fixture import SPECIAL_TOKENS
from tests.tokenizer_fixture import (
    BYTES_ONLY,
    PREPENDED,
    Json,
    around,
    byte_level,
    metaspace,
    sentencepiece,
    split_at,
    whole,
)

llama_cpp = pytest.importorskip("llama_cpp", reason="needs the extra `llm`")

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # types of tokens in GGUF
TEXTS = [
    "The painting feels calm.",
    "<|im_start|>user\nWhat do you hear?<|im_end|>\n<|im_start|>assistant\n",
    "<image><image>Describe it, please!!!  two  spaces   three",
    "In 1874, 3.14159 and 20 000 or ½ and Ⅷ and ٣",
    "Où est la lumière? Ça déçoit, naïve Ærøskøbing.",
    "🎨🔥 emoji 👩‍🎨 and 感情 and эмоция and שלום",
    "tabs\tand\r\nwindows lines\n\n\n  indented\n",
    "it's we've I'LL you're he'd O'Neil 'quoted' \"double\" (brackets) [x] {y} <z>",
    "trailing spaces   ",
    "   leading",
    " ",
    "\n",
    "a\u00a0b\u2003c\u200bd",
    *(" " * count + "x" for count in range(1, 40, 3)),
]
ALPHABETS = (
    "abc DEF 019 .,!?'\n\t",
    "I'll WE'VE it's  \r\n",
    "éàüßœ ñ 12",
    "日本語 かな 한글",
    "🎨🎭😀👍🏽 ",
    "¼²³ ⅳ ٤ ४",
    "▁<s></0x41> [a]{}",
)


def random_texts(specials: Sequence[str], count: int = 300) -> list[str]:
    """Make texts, half of them with a special token within."""
    generator = random.Random(0)
    texts: list[str] = []
    for _ in range(count):
        letters = generator.choice(ALPHABETS)
        parts = ["".join(generator.choices(letters, k=generator.randint(1, 24))) for _ in range(3)]
        if generator.random() < 0.5:
            parts.insert(generator.randint(0, 3), generator.choice(specials))
        texts.append("".join(parts))
    return texts


@functools.lru_cache(2)
def library(json_text: str) -> Tokenizer:
    return Tokenizer.from_str(json_text)


def write(path: Path, json_text: str, special: SpecialTokens | None = None, **given: Any) -> None:
    """Write the vocabulary with a decoder of one narrow layer."""
    config = LlamaConfig(
        vocab_size=library(json_text).get_vocab_size(),
        hidden_size=4,
        intermediate_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        tie_word_embeddings=True,
    )
    shape = DecoderShape.from_config(config)
    tensors = {name: np.zeros(size, np.float32) for name, size in expected_shapes(shape).items()}
    wrapped = GgufTokenizer(json_text, special or SpecialTokens(1, 2, None), **given)
    write_decoder_gguf(path, tensors, shape, wrapped, file_type="F16", name="v", license="MIT")


def different(path: Path, json_text: str, texts: Sequence[str]) -> list[Any]:
    """Return the texts to which llama.cpp gives other ids than `tokenizers`, with both."""
    # llama.cpp does not normalize.
    texts = [unicodedata.normalize("NFC", text) for text in texts]
    ours, theirs = [library(json_text).encode(text).ids for text in texts], tokenize(path, texts)
    return [(text, a, b) for text, a, b in zip(texts, ours, theirs, strict=True) if a != b]


DIGITS = {"type": "Digits", "individual_digits": True}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True, "trim_offsets": True}
KINDS = {
    "gpt-2": lambda: byte_level(pre_tokenizer={k: v for k, v in BYTES.items() if k != "use_regex"}),
    "smollm": lambda: byte_level(pre_tokenizer={"type": "Sequence", "pretokenizers": [DIGITS, BYTES]}),
    "llama-bpe": lambda: byte_level(**split_at(r"\p{N}{1,3}"), ignore_merges=True),
    "smaug-bpe": lambda: byte_level(**split_at(r"\p{N}{1,3}")),
    "qwen2": lambda: byte_level(**split_at(r"\p{N}"), normalizer={"type": "NFC"}),
    "default": lambda: sentencepiece(**PREPENDED),
    "without prefix": lambda: sentencepiece(**metaspace("never")),
}


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_tokenizes_as_tokenizers(tmp_path: Path, kind: str) -> None:
    tokenizer = KINDS[kind]()
    specials = [added["content"] for added in tokenizer["added_tokens"]]
    number = len(tokenizer["model"]["vocab"])
    tokenizer["added_tokens"].append(whole("[angry]", number, special=False))
    # A whole word that no merge reaches: it is one token only where merges are ignored.
    if kind in ("llama-bpe", "smaug-bpe"):
        tokenizer["added_tokens"][-1]["id"] += 1
        tokenizer["model"]["vocab"]["Ġunmergeable"] = number
    json_text = json.dumps(tokenizer)
    assert read_vocabulary(json_text, number + 2).pre in (kind, "default")
    write(tmp_path / "v.gguf", json_text)
    texts = [*TEXTS, "so [angry] now", "an unmergeable word", *random_texts(specials)]
    assert different(tmp_path / "v.gguf", json_text, texts) == []


# -- real vocabularies ------------------------------------------------------------------------------------


def real_vocabulary(name: str, kinds: tuple[int, ...]) -> tuple[dict[str, Any], dict[str, int], list[Json]]:
    """Return the fields of a GGUF file, its tokens of some kinds, and the special ones as added tokens."""
    fields = metadata(name)
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    special = [whole(token, i) for i, token in enumerate(tokens) if types[i] in (CONTROL, UNKNOWN)]
    return fields, {token: i for i, token in enumerate(tokens) if types[i] in kinds}, special


def real_byte_level(name: str, **parts: Any) -> Json:
    fields, vocabulary, special = real_vocabulary(name, (NORMAL,))
    merges = [merge.split(" ") for merge in fields["tokenizer.ggml.merges"]]
    model = {"type": "BPE", "vocab": vocabulary, "merges": merges}
    model["ignore_merges"] = parts.pop("ignore_merges", False)
    return {"version": "1.0", "added_tokens": special, "model": model, **parts}


def llama3() -> Json:
    start = around([("<|begin_of_text|>", 128_000)])
    return real_byte_level("llama-bpe", **split_at(r"\p{N}{1,3}"), **start, ignore_merges=True)


def qwen2() -> Json:
    parts = split_at(r"\p{N}") | {"normalizer": {"type": "NFC"}, "post_processor": BYTES_ONLY}
    return real_byte_level("qwen2", **parts)


def llama2() -> Json:
    fields, vocabulary, special = real_vocabulary("llama-spm", (NORMAL, UNKNOWN, CONTROL, BYTE))
    normal = real_vocabulary("llama-spm", (NORMAL,))[1]
    scores = {token: fields["tokenizer.ggml.scores"][i] for token, i in normal.items()}
    model = {"type": "BPE", "vocab": vocabulary, "merges": generate_merges(vocabulary, scores)}
    model |= {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
    return {
        "version": "1.0",
        "added_tokens": special,
        "model": model,
        **PREPENDED,
        **around([("<s>", 1)]),
    }


@pytest.mark.parametrize(("name", "build"), [("llama-spm", llama2), ("llama-bpe", llama3), ("qwen2", qwen2)])
def test_a_real_vocabulary_gives_the_ids_of_transformers(tmp_path: Path, name: str, build: Any) -> None:
    """Compare the vocabularies of llama.cpp's own tests, with the ids that transformers once gave.

    The `tokenizer.json` is built again around them, and these ids show that it is the published one. SmolLM3
    and Mistral have no vocabulary there: SmolLM3's is of Llama 3's kind, that of Mistral 7B of Llama 2's.
    """
    tokenizer = build()
    json_text, known = json.dumps(tokenizer), known_texts(name)
    assert len(known) > 40
    for text, ids in known:
        assert library(json_text).encode(text, add_special_tokens=False).ids == ids, text
    write(tmp_path / "v.gguf", json_text)
    specials = [added["content"] for added in tokenizer["added_tokens"][:3]]
    texts = [text for text, _ in known] + TEXTS + random_texts(specials)
    assert different(tmp_path / "v.gguf", json_text, texts) == []


# -- spaces before SentencePiece's texts ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "chat_template", "alike"),
    [
        ("first", "{{ messages }}", lambda text: text.startswith("<s>")),
        ("first", None, lambda text: "<s>" not in text and not text.startswith((" ", "▁"))),
        ("always", None, lambda text: not any(part.startswith((" ", "▁")) for part in text.split("<s>"))),
    ],
    ids=["first, chat", "first, text", "always"],
)
def test_where_spaces_differ_is_said(
    tmp_path: Path, scheme: str, chat_template: str | None, alike: Any
) -> None:
    json_text = json.dumps(sentencepiece(**metaspace(scheme)))
    write(tmp_path / "v.gguf", json_text, chat_template=chat_template)
    (remark,) = read_vocabulary(json_text, 1000, chat=chat_template is not None).remarks
    assert "space" in remark
    texts = [*TEXTS, *random_texts(["<s>"]), *("<s>" + text for text in TEXTS)]
    texts = [text for text in texts if "</s>" not in text and "<unk>" not in text]
    same = [text for text in texts if alike(text)]
    assert len(same) > 50
    assert different(tmp_path / "v.gguf", json_text, same) == []
    assert different(tmp_path / "v.gguf", json_text, texts)  # what the remark is about


# -- tokens around a text, and at its end -----------------------------------------------------------------


@pytest.mark.parametrize("build", [byte_level, sentencepiece])
def test_a_text_gets_the_tokens_of_the_post_processor(tmp_path: Path, build: Any) -> None:
    names = [added["content"] for added in build()["added_tokens"]]
    path = tmp_path / "v.gguf"
    for before, after in (([], []), ([1], []), ([1], [2]), ([], [2])):
        parts = around(*([(names[i], i) for i in side] for side in (before, after)))
        json_text = json.dumps(build(**PREPENDED if build is sentencepiece else {}, **parts))
        write(path, json_text, SpecialTokens(None, 2, None))
        assert different(path, json_text, ["calm", "", " and warm"]) == []
        ids = tokenize(path, ["calm"])[0]
        assert (ids[:1] == [1]) is bool(before)
        assert (ids[-1:] == [2]) is bool(after)


def test_an_answer_ends_at_each_of_several_tokens(tmp_path: Path) -> None:
    tokenizer, path = byte_level(), tmp_path / "v.gguf"
    names = ["[end]", "[turn]", "[message]", "[other]"]  # llama.cpp knows none of them by its name
    first = len(tokenizer["model"]["vocab"])
    tokenizer["added_tokens"] += [whole(name, first + i) for i, name in enumerate(names)]
    json_text = json.dumps(tokenizer)
    write(path, json_text, SpecialTokens(None, first, None, (first + 1, first + 2)))
    params = model_parameters()
    params.vocab_only = True
    llama = backend().llama
    model = llama.llama_model_load_from_file(str(path).encode(), params)
    found = llama.llama_model_get_vocab(model)
    ends = [bool(llama.llama_vocab_is_eog(found, first + i)) for i in range(4)]
    llama.llama_model_free(model)
    assert ends == [True, True, True, False]
    with pytest.raises(ValueError, match="4 tokens end an answer, GGUF has keys for 3; leave the others"):
        write(path, json_text, SpecialTokens(None, first, None, tuple(range(first + 1, first + 4))))


# -- refusals ---------------------------------------------------------------------------------------------


def pieces_with(**model: Any) -> Json:
    tokenizer = sentencepiece(**PREPENDED)
    return tokenizer | {"model": tokenizer["model"] | model}


def without_a_merge() -> Json:
    merges = sentencepiece()["model"]["merges"]
    return pieces_with(merges=[merge for merge in merges if merge != ("▁", "t")])


def with_merges_in_another_order() -> Json:
    return pieces_with(merges=sorted(sentencepiece()["model"]["merges"]))


def without_a_byte() -> Json:
    vocab = dict(sentencepiece()["model"]["vocab"])
    vocab["<byte 7>"] = vocab.pop("<0x07>")
    return pieces_with(vocab=vocab)


REFUSED = {
    "another normalizer": (
        lambda: byte_level(normalizer={"type": "Lowercase"}),
        "expected no normalizer or NFC",
    ),
    "another split": (
        lambda: byte_level(pre_tokenizer={"type": "Whitespace"}),
        "llama.cpp has no split of text like .*Whitespace.*; expected that of gpt-2, smollm, llama-bpe",
    ),
    "no split": (lambda: byte_level(pre_tokenizer=None), "no split of text like the pre_tokenizer None"),
    "whole words": (lambda: byte_level(ignore_merges=True), "with ignore_merges True"),
    "another model": (lambda: byte_level(model={"type": "Unigram"}), "expected a BPE model.*got 'Unigram'"),
    "no merges": (lambda: pieces_with(merges=[]), "expected at least one merge"),
    "stripping tokens": (
        lambda: byte_level(added_tokens=[whole("<image>", 3, rstrip=True)]),
        "expected added tokens without lstrip, rstrip",
    ),
    "pieces that are not merged": (without_a_merge, "'▁' and 't' are not merged, but llama.cpp would do so"),
    "merges in another order": (with_merges_in_another_order, "alternate, so that scores cannot stand"),
    "a missing byte": (without_a_byte, "it lacks the token <0x07>"),
    "text split at spaces": (
        lambda: sentencepiece(pre_tokenizer=metaspace("first")["pre_tokenizer"] | {"split": True}),
        "expected Prepend.*or Metaspace.split=False.",
    ),
    "tokens in normalized text": (
        lambda: sentencepiece(**PREPENDED, added_tokens=[whole("<s>", 1, normalized=True)]),
        "the added token '<s>' is searched for in normalized text; set its \"normalized\" to false",
    ),
    "two tokens before a text": (
        lambda: byte_level(**around([("<|im_start|>", 1), ("<image>", 3)])),
        "GGUF has one token before it and one behind it",
    ),
    "another post-processor": (
        lambda: byte_level(post_processor={"type": "BertProcessing", "sep": ["b", 2], "cls": ["a", 1]}),
        "expected no post_processor or TemplateProcessing, got .*BertProcessing",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_tokenizer_that_llama_cpp_would_apply_otherwise_is_refused(name: str) -> None:
    build, words = REFUSED[name]
    with pytest.raises(ValueError, match=words):
        read_vocabulary(json.dumps(build()), 1000)


def test_an_end_token_that_is_no_answers_end_is_refused(tmp_path: Path) -> None:
    tokenizer = byte_level(**around([], [("<image>", SPECIAL_TOKENS.index("<image>"))]))
    with pytest.raises(ValueError, match="a text gets token 3 behind it, and an answer ends with 2"):
        write(tmp_path / "v.gguf", json.dumps(tokenizer))
