"""The checks of ``vaemotion doctor`` on packages, engines, cameras, microphones and a bundle.

Out: ``Check`` records. This module imports nothing that a broken installation could lack: ``probes`` does, in
child processes.
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

from runtime.commands.doctor import probes
from runtime.machine.child_process import ProbeError, in_child, sentence_of
from runtime.machine.facts import usable_cpus

BUNDLE_S = 600.0  # time limit for one probe of a bundle: it may be a gigabyte on a slow card
SILENT_DBFS = -70.0
CLIPPED_SHARE = 1e-3  # of the samples, at full scale
DARK, BRIGHT = 0.06, 0.94  # mean brightness, in [0, 1]
BLOWN_OUT_SHARE = 0.5  # of the pixels
FREE_DEVICE = "close other programs that use it, or plug it in again"
SLOW = "close other programs, or use a smaller bundle"
TOO_SLOW = "use a machine with a GPU, or a smaller bundle; files can still be run at full pace"
MIB = 2**20

PACKAGES = {  # name: module, and the extra that installs it ("": vaemotion itself)
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
    """The result of one check."""

    name: str
    ok: bool | None  # False: a fault, exit code 1; None: information, or not installed and not needed
    value: str
    advice: str = ""


def failed(name: str, ok: bool | None, error: Exception, way_out: str = "", before: str = "") -> Check:
    """Return a check for an error. ``way_out``: the advice where it has none; ``before``: a prefix."""
    value, _, advice = sentence_of(error).partition("; ")
    return Check(name, ok, before + value, advice or way_out)


# -- packages and engines
# ---------------------------------------------------------------------------------------


def packages(needed: bool) -> Iterator[Check]:
    """Check every package by importing it. ``needed``: a bundle will run, so its engines are not optional."""
    with ThreadPoolExecutor(max_workers=usable_cpus()) as pool:
        yield from pool.map(functools.partial(_package, needed=needed), PACKAGES)


def _package(name: str, needed: bool) -> Check:
    module, extra = PACKAGES[name]
    only_for_microphones = name == "sounddevice"
    if find_spec(module) is None:
        ok = None if only_for_microphones or (extra and not needed) else False
        return Check(name, ok, "not installed", f"pip install {_requirement(extra)}")
    try:
        return Check(name, True, in_child(probes.probe_package, module))
    except ProbeError as error:
        way_out = f"pip install --force-reinstall {name}"
        if only_for_microphones:
            return failed(name, None, error, "for microphones: sudo apt install libportaudio2")
        return failed(name, False, error, way_out)


def _requirement(extra: str) -> str:
    return f"'vaemotion[{extra}]'" if extra else "vaemotion"


def onnxruntime_wheels() -> Iterator[Check]:
    """Report a fault where both wheels of ONNX Runtime are installed: they overwrite each other's files."""
    found: list[str] = []
    for wheel in ("onnxruntime", "onnxruntime-gpu"):
        with suppress(PackageNotFoundError):
            found.append(f"{wheel} {version(wheel)}")
    if len(found) == 2:
        way_out = f"pip uninstall -y onnxruntime onnxruntime-gpu && pip install {_requirement('cpu')}"
        yield Check("wheels", False, f"{' and '.join(found)} overwrite each other", way_out)


def extras() -> Check:
    """List the other extras that are not installed."""
    absent = [extra for extra, module in OTHER_EXTRAS.items() if find_spec(module) is None]
    if not absent:
        return Check("extras", None, "all installed")
    way_out = f"if a command needs it: pip install {_requirement(','.join(absent))}"
    return Check("extras", None, f"not installed: {', '.join(absent)}", way_out)


def tensorrt() -> Check:
    """Check that a run would use TensorRT; if not, with the run's reason. Never a fault: others follow it."""
    found = in_child(probes.probe_tensorrt)
    if found["reason"] == "tensorrt is not installed":
        return Check("TensorRT", None, "not installed, not needed")
    if found["reason"]:
        return Check("TensorRT", None, found["reason"])
    return Check("TensorRT", True, f"{found['works']}; used first")


def onnxruntime_providers() -> Iterator[Check]:
    """Check the providers that a session really gets: onnxruntime-gpu lists CUDA without a GPU, too."""
    if find_spec("onnxruntime") is None:
        return  # reported by the check of its package
    found = in_child(probes.probe_onnxruntime)
    advice = ""
    if "CUDAExecutionProvider" in found["got"]:
        cuda = "works; used where TensorRT is unavailable"
    elif "CUDAExecutionProvider" in found["listed"]:
        cuda = f"in this build, but sessions get only the CPU: {found['reason']}"
        advice = "with a GPU: pip install 'onnxruntime-gpu[cuda,cudnn]', or the system's CUDA and cuDNN"
    else:
        cuda = "not in this build"
    yield Check("ONNX Runtime CUDA", None, cuda, advice)
    works = "CPUExecutionProvider" in found["got"]
    used = "works; used where neither TensorRT nor CUDA is available"
    yield Check("ONNX Runtime CPU", works, used if works else "sessions do not get this provider")


def llama() -> Check | list[Check]:
    """Report llama.cpp's build: GPU support and CPU features."""
    if find_spec("llama_cpp") is None:
        return []  # reported by the check of its package
    found = in_child(probes.probe_llama)
    built = "with GPU support" if found["gpu"] else "for the CPU only"
    return Check("llama.cpp", True, f"built {built}; uses {', '.join(found['features'])}")


