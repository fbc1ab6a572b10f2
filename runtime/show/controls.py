"""Controls from a show over OSC. docs/osc.md is the contract; ``runtime.sinks.osc`` is the way out.

In: ``/control/mute``, ``/control/resume`` and ``/control/ignore_audio <seconds>`` as UDP packets. A thread
receives them into a bounded queue, and the session takes them from it once a tick (``ControlState``). Every
other message is counted and left out.
"""

from __future__ import annotations

import contextlib
import math
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from pythonosc.parsing import osc_types

from runtime.endpoints import is_within, parse_networks, resolve
from runtime.mailbox import BoundedQueue
from runtime.messages import Notice
from runtime.sinks.osc import PREFIX
from vaemotion.contract.errors import UserError
from vaemotion.contract.windows import EPSILON_S

NOTICE_S = 1.0  # between two notices of controls, at least
MAX_IGNORE_S = 3600.0  # a typo must not silence an installation's microphone for weeks
_BUNDLE = b"#bundle\0"
_CONTROL_BYTES = 256  # of a control with its address, at most
_PACKET_BYTES = 65_536  # of an inbound packet: UDP has no longer one
_QUEUE_LENGTH = 64  # controls that wait for the next tick


@dataclass(frozen=True)
class Control:
    """One control. ``seconds``: argument of ignore_audio; ``sender``: numeric address of who sent it."""

    name: Literal["mute", "resume", "ignore_audio"]
    seconds: float = 0.0
    sender: str = field(default="", compare=False)


def parse_controls(packet: bytes) -> tuple[list[Control], int]:
    """Return the controls in an OSC message or bundle, and the count of what was none.

    Each message of a bundle stands for itself; a bundle may hold bundles. Counted are messages that are
    malformed or no control, and a bundle's rest from where it is damaged. A button's release (argument 0) is
    no control and is not counted. The packet reader of python-osc is not used, because it logs what strangers
    send.
    """
    controls, ignored = list[Control](), 0
    waiting = [packet]  # the next one last: bundles in bundles need no recursion
    while waiting:
        element = waiting.pop()
        try:
            if element.startswith(_BUNDLE):
                elements, whole = _elements(element)
                waiting += reversed(elements)
                ignored += not whole
            elif (control := _control(element)) is not None:
                controls.append(control)
        except (osc_types.ParseError, ValueError):
            ignored += 1
    return controls, ignored


def _elements(bundle: bytes) -> tuple[list[bytes], bool]:
    """Return the elements of a bundle, and False where it is damaged behind them."""
    # The time tag is left out: a control applies when it arrives.
    elements, index = list[bytes](), len(_BUNDLE) + 8
    while index + 4 <= len(bundle):
        size, index = osc_types.get_int(bundle, index)
        if not 0 < size <= len(bundle) - index:
            return elements, False
        elements.append(bundle[index : index + size])
        index += size
    return elements, index == len(bundle)


def _control(message: bytes) -> Control | None:
    """Return a message's control, None for a button's release.

    Raises ValueError or ParseError for any other message.
    """
    if len(message) > _CONTROL_BYTES:
        raise ValueError("longer than any control")
    address, index = osc_types.get_string(message, 0)
    tags, index = osc_types.get_string(message, index) if index < len(message) else (",", index)
    number, index = _argument(tags, message, index)
    if index != len(message):
        raise ValueError("a control takes one number or none")
    match address.removeprefix(PREFIX):
        case "/control/mute":
            return None if number == 0 else Control("mute")
        case "/control/resume":
            return None if number == 0 else Control("resume")
        case "/control/ignore_audio" if number is not None and 0 <= number <= MAX_IGNORE_S:
            return Control("ignore_audio", number)
        case _:
            raise ValueError(f"no control: {address!r}")


