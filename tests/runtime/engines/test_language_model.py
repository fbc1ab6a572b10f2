"""llama.cpp on the device against torch: logits, scores, generation, and everything that can go wrong."""

import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from tests.llama_fixture import TinyLlama, make_tiny_llama

pytest.importorskip("llama_cpp", reason="needs the extra `llm`")

from runtime.engines.language_model import Generation, LanguageModel, LanguageModelAborted, LanguageModelError
from runtime.engines.llama import backend

OPTIONS = [[17], [30, 31], [40, 41, 42], [30, 99, 100, 101], [17, 5], [60, 61], [70, 71, 72]]


@pytest.fixture(scope="module", params=["tied", "untied"])
def tiny(request: pytest.FixtureRequest) -> TinyLlama:
    return make_tiny_llama(tied=request.param == "tied")


@pytest.fixture(scope="module")
def untied() -> TinyLlama:
    return make_tiny_llama(tied=False)


@pytest.fixture(scope="module")
def path(untied: TinyLlama, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "untied-F32.gguf"
    untied.write(path)
    return path


@pytest.fixture
def model(untied: TinyLlama, path: Path) -> Iterator[LanguageModel]:
    with LanguageModel(path, untied.token_embeddings, f32_kv=True, threads=1, batch_tokens=64) as model:
        yield model


def embeddings(n: int, seed: int = 0, width: int = 256) -> np.ndarray:
    """Draw (n, width) float32 that belong to no token, as visual and audio tokens do."""
    return np.random.default_rng(seed).normal(0, 0.05, (n, width)).astype(np.float32)


# -- parity ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file_type", "f32_kv", "limit", "same_argmax"),
    [
        ("F32", True, 5e-4, 1.0),
        ("F32", False, 0.03, 0.95),
        ("F16", False, 0.08, 0.95),
        ("Q8_0", False, 0.4, 0.8),
    ],
)
def test_logits_match_torch(
    tmp_path: Path, tiny: TinyLlama, file_type: str, f32_kv: bool, limit: float, same_argmax: float
) -> None:
    tiny.write(tmp_path / "m.gguf", file_type)
    rows = np.concatenate([embeddings(50), tiny.token_embeddings[10:30], embeddings(10, seed=1)])
    expected = tiny.logits(rows)
    with LanguageModel(
        tmp_path / "m.gguf", tiny.token_embeddings, f32_kv=f32_kv, threads=1, batch_tokens=32
    ) as model:
        logits = model.logits(rows, all_positions=True)
        last = model.logits(rows)
    difference = np.abs(logits - expected)
    agreement = float((logits.argmax(1) == expected.argmax(1)).mean())
    kind = f"{file_type} f32_kv={f32_kv} tied={tiny.shape.tied}"
    print(f"{kind}: max {difference.max():.2e} mean {difference.mean():.2e} same argmax {agreement:.3f}")
    assert logits.shape == (80, tiny.shape.vocab_size)
    assert difference.max() <= limit
    assert agreement >= same_argmax
    np.testing.assert_allclose(last, logits[-1:], atol=1e-5)


def test_embed_looks_up_float16_memory_maps(tmp_path: Path, untied: TinyLlama, path: Path) -> None:
    np.save(tmp_path / "embeddings.npy", untied.token_embeddings.astype(np.float16))
    table = np.load(tmp_path / "embeddings.npy", mmap_mode="r")
    with LanguageModel(path, table, threads=1) as model:
        rows = model.embed([3, 3, 415])
        assert rows.dtype == np.float32
        np.testing.assert_allclose(rows, untied.token_embeddings[[3, 3, 415]], atol=1e-3)
        generated = model.generate(rows, max_tokens=8, stop_ids=[])
        with pytest.raises(LanguageModelError, match="token_ids: expected 0 to 415, got 2 to 416"):
            model.embed([2, 416])
    with LanguageModel(path, table.astype(np.float32), threads=1) as model:
        assert model.generate(rows, max_tokens=8, stop_ids=[]) == generated


