"""Controls from a show over OSC. docs/osc.md is the contract; ``runtime.sinks.osc`` is the way out.

In: ``/control/mute``, ``/control/resume`` and ``/control/ignore_audio <seconds>`` as UDP packets. A thread
receives them into a bounded queue, and the session takes them from it once a tick (``ControlState``). Every
other packet is counted and left out.
"""

from __future__ import annotations

import contextlib
import math
import socket
import struct
import threading
from dataclasses import dataclass
from typing import Literal

from pythonosc.parsing import osc_types

from runtime.endpoints import resolve
from runtime.mailbox import BoundedQueue
from runtime.messages import Notice
from runtime.sinks.osc import PREFIX
from vaemotion.contract.errors import UserError
from vaemotion.contract.windows import EPSILON_S

MAX_IGNORE_S = 3600.0  # a typo must not silence an installation's microphone for weeks
_PACKET_BYTES = 2048  # of an inbound packet; a longer one is cut, and then malformed
_QUEUE_LENGTH = 64  # controls that wait for the next tick


@dataclass(frozen=True)
class Control:
    """One control. ``seconds``: argument of ignore_audio."""

    name: Literal["mute", "resume", "ignore_audio"]
    seconds: float = 0.0


def parse_controls(packet: bytes) -> list[Control]:
    """Return the controls in an OSC message or a bundle of messages. A button's release (argument 0) is none.

    Raises ValueError for a packet that is malformed or not a control. The packet reader of python-osc is not
    used, because it logs what strangers send.
    """
    try:
        return [control for message in _messages(packet) for control in _controls(message)]
    except (osc_types.ParseError, struct.error, IndexError) as error:
        raise ValueError(f"not an OSC packet: {error}") from error


def _messages(packet: bytes) -> list[bytes]:
    if not packet.startswith(b"#bundle\0"):
        return [packet]
    messages, index = list[bytes](), 16  # after the time tag: controls apply on arrival
    while index < len(packet):
        size, index = osc_types.get_int(packet, index)
        if size <= 0 or index + size > len(packet):
            raise ValueError("a bundle's element is longer than the bundle")
        messages.append(packet[index : index + size])
        index += size
    return messages


def _controls(message: bytes) -> list[Control]:
    address, index = osc_types.get_string(message, 0)
    tags, index = osc_types.get_string(message, index) if index < len(message) else (",", index)
    readers = {"f": osc_types.get_float, "i": osc_types.get_int, "d": osc_types.get_double}
    number = {",": None, ",T": 1.0, ",F": 0.0}.get(tags, math.nan)
    if len(tags) == 2 and tags[1] in readers:
        number, index = readers[tags[1]](message, index)
    if index != len(message) or (number is not None and not math.isfinite(number)):
        raise ValueError("a control takes one number or none")
    match address.removeprefix(PREFIX):
        case "/control/mute":
            return [] if number == 0 else [Control("mute")]
        case "/control/resume":
            return [] if number == 0 else [Control("resume")]
        case "/control/ignore_audio" if number is not None and 0 <= number <= MAX_IGNORE_S:
            return [Control("ignore_audio", float(number))]
        case _:
            raise ValueError(f"no control: {address!r}")


class Controls:
    """Receive controls on a UDP port.

    OSC has no passwords: bind it to loopback, or to a network that only the show uses.
    """

    def __init__(self, host: str, port: int) -> None:
        """Bind the port and start the receiving thread. Port 0 takes a free one, which ``port`` then holds.

        Raises UserError when the port cannot be bound.
        """
        family, address = resolve(host, port, "--osc-in")
        self._queue: BoundedQueue[Control] = BoundedQueue(_QUEUE_LENGTH, "drop-oldest")
        self._refused = 0
        self.packets = 0
        self._closing = threading.Event()
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        try:
            self._socket.bind(address)
        except OSError as error:
            self._socket.close()
            raise UserError(
                f"--osc-in: cannot listen on {host}:{port} ({error.strerror}); choose another port"
            ) from error
        self._socket.settimeout(0.2)
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._receive, name="osc controls", daemon=True)
        self._thread.start()

    @property
    def ignored(self) -> int:
        """Count of packets that were malformed or foreign, and of controls that came too fast."""
        return self._refused + self._queue.dropped

    def take(self) -> list[Control]:
        """Return the controls since the last call, oldest first."""
        return self._queue.take_all()

    def close(self) -> None:
        self._closing.set()
        self._thread.join(timeout=1.0)
        self._socket.close()

    def _receive(self) -> None:
        while not self._closing.is_set():
            with contextlib.suppress(OSError):  # timeout, or a network that may come back
                self._count(self._socket.recv(_PACKET_BYTES))

    def _count(self, packet: bytes) -> None:
        try:
            for control in parse_controls(packet):
                self._queue.put(control)
        except ValueError:
            self._refused += 1
        self.packets += 1


class ControlState:
    """The state that the show's controls have set. The session's thread owns it."""

    def __init__(self, controls: Controls | None = None) -> None:
        """Take the receiver of controls; None where no show controls the run."""
        self._controls = controls
        self.muted = False
        # The sound since the last tick is the show's own: it is not perceived.
        self.ignoring_audio = False
        self.applied = 0
        self._ignoring_until_s = self._last_tick_s = 0.0

    @property
    def ignored(self) -> int:
        """Count of packets that were malformed or foreign, and of controls that came too fast."""
        return 0 if self._controls is None else self._controls.ignored

    @property
    def dropped(self) -> dict[str, int]:
        """Counts for the run's ``End``."""
        return {} if self._controls is None else {"control packets": self.ignored}

    def ignoring_audio_s(self, now_s: float) -> float:
        """Seconds that sound will still be ignored."""
        return max(0.0, self._ignoring_until_s - now_s)

    def apply(self, now_s: float) -> list[Notice]:
        """Apply the controls that came since the last tick, and return a notice for each.

        Call it once a tick, before the tick's sound is perceived.
        """
        controls = [] if self._controls is None else self._controls.take()
        for control in controls:
            if control.name == "ignore_audio":
                self._ignoring_until_s = now_s + control.seconds if control.seconds else 0.0
            else:
                self.muted = control.name == "mute"
        self.applied += len(controls)
        self.ignoring_audio = self._last_tick_s < self._ignoring_until_s - EPSILON_S
        self._last_tick_s = now_s
        return [Notice(round(now_s, 3), f"control received: {_words(control)}") for control in controls]


def _words(control: Control) -> str:
    return f"{control.name} {control.seconds:g} s" if control.name == "ignore_audio" else control.name
