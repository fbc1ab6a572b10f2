"""The checks of `vaemotion doctor` on what is installed, on cameras and microphones, and on a bundle.

Out: ``Check`` records. This module imports nothing that a broken installation could lack; see ``runtime.doctor_probes``.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from runtime import doctor_probes
from runtime.doctor_probes import ProbeError, in_child, sentence_of

BUNDLE_S = 600.0  # for one probe of a bundle, which may be a gigabyte on a slow card
SILENT_DBFS = -70.0
CLIPPED_SHARE = 1e-3  # of the samples, at the end of the scale
DARK, BRIGHT = 0.06, 0.94  # mean brightness
BLOWN_OUT_SHARE = 0.5  # of the pixels
FREE_DEVICE = "close what else uses it, or plug it in again"
SLOW = "close other programs, or take a smaller bundle"
MIB = 2**20

PACKAGES = {  # name: module, and the extra that brings it ("" is the package itself)
    "numpy": ("numpy", ""),
    "opencv": ("cv2", ""),
    "av": ("av", ""),
    "soxr": ("soxr", ""),
    "tokenizers": ("tokenizers", ""),
    "sounddevice": ("sounddevice", ""),
    "onnxruntime": ("onnxruntime", "cpu"),
    "llama-cpp-python": ("llama_cpp", "llm"),
}
OTHER_EXTRAS = {"plot": "matplotlib", "train": "torch", "export": "onnxscript"}


@dataclass(frozen=True)
class Check:
    """``ok``: True works, False is a fault and makes the exit code 1, None is information, or absent and not needed."""

    name: str
    ok: bool | None
    value: str
    advice: str = ""


def failed(name: str, ok: bool | None, error: Exception, way_out: str = "", before: str = "") -> Check:
    """``way_out``: where the error names none."""
    value, _, advice = sentence_of(error).partition("; ")
    return Check(name, ok, before + value, advice or way_out)


def available_bytes() -> tuple[int, int]:
    """(available, total) memory."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    kib = {words[0].rstrip(":"): int(words[1]) for words in lines}
    return kib["MemAvailable"] * 1024, kib["MemTotal"] * 1024


# -- what is installed ------------------------------------------------------------------------------------------


def packages(needed: bool) -> Iterator[Check]:
    """Versions, as the packages themselves give them. ``needed``: a bundle is to run, so its engines are not optional."""
    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        yield from pool.map(functools.partial(_package, needed=needed), PACKAGES)


def _package(name: str, needed: bool) -> Check:
    module, extra = PACKAGES[name]
    only_for_microphones = name == "sounddevice"
    if find_spec(module) is None:
        ok = None if only_for_microphones or (extra and not needed) else False
        return Check(name, ok, "absent", f"pip install {_requirement(extra)}")
    try:
        return Check(name, True, in_child(doctor_probes.probe_package, module))
    except ProbeError as error:
        way_out = f"pip install --force-reinstall {name}"
        if only_for_microphones:
            return failed(name, None, error, "for microphones: sudo apt install libportaudio2")
        return failed(name, False, error, way_out)


def _requirement(extra: str) -> str:
    return f"'vaemotion[{extra}]'" if extra else "vaemotion"


def onnxruntime_wheels() -> Iterator[Check]:
    """A fault where both wheels of ONNX Runtime are installed: they write the same files, and what runs is a mixture."""
    found: list[str] = []
    for wheel in ("onnxruntime", "onnxruntime-gpu"):
        with suppress(PackageNotFoundError):
            found.append(f"{wheel} {version(wheel)}")
    if len(found) == 2:
        way_out = f"pip uninstall -y onnxruntime onnxruntime-gpu && pip install {_requirement('cpu')}"
        yield Check("wheels", False, f"{' and '.join(found)} overwrite each other", way_out)


def extras() -> Check:
    """Which of the other extras are absent."""
    absent = [extra for extra, module in OTHER_EXTRAS.items() if find_spec(module) is None]
    way_out = f"if a command asks for it: pip install {_requirement(','.join(absent))}" if absent else ""
    return Check("extras", None, f"absent: {', '.join(absent)}" if absent else "all there", way_out)


def tensorrt() -> Check:
    """Whether a run would use it, and if not, the reason that the run would give. No fault: other engines follow."""
    found = in_child(doctor_probes.probe_tensorrt)
    if found["reason"] == "tensorrt is not installed":
        return Check("TensorRT", None, "absent, and not needed")
    return Check("TensorRT", not found["reason"] or None, found["reason"] or f"{found['works']}: used first")


def onnxruntime_providers() -> Iterator[Check]:
    """What a session really gets: onnxruntime-gpu lists CUDA on machines without a GPU, too."""
    if find_spec("onnxruntime") is None:
        return  # said by its package
    found = in_child(doctor_probes.probe_onnxruntime)
    advice = ""
    if "CUDAExecutionProvider" in found["got"]:
        cuda = "works: used where TensorRT is not"
    elif "CUDAExecutionProvider" in found["listed"]:
        cuda = f"in this build, but a session gets only the CPU: {found['reason']}"
        advice = "on a machine with a GPU: pip install 'onnxruntime-gpu[cuda,cudnn]', or the system's CUDA and cuDNN"
    else:
        cuda = "not in this build"
    yield Check("ONNX Runtime CUDA", None, cuda, advice)
    used = "works: used where neither TensorRT nor CUDA is"
    yield Check("ONNX Runtime CPU", "CPUExecutionProvider" in found["got"], used)


