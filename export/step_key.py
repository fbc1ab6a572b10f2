"""Keys of export steps: a hash over everything that the result of a step depends on.

In: modules that a step runs through, values that it reads, hashes of its input files. Out: one hexadecimal
SHA-256. Paths and times do not count, so that equal content in two folders has the same key.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import json
import platform
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from vaemotion.contract.bundle import sha256_of

FORMAT = 1  # of the records in `export.step_store`
ROOT = Path(__file__).parents[1]
PACKAGES = ("calibration", "export", "runtime", "vaemotion")
# Packages that others load while a graph is traced, without an import in this project.
UNSEEN = {"torch": ("onnxscript",)}
PRINTING = {"rich"}  # packages that no result depends on


@dataclass(frozen=True)
class Code:
    """Modules of this project, and other packages that they import."""

    modules: frozenset[str]
    packages: frozenset[str]


def step_key(
    name: str, code: Iterable[str], defined_in: str, reads: Mapping[str, Any], files: Mapping[str, str]
) -> str:
    """Compute the key of a step.

    ``code``: names of modules, which count with everything that they import. ``defined_in``: the module
    that calls them, which counts alone. ``reads``: values, in JSON's types. ``files``: SHA-256 by name.
    """
    found = imported(tuple(code))
    parts = {
        "format": FORMAT,
        "step": name,
        "reads": reads,
        "files": files,
        "source": source_hash(found.modules | {defined_in}),
        "packages": versions(found.packages),
        "python": platform.python_version_tuple()[:2],
        "machine": platform.machine(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@cache
def imported(names: tuple[str, ...], root: Path = ROOT) -> Code:
    """Follow the imports of modules through this project, those within functions too.

    The ``__init__`` of a package counts only where it is imported itself.
    """
    modules: set[str] = set()
    packages: set[str] = set()
    waiting = list(names)
    while waiting:
        module = waiting.pop()
        if module in modules:
            continue
        modules.add(module)
        for name in _imports_of(_file_of(module, root), root):
            if name.partition(".")[0] in PACKAGES:
                waiting.append(name)
            else:
                packages.add(name.partition(".")[0])
    for package in packages & UNSEEN.keys():
        packages.update(UNSEEN[package])
    return Code(frozenset(modules), frozenset(packages - sys.stdlib_module_names - PRINTING))


def source_hash(modules: Iterable[str], root: Path = ROOT) -> str:
    """Hash the files of modules, by name and content."""
    entries = sorted((module, _module_hash(module, root)) for module in modules)
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


@cache
def _module_hash(module: str, root: Path) -> str:
    """Hash a module's file, once: an edit while an export runs does not change the code that is loaded."""
    return sha256_of(_file_of(module, root))


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Look up the installed version of each package by the name under which it is imported."""
    return {package: _version(package) for package in sorted(packages)}


def _imports_of(file: Path, root: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute in this project"
            package = node.module or ""
            inner = [f"{package}.{alias.name}" for alias in node.names]
            names.update(name if _is_module(name, root) else package for name in inner)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            constants = (arg.value for arg in node.args if isinstance(arg, ast.Constant))
            names.update(value for value in constants if isinstance(value, str))
    return names


def _file_of(module: str, root: Path) -> Path:
    path = root.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _is_module(name: str, root: Path) -> bool:
    return name.partition(".")[0] in PACKAGES and _file_of(name, root).is_file()


@cache
def _version(package: str) -> str:
    for distribution in _distributions().get(package, [package]):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "not installed"


@cache
def _distributions() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()
