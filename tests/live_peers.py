"""Peers for tests of live devices: a sound server with a microphone, and network cameras that freeze.

Each is a process or a server of its own on loopback, and a context manager. A test is skipped where a
tool that it needs is not installed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import socketserver
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest

PATIENCE_S = 60.0  # for a condition to hold, before the test fails
SYSTEM_PYTHON = "/usr/bin/python3"  # GStreamer's bindings are the system's


def until(condition: Callable[[], object], what: str = "the condition", poll_s: float = 0.02) -> None:
    """Return as soon as the condition holds; ``what`` names it where it never does."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {PATIENCE_S:g} s: {what}"
        time.sleep(poll_s)


def need(*tools: str) -> None:
    """Skip the test unless all the tools are installed."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: scripts/system-packages --tests")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# The server only, without the machine's own sound cards.
_ALSA = """
pcm.pulse { type pulse hint { show on description "the room" } }
pcm.default { type pulse hint { show on description "the room" } }
"""


class SoundServer:
    """A private PulseAudio daemon whose microphone records what is played into its null sink.

    PortAudio finds it by ``PULSE_SERVER``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = f"unix:{folder}/native"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [
                *("pulseaudio", "-n", "--daemonize=no", "--exit-idle-time=-1", "--use-pid-file=no"),
                f"--load=module-native-protocol-unix socket={self.folder}/native auth-anonymous=1",
                "--load=module-null-sink sink_name=room rate=48000 channels=2",
                "--load=module-remap-source master=room.monitor source_name=microphone",
            ],
            env={**os.environ, "HOME": str(self.folder), "XDG_RUNTIME_DIR": str(self.folder)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        command = ("pactl", "--server", self.address, "list", "short", "sources")
        until(lambda: b"microphone" in subprocess.run(command, capture_output=True).stdout, "a sound server")

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def control(self, *command: str) -> None:
        """Run one of pactl's commands, such as suspend-source."""
        subprocess.run(["pactl", "--server", self.address, *command], check=True, capture_output=True)

    @contextlib.contextmanager
    def playing(self, samples: np.ndarray) -> Iterator[None]:
        """Play (n,) float32 at 48 kHz within the block."""
        command = ["paplay", "--server", self.address, "--device=room", "--raw"]
        command += ["--rate=48000", "--channels=1", "--format=float32le"]
        file = self.folder / "played.raw"
        file.write_bytes(samples.astype("<f4").tobytes())
        process = subprocess.Popen([*command, str(file)], stderr=subprocess.DEVNULL)
        try:
            yield
        finally:
            process.kill()
            process.wait()

    def close(self) -> None:
        if self._process is not None:
            self.signal(signal.SIGCONT)
            self.kill()


@contextlib.contextmanager
def sound_server(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, running: bool = True
) -> Iterator[SoundServer]:
    """Set up a sound server for this process and its children; it is started only where ``running``."""
    need("pulseaudio", "pactl", "paplay")
    server = SoundServer(folder)
    (folder / "asound.conf").write_text(_ALSA)
    monkeypatch.setenv("ALSA_CONFIG_PATH", str(folder / "asound.conf"))
    monkeypatch.setenv("PULSE_SERVER", server.address)
    monkeypatch.setenv("PULSE_LATENCY_MSEC", "20")
    try:
        if running:
            server.start()
        yield server
    finally:
        server.close()


def tone(frequency_hz: float, amplitude: float, duration_s: float) -> np.ndarray:
    """Return a sine of (n,) float32 at 48 kHz."""
    time_s = np.arange(round(48_000 * duration_s)) / 48_000
    return (amplitude * np.sin(2 * np.pi * frequency_hz * time_s)).astype(np.float32)


def numbered_frame(number: int, width: int = 160, height: int = 120) -> np.ndarray:
    """Draw (H, W, 3) uint8 RGB: red above blue, and a white square that moves with each number."""
    frame = np.zeros((height, width, 3), np.uint8)
    frame[: height // 2, :, 0] = frame[height // 2 :, :, 2] = 200
    left = number * 8 % (width - 16)
    frame[8:24, left : left + 16] = 255
    return frame


class MjpegServer:
    """A camera as MJPEG over HTTP at 25 frames a second.

    ``mode``: "moves", "same" (one frame again and again) or "silent".
    """

    def __init__(self, port: int) -> None:
        self.mode = "moves"
        self.connections = 0
        self.served_by_newest = 0  # frames to the newest connection
        self._closing = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.serve(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # a client that went away

        self._server: socketserver.BaseServer = Server(("127.0.0.1", port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def serve(self, request: BaseHTTPRequestHandler) -> None:
        self.connections += 1
        self.served_by_newest = 0
        request.send_response(200)
        request.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        request.end_headers()
        number = 0
        while not self._closing.wait(0.04):
            if self.mode == "silent":
                continue
            number += self.mode == "moves"
            bgr = numbered_frame(number)[..., ::-1]
            jpeg = cv2.imencode(".jpg", bgr)[1].tobytes()
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
            request.wfile.write(head.encode() + jpeg + b"\r\n")
            self.served_by_newest += 1

    def close(self) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def mjpeg_server(port: int) -> Iterator[MjpegServer]:
    server = MjpegServer(port)
    try:
        yield server
    finally:
        server.close()


_RTSP_SERVER = """
import sys
import gi
gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
Gst.init(None)
server = GstRtspServer.RTSPServer.new()
server.set_address("127.0.0.1")
server.set_service(sys.argv[1])
factory = GstRtspServer.RTSPMediaFactory.new()
factory.set_launch(
    "( videotestsrc is-live=true pattern=ball ! video/x-raw,format=I420,width=160,height=120,framerate=25/1 "
    "! openh264enc gop-size=25 ! rtph264pay config-interval=-1 name=pay0 pt=96 )"
)
factory.set_shared(True)
server.get_mount_points().add_factory("/ball", factory)
if server.attach(None) == 0:
    sys.exit("the port is taken")
print("ready", flush=True)
GLib.MainLoop().run()
"""


class RtspServer:
    """A network camera at ``url`` that shows a ball; a process that signals can freeze."""

    def __init__(self, port: int) -> None:
        self.url = f"rtsp://127.0.0.1:{port}/ball"
        self._process = subprocess.Popen(
            [SYSTEM_PYTHON, "-c", _RTSP_SERVER, str(port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            lines = self._process.communicate()[1].strip().splitlines()
            reason = lines[-1] if lines else "no reason given"
            pytest.skip(f"no RTSP server (scripts/system-packages --tests): {reason}")

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def rtsp_server(port: int) -> Iterator[RtspServer]:
    need(SYSTEM_PYTHON)
    server = RtspServer(port)
    try:
        yield server
    finally:
        server.close()
