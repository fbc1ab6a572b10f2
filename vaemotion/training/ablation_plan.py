"""What the ablations compare: groups of variants that differ in a few fields of a stage's configuration.

In: the configuration. Out: `Trial`s, each one training with one seed. Variants of different groups with the same settings are
one trial.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vaemotion.contract.front_end import PATHS
from vaemotion.training.config import TrainingConfig

ALIGN, EMOTION = "align", "emotion"
# Of what is measured and of how a trial is run: results of another format are not taken for these.
FORMAT = 1


@dataclass(frozen=True)
class Variant:
    """``changes``: the fields of the stage's section that differ from the configuration."""

    name: str
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class Contrast:
    """What a sentence says of two variants: how far apart they are in ``figure``, in words ``what``."""

    variant: str
    against: str
    figure: str
    what: str


@dataclass(frozen=True)
class Group:
    """One table. ``columns``: figure → head. With ``by_path`` a variant has a row for each path, and its figures are
    ``<figure>.<path>``. ``about``: what is compared, and what to know of the figures."""

    key: str
    title: str
    stage: str
    about: str
    variants: tuple[Variant, ...]
    columns: Mapping[str, str]
    contrasts: tuple[Contrast, ...]
    by_path: bool = False


# No disposable head beside the objective under test: it would be a second teacher.
_ALONE = {"auxiliary_weight": 0.0}
_NO_LANGUAGE = {"language_weight": 0.0}
_NO_SUPERVISOR = {"va_weight": 0.0, "nll_weight": 0.0, "emotion_weight": 0.0}
_SOUND = {
    "content.audio": "content (accuracy)",
    "said_valence.audio": "valence (CCC)",
    "said_arousal.audio": "arousal (CCC)",
}
_SAID = {
    "said_emotion": "emotion (accuracy)",
    "said_valence": "valence (CCC)",
    "said_arousal": "arousal (CCC)",
    "content": "content (accuracy)",
}
_CONTENT = "content accuracy from sound"

GROUPS: tuple[Group, ...] = (
    Group(
        "objective", "Objective of stage 1", ALIGN,
        "What the language model answers from sound alone. Without an objective the audio pathway is as it was drawn. The last row "
        "adds the disposable head on the audio tokens; all other tables of stage 1 are without it.",
        (
            Variant("none", {**_ALONE, "kd_weight": 0.0, "ce_weight": 0.0}),
            Variant("CE", {**_ALONE, "kd_weight": 0.0}),
            Variant("KD", {**_ALONE, "ce_weight": 0.0}),
            Variant("KD + CE", _ALONE),
            Variant("KD + CE + head", {}),
        ),
        _SOUND,
        (
            Contrast("KD + CE", "none", "content.audio", _CONTENT),
            Contrast("KD", "CE", "content.audio", _CONTENT),
            Contrast("KD + CE + head", "KD + CE", "content.audio", _CONTENT),
            Contrast("KD + CE + head", "KD + CE", "said_arousal.audio", "CCC of arousal from sound"),
        ),
    ),
    Group(
        "temperature", "Temperature of distillation", ALIGN, "KD + CE at three temperatures τ.",
        tuple(Variant(f"τ = {t:g}", {**_ALONE, "temperature": t}) for t in (1.0, 1.5, 2.0)),
        _SOUND,
        (
            Contrast("τ = 1.5", "τ = 1", "content.audio", _CONTENT),
            Contrast("τ = 2", "τ = 1.5", "content.audio", _CONTENT),
        ),
    ),
    Group(
        "pairing", "Which sound is heard with which sight", ALIGN,
        "KD + CE. Shifted: the clip's own sound, turned by a quarter to three quarters of the window; shuffled: another clip's.",
        tuple(Variant(name, {**_ALONE, "pairing": name}) for name in ("synchronised", "shifted", "shuffled")),
        _SOUND,
        (
            Contrast("synchronised", "shuffled", "content.audio", _CONTENT),
            Contrast("synchronised", "shifted", "content.audio", _CONTENT),
            Contrast("synchronised", "shifted", "said_arousal.audio", "CCC of arousal from sound"),
        ),
    ),
    Group(
        "both", "A third of the steps with sight and sound", ALIGN,
        "KD + CE. Follows sight, follows sound: sight of one clip with the sound of a clip of another class, and which of the two "
        "classes the answer names.",
        (
            Variant("[V; A] in a third", {**_ALONE, "both_share": 1 / 3}),
            Variant("never", {**_ALONE, "both_share": 0.0}),
        ),
        {
            **_SOUND, "content.audio-visual": "content from [V; A] (accuracy)",
            "follows_sight": "follows sight", "follows_sound": "follows sound",
        },
        (
            Contrast("[V; A] in a third", "never", "follows_sight", "share of answers that follow sight"),
            Contrast("[V; A] in a third", "never", "content.audio-visual", "content accuracy from both"),
            Contrast("[V; A] in a third", "never", "content.audio", _CONTENT),
        ),
    ),
    Group(
        "adapter", "Enhancer × Supervisor", EMOTION,
        "Enhancer off: no language loss, so that X′ = X; Supervisor off: none of its losses. The Supervisor's own valence and arousal "
        "(CCC), and what the language model answers from X′. With both off the language model reads what stage 1 left.",
        (
            Variant("both", {}),
            Variant("Enhancer only", _NO_SUPERVISOR),
            Variant("Supervisor only", _NO_LANGUAGE),
            Variant("neither", {**_NO_LANGUAGE, **_NO_SUPERVISOR}),
        ),
        {"valence": "Supervisor: valence", "arousal": "Supervisor: arousal"}
        | {figure: f"language model: {head}" for figure, head in _SAID.items()},
        (
            Contrast("both", "Enhancer only", "said_arousal.audio", "CCC of the language model's arousal from sound"),
            Contrast("both", "Supervisor only", "arousal.audio", "CCC of the Supervisor's arousal from sound"),
            Contrast("both", "neither", "said_emotion.audio-visual", "accuracy of the language model's emotion from both"),
            Contrast("both", "neither", "content.audio-visual", "content accuracy from both under X′"),
            Contrast("both", "neither", "content.audio", "content accuracy from sound under X′"),
        ),
        by_path=True,
    ),
    Group(
        "ages", "Token ages", EMOTION,
        "The Supervisor. Tempo and motion lie in the order of the tokens, which attention does not see without their ages. Tempo and energy "
        "(of motion and sound): correlation of the arousal that is read with that factor, all other factors of the work held fixed "
        "(partial correlation). Backwards: mean change of the arousal when the same tokens come in the opposite order.",
        (Variant("ages", {"token_ages": True}), Variant("no ages", {"token_ages": False})),
        {
            "valence": "valence (CCC)", "arousal": "arousal (CCC)", "tempo": "tempo (partial correlation)",
            "energy": "energy (partial correlation)", "backwards": "backwards",
        },
        (
            Contrast("ages", "no ages", "tempo.visual", "partial correlation with tempo from sight"),
            Contrast("ages", "no ages", "energy.visual", "partial correlation with energy from sight"),
            Contrast("ages", "no ages", "arousal.visual", "CCC of arousal from sight"),
            Contrast("ages", "no ages", "arousal.audio", "CCC of arousal from sound"),
        ),
        by_path=True,
    ),
    Group(
        "dropout", "Modality dropout", EMOTION,
        "What the language model answers from X′. With dropout its loss is taken on a path drawn at random, without on both "
        "modalities always.",
        (Variant("dropout", {"modality_dropout": True}), Variant("no dropout", {"modality_dropout": False})),
        _SAID,
        (
            Contrast("dropout", "no dropout", "said_arousal.audio", "CCC of arousal from sound"),
            Contrast("dropout", "no dropout", "said_emotion.visual", "accuracy of the emotion from sight"),
            Contrast("dropout", "no dropout", "said_emotion.audio-visual", "accuracy of the emotion from both"),
        ),
        by_path=True,
    ),
)  # fmt: skip
EAR: Mapping[str, Any] = {}  # the changes of the stage-1 variant whose tokens all of stage 2 reads: none


