"""Loss of a quantized language model: compared with scipy, and measured through llama.cpp."""

from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax, rel_entr

from export.gguf.quality import GgufJudge, kl_and_top1
from export.gguf.quantise import quantize_gguf
from tests.llama_fixture import make_tiny_llama


def test_kl_and_top1_are_scipys() -> None:
    generator = np.random.default_rng(0)
    reference = generator.normal(size=(150, 40)).astype(np.float32) * 4
    logits = reference + generator.normal(size=reference.shape).astype(np.float32) * 0.5
    p, q = (np.exp(log_softmax(x.astype(np.float64), axis=1)) for x in (reference, logits))
    expected = rel_entr(p, q).sum(axis=1)  # (n,), reference first
    report = kl_and_top1(reference, logits)
    assert report.mean_kl_nats == pytest.approx(expected.mean(), rel=1e-9)
    assert report.p99_kl_nats == pytest.approx(np.quantile(expected, 0.99), rel=1e-9)
    assert report.max_kl_nats == pytest.approx(expected.max(), rel=1e-9)
    assert report.same_top1_share == (p.argmax(1) == q.argmax(1)).mean()
    assert report.positions == 150
    assert kl_and_top1(reference, reference + 1000).mean_kl_nats == pytest.approx(0, abs=1e-6)


def test_a_confident_miss_counts_and_does_not_overflow() -> None:
    reference, logits = np.array([[90.0, -90.0]]), np.array([[-400.0, 400.0]])
    report = kl_and_top1(reference, logits)
    assert report.max_kl_nats == pytest.approx(800)
    assert report.same_top1_share == 0


def test_logits_of_other_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="two equal shapes"):
        kl_and_top1(np.zeros((3, 5)), np.zeros((4, 5)))


def test_each_smaller_type_loses_more_and_the_prefix_does_not_count(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="needs the extra `llm`")
    tiny = make_tiny_llama()
    tiny.write(tmp_path / "F32.gguf")
    for file_type in ("F16", "Q8_0"):
        tiny.write(tmp_path / f"{file_type}.gguf", file_type)
    for file_type in ("Q5_0", "Q4_K_M"):
        quantize_gguf(tmp_path / "F32.gguf", tmp_path / f"{file_type}.gguf", file_type)
    generator = np.random.default_rng(1)
    prefix = generator.normal(size=(6, 256)).astype(np.float32)
    prompts = [
        np.concatenate([prefix, generator.normal(size=(n, 256)).astype(np.float32)]) for n in (20, 31, 40)
    ]
    judge = GgufJudge(tmp_path / "F32.gguf", tiny.token_embeddings, prompts, uncounted_rows=6)
    means = []
    for file_type in ("F32", "F16", "Q8_0", "Q5_0", "Q4_K_M"):
        report = judge(tmp_path / f"{file_type}.gguf")
        print(f"{file_type}: {report.sentence()}")
        assert report.positions == 91
        means.append(report.mean_kl_nats)
    assert means[0] == 0
    assert means == sorted(means)
    assert means[1] < 1e-6 < means[2] < means[3] / 3  # Q8_0 has eight times the levels of Q5_0


def test_a_prompt_without_anything_to_compare_is_refused(tmp_path: Path) -> None:
    rows = np.ones((4, 256), np.float32)
    for prompts, uncounted in (([], 0), ([rows], 4), ([rows, rows], [0, 4])):
        with pytest.raises(ValueError, match="longer than its uncounted rows"):
            GgufJudge(tmp_path / "a.gguf", rows, prompts, uncounted_rows=uncounted)
