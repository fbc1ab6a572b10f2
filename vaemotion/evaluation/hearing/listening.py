"""Answers of a checkpoint about windows of media: batched, in torch, without an export.

In: log-mel windows, visual and audio tokens. Out: mean token log-probabilities of options, computed as on the
device, and greedy answers. Sizes in the shapes: n windows, N_v visual tokens, N_a audio tokens, D the
language model's width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vaemotion.model.vaemotion_llm import VAEmotionLLM

_CHUNK = 48  # windows in one batch


def _chunks(count: int) -> Iterator[slice]:
    return (slice(start, start + _CHUNK) for start in range(0, count, _CHUNK))


@torch.no_grad()
def encode_audio(model: VAEmotionLLM, log_mel: Tensor) -> Tensor:
    """Encode normalized windows (n, frames, mels) as audio tokens (n, N_a, D)."""
    audio = model.audio_pathway.eval()
    return torch.cat([audio(log_mel[c].float().to(model.device)) for c in _chunks(len(log_mel))])


def question_scores(
    model: VAEmotionLLM,
    visual: Tensor | None,
    audio: Tensor | None,
    count: int,
    question: str,
    options: Sequence[str],
) -> Tensor:
    """Score the options of a question by mean token log-probability, (count, options).

    In: visual tokens (count, N_v, D), audio tokens (count, N_a, D), both, or neither.
    """
    scores: list[Tensor] = []
    for chunk in _chunks(count):
        size = min(chunk.stop, count) - chunk.start
        media = model.media_embeddings(
            None if visual is None else visual[chunk], None if audio is None else audio[chunk], size
        )  # (size, P, D)
        scores.append(model.option_scores(media, question, options))
    return torch.cat(scores)


def greedy_answers(model: VAEmotionLLM, audio: Tensor, question: str) -> list[str]:
    """Answer a question from sound alone, one greedy answer per row of audio tokens (n, N_a, D)."""
    answers: list[str] = []
    for chunk in _chunks(len(audio)):
        tokens = audio[chunk]
        media = model.media_embeddings(None, tokens, len(tokens))
        answers += [answer.text for answer in model.generate(media, question)]
    return answers
