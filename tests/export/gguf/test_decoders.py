"""Every decoder that `vaemotion gguf` writes: logits of transformers' own class and of llama.cpp compared."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from export.gguf.architectures import BY_MODEL_TYPE
from export.gguf.decoder_folder import read_decoder_folder
from export.gguf.quantise import quantize_gguf
from export.gguf.shape import DecoderShape, check_tensors, expected_shapes
from export.gguf.write import GgufTokenizer, write_decoder_gguf
from runtime.engines.language_model import LanguageModel
from runtime.engines.llama import LanguageModelError
from tests.llama_fixture import SPECIAL, train_tokenizer

pytest.importorskip("llama_cpp", reason="needs the extra `llm`")

WIDTH, ROWS = 64, 48


@dataclass(frozen=True)
class Case:
    """A configuration of a decoder, beside the sizes that all cases have."""

    model_type: str
    values: Mapping[str, Any] = field(default_factory=dict)


def rope(rope_type: str, **values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": 10_000.0, **values}}


LLAMA3 = rope(
    "llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=256,
)
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=128)
CASES = {
    "llama-2": Case("llama"),
    "llama-3.1": Case("llama", {"tie_word_embeddings": True, **LLAMA3}),
    "llama-with-biases": Case("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-linear": Case("llama", rope("linear", factor=4.0)),
    "llama-yarn": Case("llama", YARN),
    "mistral": Case("mistral", {"head_dim": 32, "sliding_window": None}),
    "mistral-with-window": Case("mistral", {"sliding_window": ROWS}),
    "smollm3": Case("smollm3", {"num_hidden_layers": 5, "no_rope_layers": [1, 1, 1, 0, 1]}),
    "smollm3-yarn": Case("smollm3", {"num_hidden_layers": 4, **YARN}),
    "qwen2": Case("qwen2"),
    "qwen2-tied-yarn": Case("qwen2", {"tie_word_embeddings": True, **YARN}),
    "qwen2-yarn-attention": Case(
        "qwen2", rope("yarn", factor=4.0, original_max_position_embeddings=128, attention_factor=0.8)
    ),
    "qwen3": Case("qwen3", {"head_dim": 32}),
    "qwen3-tied-linear": Case(
        "qwen3", {"head_dim": 16, "tie_word_embeddings": True, **rope("linear", factor=2.0)}
    ),
}


def config_of(case: Case, **values: Any) -> Any:
    sizes = {
        "vocab_size": 416,
        "hidden_size": WIDTH,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    return CONFIG_MAPPING[case.model_type](**sizes | dict(case.values) | values)


def random_model(config: Any) -> Any:
    """Build the class of transformers, with biases and norms that are random as well."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.3 if parameter.ndim == 1 else 0.12
            parameter.normal_(1.0 if "norm" in name else 0.0, scale)
    return model


def test_each_known_decoder_is_compared() -> None:
    decoders = set(BY_MODEL_TYPE) - {"qwen2_5_vl_text"}  # never alone: compared with its whole model
    assert {case.model_type for case in CASES.values()} == decoders


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_llama_cpp_computes_the_logits_of_transformers(tmp_path: Path, name: str) -> None:
    model = random_model(config_of(CASES[name]))
    model.save_pretrained(tmp_path / "decoder")
    train_tokenizer().save(str(tmp_path / "decoder" / "tokenizer.json"))
    decoder = read_decoder_folder(tmp_path / "decoder")
    path = tmp_path / "m.gguf"
    write_decoder_gguf(
        path, decoder.tensors, decoder.shape, decoder.tokenizer, file_type="F32", name=name, license="MIT"
    )
    rows = np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype(np.float32)
    expected = model(inputs_embeds=torch.from_numpy(rows)[None]).logits[0].numpy()
    table = model.get_input_embeddings().weight.numpy()
    difference = np.abs(logits_of(path, table, rows) - expected)
    print(f"{name}: max {difference.max():.1e} mean {difference.mean():.1e} of {np.abs(expected).max():.1f}")
    assert np.abs(expected).max() > 3
    assert difference.max() < 1e-4 * np.abs(expected).max()
    quantize_gguf(path, tmp_path / "small.gguf", "Q5_0")
    coarse = logits_of(tmp_path / "small.gguf", table, rows) - expected
    print(f"{name} in Q5_0: root mean square {coarse.std() / expected.std():.3f} of the logits'")
    assert coarse.std() < 0.15 * expected.std()


def logits_of(path: Path, table: np.ndarray, rows: np.ndarray) -> np.ndarray:
    with LanguageModel(path, table, context_tokens=ROWS, f32_kv=True) as model:
        return model.logits(rows, all_positions=True)


# -- refusals ---------------------------------------------------------------------------------------------

