"""End-to-end losses of an export, on windows that are not calibration windows.

In: a reference predictor, candidates that read the same windows, and the material to judge on. Out: for each
candidate and metric the loss and its one-sided 95 % bound, and what could not be judged. Metrics: CCC of
valence and arousal with the labels on each rated path, agreement of valence and arousal with the reference's
where not every window is rated, content accuracy, KL divergence of the narration per token, and temporal
jitter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.progress import track

from calibration.samples import content_hash
from export.answers import greedy_answer
from export.gguf.quality import kl_and_top1
from export.int8.material import JudgedWindow, Material, is_rated
from export.int8.search import valence_arousal
from runtime.perception.predictor import Predictor, Tokens, adapter_inputs
from vaemotion.contract.concordance import weighted_ccc
from vaemotion.contract.errors import UserError
from vaemotion.contract.front_end import PATHS
from vaemotion.contract.terminal import Terminal
from vaemotion.contract.words import counted
from vaemotion.data.manifest.item import CONSTRUCTS, Item, label_at

Array = npt.NDArray[Any]
AnyPredictor = Predictor[Any]
Statistic = Callable[[Array], Array]  # from weights of windows, (R, n), to (R,)
RESAMPLES = 1000
LEVEL = 0.95
LEAST_WORKS = 16  # that a loss is measured on; fewer say nothing about the others
JITTER_CLIPS = 40
LEAST_STREAMS = 2
_SEED = 7


@dataclass(frozen=True)
class Budget:
    """Largest losses allowed, each for the one-sided 95 % bound."""

    max_drop: float = 0.005  # of CCC on each path, and of content accuracy
    max_kl_nats: float = 0.02  # per token of the narration
    max_jitter_ratio: float = 1.05

    def allowed(self, metric: str) -> float:
        """Return the limit of a metric such as ``ccc_valence/audio``."""
        return {"kl_nats": self.max_kl_nats, "jitter": self.max_jitter_ratio}.get(
            metric.partition("/")[0], self.max_drop
        )


@dataclass(frozen=True)
class Loss:
    """A loss of a candidate in one metric."""

    delta: float  # as measured
    bound: float  # upper bound with 95 % confidence
    allowed: float  # by the budget

    @property
    def holds(self) -> bool:
        return self.bound <= self.allowed


@dataclass(frozen=True)
class Judgement:
    """The losses of each candidate by metric, and one sentence for each judgement that was not possible.

    ``sha256``: of every window's frames and audio samples.
    """

    losses: dict[str, dict[str, Loss]]
    not_judged: list[str]
    sha256: list[str]


@dataclass
class _Known:
    """Knowledge of the windows: labels of valence and arousal by construct and path, and ``units``.

    A label is (2,), NaN where there is none. ``units``: what is resampled for the bounds, the work of each
    window.
    """

    units: list[str] = field(default_factory=list)
    labels: dict[tuple[str, str], list[Array]] = field(
        default_factory=lambda: {(construct, path): [] for construct in CONSTRUCTS for path in PATHS}
    )


@dataclass
class _Outputs:
    """Outputs of one predictor, an entry for each window; NaN where a window lacks what is asked for.

    ``affect``: (2,) by construct and path. ``names_content``: 1 where it names the content, else 0.
    """

    affect: dict[tuple[str, str], list[Array]] = field(
        default_factory=lambda: {(construct, path): [] for construct in CONSTRUCTS for path in PATHS}
    )
    names_content: list[float] = field(default_factory=list)
    kl_nats: list[float] = field(default_factory=list)


def judge(
    reference: AnyPredictor, candidates: Mapping[str, AnyPredictor], material: Material, budget: Budget
) -> Judgement:
    """Measure the losses of each candidate.

    Bounds are over works, over media where there are too few works. Raises UserError for too few media.
    """
    predictors = {"reference": reference, **candidates}
    outputs = {name: _Outputs() for name in predictors}
    known, hashes, media = _Known(), list[str](), list[str]()
    windows = track(material.windows(), "judging", material.most, console=Terminal(stderr=True))
    for index, window in enumerate(windows):
        hashes.append(content_hash(window.clip))
        known.units.append(window.work)
        media.append(window.medium)
        for key, labels in known.labels.items():
            labels.append(_label(window, *key))
        inputs = window.inputs(reference.constants.front_end)
        tokens = {name: predictor.encode(inputs) for name, predictor in predictors.items()}
        asked = _content_questions(window)
        for name, predictor in predictors.items():
            for path in PATHS:
                read = _affects(predictor, tokens[name], path, window.paths)
                for construct, values in read.items():
                    outputs[name].affect[construct, path].append(values)
            item = asked[index % len(asked)] if asked else None
            outputs[name].names_content.append(_names_content(predictor, tokens[name], item))
        for name, kl in _narration_kl(predictors, tokens, window.narration).items():
            outputs[name].kl_nats.append(kl)
    works = len(set(known.units))
    if works < LEAST_WORKS:
        known.units = media
        if (found := len(set(media))) < LEAST_WORKS:
            raise UserError(
                f"{material.name} has {found} media that can be used, INT8 is judged on at least "
                f"{LEAST_WORKS}; give more, or export with --max-drop none"
            )
    jitter = _jitter(predictors, material, budget)
    before = outputs["reference"]
    losses = {
        name: _losses(before, outputs[name], known, budget, compares_affect=material.compares_affect)
        | jitter[name]
        for name in candidates
    }
    missing = _not_judged(next(iter(losses.values())), known, before, material.name)
    if works < LEAST_WORKS:
        missing.append(
            f"losses on other works: the media of {material.name} are parts of {counted(works, 'work')}, "
            f"{LEAST_WORKS} are needed; the bounds are over media"
        )
    return Judgement(losses, missing, hashes)


# --- of one window -----------------------------------------------------------------------------------------


def _affects(predictor: AnyPredictor, tokens: Tokens, path: str, paths: Sequence[str]) -> dict[str, Array]:
    """Predict valence and arousal of a window on a path, (2,) by construct; NaN where there are none."""
    nothing = np.full(2, np.nan)
    if path not in paths:
        return dict.fromkeys(CONSTRUCTS, nothing)
    out = predictor.engines["emo_adapter"].run(adapter_inputs(tokens.only(path), predictor.constants))
    induced = out["induced_valence_arousal"][0] if "induced_valence_arousal" in out else nothing
    return {"expressed": out["valence_arousal"][0], "induced": induced}


def _label(window: JudgedWindow, construct: str, path: str) -> Array:
    """Return the raters' valence and arousal of a window, (2,), NaN for what they did not rate."""
    for item in window.items:
        if is_rated(item) and item.construct == construct and item.modality == path:
            return np.array(label_at(item, window.time_s), np.float64)  # None becomes NaN
    return np.full(2, np.nan)


