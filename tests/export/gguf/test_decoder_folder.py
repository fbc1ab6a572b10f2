"""Contents of a decoder's folder: special tokens, tokens around a text, chat template, tensors."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig

from export.gguf.decoder_folder import read_decoder_folder
from export.gguf.tokenizer import read_vocabulary
from tests.llama_fixture import make_tiny_llama
from tests.tokenizer_fixture import around
from vaemotion.contract.errors import UsageError

Json = dict[str, Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make a folder without tokenizer settings and chat template; its bos, eos and pad are 1, 2 and 0."""
    tiny = make_tiny_llama(hidden_size=32, intermediate_size=32, layers=1)
    tiny.model.save_pretrained(tmp_path / "decoder")
    tiny.tokenizer.save(str(tmp_path / "decoder" / "tokenizer.json"))
    (tmp_path / "decoder" / "generation_config.json").unlink(missing_ok=True)
    return tmp_path / "decoder"


def put(folder: Path, name: str, values: Mapping[str, Any]) -> None:
    (folder / name).write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("generation", "settings", "expected"),
    [
        ({}, {}, (1, 2, 0, ())),
        ({"eos_token_id": [3, 2]}, {}, (1, 3, 0, (2,))),
        ({"eos_token_id": [3, 2, 3]}, {"eos_token": "<|im_end|>"}, (1, 2, 0, (3,))),
        ({"eos_token_id": 3}, {"eos_token": {"content": "<|im_end|>"}}, (1, 3, 0, ())),
        ({"pad_token_id": -1}, {"bos_token": "<|endoftext|>"}, (0, 2, None, ())),
    ],
)
def test_special_tokens(folder: Path, generation: Json, settings: Json, expected: tuple[Any, ...]) -> None:
    put(folder, "generation_config.json", generation)
    put(folder, "tokenizer_config.json", settings)
    special = read_decoder_folder(folder).tokenizer.special
    assert (special.bos_id, special.eos_id, special.pad_id, special.more_eos_ids) == expected


@pytest.mark.parametrize("add_bos", [True, False, None])
def test_a_text_gets_the_start_token_of_transformers(folder: Path, add_bos: bool | None) -> None:
    """The post-processor decides, whatever the tokenizer's settings say beside it."""
    for parts in ({}, around([("<|im_start|>", 1)])):
        tokenizer = json.loads((folder / "tokenizer.json").read_text()) | parts
        put(folder, "tokenizer.json", tokenizer)
        put(folder, "tokenizer_config.json", {"add_bos_token": add_bos, "bos_token": "<|im_start|>"})
        decoder = read_decoder_folder(folder)
        vocabulary = read_vocabulary(decoder.tokenizer.json, decoder.shape.vocab_size)
        ids = PreTrainedTokenizerFast.from_pretrained(folder)("calm").input_ids
        assert (ids[0] == 1) is (vocabulary.before == 1) is bool(parts)


@pytest.mark.parametrize("place", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json"])
def test_the_chat_template_is_found_where_transformers_writes_it(folder: Path, place: str) -> None:
    assert read_decoder_folder(folder).tokenizer.chat_template is None
    template = "{{ messages[0]['content'] }}"
    if place.endswith(".jinja"):
        (folder / place).write_text(template)
    else:
        put(folder, place, {"chat_template": template})
    assert read_decoder_folder(folder).tokenizer.chat_template == template


def test_a_decoder_within_a_larger_model_has_plain_names(tmp_path: Path, folder: Path) -> None:
    text: Json = {"vocab_size": 416, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]}
    config = Qwen2_5_VLConfig(text_config=text, tie_word_embeddings=True)
    config.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    names = ("model.language_model.embed_tokens.weight", "model.language_model.norm.weight", "lm_head.weight")
    weights = {name: torch.ones(2) for name in (*names, "model.visual.patch_embed.proj.weight")}
    save_file(weights, folder / "model.safetensors")
    decoder = read_decoder_folder(folder)
    assert decoder.shape.architecture == "qwen2vl"
    assert decoder.shape.rope.sections == (1, 1, 2, 0)
    assert decoder.shape.tied
    assert set(decoder.tensors) == {"embed_tokens.weight", "norm.weight", "lm_head.weight"}
    assert decoder.tensors.shapes()["norm.weight"] == (2,)
    assert decoder.tensors["norm.weight"].dtype == np.float32


def test_a_folder_of_something_else_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    for changed, words in (
        (
            {"model_type": "nobody-knows"},
            "transformers does not know the model 'nobody-knows'; give a decoder",
        ),
        ({"eos_token_id": None}, "names no eos_token_id"),
    ):
        put(folder, "config.json", config | changed)
        with pytest.raises(UsageError, match=words):
            read_decoder_folder(folder)
