"""Loss of a quantized language model: divergence of its next-token distributions from the reference's.

In: GGUF files of one model, and prompts as the device feeds them: embeddings `(n, D)` float32 of text tokens,
visual tokens and audio tokens, with an answer behind them. Out: over the positions where the answer is
spoken, the Kullback-Leibler divergence KL(reference ‖ quantized) in nats, the share of positions with the
same likeliest token, and the error of the logits relative to their spread.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.engines.golden import logit_error
from runtime.engines.language_model import LanguageModel

Floats = npt.NDArray[np.floating[Any]]
Doubles = npt.NDArray[np.float64]

_ROWS_AT_ONCE = 64  # in float64, 64 rows of 49,280 logits are 25 MB


@dataclass(frozen=True)
class KlReport:
    """Divergence over all compared positions, each one a next-token distribution."""

    mean_kl_nats: float
    p99_kl_nats: float
    max_kl_nats: float
    same_top1_share: float
    """Share of positions with the same likeliest token."""
    positions: int
    logit_error: float
    """Root mean square error of the logits relative to their spread, mean over the positions."""

    def sentence(self) -> str:
        """Say it in one line."""
        return (
            f"KL mean {self.mean_kl_nats:.2g}, p99 {self.p99_kl_nats:.2g}, max {self.max_kl_nats:.2g} nats a "
            f"token, same likeliest token {self.same_top1_share:.2%} of {self.positions} positions, logits "
            f"off by {self.logit_error:.2%} of their spread"
        )


def kl_and_top1(reference_logits: Floats, logits: Floats) -> KlReport:
    """Compare logits (n, vocab) with the reference's (n, vocab), in float64. Raises ValueError."""
    if reference_logits.shape != logits.shape or logits.ndim != 2 or logits.size == 0:
        raise ValueError(
            f"logits: expected two equal shapes (n, vocab), got {reference_logits.shape} and {logits.shape}; "
            "take both from the same prompts"
        )
    starts = range(0, len(logits), _ROWS_AT_ONCE)
    compared = [
        _compare(reference_logits[start : start + _ROWS_AT_ONCE], logits[start : start + _ROWS_AT_ONCE])
        for start in starts
    ]
    kl_nats, same, errors = (np.concatenate(parts) for parts in zip(*compared, strict=True))
    return KlReport(
        mean_kl_nats=float(kl_nats.mean()),
        p99_kl_nats=float(np.quantile(kl_nats, 0.99)),
        max_kl_nats=float(kl_nats.max()),
        same_top1_share=float(same.mean()),
        positions=len(kl_nats),
        logit_error=float(errors.mean()),
    )


def _compare(reference_logits: Floats, logits: Floats) -> tuple[Doubles, npt.NDArray[np.bool_], Doubles]:
    """Return KL in nats (n,), True where the likeliest token is the same (n,), and the logits' error (n,)."""
    log_p, log_q = _log_softmax(reference_logits), _log_softmax(logits)
    kl_nats = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    same = reference_logits.argmax(axis=1) == logits.argmax(axis=1)
    return kl_nats, same, logit_error(reference_logits, logits)


def _log_softmax(logits: Floats) -> Doubles:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


class GgufJudge:
    """Divergence of GGUF files of one model from its reference file, on prompts of embeddings.

    The reference is run once. Its logits lie in a file without a name, (n, vocab) float32.
    """

    def __init__(
        self,
        reference: Path,
        token_embeddings: Floats,
        prompts: Sequence[npt.NDArray[np.float32]],
        *,
        uncounted_rows: int | Sequence[int] = 0,
        threads: int = 2,
    ) -> None:
        """Run the reference on prompts (n, D) that include their prefix.

        `uncounted_rows` (one number, or one for each prompt) are kept as the prefix, and the positions behind
        them are compared: those where an answer is spoken, see `export.answers`. `token_embeddings`
        (vocab, D) as in the bundle. Raises LanguageModelError, and ValueError for prompts without a position
        to compare.
        """
        self._uncounted = [int(n) for n in np.broadcast_to(np.asarray(uncounted_rows), (len(prompts),))]
        if not prompts or any(not 0 <= n < len(p) for n, p in zip(self._uncounted, prompts, strict=True)):
            raise ValueError(
                "prompts: expected at least one, each longer than its uncounted rows; give longer prompts"
            )
        self._token_embeddings, self._prompts, self._threads = token_embeddings, prompts, threads
        self._reference = self._logits(reference)

    def __call__(self, quantized: Path) -> KlReport:
        """Compare every counted next-token distribution of a file with the reference's."""
        return kl_and_top1(self._reference, self._logits(quantized))

    def _logits(self, path: Path) -> npt.NDArray[np.float32]:
        """Compute the logits of all counted positions, (n, vocab)."""
        pairs = list(zip(self._prompts, self._uncounted, strict=True))
        with (
            LanguageModel(
                path,
                self._token_embeddings,
                context_tokens=max(map(len, self._prompts)),
                threads=self._threads,
                f32_kv=True,
            ) as model,
            tempfile.TemporaryFile() as file,
        ):
            count = sum(len(prompt) - first for prompt, first in pairs)
            logits = np.memmap(file, np.float32, "w+", shape=(count, model.vocab_size))
            position = 0
            for prompt, first in pairs:
                model.set_prefix(prompt[:first])
                rows = model.logits(prompt[first:], all_positions=True)
                logits[position : position + len(rows)] = rows
                position += len(rows)
        return logits
