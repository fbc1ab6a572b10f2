"""Frames from a GStreamer pipeline in a process of its own.

PyPI's OpenCV has no GStreamer, and a plugin that hangs or dies must not take the runtime with it. In:
``csi:N`` or ``gst:PIPELINE`` (without its sink), and the size. Out: (H, W, 3) uint8 RGB arrays through a
pipe, or ``DeviceError`` with GStreamer's message.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from runtime.messages import Picture
from runtime.sources.config import CameraConfig
from runtime.sources.rhythm import Rhythm
from runtime.sources.supervision import DeviceError
from vaemotion.contract.address import Address

FIRST_S = 10.0  # for the first frame; a CSI camera needs some seconds
SILENT_S = 2.0  # between two frames; for slow cameras see Rhythm
END_S = 1.0  # for the process to end when asked, before it is killed
_POLL_S = 0.1
_LOG_BYTES = 4096  # of GStreamer's messages that are kept


def gstreamer_frames(config: CameraConfig, stop: threading.Event) -> Iterator[Picture]:
    """Run the pipeline and yield its frames until ``stop`` is set.

    Raises DeviceError when the pipeline cannot start, ends, or gives no data.
    """
    frames_fd, write_fd = os.pipe()
    try:
        # A pipe of its own, because plugins print on stdout. A session of its own, because the runtime
        # handles a terminal's Ctrl-C.
        process = subprocess.Popen(
            pipeline_command(config, write_fd),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(write_fd,),
            start_new_session=True,
        )
    except FileNotFoundError:
        os.close(frames_fd)
        raise DeviceError("gst-launch-1.0 is missing: install gstreamer1.0-tools") from None
    except BaseException:
        os.close(frames_fd)
        raise
    finally:
        os.close(write_fd)
    try:
        yield from _read(process, frames_fd, config, stop)
    finally:
        os.close(frames_fd)
        _end(process)


def pipeline_command(config: CameraConfig, fd: int) -> list[str]:
    """Return the command line of a pipeline that writes RGB frames to ``fd``; no shell runs it.

    Raises DeviceError for a pipeline with a quote left open.
    """
    width, height = config.width_px, config.height_px
    kind, _, source = config.device.reveal().partition(":")
    if kind == "csi":  # NVIDIA's documented way from the sensor to ordinary memory
        rate = Fraction(config.frame_rate_hz).limit_denominator(1001)
        size = f"width={width},height={height},framerate={rate.numerator}/{rate.denominator}"
        source = (
            f"nvarguscamerasrc sensor-id={int(source)} ! "
            f"video/x-raw(memory:NVMM),{size} ! nvvidconv ! video/x-raw,format=BGRx"
        )
    try:
        parts = shlex.split(source)
    except ValueError as error:
        raise DeviceError(f"the pipeline cannot be read: {error}") from None
    tail = (
        # a queue that keeps the newest frame only
        "queue leaky=downstream max-size-buffers=1 max-size-bytes=0 max-size-time=0 ! videoconvert ! "
        "videoscale add-borders=false ! "
        f"video/x-raw,format=RGB,width={width},height={height} ! fdsink fd={fd}"
    )
    return ["gst-launch-1.0", "-q", *parts, "!", *tail.split()]


def _read(
    process: subprocess.Popen[bytes], frames_fd: int, config: CameraConfig, stop: threading.Event
) -> Iterator[Picture]:
    assert process.stderr is not None
    width, height = config.width_px, config.height_px
    stride = -(-3 * width // 4) * 4  # GStreamer pads each row to a multiple of 4 bytes
    log, filled, frame = b"", 0, bytearray(height * stride)
    newest_s, limit_s, rhythm = time.monotonic(), FIRST_S, Rhythm()
    sources = [frames_fd, process.stderr.fileno()]
    while not stop.is_set():
        ready, _, _ = select.select(sources, [], [], _POLL_S)
        if process.stderr.fileno() in ready:
            text = os.read(process.stderr.fileno(), _LOG_BYTES)
            log = (log + text)[-_LOG_BYTES:]
            if not text:
                sources = [frames_fd]
        if frames_fd in ready:
            count = os.readv(frames_fd, [memoryview(frame)[filled:]])
            if count == 0:
                raise DeviceError(_reason(log + _rest(process), config.device))
            filled += count
        if filled == len(frame):
            newest_s = time.monotonic()
            rhythm.add(newest_s)
            limit_s = rhythm.limit_s(SILENT_S)
            rows = np.frombuffer(frame, np.uint8).reshape(height, stride)  # padded
            yield rows[:, : 3 * width].reshape(height, width, 3)
            filled, frame = 0, bytearray(height * stride)
        elif time.monotonic() - newest_s > limit_s:
            raise DeviceError(f"no data from the pipeline for {limit_s:.2g} s")


def _rest(process: subprocess.Popen[bytes]) -> bytes:
    """Return the messages that a process prints on its way out."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.communicate(timeout=END_S)[1]
    return b""


def _reason(log: bytes, pipeline: Address) -> str:
    """Return the first line of a log that names an error, else the last, without the pipeline's secrets."""
    lines = [line for line in log.decode(errors="replace").splitlines() if line.strip()]
    lines = lines or ["the pipeline ended"]
    line = next((line for line in lines if "ERROR" in line or "erroneous" in line), lines[-1])
    return pipeline.hide_in(line.strip())


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask the process and its children to end, then kill them."""
    for number in (signal.SIGINT, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_S)
    if process.stderr is not None:
        process.stderr.close()
