"""The whole model: a frozen vision-language model, the audio pathway of stage 1, the EmoAdapter of stage 2.

A sequence is ``prefix; visual tokens; delimiter; audio tokens; delimiter; question; answer``, all of it embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from vaemotion.contract.prompts import PromptTemplate
from vaemotion.model.audio_pathway import AudioPathway
from vaemotion.model.backbones import VisionEncoder, build_vlm
from vaemotion.model.checkpoint_config import ModelConfig
from vaemotion.model.emo_adapter import EmoAdapter


@dataclass(frozen=True)
class TextBatch:
    """Question and answer of each sample, right-padded: ``ids`` (B, L), ``mask`` (B, L) bool for real tokens,
    ``answer`` (B, L) bool for the tokens to predict (the answer and its stop token)."""

    ids: Tensor
    mask: Tensor
    answer: Tensor


class VAEmotionLLM(nn.Module):
    """``base`` is frozen after its own training; ``audio`` and ``adapter`` are None before their stages."""

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.template: PromptTemplate = config.prompt
        self.base: Any = build_vlm(config.vlm)
        self.vision = VisionEncoder(self.base)
        width = self.width
        self.audio = AudioPathway(config.audio, width) if config.audio else None
        self.adapter = EmoAdapter(config.adapter, width) if config.adapter else None
        self.base_folder: Path | None = (
            None  # of a pretrained base, which a checkpoint names instead of copying it
        )

    @property
    def width(self) -> int:
        """Width of the language model, D."""
        return self.base.config.text_config.hidden_size

    @property
    def vocabulary(self) -> int:
        """How many logits there are."""
        return self.base.config.text_config.vocab_size

    @property
    def tokens_per_picture(self) -> int:
        """T: visual tokens that one picture becomes."""
        vlm = self.base.config
        return (vlm.vision_config.image_size // vlm.vision_config.patch_size // vlm.scale_factor) ** 2

    @property
    def device(self) -> torch.device:
        return self.base.device

    @property
    def stop_id(self) -> int:
        return self.token_ids(self.template.stop)[0]

    def token_ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def embed(self, ids: Tensor) -> Tensor:
        """(..., L) token ids → (..., L, D)."""
        return self.base.model.get_input_embeddings()(ids)

    def text_batch(self, questions: Sequence[str], answers: Sequence[str]) -> TextBatch:
        """Tokenised questions and answers, each answer closed by the stop token."""
        rows: list[tuple[list[int], int]] = []
        for question, answer in zip(questions, answers, strict=True):
            head = self.token_ids(self.template.question_text(question))
            rows.append(([*head, *self.option_ids(answer)], len(head)))
        longest = max(len(ids) for ids, _ in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        mask = torch.zeros(len(rows), longest, dtype=torch.bool)
        answer_mask = torch.zeros_like(mask)
        for row, (tokens, question_length) in enumerate(rows):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = True
            answer_mask[row, question_length : len(tokens)] = True
        return TextBatch(*(part.to(self.device) for part in (ids, mask, answer_mask)))

    def media_embeddings(self, visual: Tensor | None, audio: Tensor | None, batch: int) -> Tensor:
        """Prefix and media, (B, P, D): visual (B, N_v, D) and audio tokens (B, N_a, D), either may be None."""
        prefix = self.embed(torch.tensor(self.token_ids(self.template.prefix), device=self.device))
        parts = [prefix.expand(batch, -1, -1)]
        if visual is not None:
            parts.append(self._wrapped(visual))
        if audio is not None:
            assert self.audio is not None
            before, after = self.audio.delimiters[:, None, None].expand(2, batch, 1, -1)
            parts += [before, audio, after]
        return torch.cat(parts, dim=1)

    def _wrapped(self, visual: Tensor) -> Tensor:
        """Each picture's tokens between the template's texts around it: (B, n · T, D) → (B, n · (T + texts), D)."""
        around = [
            self.token_ids(text) for text in (self.template.before_picture, self.template.after_picture)
        ]
        if not any(around):
            return visual
        pictures = visual.unflatten(1, (-1, self.tokens_per_picture))  # (B, n, T, D)
        before, after = (
            self.embed(torch.tensor(ids, dtype=torch.long, device=self.device)).expand(
                *pictures.shape[:2], -1, -1
            )
            for ids in around
        )
        return torch.cat([before, pictures, after], dim=2).flatten(1, 2)

    def answer_logits(self, media: Tensor, text: TextBatch) -> Tensor:
        """Logits that predict each answer token, (n_answer_tokens, vocab), rows in the order of ``text.answer``.

        media: (B, P, D) from ``media_embeddings``. The token at position t is predicted at t - 1, so the positions
        are the answer's shifted by one to the left: the first answer token is predicted by the question's last.
        """
        embeddings = torch.cat([media, self.embed(text.ids)], dim=1)  # (B, P + L, D)
        mask = torch.cat([text.mask.new_ones(media.shape[:2]), text.mask], dim=1)
        hidden = self.base.model.text_model(
            inputs_embeds=embeddings, attention_mask=mask.long()
        ).last_hidden_state
        predicts = F.pad(text.answer[:, 1:], (0, 1))  # (B, L): True where the *next* token is an answer token
        first = text.answer[:, :1]  # an answer that starts at once is predicted by the last media position
        positions = torch.cat([first.new_zeros(media.shape[0], media.shape[1] - 1), first, predicts], dim=1)
        return self.base.lm_head(hidden[positions])

    @torch.no_grad()
    def generate(
        self, media: Tensor, question: str, *, max_tokens: int = 24, temperature: float = 0.0
    ) -> list[str]:
        """Answers to one question for each row of media (B, P, D); greedy at temperature 0, else sampled."""
        ids = torch.tensor(self.token_ids(self.template.question_text(question)), device=self.device)
        step = torch.cat([media, self.embed(ids).expand(media.shape[0], -1, -1)], dim=1)
        cache, tokens = None, []
        finished = torch.zeros(media.shape[0], dtype=torch.bool, device=self.device)
        for _ in range(max_tokens):
            out = self.base.model.text_model(inputs_embeds=step, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            logits = self.base.lm_head(out.last_hidden_state[:, -1]).float()  # (B, vocab)
            greedy = logits.argmax(-1)
            chosen = (
                torch.multinomial((logits / temperature).softmax(-1), 1)[:, 0] if temperature > 0 else greedy
            )
            chosen = torch.where(finished, self.stop_id, chosen)
            tokens.append(chosen)
            finished |= chosen == self.stop_id
            if finished.all():
                break
            step = self.embed(chosen)[:, None]
        rows = torch.stack(tokens, dim=1).tolist()
        return [self.tokenizer.decode([i for i in row if i != self.stop_id]).strip() for row in rows]

    def option_ids(self, option: str) -> list[int]:
        """An answer as the model would give it, closed by the stop token."""
        return [*self.token_ids(self.template.answer_text(option)), self.stop_id]

    @torch.no_grad()
    def option_scores(self, media: Tensor, question: str, options: Sequence[str]) -> Tensor:
        """Mean token log-probability of each option after the question, (B, options). media: (B, P, D). The prefix is evaluated once."""
        question_ids = torch.tensor(self.token_ids(self.template.question_text(question)), device=self.device)
        head = torch.cat([media, self.embed(question_ids).expand(len(media), -1, -1)], dim=1)
        out = self.base.model.text_model(inputs_embeds=head, use_cache=True)
        last = self.base.lm_head(out.last_hidden_state[:, -1]).float().log_softmax(-1)  # (B, vocab)
        cache, scores = out.past_key_values, []
        for option in options:
            ids = self.option_ids(option)
            total = last[:, ids[0]]
            if len(ids) > 1:
                fed = self.embed(torch.tensor(ids[:-1], device=self.device)).expand(len(media), -1, -1)
                step = self.base.model.text_model(inputs_embeds=fed, past_key_values=cache, use_cache=True)
                cache.crop(-fed.shape[1])
                rows = (
                    self.base.lm_head(step.last_hidden_state).float().log_softmax(-1)
                )  # (B, tokens - 1, vocab)
                wanted = torch.tensor(ids[1:], device=self.device).expand(len(media), -1)
                total = total + rows.gather(2, wanted[..., None])[..., 0].sum(1)
            scores.append(total / len(ids))
        return torch.stack(scores, dim=1)
