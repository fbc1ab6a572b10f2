"""Cameras on real capture paths, and the filter of stale frames on frames made by hand.

The paths are an MJPEG and an RTSP server on loopback, and GStreamer pipelines.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice, pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.clock import MonotonicClock
from runtime.messages import Frame, Notice, once
from runtime.sources.camera import OLD_S, SAME_LIMIT_S, Camera, StaleFrameFilter
from runtime.sources.config import CameraConfig
from runtime.sources.gstreamer import pipeline_command
from runtime.sources.rhythm import SLOWEST_S
from runtime.sources.supervision import DeviceError, DeviceThread
from tests.live_peers import (
    free_port,
    mjpeg_server,
    need,
    numbered_frame,
    rtsp_server,
    still_scene,
    until,
)
from vaemotion.contract.address import Address


@dataclass
class WatchedCamera:
    """A camera behind its thread, with the frames and notices that it gave."""

    device: DeviceThread
    clock: MonotonicClock
    frames: list[Frame] = field(default_factory=list[Frame])
    notices: list[str] = field(default_factory=list[str])

    def state(self) -> str:
        for event in self.device.take(self.clock.now_s())[0]:
            if isinstance(event, Frame):
                self.frames.append(event)
            elif isinstance(event, Notice):
                self.notices.append(event.text)
        return self.device.monitor.state

    def wait_for(self, state: str) -> None:
        until(lambda: self.state() == state, f"{state}; notices: {self.notices}")

    def wait_for_frames(self, count: int) -> list[Frame]:
        first = len(self.frames)
        until(
            lambda: self.state() == "live" and len(self.frames) >= first + count,
            f"{count} frames; notices: {self.notices}",
        )
        return self.frames[first:]


@contextmanager
def camera_on(device: str, **keys: float) -> Iterator[WatchedCamera]:
    config = CameraConfig(device=Address(device), width_px=160, height_px=120, **keys)  # type: ignore[arg-type]
    clock = MonotonicClock()
    stream = Camera(config, clock).stream
    thread = DeviceThread("camera", stream, clock, config.freeze_s, slowest_s=SLOWEST_S)
    try:
        yield WatchedCamera(thread, clock)
    finally:
        thread.close()


def first_frames(device: str, count: int, **keys: float) -> list[Frame]:
    """Return the first frames of a stream without a thread."""
    config = CameraConfig(device=Address(device), **keys)  # type: ignore[arg-type]
    return list(islice(Camera(config, MonotonicClock()).stream(threading.Event()), count))


def reason(device: str) -> str:
    """Return the reason for which a stream ended."""
    with pytest.raises(DeviceError) as raised:
        for _ in Camera(CameraConfig(device=Address(device)), MonotonicClock()).stream(threading.Event()):
            pass
    return str(raised.value)


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def gray(value: int) -> np.ndarray:
    return np.full((4, 6), value, np.uint8)


def test_a_camera_whose_title_is_latin_1_gives_frames(tmp_path: Path) -> None:
    film = tmp_path / "camera.mkv"
    with av.open(str(film), "w", metadata_encoding="latin-1") as container:
        container.metadata["title"] = "Caf\xe9 du Mus\xe9e"
        stream = container.add_stream("mjpeg", 25)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuvj420p"
        stream.metadata["language"] = "fran\xe7ais"
        for number in range(10):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")))
        container.mux(stream.encode())
    with pytest.raises(UnicodeDecodeError), av.open(str(film)) as container:  # as if nobody expected it
        container.streams.video[0].metadata.items()
    handler = partial(QuietHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        frames = first_frames(f"http://127.0.0.1:{server.server_port}/camera.mkv", 5)
        server.shutdown()
    assert [frame.picture().shape for frame in frames] == [(120, 160, 3)] * 5


def test_an_mjpeg_camera_that_is_absent_comes_dies_and_comes_back() -> None:
    port = free_port()
    with camera_on(f"http://visitor:secret@127.0.0.1:{port}/video") as camera:
        until(lambda: camera.state() == "absent" and bool(camera.notices), "a reason")
        assert camera.notices == ["camera absent: connection refused"]
        with mjpeg_server(port) as server:
            frames = camera.wait_for_frames(10)
            times_s = [frame.time_s for frame in frames]
            assert times_s == sorted(times_s)
            assert 0 < times_s[-1] <= camera.clock.now_s()
            picture = frames[-1].picture()
            assert (picture.shape, picture.dtype) == ((120, 160, 3), np.uint8)
            assert np.abs(picture[40:55].mean((0, 1)) - (200, 0, 0)).max() < 12  # RGB, not BGR
            assert np.abs(picture[70:].mean((0, 1)) - (0, 0, 200)).max() < 12
            server.mode = "same"  # a still scene; every frame that comes is fresh
            camera.wait_for_frames(40)
            assert camera.device.monitor.losses == 0
            server.mode = "silent"
            camera.wait_for("frozen")
            camera.wait_for("lost")
            assert camera.notices[-1].startswith("camera lost: no data for ")
            server.mode = "moves"
            camera.wait_for_frames(3)
        camera.wait_for("lost")
        with mjpeg_server(port):
            camera.wait_for_frames(3)
        assert not [text for text in camera.notices if "secret" in text]


def test_the_offset_is_subtracted_from_the_stamps() -> None:
    port = free_port()
    with mjpeg_server(port):
        clock = MonotonicClock()
        config = CameraConfig(device=Address(f"http://127.0.0.1:{port}/"), offset_ms=2000.0)
        first, second = islice(Camera(config, clock).stream(threading.Event()), 2)
        assert first.time_s < second.time_s <= clock.now_s() - 2.0


def test_a_camera_that_needs_long_to_begin_gets_more_time_with_each_try() -> None:
    port = free_port()
    with mjpeg_server(port, begin_s=1.0), camera_on(f"http://127.0.0.1:{port}/", open_s=0.3) as camera:
        camera.wait_for_frames(3)
    tries = [f"camera absent: no data for {limit} s" for limit in ("0.3", "0.6", "1.2", "2.4")]
    assert camera.notices[:-1] == tries[: len(camera.notices) - 1]
    assert len(camera.notices) > 2
    assert camera.notices[-1] == "camera live"


def test_frames_may_change_their_size_at_any_moment() -> None:
    port = free_port()
    with mjpeg_server(port) as server, camera_on(f"http://127.0.0.1:{port}/") as camera:
        camera.wait_for_frames(3)
        server.scale = 2
        until(lambda: camera.wait_for_frames(1)[-1].picture().shape == (240, 320, 3), "larger frames")
    assert camera.frames[0].picture().shape == (120, 160, 3)
    assert camera.notices == ["camera live"]


def test_text_of_a_stream_that_is_no_utf_8_is_no_reason_not_to_see_it(tmp_path: Path) -> None:
    film = tmp_path / "film.mkv"
    with av.open(str(film), "w") as container:
        container.metadata["title"] = "Caf??"
        stream = container.add_stream("mjpeg", 25)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuvj420p"
        for number in range(5):
            rgb = av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")
            container.mux(stream.encode(rgb))
    film.write_bytes(film.read_bytes().replace(b"Caf??", b"Caf\xe9\xff"))
    handler = partial(QuietHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        assert len(first_frames(f"http://127.0.0.1:{server.server_port}/film.mkv", 3)) == 3
        server.shutdown()


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


def test_an_rtsp_camera_freezes_and_comes_back_and_its_old_frames_are_filtered_out() -> None:
    with rtsp_server(free_port()) as server, camera_on(server.url) as camera:
        camera.wait_for_frames(50)
        assert camera.frames[-1].picture().shape == (120, 160, 3)
        assert camera.frames[-1].picture().max() > 200  # the ball
        server.signal(signal.SIGSTOP)
        camera.wait_for("frozen")
        count = len(camera.frames)
        camera.wait_for("lost")
        assert len(camera.frames) == count
        server.signal(signal.SIGCONT)
        camera.wait_for_frames(5)


@pytest.mark.parametrize("codec", ["h264", "h265"])
def test_a_still_scene_is_live_although_encoders_repeat_its_pictures(codec: str, tmp_path: Path) -> None:
    film = still_scene(tmp_path / "still.mp4", codec.replace("h", "libx"), 55, noise=1.0, denoise=0.05)
    assert 55 - repeats(film) < 35  # different pictures
    pipeline = f"filesrc location={film} ! qtdemux ! {codec}parse ! rtp{codec}pay name=pay0 pt=96"
    with rtsp_server(free_port(), pipeline) as server:
        assert len(first_frames(server.url, 40)) == 40


def repeats(film: Path) -> int:
    """Return the number of frames that are the one before it, bit for bit."""
    with av.open(str(film)) as container:
        planes = [frame.to_ndarray() for frame in container.decode(video=0)]
    return sum(np.array_equal(before, plane) for before, plane in pairwise(planes))


def test_rtp_over_udp_serves_where_a_server_offers_nothing_else() -> None:
    with rtsp_server(free_port(), transport="udp") as server:
        assert len(first_frames(server.url, 5)) == 5


def test_an_rtsp_stream_changes_its_size_and_then_its_clock_stands_still() -> None:
    with rtsp_server(free_port()) as server, camera_on(server.url) as camera:
        camera.wait_for_frames(3)
        server.signal(signal.SIGUSR1)
        until(lambda: camera.wait_for_frames(1)[-1].picture().shape == (240, 320, 3), "larger frames")
        assert camera.device.monitor.losses == 0
        camera.wait_for_frames(30)
        server.signal(signal.SIGUSR2)
        camera.wait_for("frozen")


def test_an_rtsp_address_that_does_not_exist_says_so_without_the_password() -> None:
    with rtsp_server(free_port()) as server:
        address = server.url.replace("://", "://visitor:secret@") + "s"
        assert reason(address) == "server returned 404 not found"


def test_a_gstreamer_pipeline_gives_frames_and_leaves_no_process_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("gst-launch-1.0")
    monkeypatch.chdir(tmp_path)
    named = tmp_path / "a name with spaces; $(touch injected)"
    pipeline = (
        "gst:videotestsrc is-live=true pattern=ball ! tee name=t "
        f"t. ! queue ! filesink location='{named}' t. ! queue"
    )
    with camera_on(pipeline) as camera:
        camera.wait_for_frames(5)
        assert camera.frames[-1].picture().shape == (120, 160, 3)
        assert camera.frames[-1].picture().max() > 200
        assert processes_with(named)
    assert not processes_with(named)
    assert named.stat().st_size > 0
    assert list(tmp_path.iterdir()) == [named]


def processes_with(argument: Path) -> list[str]:
    """Return the ids of the processes with this argument on their command line."""
    found: list[str] = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if str(argument).encode() in (process / "cmdline").read_bytes():
                found.append(process.name)
    return found


@pytest.mark.parametrize(("width", "height"), [(64, 48), (70, 46), (33, 21)])
def test_gstreamers_padded_rows_are_cropped(width: int, height: int) -> None:
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
    middle = picture[height // 2].astype(int)  # color bars: white, yellow, cyan, green, magenta, red, blue
    centers = middle[[round((k + 0.5) * width / 7) for k in range(7)]] > 96
    bars = ["rgb", "rg.", ".gb", ".g.", "r.b", "r..", "..b"]
    assert centers.tolist() == [[channel != "." for channel in bar] for bar in bars]


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("gst:nosuchelement", 'erroneous pipeline: no element "nosuchelement"'),
        ("gst:v4l2src device=/dev/video77", "Cannot identify device '/dev/video77'"),
        ("gst:videotestsrc num-buffers=3", "the pipeline ended"),
        ("gst:videotestsrc name='left open", "No closing quotation"),
        ("gst:rtspsrc location=rtsp://visitor:secret@127.0.0.1:1/x ! decodebin", "ERROR"),
        ("gst:videotestsrc pattern=rtsp://visitor:secret@host/x", 'could not set property "pattern"'),
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
    monkeypatch.setattr("runtime.sources.gstreamer.SILENT_S", 0.3)
    with camera_on(
        "gst:videotestsrc is-live=true pattern=ball ! identity sleep-time=0 name=here_it_hangs"
    ) as camera:
        camera.wait_for_frames(50)
        (process,) = processes_with(Path("name=here_it_hangs"))
        os.kill(int(process), signal.SIGSTOP)
        camera.wait_for("lost")
        camera.wait_for_frames(3)
        assert process not in processes_with(Path("name=here_it_hangs"))
    assert any("no data from the pipeline for " in text for text in camera.notices)


def test_a_machine_without_gstreamer_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert reason("csi:0") == "gst-launch-1.0 is missing: install gstreamer1.0-tools"


def test_a_csi_camera_is_opened_as_nvidia_documents_it() -> None:
    config = CameraConfig(device=Address("csi:1"), width_px=1920, height_px=1080, frame_rate_hz=29.97)
    text = " ".join(pipeline_command(config, 7))
    assert text.startswith(
        "gst-launch-1.0 -q nvarguscamerasrc sensor-id=1 ! "
        "video/x-raw(memory:NVMM),width=1920,height=1080,framerate=2997/100 ! "
        "nvvidconv ! video/x-raw,format=BGRx ! "
    )
    assert text.endswith("video/x-raw,format=RGB,width=1920,height=1080 ! fdsink fd=7")


@pytest.mark.parametrize(
    ("device", "said"),
    [("77", "there is no /dev/video77"), ("/dev/v4l/by-id/nothing", "there is no /dev/v4l/by-id/nothing")],
)
def test_a_usb_camera_that_is_absent_is_named(device: str, said: str) -> None:
    assert reason(device) == said


def test_a_node_that_is_not_a_camera_is_named_and_nothing_is_printed(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    node = tmp_path / "video0"
    node.touch()
    assert reason(str(node)) == f"{node} cannot be opened: not a camera, or in use by another program"
    assert capfd.readouterr() == ("", "")


@settings(deadline=None)
@given(st.lists(st.integers(0, 2), max_size=40))
def test_a_frame_is_fresh_exactly_if_it_differs_from_the_one_before(values: list[int]) -> None:
    stale_filter = StaleFrameFilter()
    judged = [stale_filter.is_fresh(gray(value), None, 0.1 * k) for k, value in enumerate(values)]
    assert judged == [k > 0 and value != values[k - 1] for k, value in enumerate(values)]
    repeating = StaleFrameFilter(allow_equal=True)
    assert all(repeating.is_fresh(gray(value), None, 0.1 * k) for k, value in enumerate(values))


def test_one_pixel_is_a_difference_and_so_is_another_size() -> None:
    stale_filter = StaleFrameFilter()
    changed = gray(7)
    changed[3, 5] = 8
    judged = [stale_filter.is_fresh(plane, None, 0.0) for plane in (gray(7), changed, changed, gray(7)[:3])]
    assert judged == [False, True, False, True]


@settings(deadline=None)
@given(
    drift_ppm=st.floats(-500, 500),
    offset_s=st.floats(-1e5, 1e5),
    jitter_s=st.lists(st.floats(0.0, 0.4), min_size=50, max_size=50),
    stall_s=st.floats(0.8, 1.9),
    stalled_at=st.integers(10, 40),
)
def test_frames_that_a_stall_held_back_are_stale_and_those_after_it_are_not(
    drift_ppm: float, offset_s: float, jitter_s: list[float], stall_s: float, stalled_at: int
) -> None:
    stale_filter = StaleFrameFilter()
    for k, late_s in enumerate(jitter_s):
        taken_s = k * 0.1
        sent_s = offset_s + taken_s * (1 + drift_ppm * 1e-6)
        freed_s = stalled_at * 0.1 + stall_s  # nothing arrives before, then all of it at once
        arrival_s = max(taken_s + 0.05, freed_s) if k >= stalled_at else taken_s + 0.05 + late_s
        judged = stale_filter.is_fresh(gray(k), sent_s, arrival_s)
        delay_s = arrival_s - taken_s
        if k == 0:
            continue
        # Later than the fastest frame by more than the limit, whichever was the fastest.
        if delay_s > 0.05 + 0.4 + OLD_S + 0.01:
            assert not judged
        if delay_s < 0.05 + OLD_S - 0.01:
            assert judged


def test_a_senders_clock_may_drift_for_a_day() -> None:
    stale_filter = StaleFrameFilter()
    judged = [stale_filter.is_fresh(gray(k % 2), 1.0005 * k + 0.1 * (k % 3), k) for k in range(0, 86_400, 7)]
    assert all(judged[1:])
    stale_filter = StaleFrameFilter()
    assert all([stale_filter.is_fresh(gray(k % 2), 0.9995 * k, k) for k in range(0, 86_400, 7)][1:])


@settings(deadline=None)
@given(st.lists(st.sampled_from([0.04, 0.04, 0.04, -3600.0, 3600.0, -0.5, 86_400.0]), max_size=100))
def test_a_senders_clock_that_is_set_hides_at_most_two_seconds(steps_s: list[float]) -> None:
    stale_filter, sent_s, newest_s, now_s = StaleFrameFilter(), 0.0, 0.0, 0.0
    for k, step_s in enumerate([*steps_s, *[0.04] * 60]):
        now_s, sent_s = 0.04 * k, sent_s + step_s
        try:
            newest_s = now_s if stale_filter.is_fresh(None, sent_s, now_s) else newest_s
        except DeviceError:  # opened again
            stale_filter, newest_s = StaleFrameFilter(), now_s
        assert now_s - newest_s < 2.1


def test_a_stamp_that_stands_still_is_stale_and_one_that_goes_on_is_not() -> None:
    stale_filter = StaleFrameFilter()
    judged = [stale_filter.is_fresh(None, s, 0.1 * k) for k, s in enumerate([0.0, 0.1, 0.2, 0.2, 0.2, 0.5])]
    assert judged == [False, True, True, False, False, True]


def test_frames_of_a_slow_camera_may_be_late_by_its_interval() -> None:
    stale_filter, slow = StaleFrameFilter(), [5.0 * k for k in range(12)]
    delays_s = [0.1, 0.1, 0.1, 0.1, 1.5, 0.2, 3.0, 0.1, 4.0, 0.3, 0.1, 2.0]
    assert all([stale_filter.is_fresh(None, t, t + d) for t, d in zip(slow, delays_s, strict=True)][1:])


def test_frames_that_come_in_bursts_are_not_taken_for_a_stream_that_stays_behind() -> None:
    stale_filter = StaleFrameFilter()
    bursts = [(3.0 * second + k / 25, 3.0 * second + 3.0) for second in range(20) for k in range(75)]
    judged = [stale_filter.is_fresh(None, sent_s, arrival_s) for sent_s, arrival_s in bursts]
    assert all(judged[74::75])  # the newest frame of each burst


def first_error(judge: Callable[[float], object]) -> tuple[float, str]:
    """Call ``judge`` 25 times a second of media; return time and text of its first DeviceError."""
    for k in range(100_000):
        try:
            judge(k / 25)
        except DeviceError as error:
            return k / 25, str(error)
    pytest.fail("no DeviceError came")


def test_a_stream_that_stays_behind_is_opened_again_and_so_is_one_that_never_changes() -> None:
    late, frozen = StaleFrameFilter(), StaleFrameFilter()

    def judge(now_s: float) -> None:
        if now_s < 10 or now_s > 10.8:
            late.is_fresh(None, now_s - (0.1 if now_s < 10 else 0.9), now_s)

    time_s, said = first_error(judge)
    assert 12.8 <= time_s < 13
    assert "0.8 s late" in said
    time_s, said = first_error(lambda now_s: frozen.is_fresh(gray(1), None, now_s))
    assert SAME_LIMIT_S < time_s < SAME_LIMIT_S + 0.2
    assert "the same frame" in said
    standing = StaleFrameFilter()
    time_s, said = first_error(lambda now_s: standing.is_fresh(None, min(now_s, 10.0), now_s))
    assert 10 + SAME_LIMIT_S < time_s < 10 + SAME_LIMIT_S + 0.2
    assert "the same time stamp" in said


def test_several_threads_may_convert_one_frame_and_it_is_converted_once() -> None:
    converted: list[int] = []

    def convert() -> np.ndarray:
        converted.append(1)
        time.sleep(0.01)
        return numbered_frame(1)

    picture, found = once(convert), list[np.ndarray]()
    threads = [threading.Thread(target=lambda: found.append(picture())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(converted) == 1
    assert all(each is found[0] for each in found)
