import json
import math
import shutil
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from vaemotion.cli.main import main
from vaemotion.contract.emotions import EMOTIONS
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.front_end import PATHS
from vaemotion.contract.media.files import MediaError
from vaemotion.contract.prediction import Affect, Prediction, rotated_options
from vaemotion.data.art.build import build_procedural
from vaemotion.data.manifest.loader import load_clip
from vaemotion.data.manifest.manifest import read_manifest
from vaemotion.data.manifest.writer import write_clip
from vaemotion.evaluation.benchmark.report import markdown
from vaemotion.evaluation.benchmark.rows import Bootstrap
from vaemotion.evaluation.benchmark.run import BenchmarkSettings, evaluate, run_benchmark
from vaemotion.evaluation.metrics import ccc, rmse

WORKS = 6
QUICK = BenchmarkSettings(rotations=0, bootstrap=Bootstrap(20, 0))
LISTED = replace(QUICK, rotations=2)


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
    """Return the items of each clip: its sound → task → item."""
    found = {}
    for video in {item.video for item in items}:
        mine = [item for item in items if item.video == video]
        found[load_clip(mine[0], root).samples.tobytes()] = {item.task: item for item in mine}
    return found


class Oracle:
    """A predictor that knows the labels and recognizes a clip by its sound.

    ``wrong_path``: a path on which every answer is wrong. ``shift``: added to valence. ``induces``: also
    predict induced emotions, the opposite of the expressed ones. ``words``: the form of a greedy answer.
    """

    def __init__(self, labels, wrong_path=None, shift=0.0, induces=False, words="A {}."):
        self.labels, self.wrong_path, self.shift, self.calls = labels, wrong_path, shift, []
        self.induces, self.words = induces, words

    def __call__(self, clip, path, questions):
        mine = self.labels[clip.samples.tobytes()]
        self.calls.append((mine["content"].work_id, path))
        answers, written = [], []
        for question in questions:
            right = question.options.index(mine[question.task].answer)
            chosen = (right + 1) % len(question.options) if path == self.wrong_path else right
            answers.append(np.where(np.arange(len(question.options)) == chosen, -0.1, -3.0))
            rotations = rotated_options(question.options, question.rotations)
            written.append(tuple(self.words.format(question.options[chosen]) for _ in rotations))
        item = mine["content"]
        emotions = np.array(item.emotion_distribution, np.float32)
        affect = Affect(item.valence + self.shift, item.arousal, 0.1, 0.1, emotions)
        induced = replace(affect, valence=-item.valence, arousal=-item.arousal) if self.induces else None
        return Prediction(affect, tuple(answers), tuple(written), induced)


def test_an_oracle_is_perfect_and_each_path_of_a_clip_is_encoded_once(items, root, labels):
    oracle = Oracle(labels)
    report = evaluate(items, root, oracle, QUICK)
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
    assert report.listed == ()
    for gain in report.gains:
        assert (gain.media, gain.gain.value) == (WORKS, pytest.approx(0, abs=1e-12))
    for distribution in report.distributions:
        assert distribution.jsd.value == pytest.approx(0, abs=1e-4)
        assert distribution.uniform_jsd.value >= distribution.mean_jsd.value - 0.05
        assert distribution.mean_raters is None


def test_listed_options_are_asked_by_rotation_and_read_from_words(items, root, labels):
    report = evaluate(items, root, Oracle(labels, wrong_path="audio"), replace(QUICK, rotations=12))
    assert [(r.task, r.path, r.rotations) for r in report.listed] == [
        (task, path, most) for task, most in (("content", 12), ("emotion", 9)) for path in PATHS
    ]  # nine emotions cannot be rotated twelve times
    for row in report.listed:
        assert row.parse_rate.value == 1
        assert row.accuracy.value == row.circular.value == (0 if row.path == "audio" else 1)
    mumbling = evaluate(items, root, Oracle(labels, words="hard to say"), replace(QUICK, rotations=1))
    assert {r.parse_rate.value for r in mumbling.listed} == {r.accuracy.value for r in mumbling.listed} == {0}
    assert {r.accuracy.value for r in mumbling.choices} == {1}


