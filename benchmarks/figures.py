"""What a benchmark finds: figures with their targets, and curves. One JSON file per section; the report is made of them."""

from __future__ import annotations

import json
import os
import platform
import statistics
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.timing import Ratio, Times, ratio

PACKAGES = (
    "torch",
    "onnxruntime",
    "onnxruntime-gpu",
    "llama-cpp-python",
    "transformers",
    "numpy",
    "opencv-python-headless",
    "av",
)


@dataclass(frozen=True)
class Figure:
    """One figure. ``what``: what was measured, in a few words; ``value`` in ``unit`` with the ``least`` and the ``most`` of the repetitions;
    ``ours`` and ``peer``: who was compared and what each took. A target is ``at_least`` or ``at_most``, or there is none."""

    what: str
    value: float
    least: float
    most: float
    unit: str = "×"
    ours: str = ""
    peer: str = ""
    at_least: float | None = None
    at_most: float | None = None

    @property
    def met(self) -> bool | None:
        """None without a target."""
        if self.at_least is not None:
            return self.value >= self.at_least
        return None if self.at_most is None else self.value <= self.at_most


@dataclass(frozen=True)
class Curve:
    """One line of a growth plot; ``plot`` names the plot that it is drawn in."""

    plot: str
    name: str
    x_label: str
    y_label: str
    x: list[float]
    y: list[float]


@dataclass
class Section:
    """What one benchmark found. ``method``: one or two sentences on the work and the peers, for the report."""

    title: str
    method: str
    figures: list[Figure] = field(default_factory=list[Figure])
    curves: list[Curve] = field(default_factory=list[Curve])


def times_as_fast(
    what: str, times: dict[str, Times], ours: str, peer: str, *, at_least: float | None = None
) -> Figure:
    """The peer's wall time over ours."""
    return _compared(what, ratio(times[peer].wall_ms, times[ours].wall_ms), times, ours, peer, at_least, None)


def share_of(
    what: str,
    times: dict[str, Times],
    ours: str,
    peer: str,
    *,
    at_most: float | None = None,
    cpu: bool = False,
) -> Figure:
    """Our wall time over the peer's, or our CPU time over the peer's."""
    found = (
        ratio(times[ours].cpu_ms, times[peer].cpu_ms)
        if cpu
        else ratio(times[ours].wall_ms, times[peer].wall_ms)
    )
    return _compared(what, found, times, ours, peer, None, at_most, cpu)


def _compared(
    what: str, found: Ratio, times: dict[str, Times], ours: str, peer: str, at_least: float | None, at_most: float | None,
    cpu: bool = False,
) -> Figure:  # fmt: skip
    took = {
        name: statistics.median(times[name].cpu_ms) if cpu else times[name].median_ms for name in (ours, peer)
    }
    told = {name: f"{name}: {ms:.3g} ms{' of CPU' if cpu else ''}" for name, ms in took.items()}
    return Figure(what, found.median, found.least, found.most, "×", told[ours], told[peer], at_least, at_most)


def write(section: Section, path: Path, *, seconds: float, load_before: float) -> None:
    """Beside the figures what they were measured on: processors, load, versions."""
    told = {
        **asdict(section),
        "machine": {
            "processor": processor(),
            "cores": len(os.sched_getaffinity(0)),
            "system": platform.system(),
        },
        "load_before": round(load_before, 2),
        "seconds": round(seconds, 1),
        "versions": {"python": platform.python_version(), **_versions()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def processor() -> str:
    """Its name as Linux tells it."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.machine()


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
