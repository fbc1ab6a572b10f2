"""Media files on disk: refuse what is none, name one to FFmpeg, and read what a WAV's header promises.

A medium is a file of its own, or a part of another one: the member of an archive is read where it lies.
"""

from __future__ import annotations

import io
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vaemotion.contract.errors import UserError

# Above it, a length in a WAV's header stands for "not known yet": recorders and pipes write values from
# 0x7FFFF000 (SoX) to 0xFFFFFFFF (FFmpeg).
PLACEHOLDER_BYTES = 0x7FFF_0000

_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"mif1", b"mif2", b"avif", b"avis"}


class MediaError(UserError):
    """A medium that is missing, truncated, empty or cannot be decoded."""


@dataclass(frozen=True)
class FilePart:
    """A medium inside another file, such as a member of a tar archive. ``name``: for messages."""

    path: Path
    start_bytes: int
    size_bytes: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} in {self.path}"


MediaFile = Path | FilePart


class _PartReader(io.RawIOBase):
    """A part of an open file as a file of its own."""

    def __init__(self, part: FilePart) -> None:
        self._file = part.path.open("rb", buffering=0)
        self._start, self._size, self._position = part.start_bytes, part.size_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._file.seek(self._start + self._position)
        left = max(0, self._size - self._position)
        read = self._file.readinto(memoryview(buffer)[:left])
        self._position += read
        return read

    def close(self) -> None:
        self._file.close()
        super().close()


def open_medium(file: MediaFile) -> BinaryIO:
    """Open a medium for reading bytes. Raises OSError."""
    if isinstance(file, FilePart):
        return io.BufferedReader(_PartReader(file))
    return file.open("rb")


def refuse_unusable(file: MediaFile) -> None:
    """Raise MediaError for a file that is missing, none, empty, cut off, or may not be read."""
    path = file.path if isinstance(file, FilePart) else file
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise MediaError(f"{path} is not a file")
        with open_medium(file) as opened:
            empty = opened.read(1) == b""
    except FileNotFoundError:
        raise MediaError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MediaError(f"{path} cannot be read: {reason}") from error
    if isinstance(file, FilePart) and file.start_bytes + file.size_bytes > status.st_size:
        raise MediaError(f"{file} is truncated: {path} ends before it")
    if empty:
        raise MediaError(f"{file} is empty")


def is_heif(file: MediaFile) -> bool:
    """Return True for HEIC and AVIF, whose tiles FFmpeg takes for a film."""
    with open_medium(file) as opened:
        head = opened.read(12)
    return head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS


def ffmpeg_name(file: MediaFile) -> str:
    """Return the name by which FFmpeg opens a file whose name looks like anything, such as "12:30.mp4"."""
    if isinstance(file, FilePart):
        end_bytes = file.start_bytes + file.size_bytes
        return f"subfile,,start,{file.start_bytes},end,{end_bytes},,:{ffmpeg_name(file.path)}"
    return f"file:{os.fspath(file)}"


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


def wav_header(medium: MediaFile) -> WavHeader | None:
    """Read a RIFF WAV's header; None for any other file."""
    with open_medium(medium) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
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
