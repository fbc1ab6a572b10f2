"""Stage 2, EmoAdapter: Emotion Enhancer and Emotion Supervisor (``vaemotion train emotion``).

Language model and encoders stay frozen. A path is a mask: a film's window runs on all three paths in one
batch, beside sounds and images on the path that they were rated on. The Supervisor's losses use every path.
Modality dropout only selects the path of the language loss.

Sizes in the shapes: b samples, R rows of the adapter, N_a audio tokens, N_v visual tokens, D the language
model's width, T tokens of a frame, E emotions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from vaemotion.contract import prompts
from vaemotion.contract.bundle import sha256_of
from vaemotion.contract.errors import UsageError
from vaemotion.contract.front_end import PATHS, reads_frames, reads_sound
from vaemotion.contract.terminal import tell
from vaemotion.data.clips.open import open_clips
from vaemotion.data.instructions import language_target
from vaemotion.model.checkpoint import load_checkpoint, read_config, save_checkpoint
from vaemotion.model.emo_adapter import AdapterOutput, EmoAdapter, EmoAdapterConfig
from vaemotion.model.vaemotion_llm import VAEmotionLLM
from vaemotion.training.config import EmotionStage, TrainingConfig, read_training_config
from vaemotion.training.encoded import EncodedWindows, Windows, WindowStore, encode_all
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
    sign_loss,
)
from vaemotion.training.rated_sets import RatedSet, encoded_set
from vaemotion.training.rated_windows import STILL
from vaemotion.training.ratings import Ratings, counts_table, encoded_ratings, read_ratings
from vaemotion.training.rows import AdapterBatch, Rows

# Content is among them so that the enhanced tokens keep it, because the narration reads it from them.
QUESTION_SHARES = {
    prompts.EMOTION: 0.25,
    prompts.AROUSAL: 0.2,
    prompts.VALENCE: 0.2,
    prompts.CAPTION: 0.2,
    prompts.CONTENT: 0.15,
}
WHITENING_TOKENS = 256_000  # of each set and modality, over all of its windows


@dataclass(frozen=True)
class EmotionData:
    """The training data of stage 2.

    ``works``: procedural ones, None without any. ``rated``: the sets of rated works.
    """

    works: RatedSet | None
    rated: list[RatedSet]
    ratings_sha256: tuple[str, ...] = ()  # of the manifests of the rated works
    ratings: Ratings = field(default_factory=Ratings)  # the works of the rated sets, and what was left out

    @property
    def sets(self) -> list[RatedSet]:
        """All sets, the procedural one first."""
        return [*([] if self.works is None else [self.works]), *self.rated]

    def summary(self) -> dict[str, Any]:
        """Return the figures for the lineage. Items whose labels a model gave are listed apart."""
        return {
            "rated_items": {each.name: len(each) for each in self.rated if not each.machine_made},
            "machine_made_items": {each.name: len(each) for each in self.rated if each.machine_made},
            "rated_windows": {each.name: each.windows for each in self.rated},
            "damaged_items": {each.name: len(each.damaged) for each in self.rated if each.damaged},
            "items_without_label": _by_name(self.ratings.unlabeled),
            "machine_made_items_left_out": _by_name(self.ratings.machine_made),
            "ratings_manifest_sha256": list(self.ratings_sha256),
        }


def _by_name(counts: Mapping[tuple[str, str, str], int]) -> dict[str, int]:
    return {f"{source}, {construct}, {path}": count for (source, path, construct), count in counts.items()}


def train(config_file: Path, overrides: list[str], out: Path | None, resume: bool) -> None:
    """Run the stage on ``<runs>/align`` and write the checkpoint to ``out`` (default ``<runs>/emotion``)."""
    config = read_training_config(config_file, overrides)
    aligned, out = Path(config.runs) / "align", out or Path(config.runs) / "emotion"
    model = load_checkpoint(aligned)
    stored = read_config(aligned)
    processes = process_state()
    data = prepare(model, config, stored["components"]["base"]["sha256"])
    if processes.is_main_process:
        tell(counts_table(data.works, data.rated, data.ratings))
    model = with_adapter(model, data, config)
    working = out.with_name(out.name + ".training")
    if run(model, data, config, working, resume) and processes.is_main_process:
        lineage = {**stored["lineage"], "emotion": {**config.lineage(), **data.summary()}}
        save_checkpoint(model, out, lineage, config.licence)
    processes.wait_for_everyone()


def prepare(model: VAEmotionLLM, config: TrainingConfig, base_hash: str) -> EmotionData:
    """Encode the works of all sources, once. ``base_hash`` identifies the base's weights.

    Raises UsageError for a configuration without any work.
    """
    stage, front_end = config.emotion, model.config.front_end
    ratings = read_ratings(config, front_end)  # first, because a mistake in a manifest shows here
    works = None
    if stage.works:
        source = open_clips(f"art:{stage.works}", Path(config.media_root), front_end)
        store = WindowStore(Windows(source, front_end, config.data_seed), base_hash, Path(config.runs))
        windows = encode_all(model, store, stage.optimisation.workers)
        works = encoded_set(windows, cached_audio_tokens(model, windows), front_end, stage.emotions)
    rated = encoded_ratings(ratings, model, config)
    manifests = [Path(source) for source in stage.ratings if Path(source).is_file()]
    data = EmotionData(works, rated, tuple(map(sha256_of, manifests)), ratings)
    if not data.sets:
        raise UsageError("stage 2 has nothing to learn from; set emotion.ratings or emotion.works")
    return data


@torch.no_grad()
def cached_audio_tokens(model: VAEmotionLLM, windows: EncodedWindows) -> Tensor:
    """Compute the audio tokens of every window, (w, N_a, D), with the audio pathway as it is."""
    chunks: Iterable[range] = track(
        [range(start, min(start + 64, len(windows))) for start in range(0, len(windows), 64)], "audio tokens"
    )
    return torch.cat(
        [model.audio_pathway(windows.log_mels(chunk).to(model.device)).cpu() for chunk in chunks]
    )


def with_adapter(model: VAEmotionLLM, data: EmotionData, config: TrainingConfig) -> VAEmotionLLM:
    """Freeze the model and add a new EmoAdapter, whitened by the training tokens of every set.

    A modality that no set has keeps its tokens as they are.
    """
    stage = config.emotion
    model.requires_grad_(False)
    torch.manual_seed(config.seed + 7)
    adapter_config = EmoAdapterConfig(
        emotions=stage.emotions, dropout=stage.dropout, shared_enhancer=stage.shared_enhancer
    )
    model.config = replace(model.config, adapter=adapter_config)
    model.adapter = EmoAdapter(adapter_config, model.width)
    audio = [tokens for each in data.sets if len(tokens := some_tokens(each, "audio"))]
    visual = [tokens for each in data.sets if len(tokens := some_tokens(each, "visual"))]
    for whitening, domains in (
        (model.adapter.audio_whitening, audio),
        (model.adapter.visual_whitening, visual),
    ):
        if domains:
            whitening.fit(domains, stage.shrinkage)
    return model


def some_tokens(rated: RatedSet, modality: str) -> Tensor:
    """Read up to ``WHITENING_TOKENS`` tokens of a modality, evenly over the windows of a set, (n, D)."""
    reads = reads_sound if modality == "audio" else reads_frames
    found: list[Tensor] = []
    if any(reads(path) for path in rated.paths):
        tokens = rated.tokens.read([0])
        each = (
            tokens.audio.shape[1] if modality == "audio" else int(tokens.frames[0]) * tokens.visual.shape[2]
        )
        count = max(1, min(rated.windows, WHITENING_TOKENS // max(each, 1)))
        windows = np.unique(np.linspace(0, rated.windows - 1, count).round().astype(int)).tolist()
        for start in range(0, len(windows), 64):
            tokens = rated.tokens.read(windows[start : start + 64])
            if modality == "audio":
                found.append(tokens.audio.flatten(0, 1))
                continue
            # The oldest frame is repeated where a window has fewer; a still is the same in all.
            frames = torch.ones_like(tokens.frames) if rated.kind == STILL else tokens.frames
            found += [shown[-n:].flatten(0, 1) for shown, n in zip(tokens.visual, frames, strict=True) if n]
    return torch.cat(found) if found else torch.zeros(0)


def supervisor_loss(out: AdapterOutput, rows: AdapterBatch, stage: EmotionStage) -> tuple[Tensor, LossTerms]:
    """Compute ``λ_VA · Σ_p ½ Σ (1 − CCC) + λ_NLL + λ_E · KL + λ_S · L_sign``, a scalar, and its terms.

    Every row is compared on its own path with the head of its own construct; CCC is taken per source. Labels
    that a model gave have the same losses apart from those of people, with a weight of their own.
    """
    here = torch.arange(len(rows.path), device=rows.path.device)  # (R,)
    readout = Readout(
        out.valence_arousal[here, rows.construct],
        out.spread[here, rows.construct],
        out.emotion_logits[here, rows.construct],
    )
    if not rows.machine_made.any():
        return labels_loss(readout, rows, stage)
    made = rows.machine_made
    loss, terms = labels_loss(readout.only(made), rows.only(made), stage)
    total = stage.machine_made_weight * loss
    terms = {f"machine_made_{name}": value for name, value in terms.items()}
    if not made.all():
        loss, of_people = labels_loss(readout.only(~made), rows.only(~made), stage)
        total, terms = total + loss, {**of_people, **terms}
    return total, terms


@dataclass(frozen=True)
class Readout:
    """The Supervisor's readout of each row, of the construct that the row has labels of."""

    affect: Tensor  # (R, 2)
    spread: Tensor  # (R, 2)
    emotion_logits: Tensor  # (R, E)

    def only(self, chosen: Tensor) -> Readout:
        """Return the rows where ``chosen`` (R,) is True."""
        return Readout(self.affect[chosen], self.spread[chosen], self.emotion_logits[chosen])


