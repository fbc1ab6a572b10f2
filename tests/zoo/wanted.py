"""Differences from the reference that are wanted, case by case with their reason."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from tests.zoo.compare import Finding, Result


@dataclass(frozen=True)
class Wanted:
    """A wanted difference. name: of the file; check: a pattern as "*.times"."""

    name: str
    check: str
    reason: str


_AVI = (
    "AVI keeps no times of display: here picture n has the time of packet n, FFmpeg's first one is late by "
    "what its decoder holds back"
)
WANTED = (
    Wanted(
        "joined-channels.ts",
        "*.level",
        "ffmpeg mixes stereo with 0.71 of each channel; sound is the mean of the channels",
    ),
    Wanted("joined-channels.ts", "*.sound", "the same weights"),
    Wanted(
        "joined-bframes.ts",
        "*.sound*",
        "the first recording's sound ends 27 ms behind the second one's beginning; an overlap "
        "below 0.1 s is kept, "
        "as by ffmpeg's default, where this reference cuts it",
    ),
    Wanted(
        "joined-rate.ts",
        "*.sound*",
        "ffmpeg's filters begin anew where the rate changes; the decoded samples are what the device gives",
    ),
    Wanted(
        "joined.ogg",
        "*.sound*",
        "FFmpeg 8 plays the whole first block of a chained Vorbis, FFmpeg 5.1 leaves out 9 ms of it",
    ),
    Wanted(
        "truehd-6.mkv",
        "*",
        "FFmpeg 8 refuses what the experimental encoder of 5.1 writes for six channels",
    ),
    Wanted(
        "hole.mp3",
        "*.sound-length",
        "a frame that cannot be decoded is left out of a stream without times; ffmpeg counts it "
        "as 26 ms of silence",
    ),
    Wanted(
        "odd-pad.wav",
        "*.refused",
        "no WAV reader of FFmpeg finds samples behind an odd chunk without its pad byte",
    ),
    Wanted(
        "ffmpeg.pfm",
        "*.colors",
        "FFmpeg 5.1 writes blue before red, which FFmpeg 8 and OpenCV read as they stand",
    ),
    Wanted(
        "joined-rate.ogg",
        "*.sound*",
        "FFmpeg 8 cannot read on behind a Vorbis stream of another rate in one Ogg file; a notice says so",
    ),
    Wanted("h264-mp3.avi", "*.times", _AVI),
    Wanted("xvid-bframes.avi", "*.times", _AVI),
    Wanted("packed-bframes.avi", "*.times", _AVI),
    Wanted("ffmpeg.jxl", "*.refused", "neither Pillow nor PyAV's FFmpeg reads JPEG XL; a sentence says so"),
)


def unwanted(result: Result) -> list[Finding]:
    """Return the findings of a file that no wanted difference explains."""
    return [finding for finding in result.findings if not explained(result, finding)]


def explained(result: Result, finding: Finding) -> Wanted | None:
    """Return the wanted difference that explains a finding."""
    return next((w for w in WANTED if w.name == result.name and fnmatchcase(finding.check, w.check)), None)


def stale(results: Iterable[Result]) -> list[Wanted]:
    """Return the wanted differences that the compared files no longer show."""
    results = list(results)
    names = {result.name for result in results}
    shown = {explained(result, finding) for result in results for finding in result.findings}
    return [wanted for wanted in WANTED if wanted.name in names and wanted not in shown]