def _content_questions(window: JudgedWindow) -> list[Item]:
    """List the questions about content that have options, and whose path the window has the media for."""
    return [i for i in window.items if i.task == "content" and i.options and i.modality in window.paths]


def _names_content(predictor: AnyPredictor, tokens: Tokens, item: Item | None) -> float:
    if item is None or item.options is None or item.question is None:
        return float("nan")
    options = [predictor.option_ids(name) for name in item.options]
    prompt = predictor.prompt(tokens.only(item.modality), item.question)
    return float(int(np.argmax(predictor.language_model.score(prompt, options))) == item.answer_index)


def _narration_kl(
    predictors: Mapping[str, AnyPredictor], tokens: Mapping[str, Tokens], narration: str | None
) -> dict[str, float]:
    """Compute the mean KL(reference ‖ candidate) of each candidate, in nats per token of the narration.

    Each predictor uses its own enhanced tokens. ``narration``: None for what the reference narrates.
    """
    enhanced = {name: predictor.adapt(tokens[name])[1] for name, predictor in predictors.items()}
    reference = predictors["reference"]
    if narration is None:
        question = reference.constants.narrator_question
        ids = greedy_answer(reference, reference.prompt(enhanced["reference"], question))
    else:
        ids = reference.option_ids(narration)
    logits = {name: _narration_logits(p, enhanced[name], ids) for name, p in predictors.items()}
    return {
        name: kl_and_top1(logits["reference"], rows).mean_kl_nats
        for name, rows in logits.items()
        if name != "reference"
    }


def _narration_logits(predictor: AnyPredictor, enhanced: Tokens, ids: Sequence[int]) -> Array:
    """Compute the logits of every token of a narrator's answer, (tokens, vocab)."""
    prompt = predictor.prompt(enhanced, predictor.constants.narrator_question)
    embedded = np.concatenate([prompt, predictor.language_model.embed(ids[:-1])])
    return predictor.language_model.logits(embedded, all_positions=True)[-len(ids) :]


# --- of all windows ----------------------------------------------------------------------------------------


