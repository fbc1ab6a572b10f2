"""Facts of a machine, from the files of an x86 server, a Jetson, two Raspberry Pis and this machine."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from runtime.machine.facts import (
    Memory,
    board_name,
    has_nvidia_gpu,
    machine_name,
    nvidia_gpu_names,
    peak_memory_bytes,
    processor_name,
    read_memory,
    usable_cpus,
)

X86 = """\
processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
stepping\t: 8
flags\t\t: fpu vme avx512_vnni amx_int8

processor\t: 1
vendor_id\t: GenuineIntel
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
"""
# Jetson Orin Nano, JetPack 6: a model name that is the same on every 64-bit core.
JETSON = """\
processor\t: 0
model name\t: ARMv8 Processor rev 1 (v8l)
BogoMIPS\t: 62.50
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd42
CPU revision\t: 1

processor\t: 1
model name\t: ARMv8 Processor rev 1 (v8l)
CPU implementer\t: 0x41
CPU part\t: 0xd42
"""
# Raspberry Pi OS in 64 bits: no model name, and the board's name behind the last core.
RASPBERRY_PI_5 = """\
processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1

Revision\t: c04170
Serial\t\t: 0000000000000000
Model\t\t: Raspberry Pi 5 Model B Rev 1.0
"""
PARTS = ["0xd05"] * 4 + ["0xd0b"] * 4
TWO_KINDS = "".join(f"CPU implementer : 0x41\nCPU part : {part}\n\n" for part in PARTS)
MEMORY = """\
MemTotal:        7990000 kB
MemFree:          120000 kB
MemAvailable:    4500000 kB
HugePages_Total:       0
Hugepagesize:       2048 kB
"""


def proc(folder: Path, cpuinfo: str | None = None, board: str | None = None) -> Path:
    if cpuinfo is not None:
        (folder / "cpuinfo").write_text(cpuinfo)
    if board is not None:
        (folder / "device-tree").mkdir()
        (folder / "device-tree" / "model").write_bytes(board.encode() + b"\0")
    return folder


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        (X86, "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz"),
        (JETSON, "Cortex-A78AE"),
        (RASPBERRY_PI_5, "Cortex-A76"),
        (TWO_KINDS, "Cortex-A55, Cortex-A76"),
        ("CPU implementer : 0x4e\nCPU part : 0x004\n", "Carmel"),
        ("CPU implementer : 0x41\nCPU part : 0xfff\n", "ARM implementer 0x41 part 0xfff"),
        ("CPU implementer : odd\nCPU part : odd\n", "ARM implementer odd part odd"),
    ],
)
def test_the_processor_is_named(tmp_path: Path, cpuinfo: str, name: str) -> None:
    assert processor_name(proc(tmp_path, cpuinfo)) == name


@pytest.mark.parametrize("cpuinfo", [None, "", "no line of a key\n", "model name :\n"])
def test_a_processor_without_a_name_has_a_sensible_one(tmp_path: Path, cpuinfo: str | None) -> None:
    assert processor_name(proc(tmp_path, cpuinfo)) == (platform.processor() or "unknown processor")


@pytest.mark.parametrize(
    ("cpuinfo", "board", "name"),
    [
        (X86, None, "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz"),
        (
            JETSON,
            "NVIDIA Jetson Orin Nano Developer Kit",
            "NVIDIA Jetson Orin Nano Developer Kit, Cortex-A78AE",
        ),
        (RASPBERRY_PI_5, "Raspberry Pi 5 Model B Rev 1.0", "Raspberry Pi 5 Model B Rev 1.0, Cortex-A76"),
    ],
)
def test_a_machine_is_named_by_board_processor_and_architecture(
    tmp_path: Path, cpuinfo: str, board: str | None, name: str
) -> None:
    folder = proc(tmp_path, cpuinfo, board)
    assert board_name(folder) == board
    assert machine_name(folder) == f"{name}, {platform.machine()}"


def test_an_empty_device_tree_names_no_board(tmp_path: Path) -> None:
    assert board_name(proc(tmp_path, board="")) is None


def test_memory_is_read_in_bytes(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text(MEMORY)
    assert read_memory(tmp_path) == Memory(4_500_000 * 1024, 7_990_000 * 1024)


def test_peak_memory_is_that_of_the_process_and_not_of_its_parent(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "status").write_text("VmPeak:\t 9999 kB\nVmHWM:\t    2048 kB\nVmRSS:\t 1000 kB\n")
    assert peak_memory_bytes(tmp_path) == 2048 * 1024
    assert peak_memory_bytes(tmp_path / "none") > 1e6  # the system call's figure


@pytest.mark.parametrize(
    ("nodes", "found"),
    [
        (("nvidia0", "nvidiactl"), True),
        (("nvidia3",), True),  # a container that was given one GPU of several
        (("nvhost-gpu", "nvmap"), True),  # Jetson
        (("nvhost-ctrl-gpu",), True),
        (("nvgpu",), True),
        (("nvidiactl", "nvidia-uvm", "nvmap", "nvhost-vic"), False),
        ((), False),
    ],
)
def test_a_gpu_is_recognised_by_its_device_node(tmp_path: Path, nodes: tuple[str, ...], found: bool) -> None:
    for node in nodes:
        (tmp_path / node).touch()
    assert has_nvidia_gpu(tmp_path) is found


def test_gpus_are_named_by_their_driver_or_by_their_kind(tmp_path: Path) -> None:
    devices, files = tmp_path / "dev", tmp_path / "proc"
    devices.mkdir()
    assert nvidia_gpu_names(files, devices) == ()
    (devices / "nvgpu").mkdir()
    assert nvidia_gpu_names(files, devices) == ("NVIDIA's integrated GPU",)
    (devices / "nvidia0").touch()
    assert nvidia_gpu_names(files, devices) == ("NVIDIA GPU, unknown model",)
    for address, model in (("0000:02:00.0", "NVIDIA L4"), ("0000:01:00.0", "NVIDIA H100 80GB HBM3")):
        folder = files / "driver" / "nvidia" / "gpus" / address
        folder.mkdir(parents=True)
        (folder / "information").write_text(f"Model: \t\t {model}\nIRQ:   \t\t 12\n")
    assert nvidia_gpu_names(files, devices) == ("NVIDIA H100 80GB HBM3", "NVIDIA L4")


def test_this_machine_has_facts() -> None:
    assert machine_name().endswith(platform.machine())
    assert 0 < read_memory().available_bytes <= read_memory().total_bytes
    assert usable_cpus() == len(os.sched_getaffinity(0))
