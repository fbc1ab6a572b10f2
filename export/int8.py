"""The INT8 engines of a bundle: planned, reverted where they cost too much, judged, and written, with an account of every loss.

In: FP32 graphs, calibration samples, the FP32 chain. Out: the plans by scheme and role, and the report that the manifest keeps, the
language model's type in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import onnx
from rich.console import Console

from calibration.fp16 import half_precision
from calibration.qdq import SCHEMES
from calibration.samples import Sample, refuse_overlap
from export.budget import (
    BudgetError,
    Plan,
    SearchWindows,
    SessionEngine,
    calibration_inputs,
    plan_engines,
    require_half,
    revert_slow_blocks,
    revert_until_search_holds,
    revert_worst,
)
from export.judgement import Budget, Loss, judge
from runtime.predictor import Predictor
from vaemotion.contract.bundle import ENGINE_ROLES

MOST_JUDGEMENTS = 4
Plans = dict[str, dict[str, Plan]]  # scheme, role


def plan_int8(
    models: Mapping[str, onnx.ModelProto], stays_fp32: Mapping[str, Sequence[str]], samples: Sequence[Sample],
    reference: Predictor[Any], max_drop: float | None, console: Console,
) -> Plans:  # fmt: skip
    """Both schemes' plans, reverted until the search windows hold; for the processor also what is not faster there.

    ``max_drop`` None: everything in INT8, nothing searched.
    """
    windows = None if max_drop is None else SearchWindows(reference, samples)
    plans: Plans = {}
    for scheme in SCHEMES:
        plans[scheme] = plan_engines(
            models, stays_fp32, scheme, samples, reference, windows, plans.get("int8")
        )
        if windows is not None and max_drop is not None:
            damage = revert_until_search_holds(plans[scheme], windows, max_drop)
            counted = f"{len(windows.inputs)} search windows"
            console.print(f"  {scheme}: 1 - CCC to FP32 on {counted}: {damage:.2g}", highlight=False)
    if windows is not None:
        for role, plan in plans["int8-cpu"].items():
            revert_slow_blocks(plan, calibration_inputs(role, samples[:1], reference, {})[0])
    return plans


def judge_int8(
    plans: Plans, reference: Predictor[Any], language_models: Mapping[str, Any], samples: Sequence[Sample], windows: int,
    budget: Budget, console: Console,
) -> dict[str, Any]:  # fmt: skip
    """Judge both schemes; while one does not hold, take its worst block back, or the language model's next larger type. Returns the report.

    ``language_models`` by type, the smallest first, "F16" among them. Raises BudgetError when nothing is left to take back, or too little
    stays INT8; FP16 is judged then too, and the message says whether it holds.
    """
    try:
        return _judged(plans, reference, language_models, samples, windows, budget, console)
    except BudgetError as error:
        console.print("  INT8 does not hold: FP16 is judged", highlight=False)
        advice = _judge_fp16(plans, reference, language_models, windows, budget)
        raise BudgetError(f"{error}: {advice}") from error


def _judged(
    plans: Plans, reference: Predictor[Any], language_models: Mapping[str, Any], samples: Sequence[Sample], windows: int,
    budget: Budget, console: Console,
) -> dict[str, Any]:  # fmt: skip
    types = list(language_models)
    losses: dict[str, dict[str, Loss]] = {}
    rounds = 0
    open_schemes = list(plans)
    while open_schemes:
        rounds += 1
        candidates = {
            scheme: _chain(plans[scheme], reference, language_models[types[0]]) for scheme in open_schemes
        }
        judged, hashes = judge(reference, candidates, windows, budget)
        refuse_overlap(samples, hashes)
        losses |= judged
        broken = {
            scheme: [m for m, loss in losses[scheme].items() if not loss.holds] for scheme in open_schemes
        }
        open_schemes = [scheme for scheme, metrics in broken.items() if metrics]
        if open_schemes and rounds == MOST_JUDGEMENTS:
            raise _over_budget(open_schemes[0], broken, losses, rounds)
        if any(metrics == ["kl_nats"] for metrics in broken.values()) and len(types) > 1:
            types, open_schemes = types[1:], list(plans)
            continue
        for scheme in open_schemes:
            block = revert_worst(plans[scheme], "accuracy, end to end")
            if block is None:
                raise _over_budget(scheme, broken, losses, rounds)
            console.print(
                f"  {scheme}: {', '.join(broken[scheme])} over the budget: {block.name} back to FP",
                highlight=False,
            )
    return {
        "budget": asdict(budget), "windows": windows, "judgements": rounds, "language_model": types[0],
        "int8_share": {"int8": require_half(plans["int8"])},
        "losses": {scheme: {m: asdict(loss) for m, loss in judged.items()} for scheme, judged in losses.items()},
        "engines": [plan.account() for by_role in plans.values() for plan in by_role.values()],
        "speed": "blocks of int8-cpu were timed on this processor; those of int8 only TensorRT on its GPU could time",
    }  # fmt: skip


def _chain(plans: Mapping[str, Plan], reference: Predictor[Any], language_model: Any) -> Predictor[Any]:
    engines = {role: SessionEngine(plans[role].graph()) for role in ENGINE_ROLES}
    return reference.exchanged(engines, language_model)


def _judge_fp16(
    plans: Plans, reference: Predictor[Any], language_models: Mapping[str, Any], windows: int, budget: Budget
) -> str:
    """What to do instead, from FP16's own losses on the windows that INT8 was judged on."""
    engines = {
        role: SessionEngine(half_precision(plan.model, plan.stays_fp32))
        for role, plan in plans["int8"].items()
    }
    chain = reference.exchanged(engines, language_models["F16"])
    losses = judge(reference, {"fp16": chain}, windows, budget)[0]["fp16"]
    broken = [metric for metric, loss in losses.items() if not loss.holds]
    if broken:
        return f"neither does FP16 ({_worse(broken[0], losses)}): allow more with --max-drop"
    drop = max(loss.bound for metric, loss in losses.items() if metric.startswith("ccc_"))
    return (
        f"FP16 wins on this model, it holds the same budget (CCC at most {max(drop, 0.0):.2g} worse); export with --precision fp16, "
        "or allow more with --max-drop"
    )


def _over_budget(
    scheme: str, broken: Mapping[str, list[str]], losses: Mapping[str, Mapping[str, Loss]], rounds: int
) -> BudgetError:
    what = _worse(broken[scheme][0], losses[scheme])
    return BudgetError(f"{scheme} does not hold the budget after {rounds} judgements ({what})")


def _worse(metric: str, losses: Mapping[str, Loss]) -> str:
    loss = losses[metric]
    unit = "times the reference's" if metric.startswith("jitter") else "worse"
    return f"{metric} may be as much as {loss.bound:.4g} {unit}, allowed is {loss.allowed:.4g}"
