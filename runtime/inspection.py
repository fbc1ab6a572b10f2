"""``vaemotion bundle inspect``: what a bundle holds and where it comes from, for a person."""

from __future__ import annotations

import json
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from vaemotion.contract.bundle import MANIFEST_FILE, read_manifest, verify_files
from vaemotion.contract.confidence import confidence_of


def inspect(bundle: Path, as_json: bool) -> None:
    """Print the bundle's components, constants and lineage; raises BundleError when a file is not whole."""
    manifest = read_manifest(bundle)
    verify_files(bundle, manifest)
    if as_json:
        print((bundle / MANIFEST_FILE).read_text())
        return
    table = Table(title=f"{manifest.name}, schema {manifest.schema_version}", box=SIMPLE_HEAD)
    for column in ("role", "precision", "MB", "licence", "sha256"):
        table.add_column(column, justify="right" if column == "MB" else "left", no_wrap=True)
    for component in manifest.components:
        megabytes = f"{component.bytes / 1e6:.2f}"
        table.add_row(
            component.role, component.precision, megabytes, component.licence, component.sha256[:12]
        )
    console = Console()
    console.print(table)
    for component in manifest.components:
        for direction, specs in (("takes", component.inputs), ("gives", component.outputs)):
            if specs:
                described = ", ".join(f"{spec.name} ({', '.join(map(str, spec.shape))})" for spec in specs)
                console.print(f"{component.role} {direction} {described}", highlight=False)
    console.print("front end", json.dumps(manifest.front_end.to_dict(), indent=1), highlight=False)
    tools = ", ".join(f"{name} {version}" for name, version in manifest.lineage.get("tools", {}).items())
    console.print(f"made by {tools or 'unknown tools'}", highlight=False)
    source = manifest.lineage.get("checkpoint_config_sha256", "unknown")
    console.print(f"from a checkpoint whose config has sha256 {source[:12]}", highlight=False)
    confidence = confidence_of(manifest)
    for path, found in confidence.paths.items() if confidence is not None else ():
        before, after = found.before, found.after
        console.print(
            f"confidence, {path}: error (ECE) {before.ece:.3f} before calibration, {after.ece:.3f} after; 90 % intervals hold valence "
            f"{before.valence_coverage:.2f} → {after.valence_coverage:.2f}, arousal {before.arousal_coverage:.2f} → {after.arousal_coverage:.2f}",
            highlight=False,
        )
