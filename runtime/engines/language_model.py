"""The decoder LLM on the device.

In: embeddings `(n, D)` float32 of text, visual and audio tokens alike. Behind the embeddings of a decoder
that puts pictures in two dimensions stands each row's place (`vaemotion.contract.positions`): `(n, D + 3)`.
Out: logits, log-probabilities of answers, generated token ids. A prefix stays in the KV cache between calls.
Every call drops its own tail again, also after an error, so that between calls the cache holds the prefix and
nothing else.
"""

import contextlib
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from runtime.engines.llama import Floats, LanguageModelAborted, LanguageModelError, LlamaSession
from vaemotion.contract.bundle import Component, Manifest, component_path
from vaemotion.contract.positions import PLACE_COLUMNS, Places, advance_of, positions_of, text_places

__all__ = [
    "NO_LLAMA",
    "AbsentLanguageModel",
    "Generation",
    "LanguageModel",
    "LanguageModelAborted",
    "LanguageModelError",
    "llama_is_installed",
    "load_language_model",
    "open_language_model",
    "read_token_embeddings",
]

NO_LLAMA = "llama.cpp is not installed; install it with `pip install 'vaemotion[llm]'`"


@dataclass(frozen=True)
class Generation:
    """The result of `generate`.

    `token_ids`: without the stop token; `complete`: a stop token came, False after `max_tokens`, an abort or
    what the caller found to be enough.
    """

    token_ids: tuple[int, ...]
    complete: bool
    aborted: bool


