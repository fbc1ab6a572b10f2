"""Stage 2, EmoAdapter: Emotion Enhancer and Emotion Supervisor (``vaemotion train emotion``).

Language model and encoders stay frozen. A path is a mask: every procedural window runs on all three paths as one batch, beside a
rated item of each source on the path that it was rated on. The Supervisor's losses use every path; modality dropout only
selects the path of the language loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from vaemotion.contract import prompts
from vaemotion.contract.bundle import sha256_of
from vaemotion.contract.front_end import PATHS
from vaemotion.data.instructions import choose_question, true_answer, worded
from vaemotion.model.checkpoint import load_checkpoint, read_config, save_checkpoint
from vaemotion.model.emo_adapter import CONSTRUCTS, EmoAdapter, EmoAdapterConfig
from vaemotion.model.vaemotion_llm import VAEmotionLLM
from vaemotion.training.config import EmotionStage, TrainingConfig, read_training_config
from vaemotion.training.loop import Objective, Parts, fit, process, weights_digest
from vaemotion.training.losses import (
    answer_loss,
    concordance_loss,
    gaussian_nll,
    global_mean,
    rater_divergence,
)
from vaemotion.training.ratings import RatedSet, read_rated
from vaemotion.training.windows_cache import WindowCache, cached_windows

# Content is among them, so that the enhanced tokens keep it: the narration reads it from them.
QUESTION_SHARES = {
    prompts.EMOTION: 0.25,
    prompts.AROUSAL: 0.2,
    prompts.VALENCE: 0.2,
    prompts.CAPTION: 0.2,
    prompts.CONTENT: 0.15,
}
EXPRESSED = CONSTRUCTS.index("expressed")
PROCEDURAL = 0  # the number of the procedural source; rated ones follow


@dataclass(frozen=True)
class AdapterBatch:
    """Rows of the adapter's input (see ``EmoAdapter.forward``), each on one path, with their labels: ``path`` index into ``PATHS``, ``source``,
    ``construct`` index into ``CONSTRUCTS``; ``affect`` (R, 2) and ``emotions`` (R, 9), NaN where there is no label."""

    audio: Tensor  # (R, N_a, D)
    audio_mask: Tensor
    audio_age_s: Tensor
    visual: Tensor  # (R, N_v, D)
    visual_mask: Tensor
    visual_age_s: Tensor
    path: Tensor
    source: Tensor
    construct: Tensor
    affect: Tensor
    emotions: Tensor

    def inputs(self) -> tuple[Tensor, ...]:
        return (
            self.audio, self.audio_mask, self.audio_age_s, self.visual, self.visual_mask, self.visual_age_s,
        )  # fmt: skip

    def to(self, device: torch.device) -> AdapterBatch:
        return AdapterBatch(*(getattr(self, f.name).to(device) for f in fields(self)))


def joined(batches: Sequence[AdapterBatch]) -> AdapterBatch:
    """The rows of all batches, one after the other."""
    return AdapterBatch(*(torch.cat([getattr(b, f.name) for b in batches]) for f in fields(AdapterBatch)))


def train(config_file: Path, overrides: list[str], out: Path | None, resume: bool) -> None:
    """Run the stage on ``<runs>/align``; the checkpoint is written to ``out`` (default ``<runs>/emotion``)."""
    config = read_training_config(config_file, overrides)
    aligned, out = Path(config.runs) / "align", out or Path(config.runs) / "emotion"
    model = load_checkpoint(aligned)
    stored = read_config(aligned)
    base_hash = stored["components"]["base"]["sha256"]
    me = process()
    with me.main_process_first():  # the others read what it kept
        cache = cached_windows(
            model, base_hash, "train", config.emotion.works, config.data_seed, Path(config.runs)
        )
    feelings = Feelings(
        cache, hear(model, cache),
        read_rated(config.emotion.ratings, Path(config.media_root), model, config.data_seed),
        tuple(sha256_of(Path(manifest)) for manifest in config.emotion.ratings),
    )  # fmt: skip
    model = with_adapter(model, feelings, config)
    if run(model, feelings, config, out.with_name(out.name + ".training"), resume) and me.is_main_process:
        lineage = {**stored["lineage"], "emotion": {**config.lineage(), **feelings.summary()}}
        save_checkpoint(model, out, lineage, config.licence)
    me.wait_for_everyone()


@dataclass(frozen=True)
class Feelings:
    """All that stage 2 is taught with: procedural windows with what the model hears in them, and rated sets. ``data``: identifies the
    manifests of these."""

    cache: WindowCache
    audio_tokens: Tensor  # (n, N_a, D)
    rated: list[RatedSet]
    data: tuple[str, ...] = ()

    def summary(self) -> dict[str, Any]:
        """For the lineage."""
        rated = {f"{r.source}, {CONSTRUCTS[r.construct]}, {r.path}": len(r.affect) for r in self.rated}
        return {"rated_items": rated, "ratings_manifest_sha256": list(self.data)}


@torch.no_grad()
def hear(model: VAEmotionLLM, cache: WindowCache) -> Tensor:
    """Audio tokens of every cached window, (n, N_a, D); the audio pathway is frozen now."""
    assert model.audio is not None
    chunks: Iterable[Tensor] = track(cache.log_mel.split(64), "audio tokens")
    return torch.cat([model.audio(chunk.float().to(model.device)).cpu() for chunk in chunks])


def with_adapter(model: VAEmotionLLM, feelings: Feelings, config: TrainingConfig) -> VAEmotionLLM:
    """The same model, frozen, with a new EmoAdapter whose whitening is fitted to the training tokens of every domain."""
    model.requires_grad_(False)
    torch.manual_seed(config.seed + 7)
    adapter_config = EmoAdapterConfig(dropout=config.emotion.dropout)
    model.config = replace(model.config, adapter=adapter_config)
    model.adapter = EmoAdapter(adapter_config, model.width)
    some = slice(0, 2000)  # windows; their tokens are plenty for a covariance of this width
    domains = {
        "audio": [feelings.audio_tokens[some].flatten(0, 1)],
        "visual": [feelings.cache.visual[some].flatten(0, 2).float()],
    }
    for rated in feelings.rated:
        domains[rated.path].append(rated.tokens.flatten(0, 2).float())
    model.adapter.audio_whitening.fit(domains["audio"], config.emotion.shrinkage)
    model.adapter.visual_whitening.fit(domains["visual"], config.emotion.shrinkage)
    return model


def audio_token_ages_s(model: VAEmotionLLM) -> Tensor:
    """Age of each audio token's end at the end of the window, (N_a,)."""
    assert model.audio is not None
    count, window_s = model.audio.n_tokens, model.config.front_end.windows.audio_window_s
    return window_s * (1 - (torch.arange(count) + 1) / count)


