"""Results of the benchmark suite: figures with targets, and curves.

Each section writes one JSON file; ``docs/performance.md`` is generated from these files.
"""

from __future__ import annotations

import json
import platform
import statistics
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.timing import Ratio, Times, ratio
from runtime.machine.facts import processor_name, usable_cpus
from vaemotion.contract.files import write_whole

SECTIONS = ("encoders", "front_end", "language_model", "whole_run", "growth", "memory", "clips")
ON_A_GPU = ("gpu",)  # measured only when named

PACKAGES = (
    "torch",
    "onnxruntime",
    "onnxruntime-gpu",
    "llama-cpp-python",
    "transformers",
    "numpy",
    "opencv-python-headless",
    "av",
    "webdataset",
    "decord",
)


@dataclass(frozen=True)
class Figure:
    """One figure with its target.

    ``what``: the measured quantity, in a few words. ``value``, ``least``, ``most``: median, smallest and
    largest of the repetitions, in ``unit``. ``ours``, ``peer``: the two that were compared, with the time
    that each took. The target is ``at_least`` or ``at_most``; both None: no target.
    """

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
        """True if the target is met; None without a target."""
        if self.at_least is not None:
            return self.value >= self.at_least
        return None if self.at_most is None else self.value <= self.at_most


@dataclass(frozen=True)
class Curve:
    """One line of a plot. ``plot``: the name of that plot."""

    plot: str
    name: str
    x_label: str
    y_label: str
    x: list[float]
    y: list[float]


@dataclass
class Section:
    """The results of one section. ``method``: a description of the work and the peers, in Markdown."""

    title: str
    method: str
    figures: list[Figure] = field(default_factory=list[Figure])
    curves: list[Curve] = field(default_factory=list[Curve])


def times_as_fast(
    what: str, times: dict[str, Times], ours: str, peer: str, *, at_least: float | None = None
) -> Figure:
    """Compare wall times: the peer's over ours."""
    mine, theirs = times[ours].wall_ms, times[peer].wall_ms
    return replace(_compared(what, ratio(theirs, mine), (ours, mine), (peer, theirs)), at_least=at_least)


def share_of(
    what: str,
    times: dict[str, Times],
    ours: str,
    peer: str,
    *,
    at_most: float | None = None,
    cpu: bool = False,
) -> Figure:
    """Compare wall times, or CPU times with ``cpu``: ours over the peer's."""
    mine, theirs = (times[name].cpu_ms if cpu else times[name].wall_ms for name in (ours, peer))
    unit = "ms of CPU" if cpu else "ms"
    return replace(_compared(what, ratio(mine, theirs), (ours, mine), (peer, theirs), unit), at_most=at_most)


def _compared(
    what: str, found: Ratio, ours: tuple[str, list[float]], peer: tuple[str, list[float]], unit: str = "ms"
) -> Figure:
    """Make a figure of a ratio, with the name and the median time of each of the two."""
    mine, theirs = (f"{name}: {statistics.median(times):.3g} {unit}" for name, times in (ours, peer))
    return Figure(what, found.median, found.least, found.most, "×", mine, theirs)


def write(section: Section, path: Path, *, seconds: float, load_before: float) -> None:
    """Write a section's results with the machine, its load and the versions of packages.

    ``seconds``: duration of the section; ``load_before``: load average before it.
    """
    values = {
        **asdict(section),
        "machine": {
            "processor": processor_name(),
            "cores": usable_cpus(),
            "system": platform.system(),
        },
        "load_before": round(load_before, 2),
        "seconds": round(seconds, 1),
        "versions": {"python": platform.python_version(), **_versions()},
    }
    write_whole(path, json.dumps(values, indent=1) + "\n")


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
