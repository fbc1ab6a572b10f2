"""The runtime's language model against plain loops on llama.cpp.

Measured are generation, a new window after a kept prefix, and the scoring of several answers in one batch.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.figures import Figure, Section, share_of, times_as_fast
from benchmarks.llama_peers import (
    CONTEXT_TOKENS,
    Completion,
    Floats,
    RawLlama,
    smollm2_135m,
    token_embeddings,
)
from benchmarks.material import tiny_bundle
from benchmarks.timing import Times, interleaved
from runtime.engines.language_model import LanguageModel
from runtime.machine.facts import usable_cpus
from vaemotion.contract.bundle import component_path, read_manifest

PROMPT_TOKENS, NEW_TOKENS = 64, 48
PREFIX_ROWS, WINDOW_ROWS = 160, 48  # embeddings of the kept prefix, and of a new window after it
QUESTION_TOKENS, OPTIONS, OPTION_TOKENS = 16, 7, 3
# The contexts for generation are opened so many times: where their memory lies changes times by some 4 %.
OPENINGS = 5
# Limit for the root-mean-square difference over the standard deviation. Random layers amplify F16 rounding;
# results of different work differ by 1.4.
ALIKE = 0.15
OURS, RAW, COMPLETION = "LanguageModel.generate", "raw llama_decode", "create_completion"
BRANCHED, IN_TURN, WHOLE = "branched", "raw llama_decode in turn", "raw llama_decode, nothing kept"
METHOD = f"""`135M`: SmolLM2-135M's true shapes (30 layers of 576, 49,152 tokens, tied) with random weights in
Q8_0, written by `export.gguf`; `tiny`: the shipped bundle's language model. All contenders have the same
file, {{threads}} threads, a context of {CONTEXT_TOKENS} tokens, F16 keys and values, and on a processor no
flash attention. CPU time is that of all threads, spinning included.

*Generation* is greedy, {PROMPT_TOKENS} token ids in and {NEW_TOKENS} out, in contexts opened {OPENINGS}
times; the tokens are asserted to be equal. The raw loop refills one `llama_batch` and calls the greedy
sampler in C, without checks. Ours also refuses logits that are not finite, can be aborted at any moment and
restores the cache. `create_completion`, with its cache cleared, also decodes the tokens to text.

*A new window*: {WINDOW_ROWS} embeddings after a prefix of {PREFIX_ROWS} in the cache, against all of them in
one batch.

*Answers* follow that prefix and a question of {QUESTION_TOKENS} tokens. Ours branches the cache and evaluates
all answers in one batch. One peer has the same in its cache and evaluates the answers in turn; the other
keeps nothing. No contender evaluates an answer's last token. Where all before the answers is kept, the
question's last token is still evaluated, because the scores begin there. Logits and scores may differ by
{ALIKE} of their spread, since another batch size rounds differently. The number of tokens that ours evaluates
is asserted."""


@dataclass(frozen=True)
class Contest:
    """One model, opened by the runtime and by the raw loop. ``size``: "135M" or "tiny"."""

    size: str
    path: Path
    threads: int
    ours: LanguageModel
    raw: RawLlama

    def ids(self, n: int, seed: int) -> list[int]:
        """Return ``n`` seeded token ids."""
        return np.random.default_rng(seed).integers(5, self.raw.vocab_size, n).tolist()

    def timed(
        self, what: str, calls: Mapping[str, Callable[[], object]], repetitions: int
    ) -> dict[str, Times]:
        """Time calls and print each repetition."""
        label = f"{what}, {self.size}"
        return interleaved(calls, repetitions, log=lambda line: print(f"{label}: {line}", flush=True))


@contextlib.contextmanager
def opened(size: str, path: Path, folder: Path, threads: int) -> Generator[Contest]:
    """Open a GGUF file in the runtime's language model and in the raw loop."""
    table = token_embeddings(path, folder / f"{path.stem}-embeddings.npy")
    with (
        LanguageModel(path, table, context_tokens=CONTEXT_TOKENS, threads=threads) as ours,
        RawLlama(path, threads) as raw,
    ):
        yield Contest(size, path, threads, ours, raw)


