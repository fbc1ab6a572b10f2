"""What the tests of the web page share: a page that is served, its peers on sockets, and messages for it."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from websockets.sync.client import ClientConnection, connect

from runtime.messages import DeviceStatus, End, Reading, Start, Status
from runtime.sinks.web import WebSink
from vaemotion.contract.emotions import EMOTIONS, emotion_distribution

ROOT = Path(__file__).parents[1]
LOOPBACK = "127.0.0.1"
TOKEN = "0123456789abcdef"
SECRET = "only-for-those-with-the-token"
PATIENCE_S = 60
START = Start("tiny", "0" * 64, SECRET, "real", ("CPU",), {}, "1")
END = End(9.0, "source ended", "2026-01-01T00:00:00+00:00", 9.0, 90, 1, {})


def reading(time_s: float, valence: float = 0.5, arousal: float = -0.25) -> Reading:
    shares = dict(zip(EMOTIONS, emotion_distribution(valence, arousal).tolist(), strict=True))
    return Reading(time_s, valence, arousal, 0.1, 0.2, shares, "audio-visual", 0.05, 0.1, 41.5)


def status(time_s: float) -> Status:
    camera, microphone = DeviceStatus("frozen", 4.2, 3), DeviceStatus("live", 0.1)
    return Status(
        time_s, "engaged", int(time_s), 3600.0, 1.0, 90, False, 0.0, 0, 0, 12, 3, camera, microphone,
        skew_ms=-12.0, latency_p99_ms=68.0, clock_synchronised=False, narrator="slowed",
    )  # fmt: skip


def jpeg(brightness: int) -> bytes:
    encoded, picture = cv2.imencode(".jpg", np.full((24, 32, 3), brightness, np.uint8))
    assert encoded
    return picture.tobytes()


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.005)


@contextlib.contextmanager
def serving(**options) -> Iterator[WebSink]:
    with contextlib.closing(WebSink(LOOPBACK, 0, **options)) as sink:
        yield sink


@contextlib.contextmanager
def page(
    sink: WebSink, query: str = "", *, host: str = "", origin: str | None = "same"
) -> Iterator[ClientConnection]:
    """A WebSocket as the page opens it."""
    host = host or f"{LOOPBACK}:{sink.port}"
    origin = f"http://{host}" if origin == "same" else origin
    with (
        socket.create_connection((LOOPBACK, sink.port), timeout=PATIENCE_S) as raw,
        connect(
            f"ws://{host}/socket{query}", sock=raw, origin=origin, compression=None, proxy=None,
            ping_interval=None, open_timeout=PATIENCE_S, close_timeout=1,
        ) as connection,
    ):  # fmt: skip
        yield connection


def handshake(port: int, query: str = "") -> bytes:
    """A WebSocket's opening handshake as it is sent."""
    here = f"{LOOPBACK}:{port}"
    return (
        f"GET /socket{query} HTTP/1.1\r\nHost: {here}\r\nOrigin: http://{here}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()


def take(connection: ClientConnection) -> dict:
    return json.loads(connection.recv(timeout=PATIENCE_S))


def ask(port: int, *lines: str) -> bytes:
    """An HTTP request's whole answer."""
    with socket.create_connection((LOOPBACK, port), timeout=PATIENCE_S) as client:
        client.sendall("\r\n".join((*lines, "", "")).encode())
        return b"".join(iter(lambda: client.recv(65_536), b""))


def answer(sink: WebSink, path: str, host: str = "", method: str = "GET") -> bytes:
    return ask(sink.port, f"{method} {path} HTTP/1.1", f"Host: {host or f'{LOOPBACK}:{sink.port}'}")
