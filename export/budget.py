"""Which blocks become INT8: one budget, spent where it costs least, and judged end to end.

In: the FP32 graphs, calibration samples, a reference predictor. Out: per scheme ("int8" for TensorRT, "int8-cpu" for ONNX Runtime) the
quantised graphs and an account of every block: its damage alone, and why it stayed in floating point if it did.

The search looks at calibration windows only: a block's damage is 1 - CCC between the reference's readings and those with this block in
INT8, the worst of the paths. ``export.judgement`` then judges the whole chain on windows of another split.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from rich.console import Console
from rich.progress import track

from calibration.fp16 import half_precision
from calibration.qdq import blocks, int8_share, quantise, weight_products
from calibration.ranges import METHODS, Histogram, observed, session_of
from calibration.samples import Sample
from export.judgement import only, valence_arousal, weighted_ccc
from runtime.engine_io import Arrays
from runtime.predictor import Predictor, Tokens, adapter_inputs
from vaemotion.contract.bundle import ENGINE_ROLES
from vaemotion.contract.errors import UserError
from vaemotion.contract.front_end import PATHS, EncoderInputs

Array = npt.NDArray[Any]
SEARCH_WINDOWS = 64
LEAST_INT8_SHARE = 0.5
_TIMED_RUNS = 25
_SLOWER_SHARE = 0.75  # of the paired runs in which INT8 took longer: then it is not faster


class BudgetError(UserError):
    """INT8 does not fit into the budget on this model; the message says where it broke."""

    exit_code = 3


class SessionEngine:
    """A graph in memory behind an engine's ``run``."""

    def __init__(self, model: onnx.ModelProto, threads: int = 2) -> None:
        self.model = model
        self._session = session_of(model, threads)
        self._inputs = [value.name for value in model.graph.input]
        self._outputs = [value.name for value in model.graph.output]

    def run(self, arrays: Arrays) -> dict[str, Array]:
        values = self._session.run(self._outputs, {name: arrays[name] for name in self._inputs})
        return dict(zip(self._outputs, values, strict=True))


@dataclass
class Block:
    """``damage``: of this block alone in INT8, None where it was not looked for; ``state``: "INT8", or why it is not."""

    name: str
    weight_bytes: int
    damage: float | None = None
    state: str = "INT8"


@dataclass
class Plan:
    """How one engine is quantised by one scheme."""

    role: str
    scheme: str
    model: onnx.ModelProto  # FP32
    histograms: Mapping[str, Histogram]
    stays_fp32: Sequence[str]
    method: str = "max"
    method_damages: dict[str, float] = field(default_factory=dict)
    blocks: list[Block] = field(default_factory=list)

    def chosen(self) -> list[str]:
        return [block.name for block in self.blocks if block.state == "INT8"]

    def graph(self) -> onnx.ModelProto:
        """The quantised graph as it is exported: for TensorRT the rest is FP16."""
        quantised = self.variant(self.chosen())
        return half_precision(quantised, self.stays_fp32) if self.scheme == "int8" else quantised

    def variant(self, chosen: Sequence[str], method: str | None = None) -> onnx.ModelProto:
        """With other blocks or another method, the rest FP32: what the search compares, because processors are slow at FP16."""
        return quantise(self.model, self.histograms, method or self.method, self.scheme, chosen)

    def account(self) -> dict[str, Any]:
        """For the manifest and the report."""
        int8, whole = int8_share(self.variant(self.chosen()))
        return {
            "role": self.role, "scheme": self.scheme, "method": self.method, "methods_tried": self.method_damages,
            "blocks": [asdict(block) for block in self.blocks], "int8_weight_bytes": int8, "matmul_weight_bytes": whole,
            "clipped_share": {name: h.clipped_share(h.threshold(self.method)) for name, h in self.histograms.items()},
        }  # fmt: skip


