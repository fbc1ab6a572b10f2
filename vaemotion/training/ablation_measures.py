"""What the ablations measure of a trained model, on windows that it never saw.

In: the model and cached validation windows. Out: figures by name; None where the variant has no such thing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from vaemotion.contract import prompts
from vaemotion.contract.emotions import EMOTIONS
from vaemotion.contract.front_end import PATHS
from vaemotion.data.procedural_art import CONTENT_CLASSES, FACTOR_NAMES, factor_values
from vaemotion.evaluation.listening import asked, content_scores
from vaemotion.evaluation.metrics import accuracy, ccc, pcc
from vaemotion.model.vaemotion_llm import VAEmotionLLM
from vaemotion.training.config import TrainingConfig
from vaemotion.training.emotion import EXPRESSED, AdapterBatch, Feelings, Rows
from vaemotion.training.teacher import visual_tokens
from vaemotion.training.windows_cache import WindowCache

Figures = dict[str, float | None]
_CHUNK = 64  # windows at once
_AROUSAL = 1  # the second of valence and arousal


def sight_figures(model: VAEmotionLLM, windows: WindowCache) -> Figures:
    """What the base answers from sight: what stage 1 has for a teacher."""
    return _said(model, windows, _sight(model, windows), None, "visual")


def ear_figures(model: VAEmotionLLM, windows: WindowCache, heard: Tensor) -> Figures:
    """Of a model after stage 1. heard: audio tokens of the windows, (n, N_a, D)."""
    sight, count = _sight(model, windows), len(heard)
    truth = _contents(windows)
    other = _of_another_class(truth)
    both = _named(content_scores(model, sight, heard, count))
    torn = _named(content_scores(model, sight, heard[torch.from_numpy(other)], count))
    return {
        **_said(model, windows, None, heard, "audio"),
        "content.audio-visual": accuracy(both, truth),
        "follows_sight": accuracy(torn, truth),
        "follows_sound": accuracy(torn, truth[other]),
    }


def adapter_figures(
    model: VAEmotionLLM, feelings: Feelings, config: TrainingConfig, is_supervised: bool
) -> Figures:
    """Of a model after stage 2, on validation windows with the audio tokens that it hears in them."""
    figures: Figures = {}
    for path, (read, backwards, audio, visual) in _through_adapter(model, feelings, config).items():
        windows, count = feelings.cache, len(read)
        seen, heard = None if path == "audio" else visual, None if path == "visual" else audio
        felt = _named(asked(model, seen, heard, count, prompts.EMOTION.text, EMOTIONS))
        truth = np.array([int(np.argmax(work.emotion_distribution)) for work in windows.works])
        figures |= {f"said_emotion.{path}": accuracy(felt, truth), **_said(model, windows, seen, heard, path)}
        read_figures = _read(windows, read, backwards)
        figures |= {f"{k}.{path}": value if is_supervised else None for k, value in read_figures.items()}
    return figures


def _read(windows: WindowCache, read: np.ndarray, backwards: np.ndarray) -> dict[str, float]:
    """The Supervisor's readings (n, 2) against the labels, and what they follow; ``backwards``: those of the turned windows."""
    labels = np.array([[work.valence, work.arousal] for work in windows.works])
    arousal = read[:, _AROUSAL]
    return {
        "valence": ccc(read[:, 0], labels[:, 0]),
        "arousal": ccc(arousal, labels[:, 1]),
        "tempo": partial_correlation(windows, arousal, "tempo"),
        "energy": partial_correlation(windows, arousal, "energy"),
        "backwards": float(np.abs(backwards[:, _AROUSAL] - arousal).mean()),
    }


def partial_correlation(windows: WindowCache, values: np.ndarray, factor: str) -> float:
    """Correlation of values (n,) with a factor of the works when all their other factors are held fixed (by least squares)."""
    factors = np.array([factor_values(work) for work in windows.works])
    column = FACTOR_NAMES.index(factor)
    others = np.column_stack([np.delete(factors, column, axis=1), np.ones(len(factors))])
    left = [y - others @ np.linalg.lstsq(others, y, rcond=None)[0] for y in (values, factors[:, column])]
    if left[1].std() < 1e-9:  # fewer windows than factors: nothing is left of the factor
        return 0.0
    return pcc(*left)


