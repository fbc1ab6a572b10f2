"""The importance matrix: mean squares of the inputs of the language model's matrices on real prompts.

In: a GGUF file in F32 or F16, and prompts as the device feeds them: embeddings `(n, D)` float32 of text
tokens, visual tokens and audio tokens together. Out: for each matrix the mean square of every input
channel, kept in a file of llama.cpp's own imatrix format. The quantizer weighs its rounding errors with it
(`export.gguf.quantise`).
"""

import contextlib
import ctypes
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from runtime.engines.llama import Floats, LanguageModelError, LlamaSession, backend
from vaemotion.contract.files import whole_file
from vaemotion.contract.positions import PLACE_COLUMNS, positions_of, text_places

_BATCH_TOKENS = 512
_SEEN_NAME = re.compile(r"(?:.*#)?(.+?\.weight)(?:#.*)?")  # "CUDA0#blk.0.attn_k.weight#0" is a copy on a GPU


@dataclass(frozen=True)
class ChannelImportance:
    """The importance of one matrix's input channels over a set of prompts."""

    mean_squares: Floats
    """(in,): the squared input, averaged over positions."""
    rows: int
    """The number of those positions."""


def collect_importance(
    path: Path, prompts: Sequence[Floats], *, threads: int = 2
) -> dict[str, ChannelImportance]:
    """Run every prompt `(n, D)` through the model at `path`, and average the squared inputs of each matrix.

    Keys are GGUF tensor names. A tied head is `token_embd.weight`, with the importance of the head's input.
    Prompts include their prefix, and all positions count. Raises LanguageModelError for a prompt that does
    not fit the model.
    """
    if not prompts:
        raise LanguageModelError("prompts: expected at least one prompt with real embeddings, got none")
    sums: dict[str, npt.NDArray[np.float64]] = {}
    rows: dict[str, int] = {}

    def add(name: str, inputs: Floats) -> None:  # (rows, in)
        squares = np.square(inputs, dtype=np.float64).sum(axis=0)
        sums[name] = sums.get(name, np.zeros_like(squares)) + squares
        rows[name] = rows.get(name, 0) + len(inputs)

    session = _ObservedSession(path, max(len(prompt) for prompt in prompts), threads, add)
    with contextlib.closing(session):
        for index, prompt in enumerate(prompts):
            _check_prompt(f"prompts[{index}]", prompt, session)
            session.run(np.asarray(prompt, np.float32))
    return {
        name: ChannelImportance((total / rows[name]).astype(np.float32), rows[name])
        for name, total in sums.items()
    }


def _check_prompt(name: str, prompt: Floats, session: LlamaSession) -> None:
    widths = [session.width, *([session.width + PLACE_COLUMNS] if session.coordinates > 1 else [])]
    if prompt.ndim != 2 or prompt.shape[1] not in widths or len(prompt) == 0:
        raise LanguageModelError(
            f"{name}: expected (n, {widths[0]}) embeddings, the model's width, got {prompt.shape}"
        )
    if not np.isfinite(prompt).all():
        raise LanguageModelError(f"{name}: expected finite values; check the component that made them")


# -- its file -------------------------------------------------------------------------------------------


def write_importance(path: Path, importance: Mapping[str, ChannelImportance], prompts: str) -> None:
    """Write an importance matrix as `llama-imatrix` does; `prompts` describes its origin in words."""
    with whole_file(path) as temporary:
        writer = gguf.GGUFWriter(temporary, "imatrix")
        try:
            writer.add_type("imatrix")
            writer.add_array("imatrix.datasets", [prompts])
            writer.add_uint32("imatrix.chunk_count", 1)
            writer.add_uint32("imatrix.chunk_size", max((c.rows for c in importance.values()), default=0))
            for name, channels in importance.items():
                sums = channels.mean_squares.astype(np.float64) * channels.rows
                writer.add_tensor(f"{name}.in_sum2", sums.astype(np.float32)[None])  # (1, in)
                writer.add_tensor(f"{name}.counts", np.array([[channels.rows]], np.float32))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()


def read_importance(path: Path) -> dict[str, ChannelImportance]:
    """Read an importance matrix in llama.cpp's GGUF format; ValueError for any other file."""
    if not path.is_file():
        raise ValueError(f"no importance matrix at {path}; collect one first")
    try:
        tensors = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(path).tensors}
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise ValueError(f"{path.name} is not an importance matrix ({error}); collect it again") from error
    names = [name.removesuffix(".in_sum2") for name in tensors if name.endswith(".in_sum2")]
    if not names or any(f"{name}.counts" not in tensors for name in names):
        raise ValueError(
            f"{path.name} holds no sums of squares with counts; collect the importance matrix again"
        )
    result: dict[str, ChannelImportance] = {}
    for name in names:
        rows = max(1, int(tensors[f"{name}.counts"].reshape(-1)[0]))
        result[name] = ChannelImportance(
            (tensors[f"{name}.in_sum2"].reshape(-1) / rows).astype(np.float32), rows
        )
    return result


# -- observing llama.cpp --------------------------------------------------------------------------------


