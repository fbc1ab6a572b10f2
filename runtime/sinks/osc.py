"""Open Sound Control (OSC 1.0 over UDP) to a show, as docs/osc.md defines it.

In: messages and, once a second, a ``Status``. Out: one bundle for each, so that a receiver gets the values of
one tick together. Receivers do not answer: a slow, dead or absent one costs a counted error, and no time.
``runtime.show.controls`` receives what a show sends back.
"""

from __future__ import annotations

import re
import socket

from pythonosc.osc_bundle_builder import IMMEDIATELY, OscBundleBuilder
from pythonosc.osc_message_builder import OscMessageBuilder

from runtime.endpoints import resolve
from runtime.messages import End, Message, Narration, Notice, Reading, Start, Status

PREFIX = "/vaemotion/1"  # the address map's version: an address in it keeps its meaning
ABSENT = -1.0  # for None: OSC has no null that every receiver knows
ABSENT_SIGNED = -1e6  # the same for a value that may be -1
TEXT_BYTES = 1000  # of a text, at most
_NO_PART = re.compile(r"[^!-~]|[#*,/?\[\]{}]")  # what stands in no part of an address (OSC 1.0)

Value = float | int | str
Values = list[tuple[str, Value]]  # address without PREFIX → value; its Python type is its OSC type


class OscSink:
    """A sender to one receiver. While the show is muted it holds readings and narrations back."""

    def __init__(self, host: str, port: int) -> None:
        """Resolve the host, without a test of whether a program listens there.

        Raises UserError when the host cannot be found.
        """
        self._family, self._receiver = resolve(host, port, "--out osc")
        self._socket: socket.socket | None = None
        self._start: Values = []
        self._muted, self._beat = False, -1
        self.send_errors = 0

    def publish(self, message: Message) -> None:
        match message:
            case Start():
                self._start = start_values(message)
                self._send(self._start)
            case Reading() if not self._muted:
                self._send(reading_values(message))
            case Narration() if not self._muted:
                self._send(
                    [
                        ("/narration", message.text),
                        ("/narration_about_s", message.about_s),
                        ("/narration_age_s", message.age_s),
                    ]
                )
            case Status():
                self._muted = message.muted
                heartbeat: Values = [("/heartbeat", message.beat)] if message.beat != self._beat else []
                self._beat = message.beat
                self._send(heartbeat + status_values(message, self.send_errors) + self._start)
            case Notice():
                self._send([("/status/notice", message.text)])
            case End():
                self._send([("/status/state", "ended"), ("/status/reason", message.reason)])
            case _:
                pass

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None

    def _send(self, values: Values) -> None:
        """Send one bundle. After an error, which is counted, it is sent once more from a new socket.

        UDP reports an error at the datagram after the one that failed, and a socket does not survive a
        network that went down or an address that changed.
        """
        packet = bundle(values)
        for _ in range(2):
            try:
                if self._socket is None:
                    self._socket = self._connect()
                self._socket.send(packet)
                return
            except OSError:
                self.send_errors += 1
                self.close()

    def _connect(self) -> socket.socket:
        sender = socket.socket(self._family, socket.SOCK_DGRAM)
        try:
            sender.setblocking(False)
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sender.connect(self._receiver)
        except OSError:
            sender.close()
            raise
        return sender


def bundle(values: Values) -> bytes:
    """Encode an OSC bundle with the time tag "immediately": float as f, int as i, text as s."""
    builder = OscBundleBuilder(IMMEDIATELY)
    for address, value in values:
        message = OscMessageBuilder(PREFIX + address)
        if isinstance(value, str):
            text = value.replace("\0", " ").encode(errors="replace")[:TEXT_BYTES].decode(errors="ignore")
            message.add_arg(text, "s")
        else:
            message.add_arg(value, "i" if isinstance(value, int) else "f")
        builder.add_content(message.build())
    return builder.build().dgram


def reading_values(reading: Reading) -> Values:
    """Return a reading's addresses, always all of them, so that a receiver's channels stay the same."""
    ages_s = {"visual": reading.visual_age_s, "audio": reading.audio_age_s}
    return [
        ("/time_s", reading.time_s),
        ("/valence", reading.valence),
        ("/arousal", reading.arousal),
        ("/spread/valence", reading.valence_sd),
        ("/spread/arousal", reading.arousal_sd),
        *((f"/emotion/{_part(name)}", share) for name, share in reading.emotions.items()),
        ("/path", reading.path),
        *((f"/age/{modality}_s", _or_absent(age_s)) for modality, age_s in ages_s.items()),
        ("/latency_ms", _or_absent(reading.latency_ms)),
        ("/confidence", _or_absent(reading.confidence)),
        ("/interval/valence", _or_absent(reading.valence_interval)),
        ("/interval/arousal", _or_absent(reading.arousal_interval)),
        ("/label", reading.label or ""),
        ("/state", reading.state or ""),
    ]


def _part(name: str) -> str:
    """Return a name as one part of an address, which may hold no space and none of OSC's own signs."""
    return _NO_PART.sub("_", name)


def _or_absent(value: float | None) -> float:
    return ABSENT if value is None else value


def start_values(start: Start) -> Values:
    """Return bundle, source and engines; sent again with every status, for receivers that start later."""
    return [
        ("/status/version", start.version),
        ("/status/bundle", start.bundle),
        ("/status/source", start.source),
        ("/status/pace", start.pace),
        ("/status/engine", "; ".join(start.engines)),
    ]


def status_values(status: Status, send_errors: int) -> Values:
    """Return a status's addresses, with this sink's ``send_errors``."""
    synchronised = status.clock_synchronised
    return [
        ("/status/state", status.state),
        ("/status/muted", int(status.muted)),
        ("/status/ignoring_audio_s", status.ignoring_audio_s),
        ("/status/uptime_s", status.uptime_s),
        ("/status/realtime_ratio", status.realtime_ratio),
        ("/status/readings", status.readings),
        ("/status/dropped_moments", status.dropped_moments),
        ("/status/dropped_messages", status.dropped_messages),
        ("/status/send_errors", send_errors),
        ("/status/controls", status.controls),
        ("/status/controls_ignored", status.controls_ignored),
        ("/status/camera", status.camera.state),
        ("/status/microphone", status.microphone.state),
        ("/status/camera_losses", status.camera.losses),
        ("/status/microphone_losses", status.microphone.losses),
        ("/status/skew_ms", ABSENT_SIGNED if status.skew_ms is None else status.skew_ms),
        ("/status/drift_ppm", ABSENT_SIGNED if status.drift_ppm is None else status.drift_ppm),
        ("/status/latency_p99_ms", _or_absent(status.latency_p99_ms)),
        ("/status/latency_p99_narrating_ms", _or_absent(status.latency_p99_narrating_ms)),
        ("/status/clock_synchronised", -1 if synchronised is None else int(synchronised)),
        ("/status/narrator", status.narrator),
        ("/status/narrations", status.narrations),
        ("/status/narrations_withheld", sum(status.narrations_withheld.values())),
        ("/status/lost", sum(status.lost.values())),
    ]
