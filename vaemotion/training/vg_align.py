"""Stage 1, VG-Align: the frozen base teaches the audio pathway to hear by seeing (``vaemotion train align``).

Teacher and student are the same frozen weights: the teacher reads ``[prompt; V; question; answer]``, the student
``[prompt; A; …]`` or, in a third of the steps, ``[prompt; V; A; …]``. The answer is the teacher's own, from sight. No
label of the sound is ever a target.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor

from vaemotion.contract import prompts
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.front_end import FrontEnd
from vaemotion.data.instructions import choose_question
from vaemotion.data.procedural_art import CONTENT_CLASSES
from vaemotion.model.audio_pathway import AudioPathway, AudioPathwayConfig
from vaemotion.model.backbones import AstEncoder
from vaemotion.model.checkpoint import (
    COMPONENT_DTYPE,
    load_checkpoint,
    read_config,
    round_in_place,
    save_checkpoint,
)
from vaemotion.model.pretrained import pretrained_audio_encoder, pretrained_base
from vaemotion.model.vaemotion_llm import VAEmotionLLM
from vaemotion.training.base_vlm import AuxiliaryHead
from vaemotion.training.config import AlignStage, TrainingConfig, read_training_config
from vaemotion.training.loop import fit, seeded, weights_digest
from vaemotion.training.losses import distillation_loss
from vaemotion.training.windows_cache import WindowCache, cached_windows

# Only audible questions are distilled: sight can teach the ear only what can be heard. Content *and* affect.
QUESTION_SHARES = {
    prompts.CONTENT: 0.3,
    prompts.AROUSAL: 0.22,
    prompts.VALENCE: 0.25,
    prompts.CAPTION: 0.13,
    prompts.EMOTION: 0.1,
}
assert all(question.audible for question in QUESTION_SHARES)
QUESTIONS_PER_WORK = 3
SAMPLING_TEMPERATURE = 0.7


@dataclass(frozen=True)
class Lesson:
    """One thing that the teacher said: of which window, from how many of its newest pictures, asked what."""

    window: int
    frame_count: int
    question: str
    answer: str


@dataclass(frozen=True)
class Views:
    """What the teacher sees in each window: ``content`` (n,) class index, -1 where its answer is none; ``affect`` (n, 2) valence
    and arousal, NaN where its answer is no level."""

    content: Tensor
    affect: Tensor


def train(
    config_file: Path, overrides: list[str], out: Path | None, resume: bool, vlm: Path | None = None, ear: Path | None = None
) -> None:  # fmt: skip
    """Run the stage on ``<runs>/base``; the checkpoint is written to ``out`` (default ``<runs>/align``).

    ``vlm``: a local SmolVLM2 that becomes ``<runs>/base`` first; ``ear``: a local AST that the audio encoder starts from.
    """
    config = read_training_config(config_file, overrides)
    base_folder, out = Path(config.runs) / "base", out or Path(config.runs) / "align"
    if vlm is not None:
        import_base(vlm, config, base_folder)
    weights = None
    if ear is not None:
        encoder, weights = pretrained_audio_encoder(ear)
        front_end = FrontEnd(config.log_mel, config.image, config.windows)
        wanted, given = (
            (encoder["max_length"], encoder["num_mel_bins"]),
            (front_end.audio_window_frames, config.log_mel.n_mels),
        )
        if wanted != given:
            raise UsageError(
                f"{ear} hears {wanted[0]} frames of {wanted[1]} mels, the configuration gives {given[0]} of {given[1]}; "
                f"set log_mel.n_mels, log_mel.hop_samples and windows.audio_window_s to match"
            )
        config = replace(config, audio_encoder=encoder)
    model = with_audio_pathway(load_checkpoint(base_folder), config)
    if weights is not None:
        assert model.audio is not None
        assert isinstance(model.audio.encoder, AstEncoder)
        model.audio.encoder.ast.load_state_dict(weights)
    stored = read_config(base_folder)
    base_hash = stored["components"]["base"]["sha256"]
    working = out.with_name(out.name + ".training")
    cache = cached_windows(model, base_hash, "train", config.align.works, config.seed, Path(config.runs))
    lessons = teacher_lessons(model, cache, config, base_hash, working)
    views = teacher_views(model, cache, base_hash, working)
    if run(model, cache, lessons, views, config, working, resume):
        assert model.audio is not None
        round_in_place(model.audio, COMPONENT_DTYPE["audio"])
        save_checkpoint(model, out, {**stored["lineage"], "align": config.to_dict()}, config.licence)
        if read_config(out)["components"]["base"]["sha256"] != base_hash:
            raise UserError("stage 1 changed the base's weights; this is a defect, please report it")


def import_base(folder: Path, config: TrainingConfig, out: Path) -> None:
    """A pretrained vision-language model as the checkpoint that stage 1 starts from."""
    model = pretrained_base(folder, FrontEnd(config.log_mel, config.image, config.windows))
    round_in_place(model.base, COMPONENT_DTYPE["base"])
    save_checkpoint(model, out, {"name": config.name, "base": {"pretrained": folder.name}}, config.licence)


def with_audio_pathway(base: VAEmotionLLM, config: TrainingConfig) -> VAEmotionLLM:
    """The same base, frozen, with a new audio pathway that starts at the scale of the visual tokens."""
    base.requires_grad_(False)
    torch.manual_seed(config.seed + 2)
    audio_config = AudioPathwayConfig(config.audio_encoder)
    base.config = replace(base.config, audio=audio_config)
    base.audio = AudioPathway(audio_config, base.width)
    with torch.no_grad():
        side = base.config.front_end.image.side_px
        noise = torch.randn(8, 3, side, side, generator=seeded(config.seed, 3)).clamp(-1, 1)
        visual_norm = base.vision(noise).norm(dim=-1).mean().item()
        text_norm = base.base.model.get_input_embeddings().weight.norm(dim=-1).mean().item()
    base.audio.match_norm(visual_norm, text_norm)
    return base


def teacher_lessons(
    model: VAEmotionLLM, cache: WindowCache, config: TrainingConfig, base_hash: str, folder: Path
) -> list[Lesson]:
    """The teacher's answers, cached as JSON lines under a name that identifies all they depend on."""
    stage = config.align
    settings = [
        base_hash,
        config.seed,
        stage.works,
        stage.frame_counts,
        stage.sampled_share,
        QUESTIONS_PER_WORK,
    ]
    settings += [[q.text, share] for q, share in QUESTION_SHARES.items()]
    file = folder / f"lessons-{hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]}.jsonl"
    if file.exists():
        return [Lesson(**json.loads(line)) for line in file.read_text().splitlines()]
    plan: dict[tuple[int, str, bool], list[int]] = {}
    for window, work in enumerate(cache.works):
        rng = np.random.default_rng([config.seed, 4, work.seed])
        for _ in range(QUESTIONS_PER_WORK):
            count = int(rng.choice(np.array(stage.frame_counts)))
            question = choose_question(rng, QUESTION_SHARES).text
            plan.setdefault((count, question, bool(rng.random() < stage.sampled_share)), []).append(window)
    lessons: list[Lesson] = []
    for (count, question, sampled), windows in track(sorted(plan.items()), "teacher's answers"):
        for start in range(0, len(windows), 64):
            chunk = windows[start : start + 64]
            torch.manual_seed(int(seeded(config.seed, 5, chunk[0]).initial_seed()))
            media = model.media_embeddings(visual_tokens(cache, chunk, count), None, len(chunk))
            temperature = SAMPLING_TEMPERATURE if sampled else 0.0
            answers = model.generate(media, question, temperature=temperature)
            lessons += [Lesson(w, count, question, a) for w, a in zip(chunk, answers, strict=True) if a]
    folder.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(vars(lesson)) + "\n" for lesson in lessons))
    os.replace(temporary, file)
    return lessons


