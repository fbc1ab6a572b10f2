"""Run a TensorRT engine: arrays in, arrays out, through pinned memory and one CUDA stream.

A batch of one, which a live run needs ten times a second, is one CUDA graph: copies and kernels are
launched in a single call. Other sizes run without a graph, in an execution context of their own, because
a graph holds its context's state. A batch above the profile's maximum runs in pieces.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.engines.cache import BatchProfile
from runtime.engines.gpu import call
from runtime.engines.io import Arrays, EngineError, EngineUnavailable, batch_of
from runtime.engines.tensorrt.layers import Layer, layers_of
from vaemotion.contract.bundle import Component, TensorSpec


@dataclass(frozen=True)
class Buffer:
    """One tensor's memory for the largest batch, on the device and, pinned, on the host."""

    spec: TensorSpec
    device_address: int
    host_address: int
    host: npt.NDArray[Any]  # (maximum, *fixed)

    def bytes_of(self, batch: int) -> int:
        """Return the size of a batch in bytes."""
        return self.host[:batch].nbytes


class TensorRtEngine:
    """A component on TensorRT."""

    runs_on = "tensorrt"

    def __init__(
        self, trt: Any, cudart: Any, plan: bytes, component: Component, profile: BatchProfile
    ) -> None:
        """Load the engine, allocate its memory, and record the CUDA graph.

        ``plan``: the serialized engine, known to be undamaged and built for this machine. Raises
        EngineUnavailable or EngineError.
        """
        self.component, self.profile = component, profile
        self.announcement = f"{component.label}: TensorRT {trt.__version__}"
        self._trt, self._cudart = trt, cudart
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))  # must outlive the engine
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineUnavailable(f"TensorRT {trt.__version__} cannot load the engine that it built")
        check_contract(trt, self._engine, component)
        self._stream = call(cudart, cudart.cudaStreamCreate(), "cudaStreamCreate")
        self._owned: list[tuple[Any, Any]] = [(cudart.cudaStreamDestroy, self._stream)]
        weakref.finalize(self, _release, self._owned)
        self._inputs = [self._allocate(spec) for spec in component.inputs]
        self._outputs = [self._allocate(spec) for spec in component.outputs]
        self._plain_context: Any = None  # made when a batch of another size comes
        self._graph, self.without_graph = self._capture_graph()

    def run(self, arrays: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Run one inference at any batch size. Raises EngineError naming an input that does not fit."""
        batch = batch_of(self.component, arrays)
        pieces = [self._run_piece(arrays, rows) for rows in pieces_of(batch, self.profile.maximum)]
        if len(pieces) == 1:
            return pieces[0]
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}

    def layers(self) -> tuple[Layer, ...]:
        """Return the engine's layers."""
        inspector = self._engine.create_engine_inspector()
        return layers_of(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def _run_piece(self, arrays: Arrays, rows: slice) -> dict[str, npt.NDArray[Any]]:
        batch = rows.stop - rows.start
        for buffer in self._inputs:
            np.copyto(buffer.host[:batch], arrays[buffer.spec.name][rows])
        if batch == 1 and self._graph is not None:
            call(self._cudart, self._cudart.cudaGraphLaunch(self._graph, self._stream), "cudaGraphLaunch")
        else:
            if self._plain_context is None:
                self._plain_context = self._new_context()
            self._set_batch(self._plain_context, batch)
            self._enqueue(self._plain_context, batch)
        self._synchronize()
        return {buffer.spec.name: buffer.host[:batch].copy() for buffer in self._outputs}

    def _enqueue(self, context: Any, batch: int) -> None:
        """Enqueue on the stream: copies to the device, kernels, copies back."""
        cudart, kind = self._cudart, self._cudart.cudaMemcpyKind
        for b in self._inputs:
            result = cudart.cudaMemcpyAsync(
                b.device_address, b.host_address, b.bytes_of(batch), kind.cudaMemcpyHostToDevice, self._stream
            )
            call(cudart, result, "cudaMemcpyAsync")
        if not context.execute_async_v3(int(self._stream)):
            raise EngineError(f"{self.component.label}: TensorRT could not run a batch of {batch}")
        for b in self._outputs:
            result = cudart.cudaMemcpyAsync(
                b.host_address, b.device_address, b.bytes_of(batch), kind.cudaMemcpyDeviceToHost, self._stream
            )
            call(cudart, result, "cudaMemcpyAsync")

    def _set_batch(self, context: Any, batch: int) -> None:
        for buffer in self._inputs:
            if not context.set_input_shape(buffer.spec.name, (batch, *buffer.host.shape[1:])):
                raise EngineError(f"{self.component.label}: TensorRT refuses a batch of {batch}")

    def _synchronize(self) -> None:
        call(self._cudart, self._cudart.cudaStreamSynchronize(self._stream), "cudaStreamSynchronize")

    def _new_context(self) -> Any:
        context = self._engine.create_execution_context()
        if context is None:
            raise EngineUnavailable("TensorRT cannot make an execution context; check the free GPU memory")
        for buffer in (*self._inputs, *self._outputs):
            context.set_tensor_address(buffer.spec.name, buffer.device_address)
        return context

    def _capture_graph(self) -> tuple[Any, str]:
        """Record the graph of a batch of one; return it and "", or None and the reason.

        A run without a graph comes first, because TensorRT sets itself up for a shape in its first run.
        """
        cudart = self._cudart
        context = self._new_context()
        self._set_batch(context, 1)
        self._enqueue(context, 1)
        self._synchronize()
        try:
            mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
            call(cudart, cudart.cudaStreamBeginCapture(self._stream, mode), "cudaStreamBeginCapture")
            try:
                self._enqueue(context, 1)
            finally:  # a stream left in capture mode would refuse everything that follows
                captured = cudart.cudaStreamEndCapture(self._stream)
            graph = call(cudart, captured, "cudaStreamEndCapture")
            self._owned.append((cudart.cudaGraphDestroy, graph))
            ready = call(cudart, cudart.cudaGraphInstantiate(graph, 0), "cudaGraphInstantiate")
        except EngineError as error:
            self._plain_context = context
            return None, str(error)
        self._owned.append((cudart.cudaGraphExecDestroy, ready))
        self._graph_context = context  # its memory is the graph's
        return ready, ""

    def _allocate(self, spec: TensorSpec) -> Buffer:
        cudart = self._cudart
        shape = (self.profile.maximum, *(int(size) for size in spec.shape[1:]))
        size_bytes = int(np.prod(shape)) * np.dtype(spec.dtype).itemsize
        device = call(cudart, cudart.cudaMalloc(size_bytes), "cudaMalloc")
        self._owned.append((cudart.cudaFree, device))
        host = call(cudart, cudart.cudaHostAlloc(size_bytes, cudart.cudaHostAllocDefault), "cudaHostAlloc")
        self._owned.append((cudart.cudaFreeHost, host))
        return Buffer(spec, int(device), int(host), array_at(int(host), shape, spec.dtype))


def array_at(address: int, shape: Sequence[int], dtype: str) -> npt.NDArray[Any]:
    """View memory that CUDA owns as an array, and zero it."""
    size_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = memoryview((ctypes.c_byte * size_bytes).from_address(address)).cast("B")
    array: npt.NDArray[Any] = np.frombuffer(memory, np.dtype(dtype)).reshape(shape)
    array[:] = 0
    return array


def pieces_of(batch: int, maximum: int) -> list[slice]:
    """Split the rows of a batch into pieces of at most ``maximum``."""
    return [slice(start, min(start + maximum, batch)) for start in range(0, batch, maximum)]


def check_contract(trt: Any, engine: Any, component: Component) -> None:
    """Check that the engine's tensors are the component's, by name and dtype. Raises EngineUnavailable."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    found = {name: np.dtype(trt.nptype(engine.get_tensor_dtype(name))) for name in names}
    expected = {spec.name: np.dtype(spec.dtype) for spec in (*component.inputs, *component.outputs)}
    if found != expected:
        differing = sorted(name for name in found.keys() | expected if found.get(name) != expected.get(name))
        raise EngineUnavailable(
            f"the TensorRT engine's tensors are not the manifest's: {', '.join(differing)}"
        )


def _release(owned: list[tuple[Any, Any]]) -> None:
    for free, handle in reversed(owned):
        free(handle)
