"""``vaemotion bundle inspect``: print the contents and the origin of a bundle."""

from __future__ import annotations

import json
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from vaemotion.contract.bundle import MANIFEST_FILE, Manifest, read_manifest, verify_files
from vaemotion.contract.confidence import Quality, confidence_of
from vaemotion.contract.front_end import reads_sound
from vaemotion.contract.terminal import Terminal


def inspect(bundle: Path, as_json: bool) -> None:
    """Print a bundle's components, constants, lineage and calibration of confidence.

    ``as_json``: print its manifest instead. Raises BundleError where the bundle or one of its files is
    damaged.
    """
    manifest = read_manifest(bundle)
    verify_files(bundle, manifest)
    if as_json:
        print(json.dumps(json.loads((bundle / MANIFEST_FILE).read_text()), indent=1))
        return
    console = Terminal()
    console.print(component_table(manifest))
    for line in [*_tensor_lines(manifest), *_origin_lines(manifest), *_confidence_lines(manifest)]:
        console.print(line)
    console.print("front end", json.dumps(manifest.front_end.to_dict(), indent=1))


def component_table(manifest: Manifest) -> Table:
    """Return the bundle's components as a table, one row per file."""
    table = Table(title=f"{manifest.name}, schema {manifest.schema_version}", box=SIMPLE_HEAD)
    for column in ("role", "precision", "MB", "license", "sha256"):
        table.add_column(column, justify="right" if column == "MB" else "left", no_wrap=True)
    for component in manifest.components:
        size_mb = f"{component.bytes / 1e6:.2f}"
        table.add_row(component.role, component.precision, size_mb, component.licence, component.sha256[:12])
    return table


def _tensor_lines(manifest: Manifest) -> list[str]:
    """Return the inputs and outputs of each component with their shapes."""
    lines: list[str] = []
    for component in manifest.components:
        for direction, specs in (("in", component.inputs), ("out", component.outputs)):
            if specs:
                tensors = ", ".join(f"{spec.name} ({', '.join(map(str, spec.shape))})" for spec in specs)
                lines.append(f"{component.label} {direction}: {tensors}")
    return lines


def _origin_lines(manifest: Manifest) -> list[str]:
    """Return the tools that made the bundle, and its checkpoint."""
    tools = [f"{name} {version}" for name, version in manifest.lineage.get("tools", {}).items()]
    return [
        f"made with: {', '.join(tools) or 'unknown tools'}",
        f"made from: {_source(manifest)}",
        f"emotions: {', '.join(manifest.emotions)}",
    ]


def _source(manifest: Manifest) -> str:
    """Return what the bundle was exported or assembled from."""
    if assembled := manifest.lineage.get("assembled"):
        return f"parts that were trained elsewhere: {assembled['text']}"
    config_sha256 = manifest.lineage.get("checkpoint_config_sha256", "unknown")
    return f"a checkpoint with config sha256 {config_sha256[:12]}"


def _confidence_lines(manifest: Manifest) -> list[str]:
    """Return each path's expected calibration error (ECE), coverage of its 90 % intervals, and likelihood.

    A path with sound has a line for each stage of its window.
    """
    confidence = confidence_of(manifest)
    if confidence is None:
        return [
            f"sound is heard from {manifest.front_end.least_sound_s:.2f} s on; confidence: not calibrated"
        ]
    lines = [f"sound is heard from {confidence.least_sound_s:.2f} s on"]
    for path, stages in confidence.paths.items():
        for stage in stages:
            before, after = stage.before, stage.after
            held = f", from {stage.from_s:.2f} s of sound" if reads_sound(path) else ""
            line = (
                f"confidence, {path}{held} (before → after calibration): "
                f"{_error(before, after)}"
                f"90 % intervals cover valence {before.valence_coverage:.2f} → {after.valence_coverage:.2f}, "
                f"arousal {before.arousal_coverage:.2f} → {after.arousal_coverage:.2f}"
            )
            lines.append(line + _likelihoods(before, after))
    return lines


def _error(before: Quality, after: Quality) -> str:
    """Return the calibration error of the emotions, "" where no emotions were labeled."""
    if before.ece is None or after.ece is None:
        return ""
    return f"ECE {before.ece:.3f} → {after.ece:.3f}; "


def _likelihoods(before: Quality, after: Quality) -> str:
    """Return the negative log-likelihoods in nats, "" for a record that is older than them."""
    known = (before.valence_nll, after.valence_nll, before.arousal_nll, after.arousal_nll)
    if None in known:
        return ""
    return "; NLL valence {:.2f} → {:.2f}, arousal {:.2f} → {:.2f}".format(*known)