def teacher_views(model: VAEmotionLLM, cache: WindowCache, base_hash: str, folder: Path) -> Views:
    """The teacher's greedy answers to three questions on the newest pictures of each window, cached like the lessons."""
    words = {
        prompts.CONTENT: CONTENT_CLASSES,
        prompts.VALENCE: prompts.VALENCE_WORDS,
        prompts.AROUSAL: prompts.AROUSAL_WORDS,
    }
    identity = json.dumps([base_hash, [w.seed for w in cache.works]])
    file = folder / f"views-{hashlib.sha256(identity.encode()).hexdigest()[:12]}.safetensors"
    if not file.exists():
        count = model.config.front_end.windows.language_frames
        chunks = [list(range(i, min(i + 64, len(cache.works)))) for i in range(0, len(cache.works), 64)]
        answers: dict[str, list[str]] = {question.text: [] for question in words}
        for chunk in track(chunks, "teacher's views"):
            media = model.media_embeddings(visual_tokens(cache, chunk, count), None, len(chunk))
            for question in words:
                answers[question.text] += model.generate(media, question.text, max_tokens=8)
        index = [
            [options.index(a) if a in options else -1 for a in answers[question.text]]
            for question, options in words.items()
        ]
        folder.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(".tmp")
        save_file({"index": torch.tensor(index)}, temporary)
        os.replace(temporary, file)
    content, *levels = load_file(file)["index"]
    affect = torch.stack(levels, dim=1).float()  # (n, 2)
    middle = (2 * affect + 1) / len(prompts.VALENCE_WORDS) - 1  # of the level's part of [-1, 1]
    return Views(content, torch.where(affect < 0, torch.nan, middle))