def test_each_construct_is_compared_with_its_own_head(items, root, labels):
    induced = [replace(item, id=f"{item.id}-i", construct="induced") for item in items]
    report = evaluate([*items, *induced], root, Oracle(labels, induces=True), QUICK)
    assert [(r.construct, r.path, r.dimension) for r in report.affects] == [
        (c, p, d) for c in ("expressed", "induced") for p in PATHS for d in ("valence", "arousal")
    ]
    for row in report.affects:
        assert row.readings == WORKS
        assert row.pcc.value == pytest.approx(1 if row.construct == "expressed" else -1)
    assert report.left_out == {}


def test_a_control_run_asks_every_item_on_one_path(items, root, labels, tmp_path):
    oracle = Oracle(labels, wrong_path="audio")
    report = evaluate(items, root, oracle, replace(QUICK, path="audio"))
    assert len(oracle.calls) == WORKS  # once a medium, whatever the number of items about it
    assert {path for _, path in oracle.calls} == {"audio"}
    assert [(r.task, r.path, r.own_path) for r in report.choices] == [
        (task, "audio", own) for task in ("content", "emotion") for own in PATHS
    ]
    assert {r.accuracy.value for r in report.choices} == {0}
    assert [(r.own_path, r.readings) for r in report.affects if r.dimension == "arousal"] == [
        (own, WORKS) for own in PATHS
    ]
    assert report.gains == ()
    assert "Control run: every item was asked on the path 'audio'" in markdown(report)
    assert "| audio (items for visual) |" in markdown(report)


def test_a_control_run_leaves_out_media_without_what_the_path_needs(items, root, labels, tmp_path):
    write_clip(tmp_path / "mute.mkv", np.zeros((3, 16, 16, 3), np.uint8), 10)
    (tmp_path / "media").symlink_to(root / "media")
    mute = replace(items[0], id="mute", video="mute.mkv", modality="visual")
    report = evaluate([*items, mute], tmp_path, Oracle(labels), replace(QUICK, path="audio"))
    assert report.left_out == {"item without sound for the path 'audio'": 1}
    with pytest.raises(UserError, match=r"nothing to measure: .* \(1 × item without sound"):
        evaluate([mute], tmp_path, Oracle(labels), replace(QUICK, path="audio"))


def test_a_wrong_path_shows_on_that_path_only_and_a_shift_in_ccc_and_rmse(items, root, labels):
    settings = replace(QUICK, bootstrap=Bootstrap(50, 0))
    report = evaluate(items, root, Oracle(labels, wrong_path="audio", shift=0.3), settings)
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
    run_benchmark(root / "manifest.jsonl", root, [tmp_path / "model"], load_predictor, out, LISTED)
    results = json.loads((out / "results.json").read_text())
    visual = [c for c in results["choices"] if c["path"] == "visual"]
    assert [c["accuracy"]["value"] for c in visual] == [0, 0]
    rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == len(items) + WORKS * 3
    assert sum(row.get("right", False) for row in rows) == WORKS * 4
    written = [row for row in rows if "written" in row]
    assert len(written) == len(items)
    assert all(len(row["written"]) == 2 and row["parsed"] == [row["chosen"]] * 2 for row in written)
    text = (out / "results.md").read_text()
    assert "| procedural-art | content | audio | 6 | 1.000 [1.000, 1.000] | 0.067 |" in text
    assert "mean predictor" in text
    assert text.strip() in capsys.readouterr().out
    assert "| procedural-art | expressed | audio | 6 | computed | 0.000 [0.000, 0.000] |" in text
    for name in ("accuracy.png", "affect-procedural-art-expressed.png", "distributions.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")


