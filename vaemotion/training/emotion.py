"""Stage 2, EmoAdapter: Emotion Enhancer and Emotion Supervisor (``vaemotion train emotion``).

Language model and encoders stay frozen. A path is a mask: every procedural window runs on all three paths
in one batch, beside an item of each rated set on the path that it was rated on. The Supervisor's losses use
every path. Modality dropout only selects the path of the language loss.

Sizes in the shapes: b samples, R rows of the adapter (3 b procedural ones and b of each rated set), N_a
audio tokens, N_v visual tokens, D the language model's width, T tokens of a frame, E emotions.
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
from vaemotion.contract.front_end import PATHS, reads_frames, reads_sound
from vaemotion.data.instructions import choose_question, true_answer, worded
from vaemotion.model.checkpoint import load_checkpoint, read_config, save_checkpoint
from vaemotion.model.emo_adapter import CONSTRUCTS, AdapterOutput, EmoAdapter, EmoAdapterConfig
from vaemotion.model.vaemotion_llm import VAEmotionLLM
from vaemotion.training.config import EmotionStage, TrainingConfig, read_training_config
from vaemotion.training.loop import (
    LossTerms,
    Objective,
    TrainingRun,
    fit,
    process_state,
    weights_digest,
)
from vaemotion.training.losses import (
    answer_loss,
    concordance_loss,
    gaussian_nll,
    global_mean,
    rater_divergence,
)
from vaemotion.training.ratings import RatedSet, read_rated
from vaemotion.training.windows_cache import WindowCache, cached_windows

# Content is among them so that the enhanced tokens keep it, because the narration reads it from them.
QUESTION_SHARES = {
    prompts.EMOTION: 0.25,
    prompts.AROUSAL: 0.2,
    prompts.VALENCE: 0.2,
    prompts.CAPTION: 0.2,
    prompts.CONTENT: 0.15,
}
EXPRESSED = CONSTRUCTS.index("expressed")
PROCEDURAL = 0  # the number of the procedural source; rated sets follow


@dataclass(frozen=True)
class AdapterBatch:
    """Rows of the adapter's input, each on one path, with their labels."""

    audio: Tensor  # (R, N_a, D)
    audio_mask: Tensor  # (R, N_a) bool
    audio_age_s: Tensor  # (R, N_a)
    visual: Tensor  # (R, N_v, D)
    visual_mask: Tensor  # (R, N_v) bool
    visual_age_s: Tensor  # (R, N_v)
    path: Tensor  # (R,) index into ``PATHS``
    source: Tensor  # (R,) PROCEDURAL, or 1 + the number of the rated set
    construct: Tensor  # (R,) index into ``CONSTRUCTS``
    affect: Tensor  # (R, 2) valence and arousal, NaN where there is no label
    emotions: Tensor  # (R, E) distribution, NaN where there is none

    def inputs(self) -> tuple[Tensor, ...]:
        """Return the arguments of ``EmoAdapter.forward``."""
        audio = (self.audio, self.audio_mask, self.audio_age_s)
        return (*audio, self.visual, self.visual_mask, self.visual_age_s)

    def to(self, device: torch.device) -> AdapterBatch:
        """Return the rows on another device."""
        return AdapterBatch(*(getattr(self, f.name).to(device) for f in fields(self)))


def joined(batches: Sequence[AdapterBatch]) -> AdapterBatch:
    """Concatenate the rows of all batches."""
    return AdapterBatch(*(torch.cat([getattr(b, f.name) for b in batches]) for f in fields(AdapterBatch)))


def train(config_file: Path, overrides: list[str], out: Path | None, resume: bool) -> None:
    """Run the stage on ``<runs>/align`` and write the checkpoint to ``out`` (default ``<runs>/emotion``)."""
    config = read_training_config(config_file, overrides)
    aligned, out = Path(config.runs) / "align", out or Path(config.runs) / "emotion"
    model = load_checkpoint(aligned)
    stored = read_config(aligned)
    base_hash = stored["components"]["base"]["sha256"]
    processes = process_state()
    with processes.main_process_first():  # the others read the file that it kept
        cache = cached_windows(
            model, base_hash, "train", config.emotion.works, config.data_seed, Path(config.runs)
        )
    data = EmotionData(
        cache,
        cached_audio_tokens(model, cache),
        read_rated(config.emotion.ratings, Path(config.media_root), model, config.data_seed),
        tuple(sha256_of(Path(manifest)) for manifest in config.emotion.ratings),
    )
    model = with_adapter(model, data, config)
    working = out.with_name(out.name + ".training")
    if run(model, data, config, working, resume) and processes.is_main_process:
        lineage = {**stored["lineage"], "emotion": {**config.lineage(), **data.summary()}}
        save_checkpoint(model, out, lineage, config.licence)
    processes.wait_for_everyone()


