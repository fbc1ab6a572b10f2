"""Open Sound Control (OSC 1.0 over UDP) to a show. The contract is docs/osc.md; ``runtime.controls`` is the way back.

In: messages and, once a second, a ``Status``. Out: one bundle for each, so that a receiver sees values of one moment together.
Nobody answers: a receiver that is slow, dead or absent costs an error that is counted, never a moment.
"""

from __future__ import annotations

import socket

from pythonosc.osc_bundle_builder import IMMEDIATELY, OscBundleBuilder
from pythonosc.osc_message_builder import OscMessageBuilder

from runtime.messages import End, Message, Narration, Notice, Reading, Start, Status
from vaemotion.contract.errors import UsageError, UserError

PREFIX = "/vaemotion/1"  # the address map's version: an address that is in it keeps its meaning
ABSENT = -1.0  # an age or a latency that there is not: OSC has no word for it that every receiver knows
FAR = -1e6  # the same for a value that may be -1
TEXT_BYTES = 1000  # of a text, at most

Value = float | int | str
Values = list[tuple[str, Value]]  # address without PREFIX → value; its Python type is its OSC type


def parse_endpoint(text: str, option: str, default_host: str = "") -> tuple[str, int]:
    """Host and port from HOST:PORT, or from PORT where there is a default host. Raises UsageError."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or default_host
    if not host or not (port.isascii() and port.isdecimal() and len(port) <= 5 and 1 <= int(port) <= 65_535):
        form = "PORT or HOST:PORT" if default_host else "HOST:PORT"
        raise UsageError(f"{option} takes {form} with a port from 1 to 65535, got {text!r}")
    return host, int(port)


def resolve(host: str, port: int, option: str) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """A UDP endpoint's family and address. Raises UserError when the host cannot be found."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    except (OSError, UnicodeError) as error:
        raise UserError(f"{option}: the host {host!r} cannot be found; give its IP address") from error
    return family, (str(address[0]), port)


class OscSink:
    """Sends to one receiver. While the show is muted it holds readings and narrations back; status and heartbeat go on."""

    def __init__(self, host: str, port: int) -> None:
        """Raises UserError when the host cannot be found. Whether anybody listens there is not asked."""
        self._family, self._receiver = resolve(host, port, "--out osc")
        self._socket: socket.socket | None = None
        self._facts: Values = []
        self._muted, self._beat = False, -1
        self.send_errors = 0

    def publish(self, message: Message) -> None:
        match message:
            case Start():
                self._facts = facts_of(message)
                self._send(self._facts)
            case Reading() if not self._muted:
                self._send(values_of(message))
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
                self._send(heartbeat + status_of(message, self.send_errors) + self._facts)
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
        """One bundle. An error is counted and a new socket tried once: what UDP reports belongs to the datagram before, and a
        socket outlives neither a network that went nor an address that changed."""
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
    """An OSC bundle, to be acted on at once: a float is sent as f, an int as i, a text as s."""
    builder = OscBundleBuilder(IMMEDIATELY)
    for address, value in values:
        message = OscMessageBuilder(PREFIX + address)
        if isinstance(value, str):
            text = value.replace("\0", " ").encode()[:TEXT_BYTES].decode(errors="ignore")
            message.add_arg(text, "s")
        else:
            message.add_arg(value, "i" if isinstance(value, int) else "f")
        builder.add_content(message.build())
    return builder.build().dgram


def values_of(reading: Reading) -> Values:
    """A reading's addresses: always all of them, so that channels do not come and go."""
    ages_s = {"visual": reading.visual_age_s, "audio": reading.audio_age_s}
    return [
        ("/time_s", reading.time_s),
        ("/valence", reading.valence),
        ("/arousal", reading.arousal),
        ("/spread/valence", reading.valence_sd),
        ("/spread/arousal", reading.arousal_sd),
        *((f"/emotion/{name.replace(' ', '_')}", share) for name, share in reading.emotions.items()),
        ("/path", reading.path),
        *((f"/age/{modality}_s", _or_absent(age_s)) for modality, age_s in ages_s.items()),
        ("/latency_ms", _or_absent(reading.latency_ms)),
        ("/confidence", _or_absent(reading.confidence)),
        ("/interval/valence", _or_absent(reading.valence_interval)),
        ("/interval/arousal", _or_absent(reading.arousal_interval)),
        ("/label", reading.label or ""),
        ("/state", reading.state or ""),
    ]


def _or_absent(value: float | None) -> float:
    return ABSENT if value is None else value


def facts_of(start: Start) -> Values:
    """What runs on what. Sent again with every status, for receivers that start later."""
    return [
        ("/status/version", start.version),
        ("/status/bundle", start.bundle),
        ("/status/source", start.source),
        ("/status/pace", start.pace),
        ("/status/engine", "; ".join(start.engines)),
    ]


def status_of(status: Status, send_errors: int) -> Values:
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
        ("/status/skew_ms", FAR if status.skew_ms is None else status.skew_ms),
        ("/status/drift_ppm", FAR if status.drift_ppm is None else status.drift_ppm),
        ("/status/latency_p99_ms", _or_absent(status.latency_p99_ms)),
        ("/status/latency_p99_narrating_ms", _or_absent(status.latency_p99_narrating_ms)),
        (
            "/status/clock_synchronised",
            -1 if status.clock_synchronised is None else int(status.clock_synchronised),
        ),
        ("/status/narrator", status.narrator),
    ]
