"""``vaemotion export``: a checkpoint becomes a verified bundle, or nothing.

Everything is made in a folder beside the target that survives a failure (``export.workshop``), verified there on real inputs, and moved to
its name only when every edge holds.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from calibration.confidence import fit_confidence
from calibration.samples import Sample, coverage, manifest_samples, procedural_samples
from export.components import (
    FLOAT_TYPES,
    Chain,
    load_fp32,
    write_engine,
    write_fp16,
    write_fp32,
    write_gguf,
    write_golden,
    write_importance_matrix,
    write_quantised,
    write_tables,
)
from export.int8 import judge_int8, plan_int8
from export.judgement import Budget
from export.predictors import checkpoint_constants
from export.report import print_report
from export.to_onnx import ExportError, device_parts
from export.verify import CLIPS, verify_against
from export.workshop import Made, Workshop
from runtime.self_test import (
    SMALLEST_LOGIT_TOLERANCE,
    SMALLEST_TOLERANCE,
    Edge,
    VerificationError,
    edges_table,
)
from vaemotion.contract.bundle import (
    ENGINE_ROLES,
    BundleError,
    Manifest,
    publish_folder,
    read_manifest,
    sha256_of,
    verify_files,
    write_manifest,
)
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.model.checkpoint import load_checkpoint, read_config
from vaemotion.model.vaemotion_llm import VAEmotionLLM

PRECISIONS = ("fp32", "fp16", "int8")
SMALL_TYPES = ("Q4_K_M", "Q5_0", "Q8_0")  # of language models, besides F16
TOOLS = (
    "vaemotion", "torch", "transformers", "onnx", "onnxscript", "onnxruntime", "gguf", "llama-cpp-python", "numpy",
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What is exported. ``max_drop``: of CCC and of content accuracy, None for INT8 without search and judgement; ``windows`` judge;
    ``calibration``: a manifest, whose split ``train`` is taken (None: procedural art, for a checkpoint that learnt on it); ``clips``: on which
    every edge is verified."""

    precision: str = "fp32"
    max_drop: float | None = Budget().max_drop
    windows: int = 2000
    calibration: Path | None = None
    media_root: Path = Path()
    calibration_windows: int = 256
    clips: int = CLIPS


def parse_drop(text: str) -> float | None:
    """``0.5pp`` (of CCC and accuracy times 100), ``0.005``, or ``none``. Raises UsageError."""
    if text == "none":
        return None
    try:
        value = float(text.removesuffix("pp")) / (100 if text.endswith("pp") else 1)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise UsageError(f"--max-drop takes percentage points such as 0.5pp, or none, got {text!r}")
    return value


def export_bundle(checkpoint: Path, out: Path, options: Options = Options()) -> None:
    """Export, verify, publish. Where ``out`` is this very export already, and whole, nothing is done. Raises UserError and leaves ``out``
    as it was when anything does not hold."""
    console = Console(stderr=True)
    began = time.monotonic()
    if options.precision not in PRECISIONS:
        raise UsageError(f"--precision must be one of {', '.join(PRECISIONS)}, got {options.precision!r}")
    if out.exists() and not (out / "manifest.json").is_file():
        raise ExportError(f"{out} exists and is not a bundle; give --out a folder that does not exist yet")
    stored = read_config(checkpoint)
    identity = _identity(checkpoint, stored, options)
    made_of = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    if _is_made(out, made_of):
        console.print(
            f"[green]verified bundle[/] {out} is of this checkpoint with these options, and whole: nothing to do; remove it to make it anew"
        )
        return
    model = load_checkpoint(checkpoint)
    _refuse_not_finite(model)
    with _failures_as_errors(out):
        workshop = Workshop(out, identity, stored["licence"], console)
        manifest = _write_components(model, stored, checkpoint, workshop, options)
        workshop.finish()
        manifest, edges = _verified(model, workshop.folder, manifest, console, options.clips)
        usage = {
            "export_s": round(time.monotonic() - began, 1), "export_peak_memory_mb": round(peak_memory_mb()),
            "identity_sha256": made_of,
        }  # fmt: skip
        write_manifest(workshop.folder, replace(manifest, lineage={**manifest.lineage, **usage}))
        _publish(workshop.folder, out, manifest, edges, console)
    print_report(manifest.verification, console)
    console.print(
        f"[green]verified bundle[/] {out}: {sum(c.bytes for c in manifest.components) / 1e6:.1f} MB, "
        f"made in {usage['export_s']:.0f} s, peak memory {usage['export_peak_memory_mb']} MB"
    )


