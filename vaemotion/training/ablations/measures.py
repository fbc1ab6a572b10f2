"""Measures of the ablations: figures of a trained model on windows that it was not trained on.

In: the model and cached validation windows. Out: figures by name; None where a variant has no such figure.
Sizes in the shapes: n windows, N_a audio tokens, N_v visual tokens, D the language model's width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from vaemotion.contract import prompts
from vaemotion.contract.emotions import EMOTIONS
from vaemotion.contract.front_end import PATHS, reads_frames, reads_sound
from vaemotion.data.art.art import CONTENT_CLASSES, FACTOR_NAMES, factor_values
from vaemotion.evaluation.hearing.listening import content_scores, question_scores
from vaemotion.evaluation.metrics import accuracy, ccc, pcc
from vaemotion.model.vaemotion_llm import VAEmotionLLM
from vaemotion.training.config import TrainingConfig
from vaemotion.training.emotion import EXPRESSED, AdapterBatch, EmotionData, Rows
from vaemotion.training.teacher import level_from_scores, visual_tokens
from vaemotion.training.windows_cache import WindowCache

Figures = dict[str, float | None]
_CHUNK = 64  # windows in one batch
_AROUSAL = 1  # column of arousal; valence is column 0


def teacher_figures(model: VAEmotionLLM, windows: WindowCache) -> Figures:
    """Measure the base's answers to frames: those that stage 1 distills."""
    return _answer_figures(model, windows, _visual(model, windows), None, "visual")


def audio_figures(model: VAEmotionLLM, windows: WindowCache, audio: Tensor) -> Figures:
    """Measure a model after stage 1. audio: audio tokens of the windows, (n, N_a, D)."""
    visual, count = _visual(model, windows), len(audio)
    truth = _contents(windows)
    other = _other_class_windows(truth)
    matching = _best_option(content_scores(model, visual, audio, count))
    conflicting = _best_option(content_scores(model, visual, audio[torch.from_numpy(other)], count))
    return {
        **_answer_figures(model, windows, None, audio, "audio"),
        "content.audio-visual": accuracy(matching, truth),
        "follows_sight": accuracy(conflicting, truth),
        "follows_sound": accuracy(conflicting, truth[other]),
    }


def adapter_figures(
    model: VAEmotionLLM, data: EmotionData, config: TrainingConfig, is_supervised: bool
) -> Figures:
    """Measure a model after stage 2. data: validation windows with their audio tokens.

    The Supervisor's figures are None unless ``is_supervised``.
    """
    figures: Figures = {}
    windows = data.cache
    truth = np.array([int(np.argmax(work.emotion_distribution)) for work in windows.works])
    for path, outputs in _through_adapter(model, data, config).items():
        visual = outputs.visual if reads_frames(path) else None
        audio = outputs.audio if reads_sound(path) else None
        scores = question_scores(model, visual, audio, len(truth), prompts.EMOTION.text, EMOTIONS)
        figures[f"said_emotion.{path}"] = accuracy(_best_option(scores), truth)
        figures |= _answer_figures(model, windows, visual, audio, path)
        for name, value in _supervisor_figures(windows, outputs).items():
            figures[f"{name}.{path}"] = value if is_supervised else None
    return figures


@dataclass(frozen=True)
class _AdapterOutputs:
    """The adapter's outputs for all windows on one path."""

    affect: np.ndarray  # (n, 2) valence and arousal
    reversed_affect: np.ndarray  # (n, 2), of the same windows with their tokens in reverse order
    audio: Tensor  # (n, N_a, D) enhanced
    visual: Tensor  # (n, N_v, D) enhanced, of the frames that the language model reads


def _supervisor_figures(windows: WindowCache, outputs: _AdapterOutputs) -> dict[str, float]:
    """Compare the Supervisor's readings with the labels, the works' factors, and reversed windows."""
    labels = np.array([[work.valence, work.arousal] for work in windows.works])  # (n, 2)
    arousal = outputs.affect[:, _AROUSAL]
    return {
        "valence": ccc(outputs.affect[:, 0], labels[:, 0]),
        "arousal": ccc(arousal, labels[:, 1]),
        "tempo": partial_correlation(windows, arousal, "tempo"),
        "energy": partial_correlation(windows, arousal, "energy"),
        "backwards": float(np.abs(outputs.reversed_affect[:, _AROUSAL] - arousal).mean()),
    }


