"""``vaemotion evaluate hearing``: does a checkpoint hear? One page, one verdict.

In: a checkpoint after stage 1 (of a complete one, the language model's own path is measured, without the EmoAdapter), works that
nothing trained on, and recordings when there are any. Out: ``hearing.json``, ``hearing.md``, ``hearing.html`` and plots.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vaemotion.contract.bundle import sha256_of
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.data.item import Item
from vaemotion.data.manifest import read_manifest
from vaemotion.evaluation.hearing_alignment import (
    follows,
    leakage,
    retrieval,
)
from vaemotion.evaluation.hearing_conditions import (
    Ears,
    OtherEar,
    random_projector,
    recognition,
)
from vaemotion.evaluation.hearing_material import Material, procedural_material, recordings_material
from vaemotion.evaluation.hearing_report import markdown, write_hearing_report
from vaemotion.evaluation.hearing_verdict import HearingReport, targets, verdict, verdict_rules
from vaemotion.evaluation.rows import Bootstrap
from vaemotion.model.checkpoint import load_checkpoint, read_config
from vaemotion.model.vaemotion_llm import VAEmotionLLM

SPLITS = ("test", "validation")
FEWEST_WORKS = 20
PROBE_SHARE = 4  # the probe learns from so many times as many works of split train


def run_hearing(
    model: Path, out: Path, *, shuffled: Path | None = None, ce_only: Path | None = None, recordings: Path | None = None,
    media_root: Path | None = None, split: str = "test", works: int = 300, seed: int = 0, bootstrap: int = 1000,
) -> None:  # fmt: skip
    """The command: measure, write the report to ``out`` and print it.

    Raises UsageError for a split or checkpoint that cannot serve, UserError for a checkpoint without an audio pathway.
    """
    if split not in SPLITS:
        raise UsageError(
            f"--split must be one that nothing was trained on, {' or '.join(SPLITS)}, got {split!r}"
        )
    if works < FEWEST_WORKS:
        raise UsageError(f"--works must be at least {FEWEST_WORKS}, got {works}")
    if (recordings is None) != (media_root is None):
        raise UsageError(
            "--recordings and --media-root go together: a manifest, and the folder its paths start from"
        )
    loaded = _hearing_model(model)
    others = (
        _other_ear(shuffled, model, loaded, "shuffled", "pairing", "shuffled"),
        _other_ear(ce_only, model, loaded, "ce-only", "kd_weight", 0),
    )
    items = [] if recordings is None or media_root is None else read_manifest(recordings, media_root)
    report = measure(
        loaded, others, items, media_root or Path(), split=split, works=works,
        bootstrap=Bootstrap(bootstrap, seed), origin=_origin(model, shuffled, ce_only, recordings, split, works, seed),
    )  # fmt: skip
    write_hearing_report(report, out)
    print(markdown(report))
    print(f"\nwritten to {out}")


def measure(
    model: VAEmotionLLM, others: tuple[OtherEar, OtherEar], items: Sequence[Item], media_root: Path, *,
    split: str, works: int, bootstrap: Bootstrap, origin: dict[str, Any],
) -> HearingReport:  # fmt: skip
    """Everything about a model with an audio pathway. ``others``: trained on shuffled pairs, and with CE only; ``items``: of a manifest
    of recordings, may be none."""
    seed = bootstrap.seed
    procedural = procedural_material(model, split, works, seed)
    lessons = procedural_material(model, "train", PROBE_SHARE * works, seed, with_sight=False)
    pairs: list[tuple[Material, Material | None]] = [(procedural, lessons)]
    if items:
        heard = recordings_material(items, media_root, split, model)
        taught = any(item.split == "train" for item in items)
        pairs.append((heard, recordings_material(items, media_root, "train", model) if taught else None))
    norm = procedural.visual.norm(dim=-1).mean().item()
    ears = Ears(random_projector(model, norm, seed), *others)
    recognised = tuple(recognition(model, ears, *pair, bootstrap) for pair in pairs)
    retrieved = retrieval(model, procedural, bootstrap)
    leaks = [leakage(model, material, bootstrap) for material, _ in pairs]
    rules = verdict_rules(recognised, retrieved[0])
    return HearingReport(
        verdict=verdict(rules), rules=rules, targets=targets(recognised), recognised=recognised, retrieved=retrieved,
        followed=follows(model, procedural, bootstrap), leaked=tuple(row for rows, _ in leaks for row in rows),
        shape_class=tuple(shape for _, shape in leaks), bootstrap=bootstrap, origin=origin,
    )  # fmt: skip


def _hearing_model(folder: Path) -> VAEmotionLLM:
    model = load_checkpoint(folder)
    if model.audio is None:
        raise UserError(
            f"{folder} has no audio pathway, so it cannot hear: run `vaemotion train align` first"
        )
    return model


def _other_ear(
    folder: Path | None, model_folder: Path, model: VAEmotionLLM, option: str, key: str, value: str | int
) -> OtherEar:  # fmt: skip
    """The audio pathway of a control, which must be what the option says, on the same base behind the same front end."""
    override = f"--set align.{key}={value}"
    if folder is None:
        return OtherEar(
            None,
            f"not trained; the command is `vaemotion train align --config CONFIG {override} --out runs/{option}` with the model's own "
            f"configuration; then --{option} runs/{option} here",
        )
    control, settings, own = _hearing_model(folder), stage_one(folder), stage_one(model_folder)
    if settings.get(key) != value:
        raise UsageError(
            f"--{option} must be a checkpoint trained with {override}, but {folder} says {settings.get(key)!r}"
        )
    same_base = _base_sha256(folder) == _base_sha256(model_folder)
    if not same_base or control.config.front_end != model.config.front_end:
        raise UsageError(
            f"--{option} {folder} must stand on the base and the front end of {model_folder}: train it from there"
        )
    differs = sorted(name for name in settings.keys() & own.keys() - {key} if settings[name] != own[name])
    also = f"; it differs from the model in {', '.join(differs)} too" if differs else ""
    return OtherEar(control.audio, f"trained with {override}{also}")


def stage_one(folder: Path) -> dict[str, Any]:
    """The settings of stage 1 that a checkpoint's lineage tells of; empty where it tells of none."""
    return read_config(folder).get("lineage", {}).get("align", {}).get("align", {})


def _base_sha256(folder: Path) -> str:
    return read_config(folder)["components"]["base"]["sha256"]


def _origin(
    model: Path, shuffled: Path | None, ce_only: Path | None, recordings: Path | None, split: str, works: int, seed: int
) -> dict[str, Any]:  # fmt: skip
    config = read_config(model)
    taught: dict[str, Any] = config["lineage"].get("align", {})
    return {
        "model": str(model),
        "components_sha256": {name: part["sha256"] for name, part in config["components"].items()},
        "complete_checkpoint": "adapter" in config["components"],
        "shuffled": None if shuffled is None else str(shuffled),
        "ce_only": None if ce_only is None else str(ce_only),
        "recordings": None if recordings is None else str(recordings),
        "recordings_sha256": None if recordings is None else sha256_of(recordings),
        "stage_1_recordings": taught.get("recordings", 0),
        "stage_1_recordings_sha256": taught.get("recordings_manifest_sha256", ""),
        "stage_1_pairing": taught.get("align", {}).get("pairing", "synchronised"),
        "stage_1_seed": taught.get("seed"),
        "split": split,
        "works": works,
        "probe_works": PROBE_SHARE * works,
        "seed": seed,
    }
