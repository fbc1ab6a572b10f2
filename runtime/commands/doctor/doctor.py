"""``vaemotion doctor``: describe this machine, check its software and devices, and try a bundle.

In: a bundle's folder, or nothing. Out: ``Check`` records, printed one by one or as one JSON object.
Everything that loads native code or opens a device runs in a child process
(``runtime.commands.doctor.probes``): a driver may hang and a library may abort or print, and the report must
be finished all the same. So these modules import nothing that a broken installation could lack.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.table import Table
from rich.text import Text

from runtime.commands.doctor import checks
from runtime.commands.doctor.checks import Check, failed
from runtime.commands.doctor.forecast import probe_forecast
from runtime.machine.child_process import in_child
from runtime.machine.facts import board_name, nvidia_gpu_names, processor_name, read_memory, usable_cpus
from runtime.machine.thermal import read_thermal_zones
from vaemotion.contract.terminal import Terminal

GIB = 2**30


def doctor(bundle: Path | None, as_json: bool) -> int:
    """Print every check as it is done. Returns 0, or 1 where a check is a fault.

    ``bundle``: try it on this machine, too. ``as_json``: print one JSON object instead.
    """
    done: list[Check] = []
    console = Terminal()
    for check in examine(bundle):
        done.append(check)
        if not as_json:
            console.print(_row(check))
    faults = [check.name for check in done if check.ok is False]
    if as_json:
        where = None if bundle is None else str(bundle)
        report = {"schema": 1, "bundle": where, "ok": not faults, "checks": [asdict(c) for c in done]}
        print(json.dumps(report, indent=1))
    elif faults:
        console.print(Text(f"faults: {', '.join(faults)}", "red"))
    else:
        console.print(Text("no fault found", "green"))
    return 1 if faults else 0


def _row(check: Check) -> Table:
    mark, style = {True: ("✓", "green"), False: ("✗", "red"), None: ("–", "dim")}[check.ok]
    row = Table.grid(padding=(0, 1))
    row.add_column(width=1)
    row.add_column(width=17)
    row.add_column(overflow="fold")
    row.add_row(Text(mark, style), Text(check.name), Text(check.value))
    if check.advice:
        row.add_row("", "", Text(f"→ {check.advice}", "yellow"))
    return row


def examine(bundle: Path | None) -> Iterator[Check]:
    """Yield every check in order, each as soon as it is done. Raises nothing: errors become checks."""
    for check in (_vaemotion, _system, _device, _processor, _gpu, _memory, _temperature):
        yield from _guarded(check.__name__[1:], None, check)
    yield from _guarded("disk", None, lambda: _disk(bundle))
    yield from _guarded("packages", False, lambda: checks.packages(needed=bundle is not None))
    yield from _guarded("wheels", False, checks.onnxruntime_wheels)
    yield from _guarded("extras", None, checks.extras)
    yield from _guarded("TensorRT", None, checks.tensorrt)
    yield from _guarded("ONNX Runtime", None if bundle is None else False, checks.onnxruntime_providers)
    yield from _guarded("llama.cpp", None if bundle is None else False, checks.llama)
    yield from _guarded("cameras", None, checks.cameras)
    yield from _guarded("microphones", None, checks.microphones)
    if bundle is None:
        return
    if (yield from _works("bundle", lambda: _forecast(bundle))) and (
        yield from _works("bundle", lambda: checks.bundle_files(bundle))
    ):
        yield from _guarded("front end", False, lambda: checks.front_end(bundle))
        yield from _guarded("readings", False, lambda: checks.readings(bundle))
        yield from _guarded("language model", False, lambda: checks.language_model(bundle))


def _works(name: str, check: Callable[[], Check | Iterable[Check]]) -> Generator[Check, None, bool]:
    """Yield the records of a check that later ones depend on. Returns True where none of them is a fault."""
    found = list(_guarded(name, False, check))
    yield from found
    return not any(record.ok is False for record in found)


def _forecast(bundle: Path) -> list[Check]:
    """Estimate memory, disk and time from the manifest, before anything of the bundle is loaded."""
    found = in_child(probe_forecast, str(bundle))
    return [Check(**check) for check in json.loads(found)]


def _guarded(name: str, ok: bool | None, check: Callable[[], Check | Iterable[Check]]) -> Iterator[Check]:
    """Yield the check's records; an exception becomes a record with ``ok``."""
    try:
        found = check()
        yield from [found] if isinstance(found, Check) else found
    except Exception as error:  # the checks that follow must run all the same
        yield failed(name, ok, error)


def _vaemotion() -> Check:
    with suppress(PackageNotFoundError):
        return Check("vaemotion", None, f"{version('vaemotion')}, Python {platform.python_version()}")
    return Check("vaemotion", None, f"not installed, Python {platform.python_version()}")


def _system() -> Check:
    name = f"{platform.system()} {platform.release()}"
    with suppress(OSError):
        name = f"{platform.freedesktop_os_release()['PRETTY_NAME']}, {name}"
    return Check("system", None, f"{name}, {platform.machine()}")


def _device() -> Check:
    """Report the board's name from the device tree, such as that of a Jetson or a Raspberry Pi."""
    return Check("device", None, board_name() or "unknown board: no device tree")


def _processor() -> Check:
    return Check("processor", None, f"{processor_name()}, {usable_cpus()} of {os.cpu_count()} CPUs usable")


def _gpu() -> Check:
    return Check("gpu", None, ", ".join(nvidia_gpu_names()) or "no NVIDIA GPU")


def _memory() -> Check:
    memory = read_memory()
    available_gib, total_gib = memory.available_bytes / GIB, memory.total_bytes / GIB
    return Check("memory", None, f"{available_gib:.1f} of {total_gib:.1f} GiB available")


def _temperature() -> Check:
    zones = [f"{zone.name} {zone.temperature_c:.0f} °C" for zone in read_thermal_zones()]
    return Check("temperature", None, ", ".join(zones) or "no readable thermal zone")


def _disk(bundle: Path | None) -> Check:
    folder = bundle if bundle is not None and bundle.exists() else Path()
    usage = shutil.disk_usage(folder)
    where = "at the bundle" if folder == bundle else "in this folder"
    return Check("disk", None, f"{usage.free / GIB:.1f} of {usage.total / GIB:.1f} GiB free {where}")
