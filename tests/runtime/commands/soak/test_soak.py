"""Whole soaks of ``vaemotion soak`` on a real bundle: record, report, verdict, wrong usage."""

from __future__ import annotations

import io
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from runtime.commands.soak.faults import KINDS, Fault, schedule
from runtime.commands.soak.film import Recording
from runtime.commands.soak.plot import path_shares
from runtime.commands.soak.records import (
    DeviceRecord,
    MemoryGrowth,
    Narrated,
    Perceived,
    Run,
    Setup,
    ShowStates,
    Simulated,
    Soak,
    TickTimes,
    Totals,
    flat,
)
from runtime.commands.soak.report import markdown, problems, sentences
from runtime.commands.soak.soak import SoakOptions, SoakPlan, rehearse, soak, write_soak
from runtime.machine.stop import Stop
from runtime.machine.threads import ThreadBudget
from runtime.perception.predictor import open_predictor
from vaemotion.cli.main import main
from vaemotion.contract.terminal import Terminal

SHORT_H = 0.05


@pytest.fixture(scope="module")
def soaks(small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Two of the same seed."""
    found = []
    for name in ("one", "two"):
        out = tmp_path_factory.mktemp("soak") / name
        assert soak(small_bundle, SoakOptions(SHORT_H, seed=5, narrate_every_s=8.0), out) == 0
        found.append(json.loads((out / "soak.json").read_text()) | {"folder": out})
    return found


def test_a_short_soak_has_every_fault_and_passes(soaks: list[dict[str, Any]]) -> None:
    found = soaks[0]
    assert set(found["faults_by_kind"]) == {kind.name for kind in KINDS}
    assert found["problems"] == []
    assert found["stale"] == 0
    assert found["hours"] == SHORT_H
    assert found["moments"] == 360
    assert found["readings"] == sum(found["paths"].values()) > 180
    assert all(count > 0 for count in found["paths"].values())
    assert set(found["states_s"]) >= {"muted", "degraded"}
    assert {"on", "slowed"} <= set(found["narrator_s"])  # the heat
    # A random model says no whole sentence.
    assert found["narrations"] + sum(found["narrations_withheld"].values()) > 3
    assert found["slope_mb_per_h"] is not None
    assert 0 < found["clock_error_ms"] < 20
    assert found["missed_narrating"] <= found["missed"]
    assert found["dropped"]["messages to the report"] == 0
    for device in found["devices"].values():
        assert device["outages"] == 3
        assert device["losses"] == 2
        assert 2 <= len(device["back_s"]) <= 3
        assert max(device["back_s"]) <= 6


def test_the_same_seed_gives_the_same_readings(soaks: list[dict[str, Any]]) -> None:
    one, two = soaks
    assert one["readings_sha256"] == two["readings_sha256"]
    same = ("faults", "paths", "states_s", "narrator_s", "timeline", "devices", "clock_error_ms", "encodes")
    assert {key: one[key] for key in same} == {key: two[key] for key in same}


def test_the_markdown_report_has_verdict_tables_and_plot(soaks: list[dict[str, Any]]) -> None:
    folder = soaks[0]["folder"]
    text = (folder / "soak.md").read_text()
    assert text.startswith("# small: a soak of 3 min 00 s\n\nPassed.\n")
    assert "| camera frozen | 1 |" in text
    assert soaks[0]["readings_sha256"] in text
    assert (folder / "soak.png").read_bytes().startswith(b"\x89PNG")


PARTS = (Setup, Run, Perceived, ShowStates, Narrated, MemoryGrowth, TickTimes, Simulated, Totals)


def recorded(values: dict[str, Any]) -> Soak:
    """Return the record of a soak.json."""
    devices = {role: DeviceRecord(**device) for role, device in values["devices"].items()}
    values = {**values, "faults": tuple(Fault(**fault) for fault in values["faults"]), "devices": devices}
    return Soak(*(part(**{field.name: values[field.name] for field in fields(part)}) for part in PARTS))


def test_the_json_holds_the_fields_of_all_records_side_by_side(soaks: list[dict[str, Any]]) -> None:
    names = [field.name for part in PARTS for field in fields(part)]
    assert len(set(names)) == len(names)  # or one field would hide another
    derived = {"schema", "faults_by_kind", "problems", "sentences"}
    assert set(soaks[0]) == {*names, *derived, "folder"}
    assert soaks[0]["schema"] == 1
    assert json.loads(json.dumps(flat(recorded(soaks[0])))) == {name: soaks[0][name] for name in names}


def test_each_condition_that_is_not_met_is_one_sentence(soaks: list[dict[str, Any]], tmp_path: Path) -> None:
    passed = recorded(soaks[0])
    assert problems(passed) == []
    growing = recorded(soaks[0] | {"slope_mb_per_h": 3.0})
    assert problems(growing) == []  # a soak of minutes says nothing about memory
    assert problems(recorded(soaks[0] | {"slope_mb_per_h": 3.0, "hours": 4.0})) == [
        "memory grew by 3.00 MB per simulated hour (limit 1)"
    ]
    stale = {"stale": 2, "stale_examples": ("at 1 s",)}
    broken = {"slope_mb_per_h": 3.0, "hours": 4.0, "clock_error_ms": 21.5, "failure": "ValueError: no"}
    failed = recorded(soaks[0] | stale | broken)
    lines = problems(failed)
    assert len(lines) == 4
    assert lines[0] == "the run failed after 4 h 00 min: ValueError: no"
    assert "2 stale values published as live, the first: at 1 s" in lines
    assert "the sample clock was off by 21.5 ms (limit 20)" in lines
    assert "Failed: the run failed after" in markdown(failed)
    assert [file.name for file in write_soak(failed, tmp_path)] == ["soak.json", "soak.md", "soak.png"]
    assert any("judged from 3 h on" in line for line in sentences(passed))


def test_the_shares_of_the_timeline_add_up(soaks: list[dict[str, Any]]) -> None:
    shares = path_shares(recorded(soaks[0]))
    assert shares.shape[1] == len(soaks[0]["timeline"])
    assert shares.min() >= 0
    assert shares.sum(axis=0) == pytest.approx(1)
    assert shares[:3].sum() == pytest.approx(soaks[0]["readings"] * soaks[0]["moment_s"] / soaks[0]["bin_s"])


def test_the_error_that_ends_a_run_is_reported(small_bundle: Path, film: Recording) -> None:
    broken = Recording(film.frames, film.samples.astype("<U8"))  # text instead of samples
    faults = schedule(SHORT_H * 3600, None, 0)
    plan = SoakPlan(small_bundle, "nothing", SHORT_H, "max", None, faults, 0, 1, 0.0)
    with open_predictor(small_bundle, threads=ThreadBudget(1, 1)) as predictor:
        found = rehearse(plan, predictor, broken, Stop(), Terminal(file=io.StringIO()))
    assert found.run.failure is not None
    assert 0 < found.run.hours < SHORT_H
    assert problems(found)[0].startswith("the run failed after")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--speed", "fast"], "--speed must be max, real, or simulated seconds"),
        (["--hours", "0.02"], "needs 24 s for each"),
        (["--hours", "9999999"], "at most a year"),
        (["--faults", "4"], "--faults must be at least 15"),
    ],
)
def test_wrong_usage_is_refused(
    small_bundle: Path, capsys: pytest.CaptureFixture[str], options: list[str], sentence: str
) -> None:
    assert main(["soak", str(small_bundle), *options]) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
