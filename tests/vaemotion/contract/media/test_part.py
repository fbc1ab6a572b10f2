"""Media that lie inside another file."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.media import tone, write_wav, write_work
from vaemotion.contract.audio import SAMPLE_RATE_HZ
from vaemotion.contract.media.files import FilePart, MediaError, wav_header
from vaemotion.contract.media.medium import Medium, Shown
from vaemotion.contract.media.still import read_image


def test_a_part_of_a_file_reads_as_the_file_that_it_holds(tmp_path: Path) -> None:
    film = write_work(tmp_path / "film.mkv", 2.0)
    sound = write_wav(tmp_path / "a.wav", tone(0.5), SAMPLE_RATE_HZ)
    cv2.imwrite(str(tmp_path / "p.png"), np.full((6, 8, 3), 77, np.uint8))
    image = tmp_path / "p.png"
    archive = tmp_path / "clip, 1:2.tar"  # signs that FFmpeg's names give a meaning to
    archive.write_bytes(b"".join(b"pad" + file.read_bytes() for file in (film, sound, image)))
    start, parts = 0, {}
    for file in (film, sound, image):
        start += 3
        parts[file.name] = FilePart(archive, start, file.stat().st_size, file.name)
        start += file.stat().st_size
    for name, file in (("film.mkv", film), ("a.wav", sound)):
        inside, alone = Medium(parts[name]), Medium(file)
        assert inside.declared_end_s == alone.declared_end_s
        heard = [np.concatenate(list(medium.sound(0.25))) for medium in (inside, alone)]
        assert len(heard[1]) >= 4000
        np.testing.assert_array_equal(*heard)
    shown = [p.time_s for p in Medium(parts["film.mkv"]).pictures(1.0) if isinstance(p, Shown)]
    assert shown == [p.time_s for p in Medium(film).pictures(1.0) if isinstance(p, Shown)]
    np.testing.assert_array_equal(read_image(parts["p.png"]), read_image(image))
    assert parts["a.wav"].size_bytes == wav_header(parts["a.wav"]).held_bytes + 44
    cut_off = FilePart(archive, start - 10, 20, "end.mkv")
    with pytest.raises(MediaError, match=r"end\.mkv in .* is truncated"):
        Medium(cut_off)
    with pytest.raises(MediaError, match=r"none\.mkv in .* is empty"):
        Medium(FilePart(archive, 0, 0, "none.mkv"))
