"""The way back from a show: what it asks of the runtime over OSC. The contract is docs/osc.md; ``runtime.sinks.osc`` sends.

In: ``/control/mute``, ``/control/resume`` and ``/control/ignore_audio <seconds>`` as UDP packets. A thread receives them into a
bounded mailbox, and the perception loop takes from it between two readings (``Desk``). Whatever else arrives is left out and
counted. Out: what the loop must do now, and the ``Status`` of each second.
"""

from __future__ import annotations

import contextlib
import math
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pythonosc.parsing import osc_types

from runtime.mailbox import Ring
from runtime.messages import Notice, Status
from runtime.sinks.osc import PREFIX, resolve
from vaemotion.contract.errors import UserError

HEARTBEAT_S = 1.0
MAX_IGNORE_S = 3600.0  # a typo must not deafen an installation for weeks
_PACKET_BYTES = 2048  # of an inbound packet; a longer one is cut, and then malformed
_MAILBOX = 64  # controls that wait for the next reading
_EPSILON_S = 1e-6


@dataclass(frozen=True)
class Control:
    """What a show asks for. ``seconds``: of ignore_audio."""

    name: Literal["mute", "resume", "ignore_audio"]
    seconds: float = 0.0


def parse_controls(packet: bytes) -> list[Control]:
    """The controls in a message or in a bundle of messages; a button's release (argument 0) is none. Raises ValueError for
    whatever is malformed or not ours. python-osc's own packet reader is not used: it logs what strangers send."""
    try:
        return [control for message in _messages(packet) for control in _controls(message)]
    except (osc_types.ParseError, struct.error, IndexError) as error:
        raise ValueError(f"not an OSC packet: {error}") from error


def _messages(packet: bytes) -> list[bytes]:
    if not packet.startswith(b"#bundle\0"):
        return [packet]
    messages, index = list[bytes](), 16  # behind the time tag: controls are acted on when they come
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
    """Receives controls on a UDP port. OSC knows no passwords: bind it to loopback, or to a network that is the show's own."""

    def __init__(self, host: str, port: int) -> None:
        """Raises UserError when the port cannot be had. Port 0: any free one, then in ``port``."""
        family, address = resolve(host, port, "--osc-in")
        self._ring: Ring[Control] = Ring(_MAILBOX, "drop-oldest")
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
        """Packets that were malformed or foreign, and controls that came too fast."""
        return self._refused + self._ring.dropped

    def take(self) -> list[Control]:
        """What came since the last call, oldest first."""
        return self._ring.take_all()

    def close(self) -> None:
        self._closing.set()
        self._thread.join(timeout=1.0)
        self._socket.close()

    def _receive(self) -> None:
        while not self._closing.is_set():
            with contextlib.suppress(OSError):  # nothing came, or a network went; it may come back
                self._sort(self._socket.recv(_PACKET_BYTES))

    def _sort(self, packet: bytes) -> None:
        try:
            for control in parse_controls(packet):
                self._ring.put(control)
        except ValueError:
            self._refused += 1
        self.packets += 1


class Desk:
    """What the show asked for, and when its next heartbeat is due. The perception loop owns it."""

    def __init__(
        self, controls: Controls | None = None, wall_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._controls, self._wall_s = controls, wall_s
        self.muted = False
        self.deaf = False  # the sound that came since the last moment is the show's own: not to be perceived
        self._deaf_until_s = self._attended_s = self._next_beat_s = 0.0
        self._began_wall_s = wall_s()
        self._last: tuple[float, float] | None = None  # of the last status: the run's clock, the wall's
        self._obeyed = 0

    @property
    def dropped(self) -> dict[str, int]:
        """For the run's end."""
        return {} if self._controls is None else {"control packets": self._controls.ignored}

    def obey(self, now_s: float) -> list[Notice]:
        """Do what was asked for since the last moment, and say so. Once a moment, before its sound is perceived."""
        controls = [] if self._controls is None else self._controls.take()
        for control in controls:
            if control.name == "ignore_audio":
                self._deaf_until_s = now_s + control.seconds if control.seconds else 0.0
            else:
                self.muted = control.name == "mute"
        if controls:
            self._next_beat_s = 0.0  # tell at once
        self._obeyed += len(controls)
        self.deaf = self._attended_s < self._deaf_until_s - _EPSILON_S
        self._attended_s = now_s
        return [Notice(round(now_s, 3), f"a control came: {_words(control)}") for control in controls]

    def status(self, now_s: float, readings: int, dropped_moments: int) -> Status | None:
        """The status of ``now_s``; None while none is due."""
        if now_s < self._next_beat_s - _EPSILON_S:
            return None
        beat, wall_s = int(now_s + _EPSILON_S), self._wall_s()
        self._next_beat_s = beat + HEARTBEAT_S
        media_before_s, wall_before_s = self._last or (now_s, wall_s)
        self._last = (now_s, wall_s)
        elapsed_s = wall_s - wall_before_s
        return Status(
            round(now_s, 3), "muted" if self.muted else "running", beat,
            uptime_s=wall_s - self._began_wall_s,
            realtime_ratio=(now_s - media_before_s) / elapsed_s if elapsed_s > 0 else 1.0,
            readings=readings,
            muted=self.muted,
            ignoring_audio_s=max(0.0, self._deaf_until_s - now_s),
            controls=self._obeyed,
            controls_ignored=0 if self._controls is None else self._controls.ignored,
            dropped_moments=dropped_moments,
        )  # fmt: skip


def _words(control: Control) -> str:
    return f"{control.name} {control.seconds:g} s" if control.name == "ignore_audio" else control.name
