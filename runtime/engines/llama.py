"""One GGUF model in llama.cpp, through the low-level binding: loading, batches, sequences, samplers.

In: embeddings `(n, D)` float32 with positions and sequences. Out: rows of logits `(vocab,)` float32. Each
check here prevents an abort of the process, or wrong results without an error, inside llama.cpp.
`runtime.engines.language_model` decides what is evaluated and what stays in the cache.
"""

import contextlib
import ctypes
import functools
import math
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from vaemotion.contract.errors import UserError

Floats = npt.NDArray[np.float32]

_MAX_SEQUENCES = 256  # LLAMA_MAX_SEQ, a constant of the library's build
_DAMAGED = "the logits are NaN or infinite: the weights are damaged; verify the bundle"
# llama.cpp's repetition guard takes 0.8 * 1.75^(n - 2) off the logit of a token that would repeat a phrase of
# more than n >= 2 tokens; llama.cpp's own values.
_DRY = (0.8, 1.75, 2)
_WARNING = 3  # GGML_LOG_LEVEL_WARN; 4 is an error, 5 continues the line before


class LanguageModelError(UserError):
    """The language model cannot do a call; the message says why and what to do."""


class LanguageModelAborted(LanguageModelError):
    """`abort()` stopped a call that has no partial result to return."""


@dataclass(frozen=True)
class Backend:
    """The imported `llama_cpp` module and the last lines of its log."""

    llama: Any
    log: deque[str] = field(default_factory=lambda: deque(maxlen=40))
    kept_alive: list[Any] = field(default_factory=list[Any])

    def reason(self) -> str:
        """Return the last lines of the library's log, its only account of a failure."""
        return " ".join(self.log) or "llama.cpp gave no reason"


@functools.cache
def backend() -> Backend:
    """Import and initialize llama.cpp once; its log is kept in memory instead of on stderr."""
    try:
        import llama_cpp  # pyright: ignore[reportMissingTypeStubs, reportMissingImports]
    except (ImportError, RuntimeError, OSError) as error:
        raise LanguageModelError(
            f"the language model needs llama-cpp-python; install the extra `llm` ({error})"
        ) from error
    loaded = Backend(llama=llama_cpp)
    last_level = 0

    def remember(level: int, text: bytes | None, _: object) -> None:
        nonlocal last_level
        last_level = level if level != 5 else last_level
        line = (text or b"").decode("utf-8", "replace").strip()
        if last_level in (_WARNING, _WARNING + 1) and line:
            loaded.log.append(line)

    callback: Any = loaded.llama.llama_log_callback(remember)
    loaded.kept_alive.append(callback)
    loaded.llama.llama_log_set(callback, ctypes.c_void_p(0))
    loaded.llama.llama_backend_init()
    return loaded


def model_parameters() -> Any:
    """Return llama.cpp's default parameters, but without repacked weights where it was built for AMX.

    GCC optimizes the configuration of AMX's tiles away, so that the first product of an 8-bit model ends the
    process (ggml-org/llama.cpp#26954).
    """
    llama = backend().llama
    params = llama.llama_model_default_params()
    params.use_extra_bufts = b"AMX_INT8 = 1" not in llama.llama_print_system_info()
    return params


def on_gpu() -> bool:
    """Return True when llama.cpp was built for a GPU and finds one; it then runs every layer there."""
    return bool(backend().llama.llama_supports_gpu_offload())


def flash_attention(f32_kv: bool = False) -> int:
    """Return the type of attention: llama.cpp's choice on a GPU, not fused on a processor.

    On a processor fused attention took twice as long for 48 rows behind 160 (docs/log.md).
    """
    llama = backend().llama
    fused = on_gpu() and not f32_kv
    return llama.LLAMA_FLASH_ATTN_TYPE_AUTO if fused else llama.LLAMA_FLASH_ATTN_TYPE_DISABLED


def tokenize(path: Path, texts: Sequence[str]) -> list[list[int]]:
    """Return each text's token ids by llama.cpp's own tokenizer, with special tokens parsed."""
    llama = backend().llama
    params = model_parameters()
    params.vocab_only = True
    model = llama.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise LanguageModelError(f"llama.cpp cannot read the vocabulary of {path}: {backend().reason()}")
    try:
        vocabulary = llama.llama_model_get_vocab(model)
        results: list[list[int]] = []
        for text in texts:
            raw = text.encode()
            tokens = (ctypes.c_int32 * (len(raw) + 8))()
            count = llama.llama_tokenize(vocabulary, raw, len(raw), tokens, len(tokens), True, True)
            results.append(list(tokens[:count]))
        return results
    finally:
        llama.llama_model_free(model)


