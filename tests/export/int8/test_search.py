"""The search for INT8: a planted outlier is found and taken back first, too little INT8 is refused."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from calibration.qdq import SCHEMES, weight_products
from calibration.samples import procedural_samples
from export.half_weights import load_fp32_graph
from export.int8.judge import Budget
from export.int8.material import ArtMaterial
from export.int8.plan import Int8Inputs, Judging, judge_int8, plan_scheme, read_histograms, write_histograms
from export.int8.search import (
    BudgetError,
    Int8Plan,
    SessionEngine,
    require_half,
    revert_until_search_holds,
    revert_worst,
    slower_share,
)
from export.step_store import MadeFile
from export.workshop import ExportFolder, Made, Step
from runtime.engines.io import Arrays
from runtime.perception.predictor import Predictor, open_predictor
from vaemotion.contract.bundle import ENGINE_ROLES, component_path, read_manifest
from vaemotion.contract.terminal import Terminal

PLANTED = "vision_model.encoder.layers.0.mlp"
GAIN = 4000.0


def planted(model: onnx.ModelProto) -> onnx.ModelProto:
    """Scale a channel of the norm before the MLP by ``GAIN``, its weights by the inverse.

    The function stays the same.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    first = next(p for p in weight_products(changed) if p.block == PLANTED)
    norm = next(node for node in changed.graph.node if first.activation in node.output)
    assert norm.op_type == "LayerNormalization"
    product = next(node for node in changed.graph.node if node.name == first.node)
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in changed.graph.initializer}
    for node, position, factor in ((norm, 1, GAIN), (norm, 2, GAIN), (product, 1, 1 / GAIN)):
        values = tensors[node.input[position]].copy()  # a copy of its own: equal tensors are stored once
        values[3] *= factor
        node.input[position] = f"planted {node.name} {position}"
        changed.graph.initializer.append(numpy_helper.from_array(values, node.input[position]))
    return changed


@pytest.fixture(scope="module")
def reference(small_bundle: Path) -> Iterator[Predictor[Any]]:
    with open_predictor(small_bundle) as predictor:
        yield predictor


@pytest.fixture(scope="module")
def models(small_bundle: Path) -> dict[str, onnx.ModelProto]:
    manifest = read_manifest(small_bundle)
    return {
        role: load_fp32_graph(component_path(small_bundle, manifest.component(role, "fp32")))
        for role in ENGINE_ROLES
    }


