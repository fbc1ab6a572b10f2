"""What ``vaemotion bench`` measures in a process of its own, so that memory and load time are this component's alone.

In: a bundle's folder and which of its files to open. Out: plain figures that travel as JSON.
"""

from __future__ import annotations

import importlib
import resource
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from runtime.engines import EngineError, OnnxRuntimeEngine, OpenedEngine, open_engine
from runtime.language_model import LanguageModel
from runtime.llama import backend, on_gpu
from runtime.predictor import CONTEXT_TOKENS
from vaemotion.contract.bundle import (
    ENGINE_ROLES,
    Component,
    Manifest,
    component_path,
    read_golden,
    read_manifest,
)

GENERATED_TOKENS = 16  # after the golden prompt; more would make a slow device wait
LONGEST_S = 10.0  # for one series of runs, however slow a run is
FEWEST_RUNS = 3
PROCESS_STATUS = Path("/proc/self/status")


class Figures(TypedDict):
    """One process's measurement. ``runs_ms``: of an engine one inference, of a language model one generated token, of the whole
    bundle one reading. Memory is resident, before the files were opened and at its peak."""

    opened: list[tuple[str, str, str]]  # role, precision, what it runs on
    foreign: bool  # no engine of this machine is made for this precision; ONNX Runtime's CPU provider ran it all the same
    load_s: float
    before_bytes: int
    peak_bytes: int
    runs_ms: list[float]
    prompt_tokens_per_s: list[float]


def probe_component(folder: str, role: str, precision: str, runs: int, threads: int) -> Figures:
    """One engine, on the best that this machine has for its precision, or one language model; golden inputs, batch 1."""
    bundle = Path(folder)
    manifest = read_manifest(bundle)
    component, golden = manifest.component(role, precision), read_golden(bundle, manifest)
    _import_libraries([role])
    before_bytes, start_s = peak_bytes(), time.perf_counter()
    rates: list[float] = []
    foreign = False
    if role == "language_model":
        with _language_model(bundle, manifest, component, threads) as model:
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
        "peak_bytes": peak_bytes(),
        "runs_ms": runs_ms,
        "prompt_tokens_per_s": rates,
    }


def probe_whole(folder: str, runs: int, threads: int) -> Figures:
    """What a run opens, all of it: each engine once is one reading; the language model answers beside them."""
    bundle = Path(folder)
    manifest = read_manifest(bundle)
    golden, written = read_golden(bundle, manifest), manifest.component("language_model")
    _import_libraries([*ENGINE_ROLES, "language_model"])
    before_bytes, start_s = peak_bytes(), time.perf_counter()
    engines = [open_engine(bundle, manifest, role, threads) for role in ENGINE_ROLES]
    with _language_model(bundle, manifest, written, threads) as model:
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
        "peak_bytes": peak_bytes(),
        "runs_ms": runs_ms,
        "prompt_tokens_per_s": rates,
    }


def peak_bytes() -> int:
    """The largest resident set of this program so far.

    Not ``ru_maxrss`` where it can be helped: Linux counts into it what the parent held when it started this process.
    """
    if PROCESS_STATUS.exists():
        for line in PROCESS_STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _import_libraries(roles: list[str]) -> None:
    """What opens these roles' files, so that its own load counts for none of them."""
    if "language_model" in roles:
        backend()
    if set(roles) & set(ENGINE_ROLES):
        with suppress(ImportError):  # the engine says it better
            importlib.import_module("onnxruntime")


def _engine(
    bundle: Path, manifest: Manifest, component: Component, threads: int
) -> tuple[OpenedEngine, bool]:
    """The engine, and whether it is only a makeshift here."""
    try:
        return open_engine(bundle, manifest, component.role, threads, precision=component.precision), False
    except EngineError:
        return OnnxRuntimeEngine(component_path(bundle, component), component, threads), True


def _runs_on(engine: OpenedEngine) -> str:
    return engine.announcement.removeprefix(f"{engine.component.label}: ")


def _llama_runs_on(threads: int) -> str:
    return "llama.cpp on the GPU" if on_gpu() else f"llama.cpp, {threads} threads"


def _language_model(bundle: Path, manifest: Manifest, component: Component, threads: int) -> LanguageModel:
    """Opened as a run opens it."""
    table = component_path(bundle, manifest.component("token_embeddings"))
    embeddings = np.load(table, mmap_mode="r", allow_pickle=False)
    path = component_path(bundle, component)
    return LanguageModel(path, embeddings, context_tokens=CONTEXT_TOKENS, threads=threads)


def _golden_inputs(component: Component, golden: dict[str, Any]) -> dict[str, Any]:
    return {
        spec.name: golden[f"{component.role}/in/{spec.name}"][:1].astype(spec.dtype)
        for spec in component.inputs
    }


def _token_times(model: LanguageModel, prompt: Any, runs: int) -> tuple[list[float], list[float]]:
    """(ms a generated token, prompt tokens a second) of each run: the golden prompt (n, D), then some tokens."""
    prompts_ms = _times_ms(lambda: model.generate(prompt, max_tokens=1, stop_ids=()), runs)
    most = 1 + GENERATED_TOKENS
    all_ms = _times_ms(lambda: model.generate(prompt, max_tokens=most, stop_ids=()), runs)
    prompt_ms = float(np.median(prompts_ms))
    tokens_ms = [max(0.0, one_ms - prompt_ms) / GENERATED_TOKENS for one_ms in all_ms]
    return tokens_ms, [1000 * len(prompt) / one_ms for one_ms in prompts_ms]


def _times_ms(work: Callable[[], object], runs: int) -> list[float]:
    """Times of ``runs`` runs after two to warm up; fewer where one takes so long that nobody would wait."""
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
