"""Ablations at small scale: one frozen base, many short trainings, one generated document.

``vaemotion train ablations``. Every trial leaves one JSON file, named by a hash of its settings, so that
the command continues where it stopped and runs nothing twice. The document is made of the files that exist.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn
from safetensors.torch import load_file

from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.files import write_whole
from vaemotion.contract.front_end import FrontEnd
from vaemotion.contract.terminal import Terminal
from vaemotion.data.clips.of_art import ArtClips
from vaemotion.evaluation.hearing.listening import encode_audio
from vaemotion.model.checkpoint import (
    COMPONENT_DTYPE,
    component_tensors,
    load_checkpoint,
    read_config,
    round_in_place,
    write_tensors,
)
from vaemotion.model.checkpoint_config import ModelConfig
from vaemotion.model.vaemotion_llm import VAEmotionLLM
from vaemotion.training import emotion, vg_align
from vaemotion.training.ablations.document import write_document
from vaemotion.training.ablations.measures import (
    Figures,
    Validation,
    adapter_figures,
    audio_figures,
    teacher_figures,
)
from vaemotion.training.ablations.plan import ALIGN, GROUPS, AblationPlan, Document, Group, Trial
from vaemotion.training.config import TrainingConfig, read_training_config
from vaemotion.training.encoded import EncodedWindows, Windows, WindowStore, encode_all
from vaemotion.training.loop import process_state
from vaemotion.training.rated_sets import encoded_set

VALIDATION_WINDOWS = 240


def train(
    config_file: Path,
    overrides: list[str],
    base: Path,
    out: Path,
    document: Path,
    seeds: int,
    only: Sequence[str] = (),
    validation: int = VALIDATION_WINDOWS,
) -> None:
    """Run the missing trials of the groups ``only`` (all when empty) and write the document.

    The document is also written after an interruption. ``validation``: number of windows that are measured.
    Raises UsageError for an unknown group, a document that is not Markdown, or a configuration that does
    not fit.
    """
    config = read_training_config(config_file, overrides)
    groups = chosen_groups(only)
    if document.suffix != ".md":
        raise UsageError(f"--doc must be a Markdown file (.md), got {document}; its plot gets the same name")
    ablation_run = AblationRun(config, base, out)
    plan = AblationPlan(config, ablation_run.base_hash, validation, seeds)
    options = ["--config", config_file, *(word for o in overrides for word in ("--set", o))]
    options += ["--base", base, "--out", out, "--doc", document, "--seeds", seeds]
    command = shlex.join(["vaemotion", "train", "ablations", *map(str, options)])
    run_and_write(plan, groups, ablation_run, document, command)


def run_and_write(
    plan: AblationPlan, groups: Sequence[Group], ablation_run: AblationRun, file: Path, command: str
) -> None:
    """Run the missing trials and write the document of all results, however the run ended."""
    out = ablation_run.out
    try:
        run(plan, groups, ablation_run)
    finally:
        stored = {trial.key: read_result(out, trial.key) for trial in plan.trials(GROUPS)}
        results = {key: result for key, result in stored.items() if result is not None}
        teacher = read_result(out, ablation_run.teacher_key(plan))
        write_document(Document(plan, results, teacher, command, ablation_run.base), file)
        print(f"{file}: {len(results)} of {len(stored)} trials")


def chosen_groups(only: Sequence[str]) -> list[Group]:
    """Return the groups of these names, all for none. Raises UsageError for an unknown one."""
    known = {group.key: group for group in GROUPS}
    if unknown := [name for name in only if name not in known]:
        raise UsageError(f"--only {unknown[0]}: no such group; known: {', '.join(known)}")
    return [group for group in GROUPS if not only or group.key in only]


class AblationRun:
    """The parts that all trials share: frozen base, windows, teacher's answers, folder of results.

    Each is computed when it is first needed.
    """

    def __init__(self, config: TrainingConfig, base: Path, out: Path) -> None:
        if process_state().num_processes > 1:
            raise UsageError("ablations run in one process; start them without `accelerate launch`")
        if config.align.recordings or config.emotion.ratings:
            raise UsageError(
                "ablations use procedural pairs alone; leave align.recordings and emotion.ratings empty"
            )
        stored = read_config(base)
        self.base, self.out = base, out
        self.config = replace(config, runs=str(out))
        hashes = [stored["components"][name]["sha256"] for name in ("base", "tokenizer")]
        self.base_hash = "+".join(hashes)
        self.front_end = FrontEnd(config.log_mel, config.image, config.windows)
        of_base = ModelConfig.from_dict(stored["model"]).front_end
        # A base sees and does not hear: its version says nothing.
        if replace(of_base, version=self.front_end.version) != self.front_end:
            raise UsageError(
                f"{base} was trained with other constants; the sections [log_mel], [image] and [windows] of "
                f"the configuration must be those of the base"
            )

    @cached_property
    def model(self) -> VAEmotionLLM:
        """The base without audio pathway and adapter, frozen."""
        model = load_checkpoint(self.base)
        model.audio = model.adapter = None
        model.config = replace(model.config, front_end=self.front_end, audio=None, adapter=None)
        model.requires_grad_(False)
        return model

    def windows(self, split: str, count: int) -> EncodedWindows:
        """Return the windows of a split's first works."""
        source = ArtClips(count, split, self.front_end.windows)
        clips = Windows(source, self.front_end, self.config.data_seed)
        return encode_all(self.model, WindowStore(clips, self.base_hash, self.out), 0)

    def emotion_data(self, model: VAEmotionLLM, windows: EncodedWindows) -> emotion.EmotionData:
        """Encode the sound of windows with a model's audio pathway, for stage 2."""
        audio = encode_audio(model, windows.log_mels(range(len(windows))))
        works = encoded_set(windows, audio, self.front_end, self.config.emotion.emotions)
        return emotion.EmotionData(works, [])

    @cached_property
    def align_data(self) -> vg_align.AlignData:
        """The training data of stage 1."""
        return vg_align.prepare(self.model, self.config, self.base_hash, self.out)

    @cached_property
    def emotion_windows(self) -> EncodedWindows:
        """The training windows of stage 2."""
        return self.windows("train", self.config.emotion.works)

    def teacher_key(self, plan: AblationPlan) -> str:
        """Return the key of the result of the base's answers to frames."""
        return "sight-" + plan.trial(ALIGN, {}, 0).key

    def figures_of(self, trial: Trial, validation: Validation) -> Figures:
        """Train and measure. The training's output is suppressed and its state deleted."""
        working = self.out / f"{trial.key}.training"
        shutil.rmtree(working, ignore_errors=True)  # left by a run that was killed
        self.model.adapter = None  # of the last trial
        measure = self._align if trial.stage == ALIGN else self._emotion
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                return measure(trial, validation, working)
        finally:
            shutil.rmtree(working, ignore_errors=True)

    def _align(self, trial: Trial, validation: Validation, working: Path) -> Figures:
        model = vg_align.with_audio_pathway(self.model, trial.config)
        if trial.is_trained:
            vg_align.run(model, self.align_data, trial.config, working, resume=False)
        round_in_place(model.audio_pathway, COMPONENT_DTYPE["audio"])
        log_mel = validation.windows.log_mels(range(len(validation)))
        figures = audio_figures(model, validation, encode_audio(model, log_mel))
        write_tensors(self.audio_file(trial), component_tensors(model, "audio"))
        return figures

    def _emotion(self, trial: Trial, validation: Validation, working: Path) -> Figures:
        assert trial.align_trial is not None
        model = vg_align.with_audio_pathway(self.model, trial.config)
        tensors = load_file(self.audio_file(trial.align_trial))
        model.audio_pathway.load_state_dict({key: tensor.float() for key, tensor in tensors.items()})
        model.audio_pathway.eval()
        data = self.emotion_data(model, self.emotion_windows)
        model = emotion.with_adapter(model, data, trial.config)
        if trial.is_trained:
            emotion.run(model, data, trial.config, working, resume=False)
        unseen = self.emotion_data(model, validation.windows)
        return adapter_figures(model, validation, unseen, trial.config, trial.is_supervised)

    def audio_file(self, trial: Trial) -> Path:
        """Return the file of the audio pathway that a trial of stage 1 trained."""
        return self.out / f"{trial.key}.audio.safetensors"


