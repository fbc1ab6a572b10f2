"""Stage 2, EmoAdapter: Emotion Enhancer and Emotion Supervisor (``vaemotion train emotion``).

Language model and encoders stay frozen. Each sample runs on all three paths as one batch: a path is a mask. The
Supervisor's losses use every path; modality dropout only selects the path of the language loss.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor

from vaemotion.contract import prompts
from vaemotion.contract.front_end import PATHS
from vaemotion.data.instructions import choose_question, true_answer
from vaemotion.model.checkpoint import load_checkpoint, read_config, save_checkpoint
from vaemotion.model.emo_adapter import CONSTRUCTS, EmoAdapter, EmoAdapterConfig
from vaemotion.model.vaemotion_llm import VAEmotionLLM
from vaemotion.training.config import EmotionStage, TrainingConfig, read_training_config
from vaemotion.training.loop import fit, weights_digest
from vaemotion.training.losses import concordance_loss, gaussian_nll, rater_divergence
from vaemotion.training.windows_cache import WindowCache, cached_windows

QUESTION_SHARES = {prompts.EMOTION: 0.3, prompts.AROUSAL: 0.25, prompts.VALENCE: 0.25, prompts.CAPTION: 0.2}
EXPRESSED = CONSTRUCTS.index("expressed")


@dataclass(frozen=True)
class AdapterBatch:
    """Inputs of the adapter (see ``EmoAdapter.forward``) and labels of b windows: ``affect`` (b, 2), ``emotions`` (b, 9)."""

    audio: Tensor  # (b, N_a, D)
    audio_age_s: Tensor
    visual: Tensor  # (b, N_v, D)
    visual_mask: Tensor
    visual_age_s: Tensor
    affect: Tensor
    emotions: Tensor


def train(config_file: Path, overrides: list[str], out: Path | None, resume: bool) -> None:
    """Run the stage on ``<runs>/align``; the checkpoint is written to ``out`` (default ``<runs>/emotion``)."""
    config = read_training_config(config_file, overrides)
    aligned, out = Path(config.runs) / "align", out or Path(config.runs) / "emotion"
    model = load_checkpoint(aligned)
    stored = read_config(aligned)
    base_hash = stored["components"]["base"]["sha256"]
    cache = cached_windows(model, base_hash, "train", config.emotion.works, config.seed, Path(config.runs))
    audio_tokens = hear(model, cache)
    model = with_adapter(model, cache, audio_tokens, config)
    if run(model, cache, audio_tokens, config, out.with_name(out.name + ".training"), resume):
        save_checkpoint(model, out, {**stored["lineage"], "emotion": config.to_dict()}, config.licence)


@torch.no_grad()
def hear(model: VAEmotionLLM, cache: WindowCache) -> Tensor:
    """Audio tokens of every cached window, (n, N_a, D); the audio pathway is frozen now."""
    assert model.audio is not None
    chunks: Iterable[Tensor] = track(cache.log_mel.split(64), "audio tokens")
    return torch.cat([model.audio(chunk.float()) for chunk in chunks])


def with_adapter(
    model: VAEmotionLLM, cache: WindowCache, audio_tokens: Tensor, config: TrainingConfig
) -> VAEmotionLLM:
    """The same model, frozen, with a new EmoAdapter whose whitening is fitted to the training tokens."""
    model.requires_grad_(False)
    torch.manual_seed(config.seed + 7)
    adapter_config = EmoAdapterConfig()
    model.config = replace(model.config, adapter=adapter_config)
    model.adapter = EmoAdapter(adapter_config, model.width)
    some = slice(0, 2000)  # windows; their tokens are plenty for a covariance of this width
    model.adapter.audio_whitening.fit([audio_tokens[some].flatten(0, 1)], config.emotion.shrinkage)
    model.adapter.visual_whitening.fit([cache.visual[some].flatten(0, 2).float()], config.emotion.shrinkage)
    return model


def audio_token_ages_s(model: VAEmotionLLM) -> Tensor:
    """Age of each audio token's end at the end of the window, (N_a,)."""
    assert model.audio is not None
    count, window_s = model.audio.n_tokens, model.config.front_end.windows.audio_window_s
    return window_s * (1 - (torch.arange(count) + 1) / count)


def adapter_batch(
    model: VAEmotionLLM,
    cache: WindowCache,
    audio_tokens: Tensor,
    windows: np.ndarray,
    rng: np.random.Generator,
) -> AdapterBatch:
    """Windows as the device would have them: now and then fewer pictures (a stream that has just begun), ages that lie between the grid."""
    index = torch.from_numpy(windows)
    b, frames, tokens_per_frame = len(windows), cache.visual.shape[1], cache.visual.shape[2]
    spacing_s = model.config.front_end.windows.frame_spacing_s
    late_s = torch.from_numpy(rng.uniform(0.0, 0.1, (b, 1))).float()
    kept = torch.from_numpy(np.where(rng.random((b, 1)) < 0.75, frames, rng.integers(1, frames + 1, (b, 1))))
    position = torch.arange(frames)[None]  # oldest first
    age_s = (frames - 1 - position) * spacing_s + late_s
    works = [cache.works[int(i)] for i in windows]
    return AdapterBatch(
        audio=audio_tokens[index],
        audio_age_s=audio_token_ages_s(model)[None] + torch.from_numpy(rng.uniform(0.0, 0.1, (b, 1))).float(),
        visual=cache.visual[index].flatten(1, 2).float(),
        visual_mask=(position >= frames - kept).repeat_interleave(tokens_per_frame, dim=1),
        visual_age_s=age_s.repeat_interleave(tokens_per_frame, dim=1),
        affect=torch.tensor([[w.valence, w.arousal] for w in works]).float(),
        emotions=torch.tensor([w.emotion_distribution for w in works]).float(),
    )


