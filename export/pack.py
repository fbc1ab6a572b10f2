"""``vaemotion export``: make a verified bundle of a checkpoint, or leave the old one as it was.

In: a checkpoint folder and options, which are all checked before the first step. Out: a bundle folder. It is
made in steps that are kept (`export.workshop`), compared with the checkpoint on real inputs, and moved to its
name only when every comparison holds.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from export.chain import Chain
from export.clips import CalibrationWindows, ComparedClips
from export.components import (
    SMALL_TYPES,
    confidence_step,
    coverage_step,
    fp16_step,
    fp32_step,
    gguf_step,
    golden_step,
    importance_step,
    quantized_step,
    tables_step,
)
from export.errors import ExportError
from export.graphs import load_fp32
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
from export.predictors import checkpoint_constants
from export.source import Source, open_source
from export.step_key import imported, source_hash, versions
from export.verify import checks
from export.workshop import ExportFolder, Step
from runtime.commands.verify import Edge, VerificationError, edges_table, golden_edges
from runtime.engines.golden import SMALLEST_LOGIT_TOLERANCE, SMALLEST_TOLERANCE
from runtime.machine.facts import machine_name, peak_memory_bytes
from vaemotion.contract.bundle import (
    ENGINE_ROLES,
    BundleError,
    Manifest,
    read_manifest,
    verify_files,
    write_manifest,
)
from vaemotion.contract.files import publish_folder

# Packages that the manifest lists, by the name under which each is imported.
TOOLS = {
    "vaemotion": "vaemotion",
    "torch": "torch",
    "transformers": "transformers",
    "onnx": "onnx",
    "onnxscript": "onnxscript",
    "onnxruntime": "onnxruntime",
    "gguf": "gguf",
    "llama-cpp-python": "llama_cpp",
    "numpy": "numpy",
}


def export_bundle(checkpoint: Path, out: Path, options: Options = DEFAULTS) -> None:
    """Export a checkpoint, verify the bundle and publish it as ``out``.

    A bundle that is up to date is left alone. Raises UserError and leaves ``out`` as it was when an option
    does not fit the checkpoint, a step fails or a comparison does not hold.
    """
    console = Console(stderr=True)
    began = time.monotonic()
    check_options(options)
    if out.exists() and not (out / "manifest.json").is_file():
        raise ExportError(f"{out} exists and is not a bundle; give --out a folder that does not exist yet")
    source = open_source(checkpoint)
    windows = calibration_windows(source, options)
    material = held_out_material(source, options, windows)
    identity = _identity(source, windows, material, options)
    if _is_up_to_date(out, identity):
        console.print(f"[green]verified bundle[/] {out} is up to date; delete it to rebuild")
        return
    for text in material.not_judged:
        console.print(f"[yellow]not judged:[/] {text}", highlight=False)
    with _failures_as_errors(out):
        folder = ExportFolder(out, source.license, source.config_sha256, console)
        check_space(source, folder, options)
        manifest = _make_components(source, folder, windows, material, options)
        folder.finish()
        manifest, edges = _verified(source, folder, manifest, material.compared)
        usage = {
            "export_s": round(time.monotonic() - began, 1),
            "export_peak_memory_mb": round(peak_memory_bytes() / 1e6),
            "identity_sha256": identity,
        }
        write_manifest(folder.folder, replace(manifest, lineage={**manifest.lineage, **usage}))
        _publish(folder, out, manifest, edges)
    print_report(manifest.verification, console)
    console.print(
        f"[green]verified bundle[/] {out}: {sum(c.bytes for c in manifest.components) / 1e6:.1f} MB, "
        f"made in {usage['export_s']:.0f} s, peak memory {usage['export_peak_memory_mb']} MB"
    )


# --- before the first step ---------------------------------------------------------------------------------


def _identity(
    source: Source, windows: CalibrationWindows | None, material: HeldOutMaterial, options: Options
) -> str:
    """Hash everything that the bundle depends on."""
    chosen: dict[str, Any] = {
        "precision": options.precision,
        "language_models": language_models(options),
        "held_out": material.reads,
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


def _is_up_to_date(out: Path, identity: str) -> bool:
    """Check that ``out`` is a verified bundle of the same identity, and every file of it intact."""
    try:
        manifest = read_manifest(out)
        verify_files(out, manifest)
    except (BundleError, OSError):
        return False
    return manifest.verified and manifest.lineage.get("identity_sha256") == identity


@contextmanager
def _failures_as_errors(out: Path) -> Iterator[None]:
    """Turn a full disk, too little memory and an impossible checkpoint into a sentence with the way out."""
    again = f"{out.name} is as it was; the finished steps are kept, and the same command continues with them"
    try:
        yield
    except OSError as error:
        raise ExportError(f"writing the bundle failed: {error}; {again}") from error
    except MemoryError as error:
        raise ExportError(f"the export ran out of memory; close other programs. {again}") from error
    except ValueError as error:
        raise ExportError(f"this checkpoint cannot be exported: {error}") from error


# --- the steps ---------------------------------------------------------------------------------------------


def _make_components(
    source: Source,
    folder: ExportFolder,
    windows: CalibrationWindows | None,
    material: HeldOutMaterial,
    options: Options,
) -> Manifest:
    """Run every step and return the manifest, not yet verified."""
    lineage: dict[str, Any] = {}
    verification: dict[str, Any] = {}
    if windows is not None:
        # First of all, because a medium that cannot be decoded shows here.
        counts = folder.step(coverage_step(windows))
        check_windows(counts, options)
        lineage["calibration"] = counts["coverage"]
    for role in ENGINE_ROLES:
        folder.step(fp32_step(source, role))
    for file_type in language_models(options):
        folder.step(gguf_step(source, file_type))
    folder.step(tables_step(source))
    lineage |= folder.step(golden_step(source, material.compared))
    with Chain(folder, checkpoint_constants(source.model)) as chain:
        if material.rated is not None:
            lineage |= folder.step(confidence_step(folder, chain, material.rated))
        if windows is not None:
            for role in ENGINE_ROLES:
                folder.step(fp16_step(folder, chain, windows, role))
            if options.precision == "int8":
                verification = _make_int8(folder, chain, windows, material.judged, options)
    also = verification.get("budget", {}).get("not_judged", [])
    verification["not_judged"] = [*material.not_judged, *also]
    return _manifest(source, folder, lineage, verification)


def _make_int8(
    folder: ExportFolder,
    chain: Chain,
    windows: CalibrationWindows,
    judged: Material | None,
    options: Options,
) -> dict[str, Any]:
    """Make the INT8 engines and choose the language model that goes with them. Returns the losses."""
    folder.step(importance_step(folder, chain, windows))
    quality = {
        file_type: folder.step(quantized_step(folder, chain, windows, file_type))["quality"]
        for file_type in SMALL_TYPES
    }
    budget = Budget() if options.max_drop is None else replace(Budget(), max_drop=options.max_drop)
    sizes = {c.precision: c.bytes for c in folder.components if c.role == "language_model"}
    good_enough = [t for t in SMALL_TYPES if quality[t]["mean_kl_nats"] <= budget.max_kl_nats / 2]
    likely = sorted([*good_enough, "F16"], key=sizes.__getitem__)
    inputs = Int8Inputs(
        folder,
        {role: load_fp32(folder, role) for role in ENGINE_ROLES},
        {role: folder.notes[f"{role} → ONNX FP16"]["stays_fp32"] for role in ENGINE_ROLES},
        windows,
        chain.reference,
        {"samples": windows.reads, "constants": chain.reads},
    )
    opened = {file_type: partial(chain.language_model, file_type) for file_type in likely}
    judging = Judging(judged, budget, opened)
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
    source: Source, folder: ExportFolder, lineage: dict[str, Any], verification: dict[str, Any]
) -> Manifest:
    model, installed = source.model, versions(TOOLS.values())
    return Manifest(
        name=source.name,
        token_width=model.width,
        tokens_per_frame=model.tokens_per_frame,
        audio_tokens=model.audio_pathway.n_tokens,
        stop_token_ids=(model.stop_id,),
        front_end=model.config.front_end,
        prompt=model.config.prompt,
        components=tuple(folder.components),
        tolerances={},
        lineage={
            "checkpoint_config_sha256": source.config_sha256,
            "checkpoint_components": source.stored["components"],
            "tools": {name: installed[module] for name, module in TOOLS.items()},
            **lineage,
        },
        verification=verification,
        emotions=model.emo_adapter.config.emotions,
    )


# --- verification ------------------------------------------------------------------------------------------


def _verified(
    source: Source, folder: ExportFolder, manifest: Manifest, clips: ComparedClips
) -> tuple[Manifest, list[Edge]]:
    """Compare the bundle with its checkpoint. Returns the manifest with the measurements.

    Golden vectors are compared anew every time, because they are this machine's. A comparison that does not
    hold is not kept.
    """
    write_manifest(folder.folder, manifest)
    verify_files(folder.folder, manifest)
    with folder.console.status("comparing with golden vectors"):
        edges = golden_edges(folder.folder, manifest)
    tolerances = {
        edge.component: max(
            SMALLEST_LOGIT_TOLERANCE if edge.component.startswith("language_model/") else SMALLEST_TOLERANCE,
            2 * edge.measured,
        )
        for edge in edges
    }
    for check in checks(folder.folder, manifest, source.model, clips):
        step = Step(
            f"comparison, {check.name}",
            lambda _, check=check: ([], {"edges": [vars(edge) for edge in check.run()]}),
            ("export.verify",),
            {
                "weights": source.hashes(),
                "config": source.config,
                "clips": [check.clips, clips.reads if check.clips else None],
                "processor": machine_name(),
            },
            tuple(Path(component.path).name for component in check.components),
        )
        found = [Edge(**values) for values in folder.step(step)["edges"]]
        if not all(edge.holds for edge in found):
            folder.forget(step.name)
        edges += found
    verified = all(edge.holds for edge in edges)
    verification = {**manifest.verification, "verified": verified, "edges": [vars(edge) for edge in edges]}
    return replace(manifest, tolerances=tolerances, verification=verification), edges


def _publish(folder: ExportFolder, out: Path, manifest: Manifest, edges: list[Edge]) -> None:
    """Move the bundle to its name, or one that differs from its checkpoint to ``NAME.unverified``."""
    folder.console.print(edges_table(edges))
    if manifest.verified:
        publish_folder(folder.folder, out)
        return
    unverified = out.with_name(out.name + ".unverified")
    publish_folder(folder.folder, unverified)
    broken = next(edge for edge in edges if not edge.holds)
    raise VerificationError(
        f"the export differs from its checkpoint: {broken.sentence()}; {out.name} was not written, and "
        f"{unverified.name} is marked as unverified"
    )