class LlamaSession:
    """Model, context and one reusable batch of embeddings. Only `abort()` is thread-safe."""

    def __init__(
        self,
        path: Path,
        *,
        context_tokens: int,
        batch_tokens: int,
        threads: int,
        max_branches: int,
        f32_kv: bool,
    ) -> None:
        """Load a GGUF file; arguments and errors as in `runtime.engines.language_model.LanguageModel`."""
        for name, value in (
            ("context_tokens", context_tokens),
            ("batch_tokens", batch_tokens),
            ("threads", threads),
        ):
            if value < 1:
                raise LanguageModelError(f"{name}: expected at least 1, got {value}")
        if not 1 <= max_branches < _MAX_SEQUENCES:
            raise LanguageModelError(f"max_branches: expected 1 to {_MAX_SEQUENCES - 1}, got {max_branches}")
        if not path.is_file():
            raise LanguageModelError(
                f"path: no language model at {path}; export it, or name the bundle's GGUF file"
            )
        self._backend = backend()
        self._llama = self._backend.llama
        self._abort_flag = ctypes.create_string_buffer(2)
        self._model: Any = None
        self._context: Any = None
        self._batch: Any = None
        try:
            self._load(path, context_tokens)
            self._open_context(context_tokens, batch_tokens, threads, max_branches, f32_kv)
            self._open_batch()
        except BaseException:
            self.close()
            raise

    def _load(self, path: Path, context_tokens: int) -> None:
        self._backend.log.clear()
        self._model = self._llama.llama_model_load_from_file(str(path).encode(), model_parameters())
        if not self._model:
            raise LanguageModelError(
                f"path: llama.cpp cannot load {path}; check its sha256 and export it again "
                f"({self._backend.reason()})"
            )
        self.width = int(self._llama.llama_model_n_embd(self._model))
        if (row_width := int(self._llama.llama_model_n_embd_inp(self._model))) != self.width:
            raise LanguageModelError(
                f"path: {path.name} takes rows that are {row_width} wide for embeddings of {self.width}: it "
                "adds features of several vision layers (DeepStack), which cannot be run yet; use another "
                "model"
            )
        rope = int(self._llama.llama_model_rope_type(self._model))
        # M-RoPE takes coordinates (time, height, width, and one more that is 0) for each row.
        self.coordinates = 4 if rope == self._llama.LLAMA_ROPE_TYPE_MROPE else 1
        self.vocab_size = int(
            self._llama.llama_vocab_n_tokens(self._llama.llama_model_get_vocab(self._model))
        )
        trained = int(self._llama.llama_model_n_ctx_train(self._model))
        if context_tokens > trained:
            raise LanguageModelError(
                f"context_tokens: {path.name} was trained for at most {trained} positions, "
                f"got {context_tokens}; ask for fewer"
            )

    def _open_context(
        self, context_tokens: int, batch_tokens: int, threads: int, max_branches: int, f32_kv: bool
    ) -> None:
        llama = self._llama
        params: Any = llama.llama_context_default_params()
        params.n_ctx = max(context_tokens, _MAX_SEQUENCES)
        params.n_seq_max = max_branches + 1
        # A physical batch smaller than the number of sequences aborts the process.
        params.n_batch = params.n_ubatch = max(batch_tokens, max_branches + 1)
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = True
        params.flash_attn_type = flash_attention(f32_kv)
        if f32_kv:
            params.type_k = params.type_v = llama.GGML_TYPE_F32
        # llama.cpp calls this before every graph node, 72 times a token with four layers. A Python callback
        # would take the GIL from perception each time. C's strlen("") == 0 and strlen("\1") == 1 do not.
        strlen: Any = ctypes.CDLL(None).strlen
        params.abort_callback = ctypes.cast(strlen, llama.ggml_abort_callback)
        params.abort_callback_data = ctypes.cast(self._abort_flag, ctypes.c_void_p)
        self._backend.log.clear()
        self._context = llama.llama_init_from_model(self._model, params)
        if not self._context:
            raise LanguageModelError(
                f"no context of {context_tokens} tokens; ask for fewer context_tokens "
                f"({self._backend.reason()})"
            )
        self._memory: Any = llama.llama_get_memory(self._context)
        # Read back: more tokens than the real n_batch abort the process.
        self.batch_tokens = min(batch_tokens, int(llama.llama_n_batch(self._context)))
        n_ctx = int(llama.llama_n_ctx(self._context))
        if n_ctx < context_tokens:
            raise LanguageModelError(
                f"context_tokens: asked for {context_tokens}, llama.cpp gave only {n_ctx}"
            )

    def _open_batch(self) -> None:
        n = self.batch_tokens
        # Room for the coordinates; its size counts rows.
        self._batch = self._llama.llama_batch_init(n * self.coordinates, self.width, 1)
        self._batch_embeddings: Floats = np.ctypeslib.as_array(self._batch.embd, (n, self.width))
        self._batch_positions: npt.NDArray[np.int32] = np.ctypeslib.as_array(
            self._batch.pos, (n * self.coordinates,)
        )
        self._batch_outputs: npt.NDArray[np.int8] = np.ctypeslib.as_array(self._batch.logits, (n,))
        np.ctypeslib.as_array(self._batch.n_seq_id, (n,))[:] = 1
        self._set_sequences([0] * n)

    @property
    def is_open(self) -> bool:
        """False after `close()`."""
        return self._context is not None

    def close(self) -> None:
        """Free everything; no other call may be running. May be called twice."""
        if self._batch is not None:
            del self._batch_embeddings, self._batch_positions, self._batch_outputs
            self._llama.llama_batch_free(self._batch)
        if self._context:
            self._llama.llama_free(self._context)
        if self._model:
            self._llama.llama_model_free(self._model)
        self._batch = self._context = self._model = None

    def abort(self) -> None:
        """Make the running `decode` and all later ones raise LanguageModelAborted; from any thread."""
        self._abort_flag[0] = b"\x01"

    def start(self) -> None:
        """Forget an earlier abort and earlier log lines."""
        self._abort_flag[0] = b"\x00"
        self._backend.log.clear()

    def end(self) -> int:
        """Return the next position of sequence 0 from the cache, where an abort leaves whole batches."""
        return int(self._llama.llama_memory_seq_pos_max(self._memory, 0)) + 1

    def trim(self, kept: int) -> bool:
        """Keep the first `kept` positions of sequence 0; return False where that empties the cache."""
        self._llama.llama_memory_seq_rm(self._memory, 0, kept, -1)
        if self.end() == kept:
            return True
        self._llama.llama_memory_clear(self._memory, True)
        return False

    @contextlib.contextmanager
    def branches(self, count: int) -> Generator[None]:
        """Branch sequences 1 to `count` off sequence 0 within the block, and drop them after it."""
        try:
            for branch in range(1, count + 1):
                self._llama.llama_memory_seq_cp(self._memory, 0, branch, -1, -1)
            yield
        finally:
            for branch in range(1, count + 1):
                self._llama.llama_memory_seq_rm(self._memory, branch, -1, -1)

    def append(
        self,
        rows: Floats,
        outputs: Literal["none", "last", "all"],
        positions: npt.NDArray[np.int64] | None = None,
    ) -> None:
        """Evaluate one batch of n <= batch_tokens rows (n, D) at the end of sequence 0.

        `positions`: (n, 3) for a model with M-RoPE; the others count rows.
        """
        n = len(rows)
        assert n <= self.batch_tokens
        self._batch_embeddings[:n] = rows
        if positions is None:
            end = self.end()
            self._batch_positions[:n] = np.arange(end, end + n)
        else:
            self._place(positions)
        self._batch_outputs[:n] = outputs == "all"
        self._batch_outputs[n - 1] = outputs != "none"
        self._evaluate(n)

    def step(self, row: npt.NDArray[np.floating[Any]]) -> None:
        """Append one row (D,), a generated token behind other text, with its logits.

        Without the slices and ranges of `append`, which would take 2 % of a small model's time.
        """
        self._batch_embeddings[0] = row
        end = self.end()
        self._batch_positions[0] = end
        if self.coordinates > 1:
            self._batch_positions[1:4] = end, end, 0
        self._batch_outputs[0] = True
        self._evaluate(1)

    def decode(
        self,
        rows: Floats,
        positions: npt.NDArray[np.int64],
        sequences: npt.NDArray[np.int64],
        wanted: npt.NDArray[np.bool_],
    ) -> None:
        """Evaluate one batch of n <= batch_tokens rows (n, D).

        `positions` of text, `sequences`, and `wanted` for logits are (n,) each.
        """
        n = len(rows)
        assert n <= self.batch_tokens
        self._batch_embeddings[:n] = rows
        if self.coordinates > 1:
            self._place(np.repeat(positions[:, None], 3, axis=1))
        else:
            self._batch_positions[:n] = positions
        self._batch_outputs[:n] = wanted
        self._set_sequences(sequences.tolist())
        try:
            self._evaluate(n)
        finally:
            self._set_sequences([0] * n)  # `append` and `step` rely on it

    def _place(self, positions: npt.NDArray[np.int64]) -> None:
        """Set the coordinates of n rows, (n, 3), one coordinate behind the other."""
        n = len(positions)
        self._batch_positions[: 3 * n] = positions.T.reshape(-1)
        self._batch_positions[3 * n : 4 * n] = 0

    def _set_sequences(self, sequences: Sequence[int]) -> None:
        for i, sequence in enumerate(sequences):
            self._batch.seq_id[i][0] = sequence

    def _evaluate(self, n: int) -> None:
        """Evaluate the batch's first n rows."""
        if self._abort_flag.raw[0]:
            raise LanguageModelAborted("aborted by abort()")
        self._batch.n_tokens = n
        status = int(self._llama.llama_decode(self._context, self._batch))
        if status == 2:
            raise LanguageModelAborted("aborted by abort()")
        if status != 0:
            raise LanguageModelError(
                f"llama_decode returned {status} for {n} tokens ({self._backend.reason()})"
            )

    def logits_row(self, index: int) -> Floats:
        """Return the logits (vocab,) of the last batch's row `index`, -1 for the last requested one.

        It is a view that the next batch overwrites. Raises LanguageModelError for NaN or infinity.
        """
        pointer = self._llama.llama_get_logits_ith(self._context, index)
        row: Floats = np.ctypeslib.as_array(pointer, (self.vocab_size,))
        if not np.isfinite(row).all():
            raise LanguageModelError(_DAMAGED)
        return row

    @contextlib.contextmanager
    def sampler(
        self, temperature: float, top_p: float, seed: int, repetition_tokens: int = 0
    ) -> Generator[Any]:
        """Make a sampler chain: greedy at temperature 0, else temperature, top-p, seeded draw.

        `repetition_tokens`: length of the window of sampled tokens within which a phrase is hardly repeated
        ("don't repeat yourself", github.com/oobabooga/text-generation-webui/pull/5677); 0: none.
        """
        if not temperature >= 0 or not 0 < top_p <= 1 or not 0 <= seed < 2**32 - 1:
            raise LanguageModelError(
                "expected temperature >= 0, 0 < top_p <= 1 and 0 <= seed < 2**32 - 1, "
                f"got temperature {temperature}, top_p {top_p}, seed {seed}"
            )
        llama = self._llama
        chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        try:
            if repetition_tokens:
                vocabulary = llama.llama_model_get_vocab(self._model)
                guard = llama.llama_sampler_init_dry(vocabulary, *_DRY, repetition_tokens, None, 0)
                llama.llama_sampler_chain_add(chain, guard)
            if temperature == 0:
                llama.llama_sampler_chain_add(chain, llama.llama_sampler_init_greedy())
            else:
                llama.llama_sampler_chain_add(chain, llama.llama_sampler_init_temp(temperature))
                llama.llama_sampler_chain_add(chain, llama.llama_sampler_init_top_p(top_p, 1))
                llama.llama_sampler_chain_add(chain, llama.llama_sampler_init_dist(seed))
            yield chain
        finally:
            llama.llama_sampler_free(chain)

    def sample(self, sampler: Any) -> int:
        """Return the next token id, from the last requested row of logits.

        Of that row only this token's logit is checked: damage in the layers makes all of them NaN, and
        `logits_row` after the prompt finds damage in the head.
        """
        token = int(self._llama.llama_sampler_sample(sampler, self._context, -1))
        if not math.isfinite(self._llama.llama_get_logits_ith(self._context, -1)[token]):
            raise LanguageModelError(_DAMAGED)
        return token
