"""Labels that change over time: which windows are read, and how they agree with their labels."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tests.media import write_work
from tests.vaemotion.evaluation.benchmark.rows import UNIFORM, item
from vaemotion.cli.main import main
from vaemotion.contract.emotions import EMOTIONS
from vaemotion.contract.errors import UserError
from vaemotion.contract.front_end import Clip, FrontEnd, window_at
from vaemotion.contract.media.files import MediaError
from vaemotion.contract.prediction import Affect, Prediction, Question
from vaemotion.data.manifest.item import Item
from vaemotion.data.manifest.loader import Media, load_clip
from vaemotion.evaluation.benchmark.report import markdown, write_report
from vaemotion.evaluation.benchmark.rows import Bootstrap
from vaemotion.evaluation.benchmark.run import BenchmarkSettings, evaluate
from vaemotion.evaluation.benchmark.series import decoded_parts, rated_ends_s

QUICK = BenchmarkSettings(rotations=0, bootstrap=Bootstrap(20, 0))
DURATION_S = 12.0


@dataclass(frozen=True)
class Constants:
    front_end: FrontEnd = field(default_factory=FrontEnd)
    emotions: tuple[str, ...] = EMOTIONS


class Loudness:
    """A predictor whose valence is that of a window's newest sound, and whose arousal is 0.25."""

    constants = Constants()

    def __init__(self, *, induces: bool = False) -> None:
        self.induces, self.read = induces, 0

    def affect(self, clip: Clip, now_s: float) -> Affect:
        sound = np.zeros(1) if clip.samples is None else clip.samples[: round(now_s * 16_000)][-8000:]
        valence = float(np.tanh(20 * np.sqrt(np.mean(sound**2))))
        return Affect(valence, 0.25, 0.2, 0.2, np.array(UNIFORM, np.float32))

    def __call__(self, clip: Clip, path: str, questions: Sequence[Question]) -> Prediction:
        return Prediction(self.affect(clip, clip.duration_s), ())

    def affects(self, clip: Clip, path: str, ends_s: Sequence[float]) -> list[tuple[Affect, Affect | None]]:
        self.read += len(ends_s)
        read = [self.affect(clip, now_s) for now_s in ends_s]
        return [
            (affect, replace(affect, valence=-affect.valence) if self.induces else None) for affect in read
        ]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    for number in (1, 2):
        write_work(folder / f"{number}.mkv", DURATION_S, number)
    return folder


def rated(number: int, values: Sequence[float] | None = None, **fields: object) -> Item:
    given = tuple(values) if values is not None else tuple(np.linspace(-0.9, 0.9, 2 * int(DURATION_S) + 1))
    common = {"series_rate_hz": 2.0, "construct": "expressed", "task": "emotion"}
    return item(number, valence_series=given, **{**common, **fields})


def test_windows_end_at_the_whole_seconds_that_are_rated() -> None:
    assert rated_ends_s(rated(1)) == [float(k) for k in range(1, 13)]
    assert rated_ends_s(rated(1, series_start_s=2.5)) == [float(k) for k in range(3, 15)]
    assert rated_ends_s(rated(1, series_start_s=3.0, reaction_lag_s=2.0)) == [float(k) for k in range(1, 14)]
    assert rated_ends_s(rated(1, t0=1.0, t1=5.5)) == [1, 2, 3, 4]
    assert rated_ends_s(rated(1, (0.1, 0.2), series_rate_hz=0.1)) == [float(k) for k in range(1, 11)]


@pytest.mark.parametrize("t0", [None, 1.3])
def test_parts_hold_the_same_windows_as_the_whole_film(root: Path, t0: float | None) -> None:
    front_end = FrontEnd()
    whole = load_clip(Media(video="1.mkv", t0=t0), root)
    labeled = rated(1, t0=t0, series_start_s=4.0)
    read: list[float] = []
    for clip, start_s, ends_s in decoded_parts(labeled, root, rated_ends_s(labeled), front_end):
        assert clip.duration_s < 12
        for now_s in ends_s:
            expected = window_at(whole, now_s, "audio-visual", front_end)
            got = window_at(clip, now_s - start_s, "audio-visual", front_end)
            np.testing.assert_array_equal(got.pixels, expected.pixels)
            np.testing.assert_allclose(got.frame_ages_s, expected.frame_ages_s, atol=1e-5)
            np.testing.assert_allclose(got.log_mel, expected.log_mel, atol=2e-4)
            assert got.sound_s == pytest.approx(expected.sound_s, abs=1e-3)
        read += ends_s
    # Beyond the end of the film nothing is read, but within a second after its last frame.
    last_s = math.floor(whole.duration_s + 1)
    assert read == [float(k) for k in range(4, last_s + 1)]


