"""Messages to a service manager such as systemd, and recognition of errors that need a new process.

In: the session's progress, and the error that made a run fail. Out: datagrams as sd_notify(3) describes them,
without libsystemd, and the decision to exit with ``RESTART_ME``. ``runtime.commands.install_service`` writes
the matching unit.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping

RESTART_ME = os.EX_TEMPFAIL  # exit code 75: the service manager starts a new process
STALLED_S = 10.0  # live devices without a reading for longer: the run hangs

# CUDA's messages for errors that stay with the process: every later call fails, too. The numbers are those
# of cudaError_t, which TensorRT and ONNX Runtime print without the words. Lack of memory, a wrong argument
# and an absent GPU are not among them.
_FATAL_GPU = re.compile(
    r"illegal memory access|unspecified launch failure|launch timed out|device-side assert"
    r"|hardware (stack )?error|illegal instruction|misaligned address"
    r"|operation not supported on global/shared|invalid program counter"
    r"|uncorrectable (ecc|nvlink)|busy or unavailable|context is destroyed|client has been terminated"
    r"|cuda (error|failure):? (46|214|220|226|700|702|709|710|71[4-9]|721|999)\b"
    r"|cuda[^\n]{0,60}\bunknown error|cu(dnn|blas)_status_(execution_failed|internal_error|mapping_error)"
    r"|tensorrt could not run"
)
_GPU = re.compile(r"cuda|cudnn|cublas|tensorrt")


def is_fatal_gpu_error(error: BaseException) -> bool:
    """Return True when an error, or one of its causes, says that this process has lost its GPU for good."""
    texts = (str(link).lower() for link in _chain(error))
    return any(_GPU.search(text) and _FATAL_GPU.search(text) for text in texts)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes."""
    seen = set[int]()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


class Watchdog:
    """A connection to the service manager at ``$NOTIFY_SOCKET``; without one, every call does nothing.

    The manager restarts a process that sends no keep-alive within ``$WATCHDOG_USEC``. The session sends
    it, and only while ticks advance and, with live devices, readings are made. A thread of its own that
    sent it would keep a hung process alive for weeks.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        # @ stands for Linux's abstract namespace.
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._socket: socket.socket | None = None
        if address.startswith(("/", "@")):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)  # a manager that hangs must not hang us
        self.pause_s = _pause_s(environment)
        self._next_s = -math.inf
        self._readings = self._ticks = -1
        self._read_s = 0.0

    def ready(self, status: str = "") -> None:
        """Report that the run has begun, or has read its configuration again.

        ``status``: the text that `systemctl status` shows.
        """
        self._send(f"READY=1\n{_status(status)}" if status else "READY=1")

    def status(self, text: str) -> None:
        """Set the text that `systemctl status` shows."""
        self._send(_status(text))

    def reloading(self) -> None:
        """Report that the configuration is being read again; ``ready`` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Report that the run is ending."""
        self._send("STOPPING=1")

    def progress(self, readings: int, ticks: int, now_s: float, *, live: bool) -> None:
        """Send a keep-alive if one is due and the run has advanced.

        ``readings``, ``ticks``: numbers so far. Ticks go on without devices: to wait for a device is not
        a hang. ``live``: a device is live whose evidence should have become readings.
        """
        if readings != self._readings or not live:
            self._readings, self._read_s = readings, now_s
        stalled = ticks == self._ticks or now_s - self._read_s > STALLED_S
        if self.pause_s is not None and now_s >= self._next_s and not stalled:
            self._ticks, self._next_s = ticks, now_s + self.pause_s
            self._send("WATCHDOG=1")

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None

    def _send(self, message: str) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):  # the manager has ended, or does not read now
                self._socket.sendto(message.encode(), self._address)


def _status(text: str) -> str:
    return f"STATUS={' '.join(text.split())}"


def _pause_s(environment: Mapping[str, str]) -> float | None:
    """Return half of the manager's time limit between two keep-alives; None where it sets none."""
    microseconds = environment.get("WATCHDOG_USEC", "")
    if not microseconds.isdecimal() or environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(microseconds) / 2e6 or None