class _Tensor(ctypes.Structure):
    """The beginning of `struct ggml_tensor` (ggml.h of the pinned llama-cpp-python), up to the name."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    ]


class _ObservedSession(LlamaSession):
    """A session that passes the input (rows, in) of each product with a weight to `observe(name, input)`."""

    def __init__(
        self, path: Path, context_tokens: int, threads: int, observe: Callable[[str, Floats], None]
    ) -> None:
        self._observe = observe
        self._failures: list[Exception] = []
        super().__init__(
            path,
            context_tokens=context_tokens,
            batch_tokens=min(_BATCH_TOKENS, context_tokens),
            threads=threads,
            max_branches=1,
            f32_kv=True,
        )

    def run(self, prompt: Floats) -> None:
        """Evaluate one prompt (n, D), with logits at every position, and clear the KV cache.

        Rows of a model that puts pictures in two dimensions may have places, (n, D + 3).
        """
        self.start()
        placed = prompt.shape[1] > self.width
        positions = positions_of(prompt[:, self.width :] if placed else text_places(len(prompt)))
        for start in range(0, len(prompt), self.batch_tokens):
            rows = slice(start, start + self.batch_tokens)
            self.append(prompt[rows, : self.width], "all", positions[rows] if self.coordinates > 1 else None)
            if self._failures:  # llama.cpp stopped there and reported success
                raise self._failures.pop()
        self.trim(0)

    def _open_context(
        self, context_tokens: int, batch_tokens: int, threads: int, max_branches: int, f32_kv: bool
    ) -> None:
        llama = self._llama
        params: Any = llama.llama_context_default_params()
        params.n_ctx = context_tokens
        params.n_batch = params.n_ubatch = batch_tokens
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = llama.GGML_TYPE_F32
        params.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        callback = _eval_callback(self._observe, self._failures)
        self._kept_callback = llama.ggml_backend_sched_eval_callback(callback)
        params.cb_eval = self._kept_callback
        self._context = llama.llama_init_from_model(self._model, params)
        if not self._context:
            raise LanguageModelError(
                f"no context of {context_tokens} tokens; give shorter prompts ({self._backend.reason()})"
            )
        self._memory: Any = llama.llama_get_memory(self._context)
        self.batch_tokens = min(batch_tokens, int(llama.llama_n_batch(self._context)))


def _eval_callback(
    observe: Callable[[str, Floats], None], failures: list[Exception]
) -> Callable[[int, bool, int | None], bool]:
    """Return llama.cpp's evaluation callback.

    llama.cpp calls it before each node of the graph (`asked`), and again after the nodes for which it
    returned True. An exception cannot pass through C: it is appended to `failures`, and the evaluation
    stops.
    """
    ggml = _ggml()

    def callback(address: int, asked: bool, _: int | None) -> bool:
        try:
            if ggml.op_desc(address) != b"MUL_MAT":
                return not asked
            weight, inputs = (_Tensor.from_address(source) for source in ggml.tensor(address).src[:2])
            name = _SEEN_NAME.fullmatch(weight.name.decode())
            if name is None:  # attention's own products: queries with keys, probabilities with values
                return not asked
            if not asked:
                observe(name[1], ggml.read_rows(inputs))
            return True
        except Exception as error:
            failures.append(error)
            return False

    return callback


@dataclass(frozen=True)
class _Ggml:
    """The three functions of libggml that llama_cpp does not bind."""

    op_desc: Any
    get_name: Any
    tensor_get: Any

    def tensor(self, address: int) -> _Tensor:
        """Return the tensor at an address; raise where this library does not lay it out as `_Tensor`."""
        tensor = _Tensor.from_address(address)
        if self.get_name(address) != tensor.name:
            raise LanguageModelError(
                "this llama-cpp-python has another tensor layout; install the pinned version, the extra `llm`"
            )
        return tensor

    def read_rows(self, tensor: _Tensor) -> Floats:
        """Copy a float32 tensor from the CPU or a GPU, as (rows, ne0)."""
        assert tensor.type == 0, "llama.cpp multiplies weights with float32"
        ne, nb = list(tensor.ne)[::-1], list(tensor.nb)[::-1]
        size = sum((n - 1) * stride for n, stride in zip(ne, nb, strict=True)) + 4
        raw = np.empty(size, np.uint8)
        self.tensor_get(ctypes.addressof(tensor), raw.ctypes.data, 0, size)
        values: Floats = np.ndarray(ne, np.float32, raw.data, strides=nb)
        return values.reshape(-1, ne[-1])


def _ggml() -> _Ggml:
    backend()  # raises with what to install where llama_cpp is missing
    from llama_cpp._ggml import libggml  # pyright: ignore[reportMissingImports]

    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    text_of = ctypes.CFUNCTYPE(ctypes.c_char_p, pointer)
    get = ctypes.CFUNCTYPE(None, pointer, pointer, size, size)
    return _Ggml(
        text_of(("ggml_op_desc", libggml)),
        text_of(("ggml_get_name", libggml)),
        get(("ggml_backend_tensor_get", libggml)),
    )