def _refuse_not_finite(model: VAEmotionLLM) -> None:
    """A weight that is NaN or infinite makes nothing but silence on a device."""
    for name, tensor in model.named_parameters():
        if not tensor.isfinite().all():
            raise ExportError(
                f"weight {name!r} of the checkpoint is not finite everywhere; take an earlier checkpoint of this training"
            )


def _identity(checkpoint: Path, stored: dict[str, Any], options: Options) -> dict[str, Any]:
    """Everything that the files depend on."""
    chosen = {name: str(value) for name, value in asdict(options).items()}
    if options.calibration is not None:
        chosen["calibration_sha256"] = sha256_of(options.calibration)
    tools = {name: _version(name) for name in TOOLS}
    config = sha256_of(checkpoint / "config.json")
    return {
        "config": config,
        "components": stored["components"],
        "options": chosen,
        "tools": tools,
        "source": _own_source(),
    }


def _own_source() -> str:
    """One hash of the code that an export runs through: a working copy changes without its version."""
    root = Path(__file__).parents[1]
    files = sorted(
        f
        for name in ("export", "calibration", "vaemotion/contract", "vaemotion/model")
        for f in (root / name).rglob("*.py")
    )
    return hashlib.sha256("".join(map(sha256_of, files)).encode()).hexdigest()


def _is_made(out: Path, made_of: str) -> bool:
    """``out`` is a verified bundle made of the same, and every file of it is whole."""
    try:
        manifest = read_manifest(out)
        verify_files(out, manifest)
    except (BundleError, OSError):
        return False
    return manifest.verified and manifest.lineage.get("identity_sha256") == made_of


@contextmanager
def _failures_as_errors(out: Path) -> Iterator[None]:
    """A full disk, too little memory and an impossible checkpoint are the user's to mend."""
    again = f"nothing was left under {out.name}; what is finished stays in {out.name}.partial, and the same command goes on there"
    try:
        yield
    except OSError as error:
        raise ExportError(f"writing the bundle failed: {error}; {again}") from error
    except MemoryError as error:
        raise ExportError(f"the export ran out of memory; close other programs, and {again}") from error
    except ValueError as error:
        raise ExportError(f"this checkpoint cannot be exported: {error}") from error


def peak_memory_mb() -> float:
    """The process's largest resident set so far."""
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _write_components(
    model: VAEmotionLLM, stored: dict[str, Any], checkpoint: Path, workshop: Workshop, options: Options
) -> Manifest:
    parts = device_parts(model)
    for role in ENGINE_ROLES:
        workshop.step(f"{role} → ONNX FP32", partial(write_fp32, workshop, parts[role], role))
    for file_type in FLOAT_TYPES:
        step = partial(write_gguf, workshop, model, stored, checkpoint, file_type)
        workshop.step(f"language_model → GGUF {file_type}", step)
    workshop.step(
        "token embeddings, delimiters, tokenizer", partial(write_tables, workshop, model, checkpoint)
    )
    workshop.step("golden vectors", partial(write_golden, workshop, model))
    verification: dict[str, Any] = {}
    with Chain(workshop, checkpoint_constants(model)) as chain:
        calibration = _calibrated_confidence(workshop, chain, stored)
        if options.precision != "fp32":
            samples = _Samples(model, stored, options)
            _write_fp16(workshop, chain, samples)
            if options.precision == "int8":
                verification = _write_int8(workshop, chain, samples, options)
            calibration["calibration"] = workshop.step(
                "coverage of the calibration", lambda: ([], coverage(samples()))
            )
    return _manifest(model, stored, checkpoint, workshop, calibration, verification)