def partial_correlation(windows: WindowCache, values: np.ndarray, factor: str) -> float:
    """Correlate values (n,) with a factor of the works, all other factors held fixed by least squares."""
    factors = np.array([factor_values(work) for work in windows.works])  # (n, factors)
    column = FACTOR_NAMES.index(factor)
    others = np.column_stack([np.delete(factors, column, axis=1), np.ones(len(factors))])
    residuals = [
        y - others @ np.linalg.lstsq(others, y, rcond=None)[0] for y in (values, factors[:, column])
    ]  # (n,) each
    if residuals[1].std() < 1e-9:  # fewer windows than factors leave nothing of the factor
        return 0.0
    return pcc(*residuals)


@torch.no_grad()
def _through_adapter(
    model: VAEmotionLLM, data: EmotionData, config: TrainingConfig
) -> dict[str, _AdapterOutputs]:
    """Run all windows through the adapter on each path, in order and reversed in time."""
    adapter = model.emo_adapter.eval()
    rows, count = Rows(model, data, config), len(data.cache.works)
    frames, per_frame = data.cache.visual.shape[1:3]
    newest = model.config.front_end.windows.language_frames * per_frame
    parts: dict[str, list[tuple[Tensor, Tensor, Tensor, Tensor]]] = {path: [] for path in PATHS}
    for start in range(0, count, _CHUNK):
        chunk = range(start, min(start + _CHUNK, count))
        rngs = [np.random.default_rng([15, window]) for window in chunk]
        for path, batch in zip(PATHS, rows.procedural(chunk, rngs), strict=True):
            whole = replace(batch, visual_mask=torch.full_like(batch.visual_mask, reads_frames(path)))
            out = adapter(*whole.inputs())
            out_reversed = adapter(*_reversed_in_time(whole, frames).inputs())
            affect, affect_reversed = (o.valence_arousal[:, EXPRESSED] for o in (out, out_reversed))
            parts[path].append((affect, affect_reversed, out.audio_tokens, out.visual_tokens[:, -newest:]))
    joined = {path: [torch.cat(column) for column in zip(*rows, strict=True)] for path, rows in parts.items()}
    return {path: _AdapterOutputs(p[0].numpy(), p[1].numpy(), p[2], p[3]) for path, p in joined.items()}


def _reversed_in_time(rows: AdapterBatch, frames: int) -> AdapterBatch:
    """Reverse the order of the tokens, whole frames and single audio tokens. The ages keep their places."""
    visual = rows.visual.unflatten(1, (frames, -1)).flip(1).flatten(1, 2)  # (R, N_v, D)
    return replace(rows, audio=rows.audio.flip(1), visual=visual)


def _answer_figures(
    model: VAEmotionLLM, windows: WindowCache, visual: Tensor | None, audio: Tensor | None, path: str
) -> Figures:
    """Compare the language model's answers from these tokens with the labels.

    Content as accuracy, valence and arousal as the CCC of the mean level. visual: (n, N_v, D); audio: (n,
    N_a, D).
    """
    count = len(windows.works)
    content = _best_option(content_scores(model, visual, audio, count))
    figures: Figures = {f"content.{path}": accuracy(content, _contents(windows))}
    scales = {
        "valence": (prompts.VALENCE.text, prompts.VALENCE_WORDS),
        "arousal": (prompts.AROUSAL.text, prompts.AROUSAL_WORDS),
    }
    for name, (question, words) in scales.items():
        scores = question_scores(model, visual, audio, count, question, words)  # (n, words)
        level = level_from_scores(model, scores.cpu(), words)  # (n,)
        figures[f"said_{name}.{path}"] = ccc(level.numpy(), [getattr(work, name) for work in windows.works])
    return figures


def _visual(model: VAEmotionLLM, windows: WindowCache) -> Tensor:
    """Return the visual tokens of the frames that the language model reads, (n, N_v, D)."""
    frames = model.config.front_end.windows.language_frames
    return visual_tokens(windows, range(len(windows.works)), frames).to(model.device)


def _contents(windows: WindowCache) -> np.ndarray:
    return np.array([CONTENT_CLASSES.index(work.content) for work in windows.works])


def _best_option(scores: Tensor) -> np.ndarray:
    return scores.argmax(1).cpu().numpy()


def _other_class_windows(truth: np.ndarray) -> np.ndarray:
    """Choose for each window one of another class, itself where there is none; the choice is fixed."""
    rng = np.random.default_rng(16)
    others = [np.flatnonzero(truth != own) for own in truth]
    return np.array([rng.choice(o) if len(o) else i for i, o in enumerate(others)])
