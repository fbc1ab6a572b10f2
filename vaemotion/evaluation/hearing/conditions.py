"""Recognition from sound alone: the model, the controls that it must beat, and comparisons.

In: a model, baseline audio pathways on the same base, `Material`. Out: accuracies with intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vaemotion.contract.errors import UsageError
from vaemotion.evaluation.benchmark.rows import Bootstrap, Estimate
from vaemotion.evaluation.hearing.listening import encode_audio, question_scores
from vaemotion.evaluation.hearing.material import (
    Array,
    Indices,
    Material,
    noise,
    other_clips,
    progress,
    silence,
)
from vaemotion.model.audio_pathway import AudioPathway
from vaemotion.model.vaemotion_llm import VAEmotionLLM

MODEL, CONTROL, COMPARISON = "the model", "control", "comparison"


@dataclass(frozen=True)
class Condition:
    """Accuracy under one condition.

    ``kind``: the model itself, a control that it must beat, or a comparison. ``accuracy``: None where it was
    not measured. ``note``: a description, or the reason why it was not measured.
    """

    name: str
    kind: str
    accuracy: Estimate | None
    note: str


@dataclass(frozen=True)
class Recognition:
    """The conditions on one material. ``kind``: see `Material`.

    ``confusion``: number of clips of each class (row) that the model recognizes as each class (column).
    """

    material: str
    kind: str
    question: str
    options: tuple[str, ...]
    chance: float
    clips: int
    windows: int
    conditions: tuple[Condition, ...]
    confusion: tuple[tuple[int, ...], ...]

    def condition(self, name: str) -> Condition:
        """Return the condition of a name."""
        return next(condition for condition in self.conditions if condition.name == name)


@dataclass(frozen=True)
class BaselineEncoder:
    """The audio pathway of another training on the same base.

    ``pathway``: None where none was given. ``note``: how its training differs, or how to train it.
    """

    pathway: AudioPathway | None
    note: str


@dataclass(frozen=True)
class BaselineEncoders:
    """The audio pathways to compare the model's own with."""

    random_projector: AudioPathway
    shuffled: BaselineEncoder
    ce_only: BaselineEncoder


@contextmanager
def hearing_with(model: VAEmotionLLM, pathway: AudioPathway) -> Iterator[VAEmotionLLM]:
    """Replace the model's audio pathway within the context."""
    own, model.audio = model.audio, pathway
    try:
        yield model
    finally:
        model.audio = own


def random_projector(model: VAEmotionLLM, visual_token_norm: float, seed: int) -> AudioPathway:
    """Return the model's trained audio encoder with a projector as stage 1 initializes it."""
    trained = model.audio_pathway
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pathway = AudioPathway(trained.config, model.width)
    pathway.encoder.load_state_dict(trained.encoder.state_dict())
    text_norm = model.backbone.embedding.weight.norm(dim=-1).mean().item()
    pathway.match_norm(visual_token_norm, text_norm)
    return pathway.to(model.device).eval()


def recognition(
    model: VAEmotionLLM,
    baselines: BaselineEncoders,
    material: Material,
    training: Material | None,
    bootstrap: Bootstrap,
) -> Recognition:
    """Measure every condition on one material.

    ``training``: the material that the supervised probes are fitted on; None leaves them out.
    """
    own = sound_scores(model, material)
    pending = _conditions(model, baselines, material, training, own, bootstrap.seed)
    conditions: list[Condition] = []
    for condition in progress(pending, f"conditions: {material.name}"):
        accuracy = None
        if condition.scores is not None:
            chosen = np.broadcast_to(condition.scores(), own.shape).argmax(1)
            accuracy = bootstrap.mean((chosen == material.truth).astype(np.float64), material.works)
        conditions.append(Condition(condition.name, condition.kind, accuracy, condition.note))
    return Recognition(
        material=material.name,
        kind=material.kind,
        question=material.question,
        options=material.options,
        chance=material.chance,
        clips=len(material.truth),
        windows=len(material.clip_of),
        conditions=tuple(conditions),
        confusion=confusion(material.truth, own.argmax(1), len(material.options)),
    )


@dataclass(frozen=True)
class _PendingCondition:
    """A condition to measure.

    ``scores`` gives (n, classes), or (1, classes) for all clips alike; None: it cannot be measured.
    """

    name: str
    kind: str
    note: str
    scores: Callable[[], Array] | None