@dataclass(frozen=True)
class Trial:
    """One training. ``config``: with the variant's changes and this trial's seed; ``key``: names its files; ``ear``: the trial of
    stage 1 whose audio pathway a trial of stage 2 reads. ``label``: for the eyes only."""

    stage: str
    config: TrainingConfig
    key: str
    label: str
    ear: Trial | None = None

    @property
    def is_trained(self) -> bool:
        """Is there any loss at all?"""
        if self.stage == ALIGN:
            align = self.config.align
            return max(align.kd_weight, align.ce_weight, align.auxiliary_weight) > 0
        return self.is_supervised or self.config.emotion.language_weight > 0

    @property
    def is_supervised(self) -> bool:
        """Does the Supervisor learn anything?"""
        stage = self.config.emotion
        return max(stage.va_weight, stage.nll_weight, stage.emotion_weight) > 0


@dataclass(frozen=True)
class Plan:
    """``base_hash``: of the frozen base with its tokenizer; ``validation``: how many windows are measured on. The data are
    those of the configuration's own seed; a trial's seed moves its start, its order and its noise."""

    config: TrainingConfig
    base_hash: str
    validation: int
    seeds: int

    def trial(self, stage: str, changes: Mapping[str, Any], number: int, label: str = "") -> Trial:
        """The training of a variant with the ``number``-th seed."""
        seed = self.config.seed + number
        section = replace(getattr(self.config, stage), **changes)
        config = replace(self.config, seed=seed, **{stage: section})
        ear = self.trial(ALIGN, EAR, number, "the ear of stage 2") if stage == EMOTION else None
        about = [
            FORMAT, self.base_hash, self.config.seed, self.validation, stage, config.identity(stage),
            ear.key if ear else "",
        ]  # fmt: skip
        key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
        return Trial(stage, config, key, f"{label}, seed {seed}", ear)

    def of_variant(self, group: Group, variant: Variant) -> list[Trial]:
        """A trial for each seed."""
        label = f"{group.key}: {variant.name}"
        return [self.trial(group.stage, variant.changes, number, label) for number in range(self.seeds)]

    def trials(self, groups: Sequence[Group]) -> list[Trial]:
        """All trials of these groups, each once, in the order in which they can be run: seed by seed, ears before what reads them."""
        found: dict[str, Trial] = {}
        for number in range(self.seeds):
            for group in groups:
                for variant in group.variants:
                    trial = self.of_variant(group, variant)[number]
                    if trial.ear is not None:
                        found.setdefault(trial.ear.key, trial.ear)
                    found.setdefault(trial.key, trial)
        return list(found.values())


def row_figure(figure: str, path: str | None) -> str:
    """The name under which a table's figure is stored; ``path``: that of the row, None in tables without paths."""
    return figure if path is None else f"{figure}.{path}"


def row_paths(group: Group) -> tuple[str | None, ...]:
    """The paths that a variant has rows for."""
    return PATHS if group.by_path else (None,)
