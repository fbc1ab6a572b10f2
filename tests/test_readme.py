"""The README says what is there: its tree, its commands, its links."""

from __future__ import annotations

import re
from pathlib import Path

from typer.main import get_command

from vaemotion.cli import app

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
TREE = README.split("## How it is built")[1].split("\n\n")[1]


def tree_files() -> set[str]:
    """Python files of the annotated tree, by its indentation."""
    files: set[str] = set()
    folders: list[str] = []
    for line in TREE.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip()) - 4) // 2
        folders[depth:] = [name.rstrip("/")]
        if name.endswith(".py"):
            files.add("/".join(folders))
    return files


def test_the_annotated_tree_names_every_module_and_no_other() -> None:
    packages = ("vaemotion", "runtime", "calibration", "export")
    on_disk = {
        path.relative_to(ROOT).as_posix()
        for package in packages
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py"
    }
    assert tree_files() == on_disk
    assert all(len(line.split(None, 1)) == 2 or line.rstrip().endswith("/") for line in TREE.splitlines())


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