def test_figures_per_work_and_pooled_equal_those_of_scipy(root: Path, tmp_path: Path) -> None:
    model = Loudness()
    report = evaluate([rated(1), rated(2)], root, model, QUICK)
    assert (report.affects, report.choices, report.left_out) == ((), (), {})
    pooled, *each = report.series
    assert [(row.work, row.windows, row.works) for row in report.series] == [
        ("all works", 24, 2),
        ("work-1", 12, 1),
        ("work-2", 12, 1),
    ]
    rows = report.windows
    assert [row.now_s for row in rows if row.item.id == "item-1"] == [float(k) for k in range(1, 13)]
    for result, chosen in zip(report.series, (rows, rows[:12], rows[12:]), strict=True):
        x = np.array([row.affect.valence for row in chosen])
        y = np.array([-0.9 + 1.8 * row.now_s / 12 for row in chosen])  # the label of its time
        assert x.std() > 0
        assert result.pcc.value == pytest.approx(stats.pearsonr(x, y).statistic)
        lin = 2 * np.cov(x, y, bias=True)[0, 1] / (x.var() + y.var() + (x.mean() - y.mean()) ** 2)
        assert result.ccc.value == pytest.approx(lin)
        assert result.rmse.value == pytest.approx(np.sqrt(np.mean((x - y) ** 2)))
    assert pooled.path == each[0].path == "audio-visual"
    text = markdown(report)
    assert "| made-up | expressed | valence | audio-visual | 2 works | 24 |" in text
    assert "| made-up | expressed | valence | audio-visual, mean predictor | work-2 | 12 | 0.000 |" in text
    write_report(report, tmp_path)
    written = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [row["time_s"] for row in written] == [row.now_s for row in rows]
    assert written[5]["valence"] == pytest.approx(0.0)
    assert written[5]["arousal"] is None


def test_each_construct_and_dimension_is_compared_with_its_own(root: Path) -> None:
    series = tuple(np.linspace(0, 0.5, 25))
    induced = rated(1, arousal_series=series, id="b", construct="induced")
    report = evaluate([rated(1), induced], root, Loudness(induces=True), QUICK)
    assert [(row.construct, row.dimension) for row in report.series] == [
        ("expressed", "valence"),
        ("induced", "valence"),
        ("induced", "arousal"),
    ]
    first, second, arousal = report.series
    assert first.pcc.value == pytest.approx(-second.pcc.value)
    assert arousal.pcc.value == pytest.approx(0)  # constant
    assert report.left_out == {}
    without = evaluate([rated(1), induced], root, Loudness(), QUICK)
    assert without.left_out == {"label of an induced emotion, which this model does not predict": 1}


def test_a_constant_label_and_a_series_of_one_film_are_both_measured(root: Path) -> None:
    constant = item(1, id="b", construct="expressed", valence=0.5, arousal=0.1)
    report = evaluate([rated(1), constant], root, Loudness(), QUICK)
    assert [(row.dimension, row.readings) for row in report.affects] == [("valence", 1), ("arousal", 1)]
    assert [row.windows for row in report.series] == [12]


def test_what_is_not_measured_is_counted_and_a_film_without_sound_refused(root: Path) -> None:
    clip = item(2, id="c", task="clip", question=None)
    short = rated(1, (0.1, 0.2), id="d", series_rate_hz=4.0, series_start_s=3.1)
    other = item(
        2,
        id="e",
        construct="expressed",
        valence=0.1,
        emotion_names=("joy", "grief"),
        emotion_distribution=(0.5, 0.5),
    )
    report = evaluate([rated(1), clip, short, other], root, Loudness(), QUICK)
    assert report.left_out == {
        "clip without a question or labels": 1,
        "series that rates no whole second of its medium": 1,
        "distribution of other emotions than the model's": 1,
    }

    def reads_clips_only(clip: Clip, path: str, questions: Sequence[Question]) -> Prediction:
        raise AssertionError

    with pytest.raises(
        UserError, match=r"nothing to measure: .*1 × series of labels, of which this predictor"
    ):
        evaluate([rated(1)], root, reads_clips_only, QUICK)
    Path(root / "mute.mkv").unlink(missing_ok=True)
    write_mute(root / "mute.mkv")
    mute = rated(3, video="mute.mkv")
    with pytest.raises(
        MediaError, match=r"'item-3' is for the path 'audio-visual', but mute.mkv has no sound"
    ):
        evaluate([mute], root, Loudness(), QUICK)
    report = evaluate([rated(1), mute], root, Loudness(), replace(QUICK, path="audio"))
    assert report.left_out == {"item without sound for the path 'audio'": 1}
    assert report.series[0].path == "audio"


def write_mute(file: Path) -> None:
    from vaemotion.data.manifest.writer import write_clip

    write_clip(file, np.zeros((30, 16, 16, 3), np.uint8), 10)


def test_emotions_in_another_order_are_the_models(root: Path) -> None:
    shares = tuple(float(k) / 45 for k in range(1, 10))
    backwards = {"emotion_names": EMOTIONS[::-1], "emotion_distribution": shares[::-1]}
    for names in ({"emotion_distribution": shares}, backwards):
        report = evaluate([item(1, construct="expressed", **names)], root, Loudness(), QUICK)
        assert report.readings[0].item.emotion_distribution == shares


def test_a_real_model_is_measured_over_time_from_the_command_line(
    root: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("".join(rated(k).to_json() + "\n" for k in (1, 2)))
    command = ["evaluate", "benchmark", str(manifest), "--media-root", str(root), "--bootstrap", "5"]
    assert main([*command, "--model", str(small_checkpoint), "--out", str(tmp_path / "out")]) == 0
    found: list[dict[str, Any]] = json.loads((tmp_path / "out" / "results.json").read_text())["series"]
    assert [(row["work"], row["windows"]) for row in found] == [
        ("all works", 24),
        ("work-1", 12),
        ("work-2", 12),
    ]
    rows = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert len({row["predicted_valence"] for row in rows}) > 12  # the windows differ
