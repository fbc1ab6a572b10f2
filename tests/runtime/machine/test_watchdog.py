"""Under systemd: keep-alives that depend on progress, and errors that need a new process."""

from __future__ import annotations

import importlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from runtime.engines.io import EngineError
from runtime.machine.watchdog import STALLED_S, Watchdog, is_fatal_gpu_error
from tests.paths import ROOT
from vaemotion.contract.errors import UserError

# --- the watchdog -------------------------------------------------------------------------------------


@pytest.fixture(params=["file", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[tuple[socket.socket, str]]:
    """Open a service manager's socket; yield it and its address."""
    address = (
        str(tmp_path / "notify")
        if request.param == "file"
        else f"@vaemotion-{os.getpid()}-{time.monotonic_ns()}"
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(address.replace("@", "\0", 1))
        listening.setblocking(False)
        yield listening, address


def received(manager: socket.socket) -> list[str]:
    messages: list[str] = []
    while True:
        try:
            messages.append(manager.recv(4096).decode())
        except BlockingIOError:
            return messages


class Watched:
    """A watchdog that must call every 4 s, and a manager that counts its calls."""

    def __init__(self, manager: socket.socket, address: str) -> None:
        self.manager, self.calls = manager, 0
        environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "4000000", "WATCHDOG_PID": str(os.getpid())}
        self.watchdog = Watchdog(environment)

    def during(self, ticks: range, readings: int | None, *, live: bool, stuck: bool = False) -> int:
        """Simulate ten ticks a second, with a reading each or none; return the number of keep-alives."""
        before = self.calls
        for k in ticks:
            reading = k if readings is None else readings
            self.watchdog.progress(reading, ticks[0] if stuck else k, k / 10, live=live)
            self.calls += received(self.manager).count("WATCHDOG=1")
        return self.calls - before


@pytest.fixture
def watched(manager: tuple[socket.socket, str]) -> Generator[Watched]:
    found = Watched(*manager)
    yield found
    found.watchdog.close()


def test_the_manager_receives_the_runs_state(manager: tuple[socket.socket, str]) -> None:
    watchdog = Watchdog({"NOTIFY_SOCKET": manager[1]})
    watchdog.ready("camera live,\nmicrophone absent")
    watchdog.status("100 readings")
    before_us = time.monotonic_ns() // 1000
    watchdog.reloading()
    watchdog.stopping()
    ready, status, reloading, stopping = received(manager[0])
    assert ready.splitlines() == ["READY=1", "STATUS=camera live, microphone absent"]
    assert (status, stopping) == ("STATUS=100 readings", "STOPPING=1")
    assert reloading.splitlines()[0] == "RELOADING=1"
    sent_us = int(reloading.partition("MONOTONIC_USEC=")[2])
    assert before_us <= sent_us <= time.monotonic_ns() // 1000
    watchdog.close()


def test_with_readings_keep_alives_come_at_half_of_the_allowed_time(watched: Watched) -> None:
    assert watched.during(range(200), None, live=True) == 10  # in 20 s


def test_keep_alives_go_on_without_devices(watched: Watched) -> None:
    assert watched.during(range(1000), 0, live=False) == 50


def test_without_new_ticks_there_are_no_keep_alives(watched: Watched) -> None:
    assert watched.during(range(100), None, live=True, stuck=True) == 1


def test_live_devices_without_readings_end_the_keep_alives_until_readings_come(watched: Watched) -> None:
    assert watched.during(range(600), 7, live=True) == STALLED_S / 2 + 1
    assert watched.during(range(600, 700), None, live=True) == 5
    assert watched.during(range(700, 1000), 7, live=False) == 15  # unplugged: a state, not a hang
    assert watched.during(range(1000, 1050), 7, live=True) > 0  # there is time for the first reading
    assert watched.during(range(1050, 2000), 7, live=True) <= STALLED_S / 2


@pytest.mark.parametrize(
    "environment",
    [
        {"WATCHDOG_USEC": "2000000"},
        {"NOTIFY_SOCKET": "", "WATCHDOG_USEC": "2000000"},
        {"NOTIFY_SOCKET": "vsock:2:1234", "WATCHDOG_USEC": "2000000"},
        {"NOTIFY_SOCKET": "/nowhere/notify", "WATCHDOG_USEC": "2000000"},
    ],
)
def test_without_a_manager_nothing_happens(environment: dict[str, str]) -> None:
    watchdog = Watchdog(environment)
    watchdog.ready("running")
    watchdog.progress(1, 1, 0.0, live=True)
    watchdog.close()
    watchdog.stopping()


@pytest.mark.parametrize(
    "more",
    [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}],
)
def test_a_manager_without_a_time_limit_gets_no_keep_alives(
    more: dict[str, str], manager: tuple[socket.socket, str]
) -> None:
    watchdog = Watchdog({"NOTIFY_SOCKET": manager[1], **more})
    for k in range(50):
        watchdog.progress(k, k, float(k), live=True)
    assert received(manager[0]) == []
    watchdog.ready()
    assert received(manager[0]) == ["READY=1"]
    watchdog.close()


def test_a_manager_that_does_not_read_never_blocks_the_run(manager: tuple[socket.socket, str]) -> None:
    watchdog = Watchdog({"NOTIFY_SOCKET": manager[1], "WATCHDOG_USEC": "2000000"})
    for k in range(5000):  # far more than a socket's queue holds
        watchdog.progress(k, k, float(k), live=True)
    assert 0 < len(received(manager[0])) < 5000  # the rest found no room
    watchdog.ready()
    assert received(manager[0])
    watchdog.close()


# --- errors that need a new process -------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Conv node. "
        "Name:'/conv1/Conv' Status Message: CUDNN failure 8: "
        "CUDNN_STATUS_EXECUTION_FAILED ; GPU=0 ; hostname=gallery ; expr=cudnnConvolutionForward(...)",
        "[ONNXRuntimeError] : 1 : FAIL : CUDA failure 700: an illegal memory access was encountered ; "
        "GPU=0 ; hostname=gallery ; expr=cudaStreamSynchronize(...)",
        "CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED ; GPU=0 ; hostname=gallery ; "
        "expr=cublasGemmHelper(...)",
        "CUDA failure 46: all CUDA-capable devices are busy or unavailable ; GPU=0",
        "CUDA failure 719: unspecified launch failure",
        "IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime (an illegal memory access was encountered)",
        "Error Code 1: Myelin ([exec_instruction.cpp:exec:1164] CUDA error 700 launching __myl_ReplMove "
        "kernel.)",
        "Error Code 1: Cuda Runtime (unknown error)",
        "cudaStreamSynchronize failed: unspecified launch failure",
        "vision_encoder (fp16): TensorRT could not run a batch of 1",
        "CUDA error: device-side assert triggered",
    ],
)
def test_a_lost_gpu_needs_a_new_process(text: str) -> None:
    assert is_fatal_gpu_error(RuntimeError(text))
    assert is_fatal_gpu_error(EngineError(text))


