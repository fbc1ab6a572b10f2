"""End-to-end losses of an export, on windows that are not calibration windows.

In: a reference predictor, and candidates that read the same windows. Out: for each candidate and metric the
loss and its one-sided 95 % bound. Metrics: CCC of valence and arousal on each path, content accuracy, KL
divergence of the narration per token, and temporal jitter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track

from calibration.samples import content_hash, procedural_window_clip
from export.gguf.quality import kl_and_top1
from runtime.perception.predictor import Predictor, Tokens, adapter_inputs
from vaemotion.contract import prompts
from vaemotion.contract.concordance import weighted_ccc
from vaemotion.contract.front_end import PATHS, Clip, FrontEnd, window_at
from vaemotion.contract.windows import encode_count
from vaemotion.data.art.art import CONTENT_CLASSES, Work, sample_work, work_seed
from vaemotion.data.instructions import procedural_clip, true_answer

Array = npt.NDArray[Any]
AnyPredictor = Predictor[Any]
RESAMPLES = 1000
LEVEL = 0.95
JITTER_CLIPS = 40
JITTER_READINGS = 16
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


@dataclass
class _Outputs:
    """Outputs of one predictor, an entry for each window."""

    affect: dict[str, list[Array]] = field(default_factory=lambda: {path: [] for path in PATHS})
    names_content: list[bool] = field(default_factory=list)  # correctly
    kl_nats: list[float] = field(default_factory=list)


def judge(
    reference: AnyPredictor,
    candidates: Mapping[str, AnyPredictor],
    windows: int,
    budget: Budget,
) -> tuple[dict[str, dict[str, Loss]], list[str]]:
    """Measure the losses of each candidate by metric. Returns them with the content hashes of the windows."""
    outputs = {name: _Outputs() for name in ("reference", *candidates)}
    predictors = {"reference": reference, **candidates}
    labels: list[tuple[float, float]] = []
    hashes: list[str] = []
    clips = judging_clips(reference.constants.front_end, windows)
    for index, (work, clip) in enumerate(track(clips, "judging", windows, console=Console(stderr=True))):
        labels.append((work.valence, work.arousal))
        hashes.append(content_hash(clip))
        inputs = window_at(clip, clip.duration_s, "audio-visual", reference.constants.front_end)
        tokens = {name: predictor.encode(inputs) for name, predictor in predictors.items()}
        for name, predictor in predictors.items():
            for path in PATHS:
                affect = valence_arousal(predictor, [tokens[name].only(path)])[0]
                outputs[name].affect[path].append(affect)
            path = PATHS[index % len(PATHS)]
            outputs[name].names_content.append(_names_content(predictor, tokens[name].only(path), work))
        for name, kl in _narration_kl(predictors, tokens, work).items():
            outputs[name].kl_nats.append(kl)
    jitter = _jitter(predictors, budget)
    before, truth = outputs["reference"], np.array(labels)
    return {n: {**_losses(before, outputs[n], truth, budget), **jitter[n]} for n in candidates}, hashes


def judging_clips(front_end: FrontEnd, count: int) -> Iterator[tuple[Work, Clip]]:
    """Yield works of the validation split with their clips. Calibration uses another split."""
    for index in range(count):
        work = sample_work(work_seed("validation", index))
        yield work, procedural_window_clip(work, front_end, _SEED)


def valence_arousal(predictor: AnyPredictor, windows: Sequence[Tokens]) -> Array:
    """Predict valence and arousal of windows as one batch, (n, 2)."""
    rows = [adapter_inputs(tokens, predictor.constants) for tokens in windows]
    batch = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    return predictor.engines["emo_adapter"].run(batch)["valence_arousal"]


def _names_content(predictor: AnyPredictor, tokens: Tokens, work: Work) -> bool:
    options = [predictor.option_ids(name) for name in CONTENT_CLASSES]
    scores = predictor.language_model.score(predictor.prompt(tokens, prompts.CONTENT.text), options)
    return CONTENT_CLASSES[int(np.argmax(scores))] == work.content


def _narration_kl(
    predictors: Mapping[str, AnyPredictor], tokens: Mapping[str, Tokens], work: Work
) -> dict[str, float]:
    """Compute the mean KL(reference ‖ candidate) of each candidate, in nats per token of the true caption.

    Each predictor uses its own enhanced tokens.
    """
    logits = {
        name: narration_logits(
            predictor, predictor.adapt(tokens[name])[1], true_answer(work, prompts.CAPTION)
        )
        for name, predictor in predictors.items()
    }
    return {
        name: kl_and_top1(logits["reference"], rows).mean_kl_nats
        for name, rows in logits.items()
        if name != "reference"
    }


def narration_logits(predictor: AnyPredictor, enhanced: Tokens, answer: str) -> Array:
    """Compute the logits of every token of a narrator's answer, its stop token included, (tokens, vocab)."""
    ids = predictor.option_ids(answer)
    prompt = predictor.prompt(enhanced, prompts.CAPTION.text)
    embedded = np.concatenate([prompt, predictor.language_model.embed(ids[:-1])])
    return predictor.language_model.logits(embedded, all_positions=True)[-len(ids) :]


