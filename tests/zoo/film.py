"""Description of a film: what its parts are called, and one ffmpeg command that makes it."""

from __future__ import annotations

from typing import Any

from tests.zoo.workshop import ZooFile

H264 = "-c:v libx264 -preset veryfast -crf 16 -pix_fmt yuv420p -bf 2 -g 12"
MPEG4, MPEG2 = "-c:v mpeg4 -q:v 2", "-c:v mpeg2video -q:v 2"
BASE = "{card 25 2} {tone 1 48000 2}"


def film(name: str, family: str, exercises: str, options: str, source: str = BASE, **judged: Any) -> ZooFile:
    """Describe a film that one ffmpeg command makes from cards and tones."""
    return ZooFile(name, family, exercises, (f"{source} {options} {{out}}",), **judged)
