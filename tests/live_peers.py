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
from typing import Any

import av
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
    """A camera as MJPEG over HTTP.

    ``mode``: "moves", "same" (one frame again and again), "silent" or "refuses" (401); ``scale``: of its
    frames. ``begin_s``: time from a request to the first frame.
    """

    def __init__(self, port: int, rate_hz: float = 25.0, begin_s: float = 0.0) -> None:
        self.mode, self.scale = "moves", 1
        self._pause_s, self._begin_s = 1 / rate_hz, begin_s
        self.url = f"http://127.0.0.1:{port}/camera"
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
        if self.mode == "refuses":
            request.send_error(401, f"wrong password for {request.path}")
            return
        request.send_response(200)
        request.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        request.end_headers()
        number, pause_s = 0, self._begin_s
        while not self._closing.wait(pause_s):
            pause_s = self._pause_s
            if self.mode == "silent":
                continue
            number += self.mode == "moves"
            bgr = numbered_frame(number, 160 * self.scale, 120 * self.scale)[..., ::-1]
            jpeg = cv2.imencode(".jpg", bgr)[1].tobytes()
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
            request.wfile.write(head.encode() + jpeg + b"\r\n")

    def close(self) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def mjpeg_server(port: int, rate_hz: float = 25.0, begin_s: float = 0.0) -> Iterator[MjpegServer]:
    server = MjpegServer(port, rate_hz, begin_s)
    try:
        yield server
    finally:
        server.close()


BALL = (
    "videotestsrc is-live=true pattern=ball ! videoscale ! capsfilter name=size "
    "caps=video/x-raw,format=I420,width=160,height=120,framerate=25/1 "
    "! openh264enc gop-size=25 ! rtph264pay config-interval=-1 name=pay0 pt=96"
)
_RTSP_SERVER = """
import signal
import sys
import gi
gi.require_version("Gst", "1.0")
gi.require_version("GstRtsp", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtsp, GstRtspServer
Gst.init(None)
port, transport, pipeline = sys.argv[1:]
server = GstRtspServer.RTSPServer.new()
server.set_address("127.0.0.1")
server.set_service(port)
factory = GstRtspServer.RTSPMediaFactory.new()
factory.set_launch(f"( {pipeline} )")
factory.set_shared("is-live" in pipeline)
if transport == "udp":
    factory.set_protocols(GstRtsp.RTSPLowerTrans.UDP)
medias = []
factory.connect("media-configure", lambda _, media: medias.append(media.get_element()))

def enlarge():
    caps = Gst.Caps.from_string("video/x-raw,format=I420,width=320,height=240,framerate=25/1")
    medias[-1].get_by_name("size").set_property("caps", caps)
    return GLib.SOURCE_CONTINUE

def stop_clock():
    kept = []
    def stamp(_, info):
        buffer = info.get_buffer()
        kept.append(buffer.pts)
        buffer.pts = kept[0]
        return Gst.PadProbeReturn.OK
    sink = medias[-1].get_by_name("pay0").get_static_pad("sink")
    sink.add_probe(Gst.PadProbeType.BUFFER, stamp)
    return GLib.SOURCE_CONTINUE

GLib.unix_signal_add(GLib.PRIORITY_HIGH, signal.SIGUSR1, enlarge)
GLib.unix_signal_add(GLib.PRIORITY_HIGH, signal.SIGUSR2, stop_clock)
server.get_mount_points().add_factory("/camera", factory)
if server.attach(None) == 0:
    sys.exit("the port is taken")
print("ready", flush=True)
GLib.MainLoop().run()
"""


class RtspServer:
    """A network camera at ``url``, by default one that shows a ball.

    It is a process that signals can freeze. SIGUSR1 makes the ball's frames larger, SIGUSR2 stops the clock
    of the time stamps. ``transport``: "udp" offers RTP over UDP only.
    """

    def __init__(self, port: int, pipeline: str = BALL, transport: str = "") -> None:
        self.url = f"rtsp://127.0.0.1:{port}/camera"
        self._process = subprocess.Popen(
            [SYSTEM_PYTHON, "-c", _RTSP_SERVER, str(port), transport, pipeline],
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
def rtsp_server(port: int, pipeline: str = BALL, transport: str = "") -> Iterator[RtspServer]:
    need(SYSTEM_PYTHON)
    server = RtspServer(port, pipeline, transport)
    try:
        yield server
    finally:
        server.close()


def still_scene(
    file: Path, codec: str, frames: int, noise: float = 1.0, denoise: float = 1.0, *, clock: bool = False
) -> Path:
    """Write a still room with a sensor's noise, 25 frames a second, as cameras encode it (CRF 28).

    ``noise``: standard deviation, of 255; ``denoise``: share of the newest frame in a camera's average over
    time, 1 for none; ``clock``: the seconds stand in the picture.
    """
    random = np.random.default_rng(1)
    room = cv2.resize(random.uniform(40, 180, (12, 20, 3)).astype(np.float32), (320, 180))
    room += 2 * cv2.GaussianBlur(random.normal(0, 30, room.shape).astype(np.float32), (0, 0), 2)
    with av.open(str(file), "w") as container:
        stream: Any = container.add_stream(codec, 25, options={"crf": "28", "x265-params": "log-level=none"})
        stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p"
        stream.codec_context.thread_count = 1  # the same bits on every machine
        average = room
        for number in range(frames):
            seen = room + random.normal(0, noise, (180, 320, 1)).astype(np.float32)
            average = average + denoise * (seen - average)
            rgb = np.clip(average, 0, 255).astype(np.uint8)
            if clock:
                text = f"12:{number // 25 // 60:02}:{number // 25 % 60:02}"
                cv2.putText(rgb, text, (10, 30), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (255, 255, 255), 2)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode())
    return file