def test_prefix_is_evaluated_once(model: LanguageModel, untied: TinyLlama) -> None:
    prefix, tail = embeddings(100), embeddings(20, seed=1)
    whole = model.logits(np.concatenate([prefix, tail]), all_positions=True)[100:]
    model.evaluated_tokens = 0
    model.set_prefix(prefix)
    model.set_prefix(prefix.copy())
    assert model.evaluated_tokens == 100
    first = model.logits(tail, all_positions=True)
    second = model.logits(tail, all_positions=True)
    assert model.evaluated_tokens == 140
    np.testing.assert_array_equal(first, second)
    difference = np.abs(first - whole)
    print(f"prefix kept against evaluated again: max {difference.max():.2e} mean {difference.mean():.2e}")
    assert difference.max() < 1e-5

    changed = prefix.copy()
    changed[90:] += 0.01
    model.set_prefix(changed)
    assert model.evaluated_tokens == 150  # only the rows that differ
    expected = untied.logits(np.concatenate([changed, tail]))[-1:]
    np.testing.assert_allclose(model.logits(tail), expected, atol=5e-4)
    model.set_prefix(prefix[:0])
    np.testing.assert_allclose(model.logits(tail), untied.logits(tail)[-1:], atol=5e-4)


def torch_scores(tiny: TinyLlama, rows: np.ndarray, options: list[list[int]]) -> np.ndarray:
    """Compute each option's mean token log-probability, one whole sequence at a time."""
    scores = []
    for option in options:
        whole = np.concatenate([rows, tiny.token_embeddings[option]])
        log_probabilities = torch.log_softmax(torch.from_numpy(tiny.logits(whole)).double(), dim=-1)
        at = range(len(rows) - 1, len(whole) - 1)
        scores.append(
            np.mean([log_probabilities[i, token].item() for i, token in zip(at, option, strict=True)])
        )
    return np.array(scores)


@pytest.mark.parametrize("max_branches", [1, 3, 255])
def test_score_by_branching_equals_torch(untied: TinyLlama, path: Path, max_branches: int) -> None:
    prefix, prompt = embeddings(30), embeddings(12, seed=2)
    expected = torch_scores(untied, np.concatenate([prefix, prompt]), OPTIONS)
    with LanguageModel(
        path, untied.token_embeddings, f32_kv=True, threads=1, max_branches=max_branches
    ) as model:
        model.set_prefix(prefix)
        scores = model.score(prompt, OPTIONS)
        again = model.score(prompt, OPTIONS)
        assert model.evaluated_tokens == 30 + 2 * (12 + sum(len(option) - 1 for option in OPTIONS))
        np.testing.assert_allclose(
            model.logits(prompt), untied.logits(np.concatenate([prefix, prompt]))[-1:], atol=5e-4
        )
    difference = np.abs(scores - expected)
    print(f"score, {max_branches} branches: max {difference.max():.2e} mean {difference.mean():.2e}")
    assert difference.max() < 1e-3
    np.testing.assert_array_equal(scores, again)


def test_score_splits_rounds_by_batch_and_context(untied: TinyLlama, path: Path) -> None:
    prompt = embeddings(10)
    options = [list(range(20, 20 + n)) for n in (6, 1, 9, 9, 4, 8)]
    with LanguageModel(
        path, untied.token_embeddings, f32_kv=True, threads=1, context_tokens=19, batch_tokens=8
    ) as model:
        np.testing.assert_allclose(
            model.score(prompt, options), torch_scores(untied, prompt, options), atol=1e-3
        )
        with pytest.raises(LanguageModelError, match=r"options\[0\]: expected at most 9 tokens, got 10"):
            model.score(prompt, [list(range(10))])
        with pytest.raises(LanguageModelError, match=r"holds 19 tokens, but .* 10 of options\[1\] need 20"):
            model.score(prompt, [[1], list(range(11))])


# -- generation ------------------------------------------------------------------------------------------


