"""Ablations at small scale: ``vaemotion train ablations``. One frozen base, many short trainings, one generated document.

Every trial leaves one JSON file, named by a hash of its settings, so that the command goes on where it stopped and runs nothing
twice. The document is made of the files that are there.
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

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from safetensors.torch import load_file, save_file

from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.front_end import FrontEnd
from vaemotion.evaluation.listening import hear
from vaemotion.model.checkpoint import (
    COMPONENT_DTYPE,
    component_tensors,
    load_checkpoint,
    read_config,
    round_in_place,
)
from vaemotion.model.checkpoint_config import ModelConfig
from vaemotion.model.vaemotion_llm import VAEmotionLLM
from vaemotion.training import emotion, vg_align
from vaemotion.training.ablation_document import Document, write_document
from vaemotion.training.ablation_measures import Figures, adapter_figures, ear_figures, sight_figures
from vaemotion.training.ablation_plan import ALIGN, GROUPS, Group, Plan, Trial
from vaemotion.training.config import TrainingConfig, read_training_config
from vaemotion.training.loop import process
from vaemotion.training.windows_cache import WindowCache, cached_windows

VALIDATION_WINDOWS = 240


def train(
    config_file: Path, overrides: list[str], base: Path, out: Path, document: Path, seeds: int,
    only: Sequence[str] = (), validation: int = VALIDATION_WINDOWS,
) -> None:  # fmt: skip
    """Run what is missing of the groups ``only`` (all when empty) and write the document, also when interrupted.

    ``validation``: how many windows are measured on.
    """
    config = read_training_config(config_file, overrides)
    groups = chosen_groups(only)
    if document.suffix != ".md":
        raise UsageError(f"--doc is a Markdown file (.md), its plot lies beside it as .png; got {document}")
    workshop = Workshop(config, base, out)
    plan = Plan(config, workshop.base_hash, validation, seeds)
    options = ["--config", config_file, *(word for o in overrides for word in ("--set", o))]
    options += ["--base", base, "--out", out, "--doc", document, "--seeds", seeds]
    command = shlex.join(["vaemotion", "train", "ablations", *map(str, options)])
    run_and_write(plan, groups, workshop, document, command)


def run_and_write(plan: Plan, groups: Sequence[Group], workshop: Workshop, file: Path, command: str) -> None:
    """Run what is missing, and write the document of what is there then, however the run ended."""
    try:
        run(plan, groups, workshop)
    finally:
        stored = {trial.key: read_result(workshop.out, trial.key) for trial in plan.trials(GROUPS)}
        results = {key: result for key, result in stored.items() if result is not None}
        sight = read_result(workshop.out, workshop.sight_key(plan))
        write_document(Document(plan, results, sight, command, workshop.base), file)
        print(f"{file}: {len(results)} of {len(stored)} trials are in it")


def chosen_groups(only: Sequence[str]) -> list[Group]:
    """The groups of these names, all for none. Raises UsageError for an unknown one."""
    known = {group.key: group for group in GROUPS}
    if unknown := [name for name in only if name not in known]:
        raise UsageError(f"--only {unknown[0]}: there is no such group; known: {', '.join(known)}")
    return [group for group in GROUPS if not only or group.key in only]


class Workshop:
    """What all trials share: the frozen base, cached windows, the teacher's answers; and the folder of the results. Nothing is
    computed before it is needed."""

    def __init__(self, config: TrainingConfig, base: Path, out: Path) -> None:
        if process().num_processes > 1:
            raise UsageError("ablations run in one process; start them without `accelerate launch`")
        if config.align.recordings or config.emotion.ratings:
            raise UsageError(
                "ablations are done on procedural pairs alone: leave align.recordings and emotion.ratings empty"
            )
        stored = read_config(base)
        self.base, self.out = base, out
        self.config = replace(config, runs=str(out))
        hashes = [stored["components"][name]["sha256"] for name in ("base", "tokenizer")]
        self.base_hash = "+".join(hashes)
        front_end = FrontEnd(config.log_mel, config.image, config.windows)
        if ModelConfig.from_dict(stored["model"]).front_end != front_end:
            raise UsageError(
                f"{base} was trained with other constants: the sections [log_mel], [image] and [windows] of the configuration "
                f"must be those of the base"
            )

    @cached_property
    def model(self) -> VAEmotionLLM:
        """The base alone, frozen."""
        model = load_checkpoint(self.base)
        model.audio = model.adapter = None
        model.config = replace(model.config, audio=None, adapter=None)
        model.requires_grad_(False)
        return model

    def windows(self, split: str, count: int) -> WindowCache:
        return cached_windows(self.model, self.base_hash, split, count, self.config.data_seed, self.out)

    @cached_property
    def school(self) -> vg_align.School:
        return vg_align.prepare(self.model, self.config, self.base_hash, self.out)

    @cached_property
    def emotion_windows(self) -> WindowCache:
        return self.windows("train", self.config.emotion.works)

    def sight_key(self, plan: Plan) -> str:
        """The name of what the base answers from sight."""
        return "sight-" + plan.trial(ALIGN, {}, 0).key

    def figures_of(self, trial: Trial, validation: WindowCache) -> Figures:
        """Train and measure. The training's own output is swallowed, and its state thrown away."""
        working = self.out / f"{trial.key}.training"
        shutil.rmtree(working, ignore_errors=True)  # of a run that was killed
        self.model.adapter = None  # of the last trial
        measure = self._align if trial.stage == ALIGN else self._emotion
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                return measure(trial, validation, working)
        finally:
            shutil.rmtree(working, ignore_errors=True)

    def _align(self, trial: Trial, validation: WindowCache, working: Path) -> Figures:
        model = vg_align.with_audio_pathway(self.model, trial.config)
        assert model.audio is not None
        if trial.is_trained:
            vg_align.run(model, self.school, trial.config, working, resume=False)
        round_in_place(model.audio, COMPONENT_DTYPE["audio"])
        figures = ear_figures(model, validation, hear(model, validation.log_mel))
        temporary = self.ear_file(trial).with_suffix(".tmp")
        save_file(component_tensors(model, "audio"), temporary)
        os.replace(temporary, self.ear_file(trial))
        return figures

    def _emotion(self, trial: Trial, validation: WindowCache, working: Path) -> Figures:
        assert trial.ear is not None
        model = vg_align.with_audio_pathway(self.model, trial.config)
        assert model.audio is not None
        model.audio.load_state_dict({k: v.float() for k, v in load_file(self.ear_file(trial.ear)).items()})
        model.audio.eval()
        windows = self.emotion_windows
        feelings = emotion.Feelings(windows, hear(model, windows.log_mel), [])
        model = emotion.with_adapter(model, feelings, trial.config)
        if trial.is_trained:
            emotion.run(model, feelings, trial.config, working, resume=False)
        unseen = emotion.Feelings(validation, hear(model, validation.log_mel), [])
        return adapter_figures(model, unseen, trial.config, trial.is_supervised)

    def ear_file(self, trial: Trial) -> Path:
        """The audio pathway that a trial of stage 1 left."""
        return self.out / f"{trial.key}.audio.safetensors"


