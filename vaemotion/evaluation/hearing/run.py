"""``vaemotion evaluate hearing``: a report on what a checkpoint recognizes from sound alone.

In: a checkpoint after stage 1, held-out clips of a manifest, and works of procedural art for a checkpoint
that learned on such works. Of a complete checkpoint, stage 1 is measured: the language model's answers,
without the EmoAdapter. Out: ``hearing.json``, ``hearing.md``, ``hearing.html`` and plots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vaemotion.contract.bundle import sha256_of
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.terminal import tell
from vaemotion.data.clips.held_out import open_held_out
from vaemotion.evaluation.benchmark.rows import Bootstrap
from vaemotion.evaluation.hearing.alignment import (
    Retrieval,
    SwappedSound,
    leakage,
    retrieval,
    swapped_sound,
)
from vaemotion.evaluation.hearing.conditions import (
    BaselineEncoder,
    BaselineEncoders,
    random_projector,
    recognition,
)
from vaemotion.evaluation.hearing.listening import encode_audio
from vaemotion.evaluation.hearing.material import (
    FEWEST_SEEN,
    Material,
    manifest_material,
    procedural_material,
)
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
    ``manifest``: held-out clips, a manifest or shards, with ``media_root``, the folder that a manifest's
    paths start from. ``split``: of the works and clips to measure. ``works``: number of procedural works. The
    bootstrap's seed also selects the works.
    """

    shuffled: Path | None = None
    ce_only: Path | None = None
    manifest: Path | None = None
    media_root: Path = Path()
    split: str = "test"
    works: int = 300
    bootstrap: Bootstrap = field(default_factory=Bootstrap)

    def __post_init__(self) -> None:
        if self.split not in HELD_OUT_SPLITS:
            known = " or ".join(HELD_OUT_SPLITS)
            raise UsageError(f"--split must be one that nothing was trained on, {known}, got '{self.split}'")
        if self.works < FEWEST_WORKS:
            raise UsageError(f"--works must be at least {FEWEST_WORKS}, got {self.works}")


def run_hearing(model: Path, out: Path, options: HearingOptions) -> None:
    """Measure a checkpoint, write the report to ``out`` and print it.

    Raises UsageError for a baseline checkpoint that cannot be compared, and for a checkpoint that did not
    learn on procedural art without a manifest; UserError for one without an audio pathway.
    """
    loaded = _load_with_audio(model)
    knows_art = stage_one(model).get("procedural", True)  # older checkpoints were trained on nothing else
    if not knows_art and options.manifest is None:
        raise UsageError(
            f"{model} did not learn on procedural art, so that its works say nothing about it; give "
            "--manifest with held-out clips like its training data"
        )
    baselines = (
        _baseline(options.shuffled, model, loaded, Override("shuffled", "pairing", "shuffled")),
        _baseline(options.ce_only, model, loaded, Override("ce-only", "kd_weight", 0)),
    )
    # The manifest first: what is wrong with it shows before the works are drawn.
    held_out = [] if options.manifest is None else [_held_out(loaded, options.manifest, options)]
    pairs = [*([_procedural(loaded, options)] if knows_art else []), *held_out]
    report = measure(loaded, baselines, pairs, options.bootstrap, _origin(model, options))
    write_hearing_report(report, out)
    tell(markdown(report))
    tell(f"\nwritten to {out}")


Measured = tuple[Material, Material | None]  # material to measure, and to fit probes on


def _procedural(model: VAEmotionLLM, options: HearingOptions) -> Measured:
    works, seed = options.works, options.bootstrap.seed
    training = procedural_material(model, "train", PROBE_SHARE * works, seed, with_visual=False)
    return procedural_material(model, options.split, works, seed), training


def _held_out(model: VAEmotionLLM, manifest: Path, options: HearingOptions) -> Measured:
    spec, media_root, front_end = str(manifest), options.media_root, model.config.front_end
    measured = manifest_material(model, open_held_out(spec, media_root, front_end, (options.split,)))
    try:
        training = manifest_material(model, open_held_out(spec, media_root, front_end, ("train",)), measured)
    except UsageError:  # it has no such split, or too little in it
        training = None
    return measured, training