@pytest.fixture(scope="module")
def folder(small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportFolder:
    """Open an unfinished export with the files of ``small_bundle``."""
    manifest = read_manifest(small_bundle)

    def make(made: Path) -> Made:
        files: list[MadeFile] = []
        for c in manifest.components:
            shutil.copy(component_path(small_bundle, c), made)
            files.append(MadeFile(Path(c.path).name, c.role, c.precision, c.inputs, c.outputs))
        return files, {}

    opened = ExportFolder(
        tmp_path_factory.mktemp("int8") / "bundle", "Apache-2.0", "checkpoint", Terminal(file=io.StringIO())
    )
    opened.step(Step("files of a bundle", make, (), {"sha256": [c.sha256 for c in manifest.components]}))
    return opened


@pytest.fixture
def inputs(folder: ExportFolder, reference: Predictor[Any], models: dict[str, onnx.ModelProto]) -> Int8Inputs:
    """Plant an outlier in the vision encoder. The first test searches, the others find the steps done."""
    folder.notes.clear()
    samples = list(procedural_samples(reference.constants.front_end, 18))
    spiked = {**models, "vision_encoder": planted(models["vision_encoder"])}
    stays = dict.fromkeys(ENGINE_ROLES, ())
    question = reference.constants.narrator_question
    return Int8Inputs(folder, spiked, stays, lambda: samples, lambda: reference, {"planted": True}, question)


@pytest.fixture
def plans(inputs: Int8Inputs) -> dict[str, Int8Plan]:
    return plan_scheme(inputs, "int8", None, searched=True)


def test_the_planted_outlier_is_found_and_taken_back_first(
    plans: dict[str, Int8Plan], inputs: Int8Inputs
) -> None:
    windows = inputs.windows
    spiked = SessionEngine(plans["vision_encoder"].model)
    assert windows.damage({"vision_encoder": spiked}) < 1e-4  # before it is quantized it is the same function
    ranked = sorted((b for p in plans.values() for b in p.blocks), key=lambda block: -(block.damage or 0.0))
    print([(block.name, block.damage) for block in ranked[:4]])
    assert ranked[0].name == PLANTED
    assert ranked[0].damage > 3 * ranked[1].damage
    whole = windows.damage({role: SessionEngine(plan.variant(plan.chosen())) for role, plan in plans.items()})
    left = revert_until_search_holds(plans, windows, max_drop=0.5 * whole)
    assert left <= 0.5 * whole
    states = {block.name: block.state for block in plans["vision_encoder"].blocks}
    assert states[PLANTED] == "reverted: accuracy"
    assert require_half(plans) > 0.5


def test_the_account_says_what_became_of_every_block(plans: dict[str, Int8Plan]) -> None:
    worst = revert_worst(plans, "accuracy, end to end")
    assert worst is not None
    (account,) = (plan.account() for plan in plans.values() if worst in plan.blocks)
    assert {b["name"]: b["state"] for b in account["blocks"]}[worst.name] == "reverted: accuracy, end to end"
    assert account["int8_weight_bytes"] < account["matmul_weight_bytes"]
    assert account["method"] in account["methods_tried"]
    assert all(0 <= share <= 1 for share in account["clipped_share"].values())


def test_too_little_int8_is_refused_with_the_worst_block(plans: dict[str, Int8Plan]) -> None:
    for _ in range(100):
        if revert_worst(plans, "accuracy") is None:
            break
    with pytest.raises(
        BudgetError, match=r"only 0% of the matrix weights .*the worst block is .*, damage "
    ) as caught:
        require_half(plans)
    assert caught.value.exit_code == 3


def test_where_int8_loses_fp16_is_judged_before_it_is_recommended(
    plans: dict[str, Int8Plan],
    inputs: Int8Inputs,
    reference: Predictor[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("export.int8.judge.JITTER_CLIPS", 4)
    while revert_worst(plans, "accuracy") is not None:
        pass
    material = ArtMaterial(reference.constants.front_end, 16)
    judging = Judging(material, Budget(), {"F16": lambda: reference.language_model})
    with pytest.raises(BudgetError, match=r"only 0% .*FP16 wins on this model, it holds .*--precision fp16"):
        judge_int8(inputs, {"int8": plans}, judging, material)


def test_the_other_scheme_takes_over_the_ranking_and_finds_its_own_ranges(
    plans: dict[str, Int8Plan], inputs: Int8Inputs
) -> None:
    other = plan_scheme(inputs, SCHEMES[1], plans, searched=True)
    for role in ENGINE_ROLES:
        assert [b.damage for b in other[role].blocks] == [b.damage for b in plans[role].blocks]
        assert other[role].blocks[0] is not plans[role].blocks[0]
        assert set(other[role].method_damages) == set(plans[role].method_damages)
    name = next(iter(plans["emo_adapter"].histograms))
    counts = [by_role["emo_adapter"].histograms[name].counts for by_role in (plans, other)]
    assert not np.array_equal(*counts)  # behind the encoders of its own scheme


def test_histograms_come_back_from_their_file(plans: dict[str, Int8Plan], tmp_path: Path) -> None:
    histograms = dict(plans["audio_encoder"].histograms)
    write_histograms(tmp_path / "ranges.npz", histograms)
    restored = read_histograms(tmp_path / "ranges.npz")
    assert list(restored) == list(histograms)
    for name, histogram in histograms.items():
        assert (restored[name].counts == histogram.counts).all()
        for field in ("limit", "lowest", "highest"):
            assert getattr(restored[name], field) == getattr(histogram, field)


def test_a_slower_graph_is_seen_to_be_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    def chain(length: int) -> onnx.ModelProto:
        names = [f"t{k}" for k in range(length + 1)]
        nodes = [onnx.helper.make_node("Neg", [a], [b]) for a, b in pairwise(names)]
        specs = [
            onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["batch", 4])
            for n in (names[0], names[-1])
        ]
        graph = onnx.helper.make_graph(nodes, "g", specs[:1], specs[1:])
        return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)

    now_s = 0.0
    run = SessionEngine.run

    def timed(engine: SessionEngine, arrays: Arrays) -> dict[str, np.ndarray]:
        nonlocal now_s
        now_s += len(engine.model.graph.node)  # a second for each node, however busy the machine is
        return run(engine, arrays)

    monkeypatch.setattr(SessionEngine, "run", timed)
    monkeypatch.setattr("export.int8.search.time", SimpleNamespace(perf_counter=lambda: now_s))
    arrays = {"t0": np.ones((2, 4), np.float32)}
    assert slower_share(chain(3), chain(1), arrays) == 1.0
    assert slower_share(chain(1), chain(3), arrays) == slower_share(chain(2), chain(2), arrays) == 0.0