@dataclass(frozen=True)
class EmotionData:
    """The training data of stage 2."""

    cache: WindowCache  # n procedural windows
    audio_tokens: Tensor  # (n, N_a, D), of these windows
    rated: list[RatedSet]
    ratings_sha256: tuple[str, ...] = ()  # of the manifests of the rated sets

    def summary(self) -> dict[str, Any]:
        """Return the figures for the lineage."""
        rated = {f"{r.source}, {CONSTRUCTS[r.construct]}, {r.path}": len(r.affect) for r in self.rated}
        return {"rated_items": rated, "ratings_manifest_sha256": list(self.ratings_sha256)}


@torch.no_grad()
def cached_audio_tokens(model: VAEmotionLLM, cache: WindowCache) -> Tensor:
    """Compute the audio tokens of every cached window, (n, N_a, D), with the audio pathway as it is."""
    pathway = model.audio_pathway
    chunks: Iterable[Tensor] = track(cache.log_mel.split(64), "audio tokens")  # (64, frames, mels) each
    return torch.cat([pathway(chunk.float().to(model.device)).cpu() for chunk in chunks])


def with_adapter(model: VAEmotionLLM, data: EmotionData, config: TrainingConfig) -> VAEmotionLLM:
    """Freeze the model and add a new EmoAdapter, whitened by the training tokens of every domain."""
    model.requires_grad_(False)
    torch.manual_seed(config.seed + 7)
    adapter_config = EmoAdapterConfig(dropout=config.emotion.dropout)
    model.config = replace(model.config, adapter=adapter_config)
    model.adapter = EmoAdapter(adapter_config, model.width)
    some = slice(0, 2000)  # windows; their tokens are plenty for a covariance of this width
    domains = {
        "audio": [data.audio_tokens[some].flatten(0, 1)],  # (n · N_a, D)
        "visual": [data.cache.visual[some].flatten(0, 2).float()],  # (n · frames · T, D)
    }
    for rated in data.rated:
        domains[rated.path].append(rated.tokens.flatten(0, 2).float())  # (items · views · N, D)
    model.adapter.audio_whitening.fit(domains["audio"], config.emotion.shrinkage)
    model.adapter.visual_whitening.fit(domains["visual"], config.emotion.shrinkage)
    return model


def audio_token_ages_s(model: VAEmotionLLM) -> Tensor:
    """Return the age of each audio token's end at the end of the window, (N_a,)."""
    count, window_s = model.audio_pathway.n_tokens, model.config.front_end.windows.audio_window_s
    return window_s * (1 - (torch.arange(count) + 1) / count)