def _learnt_on_art(stored: dict[str, Any]) -> bool:
    return "align" in stored["lineage"]


def _calibrated_confidence(workshop: Workshop, chain: Chain, stored: dict[str, Any]) -> dict[str, Any]:
    """For the lineage. Of a checkpoint that did not learn on procedural art, works of it tell nothing."""
    if not _learnt_on_art(stored):
        return {}

    def fit() -> Made:
        try:
            return [], {"confidence": fit_confidence(chain.reference).as_json()}
        except UserError as error:  # this machine is too slow for it: a bundle without is whole, too
            workshop.console.print(f"  {error}", style="yellow", highlight=False)
            return [], {}

    return dict(workshop.step("confidence of readings", fit))


class _Samples:
    """The calibration windows, drawn when a step needs them."""

    def __init__(self, model: VAEmotionLLM, stored: dict[str, Any], options: Options) -> None:
        self._front_end, self._options = model.config.front_end, options
        self._drawn: list[Sample] = []
        if options.calibration is None and not _learnt_on_art(stored):
            raise ExportError(
                f"{options.precision} needs calibration windows, and this checkpoint does not say what it was trained on; give "
                "--calibration MANIFEST --media-root FOLDER: ranges of random numbers would be lies"
            )

    def __call__(self) -> list[Sample]:
        if not self._drawn:
            count, manifest = self._options.calibration_windows, self._options.calibration
            if manifest is None:
                self._drawn = list(procedural_samples(self._front_end, count))
            else:
                self._drawn = list(
                    manifest_samples(manifest, self._options.media_root, self._front_end, count)
                )
        return self._drawn


def _write_fp16(workshop: Workshop, chain: Chain, samples: _Samples) -> None:
    for role in ENGINE_ROLES:
        workshop.step(
            f"{role} → ONNX FP16", lambda role=role: write_fp16(workshop, role, samples(), chain.reference)
        )


def _write_int8(workshop: Workshop, chain: Chain, samples: _Samples, options: Options) -> dict[str, Any]:
    """INT8 engines and the language model that goes with them; returns what the manifest says about their losses."""
    workshop.step(
        "importance of the language model's channels",
        lambda: write_importance_matrix(workshop, chain.prompts(samples(), held_out=False)),
    )
    quality = {
        t: workshop.step(f"language_model → {t}", partial(_quantised, workshop, chain, samples, t))["quality"]
        for t in SMALL_TYPES
    }
    stays = {role: workshop.notes[f"{role} → ONNX FP16"]["stays_fp32"] for role in ENGINE_ROLES}
    budget = Budget() if options.max_drop is None else replace(Budget(), max_drop=options.max_drop)
    sizes = {c.precision: c.bytes for c in workshop.components if c.role == "language_model"}
    good_enough = [t for t in SMALL_TYPES if quality[t]["mean_kl_nats"] <= budget.max_kl_nats / 2]
    likely = sorted([*good_enough, "F16"], key=sizes.__getitem__)

    def make() -> Made:
        models = {role: load_fp32(workshop, role) for role in ENGINE_ROLES}
        plans = plan_int8(models, stays, samples(), chain.reference, options.max_drop, workshop.console)
        if options.max_drop is None:
            accounts = [plan.account() for by_role in plans.values() for plan in by_role.values()]
            found: dict[str, Any] = {"language_model": likely[0], "engines": accounts}
        else:
            language_models = {t: chain.language_model(t) for t in likely}
            found = judge_int8(
                plans, chain.reference, language_models, samples(), options.windows, budget, workshop.console
            )
        graphs = [
            (role, scheme, plan)
            for scheme, by_role in plans.items()
            for role, plan in by_role.items()
            if plan.chosen()
        ]
        return [write_engine(workshop, plan.graph(), role, scheme) for role, scheme, plan in graphs], found

    report = workshop.step("engines → INT8", make)
    return {"budget": report, "language_models": quality, "components": _per_component(report, quality)}