def torch_greedy(tiny: TinyLlama, rows: np.ndarray, n: int) -> list[int]:
    tokens: list[int] = []
    for _ in range(n):
        tokens.append(int(tiny.logits(rows)[-1].argmax()))
        rows = np.concatenate([rows, tiny.token_embeddings[tokens[-1:]]])
    return tokens


def test_greedy_generation_equals_torch_and_stops(model: LanguageModel, untied: TinyLlama) -> None:
    prefix, prompt = embeddings(30), embeddings(5, seed=3)
    expected = torch_greedy(untied, np.concatenate([prefix, prompt]), 24)
    model.set_prefix(prefix)
    result = model.generate(prompt, max_tokens=24, stop_ids=[])
    assert result == Generation(tuple(expected), complete=False, aborted=False)
    stop = next(token for token in expected[3:] if token not in expected[:3])
    result = model.generate(prompt, max_tokens=24, stop_ids=[stop, 2])
    assert result == Generation(tuple(expected[: expected.index(stop)]), complete=True, aborted=False)


def penalties(tokens: list[int], window: int) -> dict[int, float]:
    """Return what is taken off each token's logit: 0.8 * 1.75^(n - 2) where it would repeat n >= 2 tokens."""
    tokens, found = tokens[-window:], {}
    for end in range(1, len(tokens)):
        same = 0
        while same < end and tokens[end - 1 - same] == tokens[-1 - same]:
            same += 1
        if same >= 2:
            token = tokens[end]
            found[token] = max(found.get(token, 0.0), 0.8 * 1.75 ** (same - 2))
    return found


@pytest.mark.parametrize("window", [12, 60])
def test_guarded_generation_is_greedy_behind_a_penalty_on_repeated_phrases(
    model: LanguageModel, untied: TinyLlama, window: int
) -> None:
    prompt = embeddings(5)
    rows, expected = prompt, []
    for _ in range(60):
        logits = untied.logits(rows)[-1].astype(np.float64)
        for token, penalty in penalties(expected, window).items():
            logits[token] -= penalty
        expected.append(int(logits.argmax()))
        rows = np.concatenate([rows, untied.token_embeddings[expected[-1:]]])
    guarded = model.generate(prompt, max_tokens=60, stop_ids=[], repetition_tokens=window)
    assert list(guarded.token_ids) == expected
    plain = model.generate(prompt, max_tokens=60, stop_ids=[]).token_ids
    assert most_repeated(plain) > most_repeated(guarded.token_ids)


def most_repeated(tokens: tuple[int, ...]) -> int:
    """Return how often the most frequent four tokens in a row come."""
    return max(Counter(zip(*(tokens[k:] for k in range(4)), strict=False)).values())


def test_the_caller_may_find_that_it_is_enough(model: LanguageModel) -> None:
    whole = model.generate(embeddings(5), max_tokens=24, stop_ids=[]).token_ids
    seen: list[tuple[int, ...]] = []

    def is_enough(tokens: Sequence[int]) -> bool:
        seen.append(tuple(tokens))
        return len(tokens) == 7

    result = model.generate(embeddings(5), max_tokens=24, stop_ids=[], is_enough=is_enough)
    assert result == Generation(whole[:7], complete=False, aborted=False)
    assert seen == [whole[: count + 1] for count in range(7)]


def test_the_room_for_an_answer_is_what_the_context_holds(untied: TinyLlama, path: Path) -> None:
    with LanguageModel(path, untied.token_embeddings, context_tokens=40) as model:
        model.set_prefix(embeddings(20))
        for rows, room in ((5, 16), (20, 1), (21, 0), (300, 0)):
            assert model.room_tokens(rows) == room
        assert len(model.generate(embeddings(5), max_tokens=16, stop_ids=[]).token_ids) == 16
        with pytest.raises(LanguageModelError):
            model.generate(embeddings(5), max_tokens=17, stop_ids=[])


