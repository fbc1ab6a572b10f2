"""The borders between the packages, at run time: what the device imports works without torch."""

import subprocess
import sys
import tomllib

from tests.paths import ROOT

FORBIDDEN = ("torch", "transformers", "accelerate", "safetensors", "onnx")

# Runs in its own process: imports everything that the device runs, with a finder in front that refuses the
# rest.
IMPORT_THE_DEVICE = """
import importlib, pkgutil, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in FORBIDDEN:
            raise ImportError(f"{name} is forbidden on the device")

sys.meta_path.insert(0, Refuse())
names = ["calibration.venue"]
for package in ("runtime", "vaemotion.contract"):
    names.append(package)
    found = importlib.import_module(package)
    names += [module.name for module in pkgutil.walk_packages(found.__path__, package + ".")]
for name in names:
    importlib.import_module(name)
print(*names)
"""


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", f"FORBIDDEN = {FORBIDDEN!r}\n{code}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_device_imports_without_torch():
    done = run_python(IMPORT_THE_DEVICE)
    assert done.returncode == 0, done.stderr
    names = done.stdout.split()
    on_disk = [p for d in ("runtime", "vaemotion/contract") for p in (ROOT / d).rglob("*.py")]
    assert len(names) == len(on_disk) + 1  # nothing was overlooked


def test_the_blockade_really_blocks():
    done = run_python(IMPORT_THE_DEVICE + "\nimport torch.nn")
    assert done.returncode == 1
    assert "torch" in done.stderr.splitlines()[-1]


def test_the_written_borders_name_every_package_of_vaemotion():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    [of_runtime] = [c for c in contracts if c.get("source_modules") == ["runtime"]]
    children = {p.parent.name for p in (ROOT / "vaemotion").glob("*/__init__.py")} | {
        p.stem for p in (ROOT / "vaemotion").glob("*.py") if p.stem != "__init__"
    }
    assert set(of_runtime["forbidden_modules"]) == {f"vaemotion.{name}" for name in children - {"contract"}}
    [of_device] = [contract for contract in contracts if "torch" in contract.get("forbidden_modules", [])]
    assert set(of_device["forbidden_modules"]) == set(FORBIDDEN)