class Rows:
    """Sample numbers → rows of the adapter's input (see ``loop.fit``).

    A sample is a procedural window and an item of every rated set.
    """

    def __init__(self, model: VAEmotionLLM, data: EmotionData, config: TrainingConfig) -> None:
        self.data, self.config = data, config
        self.audio_ages_s = audio_token_ages_s(model)  # (N_a,)
        self.spacing_s = model.config.front_end.windows.frame_spacing_s

    def collate(self, numbers: Sequence[int]) -> dict[str, Any]:
        """Make a batch: procedural rows on each of the three paths (3 b), then b rows of each rated set."""
        rngs = [np.random.default_rng([self.config.seed, 8, number]) for number in numbers]
        windows = [int(rng.integers(len(self.data.cache.works))) for rng in rngs]
        window_rows = self.procedural(windows, rngs)
        rated = [self.rated(which, rngs) for which in range(len(self.data.rated))]
        step = numbers[0] // self.config.emotion.optimisation.batch
        return {
            "rows": joined([*window_rows, *rated]),
            "windows": windows,
            "numbers": list(numbers),
            "step": step,
        }

    def procedural(self, windows: Sequence[int], rngs: Sequence[np.random.Generator]) -> list[AdapterBatch]:
        """Make the rows of windows as the device would have them, b rows for each path.

        A quarter of the windows holds fewer frames, as a stream that has just begun. Ages lie between grid
        points.
        """
        cache, index = self.data.cache, torch.tensor(windows)
        b, frames, per_frame = len(windows), cache.visual.shape[1], cache.visual.shape[2]
        late_s = torch.tensor([rng.uniform(0.0, 0.1) for rng in rngs])[:, None]  # (b, 1)
        kept = torch.tensor(
            [frames if rng.random() < 0.75 else int(rng.integers(1, frames + 1)) for rng in rngs]
        )  # (b,)
        position = torch.arange(frames)[None]  # (1, frames), oldest first
        present = (position >= frames - kept[:, None]).repeat_interleave(per_frame, dim=1)  # (b, N_v)
        age_s = ((frames - 1 - position) * self.spacing_s + late_s).repeat_interleave(per_frame, dim=1)
        audio_late_s = torch.tensor([rng.uniform(0.0, 0.1) for rng in rngs])[:, None]  # (b, 1)
        works = [cache.works[i] for i in windows]
        audio = self.data.audio_tokens[index]  # (b, N_a, D)
        visual = cache.visual[index].flatten(1, 2).float()  # (b, N_v, D)
        affect = torch.tensor([[work.valence, work.arousal] for work in works]).float()  # (b, 2)
        emotions = torch.tensor([work.emotion_distribution for work in works]).float()  # (b, E)
        return [
            AdapterBatch(
                audio=audio,
                audio_mask=torch.full(audio.shape[:2], reads_sound(path)),
                audio_age_s=self._ages(self.audio_ages_s[None] + audio_late_s),
                visual=visual,
                visual_mask=present & reads_frames(path),
                visual_age_s=self._ages(age_s),
                path=torch.full((b,), number),
                source=torch.full((b,), PROCEDURAL),
                construct=torch.full((b,), EXPRESSED),
                affect=affect,
                emotions=emotions,
            )
            for number, path in enumerate(PATHS)
        ]

    def rated(self, which: int, rngs: Sequence[np.random.Generator]) -> AdapterBatch:
        """Make a row of a rated set for each generator: one item in one of its views.

        An image is in the newest frame alone, or in several of the newest frames.
        """
        rated, cache = self.data.rated[which], self.data.cache
        items, views = rated.tokens.shape[:2]
        item = torch.tensor([int(rng.integers(items)) for rng in rngs])  # (b,)
        view = torch.tensor([int(rng.integers(views)) for rng in rngs])  # (b,)
        b, frames, per_frame = len(rngs), cache.visual.shape[1], cache.visual.shape[2]
        audio = torch.zeros(b, *self.data.audio_tokens.shape[1:])  # (b, N_a, D)
        visual = torch.zeros(b, frames, per_frame, audio.shape[-1])  # (b, frames, T, D)
        present = torch.zeros(b, frames, dtype=torch.bool)
        if rated.path == "audio":
            audio = rated.tokens[item, view].float()  # (b, N_a, D)
        else:
            image = rated.tokens[item, view].float()  # (b, T, D)
            visual = image[:, None].expand(-1, frames, -1, -1)
            length = torch.tensor(
                [1 if rng.random() < 0.7 else int(rng.integers(1, frames + 1)) for rng in rngs]
            )
            present = torch.arange(frames)[None] >= frames - length[:, None]  # (b, frames)
        age_s = (frames - 1 - torch.arange(frames)[None]) * self.spacing_s  # (1, frames)
        age_s = age_s.expand(b, -1).repeat_interleave(per_frame, 1)  # (b, N_v)
        return AdapterBatch(
            audio=audio,
            audio_mask=torch.full(audio.shape[:2], rated.path == "audio"),
            audio_age_s=self._ages(self.audio_ages_s.expand(b, -1)),
            visual=visual.flatten(1, 2),
            visual_mask=present.repeat_interleave(per_frame, 1),
            visual_age_s=self._ages(age_s),
            path=torch.full((b,), PATHS.index(rated.path)),
            source=torch.full((b,), 1 + which),
            construct=torch.full((b,), rated.construct),
            affect=rated.affect[item],
            emotions=rated.emotions[item],
        )

    def _ages(self, age_s: Tensor) -> Tensor:
        """Return the ages, or zeros where the configuration leaves them out."""
        return age_s if self.config.emotion.token_ages else torch.zeros_like(age_s)