def labels_loss(readout: Readout, rows: AdapterBatch, stage: EmotionStage) -> tuple[Tensor, LossTerms]:
    """Compare readouts with labels: the Supervisor's loss, a scalar, and its terms."""
    concordance = {
        path: concordance_loss(readout.affect[on], rows.affect[on], rows.source[on])
        for number, path in enumerate(PATHS)
        if (on := rows.path == number).any()
    }
    nll = gaussian_nll(readout.affect, readout.spread, rows.affect)
    divergence = rater_divergence(readout.emotion_logits, rows.emotions)
    sign = sign_loss(readout.affect, readout.spread, rows.signs)
    total = stage.va_weight * torch.stack(list(concordance.values())).sum()
    loss = total + stage.nll_weight * nll + stage.emotion_weight * divergence + stage.sign_weight * sign
    return loss, {
        **{f"ccc_loss_{path}": value for path, value in concordance.items()},
        "nll": nll,
        "kl": divergence,
        "sign": sign,
    }


class EmotionObjective(Objective):
    """The Supervisor's losses on all rows, and the language loss on one path of the first samples."""

    def __init__(self, model: VAEmotionLLM, data: EmotionData, config: TrainingConfig) -> None:
        super().__init__(model.base, model.audio_pathway)
        self.model, self.data, self.config, self.stage = model, data, config, config.emotion
        self.spoken = [path for path in PATHS if self._spoken_sets(path)]  # paths of the language loss

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, LossTerms]:
        """Compute the loss of a batch of ``Rows``, a scalar, and its terms."""
        rows: AdapterBatch = batch["rows"].to(self.model.device)
        out = self.model.emo_adapter(*rows.inputs())
        total, terms = supervisor_loss(out, rows, self.stage)
        if self.stage.language_weight > 0 and self.spoken:
            language = self.language_loss(out, batch)
            total, terms = total + self.stage.language_weight * language, {**terms, "language": language}
        return total, terms

    def language_loss(self, out: AdapterOutput, batch: dict[str, Any]) -> Tensor:
        """Compute L_CE of questions answered from enhanced tokens, a scalar.

        Modality dropout selects one path for all its samples, m of them on this process. A sample about
        which nothing is known in words is left out.
        """
        model, stage, seed = self.model, self.stage, self.config.seed
        step_rng = np.random.default_rng([seed, 13, batch["step"]])
        path = self.spoken[int(step_rng.integers(len(self.spoken))) if stage.modality_dropout else -1]
        frames, per_frame = model.config.front_end.windows.frames, model.tokens_per_frame
        count = int(step_rng.choice([1, 2, 4, frames], p=[0.4, 0.3, 0.2, 0.1]))
        # The first samples of the whole batch, on whichever process they are.
        first = batch["step"] * stage.optimisation.batch
        places: list[int] = []
        questions: list[str] = []
        answers: list[str] = []
        for i, number in enumerate(batch["numbers"]):
            if number - first >= stage.language_batch:
                continue
            rng = np.random.default_rng([seed, 14, number])
            found = self.language_sample(path, [windows[i] for windows in batch["windows"]], rng)
            if found is not None:
                which, question, answer = found
                places.append(batch["first_row"][which, path] + i)
                questions.append(question)
                answers.append(answer)
        if not places:  # the other processes may have some, and the global mean still needs this one's term
            return global_mean(out.audio_tokens.sum() * 0.0, 0)
        place = torch.tensor(places, device=model.device)  # (m,)
        # (m, count · T, D) and (m, N_a, D), each None where its path is left out
        visual = out.visual_tokens[place, -count * per_frame :] if reads_frames(path) else None
        audio = out.audio_tokens[place] if reads_sound(path) else None
        text = model.text_batch(questions, answers)  # ids (m, L)
        media = model.media_embeddings(visual, audio, len(places))  # (m, P, D)
        logits = model.answer_logits(media, text)  # (M, vocab)
        return answer_loss(logits, text.ids[text.answer])

    def language_sample(
        self, path: str, windows: Sequence[int], rng: np.random.Generator
    ) -> tuple[int, str, str] | None:
        """Draw a set, and a question with its answer about the sample's window of it.

        ``windows``: of each set. Returns None where nothing is known of any of these windows in words.
        """
        sets = self.data.sets
        spoken = self._spoken_sets(path)
        rated = [which for which in spoken if sets[which] is not self.data.works]
        is_rated = bool(rated) and (
            len(rated) == len(spoken) or rng.random() < self.stage.rated_language_share
        )
        chosen = rated[int(rng.integers(len(rated)))] if is_rated else spoken[0]
        for which in (chosen, *(other for other in spoken if other != chosen)):
            target = language_target(rng, sets[which].known_at(windows[which]), QUESTION_SHARES, path)
            if target is not None:
                return which, *target
        return None

    def _spoken_sets(self, path: str) -> list[int]:
        """Return the sets on a path about whose works people know something, procedural ones first."""
        return [w for w, each in enumerate(self.data.sets) if path in each.paths and not each.machine_made]


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
        *(each.digest for each in data.sets),
    ]
    rows = Rows(model, data.sets, config)
    training_run = TrainingRun(out, config.seed, resume, "".join(identity), stop_after)
    objective = EmotionObjective(model, data, config)
    return fit("emotion", objective, rows.collate, config.emotion.optimisation, training_run)
