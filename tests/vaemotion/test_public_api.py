"""The public API of ``import vaemotion``: light to import, lazy, and nothing but what it promises."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import vaemotion
from tests.paths import ROOT


def test_the_version_is_the_project_s() -> None:
    assert vaemotion.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"version: {vaemotion.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## [{vaemotion.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_importing_it_loads_nothing_heavy_and_a_name_is_imported_when_it_is_used() -> None:
    code = (
        "import sys, vaemotion; heavy = {'numpy', 'onnxruntime', 'torch', 'runtime'} & set(sys.modules);"
        "assert not heavy, heavy; from vaemotion import open_predictor; assert 'runtime' in sys.modules;"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_bundle_is_opened_by_the_public_name(small_bundle: Path) -> None:
    with vaemotion.open_predictor(small_bundle) as predictor:
        assert set(predictor.engines) == {"vision_encoder", "audio_encoder", "emo_adapter"}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'opne'"):
        vaemotion.opne  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_every_package_says_that_it_is_typed() -> None:
    for package in ("vaemotion", "runtime", "calibration", "export"):
        assert (ROOT / package / "py.typed").is_file()
