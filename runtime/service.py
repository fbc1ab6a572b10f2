"""A run under a service's manager: what it tells systemd, and when only a new process can help.

In: how far the perception loop has come, and what made a run fail. Out: datagrams as sd_notify(3) describes them, without libsystemd; whether
to end with ``RESTART_ME``. ``runtime.service_unit`` writes the unit that goes with it.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping

RESTART_ME = os.EX_TEMPFAIL  # exit code 75: a new process may well work
STALLED_S = 10.0  # devices that are live, and no reading for so long: something hangs

# What CUDA says of an error that stays with the process: every later call gives it again, until the process ends. The numbers are those of
# cudaError_t, which TensorRT and ONNX Runtime print without the words. Memory that ran out, a wrong argument or an absent GPU is none of them.
_FATAL_GPU = re.compile(
    r"illegal memory access|unspecified launch failure|launch timed out|device-side assert|hardware (stack )?error"
    r"|illegal instruction|misaligned address|operation not supported on global/shared|invalid program counter"
    r"|uncorrectable (ecc|nvlink)|busy or unavailable|context is destroyed|client has been terminated"
    r"|cuda (error|failure):? (46|214|220|226|700|702|709|710|71[4-9]|721|999)\b"
    r"|cuda[^\n]{0,60}\bunknown error|cu(dnn|blas)_status_(execution_failed|internal_error|mapping_error)"
    r"|tensorrt could not run"
)
_GPU = re.compile(r"cuda|cudnn|cublas|tensorrt")


def is_fatal_gpu_error(error: BaseException) -> bool:
    """Whether an error, or one that it comes from, says that this process has lost its GPU: only a new one can have it again."""
    texts = (str(link).lower() for link in _chain(error))
    return any(_GPU.search(text) and _FATAL_GPU.search(text) for text in texts)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen = set[int]()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


class Watchdog:
    """Speaks to the service's manager at ``$NOTIFY_SOCKET``; without one, nothing happens. The perception loop owns it.

    The manager ends and restarts a process that does not call within ``$WATCHDOG_USEC``. It is called only while the loop advances and, where
    devices are live, makes readings: a thread that petted by itself would keep a hung installation alive for weeks.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = (
            f"\0{address[1:]}" if address.startswith("@") else address
        )  # @: Linux's abstract namespace
        self._socket: socket.socket | None = None
        if address.startswith(("/", "@")):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)  # a manager that hangs must not hang us
        self.pause_s = _pause_s(environment)
        self._next_s = -math.inf
        self._readings = self._moments = -1
        self._read_s = 0.0

    def ready(self, status: str = "") -> None:
        """The run has begun, or has read its configuration again. ``status``: what `systemctl status` shows."""
        self._send(f"READY=1\n{_status(status)}" if status else "READY=1")

    def status(self, text: str) -> None:
        self._send(_status(text))

    def reloading(self) -> None:
        """The configuration is being read again; ``ready`` tells the end of it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def progress(self, readings: int, moments: int, now_s: float, *, live: bool) -> None:
        """How many readings and moments there were by now. Moments go on without devices: to wait for one is no hang. ``live``: whether there is
        a device whose evidence should have become readings."""
        if readings != self._readings or not live:
            self._readings, self._read_s = readings, now_s
        stalled = moments == self._moments or now_s - self._read_s > STALLED_S
        if self.pause_s is not None and now_s >= self._next_s and not stalled:
            self._moments, self._next_s = moments, now_s + self.pause_s
            self._send("WATCHDOG=1")

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None

    def _send(self, message: str) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):  # nobody listens any more, or not now
                self._socket.sendto(message.encode(), self._address)


def _status(text: str) -> str:
    return f"STATUS={' '.join(text.split())}"


def _pause_s(environment: Mapping[str, str]) -> float | None:
    """Half of the time that the manager allows between two calls of this process; None where it does not watch."""
    microseconds = environment.get("WATCHDOG_USEC", "")
    if not microseconds.isdecimal() or environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(microseconds) / 2e6 or None
