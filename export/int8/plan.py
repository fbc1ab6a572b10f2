"""Steps that make the INT8 engines of a bundle, each kept on its own.

In: FP32 graphs, calibration windows, the FP32 chain. Out: the INT8 engine files by scheme and role, and a
report for the manifest: every block's damage and state, every loss end to end, the language model's type.

Ranges and damages do not depend on the budget. The blocks that fit into it are then chosen on the search
windows, and the whole chain is judged on windows of another split until it holds the budget. Without material
to judge on, the search has the last word.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from calibration.fp16 import half_precision
from calibration.qdq import SCHEMES
from calibration.ranges import Histogram
from calibration.samples import Sample, refuse_overlap
from export.chain import FP32_FILES, REFERENCE_FILES
from export.graphs import save_engine
from export.int8.judge import Budget, Judgement, Loss, judge
from export.int8.material import Material
from export.int8.search import (
    Block,
    BudgetError,
    Int8Plan,
    SearchWindows,
    SessionEngine,
    calibration_inputs,
    observe,
    require_half,
    revert_slow_blocks,
    revert_until_search_holds,
    revert_worst,
    search,
    whole_plan,
)
from export.step_store import MadeFile
from export.workshop import ExportFolder, Made, Step, gguf_name, onnx_name
from runtime.machine.facts import machine_name
from runtime.perception.predictor import Predictor
from vaemotion.contract.bundle import ENGINE_ROLES

MOST_JUDGEMENTS = 4
CODE = ("export.chain", "export.graphs", "export.int8.search")
JUDGING_CODE = (*CODE, "export.int8.judge", "export.int8.material")
SPEED = "blocks of int8-cpu were timed on this processor; those of int8 only TensorRT on its GPU could time"
Plans = Mapping[str, Mapping[str, Int8Plan]]  # by scheme and role


@dataclass(frozen=True)
class Int8Inputs:
    """Input of the INT8 engines.

    ``models``: FP32 graphs by role. ``stays_fp32``: nodes by role that FP16 would overflow. ``samples`` and
    ``reference`` are called when a step needs them; ``reads`` is what both depend on, for the keys of steps,
    without the ``question`` of narrations, which counts where those are judged.
    """

    folder: ExportFolder
    models: Mapping[str, onnx.ModelProto]
    stays_fp32: Mapping[str, Sequence[str]]
    samples: Callable[[], Sequence[Sample]]
    reference: Callable[[], Predictor[Any]]
    reads: Mapping[str, Any]
    question: str

    @cached_property
    def windows(self) -> SearchWindows:
        """The calibration windows that the search looks at, with the reference's tokens and readings."""
        return SearchWindows(self.reference(), self.samples())


@dataclass(frozen=True)
class Judging:
    """Rules by which the INT8 engines are judged: on which ``material``, within which ``budget``.

    ``material``: None where there is none. ``language_models``: opened when called, by type, the smallest
    first, "F16" among them. ``kl_nats``: their own losses, where they were measured.
    """

    material: Material | None
    budget: Budget
    language_models: Mapping[str, Callable[[], Any]]
    kl_nats: Mapping[str, float] = field(default_factory=dict[str, float])


def int8_engines(inputs: Int8Inputs, judging: Judging, *, judged: bool = True) -> dict[str, Any]:
    """Make the INT8 engines of both schemes. Returns the report for the manifest.

    Without ``judged`` every block becomes INT8: nothing is searched. Without material the blocks are searched
    and not judged. Raises BudgetError where no engines hold the budget; its message says whether FP16 does.
    """
    plans: dict[str, dict[str, Int8Plan]] = {}
    for scheme in SCHEMES:
        plans[scheme] = plan_scheme(inputs, scheme, plans.get("int8"), searched=judged)
    if not judged:
        notes = write_engines(inputs, plans, judged=False)
        return {"language_model": next(iter(judging.language_models)), "engines": notes["engines"]}
    revert_costly_blocks(inputs, plans, judging.budget.max_drop)
    revert_blocks_that_are_not_faster(inputs, plans)
    if judging.material is not None:
        return judge_int8(inputs, plans, judging, judging.material)
    notes = write_engines(inputs, plans, judged=True)
    chosen = {"budget": asdict(judging.budget), "language_model": next(iter(judging.language_models))}
    return {**chosen, **_account(notes)}