class LanguageModel:
    """A GGUF decoder with a prefix in its KV cache.

    One call runs at a time, and others wait; `abort()` may be called by any thread. It is a context manager;
    otherwise call `close()`.
    """

    available = True

    def __init__(
        self,
        path: Path,
        token_embeddings: npt.NDArray[np.floating[Any]],
        *,
        context_tokens: int = 1024,
        batch_tokens: int = 512,
        threads: int = 2,
        max_branches: int = 16,
        f32_kv: bool = False,
    ) -> None:
        """Load a GGUF file.

        `token_embeddings` (vocab, D) float16 or float32, may be memory-mapped. `context_tokens`: size of the
        context for prefix, prompt, and the generated tokens or one round of options; at most the length that
        the model was trained for. `batch_tokens`: tokens that are evaluated at once. `max_branches`: options
        that are scored at once. `f32_kv`: a float32 KV cache without flash attention, slower, for
        verification. Raises LanguageModelError.
        """
        self._lock = threading.Lock()
        self._session = LlamaSession(
            path,
            context_tokens=context_tokens,
            batch_tokens=batch_tokens,
            threads=threads,
            max_branches=max_branches,
            f32_kv=f32_kv,
        )
        self.width = self._session.width
        self._is_placed = self._session.coordinates > 1
        self.row_width = self.width + (PLACE_COLUMNS if self._is_placed else 0)
        self.vocab_size = self._session.vocab_size
        self.context_tokens = context_tokens
        self.max_branches = max_branches
        self.evaluated_tokens = 0  # since loading, without the positions that the KV cache saves
        self._token_embeddings = np.asarray(token_embeddings)  # no copy; a memory map's own indexing is slow
        self._prefix: Floats = np.zeros((0, self.row_width), np.float32)
        self._position = 0  # behind the rows in the cache
        if token_embeddings.shape != (self.vocab_size, self.width):
            self.close()
            raise LanguageModelError(
                f"token_embeddings: expected {(self.vocab_size, self.width)} (vocabulary, width) to match "
                f"{path.name}, got {token_embeddings.shape}; take both files from one bundle"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop a running call, wait for its end, and free model and cache. May be called twice."""
        self._session.abort()
        with self._lock:
            self._session.close()

    def abort(self) -> None:
        """Stop the running call within milliseconds, from any thread. Without a running call it does nothing.

        On the CPU a running decode stops; with GPU offload the call stops between two batches. `generate`
        then returns the tokens so far; every other call raises LanguageModelAborted.
        """
        self._session.abort()

    def embed(self, token_ids: Sequence[int]) -> Floats:
        """Look up the embeddings of token ids: (n,) to (n, D) float32."""
        ids = np.asarray(token_ids, np.int64).reshape(-1)
        if ids.size and not (ids.min() >= 0 and ids.max() < self.vocab_size):
            raise LanguageModelError(
                f"token_ids: expected 0 to {self.vocab_size - 1}, got {ids.min()} to {ids.max()}; "
                "take the tokenizer from the same bundle"
            )
        rows = np.asarray(self._token_embeddings[ids], np.float32)
        return np.concatenate([rows, text_places(len(rows))], axis=1) if self._is_placed else rows

    def set_prefix(self, embeddings: Floats) -> None:
        """Keep (n, D) in the KV cache before everything that follows; n = 0 clears it.

        Only rows from the first difference to the present prefix on are evaluated.
        """
        rows = self._checked("embeddings", embeddings)
        self._check_room(f"a prefix of {len(rows)}", len(rows))
        with self._evaluating():
            kept = self._whole_pictures(rows, _equal_rows(self._prefix, rows))
            self._prefix = self._prefix[:kept]  # what remains if the evaluation fails
            self._drop_tail()
            self._append(rows[len(self._prefix) :], "none")
            self._prefix = rows.copy()

    def logits(self, embeddings: Floats, *, all_positions: bool = False) -> Floats:
        """Compute the logits after prefix + embeddings (n, D): (1, vocab) of the last position.

        With `all_positions`: (n, vocab), of all n positions.
        """
        rows = self._checked_tail("embeddings", embeddings)
        with self._evaluating():
            self._check_room(*self._used(len(rows)))
            if all_positions:
                return np.concatenate(self._append(rows, "all"))
            self._append(rows, "last")
            return self._session.logits_row(-1)[None].copy()

    def score(self, prompt: Floats, options: Sequence[Sequence[int]]) -> npt.NDArray[np.float64]:
        """Return each option's mean token log-probability after prefix + prompt (n, D).

        `options`: token ids, at least one each. The prompt is evaluated once, then the cache branches
        into one sequence per option.
        """
        rows = self._checked_tail("prompt", prompt)
        lengths = [len(option) for option in options]
        if not options or 0 in lengths:
            raise LanguageModelError(
                f"options: expected options of at least one token id each, got lengths {lengths}"
            )
        embedded = [self.embed(option) for option in options]  # (tokens, D) each; checks the ids, too
        with self._evaluating():
            rounds = self._plan_rounds(options, len(rows))
            self._append(rows, "last")
            last = self._session.logits_row(-1)
            sums = last[[option[0] for option in options]].astype(np.float64) - _log_total(last)
            for members in rounds:
                sums[members] += self._score_round(
                    [embedded[i] for i in members], [options[i] for i in members]
                )
        return sums / np.array(lengths)

    def generate(
        self,
        prompt: Floats,
        *,
        max_tokens: int,
        stop_ids: Sequence[int],
        temperature: float = 0.0,
        top_p: float = 0.95,
        seed: int = 0,
        repetition_tokens: int = 0,
        is_enough: Callable[[Sequence[int]], bool] | None = None,
        should_abort: Callable[[], bool] | None = None,
    ) -> Generation:
        """Continue prefix + prompt (n, D).

        Greedy at temperature 0; above it temperature, then top-p, then a seeded draw. `repetition_tokens`:
        see `LlamaSession.sampler`. `is_enough` is called with the tokens so far after each of them, and ends
        the answer. `should_abort` is called before every token and every batch of the prompt; unlike
        `abort()` it cannot come too early. An abort returns the tokens so far.
        """
        rows = self._checked_tail("prompt", prompt)
        if max_tokens < 1:
            raise LanguageModelError(f"max_tokens: expected at least 1, got {max_tokens}")
        tokens: list[int] = []
        with (
            self._evaluating(),
            self._session.sampler(temperature, top_p, seed, repetition_tokens) as sampler,
        ):
            what, used = self._used(len(rows))
            self._check_room(f"{what} + {max_tokens - 1} of max_tokens", used + max_tokens - 1)
            try:
                self._append(rows, "last", should_abort)
                self._session.logits_row(-1)  # for its check, see `sample`
                while True:
                    token = self._session.sample(sampler)
                    if token in stop_ids:
                        return Generation(tuple(tokens), complete=True, aborted=False)
                    tokens.append(token)
                    if len(tokens) == max_tokens or (is_enough is not None and is_enough(tokens)):
                        return Generation(tuple(tokens), complete=False, aborted=False)
                    _stop_if(should_abort)
                    self._session.step(self._token_embeddings[token])
                    self.evaluated_tokens += 1
            except LanguageModelAborted:
                return Generation(tuple(tokens), complete=False, aborted=True)

    def room_tokens(self, rows: int) -> int:
        """Return the number of tokens that `generate` can give for a prompt of `rows` rows; 0 for none."""
        return max(0, self.context_tokens - self._used(rows)[1] + 1)

    def _whole_pictures(self, rows: Floats, kept: int) -> int:
        """Return the rows that can be kept: the cache is cut by positions, which a picture's tokens share."""
        while self._is_placed and 0 < kept < len(rows) and rows[kept - 1, -1] == 0:
            kept -= 1
        return kept

    # -- before a call --------------------------------------------------------------------------------------

    def _checked(self, name: str, embeddings: Floats) -> Floats:
        """Return `embeddings` as (n, D) float32. Raises LanguageModelError for another width, or NaN."""
        rows = np.asarray(embeddings, np.float32)
        if rows.ndim != 2 or rows.shape[1] != self.row_width:
            what = "the width and a place" if self._is_placed else "the model's width"
            raise LanguageModelError(f"{name}: expected (n, {self.row_width}), {what}, got {rows.shape}")
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():  # llama.cpp would return NaN logits and report success
            raise LanguageModelError(
                f"{name}: expected finite values, got NaN or infinity in row {int(finite.argmin())} of "
                f"{len(rows)}; check the component that made them"
            )
        return rows

    def _checked_tail(self, name: str, embeddings: Floats) -> Floats:
        rows = self._checked(name, embeddings)
        if len(rows) == 0:
            raise LanguageModelError(f"{name}: expected at least one row after the prefix, got none")
        return rows

    def _used(self, rows: int) -> tuple[str, int]:
        return f"{len(self._prefix)} of prefix + {rows} after it", len(self._prefix) + rows

    def _check_room(self, what: str, needed: int) -> None:
        if needed > self.context_tokens:
            raise LanguageModelError(
                f"the context holds {self.context_tokens} tokens, but {what} need {needed}; "
                "ask a shorter question, with shorter answers"
            )

    # -- during a call --------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _evaluating(self) -> Generator[None]:
        """Lock the model for one call, and drop the call's tail from the cache afterwards."""
        with self._lock:
            if not self._session.is_open:
                raise LanguageModelError("the language model is closed; load it again")
            self._session.start()
            try:
                yield
            finally:
                self._drop_tail()

    def _drop_tail(self) -> None:
        kept = advance_of(self._places(self._prefix)) if self._is_placed else len(self._prefix)
        self._position = kept
        if not self._session.trim(kept):
            self._prefix = self._prefix[:0]

    def _append(
        self,
        rows: Floats,
        outputs: Literal["none", "last", "all"],
        should_abort: Callable[[], bool] | None = None,
    ) -> list[Floats]:
        """Evaluate (n, D) at the end of sequence 0, batch by batch.

        Returns the logits (rows, vocab) of each batch with "all", else nothing.
        """
        collected: list[Floats] = []
        for start in range(0, len(rows), self._session.batch_tokens):
            _stop_if(should_abort)
            chunk = rows[start : start + self._session.batch_tokens]
            is_final = start + len(chunk) == len(rows)
            wanted = "none" if outputs == "last" and not is_final else outputs
            if self._is_placed:
                places = self._places(chunk)
                self._session.append(chunk[:, : self.width], wanted, positions_of(places, self._position))
                self._position += advance_of(places)
            else:
                self._session.append(chunk, wanted)
            self.evaluated_tokens += len(chunk)
            if outputs == "all":
                collected.append(np.stack([self._session.logits_row(i) for i in range(len(chunk))]))
        return collected

    def _places(self, rows: Floats) -> Places:
        return rows[:, self.width :]

    def _plan_rounds(self, options: Sequence[Sequence[int]], prompt_rows: int) -> list[list[int]]:
        """Group the options of several tokens so that each group fits batch, branches and context."""
        what, used = self._used(prompt_rows)
        self._check_room(what, used)
        capacity = min(self._session.batch_tokens, self.context_tokens - used)
        rounds: list[list[int]] = []
        room = 0
        for i, option in enumerate(options):
            extra = len(option) - 1  # an option's last token is predicted, never fed
            self._check_room(f"{what} + {extra} of options[{i}]", used + extra)
            if extra > capacity:
                raise LanguageModelError(
                    f"options[{i}]: expected at most {capacity + 1} tokens, got {len(option)}; "
                    "give shorter options"
                )
            if extra == 0:
                continue
            if extra > room or len(rounds[-1]) == self.max_branches:
                rounds.append([])
                room = capacity
            rounds[-1].append(i)
            room -= extra
        return rounds

    def _score_round(
        self, embedded: Sequence[Floats], options: Sequence[Sequence[int]]
    ) -> npt.NDArray[np.float64]:
        """Return the summed log-probability of each option's tokens after its first."""
        lengths = [len(option) - 1 for option in options]
        rows = np.concatenate([row[:-1, : self.width] for row in embedded])  # (n, D)
        targets = np.concatenate([np.asarray(option[1:], np.int64) for option in options])  # (n,)
        sequences = np.repeat(np.arange(1, len(options) + 1), lengths)  # (n,), one sequence per option
        positions = self._session.end() + np.concatenate([np.arange(length) for length in lengths])  # (n,)
        with self._session.branches(len(options)):
            self._session.decode(rows, positions, sequences, np.ones(len(rows), np.bool_))
            self.evaluated_tokens += len(rows)
            rows_given = [self._session.logits_row(i) for i in range(len(rows))]
            terms = [float(row[id_]) - _log_total(row) for row, id_ in zip(rows_given, targets, strict=True)]
        return np.bincount(sequences - 1, weights=terms).astype(np.float64)


def llama_is_installed() -> bool:
    """Return True when llama.cpp's binding is installed, which is an extra."""
    return find_spec("llama_cpp") is not None


class AbsentLanguageModel:
    """A bundle's token embeddings where llama.cpp is not installed: readings need no language model.

    It has the interface of ``LanguageModel``; every call that needs llama.cpp raises LanguageModelError.
    """

    available = False
    context_tokens = 0

    def __init__(self, token_embeddings: npt.NDArray[np.floating[Any]]) -> None:
        """Take the table (vocab, D)."""
        self._token_embeddings = token_embeddings

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def embed(self, token_ids: Sequence[int]) -> Floats:
        """Look up the embeddings of token ids: (n,) to (n, D) float32."""
        return np.asarray(self._token_embeddings[np.asarray(token_ids, np.int64)], np.float32)

    def set_prefix(self, embeddings: Floats) -> None:
        """Ignore the prefix: there is no KV cache."""

    def score(self, prompt: Floats, options: Sequence[Sequence[int]]) -> npt.NDArray[np.float64]:
        """Raise LanguageModelError."""
        raise LanguageModelError(NO_LLAMA)

    def generate(
        self,
        prompt: Floats,
        *,
        max_tokens: int,
        stop_ids: Sequence[int],
        repetition_tokens: int = 0,
        is_enough: Callable[[Sequence[int]], bool] | None = None,
        should_abort: Callable[[], bool] | None = None,
    ) -> Generation:
        """Raise LanguageModelError."""
        raise LanguageModelError(NO_LLAMA)

    def room_tokens(self, rows: int) -> int:
        """Raise LanguageModelError."""
        raise LanguageModelError(NO_LLAMA)

    def abort(self) -> None:
        """Return at once: no call runs."""


def open_language_model(
    bundle: Path, manifest: Manifest, component: Component, *, threads: int = 2, f32_kv: bool = False
) -> LanguageModel:
    """Open one of a bundle's GGUF files with its token embeddings. Raises LanguageModelError."""
    table = _token_embeddings_file(bundle, manifest)
    file = component_path(bundle, component)
    return load_language_model(file, table, manifest.context_tokens, threads=threads, f32_kv=f32_kv)


def read_token_embeddings(bundle: Path, manifest: Manifest) -> npt.NDArray[np.floating[Any]]:
    """Return a bundle's token embeddings, (vocab, D), memory-mapped."""
    return _read_table(_token_embeddings_file(bundle, manifest))


def _token_embeddings_file(bundle: Path, manifest: Manifest) -> Path:
    return component_path(bundle, manifest.component("token_embeddings"))


def _read_table(file: Path) -> npt.NDArray[np.floating[Any]]:
    return np.load(file, mmap_mode="r", allow_pickle=False)


def load_language_model(
    file: Path, token_embeddings: Path, context_tokens: int, *, threads: int = 2, f32_kv: bool = False
) -> LanguageModel:
    """Open a GGUF file and its token embeddings (.npy, (vocab, D), memory-mapped)."""
    table = _read_table(token_embeddings)
    return LanguageModel(file, table, context_tokens=context_tokens, threads=threads, f32_kv=f32_kv)


def _equal_rows(a: Floats, b: Floats) -> int:
    """Return the number of equal leading rows of (n, D) and (m, D)."""
    shared = min(len(a), len(b))
    same = (a[:shared] == b[:shared]).all(axis=1)
    return shared if same.all() else int(same.argmin())


def _log_total(logits: Floats) -> float:
    """Return the log of the sum of exp of (vocab,) float32, which log softmax subtracts.

    exp in float32 is eight times as fast as in float64; summed in float64, it changes the result by 1e-8.
    """
    largest = logits.max()
    return float(largest) + float(np.log(np.exp(logits - largest).sum(dtype=np.float64)))


def _stop_if(should_abort: Callable[[], bool] | None) -> None:
    if should_abort is not None and should_abort():
        raise LanguageModelAborted("aborted by should_abort()")
