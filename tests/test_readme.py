"""The README says what is there: its tree, its commands, its links."""

from __future__ import annotations

import re
import subprocess
import sys

from typer.main import get_command

from tests.paths import ROOT
from vaemotion.cli.main import app

README = (ROOT / "README.md").read_text()


def test_the_annotated_tree_is_up_to_date() -> None:
    """It names every module with the first line of its docstring."""
    command = [sys.executable, "scripts/annotated-tree", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    document = (ROOT / "docs" / "architecture.md").read_text()
    for package in ("vaemotion", "runtime", "calibration", "export"):
        for module in (ROOT / package).rglob("*.py"):
            assert module.name == "__init__.py" or f" {module.name} " in document, module


def test_the_imports_have_no_circle_and_the_rooms_lie_on_floors() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/rooms"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith("0 circles\n")


def test_every_link_leads_somewhere() -> None:
    for document in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "models").rglob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_every_command_in_the_readme_exists() -> None:
    known = get_command(app)
    for line in re.findall(r"^    vaemotion (.+)$", README, flags=re.M):
        for name in line.split()[0].split("|"):
            assert name in known.commands, line  # pyright: ignore[reportAttributeAccessIssue]
