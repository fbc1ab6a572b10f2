"""``vaemotion export``: make a verified bundle of a checkpoint, or leave the old one as it was.

In: a checkpoint folder and options, which are all checked before the first step. Out: a bundle folder. It is
made in steps that are kept (`export.workshop`), compared with the checkpoint on real inputs, and moved to its
name only when every comparison holds.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from export.chain import Chain
from export.clips import CalibrationWindows
from export.components import (
    confidence_step,
    coverage_step,
    fp32_step,
    gguf_step,
    importance_step,
    small_language_models,
    tables_step,
)
from export.golden import golden_step
from export.graphs import load_fp32
from export.half_engine import fp16_step
from export.int8.judge import Budget
from export.int8.material import Material
from export.int8.plan import Int8Inputs, Judging, int8_engines
from export.int8.report import print_report
from export.options import (
    DEFAULTS,
    HeldOutMaterial,
    Options,
    calibration_windows,
    check_options,
    check_space,
    check_windows,
    held_out_material,
    language_models,
)
from export.predictors import checkpoint_constants, checkpoint_predictor
from export.publish import (
    announce,
    failures_as_errors,
    is_up_to_date,
    manifest_of,
    publish,
    refuse_other_folder,
    verified,
    with_usage,
)
from export.source import Source, open_source
from export.step_key import imported, source_hash, versions
from export.verify import checks
from export.workshop import ExportFolder
from runtime.machine.memory import return_large_blocks
from runtime.perception.predictor import Constants
from vaemotion.contract.bundle import (
    ENGINE_ROLES,
    Manifest,
    write_manifest,
)
from vaemotion.contract.terminal import Terminal


def export_bundle(checkpoint: Path, out: Path, options: Options = DEFAULTS) -> None:
    """Export a checkpoint, verify the bundle and publish it as ``out``.

    A bundle that is up to date is left alone. Raises UserError and leaves ``out`` as it was when an option
    does not fit the checkpoint, a step fails or a comparison does not hold.
    """
    console = Terminal(stderr=True)
    began = time.monotonic()
    return_large_blocks()
    check_options(options)
    refuse_other_folder(out)
    source = open_source(checkpoint)
    windows = calibration_windows(source, options)
    material = held_out_material(source, options, windows)
    identity = _identity(source, windows, material, options)
    if is_up_to_date(out, identity):
        console.print(f"verified bundle {out} is up to date; delete it to rebuild", style="green")
        return
    for text in material.not_judged:
        console.print(f"not judged: {text}", style="yellow")
    with (
        failures_as_errors(out, "this checkpoint cannot be exported"),
        ExportFolder(out, source.license, source.config_sha256, console) as folder,
    ):
        check_space(source, folder, options)
        manifest = _make_components(source, folder, windows, material, options)
        folder.finish()
        write_manifest(folder.folder, manifest)
        reference = partial(checkpoint_predictor, source.model, options.speech())
        listed = checks(folder.folder, manifest, reference, material.compared)
        reads = {"weights": source.hashes(), "config": source.config}
        manifest, edges = verified(folder, manifest, listed, reads, material.compared)
        manifest = with_usage(manifest, identity, began, folder.peak_bytes)
        publish(folder, out, manifest, edges, "the export differs from its checkpoint")
    print_report(manifest.verification, console)
    announce(out, manifest, console)


# --- before the first step ---------------------------------------------------------------------------------


def _identity(
    source: Source, windows: CalibrationWindows | None, material: HeldOutMaterial, options: Options
) -> str:
    """Hash everything that the bundle depends on."""
    chosen: dict[str, Any] = {
        "precision": options.precision,
        "language_models": language_models(options),
        "held_out": material.reads,
        "speech": asdict(options.speech()),
        "exporter": options.exporter,
    }
    if windows is not None:
        chosen["calibration"] = windows.reads
    if options.precision == "int8":
        chosen |= {"max_drop": options.max_drop}
    code = imported(("export.pack",))
    parts = {
        "checkpoint": source.config_sha256,
        "weights": source.hashes(),
        "options": chosen,
        "source": source_hash(code.modules),
        "packages": versions(code.packages),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


# --- the steps ---------------------------------------------------------------------------------------------


def _make_components(
    source: Source,
    folder: ExportFolder,
    windows: CalibrationWindows | None,
    material: HeldOutMaterial,
    options: Options,
) -> Manifest:
    """Run every step and return the manifest, not yet verified."""
    lineage: dict[str, Any] = {"onnx_exporter": options.exporter}
    verification: dict[str, Any] = {}
    if windows is not None:
        # First of all, because a medium that cannot be decoded shows here.
        counts = folder.step(coverage_step(windows))
        check_windows(counts, options)
        lineage["calibration"] = counts["coverage"]
    for role in ENGINE_ROLES:
        folder.step(fp32_step(source, role, options.exporter))
    for file_type in language_models(options):
        folder.step(gguf_step(source, file_type))
    folder.step(tables_step(source))
    predictor = partial(checkpoint_predictor, source.model)
    reads = {"weights": source.hashes(), "config": source.config}
    lineage |= folder.step(golden_step(predictor, material.compared, reads))
    context_tokens = source.model.context_tokens()
    constants = checkpoint_constants(source.model, options.speech())
    with Chain(folder, constants, context_tokens) as chain:
        if material.rated is not None:
            lineage |= folder.step(confidence_step(folder, chain, material.rated))
        if windows is not None:
            for role in ENGINE_ROLES:
                folder.step(fp16_step(folder, chain, windows, role))
            if options.precision == "int8":
                verification = _make_int8(folder, chain, windows, material.judged, options)
    also = verification.get("budget", {}).get("not_judged", [])
    verification["not_judged"] = [*material.not_judged, *also]
    return _manifest(source, folder, constants, lineage, verification)


def _make_int8(
    folder: ExportFolder,
    chain: Chain,
    windows: CalibrationWindows,
    judged: Material | None,
    options: Options,
) -> dict[str, Any]:
    """Make the INT8 engines and choose the language model that goes with them. Returns the losses."""
    folder.step(importance_step(folder, chain, windows))
    budget = Budget() if options.max_drop is None else replace(Budget(), max_drop=options.max_drop)
    good_enough = budget.max_kl_nats / 2
    quality = small_language_models(folder, chain, windows, good_enough)
    sizes = {c.precision: c.bytes for c in folder.components if c.role == "language_model"}
    kept = [file_type for file_type, loss in quality.items() if loss["mean_kl_nats"] <= good_enough]
    likely = sorted([*kept, "F16"], key=sizes.__getitem__)
    inputs = Int8Inputs(
        folder,
        {role: load_fp32(folder, role) for role in ENGINE_ROLES},
        {role: folder.notes[f"{role} → ONNX FP16"]["stays_fp32"] for role in ENGINE_ROLES},
        windows,
        chain.reference,
        {"samples": windows.reads, "constants": chain.engine_reads},
        chain.reads["question"],
    )
    opened = {file_type: partial(chain.language_model, file_type) for file_type in likely}
    own = {file_type: loss["mean_kl_nats"] for file_type, loss in quality.items()}
    judging = Judging(judged, budget, opened, own)
    report = int8_engines(inputs, judging, judged=options.max_drop is not None)
    _keep_chosen_language_models(folder, report["language_model"])
    return {"budget": report, "language_models": quality, "components": _per_component(report, quality)}


def _keep_chosen_language_models(folder: ExportFolder, chosen: str) -> None:
    """List the chosen type first, and F16, the reference, after it."""
    kept = [c for c in folder.components if c.role != "language_model" or c.precision in (chosen, "F16")]
    folder.components = sorted(kept, key=lambda c: (c.role == "language_model", c.precision != chosen))


def _per_component(report: dict[str, Any], quality: dict[str, Any]) -> dict[str, Any]:
    """Collect the loss of each file alone, for ``vaemotion bench``.

    An engine's is the CCC of its readings to FP32, a language model's the divergence of its distributions.
    """
    found = {
        f"{a['role']}/{a['scheme']}": {
            "ccc_to_fp32": {"delta": -a["methods_tried"][a["method"]], "bound": None}
        }
        for a in report["engines"]
        if a["methods_tried"]
    }
    kl = {t: {"kl_nats": {"delta": q["mean_kl_nats"], "bound": q["p99_kl_nats"]}} for t, q in quality.items()}
    return found | {f"language_model/{t}": values for t, values in kl.items()}


def _manifest(
    source: Source,
    folder: ExportFolder,
    constants: Constants,
    lineage: dict[str, Any],
    verification: dict[str, Any],
) -> Manifest:
    return manifest_of(
        folder,
        source.name,
        constants,
        source.model.context_tokens(),
        {
            "checkpoint_config_sha256": source.config_sha256,
            "checkpoint_components": source.stored["components"],
            **lineage,
        },
        verification,
    )
