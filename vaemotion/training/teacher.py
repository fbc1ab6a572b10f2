"""The answers of the frozen base to visual tokens: the only teacher of stage 1.

In: windows with their visual tokens. Out: `DistillationSample`s (questions with the teacher's own answers)
and `TeacherTargets` (content and affect of every window), computed once and kept beside the run under a
hash of the settings that they depend on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from safetensors.torch import load_file
from torch import Tensor

from vaemotion.contract import prompts
from vaemotion.contract.files import write_whole
from vaemotion.data.art.art import CONTENT_CLASSES
from vaemotion.data.instructions import choose_question
from vaemotion.evaluation.metrics import jensen_shannon
from vaemotion.model.checkpoint import write_tensors
from vaemotion.model.vaemotion_llm import VAEmotionLLM
from vaemotion.training.config import AlignStage, TrainingConfig
from vaemotion.training.loop import seeded
from vaemotion.training.windows_cache import WindowCache

# Content *and* affect, because content alone unlearns the audible part of the affect. Only questions whose
# answer is audible are distilled: the audio pathway cannot learn the others.
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
_CHUNK = 64  # windows in one batch


@dataclass(frozen=True)
class DistillationSample:
    """One answer of the teacher."""

    window: int  # index into the cache
    frame_count: int  # newest frames of the window that the teacher was given
    question: str
    answer: str


@dataclass(frozen=True)
class TeacherTargets:
    """Content and affect of each window by the teacher, and where it agrees with itself."""

    content: Tensor  # (n,) int64, class index of its answer, -1 where that is no class
    # (n,) bool, True where its answers from the fewest and from the most frames begin alike (see
    # ``AlignStage.incoherent_bits``)
    coherent: Tensor
    affect: Tensor  # (n, 2) mean level of valence and arousal by their probability, in [-1, 1]

    @property
    def filter_rate(self) -> float:
        """Share of the windows without samples, because the teacher contradicts itself about them."""
        return 1 - self.coherent.float().mean().item()


def visual_tokens(cache: WindowCache, windows: Sequence[int], frame_count: int) -> Tensor:
    """Return the tokens of the newest frames of each window, (B, frame_count · T, D) float32."""
    newest = cache.visual[list(windows), -frame_count:]  # (B, frame_count, T, D)
    return newest.flatten(1, 2).float()


def distillation_samples(
    model: VAEmotionLLM, cache: WindowCache, config: TrainingConfig, base_hash: str, folder: Path
) -> list[DistillationSample]:
    """Read or generate the teacher's answers, a part of them greedy and the others sampled.

    They are kept in ``folder`` as JSON lines behind a line with their settings.
    """
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
        return [DistillationSample(**json.loads(line)) for line in file.read_text().splitlines()[1:]]
    samples = _generate_samples(model, cache, config)
    rows = [{"settings": settings}, *map(vars, samples)]
    write_whole(file, "".join(json.dumps(row) + "\n" for row in rows))
    return samples


def _generate_samples(
    model: VAEmotionLLM, cache: WindowCache, config: TrainingConfig
) -> list[DistillationSample]:
    windows_of: dict[tuple[int, str, bool], list[int]] = {}  # by frame count, question, sampled or greedy
    for window, work in enumerate(cache.works):
        rng = np.random.default_rng([config.data_seed, 4, work.seed])
        for _ in range(QUESTIONS_PER_WORK):
            count = int(rng.choice(np.array(config.align.frame_counts)))
            question = choose_question(rng, AUDIBLE_SHARES).text
            sampled = bool(rng.random() < config.align.sampled_share)
            windows_of.setdefault((count, question, sampled), []).append(window)
    samples: list[DistillationSample] = []
    for (count, question, sampled), windows in track(sorted(windows_of.items()), "teacher's answers"):
        for start in range(0, len(windows), _CHUNK):
            chunk = windows[start : start + _CHUNK]
            torch.manual_seed(int(seeded(config.data_seed, 5, chunk[0]).initial_seed()))
            media = model.media_embeddings(visual_tokens(cache, chunk, count), None, len(chunk))
            temperature = SAMPLING_TEMPERATURE if sampled else 0.0
            answers = model.generate(media, question, temperature=temperature)
            samples += [
                DistillationSample(window, count, question, answer)
                for window, answer in zip(chunk, answers, strict=True)
                if answer
            ]
    return samples


def teacher_targets(
    model: VAEmotionLLM, cache: WindowCache, config: TrainingConfig, base_hash: str, folder: Path
) -> TeacherTargets:
    """Read or compute the teacher's targets for every window; they are kept in ``folder``."""
    settings = {
        "base": base_hash,
        "works": [work.seed for work in cache.works],
        "frame_counts": list(config.align.frame_counts),
        "incoherent_bits": config.align.incoherent_bits,
        "prompt": asdict(model.template),
    }
    file = folder / f"views-{_digest(settings)}.safetensors"
    if not file.exists():
        write_tensors(file, _compute_targets(model, cache, config.align))
    return TeacherTargets(**load_file(file))