def run(plan: AblationPlan, groups: Sequence[Group], ablation_run: AblationRun) -> None:
    """Train and measure every trial of these groups that has no result yet, and write its result."""
    trials, out = plan.trials(groups), ablation_run.out
    out.mkdir(parents=True, exist_ok=True)
    missing = [trial for trial in trials if not _is_done(trial, trials, ablation_run)]
    if not missing:
        return
    validation = Validation(ablation_run.windows("validation", plan.validation))
    if read_result(out, ablation_run.teacher_key(plan)) is None:
        figures = teacher_figures(ablation_run.model, validation)
        write_result(out, ablation_run.teacher_key(plan), {"figures": figures})
    if any(trial.stage == ALIGN for trial in missing):
        _ = ablation_run.align_data  # computed now, so that its progress bars come before ours
    with TrialProgress(trials, missing, out) as progress:
        for trial in missing:
            if _is_done(trial, trials, ablation_run):  # by a second process with other groups
                progress.end(trial)
                continue
            progress.begin(trial)
            began = time.monotonic()
            figures = ablation_run.figures_of(trial, validation)
            seconds = round(time.monotonic() - began, 2)
            machine = f"{os.cpu_count()} cores, {platform.machine()}"
            settings = json.loads(trial.config.identity(trial.stage))
            result = {"figures": figures, "seconds": seconds, "machine": machine, "settings": settings}
            write_result(out, trial.key, {"stage": trial.stage, **result})
            progress.end(trial, seconds)


