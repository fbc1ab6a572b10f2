import struct
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from tests.media import tone, write_wav
from vaemotion.contract.audio import SAMPLE_RATE_HZ, downmix, resample
from vaemotion.contract.media.files import MediaError
from vaemotion.data.manifest.loader import Media, load_clip
from vaemotion.data.manifest.writer import write_clip

RNG = np.random.default_rng(0)
HEIGHT, WIDTH = 48, 64


def gradient_frames(count: int) -> np.ndarray:
    """Make frames (count, 48, 64, 3) with gray level 20 + 6 * number and a white upper left corner."""
    levels = (20 + 6 * np.arange(count)).astype(np.uint8)
    frames = np.broadcast_to(levels[:, None, None, None], (count, HEIGHT, WIDTH, 3)).copy()
    frames[:, :16, :16] = 255
    return frames


def frame_numbers(clip) -> list[int]:
    return [round((float(frame[30:, 30:].mean()) - 20) / 6) for frame in clip.frames]


@pytest.fixture
def clip_file(tmp_path: Path) -> Path:
    write_clip(tmp_path / "clip.mkv", gradient_frames(32), 10, tone(3.2))
    return tmp_path / "clip.mkv"


def test_a_written_clip_is_read_back(clip_file):
    clip = load_clip(Media(video="clip.mkv"), clip_file.parent)
    assert np.allclose(clip.frame_times_s, np.arange(32) / 10, atol=1e-9)
    assert np.abs(np.stack(clip.frames).astype(int) - gradient_frames(32)).max() <= 8
    assert np.abs(clip.samples - tone(3.2)).max() < 1e-4
    assert clip.duration_s == 3.2


def test_the_same_clip_gives_the_same_bytes_and_leaves_no_temporary_file(clip_file, tmp_path):
    write_clip(tmp_path / "again.mkv", gradient_frames(32), 10, tone(3.2))
    assert (tmp_path / "again.mkv").read_bytes() == clip_file.read_bytes()
    with pytest.raises(ValueError, match="even"):
        write_clip(tmp_path / "odd.mkv", np.zeros((2, 15, 16, 3), np.uint8), 10)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.mkv", "clip.mkv"]


def test_t0_and_t1_cut_frames_and_sound_alike(clip_file):
    clip = load_clip(Media(video="clip.mkv", t0=0.95, t1=2.0), clip_file.parent)
    # At 0.95 s frame 9 is still shown; frame 20 starts at t1 and is left out.
    assert frame_numbers(clip) == list(range(9, 20))
    assert np.allclose(clip.frame_times_s, [0, *(np.arange(10, 20) / 10 - 0.95)], atol=1e-6)
    assert np.abs(clip.samples - tone(3.2)[15200:32000]).max() < 1e-4


def test_a_part_behind_a_seek_equals_the_same_part_of_the_whole(tmp_path):
    frames = np.concatenate([gradient_frames(32)] * 3)
    sound = RNG.uniform(-0.5, 0.5, round(9.6 * SAMPLE_RATE_HZ)).astype(np.float32)
    write_clip(tmp_path / "long.mkv", frames, 10, sound)
    whole = load_clip(Media(video="long.mkv"), tmp_path)
    part = load_clip(Media(video="long.mkv", t0=7.0, t1=8.5), tmp_path)
    np.testing.assert_array_equal(np.stack(part.frames), np.stack(whole.frames[70:85]))
    np.testing.assert_array_equal(part.samples, whole.samples[7 * 16000 : 7 * 16000 + 24000])
    assert np.allclose(part.frame_times_s, np.arange(15) / 10, atol=1e-6)


def test_a_part_within_one_frame_shows_that_frame(clip_file):
    clip = load_clip(Media(video="clip.mkv", t0=1.02, t1=1.08), clip_file.parent)
    assert frame_numbers(clip) == [10]
    assert clip.frame_times_s == (0.0,)


def test_a_part_behind_the_end_is_refused(clip_file):
    with pytest.raises(MediaError, match=r"no video frame between 50\.0 s and 60\.0 s"):
        load_clip(Media(video="clip.mkv", t0=50.0, t1=60.0), clip_file.parent)


@pytest.mark.parametrize(("rate_hz", "channels"), [(44100, 2), (8000, 1), (48000, 6), (16000, 2)])
def test_sound_of_any_rate_and_channels_is_resampled_by_the_contract(tmp_path, rate_hz, channels):
    samples = RNG.uniform(-0.5, 0.5, (rate_hz, channels))
    write_wav(tmp_path / "a.wav", samples, rate_hz)
    clip = load_clip(Media(audio="a.wav"), tmp_path)
    assert clip.frames == ()
    stored = np.round(samples * 32767) / 32768
    np.testing.assert_allclose(clip.samples, resample(downmix(stored), rate_hz), atol=2e-6)
    assert len(clip.samples) == SAMPLE_RATE_HZ


def test_sound_that_starts_late_is_preceded_by_silence(tmp_path):
    frames = gradient_frames(20)
    with av.open(str(tmp_path / "late.mkv"), "w") as container:
        video = container.add_stream("libx264", rate=10)
        video.height, video.width, video.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        audio = container.add_stream("flac", rate=16000, layout="mono", format="s16")
        for rgb in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(video.encode(None))
        block = av.AudioFrame.from_ndarray(np.full((1, 16000), 8000, np.int16), format="s16", layout="mono")
        block.sample_rate, block.pts = 16000, 8000
        container.mux(audio.encode(block))
        container.mux(audio.encode(None))
    samples = load_clip(Media(video="late.mkv"), tmp_path).samples
    onset = int(np.flatnonzero(np.abs(samples) > 0.1)[0])
    assert abs(onset - 8000) <= 16  # Matroska counts milliseconds
    assert len(samples) == pytest.approx(24000, abs=16)