def _compute_targets(model: VAEmotionLLM, cache: WindowCache, stage: AlignStage) -> dict[str, Tensor]:
    n = len(cache.works)
    chunks = [list(range(start, min(start + _CHUNK, n))) for start in range(0, n, _CHUNK)]
    language_frames = model.config.front_end.windows.language_frames
    content: list[int] = []
    coherent: list[Tensor] = []  # each (B,) bool
    affect: list[Tensor] = []  # each (B, 2)
    for chunk in track(chunks, "teacher's targets"):
        few, many = (
            model.media_embeddings(visual_tokens(cache, chunk, count), None, len(chunk))
            for count in (min(stage.frame_counts), max(stage.frame_counts))
        )  # (B, P, D) each
        content += [_class_index(a) for a in model.generate(many, prompts.CONTENT.text, max_tokens=8)]
        first_tokens = [
            first_token_distribution(model, media, prompts.CONTENT.text).cpu().numpy()
            for media in (few, many)
        ]  # (B, vocab) each
        divergence_bits = jensen_shannon(*first_tokens)  # (B,)
        coherent.append(torch.from_numpy(divergence_bits <= stage.incoherent_bits))
        media = model.media_embeddings(visual_tokens(cache, chunk, language_frames), None, len(chunk))
        scales = ((prompts.VALENCE, prompts.VALENCE_WORDS), (prompts.AROUSAL, prompts.AROUSAL_WORDS))
        levels = [mean_level(model, media, question.text, words) for question, words in scales]
        affect.append(torch.stack(levels, dim=1))
    return {"content": torch.tensor(content), "coherent": torch.cat(coherent), "affect": torch.cat(affect)}


@torch.no_grad()
def first_token_distribution(model: VAEmotionLLM, media: Tensor, question: str) -> Tensor:
    """Compute the distribution of an answer's first token, (B, vocab). media: (B, P, D)."""
    text = model.text_batch([question] * len(media), [""] * len(media))
    logits = model.answer_logits(media, text).float()  # (B · answer tokens, vocab)
    return logits.view(len(media), -1, model.vocabulary)[:, 0].softmax(-1)


def _class_index(answer: str) -> int:
    return CONTENT_CLASSES.index(answer) if answer in CONTENT_CLASSES else -1


@torch.no_grad()
def mean_level(model: VAEmotionLLM, media: Tensor, question: str, words: Sequence[str]) -> Tensor:
    """Ask for one of the level words and average the levels by their probability, (B,) in [-1, 1].

    media: (B, P, D); words: from the lowest level to the highest.
    """
    return level_from_scores(model, model.option_scores(media, question, words), words)


def level_from_scores(model: VAEmotionLLM, scores: Tensor, words: Sequence[str]) -> Tensor:
    """Average the middles of the levels by the probability of their words, (B,) in [-1, 1].

    scores: (B, words) from ``VAEmotionLLM.option_scores``, which are means over each word's tokens.
    """
    lengths = torch.tensor([len(model.option_ids(word)) for word in words], device=scores.device)  # (words,)
    log_probabilities = scores * lengths  # (B, words)
    middles = (2 * torch.arange(len(words)) + 1) / len(words) - 1  # (words,)
    return log_probabilities.softmax(1) @ middles.to(scores.device)


def _digest(settings: Any) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