def all_paths(adapter: EmoAdapter, batch: AdapterBatch) -> Any:
    """The adapter on the three paths as one batch of 3 b, in the order of ``PATHS``."""
    b = len(batch.affect)
    audio_on = torch.tensor([path != "visual" for path in PATHS]).repeat_interleave(b)[:, None]
    visual_on = torch.tensor([path != "audio" for path in PATHS]).repeat_interleave(b)[:, None]
    audio_mask = audio_on.expand(-1, batch.audio.shape[1])
    visual_mask = visual_on & batch.visual_mask.repeat(3, 1)
    return adapter(
        batch.audio.repeat(3, 1, 1), audio_mask, batch.audio_age_s.repeat(3, 1),
        batch.visual.repeat(3, 1, 1), visual_mask, batch.visual_age_s.repeat(3, 1),
    )  # fmt: skip


def supervisor_loss(out: Any, batch: AdapterBatch, stage: EmotionStage) -> tuple[Tensor, dict[str, float]]:
    """λ_VA · Σ_p ½ Σ (1 − CCC) + λ_NLL + λ_E · KL, each path's labels being the work's."""
    source = torch.zeros(len(batch.affect), dtype=torch.long)  # procedural art is the only source here
    va = out.valence_arousal[:, EXPRESSED].unflatten(0, (len(PATHS), -1))  # (3, b, 2)
    concordance = torch.stack([concordance_loss(path, batch.affect, source) for path in va])
    spread = out.spread[:, EXPRESSED]
    nll = gaussian_nll(out.valence_arousal[:, EXPRESSED], spread, batch.affect.repeat(3, 1))
    divergence = rater_divergence(out.emotion_logits[:, EXPRESSED], batch.emotions.repeat(3, 1))
    loss = stage.va_weight * concordance.sum() + stage.nll_weight * nll + stage.emotion_weight * divergence
    parts = {f"ccc_loss_{path}": value.item() for path, value in zip(PATHS, concordance, strict=True)}
    return loss, {**parts, "nll": nll.item(), "kl": divergence.item()}


def language_loss(
    model: VAEmotionLLM, out: Any, batch: AdapterBatch, windows: np.ndarray, cache: WindowCache, stage: EmotionStage,
    rng: np.random.Generator,
) -> Tensor:  # fmt: skip
    """L_CE of emotion questions read from the enhanced tokens, on one path that modality dropout selects."""
    path = int(rng.integers(len(PATHS)))
    b, n = len(batch.affect), min(stage.language_batch, len(batch.affect))
    rows = slice(path * b, path * b + n)
    frames = cache.visual.shape[1]
    count = int(rng.choice([1, 2, 4, frames], p=[0.4, 0.3, 0.2, 0.1]))
    visual = out.visual_tokens[rows, -count * cache.visual.shape[2] :] if PATHS[path] != "audio" else None
    audio = out.audio_tokens[rows] if PATHS[path] != "visual" else None
    works = [cache.works[int(i)] for i in windows[:n]]
    questions = [choose_question(rng, QUESTION_SHARES) for _ in works]
    answers = [true_answer(w, q) for w, q in zip(works, questions, strict=True)]
    text = model.text_batch([q.text for q in questions], answers)
    logits = model.answer_logits(model.media_embeddings(visual, audio, n), text)
    return F.cross_entropy(logits.float(), text.ids[text.answer])


def run(
    model: VAEmotionLLM, cache: WindowCache, audio_tokens: Tensor, config: TrainingConfig, out: Path, resume: bool,
    stop_after: int | None = None,
) -> bool:  # fmt: skip
    """Train the adapter in place; True when complete (see ``loop.fit``)."""
    stage, adapter = config.emotion, model.adapter
    assert adapter is not None

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng([config.seed, 8, step])
        windows = rng.integers(len(cache.works), size=stage.optimisation.batch)
        batch = adapter_batch(model, cache, audio_tokens, windows, rng)
        answers = all_paths(adapter, batch)
        total, parts = supervisor_loss(answers, batch, stage)
        if stage.language_weight > 0:
            language = language_loss(model, answers, batch, windows, cache, stage, rng)
            total, parts = total + stage.language_weight * language, {**parts, "language": language.item()}
        return total, parts

    assert model.audio is not None
    identity = config.identity("emotion") + weights_digest(model.base) + weights_digest(model.audio)
    optimisation = replace(stage.optimisation, workers=0)  # the tokens lie in memory: nothing to prepare
    return fit(
        "emotion", [adapter], lambda step: step, loss, optimisation, out,
        seed=config.seed, resume=resume, identity=identity, stop_after=stop_after,
    )  # fmt: skip
