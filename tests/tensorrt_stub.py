"""TensorRT's real Python bindings over stub libraries that hold only the symbols that they link to.

Names, enumerations and signatures are those of that version; nothing can be built or run. The wheels are
small and come from the package index; a test is skipped where the index cannot be reached.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from runtime.engines.cache import cache_folder
from tests.paths import ROOT

VERSIONS = ("10.16", "11.4")
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
SYMBOLS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
HOME = ROOT


def bindings(version: str, folder: Path) -> dict[str, str]:
    """Return the environment of a process that can import ``tensorrt_bindings`` of a version.

    Skips the test where the bindings or a compiler are missing.
    """
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        pytest.skip("the bindings are fetched for Linux x86-64")
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler for the stub libraries")
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(_wheel(version)) as wheel:
        wheel.extractall(folder)
    source = folder / "stub.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in SYMBOLS))
    major = version.partition(".")[0]
    for name in LIBRARIES:
        soname = f"lib{name}.so.{major}"
        command = [
            compiler,
            "-shared",
            "-fPIC",
            f"-Wl,-soname,{soname}",
            "-o",
            str(folder / soname),
            str(source),
        ]
        subprocess.run(command, check=True)
    search = os.pathsep.join((str(folder), str(HOME)))
    return {**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": search}


def _wheel(version: str) -> Path:
    """Return the wheel, which is downloaded once and kept among the project's cached files."""
    folder = cache_folder() / "test-wheels"
    pattern = f"tensorrt_cu13_bindings-{version}.*-cp{sys.version_info.major}{sys.version_info.minor}-*.whl"
    if not list(folder.glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        command += ["--dest", str(folder), f"tensorrt-cu13-bindings=={version}.*"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if done.returncode:
            pytest.skip(
                f"the bindings of TensorRT {version} cannot be downloaded: {done.stderr.strip()[-200:]}"
            )
    return sorted(folder.glob(pattern))[-1]


def run_python(code: str, environment: dict[str, str], *arguments: str) -> str:
    """Run a Python program and return its standard output; its errors fail the test."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
