"""The probes of ``vaemotion doctor``, which run in child processes: drivers hang, libraries abort.

In: text and numbers. Out: values that can be sent as JSON, or ProbeError with the reason. Each probe imports
what it needs itself.
"""

from __future__ import annotations

import os
import signal
import statistics
import sys
import time
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runtime.machine.child_process import DEVICE_S, ProbeError, untyped

WATCHED_S = 1.0  # of video to measure a camera's frame rate with, after its first frame
SPEED_RUNS = 20
LOWEST_DBFS = -120.0  # stands for digital silence
GENERATED_TOKENS = 16

# An ONNX model of one Identity node, x (1,) to y (1,): enough to find the providers that a session really
# gets.
_IDENTITY = b64decode(
    "CAg6NwoQCgF4EgF5IghJZGVudGl0eRIBZ1oPCgF4EgoKCAgBEgQKAggBYg8KAXkSCgoICAESBAoCCAFCBAoAEBE="
)


def probe_package(module: str) -> str:
    """Return a package's version, as the imported package reports it."""
    package = untyped(module)
    if module != "sounddevice":
        return str(package.__version__)
    return f"{package.__version__}, {package.get_portaudio_version()[1].partition(',')[0]}"


def probe_onnxruntime() -> dict[str, Any]:
    """Return the providers that ONNX Runtime lists, those that a session got, and the reason without CUDA."""
    from runtime.engines.onnx import CPU, CUDA, lacking, preload_cuda

    ort = untyped("onnxruntime")
    listed = ort.get_available_providers()
    wanted = [name for name in (CUDA, CPU) if name in listed]
    if CUDA in listed:
        preload_cuda(ort)
    ort.set_default_logger_severity(4)
    got = ort.InferenceSession(_IDENTITY, providers=wanted).get_providers()
    return {"listed": listed, "got": got, "reason": lacking(ort) if CUDA in set(listed) - set(got) else ""}


def probe_tensorrt() -> dict[str, str]:
    """Return TensorRT's version and GPU, or the reason why it does not run."""
    from runtime.engines.io import EngineUnavailable
    from runtime.engines.tensorrt.open import find_tensorrt

    try:
        found = find_tensorrt()
    except EngineUnavailable as reason:
        return {"works": "", "reason": str(reason)}
    return {"works": f"{found.module.__version__} on {found.gpu.name}", "reason": ""}


def probe_llama() -> dict[str, Any]:
    """Return llama.cpp's GPU support and the CPU features that it uses."""
    from runtime.engines.llama import backend, on_gpu

    llama = backend().llama
    parts = llama.llama_print_system_info().decode().split("|")  # "CPU : AVX = 1 ", " FMA = 1 ", ...
    features = [part.split()[-3] for part in parts if part.endswith("= 1 ")]
    return {"gpu": on_gpu(), "features": features}


def probe_camera(path: str) -> dict[str, float] | None:
    """Measure a camera (see ``measure_camera``); None for another video node, such as metadata or a codec."""
    if not _may_capture(path):
        return None
    import cv2

    signal.setitimer(signal.ITIMER_REAL, DEVICE_S)
    capture = cv2.VideoCapture(path, cv2.CAP_V4L2)
    if not capture.isOpened():
        raise ProbeError("cannot be opened")
    return measure_camera(capture)


def measure_camera(capture: Any) -> dict[str, float]:
    """Measure an open ``cv2.VideoCapture``; no frame is stored.

    Returns the size, the frame rate, and of the newest frame the mean brightness and the share of blown-out
    pixels, both in [0, 1]. Raises ProbeError where no frame comes.
    """
    ok, frame = capture.read()  # (H, W, 3) uint8
    if not ok:
        raise ProbeError("opens, but delivers no frame")
    signal.setitimer(signal.ITIMER_REAL, WATCHED_S + DEVICE_S)
    began_s, count, last_s = time.monotonic(), 0, 0.0
    while last_s < WATCHED_S:
        ok, newer = capture.read()
        if not ok:
            break
        frame, count, last_s = newer, count + 1, time.monotonic() - began_s
    signal.setitimer(signal.ITIMER_REAL, 0)
    return {
        "width_px": frame.shape[1],
        "height_px": frame.shape[0],
        "rate_hz": count / last_s if last_s > 0 else 0.0,
        "brightness": float(frame.mean()) / 255,
        "blown_out": float((frame.min(axis=2) >= 250).mean()),
    }


def _may_capture(path: str) -> bool:
    """Return False where the kernel says that a video node does not capture (V4L2's VIDIOC_QUERYCAP)."""
    import fcntl

    capability = bytearray(104)  # struct v4l2_capability
    try:
        with open(os.open(path, os.O_RDWR | os.O_NONBLOCK), "rb", buffering=0) as node:
            fcntl.ioctl(node, 0x80685600, capability)
    except OSError:
        return True  # OpenCV reports the error
    device_caps = int.from_bytes(capability[88:92], sys.byteorder)
    return bool(device_caps & 0x1001)  # capture, with one plane or several