def test_several_models_leave_a_report_each_and_their_spread(items, root, labels, tmp_path, capsys):
    @contextmanager
    def load_predictor(model):
        yield Oracle(labels, shift=0.3 if model.name == "seed1" else 0.0)

    out, models = tmp_path / "out", [tmp_path / "seed0", tmp_path / "seed1"]
    run_benchmark(root / "manifest.jsonl", root, models, load_predictor, out, LISTED)
    spread = json.loads((out / "seeds.json").read_text())
    row = next(r for r in spread["affects"] if (r["path"], r["dimension"]) == ("audio", "valence"))
    assert row["rmse"]["values"] == pytest.approx({"seed0": 0, "seed1": 0.3})
    assert (row["rmse"]["mean"], row["rmse"]["sd"]) == pytest.approx((0.15, 0.3 / math.sqrt(2)))
    for name in ("seed0", "seed1"):
        assert (out / name / "results.md").is_file()
    assert (out / "seeds.md").read_text().strip() in capsys.readouterr().out


def test_real_models_are_measured_from_the_command_line(root, small_checkpoint, tmp_path, capsys):
    twin = shutil.copytree(small_checkpoint, tmp_path / "twin")
    command = ["evaluate", "benchmark", str(root / "manifest.jsonl"), "--media-root", str(root)]
    command += ["--model", str(small_checkpoint), "--model", str(twin), "--out", str(tmp_path / "out")]
    assert main([*command, "--path", "visual", "--rotations", "1", "--bootstrap", "5"]) == 0
    assert "over 2 models: checkpoint, twin." in capsys.readouterr().out
    spread = json.loads((tmp_path / "out" / "seeds.json").read_text())
    assert [(r["path"], r["own_path"], r["texts"]) for r in spread["listed"]] == [
        ("visual", own, WORKS) for _ in range(2) for own in PATHS
    ]
    assert {r["ccc"]["sd"] for r in spread["affects"]} == {0}  # the twin is the same model


def test_what_no_figure_counts_is_said(items, root, labels):
    induced = [replace(item, construct="induced") for item in items[:6]]
    report = evaluate(induced, root, Oracle(labels), QUICK)
    assert report.affects == report.gains == report.distributions == ()
    assert report.left_out == {"label of an induced emotion, which this model does not predict": 6}
    bare = [replace(item, options=None, answer_index=None) for item in induced]
    with pytest.raises(UserError, match=r"nothing to measure: .*6 × question without options"):
        evaluate(bare, root, Oracle(labels), QUICK)


def test_media_without_sound_nonsense_and_empty_splits_are_refused(items, root, labels, tmp_path):
    write_clip(tmp_path / "mute.mkv", np.zeros((3, 16, 16, 3), np.uint8), 10)
    mute = replace(items[0], video="mute.mkv", modality="audio")
    with pytest.raises(MediaError, match="has no sound"):
        evaluate([mute], tmp_path, Oracle(labels), QUICK)

    def broken(clip, path, questions):
        prediction = Oracle(labels)(clip, path, questions)
        return replace(prediction, affect=replace(prediction.affect, arousal=float("nan")))

    with pytest.raises(UserError, match=r"item '.*-audio-content' with values that are not finite"):
        evaluate(items, root, broken, QUICK)

    def broken_inside(clip, path, questions):
        prediction = Oracle(labels, induces=True)(clip, path, questions)
        return replace(prediction, induced=replace(prediction.induced, emotions=np.full(9, np.nan)))

    with pytest.raises(UserError, match="values that are not finite"):
        evaluate(items, root, broken_inside, QUICK)
    no_model = contextmanager(lambda m: iter(()))
    with pytest.raises(UsageError, match="no item of split 'train'; its splits: test"):
        run_benchmark(root / "manifest.jsonl", root, [root], no_model, root, QUICK, split="train")
    with pytest.raises(UsageError, match="--path must be one of audio, visual, audio-visual, got 'smell'"):
        run_benchmark(root / "manifest.jsonl", root, [root], no_model, root, replace(QUICK, path="smell"))