class SearchWindows:
    """Calibration scenes with the reference's tokens and readings: what a candidate is compared with while it is looked for."""

    def __init__(self, reference: Predictor[Any], samples: Sequence[Sample]) -> None:
        complete = [
            s for s in samples if len(s.inputs.pixels) and len(s.inputs.log_mel) and s.kind == "scene"
        ]
        if len(complete) < 8:
            raise BudgetError(
                "fewer than 8 calibration windows have both sound and pictures: there is nothing to search on"
            )
        self.reference = reference
        self.inputs = [s.inputs for s in complete[:SEARCH_WINDOWS]]
        self.tokens = [reference.encode(inputs) for inputs in self.inputs]
        self.readings = self._read(self.tokens, reference)

    def _read(self, tokens: Sequence[Tokens], predictor: Predictor[Any]) -> dict[str, Array]:
        return {path: valence_arousal(predictor, [only(t, path) for t in tokens]) for path in PATHS}

    def damage(self, engines: Mapping[str, SessionEngine]) -> float:
        """1 - CCC between the reference's readings and those with ``engines`` in place of its own; the worst path and dimension."""
        chain = self.reference.exchanged(engines)
        readings = self._read(
            [self._encoded(chain, engines, index) for index in range(len(self.inputs))], chain
        )
        ones = np.ones((1, len(self.inputs)))
        pairs = [(readings[path][:, k], self.readings[path][:, k]) for path in PATHS for k in (0, 1)]
        return max(1 - float(weighted_ccc(got, expected, ones)[0]) for got, expected in pairs)

    def _encoded(self, chain: Predictor[Any], engines: Mapping[str, SessionEngine], index: int) -> Tokens:
        """Only what is exchanged is encoded anew."""
        inputs, known = self.inputs[index], self.tokens[index]
        visual, audio = known.visual, known.audio
        if "vision_encoder" in engines:
            visual = chain.engines["vision_encoder"].run({"pixels": inputs.pixels})["tokens"]
        if "audio_encoder" in engines:
            audio = chain.engines["audio_encoder"].run({"log_mel": inputs.log_mel})["tokens"][0]
        return Tokens(visual, known.frame_ages_s, audio, known.audio_age_s)


def plan_engines(
    models: Mapping[str, onnx.ModelProto], stays_fp32: Mapping[str, Sequence[str]], scheme: str, samples: Sequence[Sample],
    reference: Predictor[Any], windows: SearchWindows | None, ranked: Mapping[str, Plan] | None = None,
) -> dict[str, Plan]:  # fmt: skip
    """A plan per engine. The EmoAdapter is calibrated on what the quantised encoders give. Without ``windows`` nothing is searched:
    every block is INT8, its ranges the largest values seen. ``ranked``: see ``search``.
    """
    plans: dict[str, Plan] = {}
    for role in ENGINE_ROLES:
        products = weight_products(models[role])
        if ranked is not None and (role != "emo_adapter" or windows is None):
            histograms = ranked[
                role
            ].histograms  # encoders are given the same; without a search the other scheme's tokens do
        else:
            quantised = plans.items() if role == "emo_adapter" else ()
            encoders = {name: SessionEngine(plan.variant(plan.chosen())) for name, plan in quantised}
            tensors = sorted({product.activation for product in products if not product.stays_high})
            inputs = calibration_inputs(role, samples, reference, encoders)
            histograms = observed(models[role], tensors, inputs)
        plan = Plan(role, scheme, models[role], histograms, stays_fp32[role])
        plan.blocks = [Block(name, size) for name, size in blocks(products).items()]
        if windows is not None:
            search(plan, windows, None if ranked is None else ranked[role])
        plans[role] = plan
    return plans


def search(plan: Plan, windows: SearchWindows, ranked: Plan | None) -> None:
    """The method that disturbs the readings least, and every block's damage; ``ranked``: the other scheme's plan, whose damages are
    taken over, because weights round alike in both."""
    for method in METHODS:
        engine = SessionEngine(plan.variant(plan.chosen(), method))
        plan.method_damages[method] = windows.damage({plan.role: engine})
    plan.method = min(METHODS, key=plan.method_damages.__getitem__)
    if ranked is not None:
        plan.blocks = [replace(block, state="INT8") for block in ranked.blocks]
        return
    for block in track(plan.blocks, f"{plan.role}: blocks", console=Console(stderr=True), transient=True):
        block.damage = windows.damage({plan.role: SessionEngine(plan.variant([block.name]))})


