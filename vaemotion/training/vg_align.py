"""Stage 1, VG-Align: distill the frozen base's answers to frames into the audio pathway.

Teacher and student are the same frozen language model on different media. The teacher reads ``[prefix; V;
question; answer]``, the student ``[prefix; A; …]`` or, in a third of the steps, ``[prefix; V; A; …]``. Only
the audio pathway, which makes A, is trained. The student's next-token distributions at the answer's
positions follow the teacher's (forward KL), and the answer is the teacher's own, generated from frames. No
label of a sound is ever a target. Windows about which the teacher contradicts itself are left out.

Source: arXiv 2511.12077 names VG-Align; docs/paper.md says what of it is inferred.
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
from vaemotion.contract.front_end import SILENT_PADDING, FrontEnd
from vaemotion.data.art.art import CONTENT_CLASSES
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
from vaemotion.training.loop import (
    LossTerms,
    Objective,
    TrainingRun,
    fit,
    process_state,
    seeded,
    weights_digest,
)
from vaemotion.training.losses import answer_loss, distillation_loss, masked_squared_error
from vaemotion.training.recordings import Recording, read_recordings, strong_augmentation
from vaemotion.training.teacher import (
    DistillationSample,
    TeacherTargets,
    distillation_samples,
    teacher_targets,
    visual_tokens,
)
from vaemotion.training.windows_cache import WindowCache, cached_windows


def train(
    config_file: Path,
    overrides: list[str],
    out: Path | None,
    resume: bool,
    vlm: Path | None = None,
    audio_encoder: Path | None = None,
) -> None:
    """Run the stage on ``<runs>/base`` and write the checkpoint to ``out`` (default ``<runs>/align``).

    vlm: folder of a local SmolVLM2, which becomes ``<runs>/base`` first. audio_encoder: folder of a local
    AST, whose weights the audio encoder starts from.
    """
    config = read_training_config(config_file, overrides)
    base_folder, out = Path(config.runs) / "base", out or Path(config.runs) / "align"
    processes = process_state()
    if vlm is not None and processes.is_main_process:
        import_base(vlm, config, base_folder)
    processes.wait_for_everyone()
    weights = None
    if audio_encoder is not None:
        config, weights = with_pretrained_audio_encoder(audio_encoder, config)
    model = with_audio_pathway(load_checkpoint(base_folder), config)
    if weights is not None:
        encoder = model.audio_pathway.encoder
        assert isinstance(encoder, AstEncoder)
        encoder.ast.load_state_dict(weights)
    stored = read_config(base_folder)
    base_hash = stored["components"]["base"]["sha256"]
    working = out.with_name(out.name + ".training")
    with processes.main_process_first():  # the others read the files that it kept
        data = prepare(model, config, base_hash, working)
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

    cache: WindowCache  # procedural windows
    samples: list[DistillationSample]  # the teacher's answers about the coherent ones
    targets: TeacherTargets  # of the auxiliary head
    recordings: list[Recording]  # real sounds, paired with windows of their class
    recordings_sha256: str = ""  # of their manifest

    def summary(self) -> dict[str, Any]:
        """Return the figures for the lineage."""
        return {
            "clips": len(self.cache.works),
            "clips_filtered_as_incoherent": round(self.targets.filter_rate, 4),
            "lessons": len(self.samples),
            "recordings": len(self.recordings),
            "recordings_manifest_sha256": self.recordings_sha256,
        }


def prepare(model: VAEmotionLLM, config: TrainingConfig, base_hash: str, working: Path) -> AlignData:
    """Compute the stage's training data, or read what is kept of it, and print how much there is.

    Raises UserError when the teacher gives no usable answer.
    """
    stage = config.align
    cache = cached_windows(model, base_hash, "train", stage.works, config.data_seed, Path(config.runs))
    targets = teacher_targets(model, cache, config, base_hash, working)
    samples = [
        sample
        for sample in distillation_samples(model, cache, config, base_hash, working)
        if targets.coherent[sample.window]
    ]
    if not samples:
        raise UserError(
            "the teacher has no answer, or contradicting ones, about every window; check the base, or raise "
            "align.incoherent_bits"
        )
    recordings, recordings_sha256 = [], ""
    if stage.recordings:
        front_end = model.config.front_end
        recordings = read_recordings(Path(stage.recordings), Path(config.media_root), front_end)
        recordings_sha256 = sha256_of(Path(stage.recordings))
    data = AlignData(cache, samples, targets, recordings, recordings_sha256)
    print(
        f"windows: {len(cache.works)}, of them filtered as incoherent: {targets.filter_rate:.1%}, "
        f"the teacher's answers: {len(samples)}, recordings: {len(recordings)}"
    )
    return data


def with_pretrained_audio_encoder(
    folder: Path, config: TrainingConfig
) -> tuple[TrainingConfig, dict[str, Tensor]]:
    """Return the configuration with the AST of ``folder`` as its audio encoder, and the AST's weights.

    Raises UsageError when the AST does not fit the front end.
    """
    encoder, weights = pretrained_audio_encoder(folder)
    front_end = FrontEnd(config.log_mel, config.image, config.windows)
    expected = (encoder["max_length"], encoder["num_mel_bins"])
    given = (front_end.audio_window_frames, config.log_mel.n_mels)
    if expected != given:
        raise UsageError(
            f"{folder} takes {expected[0]} frames of {expected[1]} mels, the configuration gives {given[0]} "
            f"of {given[1]}; set log_mel.n_mels, log_mel.hop_samples and windows.audio_window_s to match"
        )
    return replace(config, audio_encoder=encoder), weights


def import_base(folder: Path, config: TrainingConfig, out: Path) -> None:
    """Write a checkpoint whose base is the pretrained model in ``folder``: named, not copied."""
    model = pretrained_base(folder, FrontEnd(config.log_mel, config.image, config.windows))
    save_checkpoint(model, out, {"name": config.name, "base": {"pretrained": folder.name}}, config.licence)


def with_audio_pathway(base: VAEmotionLLM, config: TrainingConfig) -> VAEmotionLLM:
    """Freeze the base and add a new audio pathway, whose tokens start with the norm of visual tokens.

    It is trained with the newest version of the front end, whatever version the base was made with.
    """
    base.requires_grad_(False)
    torch.manual_seed(config.seed + 2)
    audio_config = AudioPathwayConfig(config.audio_encoder)
    front_end = replace(base.config.front_end, version=SILENT_PADDING)
    base.config = replace(base.config, front_end=front_end, audio=audio_config)
    base.audio = AudioPathway(audio_config, base.width)
    with torch.no_grad():
        side = base.config.front_end.image.side_px
        noise = torch.randn(8, 3, side, side, generator=seeded(config.seed, 3)).clamp(-1, 1)
        visual_norm = base.vision(noise).norm(dim=-1).mean().item()  # (8, T, D) → scalar
        text_norm = base.base.model.get_input_embeddings().weight.norm(dim=-1).mean().item()
    base.audio.match_norm(visual_norm, text_norm)
    return base


class Pairs:
    """Pairs of a distillation sample and an audio window. Sample numbers → batches (see ``loop.fit``)."""

    def __init__(self, data: AlignData, config: TrainingConfig, front_end: FrontEnd) -> None:
        self.data, self.config, self.stage, self.front_end = data, config, config.align, front_end
        self.by_count: dict[int, list[DistillationSample]] = {}
        self.by_count_and_class: dict[tuple[int, int], list[DistillationSample]] = {}
        for sample in data.samples:
            self.by_count.setdefault(sample.frame_count, []).append(sample)
            if sample.question == prompts.CONTENT.text:  # matched pairs ask for content only
                content = CONTENT_CLASSES.index(data.cache.works[sample.window].content)
                self.by_count_and_class.setdefault((sample.frame_count, content), []).append(sample)
        counts = {count for count, _ in self.by_count_and_class}
        for recording in data.recordings:
            if lacking := [c for c in counts if (c, recording.content) not in self.by_count_and_class]:
                raise UserError(
                    f"recordings of {CONTENT_CLASSES[recording.content]!r} have no window of their class "
                    f"with {' or '.join(map(str, lacking))} frames; raise align.works"
                )

    def collate(self, numbers: Sequence[int]) -> dict[str, Any]:
        """Make a batch: the same number of frames for all its samples, with or without V for the student."""
        rng = np.random.default_rng([self.config.seed, 6, numbers[0] // self.stage.optimisation.batch])
        sizes = np.array([len(group) for group in self.by_count.values()])
        count = list(self.by_count)[int(rng.choice(len(sizes), p=sizes / sizes.sum()))]
        both = bool(rng.random() < self.stage.both_share)
        pairs = [self._pair(number, count) for number in numbers]
        samples, log_mel, synchronized = zip(*pairs, strict=True)
        return {
            "samples": list(samples),
            "log_mel": torch.from_numpy(np.stack(log_mel)),  # (B, frames, mels)
            "synchronized": torch.tensor(synchronized),  # (B,) bool
            "both": both,
        }

    def _pair(self, number: int, count: int) -> tuple[DistillationSample, np.ndarray, bool]:
        """Draw a sample and its audio window (frames, mels).

        The third value is True when both are of one event, False when a recording only shares the class.
        """
        rng = np.random.default_rng([self.config.seed, 10, number])
        cache, recordings = self.data.cache, self.data.recordings
        group = self.by_count[count]
        if recordings and rng.random() < self.stage.recordings_share:
            recording = recordings[int(rng.integers(len(recordings)))]
            if self.stage.pairing != "shuffled":
                group = self.by_count_and_class[count, recording.content]
            sample = group[int(rng.integers(len(group)))]
            background = self._unnormalized(int(rng.integers(len(cache.works))))
            return sample, strong_augmentation(recording, background, rng, self.front_end), False
        sample = group[int(rng.integers(len(group)))]
        window = int(rng.integers(len(cache.works))) if self.stage.pairing == "shuffled" else sample.window
        mel = cache.log_mel[window].float().numpy()
        if self.stage.pairing == "shifted":
            mel = np.roll(mel, int(rng.integers(len(mel) // 4, 3 * len(mel) // 4)), axis=0)
        return sample, weak_augmentation(mel, rng), True

    def _unnormalized(self, window: int) -> np.ndarray:
        """Return a window's log-mel (frames, mels) without the normalization."""
        config = self.front_end.log_mel
        log_mel = self.data.cache.log_mel[window].float().numpy()
        return log_mel * np.float32(2 * config.std) + np.float32(config.mean)


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


