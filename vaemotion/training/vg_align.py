"""Stage 1, VG-Align: the frozen base teaches the audio pathway to hear by seeing (``vaemotion train align``).

Teacher and student are the same frozen weights: the teacher reads ``[prompt; V; question; answer]``, the student
``[prompt; A; …]`` or, in a third of the steps, ``[prompt; V; A; …]``. The answer is the teacher's own, from sight. No
label of the sound is ever a target. Clips about which the teacher contradicts itself are not taught from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vaemotion.contract import prompts
from vaemotion.contract.bundle import sha256_of
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.front_end import FrontEnd
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
from vaemotion.training.config import TrainingConfig, read_training_config
from vaemotion.training.loop import Objective, Parts, fit, process, seeded, weights_digest
from vaemotion.training.losses import answer_loss, distillation_loss, masked_squared_error
from vaemotion.training.recordings import Recording, heard_elsewhere, read_recordings
from vaemotion.training.teacher import Lesson, Views, teacher_lessons, teacher_views, visual_tokens
from vaemotion.training.windows_cache import WindowCache, cached_windows


def train(
    config_file: Path, overrides: list[str], out: Path | None, resume: bool, vlm: Path | None = None, ear: Path | None = None
) -> None:  # fmt: skip
    """Run the stage on ``<runs>/base``; the checkpoint is written to ``out`` (default ``<runs>/align``).

    ``vlm``: a local SmolVLM2 that becomes ``<runs>/base`` first; ``ear``: a local AST that the audio encoder starts from.
    """
    config = read_training_config(config_file, overrides)
    base_folder, out = Path(config.runs) / "base", out or Path(config.runs) / "align"
    me = process()
    if vlm is not None and me.is_main_process:
        import_base(vlm, config, base_folder)
    me.wait_for_everyone()
    weights = None
    if ear is not None:
        config, weights = with_pretrained_ear(ear, config)
    model = with_audio_pathway(load_checkpoint(base_folder), config)
    if weights is not None:
        assert model.audio is not None
        assert isinstance(model.audio.encoder, AstEncoder)
        model.audio.encoder.ast.load_state_dict(weights)
    stored = read_config(base_folder)
    base_hash = stored["components"]["base"]["sha256"]
    working = out.with_name(out.name + ".training")
    with me.main_process_first():  # the others read what it kept
        school = prepare(model, config, base_hash, working)
    if run(model, school, config, working, resume) and me.is_main_process:
        assert model.audio is not None
        round_in_place(model.audio, COMPONENT_DTYPE["audio"])
        lineage = {**stored["lineage"], "align": {**config.lineage(), **school.summary()}}
        save_checkpoint(model, out, lineage, config.licence)
        if read_config(out)["components"]["base"]["sha256"] != base_hash:
            raise UserError("stage 1 changed the base's weights; this is a defect, please report it")
    me.wait_for_everyone()


@dataclass(frozen=True)
class School:
    """All that stage 1 is taught with: procedural windows, the teacher's lessons about them and its views, and recordings
    whose class chooses the windows that they are paired with. ``data``: identifies the recordings."""

    cache: WindowCache
    lessons: list[Lesson]
    views: Views
    recordings: list[Recording]
    data: str = ""

    def summary(self) -> dict[str, Any]:
        """For the lineage and the log."""
        return {
            "clips": len(self.cache.works),
            "clips_filtered_as_incoherent": round(self.views.filter_rate, 4),
            "lessons": len(self.lessons),
            "recordings": len(self.recordings),
            "recordings_manifest_sha256": self.data,
        }


def prepare(model: VAEmotionLLM, config: TrainingConfig, base_hash: str, working: Path) -> School:
    """Compute, or read where it was kept, what the stage is taught with, and say how many clips are filtered out."""
    stage = config.align
    cache = cached_windows(model, base_hash, "train", stage.works, config.data_seed, Path(config.runs))
    views = teacher_views(model, cache, config, base_hash, working)
    lessons = [
        lesson
        for lesson in teacher_lessons(model, cache, config, base_hash, working)
        if views.coherent[lesson.window]
    ]
    if not lessons:
        raise UserError(
            "the teacher says nothing about any clip, or contradicts itself; look at the base, or raise align.incoherent_bits"
        )
    recordings, data = [], ""
    if stage.recordings:
        front_end = model.config.front_end
        recordings = read_recordings(Path(stage.recordings), Path(config.media_root), front_end)
        data = sha256_of(Path(stage.recordings))
    school = School(cache, lessons, views, recordings, data)
    print(", ".join(f"{key.replace('_', ' ')}: {value}" for key, value in school.summary().items()))
    return school


def with_pretrained_ear(ear: Path, config: TrainingConfig) -> tuple[TrainingConfig, dict[str, Tensor]]:
    """The configuration with that encoder, and its weights. Raises UsageError when it does not fit the front end."""
    encoder, weights = pretrained_audio_encoder(ear)
    front_end = FrontEnd(config.log_mel, config.image, config.windows)
    wanted = (encoder["max_length"], encoder["num_mel_bins"])
    given = (front_end.audio_window_frames, config.log_mel.n_mels)
    if wanted != given:
        raise UsageError(
            f"{ear} hears {wanted[0]} frames of {wanted[1]} mels, the configuration gives {given[0]} of {given[1]}; "
            f"set log_mel.n_mels, log_mel.hop_samples and windows.audio_window_s to match"
        )
    return replace(config, audio_encoder=encoder), weights


def import_base(folder: Path, config: TrainingConfig, out: Path) -> None:
    """A pretrained vision-language model as the checkpoint that stage 1 starts from: it names the folder and copies nothing."""
    model = pretrained_base(folder, FrontEnd(config.log_mel, config.image, config.windows))
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


class Pairs:
    """Which sound is heard with which lesson. Sample numbers → batches (see ``loop.fit``)."""

    def __init__(self, school: School, config: TrainingConfig, front_end: FrontEnd) -> None:
        self.school, self.config, self.stage, self.front_end = school, config, config.align, front_end
        self.by_count: dict[int, list[Lesson]] = {}
        self.by_count_and_class: dict[tuple[int, int], list[Lesson]] = {}
        for lesson in school.lessons:
            self.by_count.setdefault(lesson.frame_count, []).append(lesson)
            if lesson.question == prompts.CONTENT.text:  # matched pairs ask for content only
                content = CONTENT_CLASSES.index(school.cache.works[lesson.window].content)
                self.by_count_and_class.setdefault((lesson.frame_count, content), []).append(lesson)
        counts = {count for count, _ in self.by_count_and_class}
        for recording in school.recordings:
            if lacking := [c for c in counts if (c, recording.content) not in self.by_count_and_class]:
                raise UserError(
                    f"no clip of {CONTENT_CLASSES[recording.content]!r} that the teacher names is seen in {lacking} "
                    f"pictures: set align.works higher"
                )

    def collate(self, numbers: Sequence[int]) -> dict[str, Any]:
        """One count of pictures for all samples of a step; with sight or without."""
        rng = np.random.default_rng([self.config.seed, 6, numbers[0] // self.stage.optimisation.batch])
        sizes = np.array([len(group) for group in self.by_count.values()])
        count = list(self.by_count)[int(rng.choice(len(sizes), p=sizes / sizes.sum()))]
        both = bool(rng.random() < self.stage.both_share)
        lessons, heard, synchronised = zip(*(self._pair(number, count) for number in numbers), strict=True)
        return {
            "lessons": list(lessons),
            "log_mel": torch.from_numpy(np.stack(heard)),
            "synchronised": torch.tensor(synchronised),
            "both": both,
        }

    def _pair(self, number: int, count: int) -> tuple[Lesson, np.ndarray, bool]:
        """A lesson, what is heard during it, and whether both are of one event (or only of one class)."""
        rng = np.random.default_rng([self.config.seed, 10, number])
        cache, recordings = self.school.cache, self.school.recordings
        group = self.by_count[count]
        if recordings and rng.random() < self.stage.recordings_share:
            recording = recordings[int(rng.integers(len(recordings)))]
            if self.stage.pairing != "shuffled":
                group = self.by_count_and_class[count, recording.content]
            lesson = group[int(rng.integers(len(group)))]
            background = self._raw(int(rng.integers(len(cache.works))))
            return lesson, heard_elsewhere(recording, background, rng, self.front_end), False
        lesson = group[int(rng.integers(len(group)))]
        window = int(rng.integers(len(cache.works))) if self.stage.pairing == "shuffled" else lesson.window
        mel = cache.log_mel[window].float().numpy()
        if self.stage.pairing == "shifted":
            mel = np.roll(mel, int(rng.integers(len(mel) // 4, 3 * len(mel) // 4)), axis=0)
        return lesson, augmented(mel, rng), True

    def _raw(self, window: int) -> np.ndarray:
        """A window's log-mel as it was before it was normalised."""
        config = self.front_end.log_mel
        return self.school.cache.log_mel[window].float().numpy() * np.float32(2 * config.std) + np.float32(
            config.mean
        )


