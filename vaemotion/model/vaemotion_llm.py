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

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from vaemotion.contract.context import context_tokens
from vaemotion.contract.errors import UserError
from vaemotion.contract.positions import Places, advance_of, positions_of, text_places
from vaemotion.contract.prompt_tokens import PromptTokens
from vaemotion.contract.prompts import PromptTemplate
from vaemotion.model.audio_pathway import AudioPathway
from vaemotion.model.backbone import VlmBackbone
from vaemotion.model.checkpoint_config import ModelConfig
from vaemotion.model.emo_adapter import EmoAdapter
from vaemotion.model.families import family_of

ANSWER_TOKENS = 48  # of an answer in the model's own words, in training and in evaluation


class MissingPartError(UserError):
    """A model that lacks the part of a training stage."""


@dataclass(frozen=True)
class TextBatch:
    """Question and answer of each sequence as token ids, padded on the right."""

    ids: Tensor  # (B, L) int64, 0 where padded
    mask: Tensor  # (B, L) bool, True for tokens that are not padding
    answer: Tensor  # (B, L) bool, True for the tokens to predict: the answer and its stop token


@dataclass(frozen=True)
class Answer:
    """A generated answer. ``whole``: a stop token ended it; False where it was cut."""

    text: str
    whole: bool


@dataclass(frozen=True)
class Media:
    """The start of B sequences: prefix and media.

    ``places``: those of the P rows where the decoder puts pictures in two dimensions, None where it counts
    rows.
    """

    embeddings: Tensor  # (B, P, D)
    places: Places | None = None

    def __len__(self) -> int:
        return len(self.embeddings)

    def __getitem__(self, rows: slice) -> Media:
        """Return some of the sequences."""
        return Media(self.embeddings[rows], self.places)


