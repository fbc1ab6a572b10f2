"""Qwen2.5-VL as the base of a checkpoint, from its export to readings and answers on the device."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.options import Options
from export.pack import export_bundle
from runtime.perception.predictor import open_predictor
from tests.quick_export import fit_confidence_on_few_works
from tests.tiny import tiny_clip
from tests.vaemotion.model.test_qwen2_5_vl import save_tiny_qwen
from vaemotion.contract.bundle import read_manifest
from vaemotion.contract.positions import PictureGrid
from vaemotion.contract.prediction import Question


def test_a_base_with_places_is_exported_verified_and_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit_confidence_on_few_works(monkeypatch)
    checkpoint = save_tiny_qwen(tmp_path / "checkpoint")
    export_bundle(checkpoint, tmp_path / "bundle", Options(clips=1))
    manifest = read_manifest(tmp_path / "bundle")
    assert manifest.verified
    assert manifest.picture_grid == PictureGrid(8, 8)
    question = Question("What is this?", ("rain", "an old dog"), "content")
    with open_predictor(tmp_path / "bundle") as predictor:
        prediction = predictor(tiny_clip(), "audio-visual", [question])
    assert prediction.affect is not None
    assert len(prediction.answers[0]) == 2