def augmented(log_mel: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Weak augmentation of a synchronised pair: gain (±2 dB), one time mask, one frequency mask. (frames, mels), normalised."""
    # 2 dB are 0.46 nepers of power, divided by 2 · std.
    changed = log_mel + np.float32(rng.uniform(-0.05, 0.05))
    mean = changed.mean()
    for longest, axis in ((10, 0), (4, 1)):
        width = int(rng.integers(0, longest))
        start = int(rng.integers(0, changed.shape[axis] - width))
        changed[(slice(None),) * axis + (slice(start, start + width),)] = mean
    return changed


class Alignment(Objective):
    """``L1 = L_KD + 0.5 · L_CE(answer)`` of one batch of ``Pairs``, and the disposable head's loss.

    The disposable head on the audio tokens is taught what the teacher saw: through the language model alone, what is audible of
    the feeling begins to be learnt only after thousands of steps (docs/log.md).
    """

    def __init__(self, model: VAEmotionLLM, school: School, config: TrainingConfig) -> None:
        super().__init__(model.base)
        self.model, self.school, self.stage = model, school, config.align
        torch.manual_seed(config.seed + 3)
        self.auxiliary = AuxiliaryHead(model.width, 2)

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, Parts]:
        model, stage, lessons = self.model, self.stage, batch["lessons"]
        assert model.audio is not None
        size, windows = len(lessons), [lesson.window for lesson in lessons]
        visual = visual_tokens(self.school.cache, windows, lessons[0].frame_count).to(model.device)
        text = model.text_batch(
            [lesson.question for lesson in lessons], [lesson.answer for lesson in lessons]
        )
        with torch.no_grad():
            teacher = model.answer_logits(model.media_embeddings(visual, None, size), text)
        heard = model.audio(batch["log_mel"])
        media = model.media_embeddings(visual if batch["both"] else None, heard, size)
        student = model.answer_logits(media, text)
        distilled = distillation_loss(teacher, student, stage.temperature)
        answer = answer_loss(student, text.ids[text.answer])
        seen = self.view_loss(heard, windows, batch["synchronised"])
        path = "both" if batch["both"] else "audio"
        total = stage.kd_weight * distilled + stage.ce_weight * answer + stage.auxiliary_weight * seen
        return total, {f"kd_{path}": distilled, f"ce_{path}": answer, "views": seen}

    def view_loss(self, heard: Tensor, windows: list[int], synchronised: Tensor) -> Tensor:
        """How far the disposable head on the audio tokens (B, N_a, D) is from what the teacher saw; of a pair that is only matched
        it is taught the content alone."""
        views = self.school.views
        classes, affect = self.auxiliary(heard)
        content, felt = views.content[windows].to(heard.device), views.affect[windows].to(heard.device)
        named = answer_loss(classes, content, ignore=-1)
        felt = torch.where(synchronised[:, None], felt, torch.nan)
        return named + 4 * masked_squared_error(affect, felt)


def run(
    model: VAEmotionLLM, school: School, config: TrainingConfig, out: Path, resume: bool, stop_after: int | None = None
) -> bool:  # fmt: skip
    """Train the audio pathway in place; True when complete (see ``loop.fit``)."""
    pairs = Pairs(school, config, model.config.front_end)
    return fit(
        "align", Alignment(model, school, config), pairs.collate, config.align.optimisation, out, seed=config.seed,
        resume=resume, identity=config.identity("align") + weights_digest(model.base) + school.data, stop_after=stop_after,
    )  # fmt: skip
