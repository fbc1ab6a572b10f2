"""Measures of the ablations: figures of a trained model on windows that it was not trained on.

In: the model and cached validation windows. Out: figures by name; None where a variant has no such figure.
Sizes in the shapes: n windows, N_a audio tokens, N_v visual tokens, D the language model's width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from vaemotion.contract import prompts
from vaemotion.contract.emotions import EMOTIONS
from vaemotion.contract.front_end import PATHS, reads_frames, reads_sound
from vaemotion.data.art.art import FACTOR_NAMES, Work, factor_values
from vaemotion.data.clips.of_art import ArtClips
from vaemotion.evaluation.hearing.listening import question_scores
from vaemotion.evaluation.metrics import accuracy, ccc, pcc
from vaemotion.model.emo_adapter import EXPRESSED
from vaemotion.model.vaemotion_llm import VAEmotionLLM
from vaemotion.training.config import TrainingConfig
from vaemotion.training.emotion import EmotionData
from vaemotion.training.encoded import EncodedWindows
from vaemotion.training.rows import AdapterBatch, Rows
from vaemotion.training.teacher import level_from_scores

Figures = dict[str, float | None]
_CHUNK = 64  # windows in one batch
_AROUSAL = 1  # column of arousal; valence is column 0


@dataclass(frozen=True)
class Validation:
    """Windows of procedural works that no training has seen."""

    windows: EncodedWindows

    def __len__(self) -> int:
        return len(self.windows)

    @cached_property
    def works(self) -> tuple[Work, ...]:
        """The work of each window, (n,)."""
        source = self.windows.store.windows.source
        assert isinstance(source, ArtClips)
        return tuple(source.work(index) for index in range(len(source)))

    @cached_property
    def options(self) -> tuple[str, ...]:
        """The names of all contents, of which one is asked for."""
        return tuple(sorted({work.content for work in self.works}))

    @cached_property
    def contents(self) -> np.ndarray:
        """Index of each window's content into ``options``, (n,)."""
        return np.array([self.options.index(work.content) for work in self.works])


def teacher_figures(model: VAEmotionLLM, windows: Validation) -> Figures:
    """Measure the base's answers to frames: those that stage 1 distills."""
    figures = _answer_figures(model, windows, _visual(model, windows), None, "visual")
    return {**figures, "content.chance": 1 / len(windows.options)}


def audio_figures(model: VAEmotionLLM, windows: Validation, audio: Tensor) -> Figures:
    """Measure a model after stage 1. audio: audio tokens of the windows, (n, N_a, D)."""
    visual, count = _visual(model, windows), len(audio)
    truth, question = windows.contents, prompts.CONTENT.text
    other = _other_class_windows(truth)
    swapped = audio[torch.from_numpy(other)]
    matching, conflicting = (
        _best_option(question_scores(model, visual, heard, count, question, windows.options))
        for heard in (audio, swapped)
    )
    return {
        **_answer_figures(model, windows, None, audio, "audio"),
        "content.audio-visual": accuracy(matching, truth),
        "follows_sight": accuracy(conflicting, truth),
        "follows_sound": accuracy(conflicting, truth[other]),
    }


def adapter_figures(
    model: VAEmotionLLM,
    windows: Validation,
    data: EmotionData,
    config: TrainingConfig,
    is_supervised: bool,
) -> Figures:
    """Measure a model after stage 2. data: the validation windows as a set of works.

    The Supervisor's figures are None unless ``is_supervised``.
    """
    figures: Figures = {}
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


def _supervisor_figures(windows: Validation, outputs: _AdapterOutputs) -> dict[str, float]:
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


def partial_correlation(windows: Validation, values: np.ndarray, factor: str) -> float:
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
    assert data.works is not None
    rows, count = Rows(model, [data.works], config), data.works.windows
    frames = model.config.front_end.windows.frames
    newest = model.config.front_end.windows.language_frames * model.tokens_per_frame
    parts: dict[str, list[tuple[Tensor, Tensor, Tensor, Tensor]]] = {path: [] for path in PATHS}
    for start in range(0, count, _CHUNK):
        chunk = range(start, min(start + _CHUNK, count))
        rngs = [np.random.default_rng([15, window]) for window in chunk]
        for path, batch in zip(PATHS, rows.of(0, chunk, rngs), strict=True):
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
    model: VAEmotionLLM, windows: Validation, visual: Tensor | None, audio: Tensor | None, path: str
) -> Figures:
    """Compare the language model's answers from these tokens with the labels.

    Content as accuracy, valence and arousal as the CCC of the mean level. visual: (n, N_v, D); audio: (n,
    N_a, D).
    """
    count = len(windows.works)
    scores = question_scores(model, visual, audio, count, prompts.CONTENT.text, windows.options)
    figures: Figures = {f"content.{path}": accuracy(_best_option(scores), windows.contents)}
    scales = {
        "valence": (prompts.VALENCE.text, prompts.VALENCE_WORDS),
        "arousal": (prompts.AROUSAL.text, prompts.AROUSAL_WORDS),
    }
    for name, (question, words) in scales.items():
        scores = question_scores(model, visual, audio, count, question, words)  # (n, words)
        level = level_from_scores(model, scores.cpu(), words)  # (n,)
        figures[f"said_{name}.{path}"] = ccc(level.numpy(), [getattr(work, name) for work in windows.works])
    return figures


def _visual(model: VAEmotionLLM, windows: Validation) -> Tensor:
    """Return the visual tokens of the frames that the language model reads, (n, N_v, D)."""
    frames = model.config.front_end.windows.language_frames
    return windows.windows.visual_tokens(range(len(windows)), frames).to(model.device)


def _best_option(scores: Tensor) -> np.ndarray:
    return scores.argmax(1).cpu().numpy()


def _other_class_windows(truth: np.ndarray) -> np.ndarray:
    """Choose for each window one of another class, itself where there is none; the choice is fixed."""
    rng = np.random.default_rng(16)
    others = [np.flatnonzero(truth != own) for own in truth]
    return np.array([rng.choice(o) if len(o) else i for i, o in enumerate(others)])
