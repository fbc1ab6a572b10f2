"""``vaemotion evaluate timeline`` on timelines that a run wrote, and on written ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from runtime.commands.timeline.read import read_timeline
from runtime.messages import Reading, Start, to_json
from tests.media import write_work
from tests.vaemotion.evaluation.benchmark.rows import item
from vaemotion.cli.main import main
from vaemotion.contract.bundle import sha256_of

QUICK = ("--bootstrap", "20")


def write_timeline(
    file: Path, source: str, values: dict[float, float], *, interval: float | None = 0.3
) -> Path:
    """Write a timeline whose valence is given and whose arousal is its opposite."""
    lines = [to_json(Start("small", "0" * 64, source, "max", ("a", "b"), {}, "1"))]
    lines += [
        to_json(
            Reading(
                t, v, -v, 0.1, 0.1, {"awe": 1.0}, "visual" if t < 1 else "audio-visual", 0.0, 0.0,
                valence_interval=interval, arousal_interval=interval,
            )
        )
        for t, v in values.items()
    ]  # fmt: skip
    file.write_text("\n".join(lines) + "\n")
    return file


def curve(phase: float = 0.0) -> dict[float, float]:
    return {round(t, 1): float(0.8 * np.sin(t / 3 + phase)) for t in np.arange(0, 30, 0.1)}


def evaluate(out: Path, *words: object) -> dict[str, Any]:
    assert main(["evaluate", "timeline", *map(str, words), "--out", str(out), *QUICK]) == 0
    return json.loads((out / "results.json").read_text())


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    code = main(["evaluate", "timeline", *map(str, words), "--out", "nowhere", *QUICK])
    assert code in (1, 2)
    assert not Path("nowhere").exists()
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    return said


def test_a_runs_timeline_is_compared_with_labels_of_its_clip(
    small_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, timeline = write_work(tmp_path / "work.mkv", 8.0), tmp_path / "t.jsonl"
    run = ["run", str(small_bundle), str(clip), "--pace", "max", "--narrate-every", "0"]
    assert main([*run, "--out", f"jsonl:{timeline}"]) == 0
    readings = read_timeline(timeline).readings
    times_s = np.array([reading.time_s for reading in readings])
    valence = np.array([reading.valence for reading in readings])
    # Labels: a line of the readings' own, a second late.
    shown = "".join(f"{t + 1},{0.5 * v + 0.1},0.2\n" for t, v in zip(times_s, valence, strict=True))
    (tmp_path / "labels.csv").write_text(f"time_s,valence,arousal\n{shown}")
    found = evaluate(tmp_path / "out", timeline, tmp_path / "labels.csv", "--step", "0.1", "--max-lag", "2")
    by_dimension = {row["dimension"]: row for row in found["results"]}
    assert by_dimension["valence"]["best"]["lag_s"] == pytest.approx(1.0)
    assert by_dimension["valence"]["best"]["pcc"] == pytest.approx(1.0)
    late = times_s[times_s >= 0.9999]
    x, y = np.interp(late, times_s, valence), 0.5 * np.interp(late - 1, times_s, valence) + 0.1
    assert by_dimension["valence"]["points"] == len(late)
    assert by_dimension["valence"]["pcc"]["value"] == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-6)
    constant = by_dimension["arousal"]
    assert [constant[name]["value"] for name in ("ccc", "pcc")] == pytest.approx([0, 0], abs=1e-9)
    assert by_dimension["valence"]["ceiling_ccc"] is None
    assert sha256_of(small_bundle / "manifest.json") in found["bundles"][0]
    report = (tmp_path / "out" / "report.md").read_text()
    assert report.strip() in capsys.readouterr().out
    assert "The best lag is an oracle" in report
    assert "such an interval says nothing about other works" in report
    assert "| work.mkv | valence | audio-visual | not known | – |" in report
    for name in ("lag.png", "timeline-work.mkv.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")


def test_several_works_are_matched_by_name_and_pooled(tmp_path: Path) -> None:
    # The first is known by its source, the second by its own name.
    one = write_timeline(tmp_path / "t1.jsonl", "one.mkv", curve())
    two = write_timeline(tmp_path / "two.jsonl", "camera", curve(1.0))
    rows = [
        f"{work},{t},{rater},{sign * 0.5 * v}"
        for work, values in (("two", curve(1.0)), ("one.mkv", curve()), ("three", curve()))
        for rater, sign in (("anna", 1), ("bert", 1.2))
        for t, v in values.items()
    ]
    (tmp_path / "l.csv").write_text("work,time_s,rater,valence\n" + "\n".join(rows) + "\n")
    found = evaluate(tmp_path / "out", one, two, tmp_path / "l.csv")
    assert [row["work"] for row in found["results"]] == [None, "one.mkv", "camera"]
    pooled = found["results"][0]
    assert (pooled["works"], pooled["raters"]) == (2, 2)
    assert pooled["pcc"]["value"] == pytest.approx(1)
    assert pooled["ceiling_ccc"] == pytest.approx(2 * 1.2 / (1 + 1.2**2), rel=0.02)  # of x and 1.2 x
    # The labels are the raters' mean, 0.55 x, and the interval holds what is 0.3 away.
    inside = [0.45 * abs(v) <= 0.3 for phase in (0.0, 1.0) for v in list(curve(phase).values())[::5]]
    assert pooled["coverage"] == pytest.approx(np.mean(inside))
    assert found["without_timeline"] == ["three"]
    report = (tmp_path / "out" / "report.md").read_text()
    assert "| 2 works, pooled | valence | audio-visual |" in report
    assert "1 labeled work without a timeline left out." in report
    assert "one.mkv: 96.7% of the readings have the path audio-visual." in report


def test_a_manifest_gives_labels_of_the_timelines_path_and_construct(tmp_path: Path) -> None:
    timeline = write_timeline(tmp_path / "t.jsonl", "1.mkv", curve(), interval=None)
    series = tuple(curve().values())
    common = {"series_rate_hz": 10.0, "series_start_s": 2.0, "reaction_lag_s": 2.0}
    opposite = tuple(-v for v in series)
    items = [
        item(1, construct="expressed", valence_series=series, **common),
        item(1, id="b", construct="induced", valence_series=opposite, **common),
        item(1, id="c", construct="expressed", modality="visual", valence_series=opposite, **common),
    ]
    file = tmp_path / "manifest.jsonl"
    file.write_text("".join(each.to_json() + "\n" for each in items))
    (row,) = evaluate(tmp_path / "out", timeline, file)["results"]
    assert (row["ccc"]["value"], row["best"]["lag_s"]) == (pytest.approx(1), 0)
    assert (row["construct"], row["coverage"]) == ("expressed", None)


def test_what_does_not_fit_together_is_refused_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one = write_timeline(tmp_path / "one.jsonl", "one.mkv", curve())
    two = write_timeline(tmp_path / "two.jsonl", "two.mkv", curve())
    again = write_timeline(tmp_path / "again.jsonl", "one.mkv", curve())
    named = tmp_path / "named.csv"
    named.write_text("work,time_s,valence\n" + "".join(f"one,{t},{v}\n" for t, v in curve().items()))
    bare = tmp_path / "bare.csv"
    bare.write_text("time_s,valence\n" + "".join(f"{t + 100},{v}\n" for t, v in curve().items()))
    assert "two.jsonl (two.mkv); it has them for one" in refused(capsys, one, two, named)
    assert "are both of the work one; give one of them" in refused(capsys, one, again, named)
    assert "has no column work, which is needed to tell 2 timelines apart" in refused(capsys, one, two, bare)
    assert "each timeline must be given once" in refused(capsys, one, one, named)
    said = refused(capsys, one, bare)
    assert "readings from 0.0 to 29.9 s" in said
    assert "labels from 100.0 to 129.9 s: 0 common times" in said
    assert "does not exist; give a file that a run wrote" in refused(capsys, "no.jsonl", bare)
    assert "cannot be read" in refused(capsys, one, tmp_path / "no.csv")
    assert "Missing argument" in refused(capsys, one)
    manifest = tmp_path / "m.jsonl"
    manifest.write_text(
        item(
            1, video="one.mkv", construct="expressed", valence_series=(0.1, 0.2), series_rate_hz=1.0
        ).to_json()
    )
    assert "--reaction-lag is for CSV files" in refused(capsys, one, manifest, "--reaction-lag", "1")