class Rows:
    """Sample numbers → rows of the adapter's input. A sample is a procedural window and an item of every rated set."""

    def __init__(self, model: VAEmotionLLM, feelings: Feelings, config: TrainingConfig) -> None:
        self.feelings, self.config = feelings, config
        self.audio_ages_s = audio_token_ages_s(model)
        self.spacing_s = model.config.front_end.windows.frame_spacing_s

    def collate(self, numbers: Sequence[int]) -> dict[str, Any]:
        """Procedural rows on the audio, the visual and the audio-visual path (3 b), then the rated rows, b of each set."""
        rngs = [np.random.default_rng([self.config.seed, 8, number]) for number in numbers]
        windows = [int(rng.integers(len(self.feelings.cache.works))) for rng in rngs]
        window_rows = self.procedural(windows, rngs)
        rated = [self.rated(which, rngs) for which in range(len(self.feelings.rated))]
        step = numbers[0] // self.config.emotion.optimisation.batch
        return {
            "rows": joined([*window_rows, *rated]),
            "windows": windows,
            "numbers": list(numbers),
            "step": step,
        }

    def procedural(self, windows: Sequence[int], rngs: Sequence[np.random.Generator]) -> list[AdapterBatch]:
        """Windows as the device would have them, once for each path: now and then fewer pictures (a stream that has just begun), ages
        that lie between the grid."""
        cache, index = self.feelings.cache, torch.tensor(windows)
        b, frames, per_frame = len(windows), cache.visual.shape[1], cache.visual.shape[2]
        late_s = torch.tensor([rng.uniform(0.0, 0.1) for rng in rngs])[:, None]
        kept = torch.tensor(
            [frames if rng.random() < 0.75 else int(rng.integers(1, frames + 1)) for rng in rngs]
        )
        position = torch.arange(frames)[None]  # oldest first
        seen = (position >= frames - kept[:, None]).repeat_interleave(per_frame, dim=1)
        age_s = ((frames - 1 - position) * self.spacing_s + late_s).repeat_interleave(per_frame, dim=1)
        audio_late_s = torch.tensor([rng.uniform(0.0, 0.1) for rng in rngs])[:, None]
        works = [cache.works[i] for i in windows]
        audio, visual = self.feelings.audio_tokens[index], cache.visual[index].flatten(1, 2).float()
        affect = torch.tensor([[w.valence, w.arousal] for w in works]).float()
        emotions = torch.tensor([w.emotion_distribution for w in works]).float()
        return [
            AdapterBatch(
                audio, torch.full(audio.shape[:2], path != "visual"), self._aged(self.audio_ages_s[None] + audio_late_s),
                visual, seen & (path != "audio"), self._aged(age_s), torch.full((b,), number),
                torch.full((b,), PROCEDURAL), torch.full((b,), EXPRESSED), affect, emotions,
            )
            for number, path in enumerate(PATHS)
        ]  # fmt: skip

    def rated(self, which: int, rngs: Sequence[np.random.Generator]) -> AdapterBatch:
        """One item of the set for each generator, in one of its views: a picture alone, or for a while."""
        rated, cache = self.feelings.rated[which], self.feelings.cache
        items, views = rated.tokens.shape[:2]
        item = torch.tensor([int(rng.integers(items)) for rng in rngs])
        view = torch.tensor([int(rng.integers(views)) for rng in rngs])
        b, frames, per_frame = len(rngs), cache.visual.shape[1], cache.visual.shape[2]
        audio = torch.zeros(b, *self.feelings.audio_tokens.shape[1:])
        visual = torch.zeros(b, frames, per_frame, audio.shape[-1])
        shown = torch.zeros(b, frames, dtype=torch.bool)
        if rated.path == "audio":
            audio = rated.tokens[item, view].float()
        else:
            visual = rated.tokens[item, view].float()[:, None].expand(-1, frames, -1, -1)
            length = torch.tensor(
                [1 if rng.random() < 0.7 else int(rng.integers(1, frames + 1)) for rng in rngs]
            )
            shown = torch.arange(frames)[None] >= frames - length[:, None]
        age_s = (frames - 1 - torch.arange(frames)[None]) * self.spacing_s
        number = PATHS.index(rated.path)
        return AdapterBatch(
            audio, torch.full(audio.shape[:2], rated.path == "audio"), self._aged(self.audio_ages_s.expand(b, -1)),
            visual.flatten(1, 2), shown.repeat_interleave(per_frame, 1),
            self._aged(age_s.expand(b, -1).repeat_interleave(per_frame, 1)), torch.full((b,), number),
            torch.full((b,), 1 + which), torch.full((b,), rated.construct), rated.affect[item], rated.emotions[item],
        )  # fmt: skip

    def _aged(self, age_s: Tensor) -> Tensor:
        return age_s if self.config.emotion.token_ages else torch.zeros_like(age_s)