def test_sampling_is_reproducible_by_seed(model: LanguageModel) -> None:
    def sample(seed: int) -> Generation:
        return model.generate(
            embeddings(5), max_tokens=16, stop_ids=[], temperature=1.5, top_p=0.99, seed=seed
        )

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)
    for bad in ({"temperature": -1.0}, {"top_p": 0.0}, {"seed": 2**32 - 1}):
        with pytest.raises(LanguageModelError, match=f"got temperature.*{next(iter(bad.values()))}"):
            model.generate(embeddings(5), max_tokens=2, stop_ids=[], **bad)


def test_should_abort_is_called_before_every_token(model: LanguageModel) -> None:
    answers = iter([False, False, False, True])
    result = model.generate(embeddings(5), max_tokens=50, stop_ids=[], should_abort=lambda: next(answers))
    assert result.aborted
    assert not result.complete
    assert len(result.token_ids) == 3


# -- aborting --------------------------------------------------------------------------------------------


class Aborter:
    """A thread that aborts again and again within its block."""

    def __init__(self, model: LanguageModel) -> None:
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.run, args=(model,))

    def run(self, model: LanguageModel) -> None:
        while not self.done.wait(0.002):
            model.abort()

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()


def test_abort_from_another_thread_leaves_the_model_right(untied: TinyLlama, path: Path) -> None:
    prefix, prompt = embeddings(200), embeddings(700, seed=4)
    with LanguageModel(
        path, untied.token_embeddings, f32_kv=True, threads=1, context_tokens=2000, batch_tokens=2000
    ) as model:
        model.set_prefix(prefix)
        expected = model.logits(prompt)
        with Aborter(model):
            result = model.generate(prompt, max_tokens=1000, stop_ids=[])
            with pytest.raises(LanguageModelAborted):
                model.logits(prompt, all_positions=True)
            with pytest.raises(LanguageModelAborted):
                model.score(prompt, OPTIONS)
        assert result.aborted
        np.testing.assert_array_equal(model.logits(prompt), expected)
        assert model.evaluated_tokens < 200 + 2 * 700 + 1000

        with Aborter(model), pytest.raises(LanguageModelAborted):
            model.set_prefix(embeddings(1500, seed=5))
        model.set_prefix(prefix)
        np.testing.assert_array_equal(model.logits(prompt), expected)


# -- what can go wrong -----------------------------------------------------------------------------------


def test_wrong_embeddings_are_refused_before_decoding(model: LanguageModel) -> None:
    rows = embeddings(5)
    rows[3, 7] = np.nan
    for call in (model.logits, model.set_prefix, lambda e: model.generate(e, max_tokens=1, stop_ids=[])):
        with pytest.raises(LanguageModelError, match="NaN or infinity in row 3 of 5"):
            call(rows)
        with pytest.raises(
            LanguageModelError, match=r"expected \(n, 256\), the model's width, got \(5, 128\)"
        ):
            call(embeddings(5, width=128))
    with pytest.raises(LanguageModelError, match="expected at least one row"):
        model.logits(rows[:0])
    with pytest.raises(LanguageModelError, match="options: expected options of at least one token id"):
        model.score(rows[:2], [[1], []])
    assert model.evaluated_tokens == 0


def test_context_overflow_is_refused_before_decoding(model: LanguageModel) -> None:
    with pytest.raises(
        LanguageModelError, match="holds 1024 tokens, but a prefix of 1025 need 1025; ask a shorter"
    ):
        model.set_prefix(embeddings(1025))
    model.set_prefix(embeddings(1000))
    with pytest.raises(LanguageModelError, match=r"1000 of prefix \+ 25 after it need 1025"):
        model.logits(embeddings(25))
    with pytest.raises(LanguageModelError, match=r"\+ 20 of max_tokens need 1025"):
        model.generate(embeddings(5), max_tokens=21, stop_ids=[])
    assert model.evaluated_tokens == 1000
    assert len(model.generate(embeddings(5), max_tokens=20, stop_ids=[]).token_ids) == 20  # just fits


