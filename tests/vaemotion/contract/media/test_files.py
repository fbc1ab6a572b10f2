"""Headers of WAV files, and names that look like something else."""

import os
import struct
from pathlib import Path

import pytest

from vaemotion.contract.media.files import MediaError, refuse_unusable, wav_header

SAMPLES = bytes(range(256)) * 100  # 25,600 bytes


def wav(path: Path, riff: int, data: int, before: bytes = b"", behind: bytes = b"") -> Path:
    head = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16000, 32000, 2, 16)
    sound = b"data" + struct.pack("<I", data) + SAMPLES
    path.write_bytes(b"RIFF" + struct.pack("<I", riff) + b"WAVE" + head + before + sound + behind)
    return path


HELD = len(SAMPLES)


@pytest.mark.parametrize(
    ("name", "data", "promised", "held", "stale", "truncated"),
    [
        ("right", HELD, HELD, HELD, False, False),
        ("killed recorder", 0x8000_0000, 0x8000_0000, HELD, False, False),
        ("pipe of SoX", 0x7FFF_F000, 0x7FFF_F000, HELD, False, False),
        ("pipe of FFmpeg", 0xFFFF_FFFF, 0xFFFF_FFFF, HELD, False, False),
        ("half of a download", 2 * HELD, 2 * HELD, HELD, False, True),
        ("header of the first second", 3200, 3200, HELD, True, False),
        ("never written", 0, 0, HELD, True, False),
    ],
)
def test_a_header_is_compared_with_what_is_there(
    tmp_path: Path, name: str, data: int, promised: int, held: int, stale: bool, truncated: bool
) -> None:
    header = wav_header(wav(tmp_path / "a.wav", data + 36 & 0xFFFF_FFFF, data))
    assert header is not None
    assert (header.promised_bytes, header.held_bytes, header.stale) == (promised, held, stale), name
    assert header.truncated is truncated
    assert (header.remark is None) is (name == "right")


def test_chunks_before_and_behind_the_sound_are_no_sound(tmp_path: Path) -> None:
    listed = b"LIST" + struct.pack("<I", 6) + b"INFOxx"
    header = wav_header(wav(tmp_path / "a.wav", 36 + HELD, HELD, before=listed, behind=listed))
    assert header is not None
    assert (header.held_bytes, header.stale, header.remark) == (HELD, False, None)


def test_what_is_no_wav_has_no_header(tmp_path: Path) -> None:
    (tmp_path / "a.webp").write_bytes(b"RIFF\x10\0\0\0WEBPVP8 ")
    (tmp_path / "short").write_bytes(b"RI")
    assert wav_header(tmp_path / "a.webp") is None
    assert wav_header(tmp_path / "short") is None


def test_a_path_that_cannot_be_read_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "fifo")  # nobody would ever write to it
    refused = {
        "none": "does not exist",
        ".": "is not a file",
        "fifo": "is not a file",
        "loop": "cannot be read",
        "empty": "is empty",
        "x" * 300: "cannot be read",
        "a\0b": "cannot be read",
    }
    for name, words in refused.items():
        with pytest.raises(MediaError, match=words):
            refuse_unusable(tmp_path / name)