def _per_component(report: dict[str, Any], quality: dict[str, Any]) -> dict[str, Any]:
    """What each file alone changes, for ``vaemotion bench``: an engine the readings' CCC to FP32, a language model its distributions."""
    found = {
        f"{a['role']}/{a['scheme']}": {
            "ccc_to_fp32": {"delta": -a["methods_tried"][a["method"]], "bound": None}
        }
        for a in report["engines"]
        if a["methods_tried"]
    }
    kl = {t: {"kl_nats": {"delta": q["mean_kl_nats"], "bound": q["p99_kl_nats"]}} for t, q in quality.items()}
    return found | {f"language_model/{t}": values for t, values in kl.items()}


def _quantised(workshop: Workshop, chain: Chain, samples: _Samples, file_type: str) -> Made:
    made, notes = write_quantised(
        workshop, file_type, chain.prompts(samples(), held_out=True), chain.prefix_tokens
    )
    return ([] if file_type in FLOAT_TYPES else made), notes


def _manifest(
    model: VAEmotionLLM, stored: dict[str, Any], checkpoint: Path, workshop: Workshop, calibration: dict[str, Any],
    verification: dict[str, Any],
) -> Manifest:  # fmt: skip
    assert model.audio is not None
    if verification:
        _keep_chosen_language_models(workshop, verification["budget"]["language_model"])
    return Manifest(
        name=stored["lineage"]["name"],
        token_width=model.width,
        tokens_per_frame=model.tokens_per_picture,
        audio_tokens=model.audio.n_tokens,
        stop_token_ids=(model.stop_id,),
        front_end=model.config.front_end,
        prompt=model.config.prompt,
        components=tuple(workshop.components),
        tolerances={},
        lineage={
            "checkpoint_config_sha256": sha256_of(checkpoint / "config.json"),
            "checkpoint_components": stored["components"],
            "tools": {name: _version(name) for name in TOOLS},
            **calibration,
        },
        verification=verification,
    )


def _keep_chosen_language_models(workshop: Workshop, chosen: str) -> None:
    """The type that was chosen, first, and F16, the reference."""
    kept = [c for c in workshop.components if c.role != "language_model" or c.precision in (chosen, "F16")]
    workshop.components = sorted(kept, key=lambda c: (c.role == "language_model", c.precision != chosen))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _verified(
    model: VAEmotionLLM, folder: Path, manifest: Manifest, console: Console, clips: int
) -> tuple[Manifest, list[Edge]]:
    """The manifest with what was measured, and marked as verified when every edge holds."""
    with console.status("verifying every edge on real inputs"):
        write_manifest(folder, manifest)
        edges = verify_against(folder, model, clips)
    golden = {edge.component: edge.measured for edge in edges if edge.kind == "golden"}
    tolerances = {
        key: max(
            SMALLEST_LOGIT_TOLERANCE if key.startswith("language_model/") else SMALLEST_TOLERANCE, 2 * value
        )
        for key, value in golden.items()
    }
    verified = all(edge.holds for edge in edges)
    verification = {**manifest.verification, "verified": verified, "edges": [vars(edge) for edge in edges]}
    return replace(manifest, tolerances=tolerances, verification=verification), edges


def _publish(folder: Path, out: Path, manifest: Manifest, edges: list[Edge], console: Console) -> None:
    """Move the bundle to its name; one that breaches stays beside it, marked as unverified."""
    console.print(edges_table(edges))
    if manifest.verified:
        publish_folder(folder, out)
        return
    unverified = out.with_name(out.name + ".unverified")
    shutil.rmtree(unverified, ignore_errors=True)
    folder.rename(unverified)
    broken = next(edge for edge in edges if not edge.holds)
    raise VerificationError(
        f"the export differs from its checkpoint: {broken.sentence()}; {out.name} was not written, and {unverified.name} is "
        "marked as unverified"
    )
