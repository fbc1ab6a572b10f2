"""Windows of text, what a file loses on them, and texts that are refused."""

from pathlib import Path

import numpy as np
import pytest

from calibration.importance import collect_importance
from export.gguf.quantise import quantize_gguf
from export.gguf.text import (
    MOST_WINDOWS,
    SHIPPED_TEXT,
    WINDOW_TOKENS,
    TextJudge,
    text_importance,
    text_windows,
    token_rows,
)
from runtime.engines.language_model import LanguageModel
from tests.llama_fixture import TinyLlama, make_tiny_llama
from vaemotion.contract.errors import UsageError

pytest.importorskip("llama_cpp", reason="needs the extra `llm`")


@pytest.fixture(scope="module")
def tiny() -> TinyLlama:
    return make_tiny_llama(hidden_size=96, intermediate_size=160)


@pytest.fixture(scope="module")
def path(tiny: TinyLlama, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "m.gguf"
    tiny.write(path)
    return path


def test_windows_cover_the_shipped_text_and_some_are_held_out(tiny: TinyLlama, path: Path) -> None:
    windows = text_windows(path, SHIPPED_TEXT, 2048)
    ids = tiny.tokenizer.encode(SHIPPED_TEXT.read_text("utf-8")).ids
    found = [*windows.calibration, *windows.held_out]
    assert all(len(window) == WINDOW_TOKENS for window in found)
    assert len(found) == len(ids) // WINDOW_TOKENS
    assert windows.calibration[0] == ids[:WINDOW_TOKENS]
    assert windows.held_out[0] == ids[3 * WINDOW_TOKENS : 4 * WINDOW_TOKENS]
    assert len(found) / 5 < len(windows.held_out) < len(found) / 3


def test_windows_of_a_long_text_are_spread_over_it(path: Path, tmp_path: Path) -> None:
    text = tmp_path / "long.txt"
    text.write_text("\n".join(f"{i} " + "a painting of rain. " * 4 for i in range(3000)))
    windows = text_windows(path, text, 64)
    assert len(windows.calibration) + len(windows.held_out) == MOST_WINDOWS
    assert {len(window) for window in (*windows.calibration, *windows.held_out)} == {64}
    repeated = {tuple(window) for window in windows.calibration} & {tuple(w) for w in windows.held_out}
    assert not repeated


def test_the_judge_compares_what_stock_llama_cpp_computes(
    tiny: TinyLlama, path: Path, tmp_path: Path
) -> None:
    """Compare with logits from embeddings: the judged file's own table is looked up, the reference's too."""
    windows = text_windows(path, SHIPPED_TEXT, 64).held_out[:2]
    judge = TextJudge(path, windows)
    assert judge(path).max_kl_nats < 1e-9
    quantize_gguf(path, tmp_path / "q.gguf", "Q4_0")
    report = judge(tmp_path / "q.gguf")
    assert report.positions == 128
    divergences = []
    for ids in windows:
        rows = token_rows(tmp_path / "q.gguf", ids)
        assert np.abs(rows - tiny.token_embeddings[ids]).max() > 0
        with LanguageModel(
            tmp_path / "q.gguf", tiny.token_embeddings, context_tokens=64, f32_kv=True
        ) as model:
            q = log_softmax(model.logits(rows, all_positions=True))
        p = log_softmax(tiny.logits(tiny.token_embeddings[ids]))
        divergences.append((np.exp(p) * (p - q)).sum(axis=1))
    assert report.mean_kl_nats == pytest.approx(np.mean(divergences), rel=1e-3)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def test_importance_is_that_of_the_texts_embeddings(tiny: TinyLlama, path: Path) -> None:
    windows = text_windows(path, SHIPPED_TEXT, 64).calibration[:2]
    found = text_importance(path, windows)
    expected = collect_importance(path, [tiny.token_embeddings[ids] for ids in windows])
    assert found.keys() == expected.keys()
    for name, channels in found.items():
        np.testing.assert_allclose(channels.mean_squares, expected[name].mean_squares, rtol=1e-5)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"too short", "tokens are too few to weigh and to judge, 1024 are needed"),
        (b"", "0 tokens are too few"),
        (b"\xff\xfe\x00broken", "not a text in UTF-8"),
        (None, "cannot be read"),
    ],
)
def test_what_is_no_text_is_refused(path: Path, tmp_path: Path, content: bytes | None, words: str) -> None:
    text = tmp_path / "text.txt"
    if content is None:
        text.mkdir()
    else:
        text.write_bytes(content)
    with pytest.raises(UsageError, match=words):
        text_windows(path, text, 2048)
