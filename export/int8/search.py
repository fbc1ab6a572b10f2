"""Search for the blocks that become INT8 within a budget.

In: the FP32 graphs, calibration samples, a reference predictor. Out: a plan for each engine by scheme ("int8"
for TensorRT, "int8-cpu" for ONNX Runtime), with the damage of every block and the reason if it stays in
floating point.

The search uses calibration windows only. A block's damage is 1 - CCC between the reference's readings and
those with this block in INT8, on the worst of the paths. ``export.int8.judge`` then judges the whole chain on
windows of another split.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from rich.progress import track

from calibration.fp16 import half_precision
from calibration.qdq import blocks, int8_share, quantize, weight_products
from calibration.ranges import METHODS, Histogram, observed, session_of
from calibration.samples import Sample
from runtime.engines.io import Arrays
from runtime.perception.predictor import Predictor, Tokens, adapter_inputs
from vaemotion.contract.concordance import ccc
from vaemotion.contract.errors import UserError
from vaemotion.contract.front_end import PATHS, EncoderInputs
from vaemotion.contract.terminal import Terminal

Array = npt.NDArray[Any]
SEARCH_WINDOWS = 64
LEAST_SEARCH_WINDOWS = 8
LEAST_INT8_SHARE = 0.5
_TIMED_RUNS = 25
_SLOWER_SHARE = 0.75  # of the paired runs: from there on INT8 counts as not faster


class BudgetError(UserError):
    """No INT8 engines of this model hold the budget; the message names the metric or the block."""

    exit_code = 3


class SessionEngine:
    """A graph in memory behind an engine's ``run``."""

    def __init__(self, model: onnx.ModelProto, threads: int = 2) -> None:
        self.model = model
        self._session = session_of(model, threads)
        self._inputs = [value.name for value in model.graph.input]
        self._outputs = [value.name for value in model.graph.output]

    def run(self, arrays: Arrays) -> dict[str, Array]:
        """Run the graph on arrays by input name. Returns arrays by output name."""
        values = self._session.run(self._outputs, {name: arrays[name] for name in self._inputs})
        return dict(zip(self._outputs, values, strict=True))


@dataclass
class Block:
    """A block of an engine: a transformer layer's attention or MLP, or a Linear outside of them."""

    name: str
    weight_bytes: int  # in FP32
    damage: float | None = None  # of this block alone in INT8; None where nothing was searched
    state: str = "INT8"  # or the reason why it is not


@dataclass
class Int8Plan:
    """Plan of how one engine is quantized by one scheme."""

    role: str
    scheme: str
    model: onnx.ModelProto  # FP32
    histograms: Mapping[str, Histogram]
    stays_fp32: Sequence[str]
    method: str = "max"
    method_damages: dict[str, float] = field(default_factory=dict)
    blocks: list[Block] = field(default_factory=list)

    def chosen(self) -> list[str]:
        """List the blocks that are INT8."""
        return [block.name for block in self.blocks if block.state == "INT8"]

    def graph(self) -> onnx.ModelProto:
        """Quantize the graph as it is exported: for TensorRT the rest is FP16."""
        quantized = self.variant(self.chosen())
        return half_precision(quantized, self.stays_fp32) if self.scheme == "int8" else quantized

    def variant(self, chosen: Sequence[str], method: str | None = None) -> onnx.ModelProto:
        """Quantize given blocks, the rest in FP32, by the plan's method or another.

        The search compares such graphs, because FP16 is slow on processors.
        """
        return quantize(self.model, self.histograms, method or self.method, self.scheme, chosen)

    def account(self) -> dict[str, Any]:
        """Describe the engine for the manifest and the report."""
        int8, whole = int8_share(self.variant(self.chosen()))
        return {
            "role": self.role,
            "scheme": self.scheme,
            "method": self.method,
            "methods_tried": self.method_damages,
            "blocks": [asdict(block) for block in self.blocks],
            "int8_weight_bytes": int8,
            "matmul_weight_bytes": whole,
            "clipped_share": {
                name: histogram.clipped_share(histogram.threshold(self.method))
                for name, histogram in self.histograms.items()
            },
        }


