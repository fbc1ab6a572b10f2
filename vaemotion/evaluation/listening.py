"""What a model in training answers about windows of media: batched, in torch, without an export.

In: media embeddings (B, P, D), or what to make them of. Out: mean token log-probabilities of options, as the device scores them,
and what follows from them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vaemotion.contract import prompts
from vaemotion.data.procedural_art import CONTENT_CLASSES
from vaemotion.model.vaemotion_llm import VAEmotionLLM

_CHUNK = 48  # windows at once


def _chunks(count: int) -> Iterator[slice]:
    return (slice(start, start + _CHUNK) for start in range(0, count, _CHUNK))


@torch.no_grad()
def hear(model: VAEmotionLLM, log_mel: Tensor) -> Tensor:
    """Audio tokens (n, N_a, D) of normalised windows (n, frames, mels)."""
    assert model.audio is not None
    audio = model.audio.eval()
    return torch.cat([audio(log_mel[c].float().to(model.device)) for c in _chunks(len(log_mel))])


def content_scores(
    model: VAEmotionLLM,
    visual: Tensor | None,
    audio: Tensor | None,
    count: int,
    options: Sequence[str] = CONTENT_CLASSES,
) -> Tensor:
    """Scores of "What is this?", (count, options), for windows with visual tokens (count, N_v, D), audio tokens (count, N_a, D), both, or
    neither (blind)."""
    return asked(model, visual, audio, count, prompts.CONTENT.text, options)


def asked(
    model: VAEmotionLLM, visual: Tensor | None, audio: Tensor | None, count: int, question: str, options: Sequence[str]
) -> Tensor:  # fmt: skip
    """Scores of any question's options, (count, options); see ``content_scores``."""
    scores: list[Tensor] = []
    for chunk in _chunks(count):
        size = min(chunk.stop, count) - chunk.start
        media = model.media_embeddings(
            None if visual is None else visual[chunk], None if audio is None else audio[chunk], size
        )
        scores.append(model.option_scores(media, question, options))
    return torch.cat(scores)


def written(model: VAEmotionLLM, audio: Tensor, question: str) -> list[str]:
    """A greedy answer from sound alone for each window, audio tokens (n, N_a, D)."""
    answers: list[str] = []
    for chunk in _chunks(len(audio)):
        heard = audio[chunk]
        answers += model.generate(model.media_embeddings(None, heard, len(heard)), question)
    return answers
