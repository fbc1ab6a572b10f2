"""Configuration of the three stages: frozen dataclasses, read once from TOML plus ``--set section.key=value``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vaemotion.contract.audio import LogMelConfig
from vaemotion.contract.image import ImageConfig
from vaemotion.contract.settings import read_settings
from vaemotion.contract.windows import WindowConfig


@dataclass(frozen=True)
class VlmSize:
    """Size of a base from scratch. ``image_tokens`` a picture = (side / patch / scale)²."""

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
    """AdamW with warm-up and cosine decay. ``batch``: samples in a step over all processes, in ``accumulate`` passes of equal size.
    ``save_every`` steps."""

    steps: int = 1000
    batch: int = 48
    accumulate: int = 1
    learning_rate: float = 8e-4
    weight_decay: float = 0.05
    warmup_steps: int = 50
    clip_norm: float = 1.0
    save_every: int = 200
    log_every: int = 10
    precision: str = "no"  # accelerate's mixed_precision: no, bf16, fp16
    workers: int = 1


@dataclass(frozen=True)
class BaseStage:
    """The vision-language model. ``auxiliary_weight``: of the disposable head on the tower (class, valence and arousal, visible
    factors); ``line_share``: of line drawings among single pictures; ``listed_share``: of the steps, in which questions list options."""

    optimisation: Optimisation = field(default_factory=Optimisation)
    frame_counts: tuple[int, ...] = (1, 2, 4)
    frame_count_weights: tuple[float, ...] = (0.7, 0.22, 0.08)
    auxiliary_weight: float = 0.5
    line_share: float = 0.3
    listed_share: float = 0.12


@dataclass(frozen=True)
class AlignStage:
    """Stage 1. ``works``: cached clips; ``frame_counts``: how many of the newest frames the teacher sees; ``recordings``: manifest of
    recordings that are paired with clips of their class (empty: none), and their share of the samples; ``auxiliary_weight``: of the
    disposable head on the audio tokens that is taught what the teacher saw; ``incoherent_bits``: a clip is not taught from when the
    teacher's next-token distributions about its content, from the fewest and from the most pictures, are further apart than this
    (Jensen-Shannon divergence): what it shows does not stay one thing while it sounds; ``pairing``: the controls are ``shifted`` (the sound
    of another moment) and ``shuffled`` (the sound of another clip)."""

    optimisation: Optimisation = field(default_factory=lambda: Optimisation(learning_rate=1e-3))
    works: int = 6000
    frame_counts: tuple[int, ...] = (1, 2, 4)
    temperature: float = 1.5
    kd_weight: float = 1.0
    ce_weight: float = 0.5
    auxiliary_weight: float = 1.0
    both_share: float = 1 / 3  # of the steps, in which the student gets [V; A]
    incoherent_bits: float = 0.3
    sampled_share: float = 0.5  # of the teacher's answers, sampled at temperature 0.7 instead of greedily
    recordings: str = ""
    recordings_share: float = 0.45
    pairing: str = "synchronised"

    def __post_init__(self) -> None:
        if self.pairing not in ("synchronised", "shifted", "shuffled"):
            raise ValueError(f"pairing must be synchronised, shifted or shuffled, got {self.pairing!r}")


@dataclass(frozen=True)
class EmotionStage:
    """Stage 2. ``ratings``: manifests of rated pictures and sounds; ``language_batch``: samples of each batch that also get the language
    loss, on a path that ``modality_dropout`` selects (else audio-visual); without ``token_ages`` every token is 0 s old."""

    optimisation: Optimisation = field(
        default_factory=lambda: Optimisation(learning_rate=6e-4, weight_decay=0.1, batch=64, workers=0)
    )
    works: int = 6000
    ratings: tuple[str, ...] = ()
    va_weight: float = 1.0
    nll_weight: float = 0.2
    emotion_weight: float = 0.3
    language_weight: float = 0.3
    language_batch: int = 8
    shrinkage: float = 0.05
    dropout: float = 0.15
    modality_dropout: bool = True
    token_ages: bool = True


@dataclass(frozen=True)
class TrainingConfig:
    """All of it. ``runs``: where the stages are written (``runs/base``, ``runs/align``, ``runs/emotion``)."""

    name: str = "vaemotion"
    licence: str = "Apache-2.0"  # SPDX, of the weights
    seed: int = 0  # of a training: its start, its order, its noise
    data_seed: int = (
        0  # of what stages 1 and 2 are taught with: windows, teacher's answers, views of rated items
    )
    runs: str = "runs"
    media_root: str = ""  # folder that the paths of the manifests named below start from
    log_mel: LogMelConfig = field(default_factory=LogMelConfig)
    image: ImageConfig = field(default_factory=ImageConfig)
    windows: WindowConfig = field(default_factory=WindowConfig)
    vlm: VlmSize = field(default_factory=VlmSize)
    audio_encoder: dict[str, Any] = field(default_factory=dict)
    base: BaseStage = field(default_factory=BaseStage)
    align: AlignStage = field(default_factory=AlignStage)
    emotion: EmotionStage = field(default_factory=EmotionStage)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lineage(self) -> dict[str, Any]:
        """For checkpoints: all but where things lie on this machine; manifests by their file names."""
        values = self.to_dict()
        del values["runs"], values["media_root"]
        values["align"]["recordings"] = Path(self.align.recordings).name
        values["emotion"]["ratings"] = [Path(manifest).name for manifest in self.emotion.ratings]
        return values

    def identity(self, stage: str) -> str:
        """Everything that the result of a stage depends on, as JSON: a state of another identity cannot be resumed."""
        sections = ("seed", "data_seed", "log_mel", "image", "windows", "vlm", "audio_encoder", stage)
        values = {key: value for key, value in asdict(self).items() if key in sections}
        for harmless in ("save_every", "log_every", "workers"):
            del values[stage]["optimisation"][harmless]
        return json.dumps(values, sort_keys=True)


def read_training_config(file: Path, overrides: Sequence[str] = ()) -> TrainingConfig:
    """TOML file plus overrides such as ``base.optimisation.steps=100``. Raises UsageError that names every problem."""
    return read_settings(file, TrainingConfig(), overrides)
