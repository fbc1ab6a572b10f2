"""A bundle's self-test: does this machine compute what the exporting machine computed? No torch.

In: a bundle. Out: one ``Edge`` per comparison with its golden vectors: front end, every engine file on the processor, the engines that a run takes
where they are on a GPU, every language model.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from runtime.engines import OnnxRuntimeEngine, OpenedEngine, open_engine
from runtime.language_model import LanguageModel
from vaemotion.contract.bundle import (
    ENGINE_ROLES,
    LOG_MEL_TOLERANCE,
    PIXEL_TOLERANCE,
    Component,
    Manifest,
    check_front_end,
    component_path,
    read_golden,
    read_manifest,
    verify_files,
)
from vaemotion.contract.errors import UserError

Array = npt.NDArray[Any]
ON_GPU = {"tensorrt": ", on TensorRT", "cuda": ", on CUDA"}
# Largest differences allowed, each relative to the largest magnitude of the reference where that exceeds 1. Whitening multiplies
# rounding by the inverse of the smallest deviation of a token: measured 1.01e-4 on the shipped adapter, 7e-5 before it had features.
# INT8 is judged end to end when it is exported; what is allowed here tells a broken engine from a coarse one.
# On a GPU other kernels round FP16's tensors elsewhere: measured up to 2.4e-3 on an H200, for what is 9e-4 on a processor (docs/gpu.md).
ENGINE_TOLERANCE = {"fp32": 3e-4, "fp16": 0.05, "int8": 0.5, "int8-cpu": 0.5}
GPU_TOLERANCE = {"fp32": 3e-4, "fp16": 1e-2, "int8": 0.5}
LOGIT_TOLERANCE = {"F16": 0.08, "Q8_0": 0.5, "Q5_0": 4.0, "Q4_K_M": 8.0}  # absolute, in logits
# A device may differ from the golden vectors by twice what was measured at export, and by this much in any case: other
# processors sum in another order, and nobody shall be called to a gallery for that. Relative (engines); in logits.
SMALLEST_TOLERANCE, SMALLEST_LOGIT_TOLERANCE = 1e-4, 0.03


class VerificationError(UserError):
    """An export is not what its checkpoint is."""


@dataclass(frozen=True)
class Edge:
    """One comparison. ``kind``: "golden", "engine", "logits", "tokenizer" or "chain"; it holds when ``measured`` is at most
    ``allowed`` (at least, for an agreement). ``cosine_min`` and ``cosine_p1`` (first percentile) over rows, ``sqnr_db``: signal to error."""

    kind: str
    component: str
    what: str
    measured: float
    allowed: float
    mean: float
    at_least: bool = False
    cosine_min: float | None = None
    cosine_p1: float | None = None
    sqnr_db: float | None = None

    @property
    def holds(self) -> bool:
        return self.measured >= self.allowed if self.at_least else self.measured <= self.allowed

    def sentence(self) -> str:
        relation = "at least" if self.at_least else "at most"
        return f"{self.component}, {self.what}: {self.measured:.4g}, expected {relation} {self.allowed:.4g}"


def edges_table(edges: Sequence[Edge]) -> Table:
    """The comparisons, for a terminal; of an engine's batches the worst."""
    table = Table(box=SIMPLE_HEAD, collapse_padding=True)
    for column in ("component", "what", "measured", "cosine p1", "SQNR dB", "allowed", ""):
        table.add_column(column, no_wrap=column != "what", min_width=12 if column == "what" else None)
    for edge in _worst_of_batches(edges):
        mark = "[green]ok[/]" if edge.holds else "[red]breach[/]"
        relation = "≥" if edge.at_least else "≤"
        signal = (_shown(edge.cosine_p1, ".4f"), _shown(edge.sqnr_db, ".0f"))
        component = edge.component.replace("language_model", "llm").replace("_encoder", "")
        table.add_row(
            component, edge.what, f"{edge.measured:.2g}", *signal, f"{relation} {edge.allowed:.2g}", mark
        )
    return table


def _worst_of_batches(edges: Sequence[Edge]) -> list[Edge]:
    """Every comparison, but of each engine file only the batch that came nearest to its limit."""
    kept: list[Edge] = []
    for edge in edges:
        if (
            edge.kind == "engine"
            and kept
            and (kept[-1].kind, kept[-1].component) == ("engine", edge.component)
        ):
            worst = max(kept[-1], edge, key=lambda e: e.measured)
            kept[-1] = worst
        else:
            kept.append(edge)
    return kept


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def report(bundle: Path, edges: Sequence[Edge]) -> None:
    """Print the comparisons; raises VerificationError when one does not hold."""
    console = Console()
    console.print(edges_table(edges))
    broken = [edge for edge in edges if not edge.holds]
    if broken:
        raise VerificationError(f"{bundle} is broken: {broken[0].sentence()}; export the checkpoint again")
    console.print(f"[green]{bundle}: every file is whole, {len(edges)} comparisons hold[/]")