def supervisor_loss(out: AdapterOutput, rows: AdapterBatch, stage: EmotionStage) -> tuple[Tensor, LossTerms]:
    """Compute ``λ_VA · Σ_p ½ Σ (1 − CCC) + λ_NLL + λ_E · KL``, a scalar, and its terms.

    Every row is compared on its own path with the head of its own construct; CCC is taken per source.
    """
    here = torch.arange(len(rows.path), device=rows.path.device)  # (R,)
    predicted = out.valence_arousal[here, rows.construct]  # (R, 2)
    spread = out.spread[here, rows.construct]  # (R, 2)
    concordance = {
        path: concordance_loss(predicted[on], rows.affect[on], rows.source[on])
        for number, path in enumerate(PATHS)
        if (on := rows.path == number).any()
    }
    nll = gaussian_nll(predicted, spread, rows.affect)
    divergence = rater_divergence(out.emotion_logits[here, rows.construct], rows.emotions)  # from (R, E)
    total = stage.va_weight * torch.stack(list(concordance.values())).sum()
    loss = total + stage.nll_weight * nll + stage.emotion_weight * divergence
    return loss, {
        **{f"ccc_loss_{path}": value for path, value in concordance.items()},
        "nll": nll,
        "kl": divergence,
    }


class EmotionObjective(Objective):
    """The Supervisor's losses on all rows, and the language loss on one path of the first windows."""

    def __init__(self, model: VAEmotionLLM, data: EmotionData, config: TrainingConfig) -> None:
        super().__init__(model.base, model.audio_pathway)
        self.model, self.data, self.config, self.stage = model, data, config, config.emotion

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, LossTerms]:
        """Compute the loss of a batch of ``Rows``, a scalar, and its terms."""
        rows: AdapterBatch = batch["rows"].to(self.model.device)
        out = self.model.emo_adapter(*rows.inputs())
        total, terms = supervisor_loss(out, rows, self.stage)
        if self.stage.language_weight > 0:
            language = self.language_loss(out, batch)
            total, terms = total + self.stage.language_weight * language, {**terms, "language": language}
        return total, terms

    def language_loss(self, out: AdapterOutput, batch: dict[str, Any]) -> Tensor:
        """Compute L_CE of questions answered from enhanced tokens, a scalar.

        Modality dropout selects one path for all its samples, m of them on this process.
        """
        model, cache, stage, seed = self.model, self.data.cache, self.stage, self.config.seed
        step_rng = np.random.default_rng([seed, 13, batch["step"]])
        path = int(step_rng.integers(len(PATHS))) if stage.modality_dropout else PATHS.index("audio-visual")
        frames, per_frame = cache.visual.shape[1:3]
        count = int(step_rng.choice([1, 2, 4, frames], p=[0.4, 0.3, 0.2, 0.1]))
        # The first samples of the whole batch, on whichever process they are.
        first = batch["step"] * stage.optimisation.batch
        mine = [i for i, number in enumerate(batch["numbers"]) if number - first < stage.language_batch]
        if not mine:  # the other processes have them all, and the global mean still needs this one's term
            return global_mean(out.audio_tokens.sum() * 0.0, 0)
        place = torch.tensor(mine, device=model.device) + path * len(batch["windows"])  # (m,)
        # (m, count · T, D) and (m, N_a, D), each None where its path is left out
        visual = out.visual_tokens[place, -count * per_frame :] if reads_frames(PATHS[path]) else None
        audio = out.audio_tokens[place] if reads_sound(PATHS[path]) else None
        questions: list[str] = []
        answers: list[str] = []
        for i in mine:
            rng = np.random.default_rng([seed, 14, batch["numbers"][i]])
            question = choose_question(rng, QUESTION_SHARES)
            questions.append(worded(rng, question))
            answers.append(true_answer(cache.works[batch["windows"][i]], question))
        text = model.text_batch(questions, answers)  # ids (m, L)
        media = model.media_embeddings(visual, audio, len(mine))  # (m, P, D)
        logits = model.answer_logits(media, text)  # (M, vocab)
        return answer_loss(logits, text.ids[text.answer])


def run(
    model: VAEmotionLLM,
    data: EmotionData,
    config: TrainingConfig,
    out: Path,
    resume: bool,
    stop_after: int | None = None,
) -> bool:
    """Train the adapter in place; True when complete (see ``loop.fit``)."""
    identity = [
        config.identity("emotion"),
        f"front end {model.config.front_end.version}",
        weights_digest(model.base),
        weights_digest(model.audio_pathway),
        *data.ratings_sha256,
    ]
    rows = Rows(model, data, config)
    training_run = TrainingRun(out, config.seed, resume, "".join(identity), stop_after)
    objective = EmotionObjective(model, data, config)
    return fit("emotion", objective, rows.collate, config.emotion.optimisation, training_run)
