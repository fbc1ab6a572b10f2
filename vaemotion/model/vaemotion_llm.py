"""The model: a frozen vision-language model, the audio pathway of stage 1, the EmoAdapter of stage 2.

A sequence is ``prefix; visual tokens; delimiter; audio tokens; delimiter; question; answer``, all of it as
embeddings. Sizes in the shapes: B sequences, L text tokens, P positions of prefix and media, N_v visual
tokens, N_a audio tokens, T visual tokens of one frame, D the language model's width.
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

from vaemotion.contract.errors import UserError
from vaemotion.contract.prompt_tokens import PromptTokens
from vaemotion.contract.prompts import PromptTemplate
from vaemotion.model.audio_pathway import AudioPathway
from vaemotion.model.backbones import VisionEncoder, build_vlm
from vaemotion.model.checkpoint_config import ModelConfig
from vaemotion.model.emo_adapter import EmoAdapter


class MissingPartError(UserError):
    """A model that lacks the part of a training stage."""


@dataclass(frozen=True)
class TextBatch:
    """Question and answer of each sequence as token ids, padded on the right."""

    ids: Tensor  # (B, L) int64, 0 where padded
    mask: Tensor  # (B, L) bool, True for tokens that are not padding
    answer: Tensor  # (B, L) bool, True for the tokens to predict: the answer and its stop token


class VAEmotionLLM(nn.Module):
    """The base, its vision encoder, and what the two stages add.

    ``base`` is frozen after its own training. ``audio`` is None before stage 1, ``adapter`` before stage 2.
    Code that needs them reads ``audio_pathway`` and ``emo_adapter``, which raise MissingPartError instead.
    """

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.template: PromptTemplate = config.prompt
        self._prompt_tokens = PromptTokens(tokenizer, config.prompt)
        self.base: Any = build_vlm(config.vlm)
        self.vision = VisionEncoder(self.base)
        width = self.width
        self.audio = AudioPathway(config.audio, width) if config.audio else None
        self.adapter = EmoAdapter(config.adapter, width) if config.adapter else None
        # The folder of a pretrained base, which a checkpoint names instead of copying it.
        self.base_folder: Path | None = None

    @property
    def audio_pathway(self) -> AudioPathway:
        """The audio pathway of stage 1. Raises MissingPartError before that stage."""
        if self.audio is None:
            raise MissingPartError("the model has no audio pathway; run `vaemotion train align` first")
        return self.audio

    @property
    def emo_adapter(self) -> EmoAdapter:
        """The EmoAdapter of stage 2. Raises MissingPartError before that stage."""
        if self.adapter is None:
            raise MissingPartError("the model has no EmoAdapter; run `vaemotion train emotion` first")
        return self.adapter

    @property
    def width(self) -> int:
        """Width of the language model, D."""
        return self.base.config.text_config.hidden_size

    @property
    def vocabulary(self) -> int:
        """Number of logits at each position."""
        return self.base.config.text_config.vocab_size

    @property
    def tokens_per_frame(self) -> int:
        """Number of visual tokens of one frame, T."""
        vlm = self.base.config
        return (vlm.vision_config.image_size // vlm.vision_config.patch_size // vlm.scale_factor) ** 2

    @property
    def device(self) -> torch.device:
        """Device of the base's weights."""
        return self.base.device

    @property
    def stop_id(self) -> int:
        """Token id that ends an answer."""
        return self.token_ids(self.template.stop)[0]

    def token_ids(self, text: str) -> list[int]:
        """Tokenize a part of the template; special tokens in it become one id each, none is added."""
        return self._prompt_tokens.of_template(text)

    def question_ids(self, question: str) -> list[int]:
        """Tokenize the text from the media to the answer; the question is plain text."""
        return self._prompt_tokens.of_question(question)

    def embed(self, ids: Tensor) -> Tensor:
        """Look up the embeddings of token ids: (..., L) → (..., L, D)."""
        return self.base.model.get_input_embeddings()(ids)

    def text_batch(self, questions: Sequence[str], answers: Sequence[str]) -> TextBatch:
        """Tokenize questions and answers, each answer closed by the stop token."""
        rows: list[tuple[list[int], int]] = []
        for question, answer in zip(questions, answers, strict=True):
            head = self.question_ids(question)
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
        """Join prefix and media into the start of a sequence, (B, P, D).

        visual: (B, N_v, D) and audio: (B, N_a, D), either may be None. Raises MissingPartError for audio
        tokens before stage 1.
        """
        prefix_ids = torch.tensor(self.token_ids(self.template.prefix), device=self.device)
        parts = [self.embed(prefix_ids).expand(batch, -1, -1)]  # (B, prefix, D)
        if visual is not None:
            parts.append(self._with_frame_markers(visual))
        if audio is not None:
            # (2, D) → two of (B, 1, D)
            before, after = self.audio_pathway.delimiters[:, None, None].expand(2, batch, 1, -1)
            parts += [before, audio, after]
        return torch.cat(parts, dim=1)  # (B, P, D)

    def _with_frame_markers(self, visual: Tensor) -> Tensor:
        """Put the template's texts around each frame's tokens: (B, n · T, D) → (B, n · (T + texts), D)."""
        texts = (self.template.before_picture, self.template.after_picture)
        marker_ids = [self.token_ids(text) for text in texts]
        if not any(marker_ids):
            return visual
        frames = visual.unflatten(1, (-1, self.tokens_per_frame))  # (B, n, T, D)
        before, after = (
            self.embed(torch.tensor(ids, dtype=torch.long, device=self.device)).expand(
                *frames.shape[:2], -1, -1
            )  # (B, n, text, D)
            for ids in marker_ids
        )
        return torch.cat([before, frames, after], dim=2).flatten(1, 2)

    def answer_logits(self, media: Tensor, text: TextBatch) -> Tensor:
        """Compute the logits that predict each answer token, (M, vocab), M answer tokens of the whole batch.

        media: (B, P, D) from ``media_embeddings``. The rows stand in the order of ``text.answer``. The
        token at position t is predicted at t - 1, so the positions are the answer's shifted by one to the
        left: the first answer token is predicted by the question's last token.
        """
        embeddings = torch.cat([media, self.embed(text.ids)], dim=1)  # (B, P + L, D)
        mask = torch.cat([text.mask.new_ones(media.shape[:2]), text.mask], dim=1)  # (B, P + L)
        hidden = self.base.model.text_model(
            inputs_embeds=embeddings, attention_mask=mask.long()
        ).last_hidden_state  # (B, P + L, D)
        predicts = F.pad(text.answer[:, 1:], (0, 1))  # (B, L), True where the *next* token is an answer token
        # (B, 1), True for an answer without a question: the last media position predicts its first token.
        first = text.answer[:, :1]
        before = first.new_zeros(media.shape[0], media.shape[1] - 1)  # (B, P - 1)
        positions = torch.cat([before, first, predicts], dim=1)  # (B, P + L) bool
        return self.base.lm_head(hidden[positions])  # (M, D) → (M, vocab)

    @torch.no_grad()
    def generate(
        self, media: Tensor, question: str, *, max_tokens: int = 24, temperature: float = 0.0
    ) -> list[str]:
        """Answer one question for each row of media (B, P, D); greedy at temperature 0, else sampled."""
        ids = torch.tensor(self.question_ids(question), device=self.device)
        step = torch.cat([media, self.embed(ids).expand(media.shape[0], -1, -1)], dim=1)  # (B, P + L, D)
        cache, tokens = None, []
        finished = torch.zeros(media.shape[0], dtype=torch.bool, device=self.device)  # (B,)
        for _ in range(max_tokens):
            out = self.base.model.text_model(inputs_embeds=step, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            logits = self.base.lm_head(out.last_hidden_state[:, -1]).float()  # (B, vocab)
            greedy = logits.argmax(-1)  # (B,)
            chosen = (
                torch.multinomial((logits / temperature).softmax(-1), 1)[:, 0] if temperature > 0 else greedy
            )
            chosen = torch.where(finished, self.stop_id, chosen)
            tokens.append(chosen)
            finished |= chosen == self.stop_id
            if finished.all():
                break
            step = self.embed(chosen)[:, None]  # (B, 1, D)
        rows = torch.stack(tokens, dim=1).tolist()
        return [self.tokenizer.decode([i for i in row if i != self.stop_id]).strip() for row in rows]

    def option_ids(self, option: str) -> list[int]:
        """Tokenize an answer as the model would give it, closed by the stop token."""
        return [*self._prompt_tokens.of_answer(option), self.stop_id]

    @torch.no_grad()
    def option_scores(self, media: Tensor, question: str, options: Sequence[str]) -> Tensor:
        """Score options by their mean token log-probability after the question, (B, options).

        media: (B, P, D). Media and question are evaluated once, each option behind their KV cache.
        """
        question_ids = torch.tensor(self.question_ids(question), device=self.device)
        head = torch.cat([media, self.embed(question_ids).expand(len(media), -1, -1)], dim=1)  # (B, P + L, D)
        out = self.base.model.text_model(inputs_embeds=head, use_cache=True)
        first = self.base.lm_head(out.last_hidden_state[:, -1]).float().log_softmax(-1)  # (B, vocab)
        cache, scores = out.past_key_values, []
        for option in options:
            ids = self.option_ids(option)
            total = first[:, ids[0]]  # (B,)
            if len(ids) > 1:
                fed = self.embed(torch.tensor(ids[:-1], device=self.device)).expand(len(media), -1, -1)
                step = self.base.model.text_model(inputs_embeds=fed, past_key_values=cache, use_cache=True)
                cache.crop(-fed.shape[1])
                logits = self.base.lm_head(step.last_hidden_state)  # (B, tokens - 1, vocab)
                wanted = torch.tensor(ids[1:], device=self.device).expand(len(media), -1)  # (B, tokens - 1)
                log_probabilities = logits.float().log_softmax(-1).gather(2, wanted[..., None])[..., 0]
                total = total + log_probabilities.sum(1)
            scores.append(total / len(ids))
        return torch.stack(scores, dim=1)
