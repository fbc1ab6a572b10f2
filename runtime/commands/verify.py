"""``vaemotion verify``: check a bundle on this machine against its golden vectors, without torch.

In: a bundle. Out: one ``Edge`` per comparison: the front end, every engine file on the processor, the engines
that a run opens on a GPU, and every language model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from runtime.engines.golden import (
    Array,
    allowed_difference,
    component_key,
    golden_differences,
    golden_logit_difference,
)
from runtime.engines.language_model import open_language_model
from runtime.engines.open import OnnxRuntimeEngine, OpenedEngine, open_engine
from vaemotion.contract.bundle import (
    ENGINE_ROLES,
    LOG_MEL_TOLERANCE,
    Component,
    Manifest,
    check_front_end,
    component_path,
    pixel_tolerance,
    read_golden,
    read_manifest,
    verify_files,
)
from vaemotion.contract.errors import UserError
from vaemotion.contract.terminal import Terminal

ON_GPU = {"tensorrt": ", on TensorRT", "cuda": ", on CUDA"}


class VerificationError(UserError):
    """A bundle differs from its golden vectors, or an export from its checkpoint, by more than allowed."""


@dataclass(frozen=True)
class Edge:
    """One comparison of a computed value with its reference.

    It holds when ``measured`` is at most ``allowed``, or with ``at_least`` (an agreement) at least that.
    ``mean``: mean difference. ``cosine_min``, ``cosine_p1``: minimum and first percentile of the rows' cosine
    similarity. ``sqnr_db``: ratio of signal to quantization noise, in dB.
    """

    kind: str  # "golden", "engine", "logits", "tokenizer" or "chain"
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
    """Return the comparisons as a table for a terminal, of each engine's batch sizes only the worst."""
    table = Table(box=SIMPLE_HEAD, collapse_padding=True)
    for column in ("component", "comparison", "measured", "cosine p1", "SQNR dB", "allowed", ""):
        wraps = column == "comparison"
        table.add_column(column, no_wrap=not wraps, min_width=12 if wraps else None)
    for edge in _worst_of_batches(edges):
        mark = Text("ok", "green") if edge.holds else Text("breach", "red")
        relation = "≥" if edge.at_least else "≤"
        signal = (_shown(edge.cosine_p1, ".4f"), _shown(edge.sqnr_db, ".0f"))
        component = edge.component.replace("language_model", "llm").replace("_encoder", "")
        table.add_row(
            Text(component),
            Text(edge.what),
            f"{edge.measured:.2g}",
            *signal,
            f"{relation} {edge.allowed:.2g}",
            mark,
        )
    return table


def _worst_of_batches(edges: Sequence[Edge]) -> list[Edge]:
    """Keep of each engine file the batch size with the largest difference, and all other comparisons."""
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
    """Print the comparisons. Raises VerificationError where one does not hold."""
    console = Terminal()
    console.print(edges_table(edges))
    broken = [edge for edge in edges if not edge.holds]
    if broken:
        raise VerificationError(f"{bundle} is broken: {broken[0].sentence()}; export the checkpoint again")
    console.print(f"{bundle}: every file is intact, {len(edges)} comparisons hold", style="green")


def verify_bundle(bundle: Path) -> None:
    """Check a bundle's files, front end, engines and language models, and print the comparisons.

    Raises BundleError for a damaged file, VerificationError for a difference that is too large.
    """
    manifest = read_manifest(bundle)
    verify_files(bundle, manifest)
    report(bundle, golden_edges(bundle, manifest))


def golden_edges(bundle: Path, manifest: Manifest) -> list[Edge]:
    """Compare this machine's front end, engines and language models with the bundle's golden vectors."""
    golden = read_golden(bundle, manifest)
    allowed = {"log_mel": LOG_MEL_TOLERANCE, "pixels": pixel_tolerance(manifest.front_end.image)}
    edges = [
        _golden_edge(name, worst, allowed[name]) for name, worst in check_front_end(manifest, golden).items()
    ]
    opened = [open_engine(bundle, manifest, role) for role in ENGINE_ROLES]
    for component in manifest.components:
        if component.role in ENGINE_ROLES:
            engines = [engine for engine in opened if engine.component == component]
            edges += _engine_edges(bundle, manifest, component, engines, golden)
        elif component.role == "language_model":
            edges.append(_language_model_edge(bundle, manifest, component, golden))
    return edges


def _engine_edges(
    bundle: Path,
    manifest: Manifest,
    component: Component,
    opened: Sequence[OpenedEngine],
    golden: Mapping[str, Array],
) -> list[Edge]:
    """Compare one engine file on the CPU and, where ``opened`` runs it on a GPU, there too."""
    engines: list[OpenedEngine] = list(opened)
    if all(engine.runs_on != "cpu" for engine in engines):
        engines.append(OnnxRuntimeEngine(component_path(bundle, component), component))
    edges: list[Edge] = []
    for engine in engines:
        worst = max(golden_differences(engine, golden).values())
        allowed = allowed_difference(engine, manifest)
        edges.append(_golden_edge(component_key(component), worst, allowed, ON_GPU.get(engine.runs_on, "")))
    return edges


def _language_model_edge(
    bundle: Path, manifest: Manifest, component: Component, golden: Mapping[str, Array]
) -> Edge:
    """Compare a GGUF file's logits (1, vocab) after the golden prompt with the golden ones."""
    with open_language_model(bundle, manifest, component, f32_kv=True) as language_model:
        logits = language_model.logits(golden["language_model/in/embeddings"])
    worst, allowed = golden_logit_difference(manifest, component, golden["language_model/out/logits"], logits)
    return _golden_edge(component_key(component), worst, allowed)


def _golden_edge(component: str, worst: float, allowed: float, where: str = "") -> Edge:
    return Edge("golden", component, f"golden vectors{where}", worst, allowed, worst)