def _losses(
    reference: _Outputs, candidate: _Outputs, known: _Known, budget: Budget, *, compares_affect: bool = False
) -> dict[str, Loss]:
    """Compute the losses with bootstrap bounds over units, those with ``LEAST_WORKS`` units or more."""
    losses: dict[str, Loss] = {}
    units = np.array(known.units)

    def add(metric: str, rows: Array, statistic: Statistic) -> None:
        """Add a metric of the windows ``rows``."""
        if len(set(units[rows])) >= LEAST_WORKS:
            whole, drawn = statistic(np.ones((1, int(rows.sum())))), statistic(_resampled(units[rows]))
            losses[metric] = Loss(float(whole[0]), float(np.quantile(drawn, LEVEL)), budget.allowed(metric))

    for (construct, path), labeled in known.labels.items():
        before, after = (np.array(o.affect[construct, path]) for o in (reference, candidate))  # (n, 2)
        for column, name in enumerate(("valence", "arousal")):
            what = f"{'' if construct == 'expressed' else 'induced_'}{name}/{path}"
            b, a, truth = before[:, column], after[:, column], np.array(labeled)[:, column]  # (n,) each
            read = ~np.isnan(b)
            rated = read & ~np.isnan(truth)
            add(f"ccc_{what}", rated, _lost_ccc(b[rated], a[rated], truth[rated]))
            if compares_affect and (construct == "expressed" or rated.any()):
                add(f"agreement_{what}", read, _disagreement(b[read], a[read]))
    lost = np.array(reference.names_content) - np.array(candidate.names_content)  # (n,)
    asked = ~np.isnan(lost)
    add("content_accuracy", asked, _mean(lost[asked]))
    kl = np.array(candidate.kl_nats)  # (n,)
    add("kl_nats", np.ones(len(kl), bool), _mean(kl))
    return losses


def _lost_ccc(before: Array, after: Array, truth: Array) -> Statistic:
    return lambda weights: weighted_ccc(before, truth, weights) - weighted_ccc(after, truth, weights)


def _disagreement(before: Array, after: Array) -> Statistic:
    return lambda weights: 1 - weighted_ccc(after, before, weights)


def _mean(values: Array) -> Statistic:
    return lambda weights: weights @ values / weights.sum(1)


def _resampled(units: Array) -> Array:
    """Draw bootstrap resamples of units, as weights of their windows: (n,) names → (R, n)."""
    numbers = {unit: number for number, unit in enumerate(dict.fromkeys(units.tolist()))}
    count = len(numbers)
    drawn = np.random.default_rng(_SEED).multinomial(count, [1 / count] * count, RESAMPLES)  # (R, units)
    return drawn[:, [numbers[unit] for unit in units.tolist()]]


def _jitter(
    predictors: Mapping[str, AnyPredictor], material: Material, budget: Budget
) -> dict[str, dict[str, Loss]]:
    """Compute the mean step between successive readings of the same media, candidate over reference."""
    steps: dict[tuple[str, str], list[float]] = {(name, path): [] for name in predictors for path in PATHS}
    streams = material.streams(JITTER_CLIPS)
    for windows in track(streams, "jitter", JITTER_CLIPS, console=Terminal(stderr=True)):
        for name, predictor in predictors.items():
            tokens = [predictor.encode(inputs) for inputs in windows]
            for path in PATHS:
                if tokens[0].only(path).path == path:
                    readings = valence_arousal(predictor, [t.only(path) for t in tokens])  # (readings, 2)
                    steps[name, path].append(float(np.abs(np.diff(readings, axis=0)).mean()))
    losses: dict[str, dict[str, Loss]] = {name: {} for name in predictors}
    for name in predictors:
        for path in PATHS:
            before, after = np.array(steps["reference", path]), np.array(steps[name, path])
            # Media whose readings stand still have no jitter that could grow by a factor.
            before, after = before[before > 0], after[before > 0]
            if len(before) < LEAST_STREAMS:
                continue
            count = len(before)
            weights = np.random.default_rng(_SEED).multinomial(count, [1 / count] * count, RESAMPLES)
            metric = f"jitter/{path}"
            bound = float(np.quantile((weights @ after) / (weights @ before), LEVEL))
            losses[name][metric] = Loss(float(after.sum() / before.sum()), bound, budget.allowed(metric))
    return losses


def _not_judged(found: Mapping[str, Loss], known: _Known, outputs: _Outputs, name: str) -> list[str]:
    """Say in one sentence each what the material allows no judgement of."""
    units, needed = np.array(known.units), f"{LEAST_WORKS} are needed"
    labels = np.array(list(known.labels.values()))  # (constructs · paths, n, 2)
    rated = len(set(units[~np.isnan(labels).all(axis=(0, 2))]))
    asked = len(set(units[~np.isnan(np.array(outputs.names_content))]))
    missing = {
        "ccc_": f"loss of CCC with people's ratings: {rated} works of {name} are rated, {needed} on a path",
        "content_": f"loss of content accuracy: {asked} works of {name} have options, {needed}",
        "jitter": f"jitter: fewer than {LEAST_STREAMS} media of {name} are long enough and move",
    }
    return [text for metric, text in missing.items() if not any(m.startswith(metric) for m in found)]