def run(plan: Plan, groups: Sequence[Group], workshop: Workshop) -> None:
    """Train, measure and write down every trial of these groups that has no result yet."""
    trials, out = plan.trials(groups), workshop.out
    out.mkdir(parents=True, exist_ok=True)
    missing = [trial for trial in trials if not _is_done(trial, trials, workshop)]
    if not missing:
        return
    validation = workshop.windows("validation", plan.validation)
    if read_result(out, workshop.sight_key(plan)) is None:
        write_result(out, workshop.sight_key(plan), {"figures": sight_figures(workshop.model, validation)})
    if any(trial.stage == ALIGN for trial in missing):
        _ = workshop.school  # asked once, with its own progress bars, before ours
    with Clock(trials, missing, out) as clock:
        for trial in missing:
            if _is_done(trial, trials, workshop):  # by a second process, given other groups
                clock.end(trial)
                continue
            clock.begin(trial)
            began = time.monotonic()
            figures = workshop.figures_of(trial, validation)
            seconds = round(time.monotonic() - began, 2)
            machine = f"{os.cpu_count()} cores, {platform.machine()}"
            settings = json.loads(trial.config.identity(trial.stage))
            result = {"figures": figures, "seconds": seconds, "machine": machine, "settings": settings}
            write_result(out, trial.key, {"stage": trial.stage, **result})
            clock.end(trial, seconds)


def _is_done(trial: Trial, trials: Sequence[Trial], workshop: Workshop) -> bool:
    """Is its result there, and its audio pathway if a missing result needs it?"""
    if read_result(workshop.out, trial.key) is None:
        return False
    readers = [t for t in trials if t.ear is not None and t.ear.key == trial.key]
    return workshop.ear_file(trial).exists() or all(read_result(workshop.out, t.key) for t in readers)


@dataclass
class Clock:
    """The overall progress: which trial of how many, and how long the rest will take by what its like has taken."""

    trials: Sequence[Trial]
    missing: Sequence[Trial]
    out: Path

    def __enter__(self) -> Clock:
        # The trial's output is swallowed by replacing sys.stdout: ours goes to the stream as it is now.
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(), console=Console(file=sys.stdout)
        )
        self.took: dict[str, list[float]] = {}
        for trial in self.trials:
            if result := read_result(self.out, trial.key):
                self.took.setdefault(trial.stage, []).append(result["seconds"])
        self.left = list(self.missing)
        self.task = self.progress.add_task(
            "", total=len(self.trials), completed=len(self.trials) - len(self.left)
        )
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def begin(self, trial: Trial) -> None:
        number = len(self.trials) - len(self.left) + 1
        self.progress.update(
            self.task,
            description=f"variant {number} of {len(self.trials)}, {self.time_left()}: {trial.label}",
        )

    def end(self, trial: Trial, seconds: float | None = None) -> None:
        """``seconds``: what it took; None when it was not run here."""
        self.left.remove(trial)
        done = len(self.trials) - len(self.left)
        self.progress.update(self.task, completed=done)
        if seconds is not None:
            self.took.setdefault(trial.stage, []).append(seconds)
            line = f"{done} of {len(self.trials)}: {trial.label}: {seconds:.0f} s; {self.time_left()}"
            self.progress.console.print(line, highlight=False)

    def time_left(self) -> str:
        every = [seconds for times in self.took.values() for seconds in times]
        if not every:
            return "time not known yet"
        seconds = sum(_mean(self.took.get(trial.stage, every)) for trial in self.left)
        return f"{seconds / 60:.0f} min left" if seconds >= 60 else f"{seconds:.0f} s left"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def read_result(out: Path, key: str) -> dict[str, Any] | None:
    """What a trial wrote, None when it has not been run."""
    file = out / f"{key}.json"
    try:
        result = json.loads(file.read_text())
        return result if isinstance(result["figures"], dict) else None
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged ({error}); delete it, and it is computed again") from error


def write_result(out: Path, key: str, result: dict[str, Any]) -> None:
    """Atomically."""
    temporary = out / f"{key}.tmp"
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(temporary, out / f"{key}.json")