def llama() -> Check | list[Check]:
    """How llama.cpp was built."""
    if find_spec("llama_cpp") is None:
        return []  # said by its package
    found = in_child(doctor_probes.probe_llama)
    built = "with GPU support" if found["gpu"] else "for the CPU only"
    return Check("llama.cpp", True, f"built {built}; uses {', '.join(found['features'])}")


# -- cameras and microphones ------------------------------------------------------------------------------------


def cameras(devices: Path = Path("/dev"), labels: Path = Path("/sys/class/video4linux")) -> Iterator[Check]:
    """Every camera, what OpenCV gets from it, and how fast. No fault: a bundle also runs on files."""
    nodes = sorted(devices.glob("video[0-9]*"), key=lambda node: int(node.name[5:]))
    found = [check for node in nodes if (check := _camera(node, labels / node.name / "name"))]
    yield from found or [Check("cameras", None, "none", "plug one in if the work is to be seen live")]


def _camera(node: Path, label_file: Path) -> Check | None:
    label = node.name
    with suppress(OSError):
        label = label_file.read_text().strip()
    if not os.access(node, os.R_OK | os.W_OK):
        way_out = "sudo usermod -aG video $USER, then log in again"
        return Check(node.name, None, f"{label}: no permission", way_out)
    try:
        seen = in_child(doctor_probes.probe_camera, str(node))
    except ProbeError as error:
        return failed(node.name, None, error, FREE_DEVICE, f"{label}: ")
    if seen is None:
        return None
    value = (
        f"{label}: {seen['width_px']:.0f} x {seen['height_px']:.0f}, {seen['rate_hz']:.1f} pictures a second, "
        f"brightness {seen['brightness']:.0%}"
    )
    return Check(node.name, True, value, _of_light(seen["brightness"], seen["blown_out"]))


def _of_light(brightness: float, blown_out: float) -> str:
    if brightness < DARK:
        return "dark: is the lens covered, or the room unlit?"
    if brightness > BRIGHT or blown_out > BLOWN_OUT_SHARE:
        return "overexposed: less light, or a shorter exposure"
    return ""


def microphones() -> Iterator[Check]:
    """Every microphone and its level. No fault: a bundle also runs on files. No sound is kept."""
    if find_spec("sounddevice") is None:
        return  # said by its package
    found = in_child(doctor_probes.probe_microphones)
    if not found:
        yield Check("microphones", None, "none", "plug one in if the work is to be heard live")
    for index, label, is_default in found:
        yield _microphone(index, f"{label}, default" if is_default else label)


def _microphone(index: int, label: str) -> Check:
    name = f"microphone {index}"
    try:
        heard = in_child(doctor_probes.probe_level, index)
    except ProbeError as error:
        return failed(name, None, error, FREE_DEVICE, f"{label}: ")
    way_out = ""
    if heard["clipped"] > CLIPPED_SHARE:
        way_out = "clips: turn its gain down"
    elif heard["level_dbfs"] < SILENT_DBFS:
        way_out = "nearly silent: is it muted, or its gain low?"
    return Check(name, True, f"{label}: {heard['level_dbfs']:.0f} dBFS", way_out)


# -- a bundle ---------------------------------------------------------------------------------------------------


def bundle_files(bundle: Path) -> Check:
    """Whether every file is whole."""
    name, files, size_bytes = in_child(doctor_probes.probe_bundle, str(bundle), limit_s=BUNDLE_S)
    return Check("bundle", True, f"{name}: {files} files whole, {size_bytes / MIB:.1f} MiB")


def front_end(bundle: Path) -> Check:
    """This machine's log-mel and pixels against the golden vectors."""
    measured = in_child(doctor_probes.probe_front_end, str(bundle), limit_s=BUNDLE_S)
    differences = ", ".join(f"{name} {value:.2g}" for name, value in measured.items())
    return Check("front end", True, f"as where it was exported; largest differences: {differences}")


def readings(bundle: Path) -> Iterator[Check]:
    """The engines in use, and how many readings a second they could give.

    Too few is no fault: a live run drops what it cannot do.
    """
    found = in_child(doctor_probes.probe_readings, str(bundle), limit_s=BUNDLE_S)
    yield Check("engines", True, "; ".join(found["engines"]))
    expected_hz, asked_hz = 1000 / sum(found["ms"].values()), found["asked_hz"]
    parts = ", ".join(f"{role} {value:.1f} ms" for role, value in found["ms"].items())
    value = f"{expected_hz:.0f} a second possible, {asked_hz:.0f} asked for: {parts}"
    enough = expected_hz >= asked_hz
    yield Check("readings", enough or None, value, "" if enough else SLOW)


def language_model(bundle: Path) -> Check:
    """How fast the language model answers here."""
    found = in_child(doctor_probes.probe_language_model, str(bundle), limit_s=BUNDLE_S)
    prompt = f"{found['prompt_ms']:.0f} ms for {found['prompt_tokens']} tokens of prompt"
    return Check("language model", True, f"{prompt}, then {found['token_ms']:.1f} ms a token")
