"""Loss of a quantized language model: divergence of its next-token distributions from the reference's.

In: two GGUF files of one model, and prompts as the device feeds them: embeddings `(n, D)` float32 of text
tokens, visual tokens and audio tokens. Out: the Kullback-Leibler divergence KL(reference ‖ quantized) per
position in nats, and the share of positions with the same likeliest token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.engines.language_model import LanguageModel

Floats = npt.NDArray[np.floating[Any]]

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

    def sentence(self) -> str:
        """Say it in one line."""
        return (
            f"KL mean {self.mean_kl_nats:.2g}, p99 {self.p99_kl_nats:.2g}, max {self.max_kl_nats:.2g} nats a "
            f"token, same likeliest token {self.same_top1_share:.2%} of {self.positions} positions"
        )


def kl_and_top1(reference_logits: Floats, logits: Floats) -> KlReport:
    """Compare logits (n, vocab) with the reference's (n, vocab), in float64. Raises ValueError."""
    return _report(*_compare(reference_logits, logits))


def gguf_quality(
    reference: Path,
    quantized: Path,
    token_embeddings: Floats,
    prompts: Sequence[npt.NDArray[np.float32]],
    *,
    uncounted_rows: int | Sequence[int] = 0,
    threads: int = 2,
) -> KlReport:
    """Run prompts (n, D) through both files and compare the positions behind `uncounted_rows`.

    Prompts include their prefix. `uncounted_rows` (one number, or one for each prompt) are kept as the
    prefix: the length of the fixed prefix, or of everything before an answer's last known row, to compare
    only where an answer is spoken. `token_embeddings` (vocab, D) as in the bundle. Raises LanguageModelError,
    and ValueError for prompts without a position to compare.
    """
    uncounted = [int(n) for n in np.broadcast_to(np.asarray(uncounted_rows), (len(prompts),))]
    if not prompts or any(not 0 <= n < len(p) for n, p in zip(uncounted, prompts, strict=True)):
        raise ValueError(
            "prompts: expected at least one, each longer than its uncounted rows; give longer prompts"
        )
    context_tokens = max(len(prompt) for prompt in prompts)
    kl_nats: list[npt.NDArray[np.float64]] = []
    same: list[npt.NDArray[np.bool_]] = []

    def opened(path: Path) -> LanguageModel:
        return LanguageModel(
            path, token_embeddings, context_tokens=context_tokens, threads=threads, f32_kv=True
        )

    with opened(reference) as expected, opened(quantized) as got:
        for prompt, first in zip(prompts, uncounted, strict=True):
            rows: list[npt.NDArray[np.float32]] = []
            for model in (expected, got):
                model.set_prefix(prompt[:first])
                rows.append(model.logits(prompt[first:], all_positions=True))
            prompt_kl, prompt_same = _compare(*rows)
            kl_nats.append(prompt_kl)
            same.append(prompt_same)
    return _report(np.concatenate(kl_nats), np.concatenate(same))


def _compare(
    reference_logits: Floats, logits: Floats
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Compute the KL in nats (n,), and True where the likeliest token is the same (n,)."""
    if reference_logits.shape != logits.shape or logits.ndim != 2 or logits.size == 0:
        raise ValueError(
            f"logits: expected two equal shapes (n, vocab), got {reference_logits.shape} and {logits.shape}; "
            "take both from the same prompts"
        )
    kl_nats: list[npt.NDArray[np.float64]] = []
    for start in range(0, len(logits), _ROWS_AT_ONCE):
        log_p = _log_softmax(reference_logits[start : start + _ROWS_AT_ONCE])
        log_q = _log_softmax(logits[start : start + _ROWS_AT_ONCE])
        kl_nats.append((np.exp(log_p) * (log_p - log_q)).sum(axis=1))
    return np.concatenate(kl_nats), reference_logits.argmax(axis=1) == logits.argmax(axis=1)


def _log_softmax(logits: Floats) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _report(kl_nats: npt.NDArray[np.float64], same: npt.NDArray[np.bool_]) -> KlReport:
    return KlReport(
        mean_kl_nats=float(kl_nats.mean()),
        p99_kl_nats=float(np.quantile(kl_nats, 0.99)),
        max_kl_nats=float(kl_nats.max()),
        same_top1_share=float(same.mean()),
        positions=len(kl_nats),
    )