def probe_microphones() -> list[tuple[int, str, bool]]:
    """Return (index, description, True for the default) of each input device."""
    sounddevice = untyped("sounddevice")
    default = sounddevice.default.device[0]
    found: list[tuple[int, str, bool]] = []
    for index, device in enumerate(sounddevice.query_devices()):
        rate_hz, channels = device["default_samplerate"], device["max_input_channels"]
        if channels > 0:
            found.append(
                (index, f"{device['name']}, {rate_hz:.0f} Hz, {channels} channels", index == default)
            )
    return found


def probe_level(index: int) -> dict[str, float]:
    """Record half a second of an input device and measure it; no sound is stored.

    Returns its level in dB relative to a full-scale sine (AES17, without its DC offset), and the share of
    samples at full scale.
    """
    from vaemotion.contract.audio import level_dbfs

    sounddevice = untyped("sounddevice")
    rate_hz = int(sounddevice.query_devices(index)["default_samplerate"])
    signal.setitimer(signal.ITIMER_REAL, DEVICE_S)
    with sounddevice.InputStream(device=index, samplerate=rate_hz, channels=1, dtype="float32") as stream:
        stream.read(rate_hz // 4)  # a device may begin with silence
        signal.setitimer(signal.ITIMER_REAL, DEVICE_S)
        samples, _ = stream.read(rate_hz // 2)  # (n, 1) float32 in [-1, 1]
    return {
        "level_dbfs": max(level_dbfs(samples), LOWEST_DBFS),
        "clipped": float((abs(samples) > 0.999).mean()),
    }


def probe_bundle(folder: str) -> tuple[str, int, int]:
    """Check every file of a bundle. Returns its name, the number of files, and their bytes."""
    from vaemotion.contract.bundle import read_manifest, verify_files

    manifest = read_manifest(Path(folder))
    verify_files(Path(folder), manifest)
    size_bytes = sum(component.bytes for component in manifest.components)
    return manifest.name, len(manifest.components), size_bytes


def probe_front_end(folder: str) -> dict[str, float]:
    """Return the largest differences of log-mel and pixels to the golden vectors."""
    from vaemotion.contract.bundle import check_front_end, read_golden, read_manifest

    manifest = read_manifest(Path(folder))
    return check_front_end(manifest, read_golden(Path(folder), manifest))


def probe_readings(folder: str) -> dict[str, Any]:
    """Return each engine's announcement and median time on one golden input, and the bundle's target rate.

    ``stale_s``: the age from which a run leaves evidence out.
    """
    from runtime.engines.open import open_engine
    from runtime.perception.perception import STALE_S
    from vaemotion.contract.bundle import ENGINE_ROLES, read_golden, read_manifest

    bundle = Path(folder)
    manifest = read_manifest(bundle)
    golden, windows = read_golden(bundle, manifest), manifest.front_end.windows
    engines = {role: open_engine(bundle, manifest, role) for role in ENGINE_ROLES}
    times_ms: dict[str, float] = {}
    for role, engine in engines.items():
        inputs = {spec.name: golden[f"{role}/in/{spec.name}"][:1] for spec in engine.component.inputs}
        times_ms[role] = _median_ms(SPEED_RUNS, lambda run=engine.run, given=inputs: run(given))
    asked_hz = 1 / min(windows.frame_hop_s, windows.audio_stride_s)
    announced = [engine.announcement for engine in engines.values()]
    return {"engines": announced, "ms": times_ms, "asked_hz": asked_hz, "stale_s": STALE_S}


def probe_language_model(folder: str) -> dict[str, float]:
    """Time the golden prompt and the tokens after it, with the bundle opened as a run opens it."""
    from runtime.perception.predictor import open_predictor
    from vaemotion.contract.bundle import read_golden, read_manifest

    bundle = Path(folder)
    prompt = read_golden(bundle, read_manifest(bundle))["language_model/in/embeddings"]  # (n, D)
    with open_predictor(bundle) as predictor:
        model: Any = predictor.language_model  # a LanguageModel, of which the predictor itself needs less
        first_ms = _median_ms(3, lambda: model.generate(prompt, max_tokens=1, stop_ids=()))
        all_ms = _median_ms(3, lambda: model.generate(prompt, max_tokens=1 + GENERATED_TOKENS, stop_ids=()))
    token_ms = max(0.0, all_ms - first_ms) / GENERATED_TOKENS
    return {"prompt_tokens": len(prompt), "prompt_ms": first_ms, "token_ms": token_ms}


def _median_ms(runs: int, work: Callable[[], object]) -> float:
    """Return the median time of ``work`` in milliseconds, after one call for warm-up."""
    times_s: list[float] = []
    for _ in range(1 + runs):
        start_s = time.perf_counter()
        work()
        times_s.append(time.perf_counter() - start_s)
    return 1000 * statistics.median(times_s[1:])