def calibration_inputs(
    role: str, samples: Sequence[Sample], reference: Predictor[Any], encoders: Mapping[str, SessionEngine]
) -> list[Arrays]:
    """What an engine is given on the calibration samples; the EmoAdapter every path in turn, behind the given encoders."""
    if role == "vision_encoder":
        return [{"pixels": s.inputs.pixels[-1:]} for s in samples if len(s.inputs.pixels)]
    if role == "audio_encoder":
        return [{"log_mel": s.inputs.log_mel} for s in samples if len(s.inputs.log_mel)]
    chain = reference.exchanged(encoders)
    batches: list[Arrays] = []
    for index, sample in enumerate(samples):
        inputs = _perceived(sample.inputs, PATHS[index % len(PATHS)])
        batches.append(adapter_inputs(chain.encode(inputs), reference.constants))
    return batches


def _perceived(inputs: EncoderInputs, path: str) -> EncoderInputs:
    """What a path perceives of a window; all of it where that would be nothing. What is left out is not encoded either."""
    if path == "audio" and len(inputs.log_mel):
        return replace(inputs, pixels=inputs.pixels[:0], frame_ages_s=inputs.frame_ages_s[:0])
    if path == "visual" and len(inputs.pixels):
        return replace(inputs, log_mel=inputs.log_mel[:0])
    return inputs


def revert_until_search_holds(plans: Mapping[str, Plan], windows: SearchWindows, max_drop: float) -> float:
    """Return the worst blocks to floating point until the whole chain's damage on the search windows is within ``max_drop``."""
    while True:
        damage = windows.damage(
            {role: SessionEngine(plan.variant(plan.chosen())) for role, plan in plans.items()}
        )
        if damage <= max_drop or not revert_worst(plans, "accuracy"):
            return damage


def revert_worst(plans: Mapping[str, Plan], reason: str) -> Block | None:
    """Take the block with the largest damage out of INT8; None when none is left."""
    left = [block for plan in plans.values() for block in plan.blocks if block.state == "INT8"]
    if not left:
        return None
    worst = _worst(left)
    worst.state = f"reverted: {reason}"
    return worst


def _worst(found: Sequence[Block]) -> Block:
    return max(found, key=lambda block: block.damage or 0.0)


def revert_slow_blocks(plan: Plan, arrays: Arrays) -> None:
    """Take blocks out of INT8 that make the engine no faster on this processor: paired runs, with the block and without."""
    for block in sorted(plan.blocks, key=lambda b: b.weight_bytes):
        chosen = plan.chosen()
        if block.name not in chosen:
            continue
        without = [name for name in chosen if name != block.name]
        if slower_share(plan.variant(chosen), plan.variant(without), arrays) >= _SLOWER_SHARE:
            block.state = "reverted: not faster"


def slower_share(first: onnx.ModelProto, second: onnx.ModelProto, arrays: Arrays) -> float:
    """Share of the paired runs in which the first graph took longer than the second."""
    engines = [SessionEngine(first), SessionEngine(second)]
    slower = 0
    for run in range(_TIMED_RUNS + 5):
        times_s: list[float] = []
        for engine in engines:
            began = time.perf_counter()
            engine.run(arrays)
            times_s.append(time.perf_counter() - began)
        slower += run >= 5 and times_s[0] > times_s[1]
    return slower / _TIMED_RUNS


def require_half(plans: Mapping[str, Plan]) -> float:
    """Share of the MatMul weight bytes in INT8 over all engines. Raises BudgetError below ``LEAST_INT8_SHARE``."""
    pairs = [int8_share(plan.variant(plan.chosen())) for plan in plans.values()]
    share = sum(int8 for int8, _ in pairs) / sum(whole for _, whole in pairs)
    if share < LEAST_INT8_SHARE:
        worst = _worst([block for plan in plans.values() for block in plan.blocks])
        raise BudgetError(
            f"only {share:.0%} of the matrix weights fit into INT8 within the budget (the worst block is {worst.name}, damage "
            f"{worst.damage or 0.0:.3g})"
        )
    return share
