"""Cameras on real capture paths: an MJPEG and an RTSP server on loopback, GStreamer pipelines; what is evidence, on pictures made by hand."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.camera import OLD_S, SAME_LIMIT_S, Freshness, camera_stream
from runtime.clock import MonotonicClock
from runtime.config import CameraConfig
from runtime.gstreamer import command
from runtime.live import DeviceError, Supervised
from runtime.messages import Frame, Notice, once
from tests.live_peers import free_port, mjpeg_server, need, numbered_picture, rtsp_server, until


@dataclass
class Looker:
    """A supervised camera and what it gave."""

    device: Supervised
    clock: MonotonicClock
    frames: list[Frame] = field(default_factory=list[Frame])
    told: list[str] = field(default_factory=list[str])

    def state(self) -> str:
        for event in self.device.take(self.clock.now_s())[0]:
            if isinstance(event, Frame):
                self.frames.append(event)
            elif isinstance(event, Notice):
                self.told.append(event.text)
        return self.device.watch.state

    def wait_for(self, state: str) -> None:
        until(lambda: self.state() == state, f"{state}; it said {self.told}")

    def wait_for_frames(self, count: int) -> list[Frame]:
        first = len(self.frames)
        until(
            lambda: self.state() == "live" and len(self.frames) >= first + count,
            f"{count} frames; it said {self.told}",
        )
        return self.frames[first:]


@contextmanager
def looking(device: str, **keys: float) -> Iterator[Looker]:
    config, clock = CameraConfig(device=device, width_px=160, height_px=120, **keys), MonotonicClock()  # type: ignore[arg-type]
    supervised = Supervised("camera", lambda stop: camera_stream(config, clock, stop), clock, config.freeze_s)
    try:
        yield Looker(supervised, clock)
    finally:
        supervised.close()


def first_frames(device: str, count: int, **keys: float) -> list[Frame]:
    """What an unsupervised stream gives first."""
    config = CameraConfig(device=device, **keys)  # type: ignore[arg-type]
    stream = camera_stream(config, MonotonicClock(), threading.Event())
    return [next(stream) for _ in range(count)]


def reason(device: str) -> str:
    """Why a stream ended."""
    with pytest.raises(DeviceError) as raised:
        for _ in camera_stream(CameraConfig(device=device), MonotonicClock(), threading.Event()):
            pass
    return str(raised.value)


def grey(value: int) -> np.ndarray:
    return np.full((4, 6), value, np.uint8)


def test_an_mjpeg_camera_that_is_absent_comes_freezes_dies_and_comes_back() -> None:
    port = free_port()
    with looking(f"http://visitor:secret@127.0.0.1:{port}/video") as looker:
        until(lambda: looker.state() == "absent" and bool(looker.told), "a reason")
        assert looker.told == ["camera absent: connection refused"]
        with mjpeg_server(port) as server:
            frames = looker.wait_for_frames(10)
            times_s = [frame.time_s for frame in frames]
            assert times_s == sorted(times_s)
            assert 0 < times_s[-1] <= looker.clock.now_s()
            picture = frames[-1].picture()
            assert (picture.shape, picture.dtype) == ((120, 160, 3), np.uint8)
            assert np.abs(picture[40:55].mean((0, 1)) - (200, 0, 0)).max() < 12  # RGB, not BGR
            assert np.abs(picture[70:].mean((0, 1)) - (0, 0, 200)).max() < 12
            server.mode = "same"
            looker.wait_for("frozen")
            server.mode = "moves"
            looker.wait_for_frames(3)
            server.mode = "silent"
            looker.wait_for("lost")
            assert looker.told[-1] == "camera lost: it gave nothing for 2 s"
            server.mode = "same"  # a server that comes back with its old picture has not come back
            count = len(looker.frames)
            until(
                lambda: server.connections >= 2 and server.served_by_newest >= 10,
                "old pictures to a new visitor",
            )
            assert looker.state() == "lost"
            assert len(looker.frames) == count
            server.mode = "moves"
            looker.wait_for_frames(3)
        looker.wait_for("lost")
        with mjpeg_server(port):
            looker.wait_for_frames(3)
        assert not [text for text in looker.told if "secret" in text]


def test_a_picture_that_stays_is_welcome_where_that_is_configured_and_the_offset_is_taken_off() -> None:
    port = free_port()
    with mjpeg_server(port) as server:
        server.mode = "same"
        clock = MonotonicClock()
        config = CameraConfig(device=f"http://127.0.0.1:{port}/", freeze_s=0.0, offset_ms=2000.0)
        stream = camera_stream(config, clock, threading.Event())
        first, second = next(stream), next(stream)
        assert np.array_equal(first.picture(), second.picture())
        assert first.time_s < second.time_s <= clock.now_s() - 2.0


@pytest.mark.parametrize("clockwise", [0, 90, 180, 270])
def test_a_camera_that_hangs_on_its_side_is_turned(clockwise: int) -> None:
    port = free_port()
    with mjpeg_server(port):
        picture = first_frames(f"http://127.0.0.1:{port}/", 1, rotate_degrees=clockwise)[0].picture()
    assert picture.shape == ((120, 160, 3) if clockwise % 180 == 0 else (160, 120, 3))
    red_side = {0: picture[40:50], 90: picture[:, 70:80], 180: picture[70:80], 270: picture[:, 40:50]}[
        clockwise
    ]
    assert np.abs(red_side.mean((0, 1)) - (200, 0, 0)).max() < 12


def test_an_rtsp_camera_freezes_and_comes_back_and_its_old_pictures_are_not_believed() -> None:
    with rtsp_server(free_port()) as server, looking(server.url) as looker:
        looker.wait_for_frames(10)
        assert looker.frames[-1].picture().shape == (120, 160, 3)
        assert looker.frames[-1].picture().max() > 200  # the ball
        server.signal(signal.SIGSTOP)
        looker.wait_for("frozen")
        count = len(looker.frames)
        looker.wait_for("lost")
        assert len(looker.frames) == count
        server.signal(signal.SIGCONT)
        looker.wait_for_frames(5)


def test_an_rtsp_address_that_does_not_exist_says_so_without_the_password() -> None:
    with rtsp_server(free_port()) as server:
        address = server.url.replace("://", "://visitor:secret@") + "s"
        assert reason(address) == "server returned 404 not found"


def test_a_gstreamer_pipeline_gives_pictures_and_leaves_no_process_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("gst-launch-1.0")
    monkeypatch.chdir(tmp_path)
    named = tmp_path / "a name with spaces; $(touch injected)"
    pipeline = f"gst:videotestsrc is-live=true pattern=ball ! tee name=t t. ! queue ! filesink location='{named}' t. ! queue"
    with looking(pipeline) as looker:
        looker.wait_for_frames(5)
        assert looker.frames[-1].picture().shape == (120, 160, 3)
        assert looker.frames[-1].picture().max() > 200
        assert processes_with(named)
    assert not processes_with(named)
    assert named.stat().st_size > 0
    assert list(tmp_path.iterdir()) == [named]


def processes_with(argument: Path) -> list[str]:
    """Processes that have it on their command line."""
    found: list[str] = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if str(argument).encode() in (process / "cmdline").read_bytes():
                found.append(process.name)
    return found


@pytest.mark.parametrize(("width", "height"), [(64, 48), (70, 46), (33, 21)])
def test_gstreamers_padded_rows_are_understood(width: int, height: int) -> None:
    need("gst-launch-1.0")
    frames = first_frames(
        "gst:videotestsrc is-live=true pattern=smpte",
        2,
        width_px=width,
        height_px=height,
        freeze_s=0.0,
    )
    picture = frames[1].picture()
    assert picture.shape == (height, width, 3)
    middle = picture[height // 2].astype(int)  # colour bars: white, yellow, cyan, green, magenta, red, blue
    centres = middle[[round((k + 0.5) * width / 7) for k in range(7)]] > 96
    assert centres.tolist() == [
        [True, True, True], [True, True, False], [False, True, True], [False, True, False],
        [True, False, True], [True, False, False], [False, False, True],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("gst:nosuchelement", 'erroneous pipeline: no element "nosuchelement"'),
        ("gst:v4l2src device=/dev/video77", "Cannot identify device '/dev/video77'"),
        ("gst:videotestsrc num-buffers=3", "the pipeline ended"),
        ("gst:videotestsrc name='left open", "No closing quotation"),
        ("gst:rtspsrc location=rtsp://visitor:secret@127.0.0.1:1/x ! decodebin", "ERROR"),
        ("gst:videotestsrc pattern=rtsp://visitor:secret@host/x", 'to "rtsp://host/x"'),
    ],
)
def test_a_pipeline_that_fails_gives_its_reason(device: str, said: str) -> None:
    need("gst-launch-1.0")
    text = reason(device)
    assert said in text
    assert "secret" not in text
    assert "\n" not in text


def test_a_pipeline_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    need("gst-launch-1.0")
    monkeypatch.setattr("runtime.gstreamer.SILENT_S", 0.3)
    with looking(
        "gst:videotestsrc is-live=true pattern=ball ! identity sleep-time=0 name=here_it_hangs"
    ) as looker:
        looker.wait_for_frames(3)
        (process,) = processes_with(Path("name=here_it_hangs"))
        os.kill(int(process), signal.SIGSTOP)
        looker.wait_for("lost")
        looker.wait_for_frames(3)
        assert process not in processes_with(Path("name=here_it_hangs"))
    assert any("gave nothing for 0.3 s" in text for text in looker.told)


def test_a_machine_without_gstreamer_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert reason("csi:0") == "gst-launch-1.0 is missing: install gstreamer1.0-tools"


def test_a_csi_camera_is_opened_as_nvidia_documents_it() -> None:
    config = CameraConfig(device="csi:1", width_px=1920, height_px=1080, frame_rate_hz=29.97)
    text = " ".join(command(config, 7))
    assert text.startswith(
        "gst-launch-1.0 -q nvarguscamerasrc sensor-id=1 ! "
        "video/x-raw(memory:NVMM),width=1920,height=1080,framerate=2997/100 ! nvvidconv ! video/x-raw,format=BGRx ! "
    )
    assert text.endswith("video/x-raw,format=RGB,width=1920,height=1080 ! fdsink fd=7")


@pytest.mark.parametrize(
    ("device", "said"),
    [("77", "there is no /dev/video77"), ("/dev/v4l/by-id/nothing", "there is no /dev/v4l/by-id/nothing")],
)
def test_a_usb_camera_that_is_absent_is_named(device: str, said: str) -> None:
    assert reason(device) == said


def test_a_node_that_is_no_camera_is_named_and_nothing_is_printed(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    node = tmp_path / "video0"
    node.touch()
    assert reason(str(node)) == f"{node} cannot be opened: it is no camera, or another program has it"
    assert capfd.readouterr() == ("", "")


@settings(deadline=None)
@given(st.lists(st.integers(0, 2), max_size=40))
def test_a_picture_is_evidence_exactly_if_it_differs_from_the_one_before(values: list[int]) -> None:
    freshness = Freshness()
    judged = [freshness.is_new(grey(value), None, 0.1 * k) for k, value in enumerate(values)]
    assert judged == [k > 0 and value != values[k - 1] for k, value in enumerate(values)]
    repeats = Freshness(repeats=True)
    assert all(repeats.is_new(grey(value), None, 0.1 * k) for k, value in enumerate(values))


def test_one_pixel_is_a_difference_and_so_is_another_size() -> None:
    freshness = Freshness()
    changed = grey(7)
    changed[3, 5] = 8
    judged = [freshness.is_new(surface, None, 0.0) for surface in (grey(7), changed, changed, grey(7)[:3])]
    assert judged == [False, True, False, True]


@settings(deadline=None)
@given(
    drift_ppm=st.floats(-500, 500),
    offset_s=st.floats(-1e5, 1e5),
    jitter_s=st.lists(st.floats(0.0, 0.4), min_size=50, max_size=50),
    stall_s=st.floats(0.8, 1.9),
    stalled_at=st.integers(10, 40),
)
def test_pictures_that_a_stall_held_back_are_old_and_those_after_it_are_not(
    drift_ppm: float, offset_s: float, jitter_s: list[float], stall_s: float, stalled_at: int
) -> None:
    freshness = Freshness()
    for k, late_s in enumerate(jitter_s):
        taken_s = k * 0.1
        sent_s = offset_s + taken_s * (1 + drift_ppm * 1e-6)
        freed_s = stalled_at * 0.1 + stall_s  # nothing arrives before, then all of it at once
        arrival_s = max(taken_s + 0.05, freed_s) if k >= stalled_at else taken_s + 0.05 + late_s
        judged = freshness.is_new(grey(k), sent_s, arrival_s)
        under_way_s = arrival_s - taken_s
        if k == 0:
            continue
        if (
            under_way_s > 0.05 + 0.4 + OLD_S + 0.01
        ):  # later than the fastest by more than the limit, whoever was the fastest
            assert not judged
        if under_way_s < 0.05 + OLD_S - 0.01:
            assert judged


def test_a_senders_clock_may_drift_for_a_day() -> None:
    freshness = Freshness()
    judged = [freshness.is_new(grey(k % 2), 1.0005 * k + 0.1 * (k % 3), k) for k in range(0, 86_400, 7)]
    assert all(judged[1:])
    freshness = Freshness()
    assert all([freshness.is_new(grey(k % 2), 0.9995 * k, k) for k in range(0, 86_400, 7)][1:])


def first_complaint(judge: Callable[[float], object]) -> tuple[float, str]:
    """When ``judge``, asked 25 times a second, raises DeviceError, and what it says."""
    for k in range(100_000):
        try:
            judge(k / 25)
        except DeviceError as error:
            return k / 25, str(error)
    pytest.fail("it was never given up")


def test_a_stream_that_stays_behind_is_opened_again_and_so_is_one_that_never_changes() -> None:
    behind, still = Freshness(), Freshness()
    time_s, said = first_complaint(
        lambda now_s: behind.is_new(grey(int(now_s * 25) % 251), now_s - (0.9 if now_s > 10 else 0.1), now_s)
    )
    assert 12 <= time_s < 12.2
    assert "0.8 s late" in said
    time_s, said = first_complaint(lambda now_s: still.is_new(grey(1), None, now_s))
    assert SAME_LIMIT_S < time_s < SAME_LIMIT_S + 0.2
    assert "the same picture" in said


def test_several_threads_may_look_at_one_picture_and_it_is_converted_once() -> None:
    converted: list[int] = []

    def convert() -> np.ndarray:
        converted.append(1)
        time.sleep(0.01)
        return numbered_picture(1)

    picture, seen = once(convert), list[np.ndarray]()
    threads = [threading.Thread(target=lambda: seen.append(picture())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(converted) == 1
    assert all(found is seen[0] for found in seen)
