"""Shared parts of the web page's tests: a served page, its peers on sockets, and messages for it."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable, Iterator

import cv2
import numpy as np
from websockets.sync.client import ClientConnection, connect

from runtime.messages import DeviceStatus, End, Reading, Start, Status
from runtime.sinks.web import WebSink
from tests.live_peers import PATIENCE_S, until
from vaemotion.contract.emotions import EMOTIONS, emotion_distribution

LOOPBACK = "127.0.0.1"
TOKEN = "0123456789abcdef"
SECRET = "only-for-those-with-the-token"
START = Start("tiny", "0" * 64, SECRET, "real", ("CPU",), {}, "1")
END = End(9.0, "source ended", "2026-01-01T00:00:00+00:00", 9.0, 90, 1, {})


def reading(time_s: float, valence: float = 0.5, arousal: float = -0.25) -> Reading:
    shares = dict(zip(EMOTIONS, emotion_distribution(valence, arousal).tolist(), strict=True))
    return Reading(time_s, valence, arousal, 0.1, 0.2, shares, "audio-visual", 0.05, 0.1, 41.5)


def status(time_s: float) -> Status:
    camera, microphone = DeviceStatus("frozen", 4.2, 3), DeviceStatus("live", 0.1)
    return Status(
        time_s=time_s,
        state="engaged",
        beat=int(time_s),
        uptime_s=3600.0,
        realtime_ratio=1.0,
        readings=90,
        muted=False,
        ignoring_audio_s=0.0,
        controls=0,
        controls_ignored=0,
        dropped_moments=12,
        dropped_messages=3,
        camera=camera,
        microphone=microphone,
        skew_ms=-12.0,
        latency_p99_ms=68.0,
        clock_synchronised=False,
        narrator="slowed",
    )


def jpeg(brightness: int) -> bytes:
    encoded, data = cv2.imencode(".jpg", np.full((24, 32, 3), brightness, np.uint8))
    assert encoded
    return data.tobytes()


def wait_until(condition: Callable[[], object]) -> None:
    until(condition, poll_s=0.005)


@contextlib.contextmanager
def serving(**options) -> Iterator[WebSink]:
    with contextlib.closing(WebSink(LOOPBACK, 0, **options)) as sink:
        yield sink


@contextlib.contextmanager
def page(
    sink: WebSink, query: str = "", *, host: str = "", origin: str | None = "same"
) -> Iterator[ClientConnection]:
    """Open a WebSocket as the page does."""
    host = host or f"{LOOPBACK}:{sink.port}"
    origin = f"http://{host}" if origin == "same" else origin
    with (
        socket.create_connection((LOOPBACK, sink.port), timeout=PATIENCE_S) as raw,
        connect(
            f"ws://{host}/socket{query}",
            sock=raw,
            origin=origin,
            compression=None,
            proxy=None,
            ping_interval=None,
            open_timeout=PATIENCE_S,
            close_timeout=1,
        ) as connection,
    ):
        yield connection


def handshake(port: int, query: str = "") -> bytes:
    """Return the bytes of a WebSocket's opening handshake."""
    here = f"{LOOPBACK}:{port}"
    lines = (
        f"GET /socket{query} HTTP/1.1",
        f"Host: {here}",
        f"Origin: http://{here}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==",
        "Sec-WebSocket-Version: 13",
    )
    return "\r\n".join((*lines, "", "")).encode()


def take(connection: ClientConnection) -> dict:
    return json.loads(connection.recv(timeout=PATIENCE_S))


def ask(port: int, *lines: str) -> bytes:
    """Send an HTTP request and return its whole answer."""
    with socket.create_connection((LOOPBACK, port), timeout=PATIENCE_S) as client:
        client.sendall("\r\n".join((*lines, "", "")).encode())
        return b"".join(iter(lambda: client.recv(65_536), b""))


def answer(sink: WebSink, path: str, host: str = "", method: str = "GET") -> bytes:
    return ask(sink.port, f"{method} {path} HTTP/1.1", f"Host: {host or f'{LOOPBACK}:{sink.port}'}")
