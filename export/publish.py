"""The end of every way to a bundle: it is compared, and moved to its name only when every comparison holds.

In: the folder in which the bundle was made, its manifest, and the comparisons. Out: a verified bundle, or
``NAME.unverified`` and an error; the bundle that had the name before is then as it was.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from export.clips import ComparedClips
from export.engine_memory import with_memory
from export.errors import ExportError
from export.step_key import versions
from export.verify import Check, measured_tolerances
from export.workshop import ExportFolder, Step
from runtime.commands.verify import Edge, VerificationError, edges_table, golden_edges
from runtime.machine.facts import machine_name, peak_memory_bytes
from runtime.perception.predictor import Constants
from vaemotion.contract.bundle import (
    MANIFEST_FILE,
    BundleError,
    Manifest,
    read_manifest,
    verify_files,
    write_manifest,
)
from vaemotion.contract.files import publish_folder
from vaemotion.contract.onnx_weights import DATA_SUFFIX
from vaemotion.contract.terminal import Terminal

# Packages that the manifest lists, by the name under which each is imported.
_TOOLS = {
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


def manifest_of(
    folder: ExportFolder,
    name: str,
    constants: Constants,
    context_tokens: int,
    lineage: Mapping[str, Any],
    verification: dict[str, Any],
) -> Manifest:
    """Build the manifest of a bundle that is not yet verified. The lineage gets the versions of all tools."""
    installed = versions(_TOOLS.values())
    return Manifest(
        name=name,
        token_width=constants.token_width,
        tokens_per_frame=constants.tokens_per_frame,
        audio_tokens=constants.audio_tokens,
        stop_token_ids=constants.stop_token_ids,
        front_end=constants.front_end,
        prompt=constants.prompt,
        components=with_memory(folder.folder, folder.components),
        tolerances={},
        lineage={"tools": {tool: installed[module] for tool, module in _TOOLS.items()}, **lineage},
        verification=verification,
        emotions=constants.emotions,
        context_tokens=context_tokens,
        speech=constants.speech,
        picture_grid=constants.picture_grid,
    )


def refuse_other_folder(out: Path) -> None:
    """Raise ExportError for a folder that exists and is not a bundle."""
    if os.path.lexists(out) and not _files_of(out):
        raise ExportError(f"{out} exists and is not a bundle; give --out a folder that does not exist yet")


def _files_of(bundle: Path) -> set[str]:
    """List the files of a bundle of any version, as its manifest does; none for another folder."""
    try:
        values = json.loads((bundle / MANIFEST_FILE).read_text())
        paths = [str(component["path"]) for component in values["components"]]
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    return {MANIFEST_FILE, *paths, *(path + DATA_SUFFIX for path in paths)}


def _is_unverified(bundle: Path) -> bool:
    try:
        return not read_manifest(bundle).verified
    except BundleError:
        return False


def is_up_to_date(out: Path, identity: str) -> bool:
    """Check that ``out`` is a verified bundle of the same identity, and every file of it intact."""
    try:
        manifest = read_manifest(out)
        verify_files(out, manifest)
    except (BundleError, OSError):
        return False
    return manifest.verified and manifest.lineage.get("identity_sha256") == identity


@contextmanager
def failures_as_errors(out: Path, impossible: str) -> Iterator[None]:
    """Turn a full disk, too little memory and a ValueError into a sentence with the way out.

    ``impossible``: the words before a ValueError's reason, such as "this checkpoint cannot be exported".
    """
    again = f"{out.name} is as it was; the finished steps are kept, and the same command continues with them"
    try:
        yield
    except OSError as error:
        raise ExportError(f"writing the bundle failed: {error}; {again}") from error
    except MemoryError as error:
        raise ExportError(f"making the bundle ran out of memory; close other programs. {again}") from error
    except ValueError as error:
        raise ExportError(f"{impossible}: {error}") from error


def verified(
    folder: ExportFolder,
    manifest: Manifest,
    checks: Sequence[Check],
    reads: Mapping[str, Any],
    clips: ComparedClips,
) -> tuple[Manifest, list[Edge]]:
    """Compare the bundle with its golden vectors and by ``checks``. Returns it with the measurements.

    ``reads``: what the reference depends on, for the keys of steps. Golden vectors are compared anew every
    time, because they are this machine's. A comparison that does not hold is not kept.
    """
    verify_files(folder.folder, manifest)
    with folder.console.status("comparing with golden vectors"):
        edges = golden_edges(folder.folder, manifest)
    tolerances = measured_tolerances(edges)
    for check in checks:
        step = Step(
            f"comparison, {check.name}",
            lambda _, check=check: ([], {"edges": [vars(edge) for edge in check.run()]}),
            ("export.verify",),
            {
                **reads,
                "clips": [check.clips, clips.reads if check.clips else None],
                "question": check.question,
                "processor": machine_name(),
            },
            tuple(Path(component.path).name for component in check.components),
        )
        found = [Edge(**values) for values in folder.step(step)["edges"]]
        if not all(edge.holds for edge in found):
            folder.forget(step.name)
        edges += found
    holds = all(edge.holds for edge in edges)
    verification = {**manifest.verification, "verified": holds, "edges": [vars(edge) for edge in edges]}
    return replace(manifest, tolerances=tolerances, verification=verification), edges


def with_usage(manifest: Manifest, identity: str, began_s: float, peak_bytes: int) -> Manifest:
    """Add to the lineage what the bundle depends on, as a hash, and the time and memory that it took.

    ``began_s``: the start, of ``time.monotonic``. ``peak_bytes``: of the memory during the steps.
    """
    usage = {
        "export_s": round(time.monotonic() - began_s, 1),
        "export_peak_memory_mb": round(max(peak_bytes, peak_memory_bytes()) / 1e6),
        "identity_sha256": identity,
    }
    return replace(manifest, lineage={**manifest.lineage, **usage})


def publish(folder: ExportFolder, out: Path, manifest: Manifest, edges: Sequence[Edge], differs: str) -> None:
    """Move the bundle to its name, or one of which a comparison does not hold to ``NAME.unverified``.

    What else lies in the folder of an earlier bundle stays there. A ``NAME.unverified`` that is something
    else is left alone; the bundle then gets a number, too.

    ``differs``: the words before that comparison, such as "the export differs from its checkpoint". Raises
    VerificationError.
    """
    write_manifest(folder.folder, manifest)
    folder.console.print(edges_table(edges))
    if manifest.verified:
        publish_folder(folder.folder, out, _files_of(out))
        return
    unverified, number = out.with_name(out.name + ".unverified"), 1
    while os.path.lexists(unverified) and not _is_unverified(unverified):
        number += 1
        unverified = out.with_name(f"{out.name}.unverified-{number}")
    publish_folder(folder.folder, unverified, _files_of(unverified))
    broken = next(edge for edge in edges if not edge.holds)
    raise VerificationError(
        f"{differs}: {broken.sentence()}; {out.name} was not written, and {unverified.name} is marked as "
        "unverified"
    )


def announce(out: Path, manifest: Manifest, console: Terminal) -> None:
    """Print the size of a published bundle, and what it took to make."""
    took = manifest.lineage
    console.print(
        f"verified bundle {out}: {sum(c.bytes for c in manifest.components) / 1e6:.1f} MB, "
        f"made in {took['export_s']:.0f} s, peak memory {took['export_peak_memory_mb']} MB",
        style="green",
    )
