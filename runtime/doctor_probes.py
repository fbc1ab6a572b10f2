"""What `vaemotion doctor` asks in processes of its own: a driver may hang, a library may abort or print.

In: a probe, a function of this or another module, and its arguments. Out: what it returns, as JSON, or ProbeError with the
reason. Each probe imports what it needs itself.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from base64 import b64decode
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple

from vaemotion.contract.errors import UserError

DEVICE_S = 3.0  # for a camera or microphone to give something, counted from when its library is loaded
WATCHED_S = 1.0  # that a camera is watched for, behind its first picture
PROBE_S = 60.0  # for one probe, Python's own start included: a slow card holds the packages
SPEED_RUNS = 20
LOWEST_DBFS = -120.0  # digital silence as a number
GENERATED_TOKENS = 16

# An ONNX model of one Identity node, x (1,) to y (1,): enough to see which providers a session really gets.
_IDENTITY = b64decode(
    "CAg6NwoQCgF4EgF5IghJZGVudGl0eRIBZ1oPCgF4EgoKCAgBEgQKAggBYg8KAXkSCgoICAESBAoCCAFCBAoAEBE="
)

_Result = TypeVar("_Result")
_Arguments = TypeVarTuple("_Arguments")


class ProbeError(UserError):
    """What a probe found not to work. The part after the first "; " is the way out."""


def in_child(
    probe: Callable[[*_Arguments], _Result], *arguments: *_Arguments, limit_s: float = PROBE_S
) -> _Result:
    """What a module's function ``probe`` returns in a new process; arguments and result travel as JSON.

    Raises ProbeError with the probe's reason, or when it dies or gives no answer within ``limit_s``.
    """
    code = "import sys; from runtime.doctor_probes import answer; answer(*sys.argv[1:])"
    home = str(Path(__file__).resolve().parents[1])
    search = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), home)))
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", code, probe.__module__, probe.__name__, json.dumps(arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": search},
    )
    try:
        out, err = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        raise ProbeError(f"gave no answer within {limit_s:g} s") from None
    finally:
        if process.poll() is None:
            process.kill()
            with suppress(subprocess.TimeoutExpired):  # a driver can make a process deaf to SIGKILL, too
                process.communicate(timeout=1)
    if process.returncode == -signal.SIGALRM:
        raise ProbeError(f"gave nothing within {DEVICE_S:g} s")
    if process.returncode != 0:
        raise ProbeError(_death(process.returncode, err.decode(errors="replace")))
    result: dict[str, Any] = json.loads(out.decode(errors="replace").splitlines()[-1])
    if "error" in result:
        raise ProbeError(result["error"])
    return result["result"]


def _death(code: int, log: str) -> str:
    if code == -signal.SIGILL:
        return "uses instructions that this processor lacks; build the package from source on this machine"
    with suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}; is there memory enough, is the package whole?"
    return f"ended with code {code}: {(log.strip().splitlines() or ['no reason given'])[-1]}"


def answer(module: str, probe: str, arguments: str) -> None:
    """The child's side of ``in_child``: the result, or the error, as the last line of stdout."""
    try:
        result = {"result": getattr(_untyped(module), probe)(*json.loads(arguments))}
    except Exception as error:  # all of it travels to the parent as a sentence
        result = {"error": sentence_of(error)}
    print("\n" + json.dumps(result), flush=True)
    os._exit(0)  # a library's farewell could hang, too


def _untyped(module: str) -> Any:
    return importlib.import_module(module)


def probe_package(module: str) -> str:
    """The version of a package, as it gives it itself."""
    package = _untyped(module)
    if module != "sounddevice":
        return str(package.__version__)
    return f"{package.__version__}, {package.get_portaudio_version()[1].partition(',')[0]}"


def probe_onnxruntime() -> dict[str, Any]:
    """Providers that ONNX Runtime lists, those that a session got, and why CUDA is not among them."""
    from runtime.onnx_engine import CPU, CUDA, lacking, preload_cuda

    ort = _untyped("onnxruntime")
    listed = ort.get_available_providers()
    wanted = [name for name in (CUDA, CPU) if name in listed]
    if CUDA in listed:
        preload_cuda(ort)
    ort.set_default_logger_severity(4)
    got = ort.InferenceSession(_IDENTITY, providers=wanted).get_providers()
    return {"listed": listed, "got": got, "reason": lacking(ort) if CUDA in set(listed) - set(got) else ""}


def probe_tensorrt() -> dict[str, str]:
    """What TensorRT runs on here, or the reason that it does not run."""
    from runtime.engine_io import EngineUnavailable
    from runtime.tensorrt_open import find_tensorrt

    try:
        found = find_tensorrt()
    except EngineUnavailable as reason:
        return {"works": "", "reason": str(reason)}
    return {"works": f"{found.module.__version__} on {found.gpu.name}", "reason": ""}


