"""The end of an export: whatever comes of it, nothing is removed that an export did not make."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from export.errors import ExportError
from export.publish import publish, refuse_other_folder
from export.workshop import STEPS_VARIABLE, ExportFolder
from runtime.commands.verify import Edge, VerificationError
from tests.paths import ROOT
from vaemotion.contract.bundle import Manifest, read_manifest, verify_files
from vaemotion.contract.terminal import Terminal

READY = ROOT / "models" / "vaemotion-tiny-bundle"


def unfinished(out: Path) -> tuple[ExportFolder, Manifest]:
    folder = ExportFolder(out, "Apache-2.0", "abc", Terminal(stderr=True))
    shutil.copytree(READY, folder.folder, dirs_exist_ok=True)
    return folder, replace(read_manifest(READY), name="new")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("outcome", ["verified", "unverified", "unverified twice", "failed"])
def test_every_outcome_leaves_what_the_user_has(
    tmp_path: Path, outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(STEPS_VARIABLE, raising=False)
    out = tmp_path / "bundle"
    for name in ("bundle", "bundle.old", "bundle.partial", "bundle.unverified"):
        shutil.copytree(READY, tmp_path / name)
    (tmp_path / "bundle.steps").mkdir()
    (tmp_path / "bundle.steps" / "notes.json").write_text("mine")
    (tmp_path / ".bundle.tmp").write_text("mine")
    (out / "README.md").write_text("the card")
    (out / "components" / "notes.txt").write_text("mine")
    before = contents(tmp_path)
    for _ in range(2 if outcome == "unverified twice" else 1):
        folder, manifest = unfinished(out)
        with folder:
            if outcome == "verified":
                publish(folder, out, manifest, [], "differs")
            elif outcome.startswith("unverified"):
                broken = replace(manifest, verification={"verified": False})
                edges = [Edge("chain", "chain", "affect", 1.0, 0.1, 1.0)]
                with pytest.raises(VerificationError, match=r"bundle\.unverified-2 is marked as unverified"):
                    publish(folder, out, broken, edges, "differs")
    after = contents(tmp_path)
    own = {"bundle/manifest.json"} if outcome == "verified" else set[str]()
    assert {name: after.get(name) for name in before if name not in own} == {
        name: content for name, content in before.items() if name not in own
    }
    assert read_manifest(out).name == ("new" if outcome == "verified" else read_manifest(READY).name)
    verify_files(out, read_manifest(out))
    came = {name.partition("/")[0] for name in after} - {name.partition("/")[0] for name in before}
    assert came == ({"bundle.unverified-2"} if outcome.startswith("unverified") else set())


@pytest.mark.parametrize("content", ["{}", "[]", '{"name": "a web page"}', "\xff"])
def test_a_folder_with_a_manifest_of_something_else_is_no_bundle(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ExportError, match="exists and is not a bundle"):
        refuse_other_folder(tmp_path)
