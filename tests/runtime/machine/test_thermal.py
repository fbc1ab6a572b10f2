"""Thermal zones: temperatures, the point where throttling begins, and what is left until there."""

from __future__ import annotations

from pathlib import Path

from runtime.machine.thermal import read_thermal_zones, thermal_headroom_c


def zone(folder: Path, number: int, **files: str) -> None:
    directory = folder / f"thermal_zone{number}"
    directory.mkdir()
    for name, content in files.items():
        (directory / name).write_text(content + "\n")


def test_zones_and_their_trip_points_are_read(tmp_path: Path) -> None:
    zone(
        tmp_path, 0, type="cpu-thermal", temp="61500",
        trip_point_0_type="active", trip_point_0_temp="45000",
        trip_point_1_type="critical", trip_point_1_temp="104500",
        trip_point_2_type="passive", trip_point_2_temp="99000",
    )  # fmt: skip
    zone(tmp_path, 1, type="gpu-thermal", temp="70000", trip_point_0_type="hot", trip_point_0_temp="85000")
    zones = read_thermal_zones(tmp_path)
    assert [(z.name, z.temperature_c, z.trip_c) for z in zones] == [
        ("cpu-thermal", 61.5, 99.0), ("gpu-thermal", 70.0, 85.0),
    ]  # fmt: skip
    assert thermal_headroom_c(zones) == 15.0


def test_what_is_missing_or_senseless_is_left_out(tmp_path: Path) -> None:
    zone(tmp_path, 0, type="no-temperature")
    zone(tmp_path, 1, temp="40000")
    zone(
        tmp_path,
        2,
        type="x86_pkg_temp",
        temp="45000",
        trip_point_0_type="passive",
        trip_point_0_temp="-274000",
    )
    zone(tmp_path, 3, type="odd", temp="not a number")
    zone(tmp_path, 4, type="half", temp="50000", trip_point_0_type="critical")
    (tmp_path / "thermal_zone5").mkdir()
    (tmp_path / "thermal_zone5" / "temp").mkdir()  # reading it fails, as that of a sensor that sleeps does
    (tmp_path / "cooling_device0").mkdir()
    zones = read_thermal_zones(tmp_path)
    assert [z.name for z in zones] == ["thermal_zone1", "x86_pkg_temp", "half"]
    assert thermal_headroom_c(zones) is None


def test_a_machine_without_zones_has_none(tmp_path: Path) -> None:
    assert read_thermal_zones(tmp_path / "absent") == ()
    assert thermal_headroom_c(()) is None
    read_thermal_zones()  # this machine, whatever it has