def visual_tokens(cache: WindowCache, windows: Sequence[int], frame_count: int) -> Tensor:
    """Tokens of the newest pictures of each window, (B, frame_count * T, D) float32."""
    return cache.visual[list(windows), -frame_count:].flatten(1, 2).float()


def augmented(log_mel: Tensor, rng: np.random.Generator) -> Tensor:
    """Weak augmentation of synchronised pairs: gain (±2 dB), one time mask, one frequency mask. (B, frames, mels)."""
    log_mel = log_mel.clone()
    for row in log_mel:
        row += float(rng.uniform(-0.05, 0.05))  # 2 dB are 0.46 nepers of power, divided by 2 · std
        for length, axis in ((10, 0), (4, 1)):
            width = int(rng.integers(0, length))
            start = int(rng.integers(0, row.shape[axis] - width))
            row.narrow(axis, start, width).fill_(float(row.mean()))
    return log_mel


def run(
    model: VAEmotionLLM, cache: WindowCache, lessons: list[Lesson], views: Views, config: TrainingConfig, out: Path,
    resume: bool, stop_after: int | None = None,
) -> bool:  # fmt: skip
    """Train the audio pathway in place; True when complete (see ``loop.fit``)."""
    stage, audio = config.align, model.audio
    assert audio is not None
    torch.manual_seed(config.seed + 3)
    auxiliary = AuxiliaryHead(model.width)
    by_count: dict[int, list[Lesson]] = {}
    for lesson in lessons:
        by_count.setdefault(lesson.frame_count, []).append(lesson)

    def batch(step: int) -> dict[str, Any]:
        rng = np.random.default_rng([config.seed, 6, step])
        sizes = np.array([len(group) for group in by_count.values()])
        group = list(by_count.values())[int(rng.choice(len(sizes), p=sizes / sizes.sum()))]
        chosen = [group[int(i)] for i in rng.integers(len(group), size=stage.optimisation.batch)]
        mel = cache.log_mel[[lesson.window for lesson in chosen]].float()
        return {
            "lessons": chosen,
            "log_mel": augmented(mel, rng),
            "both": bool(rng.random() < stage.both_share),
        }

    def loss(batch: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
        return alignment_loss(model, auxiliary, cache, views, batch, stage)

    identity = config.identity("align") + weights_digest(model.base)
    return fit(
        "align", [audio, auxiliary], batch, loss, stage.optimisation, out,
        seed=config.seed, resume=resume, identity=identity, stop_after=stop_after,
    )  # fmt: skip


def alignment_loss(
    model: VAEmotionLLM,
    auxiliary: AuxiliaryHead,
    cache: WindowCache,
    views: Views,
    batch: dict[str, Any],
    stage: AlignStage,
) -> tuple[Tensor, dict[str, float]]:
    """``L1 = L_KD + 0.5 · L_CE(answer)`` of one batch (see ``run``), and the disposable head's loss."""
    lessons: list[Lesson] = batch["lessons"]
    assert model.audio is not None
    size = len(lessons)
    visual = visual_tokens(cache, [lesson.window for lesson in lessons], lessons[0].frame_count)
    text = model.text_batch([lesson.question for lesson in lessons], [lesson.answer for lesson in lessons])
    with torch.no_grad():
        teacher = model.answer_logits(model.media_embeddings(visual, None, size), text)
    heard = model.audio(batch["log_mel"])
    student = model.answer_logits(
        model.media_embeddings(visual if batch["both"] else None, heard, size), text
    )
    distilled = distillation_loss(teacher, student, stage.temperature)
    answer = F.cross_entropy(student.float(), text.ids[text.answer])
    seen = view_loss(auxiliary(heard), views, [lesson.window for lesson in lessons])
    path = "both" if batch["both"] else "audio"
    total = distilled + stage.ce_weight * answer + stage.auxiliary_weight * seen
    return total, {f"kd_{path}": distilled.item(), f"ce_{path}": answer.item(), "views": seen.item()}


def view_loss(readout: Tensor, views: Views, windows: Sequence[int]) -> Tensor:
    """How far a disposable head on the audio tokens, (B, classes + 2), is from what the teacher saw in the same windows.

    Through the language model alone, what is audible of the feeling begins to be learnt only after thousands of steps (docs/log.md).
    """
    content, affect = views.content[list(windows)], views.affect[list(windows)]
    known = torch.isfinite(affect)
    error = torch.where(known, readout[:, -2:] - affect.nan_to_num(), 0.0)
    named = F.cross_entropy(readout[:, :-2], content, ignore_index=-1) if (content >= 0).any() else 0.0
    return 0.3 * named + 2 * (error**2).sum() / known.sum().clamp_min(1)