def test_a_video_without_sound_has_none_and_a_sound_file_replaces_the_track(tmp_path):
    write_clip(tmp_path / "mute.mkv", gradient_frames(5), 10)
    assert load_clip(Media(video="mute.mkv"), tmp_path).samples is None
    write_clip(tmp_path / "both.mkv", gradient_frames(5), 10, tone(0.5))
    write_wav(tmp_path / "other.wav", tone(0.5, 1000.0)[:, None], SAMPLE_RATE_HZ)
    samples = load_clip(Media(video="both.mkv", audio="other.wav"), tmp_path).samples
    assert np.abs(samples - tone(0.5, 1000.0)).max() < 1e-4


@pytest.mark.parametrize("clockwise_degrees", [0, 90, 180, 270])
def test_the_display_matrix_turns_frames_upright(tmp_path, clockwise_degrees):
    path = tmp_path / "turned.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for rgb in gradient_frames(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode(None))
    # The track header's matrix, ISO/IEC 14496-12 8.3.2: 40 bytes behind the version-0 box's name and flags.
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    cosine, sine = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[clockwise_degrees]
    one = 1 << 16
    matrix = (cosine * one, sine * one, 0, -sine * one, cosine * one, 0, 0, 0, 1 << 30)
    data[at : at + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(data)
    frame = load_clip(Media(video="turned.mp4"), tmp_path).frames[0]
    turns = clockwise_degrees // 90
    expected = np.rot90(gradient_frames(1)[0], -turns)
    assert frame.shape == expected.shape
    assert np.abs(frame.astype(int) - expected).max() <= 60  # ringing at the corner's edge
    assert np.abs(frame.astype(int) - expected).mean() < 4


def test_images_in_gray_with_alpha_and_with_sixteen_bits(tmp_path):
    color = RNG.integers(0, 256, (6, 8, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "color.png"), color[..., ::-1])
    cv2.imwrite(str(tmp_path / "gray.png"), color[..., 0])
    cv2.imwrite(str(tmp_path / "deep.png"), color[..., ::-1].astype(np.uint16) * 257)
    alpha = np.full((6, 8, 1), 255, np.uint8)
    alpha[:3] = 0
    cv2.imwrite(str(tmp_path / "alpha.png"), np.concatenate([color[..., ::-1], alpha], -1))

    def image(name: str) -> np.ndarray:
        clip = load_clip(Media(image=name), tmp_path)
        assert clip.frame_times_s == (0.0,)
        return clip.frames[0]

    np.testing.assert_array_equal(image("color.png"), color)
    np.testing.assert_array_equal(image("gray.png"), np.repeat(color[..., :1], 3, -1))
    np.testing.assert_array_equal(image("deep.png"), color)
    over_white = image("alpha.png")
    np.testing.assert_array_equal(over_white[:3], np.full((3, 8, 3), 255))
    np.testing.assert_array_equal(over_white[3:], color[3:])


def test_exif_orientation_turns_a_photograph_upright(tmp_path):
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, :40] = 255
    encoded = cv2.imencode(".jpg", image)[1].tobytes()
    tiff = b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + b"\0\0\0\0"
    body = b"Exif\0\0" + tiff
    exif = b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
    (tmp_path / "photo.jpg").write_bytes(encoded[:2] + exif + encoded[2:])
    upright = load_clip(Media(image="photo.jpg"), tmp_path).frames[0]
    assert upright.shape == (80, 40, 3)  # orientation 6: turned a quarter clockwise
    assert upright[:30].mean() > 250
    assert upright[50:].mean() < 5


def broken_files(root: Path) -> dict[str, Media]:
    write_clip(root / "a.mkv", gradient_frames(32), 10, RNG.uniform(-0.5, 0.5, 51200).astype(np.float32))
    write_wav(root / "a.wav", tone(3.0)[:, None], SAMPLE_RATE_HZ)
    noise = RNG.integers(0, 256, (64, 64, 3), np.uint8)
    cv2.imwrite(str(root / "a.png"), noise)
    cv2.imwrite(str(root / "a.jpg"), noise)
    for name in ("a.mkv", "a.wav", "a.png", "a.jpg"):
        data = (root / name).read_bytes()
        (root / f"cut-{name}").write_bytes(data[: int(len(data) * 0.6)])
        (root / f"head-{name}").write_bytes(data[:20])
        (root / f"empty-{name}").write_bytes(b"")
        (root / f"text-{name}").write_text("this is no medium\n" * 20)
    kinds = {".mkv": "video", ".wav": "audio", ".png": "image", ".jpg": "image"}
    names = [f"{how}-a{suffix}" for how in ("cut", "head", "empty", "text", "missing") for suffix in kinds]
    return {name: Media(**{kinds[Path(name).suffix]: name}) for name in names}


def test_broken_files_are_refused_in_one_sentence_that_names_them(tmp_path):
    for name, media in broken_files(tmp_path).items():
        with pytest.raises(MediaError) as caught:
            load_clip(media, tmp_path)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
        if name.startswith("cut"):
            assert "truncated" in str(caught.value), str(caught.value)


def test_a_missing_stream_is_named(tmp_path):
    write_wav(tmp_path / "a.wav", tone(0.5)[:, None], SAMPLE_RATE_HZ)
    write_clip(tmp_path / "mute.mkv", gradient_frames(5), 10)
    with pytest.raises(MediaError, match="has no video"):
        load_clip(Media(video="a.wav"), tmp_path)
    with pytest.raises(MediaError, match="has no sound"):
        load_clip(Media(audio="mute.mkv"), tmp_path)
    with pytest.raises(MediaError, match="nothing to load"):
        load_clip(Media(), tmp_path)