def _conditions(
    model: VAEmotionLLM,
    baselines: BaselineEncoders,
    material: Material,
    training: Material | None,
    own: Array,
    seed: int,
) -> list[_PendingCondition]:
    """List the conditions to measure. ``own``: the model's scores, (n, classes)."""

    def same_for_all_clips(audio: Tensor | None) -> Array:
        scores = question_scores(model, None, audio, 1, material.question, material.options)
        return scores.double().cpu().numpy()

    def scores_with(pathway: AudioPathway) -> Array:
        with hearing_with(model, pathway):
            return sound_scores(model, material)

    def baseline(name: str, kind: str, encoder: BaselineEncoder) -> _PendingCondition:
        pathway = encoder.pathway
        scores = None if pathway is None else lambda: scores_with(pathway)
        return _PendingCondition(name, kind, encoder.note, scores)

    def control(name: str, note: str, scores: Callable[[], Array]) -> _PendingCondition:
        return _PendingCondition(name, CONTROL, note, scores)

    def probe(name: str, features: str, steps: Callable[[Material], Tensor]) -> _PendingCondition:
        return _probe(name, features, material, training, steps)

    front_end = model.config.front_end
    silent, noisy = silence(front_end), noise(front_end, seed)
    return [
        _PendingCondition(
            "the model", MODEL, "sound alone; scores averaged over a clip's windows", lambda: own
        ),
        control("blind text", "the question without any media", lambda: same_for_all_clips(None)),
        control("silence", "a silent window", lambda: same_for_all_clips(encode_audio(model, silent))),
        control("noise", "a window of white noise", lambda: same_for_all_clips(encode_audio(model, noisy))),
        _another_sound(material, own, seed),
        control(
            "random projector",
            "the trained encoder with a new projector, initialized as in stage 1",
            lambda: scores_with(baselines.random_projector),
        ),
        baseline("stage 1 on shuffled pairs", CONTROL, baselines.shuffled),
        baseline("CE only", COMPARISON, baselines.ce_only),
        probe("probe on the model's audio tokens", "audio tokens", lambda m: encode_audio(model, m.log_mel)),
        probe("probe on log-mel statistics", "log-mel, without the model", lambda m: m.log_mel),
    ]


def _another_sound(material: Material, own: Array, seed: int) -> _PendingCondition:
    name = "another clip's sound"
    try:
        others = other_clips(material.truth, seed)
    except UsageError as error:
        return _PendingCondition(name, CONTROL, f"not measured: {error}", None)
    note = "always of another class: perfect recognition has 0 here"
    return _PendingCondition(name, CONTROL, note, lambda: own[others])


def _probe(
    name: str,
    features: str,
    material: Material,
    training: Material | None,
    steps: Callable[[Material], Tensor],
) -> _PendingCondition:
    """Describe a supervised probe. ``steps`` gives features over time of a material's windows, (m, T, d)."""
    if training is None:
        return _PendingCondition(
            name, COMPARISON, "not measured: there is no split 'train' to fit it on", None
        )

    def scores() -> Array:
        fitted_on, asked = pooled(steps(training)), pooled(steps(material))
        classes = training.truth[training.clip_of]
        return material.per_clip(probe_scores(fitted_on, classes, asked, len(material.options)))

    note = (
        f"logistic regression with labels on mean and deviation of the {features}; "
        f"{len(training.truth)} clips of split train"
    )
    return _PendingCondition(name, COMPARISON, note, scores)


def sound_scores(model: VAEmotionLLM, material: Material) -> Array:
    """Score every class for every clip from its sound alone, (n, classes)."""
    audio = encode_audio(model, material.log_mel)
    scores = question_scores(model, None, audio, len(audio), material.question, material.options)
    return material.per_clip(scores.double().cpu().numpy())


def confusion(truth: Indices, chosen: npt.NDArray[np.intp], classes: int) -> tuple[tuple[int, ...], ...]:
    """Count clips by their class (row) and the chosen class (column)."""
    counts = np.bincount(truth * classes + chosen, minlength=classes**2).reshape(classes, classes)
    return tuple(tuple(map(int, row)) for row in counts)


def pooled(values: Tensor) -> Array:
    """Pool features by mean and standard deviation over time, (m, T, d) → (m, 2d)."""
    steps = values.double().cpu()
    return torch.cat([steps.mean(1), steps.std(1, correction=0)], dim=1).numpy()


def probe_scores(features: Array, classes: Indices, asked: Array, count: int) -> Array:
    """Fit a multinomial logistic regression on standardized features and score other features.

    In: training features (m, d) and their classes (m,); ``asked``: features to score (n, d); ``count``: the
    number of classes. Out: log-probabilities (n, count), -inf for a class that the training features lack.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=3000))
    probe.fit(features, classes)
    scores = np.full((len(asked), count), -np.inf)
    scores[:, probe.classes_] = probe.predict_log_proba(asked)
    return scores
