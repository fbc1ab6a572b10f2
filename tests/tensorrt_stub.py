"""TensorRT's real Python bindings without TensorRT: over libraries that hold the ten symbols they link to and do nothing.

Names, enumerations and signatures are then the real ones of that version; nothing can be built or run. The wheels are small and come from
the package index; a test is skipped where it cannot be reached.
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

from runtime.engine_cache import cache_folder

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
HOME = Path(__file__).parents[1]


def bindings(version: str, folder: Path) -> dict[str, str]:
    """The environment of a process that can import ``tensorrt_bindings`` of a version; skips where that cannot be had."""
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
    """Downloaded once; kept among the project's own cached files."""
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
    """Standard output of a Python program; its errors are the test's."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
