"""Peak memory of a run and of a question on films of up to 8K, beside PyAV that only decodes them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.figures import Figure, Section
from benchmarks.material import tiny_bundle
from vaemotion.contract.files import whole_file

LIMIT_MB = 250.0
REPETITIONS = 3
# Name, size, options of ffmpeg: what a film of that kind costs FFmpeg differs much.
FILMS = {
    "4K H.264": ("3840x2160", "-c:v libx264 -pix_fmt yuv420p"),
    "8K H.264": ("7680x4320", "-c:v libx264 -pix_fmt yuv420p"),
    "8K HEVC": ("7680x4320", "-c:v libx265 -x265-params log-level=0 -pix_fmt yuv420p10le"),
}
SECONDS = 2
METHOD = """Peak memory of whole processes, the median of {repetitions}. The peer is PyAV alone, which
decodes the same file with the same number of threads and holds one picture. A run reads the film at full pace
without narration; a question is asked about its end. Films are {seconds} s of a test card with sound.
{limit:g} MB above the peer hold Python, ONNX Runtime, llama.cpp, the bundle, and every queue."""
_PYAV = """
import sys, av
container = av.open(sys.argv[1])
stream = container.streams.video[0]
stream.thread_type = "AUTO"
for frame in container.decode(stream):
    held = frame
"""


def measure(work: Path, full: bool) -> Section:
    """Measure the section; ``full`` changes nothing."""
    bundle, timeline = tiny_bundle(work), work / "memory.jsonl"
    vaemotion = [sys.executable, "-m", "vaemotion"]
    quiet = ["--pace", "max", "--narrate-every", "0", "--out", f"jsonl:{timeline}"]
    figures: list[Figure] = []
    for name in FILMS:
        film = str(_film(work, name))
        commands = {
            "run": [*vaemotion, "run", str(bundle), film, *quiet],
            "ask": [*vaemotion, "ask", str(bundle), film, "What is this?"],
            "PyAV": [sys.executable, "-c", _PYAV, film],
        }
        peaks = {
            what: sorted(_peak_mb(command) for _ in range(REPETITIONS)) for what, command in commands.items()
        }
        alone = peaks["PyAV"]
        for what in ("run", "ask"):
            least, middle, most = (mine - peer for mine, peer in zip(peaks[what], alone, strict=True))
            figures.append(
                Figure(
                    f"{what} on {name}: memory above PyAV's",
                    middle,
                    min(least, middle, most),
                    max(least, middle, most),
                    "MB",
                    f"vaemotion {what}: {peaks[what][1]:.0f} MB",
                    f"PyAV alone: {alone[1]:.0f} MB",
                    at_most=LIMIT_MB,
                )
            )
    return Section("Memory", METHOD.format(repetitions=REPETITIONS, seconds=SECONDS, limit=LIMIT_MB), figures)


def _film(work: Path, name: str) -> Path:
    """Return a film of that name, made once by the ffmpeg command."""
    path = work / f"{name.replace(' ', '-')}.mp4"
    size, options = FILMS[name]
    if not path.is_file():
        card = ["-f", "lavfi", "-i", f"testsrc=s={size}:r=30:d={SECONDS}"]
        tone = ["-f", "lavfi", "-i", f"sine=d={SECONDS}"]
        coded = [*options.split(), "-preset", "ultrafast", "-crf", "40", "-c:a", "aac", "-f", "mp4"]
        with whole_file(path) as temporary:
            subprocess.run(["ffmpeg", "-v", "error", "-y", *card, *tone, *coded, str(temporary)], check=True)
    return path


def _peak_mb(command: list[str]) -> float:
    """Return the most resident memory that a process had, in MB (2^20 bytes)."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return usage.ru_maxrss / 1024
