"""Stage 1, VG-Align: distill the frozen base's answers to frames into the audio pathway.

Teacher and student are the same frozen language model on different media. The teacher reads ``[prefix; V;
question; answer]``, the student ``[prefix; A; …]`` or, in a share of the steps, ``[prefix; V; A; …]``. Only
the audio pathway, which makes A, is trained. The student's next-token distributions at the answer's
positions follow the teacher's (forward KL), and the answer is the teacher's own, generated from frames, in
its own words. Clips need no label, and no label is ever a target. What teaches nothing is left out
(`training.teacher`).

Source: arXiv 2511.12077 names VG-Align; docs/paper.md says what of it is inferred.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vaemotion.contract.bundle import sha256_of
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.front_end import SILENT_PADDING, FrontEnd
from vaemotion.contract.settings import shown
from vaemotion.contract.terminal import tell
from vaemotion.contract.words import counted
from vaemotion.data.clips.open import open_all
from vaemotion.data.clips.source import ClipStream
from vaemotion.data.question_bank import BankQuestion, read_question_bank
from vaemotion.model.audio_pathway import AudioPathway, AudioPathwayConfig
from vaemotion.model.checkpoint import (
    COMPONENT_DTYPE,
    load_checkpoint,
    read_config,
    round_in_place,
    save_checkpoint,
)
from vaemotion.model.pretrained import pretrained_audio_encoder, pretrained_base
from vaemotion.model.vaemotion_llm import VAEmotionLLM
from vaemotion.training.config import TrainingConfig, read_training_config
from vaemotion.training.encoded import EncodedWindows, Windows, WindowStore
from vaemotion.training.loop import (
    LossTerms,
    Objective,
    TrainingRun,
    fit,
    process_state,
    seeded,
    weights_digest,
)
from vaemotion.training.losses import (
    answer_loss,
    distillation_loss,
    masked_squared_error,
    token_discrepancy,
)
from vaemotion.training.recordings import Recording, read_recordings, strong_augmentation
from vaemotion.training.teacher import Lessons, LessonStore, is_named, teach

_MOST_NAMED = 10  # damaged clips that are named
_STANDARD_CLIPS = 5000  # whose states give mean and spread of the teacher's states
_MOST_ANSWERS = 1000  # that the head tells apart


def train(
    config_file: Path,
    overrides: list[str],
    out: Path | None,
    resume: bool,
    vlm: Path | None = None,
    audio_encoder: Path | None = None,
    adapter: Path | None = None,
) -> None:
    """Run the stage on ``<runs>/base`` and write the checkpoint to ``out`` (default ``<runs>/align``).

    vlm: folder of a local vision-language model, which becomes ``<runs>/base`` first. adapter: folder of a
    LoRA adapter that is merged into it. audio_encoder: folder of a local AST or Whisper, whose weights the
    audio encoder starts from.
    """
    if adapter is not None and vlm is None:
        raise UsageError("--adapter goes with --vlm FOLDER, whose weights it changes")
    config = read_training_config(config_file, overrides)
    base_folder, out = Path(config.runs) / "base", out or Path(config.runs) / "align"
    processes = process_state()
    if vlm is not None and processes.is_main_process:
        import_base(vlm, config, base_folder, adapter)
    processes.wait_for_everyone()
    weights = None
    if audio_encoder is not None:
        config, weights = with_pretrained_audio_encoder(audio_encoder, config)
    model = with_audio_pathway(load_checkpoint(base_folder), config)
    # Raises where frames and sound leave no room for a question, which would only show at export.
    model.context_tokens()
    if weights is not None:
        model.audio_pathway.encoder.load_state_dict(weights)
    stored = read_config(base_folder)
    base_hash = stored["components"]["base"]["sha256"]
    working = out.with_name(out.name + ".training")
    pretrained = "pretrained" in stored["lineage"].get("base", {})
    data = prepare(model, config, base_hash, working, pretrained)
    if run(model, data, config, working, resume) and processes.is_main_process:
        round_in_place(model.audio_pathway, COMPONENT_DTYPE["audio"])
        lineage = {**stored["lineage"], "align": {**config.lineage(), **data.summary()}}
        save_checkpoint(model, out, lineage, config.licence)
        if read_config(out)["components"]["base"]["sha256"] != base_hash:
            raise UserError("stage 1 changed the base's weights; this is a defect, please report it")
    processes.wait_for_everyone()


@dataclass(frozen=True)
class AlignData:
    """The training data of stage 1."""

    windows: EncodedWindows
    lessons: Lessons
    questions: tuple[BankQuestion, ...]  # that the lessons are about
    recordings: list[Recording]  # real sounds, paired with clips that the teacher gives the same name
    procedural: bool = False  # True where all clips are procedural art
    identity: str = ""  # of clips, question bank and recordings

    def summary(self) -> dict[str, Any]:
        """Return the figures for the lineage."""
        return {
            "source": self.windows.store.windows.source.name,
            "procedural": self.procedural,
            **self.lessons.summary(),
            "damaged_clips": len(self.windows.damaged),
            "recordings": len(self.recordings),
        }


def prepare(
    model: VAEmotionLLM, config: TrainingConfig, base_hash: str, working: Path, pretrained: bool = False
) -> AlignData:
    """Compute the stage's training data, or read what is kept of it, and print how much there is.

    Windows are kept below the runs, the teacher's answers in ``working``. Raises UserError when the teacher
    gives no answer that teaches, UsageError for clips or questions that cannot be read.
    """
    stage, front_end, media_root = config.align, model.config.front_end, Path(config.media_root)
    bank = read_question_bank(stage.questions, pretrained)
    with process_state().main_process_first():  # the others read the index of shards that it kept
        source = open_all(stage.clips, media_root, front_end)
    clips = Windows(source, front_end, config.data_seed)
    store = WindowStore(clips, base_hash, Path(config.runs), stage.keep_tokens)
    lesson_store = LessonStore(store, bank, stage, config.data_seed, working, model.template)
    windows, lessons = teach(model, lesson_store, stage.optimisation.workers)
    recordings, identity = [], source.identity + bank.sha256
    if stage.recordings:
        recordings = read_recordings(Path(stage.recordings), media_root, front_end)
        identity += sha256_of(Path(stage.recordings))
    procedural = not isinstance(source, ClipStream) and source.procedural
    data = AlignData(windows, lessons, bank.audible, recordings, procedural, identity)
    if process_state().is_main_process:
        _print_data(data)
    return data


def _print_data(data: AlignData) -> None:
    lessons, windows = data.lessons, data.windows
    tell(
        f"{data.windows.store.windows.source.name}: {counted(len(windows), 'clip')}, of them "
        f"{lessons.incoherent} incoherent; the teacher's answers: {len(lessons)}, in "
        f"{len(np.unique(lessons.answer))} wordings; left out: {lessons.cut} cut, {lessons.empty} empty, "
        f"{lessons.repeated} repeats; recordings: {len(data.recordings)}"
    )
    if windows.damaged:
        tell(f"left out as damaged: {counted(len(windows.damaged), 'clip')}")
        for clip in windows.damaged[:_MOST_NAMED]:
            tell(f"  {clip.name}: {clip.reason}")
        if len(windows.damaged) > _MOST_NAMED:
            tell(f"  and {len(windows.damaged) - _MOST_NAMED} more")


def with_pretrained_audio_encoder(
    folder: Path, config: TrainingConfig
) -> tuple[TrainingConfig, dict[str, Tensor]]:
    """Return the configuration with the encoder of ``folder`` as its audio encoder, and that one's weights.

    Raises UsageError when it does not fit the front end.
    """
    encoder, weights = pretrained_audio_encoder(
        folder, FrontEnd(config.log_mel, config.image, config.windows)
    )
    kept = {key: value for key, value in config.audio_encoder.items() if key == "steps_per_token"}
    return replace(config, audio_encoder={**encoder, **kept}), weights


def import_base(folder: Path, config: TrainingConfig, out: Path, adapter: Path | None = None) -> None:
    """Write a checkpoint whose base is the pretrained model in ``folder``: named, and copied if merged."""
    model = pretrained_base(folder, FrontEnd(config.log_mel, config.image, config.windows), adapter)
    base = {"pretrained": folder.name} | ({"adapter": adapter.name} if adapter is not None else {})
    save_checkpoint(model, out, {"name": config.name, "base": base}, config.licence)


def with_audio_pathway(base: VAEmotionLLM, config: TrainingConfig) -> VAEmotionLLM:
    """Freeze the base and add a new audio pathway, whose tokens start with the norm of visual tokens.

    It is trained with the newest version of the front end, whatever version the base was made with. Raises
    UsageError where the base was made for another log-mel or other windows than the configuration's.
    """
    _refuse_other_windows(base.config.front_end, config)
    base.requires_grad_(False)
    torch.manual_seed(config.seed + 2)
    audio_config = AudioPathwayConfig.of(config.audio_encoder)
    front_end = replace(base.config.front_end, version=SILENT_PADDING)
    base.config = replace(base.config, front_end=front_end, audio=audio_config)
    base.audio = AudioPathway(audio_config, base.width)
    with torch.no_grad():
        side = base.config.front_end.image.side_px
        noise = torch.randn(8, 3, side, side, generator=seeded(config.seed, 3)).clamp(-1, 1)
        visual_norm = base.vision(noise).norm(dim=-1).mean().item()  # (8, T, D) → scalar
        text_norm = base.backbone.embedding.weight.norm(dim=-1).mean().item()
    base.audio.match_norm(visual_norm, text_norm)
    return base


def _refuse_other_windows(front_end: FrontEnd, config: TrainingConfig) -> None:
    different = [
        f"{section}.{name} = {shown(value)} (here {shown(asked)})"
        for section in ("log_mel", "windows")
        for name, value in asdict(getattr(front_end, section)).items()
        if (asked := getattr(getattr(config, section), name)) != value
    ]
    if different:
        raise UsageError(
            f"the base was made with {', '.join(different)}; make it again with this configuration, or use "
            "its values in the configuration"
        )


class Pairs:
    """Pairs of a lesson and an audio window. Sample numbers → batches (see ``loop.fit``)."""

    def __init__(self, data: AlignData, config: TrainingConfig, front_end: FrontEnd) -> None:
        """Sort the lessons. Raises UserError when recordings are given and the teacher names none of them."""
        self.data, self.config, self.stage, self.front_end = data, config, config.align, front_end
        lessons = data.lessons
        self.by_count = {
            int(count): np.flatnonzero(lessons.frame_count == count)
            for count in np.unique(lessons.frame_count)
        }
        self.named = self._named_lessons()
        self.recordings = [r for r in data.recordings if r.label in self.named]
        if data.recordings:
            missing = sorted({r.label for r in data.recordings} - set(self.named))
            if not self.recordings:
                raise UserError(
                    f"no clip is named like the recordings ({', '.join(missing[:5])}); give clips "
                    f"that show them, or leave align.recordings empty"
                )
            if missing:
                tell(f"recordings left out, because no clip is named so: {', '.join(missing)}")

    def _named_lessons(self) -> dict[str, dict[int, np.ndarray]]:
        """Return the content lessons of clips that the teacher gives a recording's label, by frame count.

        Labels without such a lesson for every frame count are left out.
        """
        lessons = self.data.lessons
        content = [k for k, question in enumerate(self.data.questions) if question.task == "content"]
        about_content = np.isin(lessons.question, content)
        named: dict[str, dict[int, np.ndarray]] = {}
        for label in {recording.label for recording in self.data.recordings}:
            answers = [k for k, answer in enumerate(lessons.answers) if is_named(label, answer)]
            windows = np.isin(lessons.name, answers)  # (n,)
            fitting = about_content & windows[lessons.window]  # (m,)
            groups = {count: mine[fitting[mine]] for count, mine in self.by_count.items()}
            if all(map(len, groups.values())):
                named[label] = groups
        return named

    def collate(self, numbers: Sequence[int]) -> dict[str, Any]:
        """Make a batch: the same number of frames for all its samples, with or without V for the student."""
        rng = np.random.default_rng([self.config.seed, 6, numbers[0] // self.stage.optimisation.batch])
        sizes = np.array([len(group) for group in self.by_count.values()])
        count = list(self.by_count)[int(rng.choice(len(sizes), p=sizes / sizes.sum()))]
        both = bool(rng.random() < self.stage.both_share)
        chosen, log_mel, synchronized = zip(*(self._pair(number, count) for number in numbers), strict=True)
        lessons = self.data.lessons
        windows = [int(lessons.window[lesson]) for lesson in chosen]
        return {
            "windows": windows,
            # (B, count, T, D) tokens, or (B, count, 3, side, side) pixels where no tokens are kept
            "pictures": torch.stack([self.data.windows.pictures(window, count) for window in windows]),
            "questions": [self.data.questions[lessons.question[lesson]].text for lesson in chosen],
            "answers": [lessons.answers[lessons.answer[lesson]] for lesson in chosen],
            "log_mel": torch.from_numpy(np.stack(log_mel)),  # (B, frames, mels)
            "synchronized": torch.tensor(synchronized),  # (B,) bool
            "both": both,
        }

    def _pair(self, number: int, count: int) -> tuple[int, np.ndarray, bool]:
        """Draw a lesson and its audio window (frames, mels).

        The third value is True when both are of one event, False when a recording only shares the name.
        """
        rng = np.random.default_rng([self.config.seed, 10, number])
        windows, group = self.data.windows, self.by_count[count]
        if self.recordings and rng.random() < self.stage.recordings_share:
            recording = self.recordings[int(rng.integers(len(self.recordings)))]
            if self.stage.pairing != "shuffled":
                group = self.named[recording.label][count]
            lesson = int(group[rng.integers(len(group))])
            background = self._unnormalized(int(rng.integers(len(windows))))
            return lesson, strong_augmentation(recording, background, rng, self.front_end), False
        lesson = int(group[rng.integers(len(group))])
        own = int(self.data.lessons.window[lesson])
        window = int(rng.integers(len(windows))) if self.stage.pairing == "shuffled" else own
        mel = windows.log_mel(window)
        if self.stage.pairing == "shifted":
            mel = np.roll(mel, int(rng.integers(len(mel) // 4, 3 * len(mel) // 4)), axis=0)
        return lesson, weak_augmentation(mel, rng), True

    def _unnormalized(self, window: int) -> np.ndarray:
        """Return a window's log-mel (frames, mels) without the normalization."""
        config = self.front_end.log_mel
        return self.data.windows.log_mel(window) * np.float32(2 * config.std) + np.float32(config.mean)