class VAEmotionLLM(nn.Module):
    """The base, its vision encoder, and what the two stages add.

    ``base`` is the network of a vision-language model, frozen after its own training; ``backbone`` names its
    parts. ``audio`` is None before stage 1, ``adapter`` before stage 2. Code that needs them reads
    ``audio_pathway`` and ``emo_adapter``, which raise MissingPartError instead.
    """

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer, base: Any = None) -> None:
        """Build the model around ``base``, a network of the configuration's family; None: random weights."""
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.template: PromptTemplate = config.prompt
        self._prompt_tokens = PromptTokens(tokenizer, config.prompt)
        family = family_of(config.vlm)
        self.base: Any = family.build(config.vlm) if base is None else base
        self.backbone: VlmBackbone = family.parts(self.base, config.front_end.image.side_px)
        self.vision = self.backbone.vision
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
        return self.backbone.width

    @property
    def vocabulary(self) -> int:
        """Number of logits at each position."""
        return self.backbone.vocabulary

    @property
    def tokens_per_frame(self) -> int:
        """Number of visual tokens of one frame, T."""
        return self.backbone.tokens_per_picture

    @property
    def device(self) -> torch.device:
        """Device of the base's weights."""
        return self.base.device

    @property
    def stop_id(self) -> int:
        """Token id that closes an answer."""
        return self.stop_ids[0]

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Token ids that end an answer, the one that closes the answers of training first."""
        return tuple(self.token_ids(token)[0] for token in self.template.ends)

    def context_tokens(self) -> int:
        """Compute the context that prompts need. Raises UsageError where frames and sound leave no room."""
        frames = self.config.front_end.windows.language_frames
        audio = self.audio.n_tokens if self.audio is not None else 0
        window = self._prompt_tokens.of_window(frames, self.tokens_per_frame, audio)
        return context_tokens(window, self.backbone.longest_context)

    def token_ids(self, text: str) -> list[int]:
        """Tokenize a part of the template; special tokens in it become one id each, none is added."""
        return self._prompt_tokens.of_template(text)

    def question_ids(self, question: str) -> list[int]:
        """Tokenize the text from the media to the answer; the question is plain text."""
        return self._prompt_tokens.of_question(question)

    def embed(self, ids: Tensor) -> Tensor:
        """Look up the embeddings of token ids: (..., L) → (..., L, D)."""
        return self.backbone.embedding(ids)

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

    def media_embeddings(self, visual: Tensor | None, audio: Tensor | None, batch: int) -> Media:
        """Join prefix and media into the start of a sequence.

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
        embeddings = torch.cat(parts, dim=1)  # (B, P, D)
        frames = 0 if visual is None else visual.shape[1] // self.tokens_per_frame
        return Media(embeddings, self._media_places(frames, embeddings.shape[1]))

    def _media_places(self, frames: int, length: int) -> Places | None:
        """Return the places of prefix and media of ``length`` rows; None for decoders that count rows."""
        grid = self.backbone.grid
        if grid is None:
            return None
        texts = (self.template.prefix, self.template.before_picture, self.template.after_picture)
        prefix, before, after = (len(self.token_ids(text)) for text in texts)
        picture = [text_places(before), grid.places(), text_places(after)] * frames
        rest = length - prefix - frames * (before + grid.tokens + after)
        return np.concatenate([text_places(prefix), *picture, text_places(rest)])

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

    def states(
        self,
        media: Media,
        after: Tensor,
        *,
        mask: Tensor | None = None,
        cache: Any = None,
        use_cache: bool = False,
    ) -> Any:
        """Run the decoder on the rows behind the media, (B, L, D), with the media before them unless cached.

        ``mask``: (B, P + L) bool, False for padding. ``cache``: that of an earlier call, which holds the
        media and may hold more. Returns the decoder's output: ``last_hidden_state`` of all rows that were
        run, and with ``use_cache`` the cache as ``past_key_values``.
        """
        rows = after if cache is not None else torch.cat([media.embeddings, after], dim=1)
        placed = {}
        if media.places is not None:
            behind, begin = text_places(after.shape[1]), 0
            if cache is None:
                behind = np.concatenate([media.places, behind])
            else:  # all behind the media is text
                begin = advance_of(media.places) + cache.get_seq_length() - len(media.places)
            placed = {"position_ids": self._position_ids(behind, begin, len(rows))}
        return self.backbone.decoder(
            inputs_embeds=rows,
            attention_mask=None if mask is None else mask.long(),
            past_key_values=cache,
            use_cache=use_cache,
            **placed,
        )

    def _position_ids(self, places: Places, begin: int, batch: int) -> Tensor:
        """Return the coordinates of rows, (3, B, rows)."""
        positions = torch.from_numpy(positions_of(places, begin)).to(self.device)
        return positions.T[:, None].expand(-1, batch, -1)

    def answer_logits(self, media: Media, text: TextBatch) -> Tensor:
        """Compute the logits that predict each answer token, (M, vocab), M answer tokens of the whole batch.

        The rows stand in the order of ``text.answer``. The token at position t is predicted at t - 1, so the
        positions are the answer's shifted by one to the left: the first answer token is predicted by the
        question's last token.
        """
        length = media.embeddings.shape[1]
        mask = torch.cat([text.mask.new_ones(len(media), length), text.mask], dim=1)  # (B, P + L)
        hidden = self.states(media, self.embed(text.ids), mask=mask).last_hidden_state  # (B, P + L, D)
        predicts = F.pad(text.answer[:, 1:], (0, 1))  # (B, L), True where the *next* token is an answer token
        # (B, 1), True for an answer without a question: the last media position predicts its first token.
        first = text.answer[:, :1]
        before = first.new_zeros(len(media), length - 1)  # (B, P - 1)
        positions = torch.cat([before, first, predicts], dim=1)  # (B, P + L) bool
        return self.backbone.head(hidden[positions])  # (M, D) → (M, vocab)

    @torch.no_grad()
    def last_state(self, media: Media, question: str) -> Tensor:
        """Compute the state from which the first token of the answer is predicted, (B, D)."""
        return self.states(media, self._asked(media, question)).last_hidden_state[:, -1]

    def _asked(self, media: Media, question: str) -> Tensor:
        """Embed one question for each row of media, (B, L, D)."""
        ids = torch.tensor(self.question_ids(question), device=self.device)
        return self.embed(ids).expand(len(media), -1, -1)

    @torch.no_grad()
    def generate(
        self, media: Media, question: str, *, max_tokens: int = ANSWER_TOKENS, temperature: float = 0.0
    ) -> list[Answer]:
        """Answer one question for each row of media; greedy at temperature 0, else sampled."""
        step = self._asked(media, question)  # (B, L, D)
        cache, tokens, stops = None, [], torch.tensor(self.stop_ids, device=self.device)
        finished = torch.zeros(len(media), dtype=torch.bool, device=self.device)  # (B,)
        for _ in range(max_tokens):
            out = self.states(media, step, cache=cache, use_cache=True)
            cache = out.past_key_values
            logits = self.backbone.head(out.last_hidden_state[:, -1]).float()  # (B, vocab)
            greedy = logits.argmax(-1)  # (B,)
            chosen = (
                torch.multinomial((logits / temperature).softmax(-1), 1)[:, 0] if temperature > 0 else greedy
            )
            chosen = torch.where(finished, self.stop_id, chosen)
            tokens.append(chosen)
            finished |= torch.isin(chosen, stops)
            if finished.all():
                break
            step = self.embed(chosen)[:, None]  # (B, 1, D)
        rows = torch.stack(tokens, dim=1).tolist()
        texts = [self.tokenizer.decode([i for i in row if i not in self.stop_ids]).strip() for row in rows]
        return [Answer(text, whole) for text, whole in zip(texts, finished.tolist(), strict=True)]

    def option_ids(self, option: str) -> list[int]:
        """Tokenize an answer as the model would give it, closed by the stop token."""
        return [*self._prompt_tokens.of_answer(option), self.stop_id]

    @torch.no_grad()
    def option_scores(self, media: Media, question: str, options: Sequence[str]) -> Tensor:
        """Score options by their mean token log-probability after the question, (B, options).

        Media and question are evaluated once, each option behind their KV cache.
        """
        out = self.states(media, self._asked(media, question), use_cache=True)
        first = self.backbone.head(out.last_hidden_state[:, -1]).float().log_softmax(-1)  # (B, vocab)
        cache, scores = out.past_key_values, []
        for option in options:
            ids = self.option_ids(option)
            total = first[:, ids[0]]  # (B,)
            if len(ids) > 1:
                fed = self.embed(torch.tensor(ids[:-1], device=self.device)).expand(len(media), -1, -1)
                step = self.states(media, fed, cache=cache, use_cache=True)
                cache.crop(-fed.shape[1])
                logits = self.backbone.head(step.last_hidden_state)  # (B, tokens - 1, vocab)
                wanted = torch.tensor(ids[1:], device=self.device).expand(len(media), -1)  # (B, tokens - 1)
                log_probabilities = logits.float().log_softmax(-1).gather(2, wanted[..., None])[..., 0]
                total = total + log_probabilities.sum(1)
            scores.append(total / len(ids))
        return torch.stack(scores, dim=1)
