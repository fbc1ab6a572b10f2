"""Facts of this machine: processor, usable CPUs, memory, board and NVIDIA GPUs.

In: Linux's files below ``/proc`` and ``/dev``; no vendor's library is loaded. Out: names and sizes.
Each function takes the folders that it reads, for tests with the files of another machine.
"""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

PROC, DEV = Path("/proc"), Path("/dev")
# Nodes of a GPU itself: of a graphics card, then of a Jetson. Both /dev/nvidiactl and /dev/nvmap exist
# without a GPU.
GPU_NODES = ("nvidia[0-9]*", "nvhost-*gpu", "nvgpu")
# Cores of 64-bit ARM boards and servers by (implementer, part), as lscpu of util-linux names them.
_ARM_CORES = {
    (0x41, 0xD03): "Cortex-A53",
    (0x41, 0xD04): "Cortex-A35",
    (0x41, 0xD05): "Cortex-A55",
    (0x41, 0xD07): "Cortex-A57",
    (0x41, 0xD08): "Cortex-A72",
    (0x41, 0xD09): "Cortex-A73",
    (0x41, 0xD0A): "Cortex-A75",
    (0x41, 0xD0B): "Cortex-A76",
    (0x41, 0xD0C): "Neoverse-N1",
    (0x41, 0xD0D): "Cortex-A77",
    (0x41, 0xD0E): "Cortex-A76AE",
    (0x41, 0xD40): "Neoverse-V1",
    (0x41, 0xD41): "Cortex-A78",
    (0x41, 0xD42): "Cortex-A78AE",
    (0x41, 0xD44): "Cortex-X1",
    (0x41, 0xD46): "Cortex-A510",
    (0x41, 0xD47): "Cortex-A710",
    (0x41, 0xD49): "Neoverse-N2",
    (0x41, 0xD4B): "Cortex-A78C",
    (0x41, 0xD4D): "Cortex-A715",
    (0x41, 0xD4F): "Neoverse-V2",
    (0x41, 0xD80): "Cortex-A520",
    (0x41, 0xD81): "Cortex-A720",
    (0x41, 0xD83): "Neoverse-V3AE",
    (0x4E, 0x000): "Denver",
    (0x4E, 0x003): "Denver 2",
    (0x4E, 0x004): "Carmel",
}


@dataclass(frozen=True)
class Memory:
    """The machine's memory. ``available_bytes``: Linux's estimate of what programs can still allocate."""

    available_bytes: int
    total_bytes: int


def read_memory(proc: Path = PROC) -> Memory:
    """Return the memory that ``meminfo`` states. Raises OSError or KeyError where there is none."""
    lines = (proc / "meminfo").read_text().splitlines()
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    return Memory(kib["MemAvailable"] * 1024, kib["MemTotal"] * 1024)


def peak_memory_bytes(proc: Path = PROC) -> int:
    """Return the largest resident set of this process so far.

    From ``/proc`` where it exists, because ``ru_maxrss`` includes what the parent held when it started this
    process.
    """
    with contextlib.suppress(OSError):
        for line in (proc / "self" / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak_memory(proc: Path = PROC) -> None:
    """Let the peak of this process begin at what it holds now, where the kernel can (Linux)."""
    with contextlib.suppress(OSError):
        (proc / "self" / "clear_refs").write_text("5")


def usable_cpus() -> int:
    """Return the number of CPUs that this process may run on."""
    return len(os.sched_getaffinity(0))


def machine_name(proc: Path = PROC) -> str:
    """Return board, processor and architecture in one line, for a report's head."""
    named = ", ".join(name for name in (board_name(proc), processor_name(proc)) if name)
    return f"{named}, {platform.machine()}"


def board_name(proc: Path = PROC) -> str | None:
    """Return the name in the device tree ("Raspberry Pi 5 Model B Rev 1.0"); None without a device tree."""
    try:
        return (proc / "device-tree" / "model").read_text(errors="replace").strip("\0\n ") or None
    except OSError:
        return None


def processor_name(proc: Path = PROC) -> str:
    """Return the processor's name: x86's own, or the kinds of ARM cores ("Cortex-A55, Cortex-A76").

    Kernels for ARM name no model, or a generic one ("ARMv8 Processor rev 1 (v8l)"), but implementer and part
    of each core.
    """
    try:
        lines = (proc / "cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    values: dict[str, list[str]] = {}
    for key, separator, value in (line.partition(":") for line in lines):
        if separator:
            values.setdefault(key.strip(), []).append(value.strip())
    parts = zip(values.get("CPU implementer", []), values.get("CPU part", []), strict=False)
    kinds = dict.fromkeys(_core_name(implementer, part) for implementer, part in parts)
    if kinds:
        return ", ".join(kinds)
    return next(iter(values.get("model name", [])), "") or platform.processor() or "unknown processor"


def _core_name(implementer: str, part: str) -> str:
    """Name one kind of ARM core by the two hexadecimal numbers of ``cpuinfo``."""
    try:
        return _ARM_CORES[int(implementer, 16), int(part, 16)]
    except (KeyError, ValueError):
        return f"ARM implementer {implementer} part {part}"


def has_nvidia_gpu(dev: Path = DEV) -> bool:
    """Return whether the kernel has a device node of an NVIDIA GPU."""
    return any(True for pattern in GPU_NODES for _ in dev.glob(pattern))


def nvidia_gpu_names(proc: Path = PROC, dev: Path = DEV) -> tuple[str, ...]:
    """Return the models of all NVIDIA GPUs; for one whose driver states no model, its kind."""
    models = tuple(
        line.partition(":")[2].strip()
        for file in sorted((proc / "driver" / "nvidia" / "gpus").glob("*/information"))
        for line in file.read_text(errors="replace").splitlines()
        if line.startswith("Model:")
    )
    if models or not has_nvidia_gpu(dev):
        return models
    return ("NVIDIA GPU, unknown model",) if any(dev.glob(GPU_NODES[0])) else ("NVIDIA's integrated GPU",)
