"""Media files on disk: refuse what is none, name a path to FFmpeg, and read what a WAV's header promises."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from vaemotion.contract.errors import UserError

# Above it, a length in a WAV's header stands for "not known yet": recorders and pipes write values from
# 0x7FFFF000 (SoX) to 0xFFFFFFFF (FFmpeg).
PLACEHOLDER_BYTES = 0x7FFF_0000

_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"mif1", b"mif2", b"avif", b"avis"}


class MediaError(UserError):
    """A medium that is missing, truncated, empty or cannot be decoded."""


def refuse_unusable(path: Path) -> None:
    """Raise MediaError for a path that is missing, no file, empty, or may not be read."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise MediaError(f"{path} is not a file")
        with path.open("rb") as file:
            empty = file.read(1) == b""
    except FileNotFoundError:
        raise MediaError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MediaError(f"{path} cannot be read: {reason}") from error
    if empty:
        raise MediaError(f"{path} is empty")


def is_heif(path: Path) -> bool:
    """Return True for HEIC and AVIF, whose tiles FFmpeg takes for a film."""
    with path.open("rb") as file:
        head = file.read(12)
    return head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS


def ffmpeg_name(path: Path) -> str:
    """Return the name by which FFmpeg opens a path that looks like anything, such as "12:30.mp4"."""
    return f"file:{os.fspath(path)}"


@dataclass(frozen=True)
class WavHeader:
    """Length of sound by the header of a WAV file, and by the file itself.

    ``stale``: more sound follows than the header says, as where its writer was killed.
    """

    promised_bytes: int
    held_bytes: int
    stale: bool = False

    @property
    def truncated(self) -> bool:
        """True where the header names a length, and the file is shorter by more than a hundredth."""
        return self.held_bytes < 0.99 * self.promised_bytes and self.promised_bytes < PLACEHOLDER_BYTES

    @property
    def remark(self) -> str | None:
        """A sentence for the technician; None where header and file agree."""
        if not self.stale and self.held_bytes == self.promised_bytes:
            return None
        return (
            f"the WAV header says {self.promised_bytes} bytes of sound and the file holds {self.held_bytes}: "
            "what is there is read"
        )


def wav_header(path: Path) -> WavHeader | None:
    """Read a RIFF WAV's header; None for any other file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(4) != b"RIFF" or file.read(8)[4:] != b"WAVE":
            return None
        position = 12
        while position + 8 <= size:
            file.seek(position)
            name, promised = file.read(4), int.from_bytes(file.read(4), "little")
            position += 8
            if name != b"data":
                position += promised + promised % 2
                continue
            held = size - position
            if promised >= held:
                return WavHeader(promised, held)
            file.seek(position + promised + promised % 2)
            stale = not _chunks_follow(file.read(8), size - file.tell())
            return WavHeader(promised, held if stale else promised, stale)
    return None


def _chunks_follow(head: bytes, rest_bytes: int) -> bool:
    """Return True when 8 bytes behind the sound can be the head of another chunk, or the file's end."""
    if len(head) < 8:
        return True
    return all(0x20 <= byte < 0x7F for byte in head[:4]) and int.from_bytes(head[4:], "little") <= rest_bytes