def generation(size: str, path: Path, folder: Path, threads: int, repetitions: int) -> list[Figure]:
    """Measure generation, ``repetitions`` times in each opening of the contexts."""
    times: dict[str, Times] = {}
    for _ in range(OPENINGS):
        with opened(size, path, folder, threads) as contest, contextlib.ExitStack() as stack:
            calls = generators(contest, stack)
            for name, found in contest.timed("generation", calls, repetitions).items():
                times.setdefault(name, Times()).wall_ms.extend(found.wall_ms)
                times[name].cpu_ms.extend(found.cpu_ms)
    figures = [share_of(f"generation, {size}: CPU time", times, OURS, RAW, at_most=1.03, cpu=True)]
    if COMPLETION in times:
        figures.append(times_as_fast(f"generation, {size}: wall time", times, OURS, COMPLETION))
    return [*figures, *token_rates(size, times["the prompt alone"], times[OURS])]


def generators(contest: Contest, stack: contextlib.ExitStack) -> dict[str, Callable[[], object]]:
    """Return the calls that generate.

    ``create_completion`` is measured at 135M only: with the tiny model it stops at the end of the answer.
    """
    calls = loops(contest)
    if contest.size != "tiny":
        prompt = contest.ids(PROMPT_TOKENS, 1)
        expected = contest.raw.generate(prompt, NEW_TOKENS)
        completion = stack.enter_context(contextlib.closing(Completion(contest.path, contest.threads)))
        check_equal("create_completion's tokens", completion.generate(prompt, NEW_TOKENS), expected[:-1])
        calls[COMPLETION] = lambda: completion.generate(prompt, NEW_TOKENS)
    return calls


def loops(contest: Contest) -> dict[str, Callable[[], object]]:
    """Return the calls of both loops, whose tokens are asserted to be equal, and of the prompt alone."""
    ours, raw, prompt = contest.ours, contest.raw, contest.ids(PROMPT_TOKENS, 1)

    def generate(count: int = NEW_TOKENS) -> list[int]:
        return list(ours.generate(ours.embed(prompt), max_tokens=count, stop_ids=()).token_ids)

    expected, before = raw.generate(prompt, NEW_TOKENS), ours.evaluated_tokens
    check_equal("our tokens", generate(), expected)
    check_equal("tokens evaluated", ours.evaluated_tokens - before, PROMPT_TOKENS + NEW_TOKENS - 1)
    return {
        OURS: generate,
        RAW: lambda: raw.generate(prompt, NEW_TOKENS),
        "the prompt alone": lambda: generate(1),
    }


def token_rates(size: str, prompt: Times, whole: Times) -> list[Figure]:
    """Compute the runtime's tokens per second, without a target."""
    pairs = list(zip(prompt.wall_ms, whole.wall_ms, strict=True))
    rates = {
        f"prompt of {PROMPT_TOKENS}": [1e3 * PROMPT_TOKENS / short for short, _ in pairs],
        "generated": [1e3 * (NEW_TOKENS - 1) / (long - short) for short, long in pairs],
    }
    return [
        Figure(f"{name}, {size}", statistics.median(values), min(values), max(values), "tokens/s", OURS)
        for name, values in rates.items()
    ]


def windows(contest: Contest, repetitions: int) -> list[Figure]:
    """Measure new windows after a kept prefix; each call has another window."""
    ours, raw = contest.ours, contest.raw
    prefix = ours.embed(contest.ids(PREFIX_ROWS, 2))
    tails = [ours.embed(contest.ids(WINDOW_ROWS, seed)) for seed in range(3, 7)]
    wholes = [np.concatenate([prefix, tail]) for tail in tails]
    turn, turn_whole = itertools.cycle(tails), itertools.cycle(wholes)

    def kept(tail: Floats) -> Floats:
        ours.set_prefix(prefix)
        return ours.logits(tail)

    kept(tails[0])  # evaluates the prefix
    for tail, whole in zip(tails, wholes, strict=True):
        before = ours.evaluated_tokens
        check_alike("logits of a window", kept(tail)[0], raw.last_logits(whole))
        check_equal("rows evaluated", ours.evaluated_tokens - before, WINDOW_ROWS)
        check_equal("rows evaluated by the peer", raw.end(), PREFIX_ROWS + WINDOW_ROWS)
    calls = {
        "prefix kept": lambda: kept(next(turn)),
        "raw llama_decode of all": lambda: raw.last_logits(next(turn_whole)),
    }
    times = contest.timed("window", calls, repetitions)
    what = f"a new window, {contest.size}: {WINDOW_ROWS} of {PREFIX_ROWS + WINDOW_ROWS} rows"
    return [share_of(what, times, "prefix kept", "raw llama_decode of all", at_most=0.35)]