def _is_done(trial: Trial, trials: Sequence[Trial], ablation_run: AblationRun) -> bool:
    """Check for the trial's result, and for its audio pathway if a trial without a result needs it."""
    out = ablation_run.out
    if read_result(out, trial.key) is None:
        return False
    dependent = [t for t in trials if t.align_trial is not None and t.align_trial.key == trial.key]
    return ablation_run.audio_file(trial).exists() or all(read_result(out, t.key) for t in dependent)


@dataclass
class TrialProgress:
    """Progress over all trials, with the remaining time estimated from finished trials of the same stage."""

    trials: Sequence[Trial]
    missing: Sequence[Trial]
    out: Path

    def __enter__(self) -> TrialProgress:
        # A trial's output is suppressed by replacing sys.stdout, so the present stream is kept here.
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(), console=Terminal(file=sys.stdout)
        )
        self.seconds_by_stage: dict[str, list[float]] = {}
        for trial in self.trials:
            if result := read_result(self.out, trial.key):
                self.seconds_by_stage.setdefault(trial.stage, []).append(result["seconds"])
        self.left = list(self.missing)
        self.task = self.progress.add_task(
            "", total=len(self.trials), completed=len(self.trials) - len(self.left)
        )
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def begin(self, trial: Trial) -> None:
        """Show the trial that starts."""
        number = len(self.trials) - len(self.left) + 1
        self.progress.update(
            self.task,
            description=f"variant {number} of {len(self.trials)}, {self.time_left()}: {trial.label}",
        )

    def end(self, trial: Trial, seconds: float | None = None) -> None:
        """Count a finished trial. seconds: its duration; None when another process ran it."""
        self.left.remove(trial)
        done = len(self.trials) - len(self.left)
        self.progress.update(self.task, completed=done)
        if seconds is not None:
            self.seconds_by_stage.setdefault(trial.stage, []).append(seconds)
            line = f"{done} of {len(self.trials)}: {trial.label}: {seconds:.0f} s; {self.time_left()}"
            self.progress.console.print(line)

    def time_left(self) -> str:
        """Estimate the time of the remaining trials, in words."""
        durations = self.seconds_by_stage
        every = [seconds for stage_seconds in durations.values() for seconds in stage_seconds]
        if not every:
            return "time not known yet"
        seconds = sum(_mean(durations.get(trial.stage, every)) for trial in self.left)
        return f"{seconds / 60:.0f} min left" if seconds >= 60 else f"{seconds:.0f} s left"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def read_result(out: Path, key: str) -> dict[str, Any] | None:
    """Read a trial's result, None when it has not been run. Raises UserError for a damaged file."""
    file = out / f"{key}.json"
    try:
        result = json.loads(file.read_text())
        return result if isinstance(result["figures"], dict) else None
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged ({error}); delete it to compute it again") from error


def write_result(out: Path, key: str, result: dict[str, Any]) -> None:
    """Write a trial's result atomically."""
    write_whole(out / f"{key}.json", json.dumps(result, indent=1) + "\n")