def test_files_that_cannot_be_loaded_are_named(tmp_path: Path, untied: TinyLlama, path: Path) -> None:
    table = untied.token_embeddings
    with pytest.raises(LanguageModelError, match=r"no language model at .*absent\.gguf"):
        LanguageModel(tmp_path / "absent.gguf", table)
    whole = path.read_bytes()
    for n_bytes in (5, 5000, len(whole) // 2, len(whole) - 100):
        (tmp_path / "cut.gguf").write_bytes(whole[:n_bytes])
        with pytest.raises(
            LanguageModelError, match=r"cannot load .*cut\.gguf; check its sha256.*\(.{10,}\)"
        ) as error:
            LanguageModel(tmp_path / "cut.gguf", table)
        print(error.value)


def test_wrong_arguments_are_named(untied: TinyLlama, path: Path) -> None:
    table = untied.token_embeddings
    with pytest.raises(
        LanguageModelError, match=r"token_embeddings: expected \(416, 256\).*got \(400, 256\)"
    ):
        LanguageModel(path, table[:400])
    with pytest.raises(LanguageModelError, match="trained for at most 2048 positions, got 4096"):
        LanguageModel(path, table, context_tokens=4096)
    with pytest.raises(LanguageModelError, match="batch_tokens: expected at least 1, got 0"):
        LanguageModel(path, table, batch_tokens=0)
    with pytest.raises(LanguageModelError, match="max_branches: expected 1 to 255, got 256"):
        LanguageModel(path, table, max_branches=256)


def test_damaged_weights_are_noticed(tmp_path: Path, untied: TinyLlama, path: Path) -> None:
    damaged = tmp_path / "nan.gguf"
    damaged.write_bytes(path.read_bytes())
    reader = gguf.GGUFReader(damaged, "r+")
    next(tensor for tensor in reader.tensors if tensor.name == "blk.0.ffn_up.weight").data[0, 0] = np.nan
    reader.data.flush()
    with LanguageModel(damaged, untied.token_embeddings, threads=1) as model:
        for call in (
            lambda: model.logits(embeddings(3)),
            lambda: model.score(embeddings(3), OPTIONS),
            lambda: model.generate(embeddings(3), max_tokens=2, stop_ids=[]),
        ):
            with pytest.raises(LanguageModelError, match="weights are damaged"):
                call()


def test_a_damaged_head_is_noticed_before_the_first_token(
    tmp_path: Path, untied: TinyLlama, path: Path
) -> None:
    damaged = tmp_path / "nan-head.gguf"
    damaged.write_bytes(path.read_bytes())
    reader = gguf.GGUFReader(damaged, "r+")
    next(tensor for tensor in reader.tensors if tensor.name == "output.weight").data[200, 0] = np.nan
    reader.data.flush()
    with (
        LanguageModel(damaged, untied.token_embeddings, threads=1) as model,
        pytest.raises(LanguageModelError, match="weights are damaged"),
    ):
        model.generate(embeddings(3), max_tokens=2, stop_ids=[])


def test_damage_that_only_a_generated_token_meets_is_noticed(untied: TinyLlama, path: Path) -> None:
    with LanguageModel(path, untied.token_embeddings, threads=1) as model:
        first = model.generate(embeddings(3), max_tokens=1, stop_ids=[]).token_ids[0]
    table = untied.token_embeddings.copy()
    table[first] = np.nan
    with (
        LanguageModel(path, table, threads=1) as model,
        pytest.raises(LanguageModelError, match="weights are damaged"),
    ):
        model.generate(embeddings(3), max_tokens=2, stop_ids=[])


def test_missing_binding_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)  # as in an environment without it
    with pytest.raises(LanguageModelError, match="needs llama-cpp-python; install the extra `llm`"):
        backend.__wrapped__()


def test_closed_model_says_so(untied: TinyLlama, path: Path) -> None:
    model = LanguageModel(path, untied.token_embeddings, threads=1)
    model.close()
    model.close()
    model.abort()
    with pytest.raises(LanguageModelError, match="closed"):
        model.logits(embeddings(3))