def judge_int8(inputs: Int8Inputs, plans: Plans, judging: Judging, material: Material) -> dict[str, Any]:
    """Judge plans, take blocks back until they hold the budget, and write the engines. Returns the report.

    Raises BudgetError as `int8_engines`.
    """
    try:
        report = judge_until_it_holds(inputs, plans, judging, material)
        notes = write_engines(inputs, plans, judged=True)
    except BudgetError as error:
        inputs.folder.console.print("  INT8 does not hold the budget: FP16 is judged")
        raise BudgetError(f"{error}: {judge_fp16(inputs, judging, material)}") from error
    return {**report, **_account(notes)}


def _account(notes: Mapping[str, Any]) -> dict[str, Any]:
    return {"int8_share": notes["int8_share"], "engines": notes["engines"], "speed": SPEED}


# --- ranges and damages ------------------------------------------------------------------------------------


def plan_scheme(
    inputs: Int8Inputs, scheme: str, ranked: Mapping[str, Int8Plan] | None, *, searched: bool
) -> dict[str, Int8Plan]:
    """Plan every engine for a scheme, all blocks in INT8.

    The EmoAdapter is calibrated behind the planned encoders. ``ranked``: plans of the other scheme. Their
    ranges are used where they are the same, and their damages, because weights round alike in both. Without
    ``searched`` ranges are the largest values seen.
    """
    plans: dict[str, Int8Plan] = {}
    for role in ENGINE_ROLES:
        # The encoders have the same inputs in both schemes. Without a search, so has the EmoAdapter.
        if ranked is not None and (role != "emo_adapter" or not searched):
            histograms = ranked[role].histograms
        else:
            histograms = _ranges(inputs, scheme, role, plans if role == "emo_adapter" else {})
        plan = whole_plan(role, scheme, inputs.models[role], histograms, inputs.stays_fp32[role])
        if searched:
            _search(inputs, plan, None if ranked is None else ranked[role])
        plans[role] = plan
    return plans


def _ranges(
    inputs: Int8Inputs, scheme: str, role: str, encoders: Mapping[str, Int8Plan]
) -> dict[str, Histogram]:
    """Observe the values of an engine's tensors on the calibration windows, behind quantized ``encoders``."""
    name = f"{role}.{scheme}.ranges.npz" if encoders else f"{role}.ranges.npz"

    def make(made: Path) -> Made:
        opened = {other: SessionEngine(plan.variant(plan.chosen())) for other, plan in encoders.items()}
        batches = calibration_inputs(role, inputs.samples(), inputs.reference(), opened)
        write_histograms(made / name, observe(inputs.models[role], batches))
        return [MadeFile(name)], {}

    label = f"{role} → ranges behind {scheme} encoders" if encoders else f"{role} → ranges"
    reads = {**inputs.reads, "encoders": _graphs({scheme: encoders})}
    files = REFERENCE_FILES if encoders else (onnx_name(role, "fp32"),)
    inputs.folder.step(Step(label, make, CODE, reads, files))
    return read_histograms(inputs.folder.file(name))


def _search(inputs: Int8Inputs, plan: Int8Plan, ranked: Int8Plan | None) -> None:
    """Find the method with the least damage, and the damage of every block alone."""

    def make(_: Path) -> Made:
        search(plan, inputs.windows, ranked)
        blocks = [asdict(block) for block in plan.blocks]
        return [], {"method": plan.method, "method_damages": plan.method_damages, "blocks": blocks}

    damages = ranked and [[block.name, block.damage] for block in ranked.blocks]
    reads = {**inputs.reads, "plan": _graphs({plan.scheme: {plan.role: plan}}), "ranked": damages}
    step = Step(f"{plan.role} → damages in {plan.scheme}", make, CODE, reads, REFERENCE_FILES)
    notes = inputs.folder.step(step)
    plan.method, plan.method_damages = notes["method"], notes["method_damages"]
    plan.blocks = [Block(**values) for values in notes["blocks"]]


