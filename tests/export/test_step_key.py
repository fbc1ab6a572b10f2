"""Keys of steps: they change with the code and the inputs of a step, and with nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from export import step_key as keys
from export.step_key import Code, imported, source_hash, step_key, versions
from tests.paths import ROOT

CODE = ("export.gguf.quality",)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Write a small project: a step's module that imports two others, one of them within a function."""
    files = {
        "export/__init__.py": "",
        "export/step.py": "import numpy\nfrom export import helper\n"
        "def f():\n    import vaemotion.contract.audio\n",
        "export/helper.py": "from importlib import import_module\nort = import_module('onnxruntime')\n",
        "export/other.py": "import torch\n",
        "vaemotion/__init__.py": "import runtime.run\n",
        "vaemotion/contract/audio.py": "import soxr\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_imports_are_followed_within_functions_but_not_into_the_init_of_a_package(project: Path) -> None:
    found = imported(("export.step",), project)
    assert found == Code(
        frozenset({"export.step", "export.helper", "vaemotion.contract.audio"}),
        frozenset({"numpy", "onnxruntime", "soxr"}),
    )


@pytest.mark.parametrize(
    ("edited", "changes"),
    [("export/helper.py", True), ("vaemotion/contract/audio.py", True), ("export/other.py", False)],
)
def test_an_edit_changes_the_hash_of_what_runs_through_it(
    project: Path, tmp_path_factory: pytest.TempPathFactory, edited: str, changes: bool
) -> None:
    copy = shutil.copytree(project, tmp_path_factory.mktemp("copy"), dirs_exist_ok=True)
    modules = imported(("export.step",), project).modules
    before = source_hash(modules, project)
    assert source_hash(modules, copy) == before, "the folder does not count"
    edited_copy = shutil.copytree(project, tmp_path_factory.mktemp("edited"), dirs_exist_ok=True)
    (edited_copy / edited).write_text("# another comment\n" + (edited_copy / edited).read_text())
    assert (source_hash(modules, edited_copy) != before) == changes


@pytest.mark.parametrize(
    "other",
    [
        {"name": "another step"},
        {"code": ("export.gguf.shape",)},
        {"defined_in": "export.components"},
        {"reads": {"windows": 17}},
        {"files": {"a.onnx": "22"}},
        {"files": {"b.onnx": "11"}},
    ],
)
def test_each_input_of_a_step_is_part_of_its_key(other: dict[str, Any]) -> None:
    base: dict[str, Any] = {
        "name": "step",
        "code": CODE,
        "defined_in": "export.chain",
        "reads": {"windows": 16},
        "files": {"a.onnx": "11"},
    }
    assert step_key(**base) == step_key(**base)
    assert step_key(**base) != step_key(**{**base, **other})


def test_the_version_of_an_imported_package_is_part_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = step_key("step", CODE, "export.chain", {}, {})
    assert "numpy" in imported(CODE).packages
    monkeypatch.setattr(keys, "_version", lambda package: f"{package} of another day")
    assert step_key("step", CODE, "export.chain", {}, {}) != before


def test_the_graphs_of_the_engines_depend_on_the_model_and_not_on_calibration_windows() -> None:
    found = imported(("export.to_onnx",))
    assert {"vaemotion.model.emo_adapter", "vaemotion.model.backbone", "calibration.qdq"} <= found.modules
    assert not {"calibration.samples", "export.pack", "export.verify", "export.workshop"} & found.modules
    assert {"torch", "transformers", "onnx", "onnxscript"} <= found.packages
    assert all(version[0].isdigit() for version in versions(found.packages).values())


def test_no_module_of_the_project_imports_relatively() -> None:
    for package in keys.PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            assert "\nfrom ." not in file.read_text(), file