WINDOW = "each token attends to the last 24, a limit that llama.cpp does not have: the file's context length"
REFUSED = {
    "another family": (
        Case("gemma2"),
        "config.model_type: 'gemma2' has no exporter yet; known decoders: llama,",
    ),
    "experts": (Case("mixtral"), "'mixtral' has no exporter yet"),
    "another activation": (Case("llama", {"hidden_act": "gelu"}), "hidden_act is 'gelu', expected 'silu'"),
    "biases that are not read": (
        Case("qwen3", {"attention_bias": True}),
        "biases of self_attn.o_proj are nothing that llama.cpp reads for qwen3",
    ),
    "other layers without angles": (
        Case("smollm3", {"num_hidden_layers": 4, "no_rope_layers": [1, 0, 1, 0]}),
        r"no_rope_layers is \[1, 0, 1, 0\], expected 0 for each 4th layer",
    ),
    "angles in all layers": (
        Case("smollm3", {"num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 1]}),
        "no_rope_layers is",
    ),
    "heads beside the width": (
        Case("qwen2", {"head_dim": 32}),
        "4 heads of 32 are 128 wide, expected hidden_size 64 for qwen2",
    ),
    "half a head rotated": (
        Case("llama", rope("default", partial_rotary_factor=0.5)),
        "partial_rotary_factor is 0.5, expected 1.0",
    ),
    "context by its length": (Case("llama", rope("dynamic", factor=2.0)), "rope_type 'dynamic' of a llama"),
    "Llama 3's stretching elsewhere": (Case("qwen3", LLAMA3), "rope_type 'llama3' of a qwen3"),
    "another YaRN": (
        Case("qwen2", rope("yarn", factor=4.0, original_max_position_embeddings=128, beta_fast=16)),
        "beta_fast is 16, expected 32, which llama.cpp has in its code",
    ),
    "M-RoPE without sections": (Case("qwen2_5_vl_text"), "mrope_section is .., expected three numbers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_decoder_that_llama_cpp_computes_otherwise_is_refused(name: str) -> None:
    case, words = REFUSED[name]
    with pytest.raises(ValueError, match=words):
        DecoderShape.from_config(config_of(case))


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_vl_moe"])
def test_deepstack_is_refused_by_name(family: str) -> None:
    config = CONFIG_MAPPING[family]().get_text_config()
    with pytest.raises(
        ValueError,
        match=f"'{family}_text' adds features of several vision layers to its first layers .DeepStack.",
    ):
        DecoderShape.from_config(config)


def test_the_runtime_refuses_a_file_with_deepstack(tmp_path: Path) -> None:
    """Make a Qwen3-VL of a Qwen3: a row holds one more embedding per layer that takes vision features."""
    model = random_model(config_of(Case("qwen3", {"head_dim": 16})))
    path, changed = tmp_path / "m.gguf", tmp_path / "vl.gguf"
    tensors = {name.removeprefix("model."): value.numpy() for name, value in model.state_dict().items()}
    shape = DecoderShape.from_config(model.config)
    tokenizer = GgufTokenizer(train_tokenizer().to_str(), SPECIAL)
    write_decoder_gguf(path, tensors, shape, tokenizer, file_type="F32", name="vl", license="MIT")
    reader, writer = gguf.GGUFReader(path), gguf.GGUFWriter(changed, "qwen3vl")
    for name, value in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kind, inner = value.types[0], value.types[-1] if len(value.types) > 1 else None
            writer.add_key_value(name.replace("qwen3.", "qwen3vl."), value.contents(), kind, inner)
    writer.add_num_deepstack_layers(1)
    writer.add_rope_dimension_sections([4, 2, 2, 0])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    table = tensors["embed_tokens.weight"]
    with pytest.raises(
        LanguageModelError, match=r"vl\.gguf takes rows that are 128 wide for embeddings of 64"
    ):
        LanguageModel(changed, table, context_tokens=8)


@pytest.mark.parametrize(
    "case",
    [
        Case("mistral", {"sliding_window": 24}),
        Case("qwen2", {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}),
    ],
    ids=["mistral", "qwen2"],
)
def test_a_window_of_attention_limits_the_context(case: Case) -> None:
    shape = DecoderShape.from_config(config_of(case))
    assert shape.context_length == 24
    assert shape.remarks[0].startswith(WINDOW)
    unlimited = DecoderShape.from_config(config_of(Case("qwen2", {"sliding_window": 24})))
    assert (unlimited.context_length, unlimited.remarks) == (512, ())


def test_every_wrong_tensor_of_a_family_is_named(tmp_path: Path) -> None:
    qwen2 = DecoderShape.from_config(config_of(CASES["qwen2"]))
    tensors = {name: np.ones(size, np.float32) for name, size in expected_shapes(qwen2).items()}
    del tensors["layers.1.self_attn.k_proj.bias"]
    tensors["layers.0.self_attn.q_norm.weight"] = np.ones(16, np.float32)
    with pytest.raises(ValueError, match="tensors: ") as error:
        check_tensors(tensors, qwen2)
    assert r"layers.1.self_attn.k_proj.bias: expected shape (32,), is missing" in str(error.value)
    assert "layers.0.self_attn.q_norm.weight: not a tensor of a qwen2 decoder" in str(error.value)