def write_histograms(file: Path, histograms: Mapping[str, Histogram]) -> None:
    """Keep histograms as a .npz file: an array for each field, one row for each tensor."""
    columns: dict[str, Any] = {
        field.name: np.array([getattr(histogram, field.name) for histogram in histograms.values()])
        for field in fields(Histogram)
    }
    np.savez_compressed(file, tensor=np.array(list(histograms)), **columns)


def read_histograms(file: Path) -> dict[str, Histogram]:
    """Read what `write_histograms` kept."""
    with np.load(file, allow_pickle=False) as columns:
        rows = zip(*(columns[field.name] for field in fields(Histogram)), strict=True)
        named = zip(columns["tensor"], rows, strict=True)
        return {str(name): Histogram(*(v if v.ndim else v.item() for v in row)) for name, row in named}


# --- the budget --------------------------------------------------------------------------------------------


def revert_costly_blocks(inputs: Int8Inputs, plans: Plans, max_drop: float) -> None:
    """Take blocks back until both schemes hold ``max_drop`` on the search windows."""

    def make(_: Path) -> Made:
        damages = {s: revert_until_search_holds(by, inputs.windows, max_drop) for s, by in plans.items()}
        return [], {"damages": damages, "states": _states(plans)}

    damages = [[[block.name, block.damage] for block in plan.blocks] for plan in _each(plans)]
    reads = {**inputs.reads, "graphs": _graphs(plans), "damages": damages, "max_drop": max_drop}
    name = "blocks within the budget on search windows"
    notes = inputs.folder.step(Step(name, make, CODE, reads, REFERENCE_FILES))
    _set_states(plans, notes["states"])
    for scheme, damage in notes["damages"].items():
        text = f"  {scheme}: 1 - CCC to FP32 on search windows: {damage:.2g}"
        inputs.folder.console.print(text)


def revert_blocks_that_are_not_faster(inputs: Int8Inputs, plans: Plans) -> None:
    """Take the blocks of int8-cpu back that do not make this processor faster."""

    def make(_: Path) -> Made:
        for role, plan in plans["int8-cpu"].items():
            first = calibration_inputs(role, inputs.samples()[:1], inputs.reference(), {})
            revert_slow_blocks(plan, first[0])
        return [], {"states": _states(plans)}

    reads = {**inputs.reads, "graphs": _graphs(plans), "processor": machine_name()}
    notes = inputs.folder.step(Step("blocks that are not faster", make, CODE, reads, REFERENCE_FILES))
    _set_states(plans, notes["states"])