def _losses(reference: _Outputs, candidate: _Outputs, labels: Array, budget: Budget) -> dict[str, Loss]:
    """Compute the losses with bootstrap bounds, labels (n, 2)."""
    losses: dict[str, Loss] = {}
    weights = np.random.default_rng(_SEED).multinomial(
        len(labels), [1 / len(labels)] * len(labels), RESAMPLES
    )  # (R, n)

    def add(metric: str, delta: float, resampled: Array) -> None:
        losses[metric] = Loss(delta, float(np.quantile(resampled, LEVEL)), budget.allowed(metric))

    every = np.ones((1, len(labels)))
    for path in PATHS:
        before, after = np.array(reference.affect[path]), np.array(candidate.affect[path])  # (n, 2)
        for column, name in enumerate(("valence", "arousal")):
            pair = (before[:, column], after[:, column])
            whole, drawn = (
                weighted_ccc(pair[0], labels[:, column], w) - weighted_ccc(pair[1], labels[:, column], w)
                for w in (every, weights)
            )
            add(f"ccc_{name}/{path}", float(whole[0]), drawn)
    lost = np.array(reference.names_content, np.float64) - np.array(candidate.names_content)  # (n,)
    add("content_accuracy", float(lost.mean()), weights @ lost / len(labels))
    kl = np.array(candidate.kl_nats)  # (n,)
    add("kl_nats", float(kl.mean()), weights @ kl / len(labels))
    return losses


def _jitter(predictors: Mapping[str, AnyPredictor], budget: Budget) -> dict[str, dict[str, Loss]]:
    """Compute the mean step between successive readings of the same clips, candidate over reference."""
    front_end = predictors["reference"].constants.front_end
    steps: dict[tuple[str, str], list[float]] = {(name, path): [] for name in predictors for path in PATHS}
    for index in track(range(JITTER_CLIPS), "jitter", console=Console(stderr=True)):
        windows = list(_stream(front_end, index))
        for name, predictor in predictors.items():
            tokens = [predictor.encode(inputs) for inputs in windows]
            for path in PATHS:
                readings = valence_arousal(predictor, [t.only(path) for t in tokens])  # (readings, 2)
                steps[name, path].append(float(np.abs(np.diff(readings, axis=0)).mean()))
    count = JITTER_CLIPS
    weights = np.random.default_rng(_SEED).multinomial(count, [1 / count] * count, RESAMPLES)
    losses: dict[str, dict[str, Loss]] = {}
    for name in predictors:
        losses[name] = {}
        for path in PATHS:
            before, after = np.array(steps["reference", path]), np.array(steps[name, path])
            metric = f"jitter/{path}"
            bound = float(np.quantile((weights @ after) / (weights @ before), LEVEL))
            losses[name][metric] = Loss(float(after.sum() / before.sum()), bound, budget.allowed(metric))
    return losses


def _stream(front_end: FrontEnd, index: int) -> Iterator[Any]:
    """Yield successive windows of one validation work, a frame hop apart."""
    windows, work = front_end.windows, sample_work(work_seed("validation", index))
    earliest_s = max(front_end.filled_audio_window_s, windows.visual_window_s) + windows.frame_hop_s
    clip = procedural_clip(work, earliest_s + JITTER_READINGS * windows.frame_hop_s, windows.frame_hop_s)
    first = encode_count(earliest_s, windows.frame_hop_s)
    for step in range(JITTER_READINGS):
        yield window_at(clip, (first + step) * windows.frame_hop_s, "audio-visual", front_end)
