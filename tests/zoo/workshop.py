"""Maker of the zoo's files: a file is described by ffmpeg's command lines and a last step in Python.

In a command line ``{card RATE SECONDS [WxH] [FIRST] [alpha]}`` stands for the cards as an input, ``{tone
CHANNELS HZ SECONDS [FIRST]}`` for the tones, ``{tmp NAME}`` for a file between, ``{out}`` for the file.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from tests.zoo.card import HEIGHT_PX, WIDTH_PX, card, tone

GAP_S = 0.02  # of sound; timestamps of several containers shake by less

FFMPEG = ("ffmpeg", "-hide_banner", "-nostdin", "-v", "error", "-y")
LIMIT_S = 60.0
# Gaps of sound become silence, from the length on that the decoders fill as well.
RESAMPLE = f"aresample=async=1:min_hard_comp={GAP_S}"


@dataclass(frozen=True)
class Truth:
    """Truth about a file, known from its making; it stands above the reference. None: as that says."""

    times_s: tuple[float, ...] | None = None
    numbers: tuple[int, ...] | None = None
    size_px: tuple[int, int] | None = None
    sound_s: float | None = None
    pitches_hz: tuple[float | None, ...] | None = None


@dataclass(frozen=True)
class ZooFile:
    """One file of the zoo: how it is made, what it exercises, and how it is to be judged."""

    name: str
    family: str
    exercises: str
    commands: tuple[str, ...] = ()
    # Called last, with the file and a folder for files between.
    finish: Callable[[Path, Path], None] | None = None
    # Quarter turns clockwise, and then a mirror image, by which the shown card differs from an upright one.
    turns: int = 0
    mirrored: bool = False
    # Largest difference of a patch's mean from the drawn color, in levels of 255; None: not judged.
    color_tolerance: float | None = 14.0
    gray: bool = False
    alpha: bool = False
    cards: bool = True
    # Options of the reference's decoding: which track, input options, a filter before all others.
    video_map: str = "0:V:0?"
    sound_map: str = "0:a:0?"
    reference_input: str = ""
    reference_filter: str = ""
    # What aresample does with timestamps; empty for files whose rate or layout changes, where it begins anew.
    reference_resample: str = RESAMPLE + ":first_pts=0"
    # Set where a notice of the device is right.
    notices: bool = False
    # Set where the loader may refuse the file: it is damaged.
    loader_may_refuse: bool = False
    device_may_refuse: bool = False
    truth: Truth = Truth()
    # Largest difference of sound from the reference, in dB; None: only its length is compared, because what a
    # decoder makes of damaged bytes is not defined.
    sound_difference_db: float | None = -30.0

    @property
    def is_still(self) -> bool:
        """True for a file that is compared as one picture."""
        return self.family.startswith("stills")


class Workshop:
    """Makes files, and keeps the cards and tones that several of them share."""

    def __init__(self, folder: Path) -> None:
        """Prepare to make files in ``folder``."""
        self.folder = folder
        self._inputs = folder / "inputs"
        self._inputs.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()

    def make(self, file: ZooFile) -> Path:
        """Make one file. Raises CannotMake with ffmpeg's words."""
        path = self.folder / file.name
        with tempfile.TemporaryDirectory(dir=self.folder) as between:
            for command in file.commands:
                self._ffmpeg(command, path, Path(between))
            if file.finish is not None:
                file.finish(path, Path(between))
        return path

    def make_all(
        self, files: Iterable[ZooFile], workers: int = 2
    ) -> Iterator[tuple[ZooFile, Path | Exception]]:
        """Yield each file with its path, or with the reason why it could not be made."""

        def attempt(file: ZooFile) -> Path | Exception:
            try:
                return self.make(file)
            except Exception as error:
                return error

        with ThreadPoolExecutor(workers) as pool:
            files = list(files)
            yield from zip(files, pool.map(attempt, files), strict=True)

    def _ffmpeg(self, command: str, out: Path, between: Path) -> None:
        def fill(match: re.Match[str]) -> str:
            kind, *words = match[1].split()
            if kind == "card":
                return self._cards(words)
            if kind == "tone":
                return self._tones(words)
            return shlex.quote(f"file:{between / words[0]}" if kind == "tmp" else f"file:{out}")

        run_ffmpeg(shlex.split(re.sub(r"\{([a-z][^{}]*)\}", fill, command)))

    def _cards(self, words: list[str]) -> str:
        rate, seconds, *options = words
        size = next((word for word in options if "x" in word), f"{WIDTH_PX}x{HEIGHT_PX}")
        first = next((int(word) for word in options if word.isdigit()), 0)
        alpha, n = "alpha" in options, round(Fraction(rate) * Fraction(seconds))
        path = self._inputs / f"card-{n}-{first}-{size}{'-alpha' * alpha}.raw"
        with self._lock:
            if not path.exists():
                width, height = map(int, size.split("x"))
                cards = [card(first + k, width, height, alpha=alpha).tobytes() for k in range(n)]
                path.write_bytes(b"".join(cards))
        pixels = "rgba" if alpha else "rgb24"
        return f"-f rawvideo -pix_fmt {pixels} -s {size} -r {rate} -i {shlex.quote(str(path))}"

    def _tones(self, words: list[str]) -> str:
        channels, rate, seconds, *first = words
        path = self._inputs / f"tone-{'-'.join(words)}.raw"
        with self._lock:
            if not path.exists():
                samples = tone(int(channels), int(rate), float(seconds), int(first[0]) if first else 0)
                path.write_bytes(samples.astype("<f4").tobytes())
        return f"-f f32le -ac {channels} -ar {rate} -i {shlex.quote(str(path))}"


class CannotMake(Exception):
    """A file that ffmpeg could not make."""


def run_ffmpeg(arguments: Iterable[str]) -> None:
    """Run ffmpeg. Raises CannotMake with its last words."""
    done = subprocess.run(
        [*FFMPEG, *arguments], capture_output=True, text=True, timeout=LIMIT_S, errors="replace"
    )
    if done.returncode:
        raise CannotMake(done.stderr.strip()[-300:] or f"ffmpeg returned {done.returncode}")


def missing_tools() -> str:
    """Return which program the zoo needs and this machine has not, or nothing."""
    return " and ".join(program for program in ("ffmpeg", "ffprobe") if shutil.which(program) is None)


def raw_tone(channels: int, rate_hz: int, seconds: float) -> bytes:
    """Return tones as little-endian 16-bit samples, for headers written by hand."""
    return np.round(tone(channels, rate_hz, seconds) * 32767).astype("<i2").tobytes()
