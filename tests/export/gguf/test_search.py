"""Search for the types of a tiny model's matrices: its limits, what fits, and what stays as it was."""

import hashlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from calibration.importance import collect_importance
from export.gguf.quality import GgufJudge
from export.gguf.quantise import quantize_by_plan
from export.gguf.search import FILE_TYPES, MIXED, Search, search_types
from tests.llama_fixture import make_tiny_llama

pytest.importorskip("llama_cpp", reason="needs the extra `llm`")

ALL_BUT_TWO = ("Q6_K", "Q5_K", "Q5_1", "Q4_1", "IQ4_NL", "Q4_0")


class Material:
    """A tiny model whose channels differ in loudness, with what a search needs."""

    def __init__(self, folder: Path, width: int, mlp: int, layers: int) -> None:
        tiny = make_tiny_llama(hidden_size=width, intermediate_size=mlp, layers=layers)
        self.source = folder / "f32.gguf"
        tiny.write(self.source)
        generator = np.random.default_rng(0)
        loudness = np.exp(1.5 * generator.normal(size=width))
        prompts = [(generator.normal(size=(40, width)) * loudness).astype(np.float32) for _ in range(6)]
        found = collect_importance(self.source, prompts[:3])
        self.importance = {name: channels.mean_squares for name, channels in found.items()}
        self.judge = GgufJudge(self.source, tiny.token_embeddings, prompts[3:])
        self.probe = GgufJudge(self.source, tiny.token_embeddings, prompts[:2])


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return Material(tmp_path_factory.mktemp("wide"), 256, 256, 1)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """Make a model of a width that 256 does not divide, with one matrix of rows that 32 does not divide."""
    return Material(tmp_path_factory.mktemp("narrow"), 96, 200, 2)


def test_the_smallest_file_within_the_loss_is_chosen(wide: Material, tmp_path: Path) -> None:
    before = hashlib.sha256(wide.source.read_bytes()).digest()
    limit, said = 2e-4, list[str]()
    result = search_types(
        Search(max_kl_nats=limit), wide.source, wide.importance, wide.judge, probe=wide.probe, say=said.append
    )
    for candidate in result.candidates:
        print(candidate.name, candidate.bytes, candidate.quality.mean_kl_nats)
    assert {c.name for c in result.candidates} == {*FILE_TYPES, MIXED}
    assert result.chosen.quality.mean_kl_nats <= limit
    assert all(c.quality.mean_kl_nats > limit for c in result.candidates if c.bytes < result.chosen.bytes)
    assert result.chosen.name == MIXED  # llama.cpp's own that hold the limit are larger
    front = result.front()
    assert [c.bytes for c in front] == sorted(c.bytes for c in front)
    assert all(a.quality.mean_kl_nats > b.quality.mean_kl_nats for a, b in pairwise(front))
    assert any("IQ4_NL" in line for line in said)

    again = tmp_path / "again.gguf"
    types = quantize_by_plan(wide.source, again, result.chosen.plan, wide.importance)
    assert again.stat().st_size == result.chosen.bytes
    assert wide.judge(again) == result.chosen.quality
    assert types.items() >= result.chosen.plan.items()
    assert hashlib.sha256(wide.source.read_bytes()).digest() == before
    assert [path.name for path in wide.source.parent.iterdir()] == ["f32.gguf"]


def test_the_best_file_of_a_size_is_chosen_and_fits_its_rows(narrow: Material) -> None:
    search = Search(max_bytes=210_000, without=ALL_BUT_TWO[:-2])
    result = search_types(search, narrow.source, narrow.importance, narrow.judge)
    for candidate in result.candidates:
        print(candidate.name, candidate.bytes, candidate.quality.mean_kl_nats)
    assert result.chosen.bytes <= 210_000
    held = [c for c in result.candidates if c.bytes <= 210_000]
    assert result.chosen.quality.mean_kl_nats == min(c.quality.mean_kl_nats for c in held)
    used: set[str] = set()
    for candidate in result.candidates:
        if candidate.name == MIXED:
            assert candidate.plan["blk.0.ffn_down.weight"] == "F16"  # rows of 200
            used |= set(candidate.plan.values())
    assert used <= {"F16", "Q8_0", "Q5_0", "IQ4_NL", "Q4_0"}
    assert "Q5_0" in used
    assert not {c.name for c in result.candidates} & set(search.without)


@pytest.mark.parametrize(
    ("search", "words"),
    [
        (Search(max_bytes=1000, without=ALL_BUT_TWO), r"no file of 0.00 MB; the smallest has 0.2"),
        (
            Search(max_kl_nats=0.0, without=(*ALL_BUT_TWO, "Q5_0")),
            "no file loses at most 0 nats a token; the best, ",
        ),
    ],
)
def test_a_limit_that_no_file_holds_is_refused(narrow: Material, search: Search, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        search_types(search, narrow.source, narrow.importance, narrow.judge)
    assert [path.name for path in narrow.source.parent.iterdir()] == ["f32.gguf"]
