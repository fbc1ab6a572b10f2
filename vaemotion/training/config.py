"""Configuration of the three stages, read once from TOML plus ``--set section.key=value``."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vaemotion.contract.audio import LogMelConfig
from vaemotion.contract.emotions import EMOTIONS, emotion_names_problem
from vaemotion.contract.image import ImageConfig
from vaemotion.contract.settings import Impossible, demand, read_settings, within
from vaemotion.contract.windows import WindowConfig


@dataclass(frozen=True)
class VlmSize:
    """Size of a base from scratch. A frame becomes (side / patch_px / scale_factor)² visual tokens."""

    vision_width: int = 192
    vision_layers: int = 4
    vision_heads: int = 4
    patch_px: int = 12
    scale_factor: int = 2
    text_width: int = 256
    text_layers: int = 4
    text_heads: int = 4
    text_kv_heads: int = 2
    text_mlp: int = 768
    vocabulary: int = 768
    context_tokens: int = 512


@dataclass(frozen=True)
class Optimisation:
    """AdamW with warm-up and cosine decay."""

    steps: int = 1000
    batch: int = 48  # samples of a step, over all processes
    accumulate: int = 1  # passes of equal size that a step is computed in
    learning_rate: float = 8e-4
    weight_decay: float = 0.05
    warmup_steps: int = 50
    clip_norm: float = 1.0
    save_every: int = 200  # steps
    log_every: int = 10  # steps
    precision: str = "no"  # accelerate's mixed_precision: no, bf16, fp16
    workers: int = 1


@dataclass(frozen=True)
class BaseStage:
    """The training of a vision-language model from scratch."""

    optimisation: Optimisation = field(default_factory=Optimisation)
    frame_counts: tuple[int, ...] = (1, 2, 4)
    frame_count_weights: tuple[float, ...] = (0.7, 0.22, 0.08)
    # Of the loss of the auxiliary head on the vision tower: class, valence, arousal, visible factors.
    auxiliary_weight: float = 0.5
    line_share: float = 0.3  # of line drawings among samples with one frame
    listed_share: float = 0.12  # of the steps whose questions list their options


@dataclass(frozen=True)
class AlignStage:
    """Stage 1, VG-Align. Raises ValueError for values that mean nothing."""

    optimisation: Optimisation = field(default_factory=lambda: Optimisation(learning_rate=1e-3))
    # Sources of clips: manifests, shards, "art:N" for N procedural works; a stream ("pipe:COMMAND") alone.
    clips: tuple[str, ...] = ("art:6000",)
    keep_tokens: bool = True  # on disk beside the run; otherwise clips are decoded at every use
    questions: str = ""  # question bank (TOML); empty: the shipped one
    frame_counts: tuple[int, ...] = (1, 2, 4)  # newest frames that the teacher is given
    temperature: float = 1.5
    kd_weight: float = 1.0
    ce_weight: float = 0.5
    token_weight: float = 0.0  # of the MMD between audio and visual tokens, the alternative to answers
    # Of the loss of the auxiliary head on the audio tokens, whose targets are the teacher's.
    auxiliary_weight: float = 1.0
    head: str = "hidden"  # what it predicts: the teacher's last "hidden" state, or its frequent "answer"s
    both_share: float = 0.0  # of the steps in which the student gets [V; A]; none was best (docs/log.md)
    # Largest Jensen-Shannon divergence between the teacher's next-token distributions along its answer about
    # a clip's content, from the fewest and from the most frames. Beyond it the clip shows several things
    # while its sound plays, and no sample is made from it.
    incoherent_bits: float = 0.3
    # An answer is empty unless the picture moves some token of it by more than this divergence.
    empty_bits: float = 0.02
    repeat_share: float = 0.5  # largest share of one answer among the answers to a question
    sampled_share: float = 0.5  # of the teacher's answers, sampled at temperature 0.7 instead of greedily
    recordings: str = ""  # manifest of recordings that are paired with windows of their class; empty: none
    recordings_share: float = 0.45  # of the samples
    # Controls: "shifted" (the audio of another moment) and "shuffled" (the audio of another window).
    pairing: str = "synchronised"

    def __post_init__(self) -> None:
        if self.pairing not in ("synchronised", "shifted", "shuffled"):
            raise ValueError(f"pairing must be synchronised, shifted or shuffled, got {self.pairing!r}")
        if self.head not in ("hidden", "answer"):
            raise ValueError(f"head must be hidden or answer, got {self.head!r}")
        if not 0 < self.repeat_share <= 1:
            raise ValueError(f"repeat_share must be above 0 and at most 1, got {self.repeat_share}")


@dataclass(frozen=True)
class EmotionStage:
    """Stage 2, EmoAdapter."""

    optimisation: Optimisation = field(
        default_factory=lambda: Optimisation(learning_rate=6e-4, weight_decay=0.1, batch=64, workers=0)
    )
    works: int = 6000  # procedural windows, one for each work; 0: none
    ratings: tuple[str, ...] = ()  # manifests or shards of rated films, sounds and images
    emotions: tuple[str, ...] = EMOTIONS  # names that the model tells apart; others are joined by a table
    va_weight: float = 1.0
    nll_weight: float = 0.2
    emotion_weight: float = 0.3
    sign_weight: float = 0.2  # of labels that are only a sign
    # Of the same losses where a model gave the labels; 0 leaves such items out. They are never targets of
    # the language loss.
    machine_made_weight: float = 0.0
    language_weight: float = 0.3
    language_batch: int = 8  # samples of each batch that also get the language loss
    rated_language_share: float = 0.5  # of these on rated works, where there are procedural ones, too
    shrinkage: float = 0.05
    dropout: float = 0.15
    shared_enhancer: bool = False  # one Enhancer for the tokens of both modalities instead of one each
    modality_dropout: bool = True  # draws the path of the language loss; without it the path is audio-visual
    token_ages: bool = True  # without them every token counts as 0 s old

    def __post_init__(self) -> None:
        if problem := emotion_names_problem(self.emotions):
            raise Impossible({"emotions": problem})
        demand(
            self,
            ("works", self.works >= 0, "at least 0"),
            *within(self, machine_made_weight=(0, math.inf), rated_language_share=(0, 1)),
        )


@dataclass(frozen=True)
class TrainingConfig:
    """The whole configuration of a training."""

    name: str = "vaemotion"
    licence: str = "Apache-2.0"  # SPDX, of the weights
    seed: int = 0  # of a training: its initial weights, order and noise
    data_seed: int = 0  # of the data of stages 1 and 2: windows, teacher's answers, views of rated items
    runs: str = "runs"  # folder of the stages: runs/base, runs/align, runs/emotion
    media_root: str = ""  # folder that the paths in the manifests start from
    log_mel: LogMelConfig = field(default_factory=LogMelConfig)
    image: ImageConfig = field(default_factory=ImageConfig)
    windows: WindowConfig = field(default_factory=WindowConfig)
    vlm: VlmSize = field(default_factory=VlmSize)
    audio_encoder: dict[str, Any] = field(default_factory=dict)
    base: BaseStage = field(default_factory=BaseStage)
    align: AlignStage = field(default_factory=AlignStage)
    emotion: EmotionStage = field(default_factory=EmotionStage)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    def lineage(self) -> dict[str, Any]:
        """Describe the training for checkpoints: without paths of this machine, manifests by their names."""
        values = self.to_dict()
        del values["runs"], values["media_root"]
        values["align"]["clips"] = [_source_name(clips) for clips in self.align.clips]
        values["align"]["questions"] = Path(self.align.questions).name
        values["align"]["recordings"] = Path(self.align.recordings).name
        values["emotion"]["ratings"] = [Path(manifest).name for manifest in self.emotion.ratings]
        return values

    def identity(self, stage: str) -> str:
        """Return everything that a stage's result depends on, as JSON; files are for the stage to hash.

        A state that was saved under another identity cannot be resumed.
        """
        sections = ("seed", "data_seed", "log_mel", "image", "windows", "vlm", "audio_encoder", stage)
        values = {key: value for key, value in asdict(self).items() if key in sections}
        for harmless in ("save_every", "log_every", "workers"):
            del values[stage]["optimisation"][harmless]
        for named in ("clips", "questions", "recordings", "keep_tokens"):
            values[stage].pop(named, None)
        return json.dumps(values, sort_keys=True)


def _source_name(clips: str) -> str:
    """Return the name of a source of clips without folders, and of a pipe without its command."""
    kind = clips.partition(":")[0]
    return kind if kind == "pipe" else clips if kind == "art" else Path(clips).name


def read_training_config(file: Path, overrides: Sequence[str] = ()) -> TrainingConfig:
    """Read a TOML file and apply overrides such as ``base.optimisation.steps=100``.

    Raises UsageError that names every problem.
    """
    return read_settings(file, TrainingConfig(), overrides)
