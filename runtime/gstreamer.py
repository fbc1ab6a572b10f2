"""Pictures from a GStreamer pipeline in a process of its own: PyPI's OpenCV has no GStreamer, and a plugin that hangs or dies takes nothing with it.

In: ``csi:N`` or ``gst:PIPELINE`` (without its sink), and the size. Out: (H, W, 3) uint8 RGB arrays through a pipe, or ``DeviceError`` with what GStreamer said.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from runtime.config import CameraConfig
from runtime.live import DeviceError
from runtime.messages import Picture

FIRST_S = 10.0  # for the first picture; a CSI camera needs some seconds
SILENT_S = 2.0  # between two pictures
END_S = 1.0  # to end when asked, before it is killed
_POLL_S = 0.1
_LOG_BYTES = 4096  # of what GStreamer says; for weeks, nobody reads the rest


def raw_pictures(config: CameraConfig, stop: threading.Event) -> Iterator[Picture]:
    """Runs the pipeline until ``stop`` is set. Raises DeviceError when it cannot begin, ends, or gives nothing."""
    pictures, theirs = os.pipe()
    try:
        # A pipe of its own, because plugins print on stdout; a session of its own, because a terminal's Ctrl-C is ours to handle.
        process = subprocess.Popen(
            command(config, theirs), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            pass_fds=(theirs,), start_new_session=True,
        )  # fmt: skip
    except FileNotFoundError:
        os.close(pictures)
        raise DeviceError("gst-launch-1.0 is missing: install gstreamer1.0-tools") from None
    except BaseException:
        os.close(pictures)
        raise
    finally:
        os.close(theirs)
    try:
        yield from _read(process, pictures, config.width_px, config.height_px, stop)
    finally:
        os.close(pictures)
        _end(process)


def command(config: CameraConfig, fd: int) -> list[str]:
    """The pipeline as arguments; there is no shell. Raises DeviceError for a pipeline with a quote left open."""
    width, height = config.width_px, config.height_px
    kind, _, source = config.device.partition(":")
    if kind == "csi":  # NVIDIA's documented way from the sensor to memory that others can read
        rate = Fraction(config.frame_rate_hz).limit_denominator(1001)
        source = (
            f"nvarguscamerasrc sensor-id={int(source)} ! "
            f"video/x-raw(memory:NVMM),width={width},height={height},framerate={rate.numerator}/{rate.denominator} ! "
            "nvvidconv ! video/x-raw,format=BGRx"
        )
    try:
        parts = shlex.split(source)
    except ValueError as error:
        raise DeviceError(f"the pipeline cannot be read: {error}") from None
    tail = (
        "queue leaky=downstream max-size-buffers=1 max-size-bytes=0 max-size-time=0 ! videoconvert ! "  # the newest picture
        f"videoscale add-borders=false ! video/x-raw,format=RGB,width={width},height={height} ! fdsink fd={fd}"
    )
    return ["gst-launch-1.0", "-q", *parts, "!", *tail.split()]


def _read(
    process: subprocess.Popen[bytes], pictures: int, width: int, height: int, stop: threading.Event
) -> Iterator[Picture]:
    assert process.stderr is not None
    stride = -(-3 * width // 4) * 4  # GStreamer pads each row to a multiple of 4 bytes
    said, filled, picture = b"", 0, bytearray(height * stride)
    newest_s, limit_s = time.monotonic(), FIRST_S
    sources = [pictures, process.stderr.fileno()]
    while not stop.is_set():
        ready, _, _ = select.select(sources, [], [], _POLL_S)
        if process.stderr.fileno() in ready:
            text = os.read(process.stderr.fileno(), _LOG_BYTES)
            said = (said + text)[-_LOG_BYTES:]
            if not text:
                sources = [pictures]
        if pictures in ready:
            count = os.readv(pictures, [memoryview(picture)[filled:]])
            if count == 0:
                raise DeviceError(_reason(said + _rest(process)))
            filled += count
        if filled == len(picture):
            newest_s, limit_s = time.monotonic(), SILENT_S
            yield (
                np.frombuffer(picture, np.uint8)
                .reshape(height, stride)[:, : 3 * width]
                .reshape(height, width, 3)
            )
            filled, picture = 0, bytearray(height * stride)
        elif time.monotonic() - newest_s > limit_s:
            raise DeviceError(f"the pipeline gave nothing for {limit_s:g} s")


def _rest(process: subprocess.Popen[bytes]) -> bytes:
    """What it says on its way out."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.communicate(timeout=END_S)[1]
    return b""


def _reason(said: bytes) -> str:
    """The first line that tells of an error, else the last one, without the passwords of addresses."""
    lines = [line for line in said.decode(errors="replace").splitlines() if line.strip()] or [
        "the pipeline ended"
    ]
    line = next((line for line in lines if "ERROR" in line or "erroneous" in line), lines[-1])
    return re.sub(r"://\S*@", "://", line.strip())


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask it, then kill it, with all that it started."""
    for number in (signal.SIGINT, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_S)
    if process.stderr is not None:
        process.stderr.close()