def self_test(bundle: Path) -> None:
    """``vaemotion verify``: files, front end, engines and language models against the golden vectors."""
    manifest = read_manifest(bundle)
    verify_files(bundle, manifest)
    report(bundle, golden_edges(bundle, manifest))


def golden_edges(bundle: Path, manifest: Manifest) -> list[Edge]:
    """This machine's front end, engines and language models against the bundle's golden vectors."""
    golden = read_golden(bundle, manifest)
    measured = check_front_end(manifest, golden)
    edges = [
        Edge(
            "golden",
            name,
            "golden vectors",
            value,
            LOG_MEL_TOLERANCE if name == "log_mel" else PIXEL_TOLERANCE,
            value,
        )
        for name, value in measured.items()
    ]
    opened = [open_engine(bundle, manifest, role) for role in ENGINE_ROLES]
    for component in manifest.components:
        key = f"{component.role}/{component.precision}"
        if component.role in ENGINE_ROLES:
            compared: list[OpenedEngine] = [engine for engine in opened if engine.component == component]
            if all(engine.runs_on != "cpu" for engine in compared):
                compared.append(OnnxRuntimeEngine(component_path(bundle, component), component))
            for engine in compared:
                what = "golden vectors" + ON_GPU.get(engine.runs_on, "")
                worst = max(golden_differences(engine, golden).values())
                allowed = allowed_difference(engine, manifest)
                edges.append(Edge("golden", key, what, worst, allowed, worst))
        elif component.role == "language_model":
            with open_language_model(bundle, manifest, component) as language_model:
                logits = language_model.logits(golden["language_model/in/embeddings"])
            worst = float(np.abs(logits - golden["language_model/out/logits"]).max())
            edges.append(
                Edge("golden", key, "golden vectors", worst, _measured_tolerance(manifest, component), worst)
            )
    return edges


def golden_differences(engine: OpenedEngine, golden: Mapping[str, Array]) -> dict[str, float]:
    """The largest relative difference to each of an engine's golden vectors: all rows at once, then the first alone, which a GPU runs in another way."""
    role = engine.component.role
    worst = {spec.name: 0.0 for spec in engine.component.outputs}
    for rows in (slice(None), slice(1)):
        inputs = {spec.name: golden[f"{role}/in/{spec.name}"][rows] for spec in engine.component.inputs}
        for name, output in engine.run(inputs).items():
            worst[name] = max(worst[name], relative_difference(golden[f"{role}/out/{name}"][rows], output)[0])
    return worst


def allowed_difference(engine: OpenedEngine, manifest: Manifest) -> float:
    """What an engine may differ by from its golden vectors. What was measured at export was measured on a processor."""
    allowed = _measured_tolerance(manifest, engine.component)
    return allowed if engine.runs_on == "cpu" else max(allowed, GPU_TOLERANCE[engine.component.precision])


def _measured_tolerance(manifest: Manifest, component: Component) -> float:
    return manifest.tolerances.get(f"{component.role}/{component.precision}", default_tolerance(component))


def default_tolerance(component: Component) -> float:
    """What a component may differ by before anything was measured."""
    table = LOGIT_TOLERANCE if component.role == "language_model" else ENGINE_TOLERANCE
    return table[component.precision]


def relative_difference(expected: Array, got: Array) -> tuple[float, float]:
    """Largest and mean absolute difference, divided by the largest magnitude expected where that exceeds 1. NaN counts
    as infinite."""
    difference = np.abs(expected.astype(np.float64) - got) / max(1.0, float(np.abs(expected).max()))
    finite = bool(np.isfinite(difference).all())
    return (float(difference.max()), float(difference.mean())) if finite else (float("inf"), float("inf"))


@contextmanager
def open_language_model(bundle: Path, manifest: Manifest, component: Component) -> Generator[LanguageModel]:
    """One of the bundle's GGUF files, its token embeddings beside it."""
    embeddings = np.load(
        component_path(bundle, manifest.component("token_embeddings")), mmap_mode="r", allow_pickle=False
    )
    with LanguageModel(
        component_path(bundle, component), embeddings, context_tokens=512, f32_kv=True
    ) as model:
        yield model