def test_the_cause_of_an_error_counts_too() -> None:
    reason, during = UserError("no reading"), UserError("no reading")
    reason.__cause__ = during.__context__ = EngineError("cudaGraphLaunch failed: misaligned address")
    assert is_fatal_gpu_error(reason)
    assert is_fatal_gpu_error(during)
    loop = RuntimeError("a loop")
    loop.__context__ = RuntimeError("of two")
    loop.__context__.__context__ = loop
    assert not is_fatal_gpu_error(loop)


@pytest.mark.parametrize(
    "text",
    [
        "CUDA failure 2: out of memory ; GPU=0 ; hostname=gallery ; expr=cudaMalloc((void**)&p, size);",
        "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got invalid dimensions for input: pixels",
        "CUDA failure 1: invalid argument",
        "Error Code 3: API Usage Error (Parameter check failed at: "
        "runtime/api/executionContext.cpp::enqueueV3)",
        "cudaGetDeviceCount failed: no CUDA-capable device is detected",
        "onnxruntime has no CUDA provider",
        "unspecified launch failure",  # of what?
        "the camera is busy or unavailable",
        "CUDA error 7001",
        "",
    ],
)
def test_other_errors_are_not_fatal(text: str) -> None:
    assert not is_fatal_gpu_error(RuntimeError(text))


def test_cudas_messages_for_errors_that_stay_with_the_process_are_known() -> None:
    cudart: Any = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    sticky = {46, 214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 810, 999}
    found: set[int] = set()
    for status in cudart.cudaError_t:
        words = cudart.cudaGetErrorString(status)[1].decode()
        if is_fatal_gpu_error(EngineError(f"cudaStreamSynchronize failed: {words}")):
            found.add(int(status))
    assert found - {53} == sticky  # 53, a launch failure "in prior launch", is only CUDA's old emulator's


def test_the_watchdog_loads_nothing_heavy() -> None:
    """A wrapper may use the watchdog before the engines are loaded."""
    heavy = "('numpy', 'onnxruntime', 'cv2')"
    code = f"import sys, runtime.machine.watchdog; print(*(m for m in {heavy} if m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert done.stdout == "\n"
    assert importlib.import_module("runtime.machine.watchdog").RESTART_ME == 75