def supervisor_loss(out: Any, rows: AdapterBatch, stage: EmotionStage) -> tuple[Tensor, Parts]:
    """λ_VA · Σ_p ½ Σ (1 − CCC) + λ_NLL + λ_E · KL. Every row is compared on its own path with its own construct's head; CCC is taken
    per source."""
    here = torch.arange(len(rows.path), device=rows.path.device)
    predicted, spread = out.valence_arousal[here, rows.construct], out.spread[here, rows.construct]  # (R, 2)
    concordance = {
        path: concordance_loss(predicted[on], rows.affect[on], rows.source[on])
        for number, path in enumerate(PATHS)
        if (on := rows.path == number).any()
    }
    nll = gaussian_nll(predicted, spread, rows.affect)
    divergence = rater_divergence(out.emotion_logits[here, rows.construct], rows.emotions)
    total = stage.va_weight * torch.stack(list(concordance.values())).sum()
    loss = total + stage.nll_weight * nll + stage.emotion_weight * divergence
    return loss, {
        **{f"ccc_loss_{path}": value for path, value in concordance.items()},
        "nll": nll,
        "kl": divergence,
    }


class EmotionObjective(Objective):
    """The Supervisor's losses on all rows, and the language loss of emotion questions on one path of the first windows."""

    def __init__(self, model: VAEmotionLLM, feelings: Feelings, config: TrainingConfig) -> None:
        assert model.audio is not None
        super().__init__(model.base, model.audio)
        self.model, self.feelings, self.config, self.stage = model, feelings, config, config.emotion

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, Parts]:
        assert self.model.adapter is not None
        rows: AdapterBatch = batch["rows"].to(self.model.device)
        out = self.model.adapter(*rows.inputs())
        total, parts = supervisor_loss(out, rows, self.stage)
        if self.stage.language_weight > 0:
            language = self.language_loss(out, batch)
            total, parts = total + self.stage.language_weight * language, {**parts, "language": language}
        return total, parts

    def language_loss(self, out: Any, batch: dict[str, Any]) -> Tensor:
        """L_CE of emotion questions read from the enhanced tokens, on one path that modality dropout selects."""
        model, cache, stage, seed = self.model, self.feelings.cache, self.stage, self.config.seed
        step_rng = np.random.default_rng([seed, 13, batch["step"]])
        path = int(step_rng.integers(len(PATHS))) if stage.modality_dropout else PATHS.index("audio-visual")
        frames, per_frame = cache.visual.shape[1:3]
        count = int(step_rng.choice([1, 2, 4, frames], p=[0.4, 0.3, 0.2, 0.1]))
        # The first samples of the whole batch, wherever they are.
        first = batch["step"] * stage.optimisation.batch
        mine = [i for i, number in enumerate(batch["numbers"]) if number - first < stage.language_batch]
        if not mine:  # the other processes have them all, and the mean over all still takes this one's part
            return global_mean(out.audio_tokens.sum() * 0.0, 0)
        place = torch.tensor(mine, device=model.device) + path * len(batch["windows"])
        visual = out.visual_tokens[place, -count * per_frame :] if PATHS[path] != "audio" else None
        audio = out.audio_tokens[place] if PATHS[path] != "visual" else None
        questions: list[str] = []
        answers: list[str] = []
        for i in mine:
            rng = np.random.default_rng([seed, 14, batch["numbers"][i]])
            question = choose_question(rng, QUESTION_SHARES)
            questions.append(worded(rng, question))
            answers.append(true_answer(cache.works[batch["windows"][i]], question))
        text = model.text_batch(questions, answers)
        logits = model.answer_logits(model.media_embeddings(visual, audio, len(mine)), text)
        return answer_loss(logits, text.ids[text.answer])


def run(
    model: VAEmotionLLM, feelings: Feelings, config: TrainingConfig, out: Path, resume: bool, stop_after: int | None = None
) -> bool:  # fmt: skip
    """Train the adapter in place; True when complete (see ``loop.fit``)."""
    assert model.audio is not None
    identity = [
        config.identity("emotion"),
        weights_digest(model.base),
        weights_digest(model.audio),
        *feelings.data,
    ]
    rows = Rows(model, feelings, config)
    return fit(
        "emotion", EmotionObjective(model, feelings, config), rows.collate, config.emotion.optimisation, out,
        seed=config.seed, resume=resume, identity="".join(identity), stop_after=stop_after,
    )  # fmt: skip