def choices(contest: Contest, question_tokens: int, repetitions: int) -> list[Figure]:
    """Measure the scoring of several answers.

    Before the timing starts, both caches hold the prefix and the question without its last
    ``question_tokens``.
    """
    ours, raw = contest.ours, contest.raw
    before = [*contest.ids(PREFIX_ROWS, 2), *contest.ids(QUESTION_TOKENS, 7)]
    kept, question = before[:-question_tokens], before[-question_tokens:]
    options = [contest.ids(OPTION_TOKENS, seed) for seed in range(8, 8 + OPTIONS)]
    ours.set_prefix(ours.embed(kept))
    raw.keep(kept)
    counted = ours.evaluated_tokens
    scores = ours.score(ours.embed(question), options)
    evaluated = question_tokens + OPTIONS * (OPTION_TOKENS - 1)
    check_equal("tokens evaluated", ours.evaluated_tokens - counted, evaluated)
    check_alike("scores in turn", scores, raw.score_in_turn(question, options))
    calls: dict[str, Callable[[], object]] = {
        BRANCHED: lambda: ours.score(ours.embed(question), options),
        IN_TURN: lambda: raw.score_in_turn(question, options),
    }
    what = f"{OPTIONS} answers of {OPTION_TOKENS} tokens, {contest.size}"
    if question_tokens == 1:
        times = contest.timed("choices", calls, repetitions)
        return [share_of(f"{what}: all before them kept", times, BRANCHED, IN_TURN, at_most=0.5)]
    with RawLlama(contest.path, contest.threads) as without_cache:
        calls[WHOLE] = lambda: without_cache.score_whole(before, options)
        check_alike("scores with nothing kept", scores, without_cache.score_whole(before, options))
        times = contest.timed("choices", calls, repetitions)
    return [
        share_of(f"{what}: the question of {question_tokens} evaluated, too", times, BRANCHED, IN_TURN),
        share_of(f"{what}: nothing kept by the peer", times, BRANCHED, WHOLE, at_most=0.5),
    ]


def check_equal(what: str, got: object, expected: object) -> None:
    """Raise RuntimeError if two values differ."""
    if got != expected:
        raise RuntimeError(f"{what}: expected {expected}, got {got}")


def check_alike(what: str, got: npt.ArrayLike, expected: npt.ArrayLike) -> None:
    """Raise RuntimeError if arrays differ by more than ``ALIKE`` of the expected values' spread."""
    wanted = np.asarray(expected, np.float64)
    gap = float(np.sqrt(np.mean((np.asarray(got) - wanted) ** 2)) / wanted.std())
    print(f"{what}: they differ by {gap:.1e} of their spread", flush=True)
    if not gap <= ALIKE:
        raise RuntimeError(f"{what}: they differ by {gap:.1e} of their spread, more than {ALIKE}")


def measure(folder: Path, full: bool) -> Section:
    """Measure the section; ``full``: with twice the repetitions."""
    threads, factor = usable_cpus(), 2 if full else 1
    bundle = tiny_bundle(folder)
    manifest = read_manifest(bundle)
    tiny = component_path(bundle, manifest.component("language_model"))  # the file that a run opens
    large = smollm2_135m(folder, component_path(bundle, manifest.component("tokenizer")))
    section = Section("Language model", METHOD.format(threads=threads))
    section.figures += generation("135M", large, folder, threads, 3 * factor)
    section.figures += generation("tiny", tiny, folder, threads, 15 * factor)
    with opened("135M", large, folder, threads) as contest:
        section.figures += windows(contest, 7 * factor)
        section.figures += choices(contest, 1, 7 * factor)
        section.figures += choices(contest, QUESTION_TOKENS, 5 * factor)
    return section
