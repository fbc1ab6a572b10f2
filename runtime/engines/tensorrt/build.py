"""Build a TensorRT engine from an ONNX file, on the device that will run it.

In: TensorRT's module, an ONNX file, the sizes of its batch and the GPU's free memory. Out: the engine's
bytes, or one sentence that names the node that TensorRT refuses or the memory that is missing.

The network is strongly typed: the graph states the precision (FP16 tensors, explicit Q/DQ). TensorRT 11
has no other way, and TensorRT 10 has this one, too. TF32 is off, so that FP32 means 32 bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from runtime.engines.cache import BatchProfile
from runtime.engines.io import EngineUnavailable
from vaemotion.contract.onnx_weights import graph_bytes
from vaemotion.contract.terminal import Terminal

MIB = 2**20
WORKSPACE_MAX_BYTES = 4096 * MIB
WORKSPACE_FLOOR_BYTES = 64 * MIB
WEIGHT_COPIES = 3  # of the weights in memory at once: parsed, packed for a tactic, in the engine


@dataclass(frozen=True)
class Built:
    """A built engine.

    ``plan``: its bytes; ``timing``: TensorRT's timing cache, which makes the next build faster, None
    where none was asked for.
    """

    plan: bytes
    timing: bytes | None
    workspace_bytes: int
    seconds: float


def build(
    trt: Any,
    onnx: Path,
    profile: BatchProfile,
    *,
    free_bytes: int,
    timing: bytes | None = None,
    monitor: Any = None,
) -> Built:
    """Parse and build; a build that runs out of memory is tried again with half the workspace.

    ``timing``: a timing cache, b"" to start one. ``monitor``: see ``progress_monitor``. Raises
    EngineUnavailable, and KeyboardInterrupt when the monitor was cancelled.
    """
    started_s = time.monotonic()
    log = _logger(trt)
    builder = trt.Builder(log)
    strongly_typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(strongly_typed)
    parser = trt.OnnxParser(network, log)  # owns the network's weights: keep it until the end
    parse(parser, onnx)
    workspace_bytes = first_workspace_bytes(onnx.name, graph_bytes(onnx), free_bytes)
    while True:
        log.messages.clear()
        config = _configure(trt, builder, network, profile, workspace_bytes, timing, monitor)
        plan = builder.build_serialized_network(network, config)
        if plan is not None:
            after = bytes(config.get_timing_cache().serialize()) if timing is not None else None
            return Built(bytes(plan), after, workspace_bytes, time.monotonic() - started_s)
        if monitor is not None and monitor.cancelled:
            raise KeyboardInterrupt
        workspace_bytes = next_workspace_bytes(onnx.name, workspace_bytes, log.messages)


def parse(parser: Any, onnx: Path) -> None:
    """Read an ONNX file into the parser's network. Raises EngineUnavailable naming the first refused node."""
    if parser.parse_from_file(str(onnx)):
        return
    if not parser.num_errors:
        raise EngineUnavailable(f"TensorRT cannot read {onnx.name}")
    error = parser.get_error(0)
    node, operator = error.node_name(), error.node_operator()
    where = f"node {node!r} ({operator})" if node or operator else "the file itself"
    more = f", and {parser.num_errors - 1} more" if parser.num_errors > 1 else ""
    reason = " ".join(error.desc().split())
    raise EngineUnavailable(f"TensorRT does not take {onnx.name}: {where}: {reason}{more}")


def first_workspace_bytes(name: str, onnx_bytes: int, free_bytes: int) -> int:
    """Return the first workspace size: the memory that is free beside the weights.

    Raises EngineUnavailable where that is less than ``WORKSPACE_FLOOR_BYTES``.
    """
    room_bytes = free_bytes - WEIGHT_COPIES * onnx_bytes
    if room_bytes < WORKSPACE_FLOOR_BYTES:
        needed = (WEIGHT_COPIES * onnx_bytes + WORKSPACE_FLOOR_BYTES) / MIB
        raise EngineUnavailable(
            f"building {name} needs about {needed:.0f} MiB of GPU memory and {free_bytes / MIB:.0f} MiB "
            "are free; close other programs"
        )
    return min(WORKSPACE_MAX_BYTES, room_bytes)


