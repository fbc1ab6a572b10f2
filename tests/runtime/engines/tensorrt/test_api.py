"""Every name of TensorRT and CUDA in our source exists in the supported versions.

This can be tested without a GPU: TensorRT's real bindings stand over a stub library, and cuda-python
needs none.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cuda.bindings import runtime as cudart

from runtime.engines import gpu
from runtime.engines.tensorrt import build as tensorrt_build
from runtime.engines.tensorrt import engine as tensorrt_engine
from runtime.engines.tensorrt import layers as tensorrt_layers
from runtime.engines.tensorrt import open as tensorrt_open
from tests.rtx import rtx_module
from tests.tensorrt_stub import VERSIONS, bindings, run_python

MODULES = (gpu, tensorrt_build, tensorrt_engine, tensorrt_layers, tensorrt_open)
TRT_ROOTS = {"trt", "self._trt", "found.module"}
CUDART_ROOTS = {"cudart", "self._cudart", "found.cudart"}
# The variables of our source that hold TensorRT's objects, and their classes.
OBJECTS = {
    "builder": "Builder",
    "config": "IBuilderConfig",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "error": "ParserError",
    "tensor": "ITensor",
    "made": "IOptimizationProfile",
    "context": "IExecutionContext",
    "engine": "ICudaEngine",
    "self._engine": "ICudaEngine",
    "self._runtime": "Runtime",
    "inspector": "EngineInspector",
}
TRT_OBJECT_MODULES = (tensorrt_build, tensorrt_engine)  # in other modules these variables hold other objects
CALLS_IN_CHAINS = {"ITimingCache.serialize"}  # config.get_timing_cache().serialize()
OVERRIDDEN = {f"IProgressMonitor.{name}" for name in ("phase_start", "step_complete", "phase_finish")} | {
    "ILogger.log"
}


def tree_of(module: Any) -> ast.AST:
    return ast.parse(Path(module.__file__).read_text())


def chains(tree: ast.AST) -> Iterator[str]:
    """Yield the longest attribute chains in a source: ``trt.Logger.ERROR``, ``builder.create_network``."""
    inner: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node not in inner:
            inner.update(child for child in ast.walk(node.value) if isinstance(child, ast.Attribute))
            dotted = ast.unparse(node)
            if re.fullmatch(r"[\w.]+", dotted):
                yield dotted
            else:  # part of it is a call: chains within it count by themselves
                inner.difference_update(ast.walk(node.value))


def names_under(roots: set[str], modules: tuple[Any, ...] = MODULES) -> set[str]:
    found = {chain for module in modules for chain in chains(tree_of(module))}
    return {
        chain.removeprefix(root + ".") for chain in found for root in roots if chain.startswith(root + ".")
    }


def tensorrt_names() -> set[str]:
    names = names_under(TRT_ROOTS)
    for variable, kind in OBJECTS.items():
        names |= {f"{kind}.{name}" for name in names_under({variable}, TRT_OBJECT_MODULES)}
    return names | CALLS_IN_CHAINS | OVERRIDDEN


LOOK_UP = """
import functools, json, sys
import tensorrt_bindings as trt
def exists(name):
    try: functools.reduce(getattr, name.split("."), trt)
    except AttributeError: return False
    return True
print(json.dumps([trt.__version__, [n for n in json.loads(sys.argv[1]) if not exists(n)]]))
"""


def test_the_names_that_we_use_are_found_in_our_source() -> None:
    names = tensorrt_names()
    for name in (
        "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
        "Builder.build_serialized_network",
        "IBuilderConfig.progress_monitor",
        "IExecutionContext.execute_async_v3",
        "ICudaEngine.create_engine_inspector",
        "ParserError.node_operator",
        "Runtime.deserialize_cuda_engine",
        "LayerInformationFormat.JSON",
    ):
        assert name in names


@pytest.mark.parametrize("version", VERSIONS)
def test_every_name_of_tensorrt_exists_in_the_real_bindings(version: str, tmp_path: Path) -> None:
    environment = bindings(version, tmp_path)
    names = sorted(tensorrt_names())
    found_version, absent = json.loads(
        run_python(LOOK_UP, environment, json.dumps([*names, "Builder.no_such_name"]))
    )
    assert found_version.startswith(version + ".")
    assert absent == ["Builder.no_such_name"]
    print(f"TensorRT {found_version}: {len(names)} names exist")


def test_every_name_of_tensorrt_exists_in_tensorrt_rtx() -> None:
    rtx = rtx_module()
    for name in tensorrt_names():
        value = rtx
        for part in name.split("."):
            value = getattr(value, part)


def test_every_name_of_cuda_exists_in_cuda_python() -> None:
    names = names_under(CUDART_ROOTS)
    names |= {f"cudaMemcpyKind.{name}" for name in names_under({"kind"}, (tensorrt_engine,))}
    assert {"cudaGetDeviceCount", "cudaGraphLaunch", "cudaMemcpyKind.cudaMemcpyHostToDevice"} <= names
    for name in names:
        value: Any = cudart
        for part in name.split("."):
            value = getattr(value, part)
    for name in names_under({"properties"}, (gpu,)):
        assert hasattr(cudart.cudaDeviceProp, name)


def test_every_call_of_cuda_has_the_arguments_that_it_takes() -> None:
    checked = 0
    for module in MODULES:
        for node in ast.walk(tree_of(module)):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if ast.unparse(node.func.value) not in CUDART_ROOTS:
                continue
            signature = getattr(cudart, node.func.attr).__doc__.splitlines()[0]  # "cudaMalloc(size_t size)"
            arguments = [part for part in signature[signature.index("(") + 1 : -1].split(",") if part]
            assert len(arguments) == len(node.args), f"{signature}: {ast.unparse(node)}"
            checked += 1
    assert checked > 10


NO_GPU = """
from runtime.engines.io import EngineUnavailable
from runtime.engines.gpu import load_tensorrt
from runtime.engines.tensorrt.open import find_tensorrt
print(load_tensorrt().__version__)
try: find_tensorrt()
except EngineUnavailable as reason: print(reason)
"""


@pytest.mark.parametrize("version", VERSIONS)
def test_tensorrt_without_a_gpu_is_left_out_with_cudas_message(version: str, tmp_path: Path) -> None:
    if cudart.cudaGetDeviceCount()[0] == cudart.cudaError_t.cudaSuccess:
        pytest.skip("this machine has a GPU")
    lines = run_python(NO_GPU, bindings(version, tmp_path)).splitlines()
    assert lines[0].startswith(version + ".")
    assert lines[1].startswith("no CUDA GPU: cudaGetDeviceCount failed: ")


def test_bindings_without_their_libraries_are_left_out_with_the_linkers_message(tmp_path: Path) -> None:
    environment = bindings(VERSIONS[0], tmp_path)
    del environment["LD_LIBRARY_PATH"]
    code = """
from runtime.engines.gpu import load_tensorrt
try: load_tensorrt()
except Exception as e: print(type(e).__name__, e)
"""
    printed = run_python(code, environment)
    assert printed.startswith("EngineUnavailable tensorrt is installed but cannot be loaded (libnv")
