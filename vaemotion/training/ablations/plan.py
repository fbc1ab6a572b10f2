"""The comparisons of the ablations: groups of variants that differ in a few settings of a stage.

In: the configuration. Out: `Trial`s, each one training with one seed. Variants of different groups with the
same settings are one trial.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vaemotion.contract.front_end import PATHS
from vaemotion.training.config import TrainingConfig

ALIGN, EMOTION = "align", "emotion"
FORMAT = 2  # of the figures and of how a trial is run; results of another format are computed again


@dataclass(frozen=True)
class Variant:
    """One setting of a stage."""

    name: str
    changes: Mapping[str, Any]  # fields of the stage's section that differ from the configuration


@dataclass(frozen=True)
class Contrast:
    """Two variants of a group that a sentence compares."""

    variant: str
    against: str
    figure: str  # that is compared
    what: str  # the figure in words


@dataclass(frozen=True)
class Group:
    """Variants that one table compares."""

    key: str
    title: str
    stage: str  # ALIGN or EMOTION
    about: str  # the comparison in words, and how to read its figures
    variants: tuple[Variant, ...]
    columns: Mapping[str, str]  # head of each figure's column
    contrasts: tuple[Contrast, ...]
    by_path: bool = False  # a row for each path, with the figures ``<figure>.<path>``


# No auxiliary head beside the objective under test, because it would be a second teacher.
_ALONE = {"auxiliary_weight": 0.0}
_NO_LANGUAGE = {"language_weight": 0.0}
_NO_SUPERVISOR = {"va_weight": 0.0, "nll_weight": 0.0, "emotion_weight": 0.0}
_AUDIO_COLUMNS = {
    "content.audio": "content (accuracy)",
    "said_valence.audio": "valence (CCC)",
    "said_arousal.audio": "arousal (CCC)",
}
_ANSWER_COLUMNS = {
    "said_emotion": "emotion (accuracy)",
    "said_valence": "valence (CCC)",
    "said_arousal": "arousal (CCC)",
    "content": "content (accuracy)",
}
_CONTENT = "content accuracy from sound"

GROUPS: tuple[Group, ...] = (
    Group(
        key="objective",
        title="Objective of stage 1",
        stage=ALIGN,
        about=(
            "What the language model answers from sound alone. Without an objective the audio pathway is "
            "as it was drawn. The last row adds the disposable head on the audio tokens; all other "
            "tables of stage 1 are without it."
        ),
        variants=(
            Variant("none", {**_ALONE, "kd_weight": 0.0, "ce_weight": 0.0}),
            Variant("CE", {**_ALONE, "kd_weight": 0.0}),
            Variant("KD", {**_ALONE, "ce_weight": 0.0}),
            Variant("KD + CE", _ALONE),
            Variant("KD + CE + head", {}),
        ),
        columns=_AUDIO_COLUMNS,
        contrasts=(
            Contrast("KD + CE", "none", "content.audio", _CONTENT),
            Contrast("KD", "CE", "content.audio", _CONTENT),
            Contrast("KD + CE + head", "KD + CE", "content.audio", _CONTENT),
            Contrast("KD + CE + head", "KD + CE", "said_arousal.audio", "CCC of arousal from sound"),
        ),
    ),
    Group(
        key="temperature",
        title="Temperature of distillation",
        stage=ALIGN,
        about="KD + CE at three temperatures τ.",
        variants=tuple(Variant(f"τ = {t:g}", {**_ALONE, "temperature": t}) for t in (1.0, 1.5, 2.0)),
        columns=_AUDIO_COLUMNS,
        contrasts=(
            Contrast("τ = 1.5", "τ = 1", "content.audio", _CONTENT),
            Contrast("τ = 2", "τ = 1.5", "content.audio", _CONTENT),
        ),
    ),
    Group(
        key="pairing",
        title="Which sound is heard with which sight",
        stage=ALIGN,
        about=(
            "KD + CE. Shifted: the clip's own sound, turned by a quarter to three quarters of the "
            "window; shuffled: another clip's."
        ),
        variants=tuple(
            Variant(name, {**_ALONE, "pairing": name}) for name in ("synchronised", "shifted", "shuffled")
        ),
        columns=_AUDIO_COLUMNS,
        contrasts=(
            Contrast("synchronised", "shuffled", "content.audio", _CONTENT),
            Contrast("synchronised", "shifted", "content.audio", _CONTENT),
            Contrast("synchronised", "shifted", "said_arousal.audio", "CCC of arousal from sound"),
        ),
    ),
    Group(
        key="space",
        title="Where sight and sound are aligned",
        stage=ALIGN,
        about=(
            "Next-token space: KD + CE on the teacher's answers. Token space: the audio tokens of a clip "
            "are matched to its visual tokens by MMD, without any answer (the alternative of “An Eye for "
            "an Ear”, NeurIPS 2024)."
        ),
        variants=(
            Variant("next-token space", _ALONE),
            Variant("token space", {**_ALONE, "kd_weight": 0.0, "ce_weight": 0.0, "token_weight": 1.0}),
            Variant("both", {**_ALONE, "token_weight": 1.0}),
        ),
        columns=_AUDIO_COLUMNS,
        contrasts=(
            Contrast("next-token space", "token space", "content.audio", _CONTENT),
            Contrast("both", "next-token space", "content.audio", _CONTENT),
        ),
    ),
    Group(
        key="both",
        title="A share of the steps with sight and sound",
        stage=ALIGN,
        about=(
            "KD + CE. Follows sight, follows sound: sight of one clip with the sound of a clip of "
            "another class, and which of the two classes the answer names."
        ),
        variants=(
            Variant("[V; A] in a third", {**_ALONE, "both_share": 1 / 3}),
            Variant("[V; A] in a tenth", {**_ALONE, "both_share": 0.1}),
            Variant("never", {**_ALONE, "both_share": 0.0}),
        ),
        columns={
            **_AUDIO_COLUMNS,
            "content.audio-visual": "content from [V; A] (accuracy)",
            "follows_sight": "follows sight",
            "follows_sound": "follows sound",
        },
        contrasts=(
            Contrast("[V; A] in a third", "never", "follows_sight", "share of answers that follow sight"),
            Contrast("[V; A] in a third", "never", "content.audio-visual", "content accuracy from both"),
            Contrast("[V; A] in a third", "never", "content.audio", _CONTENT),
        ),
    ),
    Group(
        key="adapter",
        title="Enhancer × Supervisor",
        stage=EMOTION,
        about=(
            "Enhancer off: no language loss, so that X′ = X; Supervisor off: none of its losses. The "
            "Supervisor's own valence and arousal (CCC), and what the language model answers from X′. "
            "With both off the language model reads what stage 1 left."
        ),
        variants=(
            Variant("both", {}),
            Variant("Enhancer only", _NO_SUPERVISOR),
            Variant("Supervisor only", _NO_LANGUAGE),
            Variant("neither", {**_NO_LANGUAGE, **_NO_SUPERVISOR}),
        ),
        columns={"valence": "Supervisor: valence", "arousal": "Supervisor: arousal"}
        | {figure: f"language model: {head}" for figure, head in _ANSWER_COLUMNS.items()},
        contrasts=(
            Contrast(
                "both",
                "Enhancer only",
                "said_arousal.audio",
                "CCC of the language model's arousal from sound",
            ),
            Contrast(
                "both", "Supervisor only", "arousal.audio", "CCC of the Supervisor's arousal from sound"
            ),
            Contrast(
                "both",
                "neither",
                "said_emotion.audio-visual",
                "accuracy of the language model's emotion from both",
            ),
            Contrast("both", "neither", "content.audio-visual", "content accuracy from both under X′"),
            Contrast("both", "neither", "content.audio", "content accuracy from sound under X′"),
        ),
        by_path=True,
    ),
    Group(
        key="enhancer",
        title="One Enhancer or two",
        stage=EMOTION,
        about=(
            "One Enhancer that adds the same function's residual to the tokens of both modalities (public "
            "summaries of the paper say “shared position-wise residual”), against one each. What the "
            "language model answers from X′."
        ),
        variants=(
            Variant("one each", {"shared_enhancer": False}),
            Variant("shared", {"shared_enhancer": True}),
        ),
        columns=_ANSWER_COLUMNS,
        contrasts=(
            Contrast("shared", "one each", "said_emotion.audio", "accuracy of the emotion from sound"),
            Contrast("shared", "one each", "said_arousal.visual", "CCC of arousal from sight"),
            Contrast("shared", "one each", "said_emotion.audio-visual", "accuracy of the emotion from both"),
        ),
        by_path=True,
    ),
    Group(
        key="ages",
        title="Token ages",
        stage=EMOTION,
        about=(
            "The Supervisor. Tempo and motion lie in the order of the tokens, which attention does not "
            "see without their ages. Tempo and energy (of motion and sound): correlation of the arousal "
            "that is read with that factor, all other factors of the work held fixed (partial "
            "correlation). Backwards: mean change of the arousal when the same tokens come in the "
            "opposite order."
        ),
        variants=(Variant("ages", {"token_ages": True}), Variant("no ages", {"token_ages": False})),
        columns={
            "valence": "valence (CCC)",
            "arousal": "arousal (CCC)",
            "tempo": "tempo (partial correlation)",
            "energy": "energy (partial correlation)",
            "backwards": "backwards",
        },
        contrasts=(
            Contrast("ages", "no ages", "tempo.visual", "partial correlation with tempo from sight"),
            Contrast("ages", "no ages", "energy.visual", "partial correlation with energy from sight"),
            Contrast("ages", "no ages", "arousal.visual", "CCC of arousal from sight"),
            Contrast("ages", "no ages", "arousal.audio", "CCC of arousal from sound"),
        ),
        by_path=True,
    ),
    Group(
        key="dropout",
        title="Modality dropout",
        stage=EMOTION,
        about=(
            "What the language model answers from X′. With dropout its loss is taken on a path drawn at "
            "random, without on both modalities always."
        ),
        variants=(
            Variant("dropout", {"modality_dropout": True}),
            Variant("no dropout", {"modality_dropout": False}),
        ),
        columns=_ANSWER_COLUMNS,
        contrasts=(
            Contrast("dropout", "no dropout", "said_arousal.audio", "CCC of arousal from sound"),
            Contrast("dropout", "no dropout", "said_emotion.visual", "accuracy of the emotion from sight"),
            Contrast(
                "dropout", "no dropout", "said_emotion.audio-visual", "accuracy of the emotion from both"
            ),
        ),
        by_path=True,
    ),
)
# Changes of the stage-1 variant whose audio tokens all variants of stage 2 read: none.
ALIGN_OF_EMOTION: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Trial:
    """One training."""

    stage: str  # ALIGN or EMOTION
    config: TrainingConfig  # with the variant's changes and this trial's seed
    key: str  # hash of its settings, which names its files
    label: str  # for the progress bar
    align_trial: Trial | None = None  # of stage 2: the trial of stage 1 that trained its audio pathway

    @property
    def is_trained(self) -> bool:
        """True when any loss has a weight."""
        if self.stage == ALIGN:
            align = self.config.align
            weights = (align.kd_weight, align.ce_weight, align.token_weight, align.auxiliary_weight)
            return max(weights) > 0
        return self.is_supervised or self.config.emotion.language_weight > 0

    @property
    def is_supervised(self) -> bool:
        """True when any loss of the Supervisor has a weight."""
        stage = self.config.emotion
        return max(stage.va_weight, stage.nll_weight, stage.emotion_weight) > 0


@dataclass(frozen=True)
class AblationPlan:
    """The settings that all trials share.

    All trials have the data of the configuration's own seed. A trial's seed moves its initial weights,
    order and noise.
    """

    config: TrainingConfig
    base_hash: str  # of the frozen base with its tokenizer
    validation: int  # number of windows that are measured
    seeds: int

    def trial(self, stage: str, changes: Mapping[str, Any], number: int, label: str = "") -> Trial:
        """Return the training of a variant with the ``number``-th seed."""
        seed = self.config.seed + number
        section = replace(getattr(self.config, stage), **changes)
        config = replace(self.config, seed=seed, **{stage: section})
        align = None
        if stage == EMOTION:
            align = self.trial(ALIGN, ALIGN_OF_EMOTION, number, "audio pathway for stage 2")
        data = (self.base_hash, self.config.seed, self.validation, *self.config.align.clips)
        settings = [FORMAT, *data, stage, config.identity(stage), align.key if align else ""]
        key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
        return Trial(stage, config, key, f"{label}, seed {seed}", align)

    def of_variant(self, group: Group, variant: Variant) -> list[Trial]:
        """Return a trial for each seed."""
        label = f"{group.key}: {variant.name}"
        return [self.trial(group.stage, variant.changes, number, label) for number in range(self.seeds)]

    def trials(self, groups: Sequence[Group]) -> list[Trial]:
        """Return all trials of these groups once, seed by seed, each behind the trial that it needs."""
        found: dict[str, Trial] = {}
        for number in range(self.seeds):
            for group in groups:
                for variant in group.variants:
                    trial = self.of_variant(group, variant)[number]
                    if trial.align_trial is not None:
                        found.setdefault(trial.align_trial.key, trial.align_trial)
                    found.setdefault(trial.key, trial)
        return list(found.values())


def row_figure(figure: str, path: str | None) -> str:
    """Return the name under which a row's figure is stored; ``path`` is None in tables without paths."""
    return figure if path is None else f"{figure}.{path}"


def row_paths(group: Group) -> tuple[str | None, ...]:
    """Return the paths for which a variant has rows; (None,) in tables without paths."""
    return PATHS if group.by_path else (None,)


@dataclass(frozen=True)
class Document:
    """The content of the ablations' document."""

    plan: AblationPlan
    results: Mapping[str, Mapping[str, Any]]  # of the trials that were run, by key
    teacher: Mapping[str, Any] | None  # result of the base's answers to frames
    command: str  # that makes the document
    base: Path

    def values(self, group: Group, variant: str, figure: str) -> list[float | None]:
        """Return a figure of each seed that was run; None where the variant has no such figure."""
        [chosen] = [v for v in group.variants if v.name == variant]
        return [self.results[t.key]["figures"].get(figure) for t in self._run(group, chosen)]

    def seeds_run(self, group: Group, variant: Variant) -> int:
        """Return the number of seeds that were run."""
        return len(self._run(group, variant))

    def _run(self, group: Group, variant: Variant) -> list[Any]:
        return [t for t in self.plan.of_variant(group, variant) if t.key in self.results]
