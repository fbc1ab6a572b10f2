"""``vaemotion doctor``: what this machine is and can do, for a technician, and whether a bundle works on it.

In: a bundle's folder, or nothing. Out: ``Check`` records, printed one by one or as one JSON object. Whatever loads native
code or opens a device runs in a process of its own (``runtime.doctor_probes``): a driver may hang, a library may abort or
print, and the report must be finished all the same. So these modules import nothing that a broken installation could lack.
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

from rich.console import Console
from rich.table import Table
from rich.text import Text

from runtime import doctor_checks as checks
from runtime.doctor_checks import Check, available_bytes, failed
from runtime.doctor_forecast import probe_forecast
from runtime.doctor_probes import in_child

GIB = 2**30


def doctor(bundle: Path | None, as_json: bool) -> int:
    """Print every check; ``as_json``: one object on stdout instead. Returns 0, or 1 where a check is a fault."""
    done: list[Check] = []
    console = Console(highlight=False)
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
        console.print(Text(f"does not work: {', '.join(faults)}", "red"))
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
    """Every check, in order, each as soon as it is done. Raises nothing: a check that fails says why."""
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
    """A check that others rest on: its records; returns whether none of them is a fault."""
    found = list(_guarded(name, False, check))
    yield from found
    return not any(record.ok is False for record in found)


def _forecast(bundle: Path) -> list[Check]:
    """What the manifest tells of memory, disk and time. It comes before whatever loads the bundle."""
    found = in_child(probe_forecast, str(bundle))
    return [Check(**check) for check in json.loads(found)]


def _guarded(name: str, ok: bool | None, check: Callable[[], Check | Iterable[Check]]) -> Iterator[Check]:
    """The check's records; what it raises becomes a record with ``ok``."""
    try:
        found = check()
        yield from [found] if isinstance(found, Check) else found
    except Exception as error:  # whatever it is, the checks that follow must still run
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
    """The board's name, which device trees have: a Jetson, a Raspberry Pi."""
    tree = Path("/proc/device-tree/model")
    if not tree.exists():
        return Check("device", None, "no Jetson and no other board with a device tree")
    return Check("device", None, tree.read_text().strip("\0\n"))


def _processor() -> Check:
    lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    names = [value.strip() for key, _, value in lines if key.strip() == "model name"]
    count = f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} CPUs usable"
    return Check("processor", None, f"{names[0] if names else platform.machine()}, {count}")


def _gpu() -> Check:
    models = [
        line.partition(":")[2].strip()
        for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
        for line in file.read_text().splitlines()
        if line.startswith("Model:")
    ]
    if not models and (Path("/dev/nvhost-gpu").exists() or Path("/dev/nvgpu").exists()):
        models = ["the Jetson's own"]
    return Check("gpu", None, ", ".join(models) or "none by NVIDIA")


def _memory() -> Check:
    available, total = available_bytes()
    return Check("memory", None, f"{available / GIB:.1f} of {total / GIB:.1f} GiB available")


def _temperature() -> Check:
    zones: list[str] = []
    for zone in sorted(Path("/sys/class/thermal").glob("thermal_zone*")):
        with suppress(OSError, ValueError):  # a zone that is switched off cannot be read
            degrees = int((zone / "temp").read_text()) / 1000
            zones.append(f"{(zone / 'type').read_text().strip()} {degrees:.0f} °C")
    return Check("temperature", None, ", ".join(zones) or "no zone can be read")


def _disk(bundle: Path | None) -> Check:
    folder = bundle if bundle is not None and bundle.exists() else Path()
    usage = shutil.disk_usage(folder)
    where = "at the bundle" if folder == bundle else "in this folder"
    return Check("disk", None, f"{usage.free / GIB:.1f} of {usage.total / GIB:.1f} GiB free {where}")
