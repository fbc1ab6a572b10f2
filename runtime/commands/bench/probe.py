"""The measurements of ``vaemotion bench``, each in a child process with its own memory and load time.

In: a bundle's folder and one of its components. Out: plain figures that can be sent as JSON.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from runtime.engines.language_model import LanguageModel, open_language_model
from runtime.engines.llama import backend, on_gpu
from runtime.engines.open import EngineError, OnnxRuntimeEngine, OpenedEngine, open_engine
from runtime.machine.facts import peak_memory_bytes
from vaemotion.contract.bundle import (
    ENGINE_ROLES,
    Component,
    Manifest,
    component_path,
    read_golden,
    read_manifest,
)

GENERATED_TOKENS = 16  # after the golden prompt; more would take too long on a slow device
LONGEST_S = 10.0  # time limit for one series of runs
FEWEST_RUNS = 3


class Figures(TypedDict):
    """The figures of one process."""

    opened: list[tuple[str, str, str]]  # role, precision, engine that runs it
    foreign: bool  # made for an engine that this machine lacks; ONNX Runtime's CPU provider ran it
    load_s: float
    before_bytes: int  # resident memory before the files were opened
    peak_bytes: int
    runs_ms: list[float]  # per inference, per generated token (language model), or per reading (all files)
    prompt_tokens_per_s: list[float]


def probe_component(folder: str, role: str, precision: str, runs: int, threads: int) -> Figures:
    """Measure one engine, on the best that this machine has for its precision, or one language model.

    Inputs are the bundle's golden vectors, batch 1. ``runs``: inferences; ``threads``: of the engine.
    """
    bundle = Path(folder)
    manifest = read_manifest(bundle)
    component, golden = manifest.component(role, precision), read_golden(bundle, manifest)
    _import_libraries([role])
    before_bytes, start_s = peak_memory_bytes(), time.perf_counter()
    rates: list[float] = []
    foreign = False
    if role == "language_model":
        with open_language_model(bundle, manifest, component, threads=threads) as model:
            load_s = time.perf_counter() - start_s
            runs_ms, rates = _token_times(model, golden["language_model/in/embeddings"], runs)
        runs_on = _llama_runs_on(threads)
    else:
        engine, foreign = _engine(bundle, manifest, component, threads)
        load_s = time.perf_counter() - start_s
        inputs = _golden_inputs(component, golden)
        runs_ms = _times_ms(lambda: engine.run(inputs), runs)
        runs_on = _runs_on(engine)
    return {
        "opened": [(role, precision, runs_on)],
        "foreign": foreign,
        "load_s": load_s,
        "before_bytes": before_bytes,
        "peak_bytes": peak_memory_bytes(),
        "runs_ms": runs_ms,
        "prompt_tokens_per_s": rates,
    }


def probe_whole(folder: str, runs: int, threads: int) -> Figures:
    """Measure all files that a run opens, in one process. One reading runs every engine once."""
    bundle = Path(folder)
    manifest = read_manifest(bundle)
    golden, written = read_golden(bundle, manifest), manifest.component("language_model")
    _import_libraries([*ENGINE_ROLES, "language_model"])
    before_bytes, start_s = peak_memory_bytes(), time.perf_counter()
    engines = [open_engine(bundle, manifest, role, threads) for role in ENGINE_ROLES]
    with open_language_model(bundle, manifest, written, threads=threads) as model:
        load_s = time.perf_counter() - start_s
        inputs = [_golden_inputs(engine.component, golden) for engine in engines]

        def reading() -> None:
            for engine, given in zip(engines, inputs, strict=True):
                engine.run(given)

        runs_ms = _times_ms(reading, runs)
        _, rates = _token_times(model, golden["language_model/in/embeddings"], FEWEST_RUNS)
    opened = [(e.component.role, e.component.precision, _runs_on(e)) for e in engines]
    return {
        "opened": [*opened, ("language_model", written.precision, _llama_runs_on(threads))],
        "foreign": False,
        "load_s": load_s,
        "before_bytes": before_bytes,
        "peak_bytes": peak_memory_bytes(),
        "runs_ms": runs_ms,
        "prompt_tokens_per_s": rates,
    }


def _import_libraries(roles: list[str]) -> None:
    """Import the libraries that open these roles' files, so that load times do not contain the import."""
    if "language_model" in roles:
        backend()
    if set(roles) & set(ENGINE_ROLES):
        with suppress(ImportError):  # opening the engine reports it with advice
            importlib.import_module("onnxruntime")


def _engine(
    bundle: Path, manifest: Manifest, component: Component, threads: int
) -> tuple[OpenedEngine, bool]:
    """Open a component's engine. Returns it, and True where its precision is foreign here (CPU)."""
    try:
        return open_engine(bundle, manifest, component.role, threads, precision=component.precision), False
    except EngineError:
        return OnnxRuntimeEngine(component_path(bundle, component), component, threads), True


def _runs_on(engine: OpenedEngine) -> str:
    return engine.announcement.removeprefix(f"{engine.component.label}: ")


def _llama_runs_on(threads: int) -> str:
    return "llama.cpp on the GPU" if on_gpu() else f"llama.cpp, {threads} threads"


def _golden_inputs(component: Component, golden: dict[str, Any]) -> dict[str, Any]:
    return {
        spec.name: golden[f"{component.role}/in/{spec.name}"][:1].astype(spec.dtype)
        for spec in component.inputs
    }


def _token_times(model: LanguageModel, prompt: Any, runs: int) -> tuple[list[float], list[float]]:
    """Time the golden prompt (n, D) and the tokens generated after it.

    Returns for each run the time per generated token in ms, and the prompt's tokens per second.
    """
    prompts_ms = _times_ms(lambda: model.generate(prompt, max_tokens=1, stop_ids=()), runs)
    most = 1 + GENERATED_TOKENS
    all_ms = _times_ms(lambda: model.generate(prompt, max_tokens=most, stop_ids=()), runs)
    prompt_ms = float(np.median(prompts_ms))
    tokens_ms = [max(0.0, one_ms - prompt_ms) / GENERATED_TOKENS for one_ms in all_ms]
    return tokens_ms, [1000 * len(prompt) / one_ms for one_ms in prompts_ms]


def _times_ms(work: Callable[[], object], runs: int) -> list[float]:
    """Return the times of ``runs`` calls after two for warm-up; fewer where they exceed ``LONGEST_S``."""
    times_ms: list[float] = []
    began_s = time.perf_counter()
    for number in range(-2, runs):
        start_s = time.perf_counter()
        work()
        end_s = time.perf_counter()
        if number >= 0:
            times_ms.append(1000 * (end_s - start_s))
        if number >= FEWEST_RUNS and end_s - began_s > LONGEST_S:
            break
    return times_ms