def next_workspace_bytes(name: str, workspace_bytes: int, messages: list[str]) -> int:
    """Halve the workspace after a build that lacked memory.

    Raises EngineUnavailable where a smaller workspace would not help.
    """
    lacked_memory = any("memory" in message.lower() for message in messages)
    reason = messages[-1] if messages else "it gives no reason"
    if lacked_memory and workspace_bytes > WORKSPACE_FLOOR_BYTES:
        return max(WORKSPACE_FLOOR_BYTES, workspace_bytes // 2)
    tried = (
        f" with {workspace_bytes / MIB:.0f} MiB of workspace; close other programs" if lacked_memory else ""
    )
    raise EngineUnavailable(f"TensorRT cannot build {name}{tried}: {reason}")


def _configure(
    trt: Any,
    builder: Any,
    network: Any,
    profile: BatchProfile,
    workspace_bytes: int,
    timing: bytes | None,
    monitor: Any,
) -> Any:
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for the inspector: each layer's types
    config.clear_flag(trt.BuilderFlag.TF32)
    config.add_optimization_profile(_batch_profile(builder, network, profile))
    if timing is not None:
        cache = config.create_timing_cache(timing)
        if not config.set_timing_cache(cache, False):  # made by another version, or on another GPU
            config.set_timing_cache(config.create_timing_cache(b""), False)
    if monitor is not None:
        config.progress_monitor = monitor
    return config


def _batch_profile(builder: Any, network: Any, profile: BatchProfile) -> Any:
    """Make the optimization profile: only the first dimension of each input, the batch, is free."""
    made = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        batch, *fixed = tensor.shape  # -1 where free
        if batch != -1 or -1 in fixed:
            raise EngineUnavailable(
                f"input {tensor.name!r} has the shape {tuple(tensor.shape)}: "
                "its first dimension, and no other, must be free"
            )
        sizes = (profile.minimum, profile.optimum, profile.maximum)
        made.set_shape(tensor.name, *((size, *fixed) for size in sizes))
    return made


def _logger(trt: Any) -> Any:
    """Make a logger that prints nothing and keeps errors and memory warnings in ``messages``."""

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            kept = (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR)
            if severity in kept or (severity == trt.ILogger.WARNING and "memory" in msg.lower()):
                self.messages.append(" ".join(msg.split()))

    return Log()


def progress_monitor(trt: Any, progress: Progress) -> Any:
    """Make a monitor that shows TensorRT's phases as bars.

    Ctrl-C sets ``cancelled``, because an exception must not pass through TensorRT's own stack frames.
    """

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.cancelled = False
            self._bars: dict[str, TaskID] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._bars[phase_name] = progress.add_task(phase_name, total=num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return self._guarded(lambda: self._advance(phase_name, step))

        def phase_finish(self, phase_name: str) -> None:
            self._guarded(lambda: self._remove(phase_name))

        def _advance(self, phase_name: str, step: int) -> None:
            if phase_name in self._bars:
                progress.update(self._bars[phase_name], completed=step + 1)

        def _remove(self, phase_name: str) -> None:
            if phase_name in self._bars:
                progress.remove_task(self._bars.pop(phase_name))

        def _guarded(self, show: Callable[[], None]) -> bool:
            try:
                show()
            except KeyboardInterrupt:
                self.cancelled = True
            return not self.cancelled

    return Monitor()


def progress_bars(console: Terminal) -> Progress:
    """Make bars that vanish when the build is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True)


def timing_key(tensorrt_version: str, gpu_name: str, compute_capability: str) -> Mapping[str, str]:
    """Return the key of a timing cache; TensorRT checks it once more."""
    return {"timing of": tensorrt_version, "gpu": gpu_name, "compute_capability": compute_capability}
