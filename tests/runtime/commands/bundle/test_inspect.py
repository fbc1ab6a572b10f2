"""``vaemotion bundle inspect``: components, tensors, origin, as text and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vaemotion.cli.main import main
from vaemotion.contract.bundle import read_manifest


def test_components_tensors_and_origin_are_printed(
    small_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = read_manifest(small_bundle)
    assert main(["bundle", "inspect", str(small_bundle)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for component in manifest.components:
        assert component.sha256[:12] in text
    assert "vision_encoder (fp32) in: pixels (batch, 3," in text
    assert "emo_adapter (fp32) out: valence_arousal (batch, 2)" in text
    assert f"made with: vaemotion {manifest.lineage['tools']['vaemotion']}" in text
    assert '"n_mels"' in text


def test_json_is_the_manifest(small_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bundle", "inspect", str(small_bundle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((small_bundle / "manifest.json").read_text())