@torch.no_grad()
def _through_adapter(
    model: VAEmotionLLM, feelings: Feelings, config: TrainingConfig
) -> dict[str, tuple[np.ndarray, np.ndarray, Tensor, Tensor]]:
    """For each path: valence and arousal (n, 2), the same of the windows turned backwards, and X′: audio tokens, and visual tokens of as
    many of the newest pictures as the language model reads."""
    assert model.adapter is not None
    adapter = model.adapter.eval()
    rows, count = Rows(model, feelings, config), len(feelings.cache.works)
    newest = model.config.front_end.windows.language_frames * feelings.cache.visual.shape[2]
    parts: dict[str, list[tuple[Tensor, Tensor, Tensor, Tensor]]] = {path: [] for path in PATHS}
    for start in range(0, count, _CHUNK):
        chunk = range(start, min(start + _CHUNK, count))
        rngs = [np.random.default_rng([15, window]) for window in chunk]
        for path, batch in zip(PATHS, rows.procedural(chunk, rngs), strict=True):
            whole = replace(batch, visual_mask=torch.full_like(batch.visual_mask, path != "audio"))
            out = adapter(*whole.inputs())
            turned = adapter(*_turned(whole, feelings.cache.visual.shape[1]).inputs())
            read, read_turned = (o.valence_arousal[:, EXPRESSED] for o in (out, turned))
            parts[path].append((read, read_turned, out.audio_tokens, out.visual_tokens[:, -newest:]))
    joined = {path: [torch.cat(column) for column in zip(*rows, strict=True)] for path, rows in parts.items()}
    return {path: (p[0].numpy(), p[1].numpy(), p[2], p[3]) for path, p in joined.items()}


def _turned(rows: AdapterBatch, frames: int) -> AdapterBatch:
    """The same tokens in the opposite order of time: pictures as wholes, sound token by token. The ages stay where they are."""
    visual = rows.visual.unflatten(1, (frames, -1)).flip(1).flatten(1, 2)
    return replace(rows, audio=rows.audio.flip(1), visual=visual)


def _said(
    model: VAEmotionLLM, windows: WindowCache, visual: Tensor | None, audio: Tensor | None, path: str
) -> Figures:
    """What the language model answers from these tokens, against the truth: content as accuracy, valence and arousal as the CCC of
    its mean level."""
    count = len(windows.works)
    named = _named(content_scores(model, visual, audio, count))
    figures: Figures = {f"content.{path}": accuracy(named, _contents(windows))}
    scales = {
        "valence": (prompts.VALENCE.text, prompts.VALENCE_WORDS),
        "arousal": (prompts.AROUSAL.text, prompts.AROUSAL_WORDS),
    }
    for name, (question, words) in scales.items():
        scores = asked(model, visual, audio, count, question, words)
        level = mean_levels(model, scores, words)
        figures[f"said_{name}.{path}"] = ccc(level.numpy(), [getattr(work, name) for work in windows.works])
    return figures


def mean_levels(model: VAEmotionLLM, scores: Tensor, words: Sequence[str]) -> Tensor:
    """``teacher.mean_level`` from scores that are means over an option's tokens, (n, words): (n,)."""
    lengths = [len(model.token_ids(model.template.answer_text(word))) + 1 for word in words]
    middles = (2 * torch.arange(len(words)) + 1) / len(words) - 1
    return (scores.cpu() * torch.tensor(lengths)).softmax(1) @ middles


def _sight(model: VAEmotionLLM, windows: WindowCache) -> Tensor:
    return visual_tokens(
        windows, range(len(windows.works)), model.config.front_end.windows.language_frames
    ).to(model.device)


def _contents(windows: WindowCache) -> np.ndarray:
    return np.array([CONTENT_CLASSES.index(work.content) for work in windows.works])


def _named(scores: Tensor) -> np.ndarray:
    return scores.argmax(1).cpu().numpy()


def _of_another_class(truth: np.ndarray) -> np.ndarray:
    """For each window another one whose class is a different one (itself where there is none), always the same."""
    rng = np.random.default_rng(16)
    others = [np.flatnonzero(truth != own) for own in truth]
    return np.array([rng.choice(o) if len(o) else i for i, o in enumerate(others)])