def measure(
    model: VAEmotionLLM,
    baselines: tuple[BaselineEncoder, BaselineEncoder],
    pairs: Sequence[Measured],
    bootstrap: Bootstrap,
    origin: dict[str, Any],
) -> HearingReport:
    """Measure everything in the hearing report on a model with an audio pathway.

    ``baselines``: trained on shuffled pairs, and with CE only.
    """
    encoders = BaselineEncoders(
        random_projector(model, _token_norm(model, pairs), bootstrap.seed), *baselines
    )
    recognised = tuple(recognition(model, encoders, *pair, bootstrap) for pair in pairs)
    retrieved: list[tuple[Retrieval, ...]] = []
    followed: list[SwappedSound] = []
    not_measured: list[str] = []
    for material, _ in pairs:
        clips = material.with_frames(bootstrap.seed)
        if clips is None:
            not_measured.append(
                f"{material.name}: {len(material.seen)} clips have frames; retrieval and swapped sound need "
                f"{FEWEST_SEEN}"
            )
            continue
        retrieved.append(retrieval(model, clips, bootstrap))
        try:
            followed.append(swapped_sound(model, clips, bootstrap))
        except UsageError as error:
            not_measured.append(f"{material.name}: no swapped sound: {error}")
    leaks = [leakage(model, material, bootstrap) for material, _ in pairs]
    rules = verdict_rules(recognised, [ways[0] for ways in retrieved])
    return HearingReport(
        verdict=verdict(rules),
        rules=rules,
        targets=targets(recognised),
        recognised=recognised,
        retrieved=tuple(way for ways in retrieved for way in ways),
        followed=tuple(followed),
        leaked=tuple(row for rows, _ in leaks for row in rows),
        visual_classes=tuple(each for _, classes in leaks for each in classes),
        not_measured=tuple(not_measured),
        bootstrap=bootstrap,
        origin=origin,
    )


def _token_norm(model: VAEmotionLLM, pairs: Sequence[Measured]) -> float:
    """Return the mean norm of visual tokens, or of audio tokens where no clip has frames."""
    for material, _ in pairs:
        if len(material.seen):
            return material.visual.norm(dim=-1).mean().item()
    return encode_audio(model, pairs[0][0].log_mel[:1]).norm(dim=-1).mean().item()


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
    baseline = _load_with_audio(folder)
    settings, own = (stage_one(each).get("align", {}) for each in (folder, model_folder))
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
    """Read what a checkpoint's lineage records of stage 1; empty where it records nothing."""
    return read_config(folder).get("lineage", {}).get("align", {})


def _base_sha256(folder: Path) -> str:
    return read_config(folder)["components"]["base"]["sha256"]


def _origin(model: Path, options: HearingOptions) -> dict[str, Any]:
    """Record the checkpoints, data and settings of a report as plain values."""
    config, stage, manifest = read_config(model), stage_one(model), options.manifest
    return {
        "model": str(model),
        "components_sha256": {name: part["sha256"] for name, part in config["components"].items()},
        "complete_checkpoint": "adapter" in config["components"],
        "shuffled": None if options.shuffled is None else str(options.shuffled),
        "ce_only": None if options.ce_only is None else str(options.ce_only),
        "manifest": None if manifest is None else str(manifest),
        "manifest_sha256": None if manifest is None or not manifest.is_file() else sha256_of(manifest),
        "stage_1_recordings": stage.get("recordings", 0),
        "stage_1_recordings_sha256": stage.get("recordings_manifest_sha256", ""),
        "stage_1_pairing": stage.get("align", {}).get("pairing", "synchronised"),
        "stage_1_seed": stage.get("seed"),
        "split": options.split,
        "works": options.works,
        "probe_works": PROBE_SHARE * options.works,
        "seed": options.bootstrap.seed,
    }