def judge_until_it_holds(
    inputs: Int8Inputs, plans: Plans, judging: Judging, material: Material
) -> dict[str, Any]:
    """Judge both schemes until they hold the budget. Returns the losses and the language model's type.

    While one does not hold, its worst block is taken back. Where only the divergence of narrations is over
    the budget, and by no more than the language model loses itself, its next larger type is used instead.
    Raises BudgetError when no block is left, or after ``MOST_JUDGEMENTS``.
    """
    types = list(judging.language_models)
    losses: dict[str, dict[str, Loss]] = {}
    windows, not_judged, rounds = 0, list[str](), 0
    open_schemes = list(plans)
    while open_schemes:
        rounds += 1
        judgement = _judge(inputs, {s: plans[s] for s in open_schemes}, judging, material, types[0])
        losses |= judgement.losses
        windows, not_judged = len(judgement.sha256), judgement.not_judged
        broken = {
            scheme: [m for m, loss in losses[scheme].items() if not loss.holds] for scheme in open_schemes
        }
        open_schemes = [scheme for scheme, metrics in broken.items() if metrics]
        if open_schemes and rounds == MOST_JUDGEMENTS:
            raise _over_budget(open_schemes[0], broken, losses, rounds)
        excess = [
            losses[scheme]["kl_nats"].bound - judging.budget.max_kl_nats
            for scheme, metrics in broken.items()
            if metrics == ["kl_nats"]
        ]
        if len(types) > 1 and excess and min(excess) <= judging.kl_nats.get(types[0], math.inf):
            types, open_schemes = types[1:], list(plans)
            continue
        for scheme in open_schemes:
            block = revert_worst(plans[scheme], "accuracy, end to end")
            if block is None:
                raise _over_budget(scheme, broken, losses, rounds)
            inputs.folder.console.print(
                f"  {scheme}: {', '.join(broken[scheme])} over the budget: {block.name} back to FP"
            )
    return {
        "budget": asdict(judging.budget),
        "material": material.name,
        "windows": windows,
        "not_judged": not_judged,
        "judgements": rounds,
        "language_model": types[0],
        "losses": {
            scheme: {m: asdict(loss) for m, loss in by_metric.items()} for scheme, by_metric in losses.items()
        },
    }


def _judge(
    inputs: Int8Inputs, plans: Plans, judging: Judging, material: Material, file_type: str
) -> Judgement:
    """Judge the engines of some schemes with a language model's type."""

    def candidates() -> dict[str, Predictor[Any]]:
        language_model = judging.language_models[file_type]()
        return {
            scheme: inputs.reference().with_engines(
                {role: SessionEngine(plan.graph()) for role, plan in by_role.items()}, language_model
            )
            for scheme, by_role in plans.items()
        }

    in_int8 = sum(len(plan.chosen()) for plan in _each(plans))
    name = f"judgement of {' and '.join(plans)} with {file_type}, {in_int8} blocks"
    judge_these = _Candidates(name, candidates, _graphs(plans), gguf_name(file_type))
    return _judgement(inputs, judge_these, judging.budget, material)


def judge_fp16(inputs: Int8Inputs, judging: Judging, material: Material) -> str:
    """Judge FP16 on the windows that INT8 was judged on. Returns a sentence about what to do instead."""

    def candidates() -> dict[str, Predictor[Any]]:
        engines = {
            role: SessionEngine(half_precision(model, inputs.stays_fp32[role]))
            for role, model in inputs.models.items()
        }
        return {"fp16": inputs.reference().with_engines(engines, judging.language_models["F16"]())}

    stays = {"fp16": {role: list(names) for role, names in inputs.stays_fp32.items()}}
    judge_it = _Candidates("judgement of FP16", candidates, stays, gguf_name("F16"))
    losses = _judgement(inputs, judge_it, judging.budget, material).losses["fp16"]
    broken = [metric for metric, loss in losses.items() if not loss.holds]
    if broken:
        return f"neither does FP16 ({_worse(broken[0], losses)}): allow more with --max-drop"
    drop = max(loss.bound for metric, loss in losses.items() if metric.startswith("ccc_"))
    return (
        f"FP16 wins on this model, it holds the same budget (CCC at most {max(drop, 0.0):.2g} worse); export "
        "with --precision fp16, or allow more with --max-drop"
    )


@dataclass(frozen=True)
class _Candidates:
    """Files judged in one step. ``graphs``: what they depend on besides the files of the reference."""

    step: str
    open: Callable[[], Mapping[str, Predictor[Any]]]
    graphs: Mapping[str, Any]
    language_model: str  # file name