class Alignment(Objective):
    """The loss of stage 1: ``L1 = L_KD + 0.5 · L_CE(answer)``, and that of the auxiliary head.

    Frozen: vision encoder, connector and language model, in evaluation mode. Trained: the audio pathway,
    and an auxiliary head on its tokens that is discarded after the stage. The head's targets are the
    teacher's content and affect; through the language model alone, the audible part of the affect is
    learned only after thousands of steps (docs/log.md).

    Sizes in the shapes: B samples, k newest frames, T tokens of a frame, N_a audio tokens, D the language
    model's width, L text tokens, P_V and P_A positions before the text, M answer tokens of the whole batch.
    """

    def __init__(self, model: VAEmotionLLM, data: AlignData, config: TrainingConfig) -> None:
        super().__init__(model.base)
        self.model, self.data, self.stage = model, data, config.align
        torch.manual_seed(config.seed + 3)
        self.auxiliary = AuxiliaryHead(model.width, 2)

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, LossTerms]:
        """Compute the loss of one batch of ``Pairs``, a scalar, and its terms."""
        model, stage, samples = self.model, self.stage, batch["samples"]
        size, windows = len(samples), [sample.window for sample in samples]
        visual = visual_tokens(self.data.cache, windows, samples[0].frame_count)  # (B, k · T, D), cached
        visual = visual.to(model.device)
        text = model.text_batch(
            [sample.question for sample in samples], [sample.answer for sample in samples]
        )  # ids (B, L): question, the teacher's answer, stop token

        # Teacher: frames alone. Its logits are compared at the answer's M positions, without a gradient.
        with torch.no_grad():
            teacher_media = model.media_embeddings(visual, None, size)  # (B, P_V, D)
            teacher_logits = model.answer_logits(teacher_media, text)  # (M, vocab)

        # Student: the same language model on audio tokens, in a third of the steps behind the frames. Its
        # logits stand at the same M answer tokens, so that row m of both predicts the same token.
        audio = model.audio_pathway(batch["log_mel"])  # (B, frames, mels) → (B, N_a, D)
        student_visual = visual if batch["both"] else None
        student_media = model.media_embeddings(student_visual, audio, size)  # (B, P_A, D)
        student_logits = model.answer_logits(student_media, text)  # (M, vocab)

        # L_KD at temperature τ, L_CE to the teacher's own answer, and the auxiliary head; all scalars.
        kd = distillation_loss(teacher_logits, student_logits, stage.temperature)
        ce = answer_loss(student_logits, text.ids[text.answer])  # targets (M,)
        auxiliary = self.auxiliary_loss(audio, windows, batch["synchronized"])
        total = stage.kd_weight * kd + stage.ce_weight * ce + stage.auxiliary_weight * auxiliary
        path = "both" if batch["both"] else "audio"
        return total, {f"kd_{path}": kd, f"ce_{path}": ce, "views": auxiliary}

    def auxiliary_loss(self, audio: Tensor, windows: list[int], synchronized: Tensor) -> Tensor:
        """Compare the auxiliary head on audio tokens (B, N_a, D) with the teacher's targets, a scalar.

        synchronized: (B,) bool. Where it is False, a recording shares only the class, so content alone
        counts.
        """
        targets = self.data.targets
        class_logits, affect = self.auxiliary(audio)  # (B, classes), (B, 2)
        content = targets.content[windows].to(audio.device)  # (B,), -1 where the teacher named no class
        wanted = targets.affect[windows].to(audio.device)  # (B, 2)
        wanted = torch.where(synchronized[:, None], wanted, torch.nan)
        return answer_loss(class_logits, content, ignore=-1) + 4 * masked_squared_error(affect, wanted)


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
    identity = config.identity("align") + version + weights_digest(model.base) + data.recordings_sha256
    training_run = TrainingRun(out, config.seed, resume, identity, stop_after)
    objective = Alignment(model, data, config)
    return fit("align", objective, pairs.collate, config.align.optimisation, training_run)
