"""Thermal zones of Linux: temperatures, trip points, and the degrees that remain until throttling."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_THROTTLES = ("passive", "hot", "critical")  # "active" trip points only start a fan


@dataclass(frozen=True)
class ThermalZone:
    """One sensor and its limit.

    ``trip_c``: temperature at which the kernel begins to throttle or shuts down, None where none is set.
    """

    name: str
    temperature_c: float
    trip_c: float | None


def read_thermal_zones(folder: Path = Path("/sys/class/thermal")) -> tuple[ThermalZone, ...]:
    """Read all zones that can be read.

    Missing files are normal: containers have none, and a sensor in sleep gives an error.
    """
    zones: list[ThermalZone] = []
    for zone in sorted(folder.glob("thermal_zone*")):
        temperature_c = _degrees(zone / "temp")
        if temperature_c is not None:
            name = (_text(zone / "type") or zone.name).strip()
            zones.append(ThermalZone(name, temperature_c, _trip_c(zone)))
    return tuple(zones)


def thermal_headroom_c(zones: Sequence[ThermalZone]) -> float | None:
    """Return the degrees until the first zone throttles; None where no zone has a limit."""
    return min((zone.trip_c - zone.temperature_c for zone in zones if zone.trip_c is not None), default=None)


def _trip_c(zone: Path) -> float | None:
    trips_c: list[float] = []
    for file in zone.glob("trip_point_*_type"):
        trip_c = _degrees(file.with_name(re.sub("type$", "temp", file.name)))
        # 0 and below: a point that is not set
        if (_text(file) or "").strip() in _THROTTLES and trip_c is not None and trip_c > 0:
            trips_c.append(trip_c)
    return min(trips_c, default=None)


def _degrees(file: Path) -> float | None:
    try:
        return int(_text(file) or "") / 1000
    except ValueError:
        return None


def _text(file: Path) -> str | None:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return None