def weak_augmentation(log_mel: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Augment a synchronized window weakly: gain of ±2 dB, one time mask, one frequency mask.

    log_mel: (frames, mels), normalized; returns the same shape.
    """
    # 2 dB are 0.46 nepers of power, divided by 2 · std.
    changed = log_mel + np.float32(rng.uniform(-0.05, 0.05))
    mean = changed.mean()
    for longest, axis in ((10, 0), (4, 1)):
        width = int(rng.integers(0, longest))
        start = int(rng.integers(0, changed.shape[axis] - width))
        changed[(slice(None),) * axis + (slice(start, start + width),)] = mean
    return changed


class TeachersHead(nn.Module):
    """The teacher's view of a clip, read out of the audio tokens; discarded after the stage.

    The mean and the maximum of the tokens give the teacher's last state before it answers the content
    question, standardized, or which of its frequent answers it gives; and its mean affect levels.
    """

    def __init__(self, lessons: Lessons, kind: str, width: int) -> None:
        super().__init__()
        self.kind = kind
        if kind == "hidden":
            some = lessons.hidden[:_STANDARD_CLIPS].float()  # (n, D)
            center, spread = some.mean(0), some.std(0, correction=0).clamp_min(1e-3)
            self.targets = ((lessons.hidden.float() - center) / spread).half()  # (n, D)
            outputs = lessons.hidden.shape[1]
        else:
            answers, counts = np.unique(lessons.name, return_counts=True)
            frequent = answers[np.argsort(-counts, kind="stable")][:_MOST_ANSWERS]
            place = np.full(len(lessons.answers), -1)
            place[frequent] = np.arange(len(frequent))
            self.targets = torch.from_numpy(place[lessons.name])  # (n,), -1: a rare answer
            outputs = len(frequent)
        self.affect = lessons.affect  # (n, 2)
        self.norm = nn.LayerNorm(2 * width)
        self.out = nn.Linear(2 * width, outputs + 2)

    def forward(self, audio: Tensor, windows: Sequence[int], synchronized: Tensor) -> Tensor:
        """Compare the read-out of audio tokens (B, N_a, D) with what the teacher thinks, a scalar.

        synchronized: (B,) bool. Where it is False, a recording shares only the name, and affect does not
        count.
        """
        pooled = torch.cat([audio.mean(1), audio.amax(1)], dim=1)  # (B, 2 D)
        readout = self.out(self.norm(pooled)).float()  # (B, outputs + 2)
        targets = self.targets[list(windows)].to(audio.device)
        wanted = self.affect[list(windows)].to(audio.device)  # (B, 2)
        wanted = torch.where(synchronized[:, None], wanted, torch.nan)
        affect = 4 * masked_squared_error(readout[:, -2:], wanted)
        if self.kind == "answer":
            return answer_loss(readout[:, :-2], targets, ignore=-1) + affect
        return masked_squared_error(readout[:, :-2], targets.float()) + affect


class Alignment(Objective):
    """The loss of stage 1: ``L1 = L_KD + 0.5 · L_CE(answer)``, and that of the auxiliary head.

    Frozen: vision encoder, connector and language model, in evaluation mode. Trained: the audio pathway,
    and a disposable head on its tokens (`TeachersHead`). Through the language model alone, the audible part
    of the affect is learned only after thousands of steps (docs/log.md).

    Sizes in the shapes: B samples, k newest frames, T tokens of a frame, N_a audio tokens, D the language
    model's width, L text tokens, P_V and P_A positions before the text, M answer tokens of the whole batch.
    """

    def __init__(self, model: VAEmotionLLM, data: AlignData, config: TrainingConfig) -> None:
        super().__init__(model.base)
        self.model, self.stage, self.kept = model, config.align, data.windows.store.keep_tokens
        torch.manual_seed(config.seed + 3)
        self.auxiliary = TeachersHead(data.lessons, config.align.head, model.width)

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, LossTerms]:
        """Compute the loss of one batch of ``Pairs``, a scalar, and its terms."""
        model, stage, size = self.model, self.stage, len(batch["windows"])
        visual = self._visual_tokens(batch["pictures"].to(model.device))  # (B, k · T, D)
        # ids (B, L): question, the teacher's answer, stop token
        text = model.text_batch(batch["questions"], batch["answers"])

        # Teacher: frames alone. Its logits are compared at the answer's M positions, without a gradient.
        with torch.no_grad():
            teacher_media = model.media_embeddings(visual, None, size)
            teacher_logits = model.answer_logits(teacher_media, text)  # (M, vocab)

        # Student: the same language model on audio tokens, in a share of the steps behind the frames. Its
        # logits stand at the same M answer tokens, so that row m of both predicts the same token.
        audio = model.audio_pathway(batch["log_mel"])  # (B, frames, mels) → (B, N_a, D)
        student_visual = visual if batch["both"] else None
        student_media = model.media_embeddings(student_visual, audio, size)
        student_logits = model.answer_logits(student_media, text)  # (M, vocab)

        # L_KD at temperature τ, L_CE to the teacher's own answer, and the auxiliary head; all scalars.
        kd = distillation_loss(teacher_logits, student_logits, stage.temperature)
        ce = answer_loss(student_logits, text.ids[text.answer])  # targets (M,)
        auxiliary = self.auxiliary(audio, batch["windows"], batch["synchronized"])
        total = stage.kd_weight * kd + stage.ce_weight * ce + stage.auxiliary_weight * auxiliary
        path = "both" if batch["both"] else "audio"
        terms = {f"kd_{path}": kd, f"ce_{path}": ce, "views": auxiliary}
        if stage.token_weight > 0:
            terms["tokens"] = token_discrepancy(audio, visual, batch["synchronized"].to(audio.device))
            total = total + stage.token_weight * terms["tokens"]
        return total, terms

    @torch.no_grad()
    def _visual_tokens(self, pictures: Tensor) -> Tensor:
        """Return visual tokens (B, k · T, D) of what ``EncodedWindows.pictures`` gave."""
        if not self.kept:
            pictures = self.model.vision(pictures.flatten(0, 1)).unflatten(0, pictures.shape[:2])
        return pictures.flatten(1, 2).float()


def run(
    model: VAEmotionLLM,
    data: AlignData,
    config: TrainingConfig,
    out: Path,
    resume: bool,
    stop_after: int | None = None,
) -> bool:
    """Train the audio pathway in place; True when complete (see ``loop.fit``)."""
    pairs = Pairs(data, config, model.config.front_end)
    version = f"front end {model.config.front_end.version}"
    identity = config.identity("align") + version + weights_digest(model.base) + data.identity
    training_run = TrainingRun(out, config.seed, resume, identity, stop_after)
    objective = Alignment(model, data, config)
    return fit("align", objective, pairs.collate, config.align.optimisation, training_run)
