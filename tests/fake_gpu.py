"""A simulated GPU: CUDA's calls on ordinary memory, TensorRT's runtime over ONNX Runtime.

It replaces only what needs the hardware. Parsing and building are TensorRT-RTX's own. Memory is real
memory, so that a wrong address, size or order gives wrong numbers, and a captured graph replays the
captured calls on their addresses. It shows that our calls are right where CUDA behaves as documented, and
nothing about speed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
from cuda.bindings import runtime as cudart

SUCCESS = cudart.cudaError_t.cudaSuccess
PRODUCT = '{"Name": "product", "LayerType": "gemm", "TacticName": "sm87_i8i8_gemm"}'
LAYERS = f'{{"Layers": [{PRODUCT}, {{"Name": "other_gemm"}}]}}'


class FakeCuda:
    """``cuda.bindings.runtime`` with its real constants. ``captures``: graphs can be captured."""

    def __init__(self, free_bytes: int = 2**30, captures: bool = True) -> None:
        self.free_bytes, self.captures = free_bytes, captures
        self.launches = 0
        self._memory: dict[int, Any] = {}
        self._recorded: list[Callable[[], None]] | None = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("cuda") and isinstance(getattr(cudart, name), type | int):
            return getattr(cudart, name)
        raise AttributeError(name)

    def do(self, work: Callable[[], None]) -> None:
        """Run the work now, or at each launch of the graph that is being captured."""
        if self._recorded is None:
            work()
        else:
            self._recorded.append(work)

    def cudaMemGetInfo(self) -> Any:  # noqa: N802
        return SUCCESS, self.free_bytes, 2 * self.free_bytes

    def cudaGetDeviceProperties(self, _: int) -> Any:  # noqa: N802
        return SUCCESS, SimpleNamespace(integrated=0)

    def cudaMalloc(self, size: int) -> Any:  # noqa: N802
        memory = ctypes.create_string_buffer(b"\xff" * size, size)
        self._memory[ctypes.addressof(memory)] = memory
        return SUCCESS, ctypes.addressof(memory)

    def cudaHostAlloc(self, size: int, _: int) -> Any:  # noqa: N802
        return self.cudaMalloc(size)

    def cudaFree(self, address: int) -> Any:  # noqa: N802
        del self._memory[address]
        return (SUCCESS,)

    cudaFreeHost = cudaFree  # noqa: N815

    def cudaStreamCreate(self) -> Any:  # noqa: N802
        return SUCCESS, 1

    def cudaStreamDestroy(self, _: int) -> Any:  # noqa: N802
        return (SUCCESS,)

    cudaStreamSynchronize = cudaGraphDestroy = cudaGraphExecDestroy = cudaStreamDestroy  # noqa: N815

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: Any, stream: int) -> Any:  # noqa: N802
        self.do(lambda: ctypes.memmove(to, source, size) and None)
        return (SUCCESS,)

    def cudaStreamBeginCapture(self, stream: int, mode: Any) -> Any:  # noqa: N802
        self._recorded = []
        return (SUCCESS,)

    def cudaStreamEndCapture(self, stream: int) -> Any:  # noqa: N802
        recorded, self._recorded = self._recorded, None
        if not self.captures:
            return cudart.cudaError_t.cudaErrorStreamCaptureInvalidated, None
        return SUCCESS, recorded

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> Any:  # noqa: N802
        return SUCCESS, graph

    def cudaGraphLaunch(self, graph: Any, stream: int) -> Any:  # noqa: N802
        self.launches += 1
        for work in graph:
            work()
        return (SUCCESS,)

    def cudaGetErrorString(self, status: Any) -> Any:  # noqa: N802
        return cudart.cudaGetErrorString(status)


class FakeTensorRt:
    """TensorRT-RTX's module with engines that run ``onnx`` on the processor, on the given addresses."""

    def __init__(self, rtx: Any, cuda: FakeCuda, onnx: Path) -> None:
        self._rtx, self._cuda, self._onnx = rtx, cuda, onnx
        self.deserialized: list[bytes] = []
        self.built = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rtx, name)

    def Builder(self, log: Any) -> Any:  # noqa: N802
        self.built += 1
        return self._rtx.Builder(log)

    def Runtime(self, log: Any) -> Any:  # noqa: N802
        return SimpleNamespace(deserialize_cuda_engine=self._deserialize)

    def _deserialize(self, plan: bytes) -> Any:
        self.deserialized.append(plan)
        return FakeEngine(self._rtx, self._cuda, onnxruntime.InferenceSession(self._onnx))


DTYPES = {"tensor(float)": (np.float32, "FLOAT"), "tensor(bool)": (np.bool_, "BOOL")}


class FakeEngine:
    def __init__(self, rtx: Any, cuda: FakeCuda, session: Any) -> None:
        self.rtx, self.cuda, self.session = rtx, cuda, session
        self.tensors = [*session.get_inputs(), *session.get_outputs()]
        self.num_io_tensors = len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return self.tensors[index].name

    def get_tensor_dtype(self, name: str) -> Any:
        return getattr(self.rtx.DataType, DTYPES[next(t for t in self.tensors if t.name == name).type][1])

    def create_execution_context(self) -> FakeContext:
        return FakeContext(self)

    def create_engine_inspector(self) -> Any:
        return SimpleNamespace(get_engine_information=lambda kind: LAYERS)


class FakeContext:
    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.addresses: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return True

    def execute_async_v3(self, stream: int) -> bool:
        shapes = dict(self.shapes)
        self.engine.cuda.do(lambda: self._execute(shapes))
        return True

    def _execute(self, shapes: dict[str, tuple[int, ...]]) -> None:
        assert shapes == self.shapes, "a graph was launched after its context went on to another shape"
        session = self.engine.session
        given = {}
        for tensor in session.get_inputs():
            dtype, shape = np.dtype(DTYPES[tensor.type][0]), shapes[tensor.name]
            size = int(np.prod(shape)) * dtype.itemsize
            memory = ctypes.string_at(self.addresses[tensor.name], size)
            given[tensor.name] = np.frombuffer(memory, dtype).reshape(shape)
        for tensor, value in zip(session.get_outputs(), session.run(None, given), strict=True):
            ctypes.memmove(self.addresses[tensor.name], value.tobytes(), value.nbytes)
