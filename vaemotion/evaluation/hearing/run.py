"""``vaemotion evaluate hearing``: a report on what a checkpoint recognizes from sound alone.

In: a checkpoint after stage 1, works that no stage trains on, and recordings when there are any. Of a
complete checkpoint, stage 1 is measured: the language model's answers, without the EmoAdapter. Out:
``hearing.json``, ``hearing.md``, ``hearing.html`` and plots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vaemotion.contract.bundle import sha256_of
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.data.manifest.item import Item
from vaemotion.data.manifest.manifest import read_manifest
from vaemotion.evaluation.benchmark.rows import Bootstrap
from vaemotion.evaluation.hearing.alignment import leakage, retrieval, swapped_sound
from vaemotion.evaluation.hearing.conditions import (
    BaselineEncoder,
    BaselineEncoders,
    random_projector,
    recognition,
)
from vaemotion.evaluation.hearing.material import Material, procedural_material, recordings_material
from vaemotion.evaluation.hearing.report import markdown, write_hearing_report
from vaemotion.evaluation.hearing.verdict import HearingReport, targets, verdict, verdict_rules
from vaemotion.model.checkpoint import load_checkpoint, read_config
from vaemotion.model.vaemotion_llm import VAEmotionLLM

HELD_OUT_SPLITS = ("test", "validation")  # nothing was trained on them
FEWEST_WORKS = 20
PROBE_SHARE = 4  # works of split train that the probes are fitted on, per measured work


@dataclass(frozen=True)
class HearingOptions:
    """Options of the hearing report.

    ``shuffled``, ``ce_only``: checkpoints to compare with, trained on shuffled pairs and with CE only.
    ``recordings``: a manifest of recordings, with ``media_root``, the folder that its paths start from.
    ``split``: of the works and recordings to measure. ``works``: number of procedural works. The bootstrap's
    seed also selects the works.
    """

    shuffled: Path | None = None
    ce_only: Path | None = None
    recordings: Path | None = None
    media_root: Path | None = None
    split: str = "test"
    works: int = 300
    bootstrap: Bootstrap = field(default_factory=Bootstrap)

    def __post_init__(self) -> None:
        if self.split not in HELD_OUT_SPLITS:
            known = " or ".join(HELD_OUT_SPLITS)
            raise UsageError(f"--split must be one that nothing was trained on, {known}, got '{self.split}'")
        if self.works < FEWEST_WORKS:
            raise UsageError(f"--works must be at least {FEWEST_WORKS}, got {self.works}")
        if (self.recordings is None) != (self.media_root is None):
            raise UsageError(
                "--recordings and --media-root go together: a manifest, and the folder that its paths start "
                "from"
            )


def run_hearing(model: Path, out: Path, options: HearingOptions) -> None:
    """Measure a checkpoint, write the report to ``out`` and print it.

    Raises UsageError for a baseline checkpoint that cannot be compared, UserError for a checkpoint without an
    audio pathway.
    """
    loaded = _load_with_audio(model)
    baselines = (
        _baseline(options.shuffled, model, loaded, Override("shuffled", "pairing", "shuffled")),
        _baseline(options.ce_only, model, loaded, Override("ce-only", "kd_weight", 0)),
    )
    items: Sequence[Item] = []
    if options.recordings is not None and options.media_root is not None:
        items = read_manifest(options.recordings, options.media_root)
    report = measure(loaded, baselines, items, options, _origin(model, options))
    write_hearing_report(report, out)
    print(markdown(report))
    print(f"\nwritten to {out}")


def measure(
    model: VAEmotionLLM,
    baselines: tuple[BaselineEncoder, BaselineEncoder],
    items: Sequence[Item],
    options: HearingOptions,
    origin: dict[str, Any],
) -> HearingReport:
    """Measure everything in the hearing report on a model with an audio pathway.

    ``baselines``: trained on shuffled pairs, and with CE only. ``items``: of a manifest of recordings, may be
    empty.
    """
    bootstrap, split, media_root = options.bootstrap, options.split, options.media_root or Path()
    works, seed = options.works, bootstrap.seed
    procedural = procedural_material(model, split, works, seed)
    training = procedural_material(model, "train", PROBE_SHARE * works, seed, with_visual=False)
    pairs: list[tuple[Material, Material | None]] = [(procedural, training)]  # to measure, to fit probes on
    if items:
        recordings = recordings_material(items, media_root, split, model)
        has_train = any(item.split == "train" for item in items)
        fitted_on = recordings_material(items, media_root, "train", model) if has_train else None
        pairs.append((recordings, fitted_on))
    norm = procedural.visual.norm(dim=-1).mean().item()
    encoders = BaselineEncoders(random_projector(model, norm, seed), *baselines)
    recognised = tuple(recognition(model, encoders, *pair, bootstrap) for pair in pairs)
    retrieved = retrieval(model, procedural, bootstrap)
    leaks = [leakage(model, material, bootstrap) for material, _ in pairs]
    rules = verdict_rules(recognised, retrieved[0])
    return HearingReport(
        verdict=verdict(rules),
        rules=rules,
        targets=targets(recognised),
        recognised=recognised,
        retrieved=retrieved,
        followed=swapped_sound(model, procedural, bootstrap),
        leaked=tuple(row for rows, _ in leaks for row in rows),
        shape_class=tuple(shape for _, shape in leaks),
        bootstrap=bootstrap,
        origin=origin,
    )


def _load_with_audio(folder: Path) -> VAEmotionLLM:
    model = load_checkpoint(folder)
    if model.audio is None:
        raise UserError(f"{folder} has no audio pathway to measure; run `vaemotion train align` first")
    return model


@dataclass(frozen=True)
class Override:
    """The setting of stage 1 that a baseline is trained with, and the command-line option that takes it."""

    option: str
    key: str
    value: str | int

    def __str__(self) -> str:
        return f"--set align.{self.key}={self.value}"


def _baseline(
    folder: Path | None, model_folder: Path, model: VAEmotionLLM, override: Override
) -> BaselineEncoder:
    """Load a baseline's audio pathway, trained with the override on the model's base and front end."""
    option = override.option
    if folder is None:
        command = f"vaemotion train align --config CONFIG {override} --out runs/{option}"
        note = f"not given; train it with `{command}` and the model's configuration, "
        return BaselineEncoder(None, f"{note}then add --{option} runs/{option}")
    baseline, settings, own = _load_with_audio(folder), stage_one(folder), stage_one(model_folder)
    value = settings.get(override.key)
    if value != override.value:
        has = "no such setting" if value is None else f"align.{override.key}={value}"
        raise UsageError(f"--{option} must be a checkpoint trained with {override}, but {folder} has {has}")
    same_base = _base_sha256(folder) == _base_sha256(model_folder)
    if not same_base or baseline.config.front_end != model.config.front_end:
        raise UsageError(
            f"--{option} {folder} must have the base and the front end of {model_folder}; train it on that "
            "base"
        )
    differs = sorted(
        name for name in settings.keys() & own.keys() - {override.key} if settings[name] != own[name]
    )
    also = f"; it also differs from the model in {', '.join(differs)}" if differs else ""
    return BaselineEncoder(baseline.audio, f"trained with {override}{also}")


def stage_one(folder: Path) -> dict[str, Any]:
    """Read the settings of stage 1 from a checkpoint's lineage; empty where it records none."""
    return read_config(folder).get("lineage", {}).get("align", {}).get("align", {})


def _base_sha256(folder: Path) -> str:
    return read_config(folder)["components"]["base"]["sha256"]


def _origin(model: Path, options: HearingOptions) -> dict[str, Any]:
    """Record the checkpoints, data and settings of a report as plain values."""
    config, recordings = read_config(model), options.recordings
    stage: dict[str, Any] = config["lineage"].get("align", {})
    return {
        "model": str(model),
        "components_sha256": {name: part["sha256"] for name, part in config["components"].items()},
        "complete_checkpoint": "adapter" in config["components"],
        "shuffled": None if options.shuffled is None else str(options.shuffled),
        "ce_only": None if options.ce_only is None else str(options.ce_only),
        "recordings": None if recordings is None else str(recordings),
        "recordings_sha256": None if recordings is None else sha256_of(recordings),
        "stage_1_recordings": stage.get("recordings", 0),
        "stage_1_recordings_sha256": stage.get("recordings_manifest_sha256", ""),
        "stage_1_pairing": stage.get("align", {}).get("pairing", "synchronised"),
        "stage_1_seed": stage.get("seed"),
        "split": options.split,
        "works": options.works,
        "probe_works": PROBE_SHARE * options.works,
        "seed": options.bootstrap.seed,
    }
