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


@torch.no_grad()
def option_scores(model: VAEmotionLLM, media: Tensor, question: str, options: Sequence[str]) -> Tensor:
    """Mean token log-probability of each option after the question, (B, options). media: (B, P, D). The prefix is evaluated once."""
    question_ids = torch.tensor(model.token_ids(model.template.question_text(question)), device=model.device)
    head = torch.cat([media, model.embed(question_ids).expand(len(media), -1, -1)], dim=1)
    out = model.base.model.text_model(inputs_embeds=head, use_cache=True)
    last = model.base.lm_head(out.last_hidden_state[:, -1]).float().log_softmax(-1)  # (B, vocab)
    cache = out.past_key_values
    scores: list[Tensor] = []
    for option in options:
        ids = [*model.token_ids(model.template.answer_text(option)), model.stop_id]
        total = last[:, ids[0]]
        if len(ids) > 1:
            fed = model.embed(torch.tensor(ids[:-1], device=model.device)).expand(len(media), -1, -1)
            step = model.base.model.text_model(inputs_embeds=fed, past_key_values=cache, use_cache=True)
            cache.crop(-fed.shape[1])
            rows = (
                model.base.lm_head(step.last_hidden_state).float().log_softmax(-1)
            )  # (B, tokens - 1, vocab)
            wanted = torch.tensor(ids[1:], device=model.device).expand(len(media), -1)
            total = total + rows.gather(2, wanted[..., None])[..., 0].sum(1)
        scores.append(total / len(ids))
    return torch.stack(scores, dim=1)


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
        scores.append(option_scores(model, media, question, options))
    return torch.cat(scores)


def written(model: VAEmotionLLM, audio: Tensor, question: str) -> list[str]:
    """A greedy answer from sound alone for each window, audio tokens (n, N_a, D)."""
    answers: list[str] = []
    for chunk in _chunks(len(audio)):
        heard = audio[chunk]
        answers += model.generate(model.media_embeddings(None, heard, len(heard)), question)
    return answers
