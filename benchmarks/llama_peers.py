"""llama.cpp without the runtime: a raw ``llama_decode`` loop and ``llama_cpp.Llama``.

In: a GGUF file, its token embeddings, prompts. Out: tokens, logits and log-probabilities, to compare with
``runtime.engines.language_model``. The model for all has SmolLM2-135M's true shapes and random weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self
from unittest.mock import patch

import gguf
import llama_cpp
import numpy as np
import numpy.typing as npt

from export.gguf.shape import DecoderShape, expected_shapes
from export.gguf.write import GgufTokenizer, SpecialTokens, write_decoder_gguf
from runtime.engines.llama import flash_attention, model_parameters

Floats = npt.NDArray[np.float32]

CONTEXT_TOKENS = 512  # context of every contender, and the largest batch
SMOLLM2_135M = DecoderShape(
    vocab_size=49_152,
    hidden_size=576,
    intermediate_size=1536,
    n_layers=30,
    n_heads=9,
    n_kv_heads=3,
    head_dim=64,
    rope_theta=100_000.0,
    rms_norm_eps=1e-5,
    context_length=8192,
    tied=True,
)
EOS_ID = 4  # <end_of_utterance> of `vaemotion-tiny`'s tokenizer
# Standard deviation of the random weights. With it, a greedy text does not repeat one token, and layers do
# not amplify rounding too much.
SPREAD = 0.04


def smollm2_135m(folder: Path, tokenizer_json: Path) -> Path:
    """Write a GGUF file with seeded random weights at SmolLM2-135M's shapes in Q8_0, once.

    Only the ids of ``tokenizer_json``, a few hundred, have a text.
    """
    path = folder / "smollm2-135m-random-q8_0.gguf"
    if not path.is_file():
        print(f"writing {path}", flush=True)
        noise = np.random.default_rng(0)
        tensors = {
            name: np.ones(size, np.float32)
            if len(size) == 1
            else noise.standard_normal(size, np.float32) * np.float32(SPREAD)
            for name, size in expected_shapes(SMOLLM2_135M).items()
            if name != "lm_head.weight"
        }
        tokenizer = GgufTokenizer(tokenizer_json, SpecialTokens(bos_id=None, eos_id=EOS_ID, pad_id=None))
        write_decoder_gguf(
            path, tensors, SMOLLM2_135M, tokenizer, file_type="Q8_0", name=path.stem, license="CC0-1.0"
        )
    return path


def token_embeddings(path: Path, table: Path) -> Floats:
    """Read the token embeddings of a GGUF file as llama.cpp dequantizes them, (vocab, D).

    Token ids and these embeddings give the same logits. The result is kept in ``table``, a ``.npy`` file.
    """
    if not table.is_file() or table.stat().st_mtime < path.stat().st_mtime:
        tensors = gguf.GGUFReader(path).tensors
        stored = next(tensor for tensor in tensors if tensor.name == "token_embd.weight")
        np.save(table, gguf.quants.dequantize(stored.data, stored.tensor_type).astype(np.float32))
    return np.load(table, mmap_mode="r", allow_pickle=False)


class Completion:
    """``llama_cpp.Llama.create_completion`` with the options of the other contenders."""

    def __init__(self, path: Path, threads: int) -> None:
        with patch("llama_cpp.llama_cpp.llama_model_default_params", model_parameters):
            self.llama = llama_cpp.Llama(
                str(path),
                n_ctx=CONTEXT_TOKENS,
                n_threads=threads,
                n_threads_batch=threads,
                flash_attn=False,
                verbose=False,
            )

    def close(self) -> None:
        """Free the model."""
        self.llama.close()

    def generate(self, token_ids: Sequence[int], count: int) -> list[int]:
        """Generate ``count`` tokens greedily and return all but the last, which is not evaluated.

        Raises RuntimeError if it generated fewer.
        """
        self.llama.reset()  # its own prefix cache
        result: Any = self.llama.create_completion(list(token_ids), max_tokens=count, temperature=0.0)
        generated = result["usage"]["completion_tokens"]
        if generated != count:
            raise RuntimeError(f"create_completion: expected {count} tokens, got {generated}")
        return self.llama.input_ids[len(token_ids) : self.llama.n_tokens].tolist()


class RawLlama:
    """A context manager that calls ``llama_decode`` in a loop.

    Batches are allocated once, the greedy sampler is in C, and nothing is checked.

    ``on_gpu``: all layers on a GPU if llama.cpp was built for one, which is its default; False: none.
    """

    def __init__(self, path: Path, threads: int, *, on_gpu: bool = True) -> None:
        llama: Any = llama_cpp
        self.llama = llama
        model_params = model_parameters()  # they keep its log in memory instead of on the terminal
        params: Any = llama.llama_context_default_params()
        params.n_ctx, params.n_threads, params.n_threads_batch = CONTEXT_TOKENS, threads, threads
        params.flash_attn_type = flash_attention()
        if not on_gpu:
            model_params.n_gpu_layers = 0
            params.offload_kqv = params.op_offload = False
        self.model = llama.llama_model_load_from_file(str(path).encode(), model_params)
        self.context = llama.llama_init_from_model(self.model, params)
        self.memory = llama.llama_get_memory(self.context)
        self.width = int(llama.llama_model_n_embd(self.model))
        self.vocab_size = int(llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model)))
        self.tokens = _Batch(llama.llama_batch_init(CONTEXT_TOKENS, 0, 1))
        self.embeddings = _Batch(llama.llama_batch_init(CONTEXT_TOKENS, self.width, 1))
        self.kept = 0  # positions of the prefix

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.llama.llama_batch_free(self.tokens.struct)
        self.llama.llama_batch_free(self.embeddings.struct)
        self.llama.llama_free(self.context)
        self.llama.llama_model_free(self.model)

    def generate(self, token_ids: Sequence[int], count: int) -> list[int]:
        """Generate ``count`` tokens greedily, without a stop token."""
        llama, context, batch = self.llama, self.context, self.tokens.struct
        sampler = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        llama.llama_sampler_chain_add(sampler, llama.llama_sampler_init_greedy())
        self.forget(0)
        self._decode_ids(token_ids, 0, outputs_from=len(token_ids) - 1)
        tokens = [llama.llama_sampler_sample(sampler, context, -1)]
        batch.n_tokens = batch.logits[0] = 1
        for position in range(len(token_ids), len(token_ids) + count - 1):
            batch.token[0], batch.pos[0] = tokens[-1], position
            if llama.llama_decode(context, batch):
                raise RuntimeError("llama_decode failed")
            tokens.append(llama.llama_sampler_sample(sampler, context, -1))
        llama.llama_sampler_free(sampler)
        return tokens

    def last_logits(self, rows: Floats) -> Floats:
        """Evaluate embeddings (n, D) from the beginning in one batch and return the last logits, (vocab,)."""
        self.forget(0)
        np.ctypeslib.as_array(self.embeddings.struct.embd, (len(rows), self.width))[:] = rows
        self._decode(self.embeddings, len(rows), 0, outputs_from=len(rows) - 1)
        return self._logits(len(rows) - 1).copy()

    def keep(self, token_ids: Sequence[int]) -> None:
        """Evaluate a prefix for ``score_in_turn`` and keep it in the KV cache."""
        self.forget(0)
        self._decode_ids(token_ids, 0, outputs_from=len(token_ids))
        self.kept = len(token_ids)

    def forget(self, kept: int) -> None:
        """Remove all but the first ``kept`` positions from the KV cache."""
        self.llama.llama_memory_seq_rm(self.memory, 0, kept, -1)

    def score_in_turn(self, prompt: Sequence[int], options: Sequence[Sequence[int]]) -> list[float]:
        """Return the mean log-probability of each option after prefix and prompt.

        The prompt is evaluated once, then each option's tokens in a batch.
        """
        self.forget(self.kept)
        begin = self.kept + len(prompt)
        self._decode_ids(prompt, self.kept, outputs_from=len(prompt) - 1)
        first = self._log_probabilities([len(prompt) - 1] * len(options), [option[0] for option in options])
        scores: list[float] = []
        for option, first_term in zip(options, first, strict=True):
            self._decode_ids(option[:-1], begin, outputs_from=0)
            rest = self._log_probabilities(range(len(option) - 1), option[1:])
            scores.append((first_term + sum(rest)) / len(option))
            self.forget(begin)
        return scores

    def score_whole(self, before: Sequence[int], options: Sequence[Sequence[int]]) -> list[float]:
        """Return the same scores without the cache: each option in one batch with everything before it."""
        scores: list[float] = []
        for option in options:
            self.forget(0)
            last = len(before) - 1
            self._decode_ids([*before, *option[:-1]], 0, outputs_from=last)
            terms = self._log_probabilities(range(last, last + len(option)), option)
            scores.append(sum(terms) / len(option))
        return scores

    def end(self) -> int:
        """Return the number of positions in the KV cache."""
        return int(self.llama.llama_memory_seq_pos_max(self.memory, 0)) + 1

    def _decode_ids(self, token_ids: Sequence[int], position: int, outputs_from: int) -> None:
        np.ctypeslib.as_array(self.tokens.struct.token, (len(token_ids),))[:] = token_ids
        self._decode(self.tokens, len(token_ids), position, outputs_from)

    def _decode(self, batch: _Batch, n: int, position: int, outputs_from: int) -> None:
        batch.positions[:n] = range(position, position + n)
        batch.outputs[:outputs_from], batch.outputs[outputs_from:n] = 0, 1
        batch.struct.n_tokens = n
        if self.llama.llama_decode(self.context, batch.struct):
            raise RuntimeError("llama_decode failed")

    def _logits(self, row: int) -> Floats:
        return np.ctypeslib.as_array(self.llama.llama_get_logits_ith(self.context, row), (self.vocab_size,))

    def _log_probabilities(self, rows: Sequence[int], token_ids: Sequence[int]) -> list[float]:
        """Return the log-probability of one token after each of the last batch's rows."""
        totals = {row: log_total(self._logits(row)) for row in set(rows)}
        return [
            float(self._logits(row)[token]) - totals[row] for row, token in zip(rows, token_ids, strict=True)
        ]


class _Batch:
    """A ``llama_batch`` of one sequence, with array views of its fields."""

    def __init__(self, struct: Any) -> None:
        self.struct = struct
        self.positions = np.ctypeslib.as_array(struct.pos, (CONTEXT_TOKENS,))
        self.outputs = np.ctypeslib.as_array(struct.logits, (CONTEXT_TOKENS,))
        np.ctypeslib.as_array(struct.n_seq_id, (CONTEXT_TOKENS,))[:] = 1
        for i in range(CONTEXT_TOKENS):
            struct.seq_id[i][0] = 0


def log_total(logits: Floats) -> float:
    """Return the logarithm of the sum of exp over logits (vocab,)."""
    largest = logits.max()
    return float(largest) + float(np.log(np.exp(logits - largest).sum(dtype=np.float64)))
