"""Open a bundle's component on this TensorRT: from the cache, or built, checked and then cached.

In: the bundle and the component. Out: a running engine whose announcement says where it came from. An engine
enters the cache only after it reproduced the bundle's golden vectors, so that a cached engine needs no check.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from runtime.engines import cache as engine_cache
from runtime.engines.cache import BatchProfile, EngineKey
from runtime.engines.golden import allowed_difference, golden_differences
from runtime.engines.gpu import (
    Gpu,
    find_gpu,
    free_device_bytes,
    load_cudart,
    load_tensorrt,
    tensorrt_is_installed,
)
from runtime.engines.io import EngineError, EngineUnavailable
from runtime.engines.tensorrt.build import Built, build, progress_bars, progress_monitor, timing_key
from runtime.engines.tensorrt.engine import TensorRtEngine
from runtime.engines.tensorrt.layers import int8_report
from vaemotion.contract.bundle import Component, Manifest, component_path, read_golden, sha256_of
from vaemotion.contract.terminal import Terminal


@dataclass(frozen=True)
class TensorRt:
    """This machine's TensorRT: its module, CUDA's runtime API, and the GPU."""

    module: Any
    cudart: Any
    gpu: Gpu


@cache
def find_tensorrt() -> TensorRt:
    """Load CUDA and, where that finds a GPU, TensorRT. Raises EngineUnavailable."""
    if not tensorrt_is_installed():
        raise EngineUnavailable("tensorrt is not installed")
    cudart = load_cudart()
    gpu = find_gpu(cudart)
    return TensorRt(load_tensorrt(), cudart, gpu)


DEFAULT_PROFILE = BatchProfile()


def open_tensorrt(
    found: TensorRt,
    folder: Path,
    manifest: Manifest,
    component: Component,
    profile: BatchProfile = DEFAULT_PROFILE,
) -> TensorRtEngine:
    """Open the component's engine.

    Raises EngineUnavailable where TensorRT cannot build or load it, EngineError where its results are wrong.
    """
    onnx = component_path(folder, component)
    key = key_of(found, sha256_of(onnx), component.precision, profile)
    cached = engine_cache.cache_folder()
    file = engine_cache.engine_file(cached / "tensorrt", component.role, key) if cached else None
    plan, why_not_cached = engine_cache.load(file, asdict(key)) if file else (None, engine_cache.NO_FOLDER)
    if plan is not None:
        engine = _started(found, plan, component, profile)
        return _announced(engine, found.gpu, "from the cache")
    built = _build(found, onnx, component, profile, file.parent if file else None)
    engine = _started(found, built.plan, component, profile)
    check_golden(engine, folder, manifest)
    if file is not None:
        try:
            engine_cache.store(file, asdict(key), built.plan)
        except OSError as error:
            why_not_cached += f", and it cannot be cached: {error.strerror}: {file.parent}"
    return _announced(engine, found.gpu, f"built in {built.seconds:.0f} s, {why_not_cached}")


def _started(found: TensorRt, plan: bytes, component: Component, profile: BatchProfile) -> TensorRtEngine:
    """Start an engine; an error of CUDA, such as lack of memory, is a reason to take another engine."""
    try:
        return TensorRtEngine(found.module, found.cudart, plan, component, profile)
    except EngineError as error:
        raise EngineUnavailable(str(error)) from error


def key_of(found: TensorRt, onnx_sha256: str, precision: str, profile: BatchProfile) -> EngineKey:
    """Return the cache's key of an engine for this machine."""
    gpu = found.gpu
    return EngineKey(
        onnx_sha256=onnx_sha256,
        precision=precision,
        profile=profile,
        tensorrt_version=str(found.module.__version__),
        cuda_runtime_version=gpu.cuda_runtime_version,
        driver_version=gpu.driver_version,
        gpu_name=gpu.name,
        compute_capability=gpu.compute_capability,
    )


def _build(
    found: TensorRt, onnx: Path, component: Component, profile: BatchProfile, folder: Path | None
) -> Built:
    """Build with progress bars on standard error, and cache TensorRT's timings in ``folder`` for the next."""
    gpu = found.gpu
    key = timing_key(str(found.module.__version__), gpu.name, gpu.compute_capability)
    file = folder / "timings" if folder else None
    known = engine_cache.load(file, key)[0] if file else None
    console = Terminal(stderr=True)
    console.print(f"building {component.label} with TensorRT for {gpu.name}; this takes minutes, once")
    with progress_bars(console) as bars:
        monitor = progress_monitor(found.module, bars)
        free_bytes = free_device_bytes(found.cudart)
        built = build(
            found.module, onnx, profile, free_bytes=free_bytes, timing=known or b"", monitor=monitor
        )
    if file is not None and built.timing is not None:
        with suppress(OSError):  # the next build is only slower
            engine_cache.store(file, key, built.timing)
    return built


def check_golden(engine: TensorRtEngine, folder: Path, manifest: Manifest) -> None:
    """Compare the engine with the golden vectors of its role. Raises EngineError where it differs."""
    differences = golden_differences(engine, read_golden(folder, manifest))
    allowed = allowed_difference(engine, manifest)
    name, worst = max(differences.items(), key=lambda item: item[1])
    if not worst <= allowed:
        raise EngineError(
            f"{engine.component.label}: TensorRT's engine differs by {worst:.3g} from the golden vector "
            f"{name!r} (allowed {allowed:.3g}); `vaemotion run --engine cpu` does without it"
        )


def _announced(engine: TensorRtEngine, gpu: Gpu, origin: str) -> TensorRtEngine:
    """Complete the engine's announcement and return the engine."""
    parts = [f"on {gpu.name}", origin]
    if engine.component.precision == "int8":
        parts.append(int8_report(engine.layers()).sentence())
    if engine.without_graph:
        parts.append(f"without a CUDA graph ({engine.without_graph})")
    engine.announcement += " " + "; ".join(parts)
    return engine
