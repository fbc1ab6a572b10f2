"""What the frozen base says of what it sees: stage 1's only teacher.

In: windows with their visual tokens. Out: `Lesson`s (questions with the teacher's own answers) and `Views` (what it sees in every
window), computed once and kept beside the run with the settings that they depend on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor

from vaemotion.contract import prompts
from vaemotion.data.instructions import choose_question
from vaemotion.data.procedural_art import CONTENT_CLASSES
from vaemotion.evaluation.metrics import jensen_shannon
from vaemotion.model.vaemotion_llm import VAEmotionLLM
from vaemotion.training.config import AlignStage, TrainingConfig
from vaemotion.training.loop import seeded
from vaemotion.training.windows_cache import WindowCache

# Content *and* affect: content alone unlearns what is audible of the feeling. Of these only the audible ones are distilled:
# sight can teach the ear only what can be heard.
QUESTION_SHARES = {
    prompts.CONTENT: 0.3,
    prompts.AROUSAL: 0.22,
    prompts.VALENCE: 0.25,
    prompts.CAPTION: 0.13,
    prompts.EMOTION: 0.1,
    prompts.PALETTE: 0.0,
}
AUDIBLE_SHARES = {question: share for question, share in QUESTION_SHARES.items() if question.audible}
QUESTIONS_PER_WORK = 3
SAMPLING_TEMPERATURE = 0.7
_CHUNK = 64  # windows asked at once


@dataclass(frozen=True)
class Lesson:
    """One thing that the teacher said: of which window, from how many of its newest pictures, asked what."""

    window: int
    frame_count: int
    question: str
    answer: str


@dataclass(frozen=True)
class Views:
    """What the teacher sees in each window. ``content`` (n,): index of its answer, -1 where that is no class; ``coherent`` (n,) bool: does
    it begin its answer alike whether it looks at the fewest pictures or at the most (see ``AlignStage.incoherent_bits``)? ``affect`` (n, 2): the
    mean of the valence and of the arousal levels by the probability that it gives to each, in [-1, 1]."""

    content: Tensor
    coherent: Tensor
    affect: Tensor

    @property
    def filter_rate(self) -> float:
        """Share of the clips that are not taught from, because the teacher contradicts itself about them."""
        return 1 - self.coherent.float().mean().item()


def visual_tokens(cache: WindowCache, windows: Sequence[int], frame_count: int) -> Tensor:
    """Tokens of the newest pictures of each window, (B, frame_count * T, D) float32."""
    return cache.visual[list(windows), -frame_count:].flatten(1, 2).float()


def teacher_lessons(
    model: VAEmotionLLM, cache: WindowCache, config: TrainingConfig, base_hash: str, folder: Path
) -> list[Lesson]:
    """The teacher's answers, half of them greedy and half sampled; kept as JSON lines behind a line with their settings."""
    stage = config.align
    settings = {
        "base": base_hash,
        "seed": config.data_seed,
        "works": stage.works,
        "frame_counts": list(stage.frame_counts),
        "sampled_share": stage.sampled_share,
        "sampling_temperature": SAMPLING_TEMPERATURE,
        "questions_per_work": QUESTIONS_PER_WORK,
        "questions": {question.text: share for question, share in AUDIBLE_SHARES.items()},
        "prompt": asdict(model.template),
    }
    file = folder / f"lessons-{_digest(settings)}.jsonl"
    if file.exists():
        return [Lesson(**json.loads(line)) for line in file.read_text().splitlines()[1:]]
    lessons = _asked(model, cache, config)
    rows = [{"settings": settings}, *map(vars, lessons)]
    _write(file, "".join(json.dumps(row) + "\n" for row in rows).encode())
    return lessons


