from pathlib import Path

import numpy as np
import pytest

from tests.vaemotion.data.films import RATE_HZ, film, film_mp4, frames
from vaemotion.contract.front_end import PATHS, FrontEnd, window_at
from vaemotion.contract.media.files import FilePart, MediaError
from vaemotion.data.manifest.cutter import cut
from vaemotion.data.manifest.loader import Media, load_clip
from vaemotion.data.manifest.writer import clip_bytes

MAKERS = {"mkv": film, "mp4": film_mp4}


@pytest.mark.parametrize("suffix", MAKERS)
@pytest.mark.parametrize(("t0_s", "t1_s"), [(0.0, 3.5), (5.25, 9.0)])
def test_a_cut_decodes_to_the_same_window_as_the_film(tmp_path: Path, suffix: str, t0_s: float, t1_s: float):
    whole = MAKERS[suffix](tmp_path / f"film.{suffix}", 12.0)
    part = cut(whole, t0_s, t1_s)
    assert part is not None
    assert part.suffix == suffix
    assert len(part.data) < 0.8 * whole.stat().st_size
    (tmp_path / f"part.{suffix}").write_bytes(part.data)
    of_film = load_clip(Media(video=whole.name, t0=t0_s, t1=t1_s), tmp_path)
    of_part = load_clip(Media(video=f"part.{suffix}", t0=part.t0_s, t1=part.t1_s), tmp_path)
    assert np.allclose(of_film.frame_times_s, of_part.frame_times_s, atol=1e-6)
    np.testing.assert_array_equal(np.stack(of_film.frames), np.stack(of_part.frames))
    for path in PATHS:
        wanted, got = (window_at(clip, 3.2, path, FrontEnd()) for clip in (of_film, of_part))
        np.testing.assert_array_equal(wanted.pixels, got.pixels)
        differences = np.abs(wanted.log_mel - got.log_mel)
        if suffix == "mkv":
            assert differences.max(initial=0.0) == 0.0
        elif differences.size:
            # AAC's packets move the grid of the resampling to 16 kHz by a part of a sample.
            assert differences.mean() < 0.005


def test_the_same_part_gives_the_same_bytes(tmp_path: Path):
    whole = film_mp4(tmp_path / "film.mp4", 6.0)
    assert cut(whole, 3.0, 5.0) == cut(whole, 3.0, 5.0)


def test_a_part_of_a_part_of_a_file_can_be_cut(tmp_path: Path):
    whole = film(tmp_path / "film.mkv", 6.0)
    (tmp_path / "archive").write_bytes(b"x" * 100 + whole.read_bytes() + b"y" * 100)
    inside = FilePart(tmp_path / "archive", 100, whole.stat().st_size, "film.mkv")
    assert cut(inside, 3.0, 5.0) == cut(whole, 3.0, 5.0)


def test_what_keeps_no_exact_times_is_not_cut_and_damage_is_named(tmp_path: Path):
    film(tmp_path / "film.mkv", 1.0).rename(tmp_path / "a.mkv")
    with pytest.raises(MediaError, match=r"none\.mkv does not exist"):
        cut(tmp_path / "none.mkv", 0.0, 1.0)
    transport = tmp_path / "film.ts"
    _remux(tmp_path / "a.mkv", transport)
    assert cut(transport, 0.0, 1.0) is None


def _remux(source: Path, target: Path) -> None:
    import av

    with av.open(str(source)) as read, av.open(str(target), "w") as written:
        copy = written.add_stream_from_template(read.streams.video[0])
        for packet in read.demux(video=0):
            if packet.dts is not None:
                packet.stream = copy
                written.mux(packet)


def test_a_decoded_clip_is_written_with_its_own_times(tmp_path: Path):
    film(tmp_path / "film.mkv", 5.0)
    part = load_clip(Media(video="film.mkv", t0=1.25, t1=4.0), tmp_path)
    (tmp_path / "again.mkv").write_bytes(clip_bytes(part))
    again = load_clip(Media(video="again.mkv"), tmp_path)
    assert np.allclose(again.frame_times_s, part.frame_times_s, atol=1e-3)
    assert again.frame_times_s[1] == pytest.approx(1.3 - 1.25, abs=1e-3)
    assert np.abs(again.samples - part.samples).max() < 1e-4
    expected = frames(5.0)[round(1.3 * RATE_HZ)]
    assert np.abs(again.frames[1].astype(int) - expected).mean() < 6