def _judgement(inputs: Int8Inputs, candidates: _Candidates, budget: Budget, material: Material) -> Judgement:
    """Judge candidates as one step. Their losses do not depend on the budget, only what it allows does."""

    def make(_: Path) -> Made:
        found = judge(inputs.reference(), candidates.open(), material, budget)
        refuse_overlap(inputs.samples(), found.sha256)
        losses = {
            n: {m: [loss.delta, loss.bound] for m, loss in by.items()} for n, by in found.losses.items()
        }
        return [], {"losses": losses, "not_judged": found.not_judged, "sha256": found.sha256}

    reads = {
        **inputs.reads,
        "question": inputs.question,
        "graphs": candidates.graphs,
        "material": material.reads,
    }
    files = tuple(dict.fromkeys((*REFERENCE_FILES, candidates.language_model)))
    notes = inputs.folder.step(Step(candidates.step, make, JUDGING_CODE, reads, files))
    losses = {
        name: {metric: Loss(delta, bound, budget.allowed(metric)) for metric, (delta, bound) in by.items()}
        for name, by in notes["losses"].items()
    }
    return Judgement(losses, notes["not_judged"], notes["sha256"])


# --- the files ---------------------------------------------------------------------------------------------


def write_engines(inputs: Int8Inputs, plans: Plans, *, judged: bool) -> dict[str, Any]:
    """Write the engines of both schemes, those without an INT8 block excepted. Returns an account of each.

    Raises BudgetError where they were judged and too little is INT8.
    """

    def make(made: Path) -> Made:
        files = [
            save_engine(made, plan.graph(), plan.role, plan.scheme) for plan in _each(plans) if plan.chosen()
        ]
        share = require_half(plans["int8"]) if judged else None
        return files, {"engines": [plan.account() for plan in _each(plans)], "int8_share": {"int8": share}}

    blocks = [[asdict(block) for block in plan.blocks] for plan in _each(plans)]
    damages = [plan.method_damages for plan in _each(plans)]
    reads = {"graphs": _graphs(plans), "blocks": blocks, "damages": damages, "judged": judged}
    return inputs.folder.step(Step("engines → INT8", make, CODE, reads, FP32_FILES))


def _each(plans: Plans) -> list[Int8Plan]:
    return [plan for by_role in plans.values() for plan in by_role.values()]


def _graphs(plans: Plans) -> dict[str, dict[str, Any]]:
    """Describe what the graphs of plans depend on besides their FP32 files, for the keys of steps."""
    return {
        scheme: {
            role: {
                "method": plan.method,
                "blocks": plan.chosen(),
                "stays_fp32": list(plan.stays_fp32),
                "ranges": _digest(plan.histograms),
            }
            for role, plan in by_role.items()
        }
        for scheme, by_role in plans.items()
    }


def _states(plans: Plans) -> dict[str, dict[str, list[str]]]:
    return {s: {r: [block.state for block in p.blocks] for r, p in by.items()} for s, by in plans.items()}


def _set_states(plans: Plans, states: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
    for scheme, by_role in states.items():
        for role, of_blocks in by_role.items():
            for block, state in zip(plans[scheme][role].blocks, of_blocks, strict=True):
                block.state = state


def _digest(histograms: Mapping[str, Histogram]) -> str:
    digest = hashlib.sha256()
    for name, histogram in sorted(histograms.items()):
        digest.update(name.encode())
        for value in fields(Histogram):
            digest.update(np.asarray(getattr(histogram, value.name)).tobytes())
    return digest.hexdigest()


# --- the budget cannot be held -----------------------------------------------------------------------------


def _over_budget(
    scheme: str, broken: Mapping[str, list[str]], losses: Mapping[str, Mapping[str, Loss]], rounds: int
) -> BudgetError:
    worst = _worse(broken[scheme][0], losses[scheme])
    return BudgetError(f"{scheme} does not hold the budget after {rounds} judgements ({worst})")


def _worse(metric: str, losses: Mapping[str, Loss]) -> str:
    loss = losses[metric]
    unit = "times the reference's" if metric.startswith("jitter") else "worse"
    return f"{metric} may be as much as {loss.bound:.4g} {unit}, allowed is {loss.allowed:.4g}"