class SearchWindows:
    """Calibration scenes with frames and sound, with the reference's tokens and readings on them.

    The search compares candidates with these readings. Raises BudgetError for too few windows.
    """

    def __init__(self, reference: Predictor[Any], samples: Sequence[Sample]) -> None:
        complete = [
            s for s in samples if len(s.inputs.pixels) and len(s.inputs.log_mel) and s.kind == "scene"
        ]
        if len(complete) < LEAST_SEARCH_WINDOWS:
            raise BudgetError(
                f"{len(complete)} calibration windows have frames and sound, the search for INT8 needs "
                f"{LEAST_SEARCH_WINDOWS}; give more with --calibration"
            )
        self.reference = reference
        self.inputs = [s.inputs for s in complete[:SEARCH_WINDOWS]]
        self.tokens = [reference.encode(inputs) for inputs in self.inputs]
        self.readings = self._read(self.tokens, reference)

    def _read(self, tokens: Sequence[Tokens], predictor: Predictor[Any]) -> dict[str, Array]:
        return {path: valence_arousal(predictor, [t.only(path) for t in tokens]) for path in PATHS}

    def damage(self, engines: Mapping[str, SessionEngine]) -> float:
        """Compute 1 - CCC between the reference's readings and those with other ``engines``, by role.

        Returns the worst of the paths and of valence and arousal.
        """
        chain = self.reference.with_engines(engines)
        readings = self._read(
            [self._encoded(chain, engines, index) for index in range(len(self.inputs))], chain
        )
        pairs = [(readings[path][:, k], self.readings[path][:, k]) for path in PATHS for k in (0, 1)]
        return max(1 - ccc(got, expected) for got, expected in pairs)

    def _encoded(self, chain: Predictor[Any], engines: Mapping[str, SessionEngine], index: int) -> Tokens:
        """Encode a window with the engines that differ from the reference; the other tokens are known."""
        inputs, known = self.inputs[index], self.tokens[index]
        visual, audio = known.visual, known.audio
        if "vision_encoder" in engines:
            visual = chain.engines["vision_encoder"].run({"pixels": inputs.pixels})["tokens"]
        if "audio_encoder" in engines:
            audio = chain.engines["audio_encoder"].run({"log_mel": inputs.log_mel})["tokens"][0]
        return Tokens(visual, known.frame_ages_s, audio, known.audio_age_s)


def valence_arousal(predictor: Predictor[Any], windows: Sequence[Tokens]) -> Array:
    """Predict valence and arousal of windows as one batch, (n, 2)."""
    rows = [adapter_inputs(tokens, predictor.constants) for tokens in windows]
    batch = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    return predictor.engines["emo_adapter"].run(batch)["valence_arousal"]


def whole_plan(
    role: str,
    scheme: str,
    model: onnx.ModelProto,
    histograms: Mapping[str, Histogram],
    stays_fp32: Sequence[str],
) -> Int8Plan:
    """Plan every block of an engine in INT8, with the largest values seen as ranges."""
    found = [Block(name, size) for name, size in blocks(weight_products(model)).items()]
    return Int8Plan(role, scheme, model, histograms, stays_fp32, blocks=found)


def observe(model: onnx.ModelProto, batches: Sequence[Arrays]) -> dict[str, Histogram]:
    """Observe the inputs of every matrix product that may become INT8, by tensor name."""
    products = weight_products(model)
    tensors = sorted({product.activation for product in products if not product.stays_high})
    return observed(model, tensors, batches)