def probe_llama() -> dict[str, Any]:
    """Whether llama.cpp was built for GPUs, and the CPU features that it uses."""
    from runtime.llama import backend, on_gpu

    llama = backend().llama
    parts = llama.llama_print_system_info().decode().split("|")  # "CPU : AVX = 1 ", " FMA = 1 ", ...
    features = [part.split()[-3] for part in parts if part.endswith("= 1 ")]
    return {"gpu": on_gpu(), "features": features}


def probe_camera(path: str) -> dict[str, float] | None:
    """What ``watch`` finds; None for a node that is no camera, such as a camera's metadata or a codec."""
    if not _may_give_pictures(path):
        return None
    import cv2

    signal.setitimer(signal.ITIMER_REAL, DEVICE_S)
    capture = cv2.VideoCapture(path, cv2.CAP_V4L2)
    if not capture.isOpened():
        raise ProbeError("cannot be opened")
    return watch(capture)


def watch(capture: Any) -> dict[str, float]:
    """Size, measured pictures a second, and of the newest picture the mean brightness and the share of pixels that are blown out, in [0, 1].
    No picture is kept. capture: an open ``cv2.VideoCapture``."""
    whole, picture = capture.read()  # (H, W, 3) uint8
    if not whole:
        raise ProbeError("opens, but gives no picture")
    signal.setitimer(signal.ITIMER_REAL, WATCHED_S + DEVICE_S)
    began_s, count, last_s = time.monotonic(), 0, 0.0
    while last_s < WATCHED_S:
        whole, newer = capture.read()
        if not whole:
            break
        picture, count, last_s = newer, count + 1, time.monotonic() - began_s
    signal.setitimer(signal.ITIMER_REAL, 0)
    return {
        "width_px": picture.shape[1],
        "height_px": picture.shape[0],
        "rate_hz": count / last_s if last_s > 0 else 0.0,
        "brightness": float(picture.mean()) / 255,
        "blown_out": float((picture.min(axis=2) >= 250).mean()),
    }


def _may_give_pictures(path: str) -> bool:
    """False where the kernel says that a video node does not capture (V4L2's VIDIOC_QUERYCAP)."""
    import fcntl

    about = bytearray(104)  # struct v4l2_capability
    try:
        with open(os.open(path, os.O_RDWR | os.O_NONBLOCK), "rb", buffering=0) as node:
            fcntl.ioctl(node, 0x80685600, about)
    except OSError:
        return True  # let OpenCV say what is wrong with it
    device_caps = int.from_bytes(about[88:92], sys.byteorder)
    return bool(device_caps & 0x1001)  # capture, with one plane or several


def probe_microphones() -> list[tuple[int, str, bool]]:
    """(index, description, is the default) of each input device."""
    sounddevice = _untyped("sounddevice")
    default = sounddevice.default.device[0]
    return [
        (
            i,
            f"{device['name']}, {device['default_samplerate']:.0f} Hz, {device['max_input_channels']} channels",
            i == default,
        )
        for i, device in enumerate(sounddevice.query_devices())
        if device["max_input_channels"] > 0
    ]


def probe_level(index: int) -> dict[str, float]:
    """Level of half a second of an input device, in dB relative to a full-scale sine (AES17, without its DC offset), and the share of samples
    at the end of the scale. No sound is kept."""
    from vaemotion.contract.audio import level_dbfs

    sounddevice = _untyped("sounddevice")
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
    """(name, files, their bytes) of a bundle whose files are all whole."""
    from vaemotion.contract.bundle import read_manifest, verify_files

    manifest = read_manifest(Path(folder))
    verify_files(Path(folder), manifest)
    size_bytes = sum(component.bytes for component in manifest.components)
    return manifest.name, len(manifest.components), size_bytes


def probe_front_end(folder: str) -> dict[str, float]:
    """Largest differences to the golden front end."""
    from vaemotion.contract.bundle import check_front_end, read_golden, read_manifest

    manifest = read_manifest(Path(folder))
    return check_front_end(manifest, read_golden(Path(folder), manifest))


def probe_readings(folder: str) -> dict[str, Any]:
    """Announcement and median time of each engine on one golden input, and the rate that the constants ask for."""
    from runtime.engines import open_engine
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
    return {"engines": [e.announcement for e in engines.values()], "ms": times_ms, "asked_hz": asked_hz}


def probe_language_model(folder: str) -> dict[str, float]:
    """Times of the golden prompt and of each token after it; the bundle is opened as a run opens it."""
    from runtime.predictor import open_predictor
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
    """Median time of ``work`` in milliseconds, after one run to warm up."""
    times_s: list[float] = []
    for _ in range(1 + runs):
        start_s = time.perf_counter()
        work()
        times_s.append(time.perf_counter() - start_s)
    return 1000 * statistics.median(times_s[1:])


def sentence_of(error: Exception) -> str:
    """A user's error as it is, any other with its type."""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
