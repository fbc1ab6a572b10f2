import json
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from vaemotion.contract.emotions import EMOTIONS
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.front_end import PATHS
from vaemotion.contract.prediction import Affect, Prediction
from vaemotion.data.build import build_procedural
from vaemotion.data.loader import MediaError, load_clip
from vaemotion.data.manifest import read_manifest
from vaemotion.data.writer import write_clip
from vaemotion.evaluation.benchmark import evaluate, run_benchmark
from vaemotion.evaluation.metrics import ccc, rmse

WORKS = 6


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    out = tmp_path_factory.mktemp("art")
    build_procedural(out, "test", WORKS)
    return out


@pytest.fixture(scope="module")
def items(root):
    return read_manifest(root / "manifest.jsonl", root)


@pytest.fixture(scope="module")
def labels(items, root):
    """Sound of a clip → task → item."""
    found = {}
    for video in {item.video for item in items}:
        mine = [item for item in items if item.video == video]
        found[load_clip(mine[0], root).samples.tobytes()] = {item.task: item for item in mine}
    return found


class Oracle:
    """A predictor that knows the labels, recognising a clip by its sound. Wrong where it is told to be."""

    def __init__(self, labels, wrong_path=None, shift=0.0):
        self.labels, self.wrong_path, self.shift, self.calls = labels, wrong_path, shift, []

    def __call__(self, clip, path, questions):
        mine = self.labels[clip.samples.tobytes()]
        self.calls.append((mine["content"].work_id, path))
        answers = []
        for question in questions:
            right = question.options.index(mine[question.task].answer)
            chosen = (right + 1) % len(question.options) if path == self.wrong_path else right
            answers.append(np.where(np.arange(len(question.options)) == chosen, -0.1, -3.0))
        item = mine["content"]
        affect = Affect(item.valence + self.shift, item.arousal, 0.1, 0.1, np.full(9, 1 / 9, np.float32))
        return Prediction(affect, tuple(answers))


def test_an_oracle_is_perfect_and_each_path_of_a_clip_is_encoded_once(items, root, labels):
    oracle = Oracle(labels)
    report = evaluate(items, root, oracle, bootstrap=20)
    assert len(oracle.calls) == len(set(oracle.calls)) == WORKS * 3
    assert [(c.task, c.path) for c in report.choices] == [
        (t, p) for t in ("content", "emotion") for p in PATHS
    ]
    for choice in report.choices:
        assert (choice.accuracy.value, choice.accuracy.low, choice.accuracy.high) == (1, 1, 1)
        assert choice.items == choice.works == WORKS
        assert choice.chance == pytest.approx(1 / (15 if choice.task == "content" else len(EMOTIONS)))
    for affect in report.affects:
        assert affect.readings == WORKS
        assert affect.ccc.value == pytest.approx(1)
        assert affect.rmse.value == pytest.approx(0, abs=1e-12)


def test_a_wrong_path_shows_on_that_path_only_and_a_shift_in_ccc_and_rmse(items, root, labels):
    report = evaluate(items, root, Oracle(labels, wrong_path="audio", shift=0.3), bootstrap=50)
    for choice in report.choices:
        assert choice.accuracy.value == (0 if choice.path == "audio" else 1)
    truth = np.array([r.item.valence for r in report.readings if r.item.modality == "visual"])
    for affect in report.affects:
        assert affect.pcc.value == pytest.approx(1)
        if affect.dimension == "valence":
            assert affect.ccc.value == pytest.approx(ccc(truth + 0.3, truth))
            assert affect.ccc.low <= affect.ccc.value <= affect.ccc.high < 1
            assert affect.rmse.value == pytest.approx(0.3)
            assert affect.mean_rmse == pytest.approx(rmse(np.full(WORKS, truth.mean()), truth))


def test_the_report_on_disk_holds_the_figures_and_every_answer(items, root, labels, tmp_path, capsys):
    @contextmanager
    def load_predictor(model):
        assert model == tmp_path / "model"
        yield Oracle(labels, wrong_path="visual")

    out = tmp_path / "out"
    run_benchmark(root / "manifest.jsonl", root, tmp_path / "model", load_predictor, out, bootstrap=20)
    results = json.loads((out / "results.json").read_text())
    visual = [c for c in results["choices"] if c["path"] == "visual"]
    assert [c["accuracy"]["value"] for c in visual] == [0, 0]
    rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == len(items) + WORKS * 3
    assert sum(row.get("right", False) for row in rows) == WORKS * 4
    text = (out / "results.md").read_text()
    assert "| procedural-art | content | audio | 6 | 1.000 [1.000, 1.000] | 0.067 |" in text
    assert "mean predictor" in text
    assert text.strip() in capsys.readouterr().out
    for name in ("accuracy.png", "affect-procedural-art.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")


def test_what_no_figure_counts_is_said(items, root, labels):
    induced = [replace(item, construct="induced") for item in items[:6]]
    report = evaluate(induced, root, Oracle(labels), bootstrap=5)
    assert report.affects == ()
    assert report.left_out == {"label of an induced emotion": 6}
    bare = [replace(item, options=None, answer_index=None) for item in induced]
    with pytest.raises(UserError, match="nothing to measure"):
        evaluate(bare, root, Oracle(labels), bootstrap=5)


def test_media_without_sound_nonsense_and_empty_splits_are_refused(items, root, labels, tmp_path):
    write_clip(tmp_path / "mute.mkv", np.zeros((3, 16, 16, 3), np.uint8), 10)
    mute = replace(items[0], video="mute.mkv", modality="audio")
    with pytest.raises(MediaError, match="has no sound"):
        evaluate([mute], tmp_path, Oracle(labels))

    def broken(clip, path, questions):
        prediction = Oracle(labels)(clip, path, questions)
        return replace(prediction, affect=replace(prediction.affect, arousal=float("nan")))

    with pytest.raises(UserError, match=r"item '.*-audio-content' with values that are not finite"):
        evaluate(items, root, broken)
    with pytest.raises(UsageError, match="no item of split 'train'"):
        run_benchmark(
            root / "manifest.jsonl", root, root, contextmanager(lambda m: iter(())), root, split="train"
        )
