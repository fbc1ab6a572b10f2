"""Compare INT8 with and without VNNI, in accuracy and speed, and check a bundle's INT8 files on each.

    python -m benchmarks.int8_processors BUNDLE

In: a verified bundle with INT8 files, of a checkpoint trained on procedural art, on an x86-64 processor
with VNNI. Out: the measured section of ``docs/decisions/0007-int8-on-every-processor.md``. Other kinds of
processor are this one with instruction sets hidden (``cpuid_mask.c``, needs gcc and the flag cpuid_fault),
and QEMU's emulation of Haswell (``qemu-x86_64-static`` of Debian's qemu-user-static); what the machine
lacks is left out.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.against_optimum.report import replace_measured
from benchmarks.int8_processors.choices import CHOICES, write_choices
from benchmarks.int8_processors.shipped import check_products, write_shipped
from benchmarks.timing import ratio
from export.verify import sqnr_db
from runtime.machine.facts import processor_name
from vaemotion.contract.words import markdown_table

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "decisions" / "0007-int8-on-every-processor.md"
MASKS = {
    "AVX-512 without VNNI": "avx512",
    "AVX2 with VNNI": "avx2-vnni",
    "AVX2": "avx2",
}
EMULATOR = ("qemu-x86_64-static", "-cpu", "Haswell-noTSX")
Results = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Processor:
    """A kind of processor: how a process is started on it, and whether its timing means anything."""

    name: str
    prefix: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    timed: bool = True

    def run(self, folder: Path, *, timed: bool) -> Results:
        """Run the graphs of a folder there; return the worker's results."""
        results = folder / "results.npz"
        command = [*self.prefix, sys.executable, "-m", "benchmarks.int8_processors.worker"]
        command += [str(folder), str(results), *(["--timed"] if timed and self.timed else [])]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **self.environment}
        subprocess.run(command, check=True, env=environment, cwd=ROOT)
        with np.load(results) as found:
            return dict(found)


def processors(folder: Path) -> Iterator[Processor]:
    """Yield this processor, and the others that this machine can stand in for."""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("flags")[2].partition("\n")[0].split()
    if platform.machine() != "x86_64" or "avx512_vnni" not in flags:
        sys.exit(
            "this comparison needs an x86-64 processor with AVX-512 VNNI (grep avx512_vnni /proc/cpuinfo)"
        )
    yield Processor("AVX-512 with VNNI")
    if "cpuid_fault" in flags and (compiler := shutil.which("gcc")):
        library = folder / "cpuid_mask.so"
        source = Path(__file__).with_name("cpuid_mask.c")
        subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
        for name, mask in MASKS.items():
            if name != "AVX2 with VNNI" or "avx_vnni" in flags:
                yield Processor(name, environment={"LD_PRELOAD": str(library), "CPUID_MASK": mask})
    if shutil.which(EMULATOR[0]):
        yield Processor("AVX2, emulated (QEMU, Haswell)", EMULATOR, timed=False)


def shipped_rows(folder: Path, kinds: Sequence[Processor]) -> Iterator[list[object]]:
    """Yield a row per processor and scheme: exact and bit-equal products, differences of whole files."""
    reference: Results = {}
    for kind in kinds:
        found = kind.run(folder, timed=False)
        reference = reference or found
        for scheme in ("int8-cpu", "int8"):
            products = [name for name in found if name.startswith("products-") and f".{scheme}:" in name]
            exact = check_products(folder, {name: found[name] for name in products})
            same = sum(np.array_equal(found[name], reference[name]) for name in products)
            files = [name for name in found if name.startswith("file-") and f".{scheme}:" in name]
            equal = sum(np.array_equal(found[name], reference[name]) for name in files)
            largest = max(difference(reference[name], found[name]) for name in files)
            count = len(products)
            row = [kind.name, scheme, f"{exact} of {count}", f"{same} of {count}", f"{equal} of {len(files)}"]
            yield [*row, f"{largest:.1e}"]


def difference(expected: npt.NDArray[Any], got: npt.NDArray[Any]) -> float:
    """Return the largest difference, relative to the largest expected value."""
    return float(np.abs(expected - got).max() / np.abs(expected).max())


def speed_rows(folder: Path, kinds: Sequence[Processor]) -> Iterator[list[object]]:
    """Yield a row per graph and processor: CPU time in FP32, and each choice's speed and signal to noise."""
    for kind in kinds:
        if not kind.timed:
            continue
        found = kind.run(folder, timed=True)
        stems = list(dict.fromkeys(name.partition("~")[0] for name in found if name.endswith(":cpu_ms")))
        for stem in stems:
            fp32 = list(found[f"{stem}~fp32:cpu_ms"])
            row: list[object] = [stem, kind.name, f"{np.median(fp32):.2f}"]
            for choice in CHOICES:
                speed = ratio(fp32, list(found[f"{stem}~{choice}:cpu_ms"])).median
                row.append(f"{speed:.2f}, {noise_db(found, stem, choice):.1f} dB")
            yield row


def noise_db(found: Results, stem: str, choice: str) -> float:
    """Return the signal to noise ratio of a choice to FP32, of the output with the most values."""
    names = [name for name in found if name.startswith(f"{stem}~fp32:") and not name.endswith(":cpu_ms")]
    name = max(names, key=lambda name: found[name].size)
    return sqnr_db(found[name], found[name.replace("~fp32:", f"~{choice}:")])


def main() -> None:
    """Measure, and write the measured section of the document."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--windows", type=int, default=256, help="calibration windows")
    parser.add_argument("--out", type=Path, default=DOCUMENT)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        shipped, choices = work / "shipped", work / "choices"
        shipped.mkdir()
        choices.mkdir()
        kinds = list(processors(work))
        write_shipped(arguments.bundle, shipped)
        files = list(shipped_rows(shipped, kinds))
        accuracy = write_choices(arguments.bundle, choices, arguments.windows)
        speed = list(speed_rows(choices, kinds))
    text = arguments.out.read_text(encoding="utf-8")
    arguments.out.write_text(replace_measured(text, section(files, accuracy, speed)), encoding="utf-8")


def section(
    files: Sequence[Sequence[object]], accuracy: Sequence[Sequence[object]], speed: Sequence[Sequence[object]]
) -> str:
    """Return the document's measured section as Markdown."""
    file_head = ("processor", "file", "integers exact", "products bit-equal", "outputs bit-equal", "largest")
    version = importlib.metadata.version("onnxruntime")
    parts = [
        f"`python -m benchmarks.int8_processors BUNDLE` on {processor_name()}, onnxruntime {version}.",
        "The bundle's INT8 files. Integers are compared with NumPy's; bits and the largest difference of "
        "outputs (relative to the largest value) are compared with the first row's processor.",
        markdown_table(file_head, files),
        "Accuracy of every block in INT8 with ranges by maximum, on 64 windows of the validation split "
        "(computed with VNNI). Damage: 1 - CCC between the readings with and without INT8.",
        markdown_table(("engine", "scheme", "weights", "damage", "SNR, dB"), accuracy, (3, 4)),
        "Speed of `int8-cpu` on one thread: times as fast as FP32 (CPU time, interleaved), and the signal to "
        "noise ratio of one input. The tower is SigLIP-base at 224 px (196 patches) with random weights.",
        markdown_table(("engine", "processor", "FP32, ms", *CHOICES), speed),
    ]
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