# -- cameras and microphones
# ------------------------------------------------------------------------------------


def cameras(devices: Path = Path("/dev"), labels: Path = Path("/sys/class/video4linux")) -> Iterator[Check]:
    """Measure every camera's size, frame rate and light. Never a fault: a bundle also runs on files."""
    nodes = sorted(devices.glob("video[0-9]*"), key=lambda node: int(node.name[5:]))
    found = [check for node in nodes if (check := _camera(node, labels / node.name / "name"))]
    yield from found or [Check("cameras", None, "none", "connect one for live video")]


def _camera(node: Path, label_file: Path) -> Check | None:
    label = node.name
    with suppress(OSError):
        label = label_file.read_text(errors="replace").strip()
    if not os.access(node, os.R_OK | os.W_OK):
        way_out = "sudo usermod -aG video $USER, then log in again"
        return Check(node.name, None, f"{label}: no permission", way_out)
    try:
        measured = in_child(probes.probe_camera, str(node))
    except ProbeError as error:
        return failed(node.name, None, error, FREE_DEVICE, f"{label}: ")
    if measured is None:
        return None
    value = (
        f"{label}: {measured['width_px']:.0f} x {measured['height_px']:.0f}, "
        f"{measured['rate_hz']:.1f} frames/s, brightness {measured['brightness']:.0%}"
    )
    return Check(node.name, True, value, _light_advice(measured["brightness"], measured["blown_out"]))


def _light_advice(brightness: float, blown_out: float) -> str:
    if brightness < DARK:
        return "dark: uncover the lens, or light the room"
    if brightness > BRIGHT or blown_out > BLOWN_OUT_SHARE:
        return "overexposed: reduce the light or the exposure time"
    return ""


def microphones() -> Iterator[Check]:
    """Measure every microphone's level. Never a fault: a bundle also runs on files. No sound is stored."""
    if find_spec("sounddevice") is None:
        return  # reported by the check of its package
    found = in_child(probes.probe_microphones)
    if not found:
        yield Check("microphones", None, "none", "connect one for live sound")
    for index, label, is_default in found:
        yield _microphone(index, f"{label}, default" if is_default else label)


def _microphone(index: int, label: str) -> Check:
    name = f"microphone {index}"
    try:
        measured = in_child(probes.probe_level, index)
    except ProbeError as error:
        return failed(name, None, error, FREE_DEVICE, f"{label}: ")
    advice = ""
    if measured["clipped"] > CLIPPED_SHARE:
        advice = "clips: turn its gain down"
    elif measured["level_dbfs"] < SILENT_DBFS:
        advice = "nearly silent: unmute it, or turn its gain up"
    return Check(name, True, f"{label}: {measured['level_dbfs']:.0f} dBFS", advice)


# -- a bundle
# ---------------------------------------------------------------------------------------------------


def bundle_files(bundle: Path) -> Check:
    """Check every file's size and hash."""
    name, files, size_bytes = in_child(probes.probe_bundle, str(bundle), limit_s=BUNDLE_S)
    return Check("bundle", True, f"{name}: {files} files intact, {size_bytes / MIB:.1f} MiB")


def front_end(bundle: Path) -> Check:
    """Compare this machine's log-mel and pixels with the golden vectors."""
    measured = in_child(probes.probe_front_end, str(bundle), limit_s=BUNDLE_S)
    differences = ", ".join(f"{name} {value:.2g}" for name, value in measured.items())
    return Check("front end", True, f"matches the exporting machine (max difference: {differences})")


def readings(bundle: Path) -> Iterator[Check]:
    """Report the engines that a run uses, and the readings per second that they allow.

    Too few is no fault: a live run drops the ticks that it cannot keep up with. It is one where a reading
    takes so long that what it was made from is left out of the next.
    """
    found = in_child(probes.probe_readings, str(bundle), limit_s=BUNDLE_S)
    yield Check("engines", True, "; ".join(found["engines"]))
    reading_s, asked_hz, stale_s = sum(found["ms"].values()) / 1000, found["asked_hz"], found["stale_s"]
    parts = ", ".join(f"{role} {value:.1f} ms" for role, value in found["ms"].items())
    value = f"{_rate(1 / reading_s)} readings/s possible (target {_rate(asked_hz)}): {parts}"
    if reading_s > stale_s:
        late = f"; evidence is {reading_s:.1f} s old then, and after {stale_s:.0f} s it is left out"
        yield Check("readings", False, value + late, TOO_SLOW)
        return
    enough = 1 / reading_s >= asked_hz
    yield Check("readings", enough or None, value, "" if enough else SLOW)


def _rate(per_second: float) -> str:
    return f"{per_second:.0f}" if per_second >= 10 else f"{per_second:.2g}"


def language_model(bundle: Path) -> Check:
    """Report the language model's time for a prompt, and per generated token."""
    found = in_child(probes.probe_language_model, str(bundle), limit_s=BUNDLE_S)
    prompt = f"{found['prompt_tokens']} prompt tokens in {found['prompt_ms']:.0f} ms"
    return Check("language model", True, f"{prompt}, then {found['token_ms']:.1f} ms per token")
