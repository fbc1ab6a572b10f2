"""Small types by llama.cpp: types of the tensors, importance, refusals, and that llama.cpp loads them."""

import resource
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import gguf
import numpy as np
import pytest

from calibration.importance import collect_importance, write_importance
from export.gguf.quality import GgufJudge
from export.gguf.quantise import (
    QUANTIZED_TYPES,
    fallbacks,
    matrix_bytes,
    quantize_by_plan,
    quantize_gguf,
    round_trip,
    stored_tensors,
)
from export.gguf.write import GGUF_TYPES
from runtime.engines.llama import model_parameters
from tests.llama_fixture import TinyLlama, make_tiny_llama

llama_cpp = pytest.importorskip("llama_cpp", reason="needs the extra `llm`")


@pytest.fixture(scope="module")
def tiny() -> TinyLlama:
    return make_tiny_llama()


@pytest.fixture(scope="module")
def source(tiny: TinyLlama, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quantized") / "f32.gguf"
    tiny.write(path)
    return path


def dequantized(path: Path) -> dict[str, np.ndarray]:
    return {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}


def of_matrices(types: dict[str, str]) -> Counter[str]:
    return Counter(kind for name, kind in types.items() if "norm" not in name)


@pytest.mark.parametrize(
    ("file_type", "expected"),
    [
        ("Q8_0", {"Q8_0": 15}),
        ("Q6_K", {"Q6_K": 15}),
        ("Q5_K_M", {"Q5_K": 12, "Q6_K": 3}),
        ("Q5_1", {"Q5_1": 14, "Q6_K": 1}),
        ("Q5_0", {"Q5_0": 14, "Q6_K": 1}),
        ("Q4_K_M", {"Q4_K": 12, "Q6_K": 3}),
        ("Q4_1", {"Q4_1": 14, "Q6_K": 1}),
        ("IQ4_NL", {"IQ4_NL": 14, "Q6_K": 1}),
        ("Q4_0", {"Q4_0": 14, "Q6_K": 1}),
    ],
)
def test_types_are_read_back_and_wide_rows_fit(
    source: Path, tmp_path: Path, file_type: str, expected: dict[str, int]
) -> None:
    target = tmp_path / f"{file_type}.gguf"
    types = quantize_gguf(source, target, file_type)
    stored = stored_tensors(target)
    assert types == {tensor.name: tensor.type for tensor in stored}
    assert of_matrices(types) == expected
    assert types["blk.0.attn_norm.weight"] == "F32"
    assert fallbacks(stored, file_type) == {}
    for tensor in stored:
        if len(tensor.shape) > 1:
            assert tensor.bytes == matrix_bytes(tensor.type, tensor.shape)
    exact, rounded = dequantized(source), dequantized(target)
    for name, values in exact.items():
        assert np.abs(rounded[name] - values).max() <= np.abs(values).max() / 7, name


def test_a_plan_is_followed_for_every_matrix(source: Path, tmp_path: Path) -> None:
    matrices = [tensor for tensor in stored_tensors(source) if len(tensor.shape) > 1]
    kinds = ("Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "IQ4_NL", "Q4_0", "F16", "F32")
    plan = {tensor.name: kinds[i % len(kinds)] for i, tensor in enumerate(matrices)}
    means = {tensor.name: np.linspace(1, 9, tensor.shape[-1], dtype=np.float32) for tensor in matrices}
    types = quantize_by_plan(source, tmp_path / "q.gguf", plan, means)
    assert {name: types[name] for name in plan} == plan
    assert {types[name] for name in types.keys() - plan.keys()} == {"F32"}
    exact, rounded = dequantized(source), dequantized(tmp_path / "q.gguf")
    for name, kind in plan.items():
        if not kind.startswith("F"):
            np.testing.assert_array_equal(round_trip(exact[name], kind, means[name]), rounded[name])


def test_plans_that_cannot_be_followed_are_refused(source: Path, tmp_path: Path) -> None:
    plan = {tensor.name: "Q4_0" for tensor in stored_tensors(source) if len(tensor.shape) > 1}
    narrow = make_tiny_llama(hidden_size=96, intermediate_size=192)
    narrow.write(tmp_path / "narrow.gguf")
    with pytest.raises(ValueError, match=r"blk.0.attn_k.weight is in only one of plan and f32.gguf"):
        quantize_by_plan(source, tmp_path / "q.gguf", {k: v for k, v in plan.items() if ".attn_k" not in k})
    with pytest.raises(ValueError, match=r"blocks of Q4_K do not divide rows of 96 \(blk.0.attn_q.weight\)"):
        quantize_by_plan(
            tmp_path / "narrow.gguf", tmp_path / "q.gguf", plan | {"blk.0.attn_q.weight": "Q4_K"}
        )
    assert [path.name for path in tmp_path.iterdir()] == ["narrow.gguf"]


@pytest.mark.parametrize(("width", "mlp"), [(480, 1280), (96, 192)])
def test_rows_that_256_does_not_divide_fall_back_and_are_named(tmp_path: Path, width: int, mlp: int) -> None:
    """Quantize rows with the remainders of SmolVLM2-500M, which is 960 wide with an MLP of 2560."""
    narrow = make_tiny_llama(hidden_size=width, intermediate_size=mlp, tied=False)
    narrow.write(tmp_path / "f16.gguf", "F16")
    types = quantize_gguf(tmp_path / "f16.gguf", tmp_path / "q.gguf", "Q4_K_M")
    fell_back = fallbacks(stored_tensors(tmp_path / "q.gguf"), "Q4_K_M")
    assert types["blk.0.attn_q.weight"] == fell_back["blk.0.attn_q.weight"] == "Q5_0"
    assert types["output.weight"] == fell_back["output.weight"] == "Q8_0"
    divisible = mlp % 256 == 0
    assert types["blk.0.ffn_down.weight"] == ("Q4_K" if divisible else "Q5_0")
    assert ("blk.0.ffn_down.weight" in fell_back) is not divisible
    types = quantize_gguf(tmp_path / "f16.gguf", tmp_path / "q5.gguf", "Q5_0")
    assert types["blk.0.attn_q.weight"] == "Q5_0"  # rows of 480 and 96 fit; the head was to be Q6_K
    assert fallbacks(stored_tensors(tmp_path / "q5.gguf"), "Q5_0") == {"output.weight": "Q8_0"}


def test_rows_that_32_does_not_divide_stay_f16(tmp_path: Path) -> None:
    narrow = make_tiny_llama(hidden_size=128, intermediate_size=200)
    narrow.write(tmp_path / "f32.gguf")
    for file_type in ("Q5_0", "Q4_K_M", "IQ4_NL"):
        types = quantize_gguf(tmp_path / "f32.gguf", tmp_path / "q.gguf", file_type)
        assert types["blk.0.ffn_down.weight"] == "F16"
        assert fallbacks(stored_tensors(tmp_path / "q.gguf"), file_type)["blk.0.ffn_down.weight"] == "F16"


@pytest.mark.parametrize("file_type", [*GGUF_TYPES, *QUANTIZED_TYPES])
def test_stock_llama_cpp_loads_the_file_and_generates(
    tiny: TinyLlama, source: Path, tmp_path: Path, file_type: str
) -> None:
    path = tmp_path / "m.gguf"
    if file_type in GGUF_TYPES:
        tiny.write(path, file_type)
    else:
        quantize_gguf(source, path, file_type)
    with patch(
        "llama_cpp.llama_cpp.llama_model_default_params", model_parameters
    ):  # stock, but for what crashes
        model = llama_cpp.Llama(model_path=str(path), n_ctx=64, n_threads=1, verbose=False)
    try:
        ids = model.tokenize(b"The painting feels", add_bos=False)
        assert ids == tiny.tokenizer.encode("The painting feels").ids
        answer = model(ids, max_tokens=2, temperature=0.0)
        assert answer["usage"]["completion_tokens"] >= 1
    finally:
        model.close()


@pytest.mark.parametrize("file_type", ["Q5_0", "Q4_K_M", "IQ4_NL"])
def test_importance_protects_the_channels_that_carry_more(
    tiny: TinyLlama, source: Path, tmp_path: Path, file_type: str
) -> None:
    generator = np.random.default_rng(0)
    loudness = np.exp(1.5 * generator.normal(size=256))  # as in trained models, few channels carry most
    prompts = [(generator.normal(size=(40, 256)) * loudness).astype(np.float32) for _ in range(6)]
    importance = collect_importance(source, prompts[:3])
    write_importance(tmp_path / "importance.gguf", importance, "noise with loud channels")
    plain, weighted = tmp_path / "plain.gguf", tmp_path / "weighted.gguf"
    quantize_gguf(source, plain, file_type)
    quantize_gguf(source, weighted, file_type, tmp_path / "importance.gguf")
    assert plain.stat().st_size == weighted.stat().st_size

    exact, of_plain, of_weighted = dequantized(source), dequantized(plain), dequantized(weighted)
    ratios = []
    for name, channels in importance.items():
        error, error_before = (
            ((exact[name] - other[name]) ** 2 @ channels.mean_squares).sum()
            for other in (of_weighted, of_plain)
        )
        ratios.append(error / error_before)
    judge = GgufJudge(source, tiny.token_embeddings, prompts[3:])
    unseen = [judge(path) for path in (plain, weighted)]
    print(f"{file_type}: weighted error ×{np.median(ratios):.2f}", *(report.sentence() for report in unseen))
    assert max(ratios) < 1  # 0.84 to 0.92 measured
    assert np.median(ratios) < 0.7  # 0.18 to 0.42 measured over four seeds
    assert unseen[1].mean_kl_nats < 0.95 * unseen[0].mean_kl_nats  # 0.71 to 0.79 measured


def test_importance_of_another_model_is_refused(source: Path, tmp_path: Path) -> None:
    sizes = {tensor.name: tensor.shape for tensor in stored_tensors(source)}
    good = {name: np.ones(size[-1], np.float32) for name, size in sizes.items()}
    quantize_gguf(source, tmp_path / "good.gguf", "Q4_K_M", good)
    name = "blk.1.ffn_down.weight"
    cases = {
        "has nothing for blk.1.ffn_down": {key: value for key, value in good.items() if key != name},
        "768 input channels, got an array": good | {name: np.ones(7)},
        "negative or not finite": good | {name: np.full(768, np.nan)},
    }
    for words, importance in cases.items():
        with pytest.raises(ValueError, match=words):
            quantize_gguf(source, tmp_path / "q.gguf", "Q4_K_M", importance)
    assert [p.name for p in tmp_path.iterdir()] == ["good.gguf"]


def test_what_cannot_be_quantized_is_refused_in_a_sentence(
    tiny: TinyLlama, source: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"file_type: expected one of Q8_0, Q6_K, .*, got 'Q2_K'"):
        quantize_gguf(source, tmp_path / "q.gguf", "Q2_K")
    with pytest.raises(ValueError, match="no GGUF file at"):
        quantize_gguf(tmp_path / "absent.gguf", tmp_path / "q.gguf", "Q5_0")
    (tmp_path / "short.gguf").write_bytes(source.read_bytes()[:-5000])
    with pytest.raises(ValueError, match=r"short\.gguf is damaged or cut short"):
        quantize_gguf(tmp_path / "short.gguf", tmp_path / "q.gguf", "Q5_0")
    tiny.write(tmp_path / "q8.gguf", "Q8_0")
    with pytest.raises(ValueError, match="is Q8_0 already"):
        quantize_gguf(tmp_path / "q8.gguf", tmp_path / "q.gguf", "Q5_0")
    assert {p.name for p in tmp_path.iterdir()} == {"short.gguf", "q8.gguf"}


def test_a_full_disk_leaves_what_was_there(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "q.gguf"
    target.write_bytes(b"the older file")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(OSError, match="look for space on the disk"):
            quantize_gguf(source, target, "Q4_K_M")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert target.read_bytes() == b"the older file"
    assert [p.name for p in tmp_path.iterdir()] == ["q.gguf"]


def test_threads_change_nothing_and_nothing_is_printed(
    source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for threads in (1, 3):
        quantize_gguf(source, tmp_path / f"{threads}.gguf", "Q4_K_M", threads=threads)
    assert (tmp_path / "1.gguf").read_bytes() == (tmp_path / "3.gguf").read_bytes()
    assert capfd.readouterr() == ("", "")