def search(plan: Int8Plan, windows: SearchWindows, ranked: Int8Plan | None) -> None:
    """Choose the method that disturbs the readings least, and measure every block's damage.

    ``ranked``: the other scheme's plan. Its damages are used, because weights round alike in both.
    """
    for method in METHODS:
        engine = SessionEngine(plan.variant(plan.chosen(), method))
        plan.method_damages[method] = windows.damage({plan.role: engine})
    plan.method = min(METHODS, key=plan.method_damages.__getitem__)
    if ranked is not None:
        plan.blocks = [replace(block, state="INT8") for block in ranked.blocks]
        return
    for block in track(plan.blocks, f"{plan.role}: blocks", console=Terminal(stderr=True), transient=True):
        block.damage = windows.damage({plan.role: SessionEngine(plan.variant([block.name]))})


def calibration_inputs(
    role: str, samples: Sequence[Sample], reference: Predictor[Any], encoders: Mapping[str, SessionEngine]
) -> list[Arrays]:
    """Compute an engine's inputs on the calibration samples.

    The EmoAdapter's take the paths in turn, with tokens of the given encoders, by role.
    """
    if role == "vision_encoder":
        return [{"pixels": s.inputs.pixels[-1:]} for s in samples if len(s.inputs.pixels)]
    if role == "audio_encoder":
        return [{"log_mel": s.inputs.log_mel} for s in samples if len(s.inputs.log_mel)]
    chain = reference.with_engines(encoders)
    batches: list[Arrays] = []
    for index, sample in enumerate(samples):
        inputs = _perceived(sample.inputs, PATHS[index % len(PATHS)])
        batches.append(adapter_inputs(chain.encode(inputs), reference.constants))
    return batches


def _perceived(inputs: EncoderInputs, path: str) -> EncoderInputs:
    """Keep a path's part of a window, or all of it where that part is empty."""
    kept = inputs.only(path)
    return kept if len(kept.pixels) or len(kept.log_mel) else inputs


def revert_until_search_holds(
    plans: Mapping[str, Int8Plan], windows: SearchWindows, max_drop: float
) -> float:
    """Take the worst blocks back until the chain's damage on the search windows is at most ``max_drop``.

    Returns that damage.
    """
    while True:
        damage = windows.damage(
            {role: SessionEngine(plan.variant(plan.chosen())) for role, plan in plans.items()}
        )
        if damage <= max_drop or not revert_worst(plans, "accuracy"):
            return damage


def revert_worst(plans: Mapping[str, Int8Plan], reason: str) -> Block | None:
    """Take the block with the largest damage back to floating point and return it; None if none is left."""
    left = [block for plan in plans.values() for block in plan.blocks if block.state == "INT8"]
    if not left:
        return None
    worst = _worst(left)
    worst.state = f"reverted: {reason}"
    return worst


def _worst(found: Sequence[Block]) -> Block:
    return max(found, key=lambda block: block.damage or 0.0)


def revert_slow_blocks(plan: Int8Plan, arrays: Arrays) -> None:
    """Take blocks back that make the engine no faster here, by paired runs with the block and without."""
    for block in sorted(plan.blocks, key=lambda b: b.weight_bytes):
        chosen = plan.chosen()
        if block.name not in chosen:
            continue
        without = [name for name in chosen if name != block.name]
        if slower_share(plan.variant(chosen), plan.variant(without), arrays) >= _SLOWER_SHARE:
            block.state = "reverted: not faster"


def slower_share(first: onnx.ModelProto, second: onnx.ModelProto, arrays: Arrays) -> float:
    """Measure the share of paired runs in which the first graph takes longer than the second."""
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


def require_half(plans: Mapping[str, Int8Plan]) -> float:
    """Compute the INT8 share of MatMul weights by bytes. Raises BudgetError below ``LEAST_INT8_SHARE``."""
    pairs = [int8_share(plan.variant(plan.chosen())) for plan in plans.values()]
    share = sum(int8 for int8, _ in pairs) / sum(whole for _, whole in pairs)
    if share < LEAST_INT8_SHARE:
        worst = _worst([block for plan in plans.values() for block in plan.blocks])
        raise BudgetError(
            f"only {share:.0%} of the matrix weights fit into INT8 within the budget (the worst block is "
            f"{worst.name}, damage {worst.damage or 0.0:.3g})"
        )
    return share