def _argument(tags: str, message: bytes, index: int) -> tuple[float | None, int]:
    """Return the number that a message has as its argument, None without one, and where it ends.

    ``tags``: its type tags (OSC 1.0, with the nonstandard types of the specification). Raises ValueError
    unless there is one number, or a text that is one, or nothing.
    """
    match tags:
        case "," | ",I" | ",N":  # an impulse (a "bang") and nil are no number
            return None, index
        case ",T" | ",F":
            return float(tags == ",T"), index
        case ",i":
            value, index = osc_types.get_int(message, index)
        case ",h":
            value, index = osc_types.get_int64(message, index)
        case ",f":
            value, index = osc_types.get_float(message, index)
        case ",d":
            value, index = osc_types.get_double(message, index)
        case ",s" | ",S":
            value, index = osc_types.get_string(message, index)
        case ",c":
            code, index = osc_types.get_int(message, index)
            value = chr(code & 0x7F)
        case _:
            raise ValueError(f"no number: {tags!r}")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"no number: {value!r}")
    return number, index


class Controls:
    """Receive controls on a UDP port.

    OSC has no passwords, and a sender's address can be forged in its own network: bind the port to loopback,
    or to a network that only the show uses, and name the show's machines.
    """

    def __init__(self, host: str, port: int, allow: Sequence[str] = ()) -> None:
        """Bind the port and start the receiving thread. Port 0 takes a free one, which ``port`` then holds.

        ``allow``: addresses and networks whose controls are taken; packets of others are counted as ignored.
        Empty: everybody's who can reach the port. Raises UserError when the port cannot be bound.
        """
        family, address = resolve(host, port, "--osc-in")
        self._allow = parse_networks(allow)
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
        """Count of messages that were malformed, foreign, not allowed or too fast."""
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
                packet, address = self._socket.recvfrom(_PACKET_BYTES)
                self._count(packet, str(address[0]))

    def _count(self, packet: bytes, sender: str) -> None:
        allowed = not self._allow or is_within(sender, self._allow)
        controls, ignored = parse_controls(packet) if allowed else ([], 1)
        for control in controls:
            self._queue.put(replace(control, sender=sender))
        self._refused += ignored
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
        # Changes that no notice has told: the newest one, and how many.
        self._newest: Control | None = None
        self._untold = 0
        self._next_notice_s = 0.0
        self._ignoring_until_s = self._last_tick_s = 0.0

    @property
    def ignored(self) -> int:
        """Count of messages that were malformed, foreign, not allowed or too fast."""
        return 0 if self._controls is None else self._controls.ignored

    @property
    def dropped(self) -> dict[str, int]:
        """Counts for the run's ``End``."""
        return {} if self._controls is None else {"control packets": self.ignored}

    def ignoring_audio_s(self, now_s: float) -> float:
        """Seconds that sound will still be ignored."""
        return max(0.0, self._ignoring_until_s - now_s)

    def apply(self, now_s: float) -> list[Notice]:
        """Apply the controls that came since the last tick, and return the notice that is due, if any.

        A control that changes nothing is not told; of changes within ``NOTICE_S`` after a notice the newest
        one is told then, with their count. Call it once a tick, before the tick's sound is perceived.
        """
        controls = [] if self._controls is None else self._controls.take()
        for control in controls:
            if self._change(control, now_s):
                self._newest, self._untold = control, self._untold + 1
        self.applied += len(controls)
        self.ignoring_audio = self._last_tick_s < self._ignoring_until_s - EPSILON_S
        self._last_tick_s = now_s
        return self._notices(now_s)

    def _change(self, control: Control, now_s: float) -> bool:
        """Apply a control; return True if it changes anything."""
        before = self.muted, self.ignoring_audio_s(now_s)
        if control.name == "ignore_audio":
            self._ignoring_until_s = now_s + control.seconds if control.seconds else 0.0
        else:
            self.muted = control.name == "mute"
        return before != (self.muted, self.ignoring_audio_s(now_s))

    def _notices(self, now_s: float) -> list[Notice]:
        control, count = self._newest, self._untold
        if control is None or now_s < self._next_notice_s - EPSILON_S:
            return []
        self._newest, self._untold, self._next_notice_s = None, 0, now_s + NOTICE_S
        sender = f" from {control.sender}" if control.sender else ""
        more = f" (changes before it: {count - 1})" if count > 1 else ""
        return [Notice(round(now_s, 3), f"control received{sender}: {_words(control)}{more}")]


def _words(control: Control) -> str:
    return f"{control.name} {control.seconds:g} s" if control.name == "ignore_audio" else control.name
