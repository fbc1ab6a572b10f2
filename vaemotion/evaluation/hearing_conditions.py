"""What is named from sound alone, by the model and by everything that it must beat, on one material.

In: a model whose base stays as it is, audio pathways to hear with, `Material`. Out: accuracies with intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vaemotion.evaluation.hearing_material import Array, Indices, Material, other_clips, progress, silence
from vaemotion.evaluation.listening import content_scores, hear
from vaemotion.evaluation.rows import Bootstrap, Estimate
from vaemotion.model.audio_pathway import AudioPathway
from vaemotion.model.vaemotion_llm import VAEmotionLLM

MODEL, CONTROL, COMPARISON = "the model", "control", "comparison"


@dataclass(frozen=True)
class Condition:
    """``kind``: the model, a control that it must beat, or something to compare it with. ``accuracy``: None where it was not measured;
    ``note`` then says why, else what it is."""

    name: str
    kind: str
    accuracy: Estimate | None
    note: str


@dataclass(frozen=True)
class Recognition:
    """One material's conditions. ``confusion``: how often the model names which class (column) for a clip of which class (row)."""

    material: str
    options: tuple[str, ...]
    chance: float
    clips: int
    windows: int
    conditions: tuple[Condition, ...]
    confusion: tuple[tuple[int, ...], ...]

    def condition(self, name: str) -> Condition:
        return next(condition for condition in self.conditions if condition.name == name)


@dataclass(frozen=True)
class OtherEar:
    """The audio pathway of another training on the same base, None where none was given; ``note``: how it differs, or how to get it."""

    pathway: AudioPathway | None
    note: str


@dataclass(frozen=True)
class Ears:
    """What a material is also heard with."""

    random_projector: AudioPathway
    shuffled: OtherEar
    ce_only: OtherEar


@contextmanager
def hearing_with(model: VAEmotionLLM, ear: AudioPathway) -> Iterator[VAEmotionLLM]:
    """The same model with another audio pathway, for a while."""
    own, model.audio = model.audio, ear
    try:
        yield model
    finally:
        model.audio = own


def random_projector(model: VAEmotionLLM, visual_token_norm: float, seed: int) -> AudioPathway:
    """The model's own trained audio encoder behind a projector as stage 1 begins with it."""
    assert model.audio is not None
    assert model.config.audio is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ear = AudioPathway(model.config.audio, model.width)
    ear.encoder.load_state_dict(model.audio.encoder.state_dict())
    text_norm = model.base.model.get_input_embeddings().weight.norm(dim=-1).mean().item()
    ear.match_norm(visual_token_norm, text_norm)
    return ear.to(model.device).eval()


def recognition(
    model: VAEmotionLLM, ears: Ears, material: Material, lessons: Material | None, bootstrap: Bootstrap
) -> Recognition:
    """Every condition on one material. ``lessons``: what the supervised probes learn from; None: they are not measured."""
    own = sound_scores(model, material)
    conditions: list[Condition] = []
    for ask in progress(
        _asked(model, ears, material, lessons, own, bootstrap.seed), f"conditions: {material.name}"
    ):
        accuracy = None
        if ask.scores is not None:
            named = np.broadcast_to(ask.scores(), own.shape).argmax(1)
            accuracy = bootstrap.mean((named == material.truth).astype(np.float64), material.works)
        conditions.append(Condition(ask.name, ask.kind, accuracy, ask.note))
    return Recognition(
        material.name, material.options, material.chance, len(material.truth), len(material.clip_of), tuple(conditions),
        confusion(material.truth, own.argmax(1), len(material.options)),
    )  # fmt: skip


@dataclass(frozen=True)
class _Ask:
    """A condition to be measured: ``scores`` gives (n, classes), or (1, classes) for all clips; None: it cannot be measured."""

    name: str
    kind: str
    note: str
    scores: Callable[[], Array] | None


def _asked(
    model: VAEmotionLLM, ears: Ears, material: Material, lessons: Material | None, own: Array, seed: int
) -> list[_Ask]:  # fmt: skip
    def unheard(audio: Tensor | None) -> Array:
        return content_scores(model, None, audio, 1, material.options).double().cpu().numpy()

    def through(ear: AudioPathway) -> Array:
        with hearing_with(model, ear):
            return sound_scores(model, material)

    def other(name: str, kind: str, ear: OtherEar) -> _Ask:
        pathway = ear.pathway
        return _Ask(name, kind, ear.note, None if pathway is None else lambda: through(pathway))

    silent = silence(model.config.front_end)
    return [
        _Ask("the model", MODEL, "sound alone; scores averaged over a clip's windows", lambda: own),
        _Ask("blind text", CONTROL, "the question without any media", lambda: unheard(None)),
        _Ask("silence", CONTROL, "a silent window", lambda: unheard(hear(model, silent))),
        _Ask(
            "another clip's sound", CONTROL, "always of another class: who hears perfectly has 0 here",
            lambda: own[other_clips(material.truth, seed)],
        ),
        _Ask(
            "random projector", CONTROL, "the trained encoder, a new projector as stage 1 begins with it",
            lambda: through(ears.random_projector),
        ),
        other("stage 1 on shuffled pairs", CONTROL, ears.shuffled),
        other("CE only", COMPARISON, ears.ce_only),
        _probe("probe on the model's audio tokens", "audio tokens", material, lessons, lambda m: hear(model, m.log_mel)),
        _probe("probe on log-mel statistics", "log-mel, an outside baseline", material, lessons, lambda m: m.log_mel),
    ]  # fmt: skip


def _probe(
    name: str, what: str, material: Material, lessons: Material | None, steps: Callable[[Material], Tensor]
) -> _Ask:  # fmt: skip
    if lessons is None:
        return _Ask(name, COMPARISON, "not measured: there is no split 'train' to learn from", None)

    def scores() -> Array:
        features, asked = pooled(steps(lessons)), pooled(steps(material))
        return material.per_clip(
            probe_scores(features, lessons.truth[lessons.clip_of], asked, len(material.options))
        )

    note = f"logistic regression with labels on mean and deviation of the {what}; {len(lessons.truth)} clips of split train"
    return _Ask(name, COMPARISON, note, scores)


def sound_scores(model: VAEmotionLLM, material: Material) -> Array:
    """Scores of every class for every clip from its sound alone, (n, classes)."""
    audio = hear(model, material.log_mel)
    scores = content_scores(model, None, audio, len(audio), material.options)
    return material.per_clip(scores.double().cpu().numpy())


def confusion(truth: Indices, named: npt.NDArray[np.intp], classes: int) -> tuple[tuple[int, ...], ...]:
    """Counts, row: the clip's class, column: the named one."""
    counts = np.bincount(truth * classes + named, minlength=classes**2).reshape(classes, classes)
    return tuple(tuple(map(int, row)) for row in counts)


def pooled(values: Tensor) -> Array:
    """Mean and standard deviation over time, (m, T, d) → (m, 2d)."""
    steps = values.double().cpu()
    return torch.cat([steps.mean(1), steps.std(1, correction=0)], dim=1).numpy()


def probe_scores(features: Array, classes: Indices, asked: Array, count: int) -> Array:
    """Log-probabilities, (n, count), of a multinomial logistic regression on standardised features; -inf for a class that the training
    material (m, d), (m,) lacks."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=3000))
    probe.fit(features, classes)
    scores = np.full((len(asked), count), -np.inf)
    scores[:, probe.classes_] = probe.predict_log_proba(asked)
    return scores