def _asked(model: VAEmotionLLM, cache: WindowCache, config: TrainingConfig) -> list[Lesson]:
    plan: dict[tuple[int, str, bool], list[int]] = {}
    for window, work in enumerate(cache.works):
        rng = np.random.default_rng([config.data_seed, 4, work.seed])
        for _ in range(QUESTIONS_PER_WORK):
            count = int(rng.choice(np.array(config.align.frame_counts)))
            question = choose_question(rng, AUDIBLE_SHARES).text
            sampled = bool(rng.random() < config.align.sampled_share)
            plan.setdefault((count, question, sampled), []).append(window)
    lessons: list[Lesson] = []
    for (count, question, sampled), windows in track(sorted(plan.items()), "teacher's answers"):
        for start in range(0, len(windows), _CHUNK):
            chunk = windows[start : start + _CHUNK]
            torch.manual_seed(int(seeded(config.data_seed, 5, chunk[0]).initial_seed()))
            media = model.media_embeddings(visual_tokens(cache, chunk, count), None, len(chunk))
            temperature = SAMPLING_TEMPERATURE if sampled else 0.0
            answers = model.generate(media, question, temperature=temperature)
            lessons += [Lesson(w, count, question, a) for w, a in zip(chunk, answers, strict=True) if a]
    return lessons


def teacher_views(
    model: VAEmotionLLM, cache: WindowCache, config: TrainingConfig, base_hash: str, folder: Path
) -> Views:
    """What the teacher sees in every window (see ``Views``)."""
    settings = {
        "base": base_hash,
        "works": [work.seed for work in cache.works],
        "frame_counts": list(config.align.frame_counts),
        "incoherent_bits": config.align.incoherent_bits,
        "prompt": asdict(model.template),
    }
    file = folder / f"views-{_digest(settings)}.safetensors"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(".tmp")
        save_file(_looked(model, cache, config.align), temporary)
        os.replace(temporary, file)
    return Views(**load_file(file))


def _looked(model: VAEmotionLLM, cache: WindowCache, stage: AlignStage) -> dict[str, Tensor]:
    n = len(cache.works)
    chunks = [list(range(start, min(start + _CHUNK, n))) for start in range(0, n, _CHUNK)]
    levels = model.config.front_end.windows.language_frames
    content: list[int] = []
    coherent: list[Tensor] = []
    felt: list[Tensor] = []
    for chunk in track(chunks, "teacher's views"):
        few, many = (
            model.media_embeddings(visual_tokens(cache, chunk, count), None, len(chunk))
            for count in (min(stage.frame_counts), max(stage.frame_counts))
        )
        content += [_class_index(a) for a in model.generate(many, prompts.CONTENT.text, max_tokens=8)]
        begun = [first_token_distribution(model, media, prompts.CONTENT.text) for media in (few, many)]
        apart_bits = jensen_shannon(*(distribution.cpu().numpy() for distribution in begun))
        coherent.append(torch.from_numpy(apart_bits <= stage.incoherent_bits))
        media = model.media_embeddings(visual_tokens(cache, chunk, levels), None, len(chunk))
        scales = ((prompts.VALENCE, prompts.VALENCE_WORDS), (prompts.AROUSAL, prompts.AROUSAL_WORDS))
        felt.append(torch.stack([mean_level(model, media, q.text, words) for q, words in scales], dim=1))
    return {"content": torch.tensor(content), "coherent": torch.cat(coherent), "affect": torch.cat(felt)}


@torch.no_grad()
def first_token_distribution(model: VAEmotionLLM, media: Tensor, question: str) -> Tensor:
    """How an answer would begin. media: (B, P, D). Returns (B, vocab)."""
    text = model.text_batch([question] * len(media), [""] * len(media))
    return model.answer_logits(media, text).float().view(len(media), -1, model.vocabulary)[:, 0].softmax(-1)


def _class_index(answer: str) -> int:
    return CONTENT_CLASSES.index(answer) if answer in CONTENT_CLASSES else -1


@torch.no_grad()
def mean_level(model: VAEmotionLLM, media: Tensor, question: str, words: Sequence[str]) -> Tensor:
    """Mean of the levels' middles by the probability that the language model gives to their words. media: (B, P, D). Returns (B,)."""
    lengths = torch.tensor([len(model.option_ids(word)) for word in words], device=media.device)
    log_probabilities = model.option_scores(media, question, words) * lengths
    middles = (2 * torch.arange(len(words)) + 1) / len(words) - 1
    return log_probabilities.softmax(1) @ middles.to(media.device)


def _digest(settings: Any) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, file)
