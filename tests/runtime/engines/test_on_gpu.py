"""Tests that need a GPU: ONNX Runtime's CUDA provider, recorded CUDA graphs, pinned copies.

They are skipped without one. Only TensorRT's engine is replaced, because it has no libraries for every
GPU: its kernels are PyTorch's, on the addresses and the stream that it is given. Memory, copies and graph
are CUDA's own.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from runtime.engines.cache import BatchProfile
from runtime.engines.gpu import find_gpu, free_device_bytes, load_cudart
from runtime.engines.open import OnnxRuntimeEngine, open_engine
from runtime.engines.tensorrt.engine import TensorRtEngine
from tests.runtime.engines.test_open import arrays, bundle, doubling
from vaemotion.contract.bundle import Component

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")


@pytest.fixture
def component(tmp_path: Path) -> Component:
    return doubling(tmp_path)


@pytest.fixture
def cuda_engine(tmp_path: Path, component: Component) -> OnnxRuntimeEngine:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime is not onnxruntime-gpu")
    return OnnxRuntimeEngine(tmp_path / component.path, component, threads=1, cuda=True)


def test_the_gpu_and_its_memory_are_found() -> None:
    cudart = load_cudart()
    gpu = find_gpu(cudart)
    assert gpu.name == torch.cuda.get_device_name(0)
    assert gpu.compute_capability == "{}.{}".format(*torch.cuda.get_device_capability(0))
    assert 0 < free_device_bytes(cudart) <= torch.cuda.get_device_properties(0).total_memory


def test_cuda_gives_what_the_processor_gives_at_any_batch_in_any_order(
    tmp_path: Path, component: Component, cuda_engine: OnnxRuntimeEngine
) -> None:
    reference = OnnxRuntimeEngine(tmp_path / component.path, component, threads=1)
    noise = np.random.default_rng(0)
    for size in (1, 3, 1, 1, 8, 1):
        given = {"x": noise.random((size, 3), np.float32), "keep": noise.random((size, 3)) > 0.5}
        got, expected = cuda_engine.run(given), reference.run(given)
        for name, array in expected.items():
            np.testing.assert_allclose(got[name], array, rtol=1e-6)


def test_a_graph_is_recorded_and_its_results_are_copies(cuda_engine: OnnxRuntimeEngine) -> None:
    assert cuda_engine.announcement.endswith("on CUDA")
    first = cuda_engine.run(arrays(1))["y"]
    kept = first.copy()
    cuda_engine.run({"x": arrays(1)["x"] + 1, "keep": arrays(1)["keep"]})
    np.testing.assert_array_equal(first, kept)


def test_a_machine_with_a_gpu_takes_it_and_says_so(
    tmp_path: Path, component: Component, cuda_engine: OnnxRuntimeEngine
) -> None:
    taken = open_engine(tmp_path, bundle(component), "emo_adapter", engine="cuda")
    assert taken.runs_on == "cuda"
    assert taken.announcement.startswith("emo_adapter (fp32): ONNX Runtime ")
    on_processor = open_engine(tmp_path, bundle(component), "emo_adapter", engine="cpu")
    assert on_processor.runs_on == "cpu"


class OnAddresses:
    """Device memory of another owner, as PyTorch reads it."""

    def __init__(self, address: int, shape: tuple[int, ...], kind: str) -> None:
        self.__cuda_array_interface__ = {
            "data": (address, False),
            "shape": shape,
            "typestr": kind,
            "version": 3,
        }


class TorchContext:
    """An execution context whose one kernel writes y = 2 x, on the stream that it is given."""

    def __init__(self) -> None:
        self.addresses: dict[str, int] = {}
        self.shape: tuple[int, ...] = ()

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = tuple(int(size) for size in shape)
        return True

    def execute_async_v3(self, stream: int) -> bool:
        x, y = (
            torch.as_tensor(OnAddresses(self.addresses[name], self.shape, "<f4"), device="cuda")
            for name in ("x", "y")
        )
        with torch.cuda.stream(torch.cuda.ExternalStream(stream)):
            torch.add(x, x, out=y)
        return True


def torch_for_tensorrt() -> Any:
    names = ("x", "y")
    engine = SimpleNamespace(
        num_io_tensors=2,
        get_tensor_name=names.__getitem__,
        get_tensor_dtype=lambda _: np.float32,
        create_execution_context=TorchContext,
    )
    return SimpleNamespace(
        __version__="stood in for by PyTorch",
        Logger=type("Logger", (), {"ERROR": 0, "__init__": lambda self, level: None}),
        Runtime=lambda _: SimpleNamespace(deserialize_cuda_engine=lambda plan: engine),
        nptype=lambda dtype: dtype,
    )


@pytest.mark.parametrize("size", [1, 2, 8, 20])
def test_pinned_copies_and_a_recorded_graph_carry_every_batch(component: Component, size: int) -> None:
    doubled = dataclasses.replace(component, inputs=component.inputs[:1], outputs=component.outputs[1:])
    cudart, profile = load_cudart(), BatchProfile()
    engine = TensorRtEngine(torch_for_tensorrt(), cudart, b"", doubled, profile)
    assert engine.without_graph == ""
    noise = np.random.default_rng(size)
    for batch in (size, 1, size, 1):
        x = noise.random((batch, 3), np.float32)
        np.testing.assert_array_equal(engine.run({"x": x})["y"], 2 * x)


def test_device_memory_is_given_back(component: Component) -> None:
    doubled = dataclasses.replace(component, inputs=component.inputs[:1], outputs=component.outputs[1:])
    x, y = (dataclasses.replace(spec, shape=("batch", 2**22)) for spec in (*doubled.inputs, *doubled.outputs))
    wide = dataclasses.replace(doubled, inputs=(x,), outputs=(y,))
    cudart = load_cudart()
    # The first engine allocates the memory that CUDA keeps for itself.
    TensorRtEngine(torch_for_tensorrt(), cudart, b"", wide, BatchProfile())
    before = free_device_bytes(cudart)
    for _ in range(20):
        TensorRtEngine(torch_for_tensorrt(), cudart, b"", wide, BatchProfile())
    assert before - free_device_bytes(cudart) < 2**26
