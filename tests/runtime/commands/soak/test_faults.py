"""The seeded schedule of a soak's faults: complete, reproducible, without overlaps in a lane."""

from __future__ import annotations

from itertools import pairwise

import pytest

from runtime.commands.soak.faults import KINDS, Fault, Lane, schedule
from tests.paths import ROOT
from vaemotion.contract.errors import UsageError

SHORT_H = 0.05


@pytest.mark.parametrize("hours", [SHORT_H, 1.0, 24.0])
@pytest.mark.parametrize("seed", range(5))
def test_a_schedule_has_every_kind_and_faults_of_a_lane_never_overlap(hours: float, seed: int) -> None:
    faults = schedule(hours * 3600, None, seed)
    assert faults == schedule(hours * 3600, None, seed)
    assert faults != schedule(hours * 3600, None, seed + 1)
    assert {fault.kind for fault in faults} == {kind.name for kind in KINDS}
    assert len(faults) >= 200 * hours / 24
    assert hours < 24 or len(faults) >= 200
    for name in {kind.lane for kind in KINDS}:
        lane = Lane(faults, name)
        assert all(a.end_s < b.start_s for a, b in pairwise(lane.faults))
    for fault in faults:
        assert 0 <= fault.start_s < fault.end_s < hours * 3600
        assert (fault.start_s == 0) == fault.kind.endswith("at boot")
        assert (fault.amount != 0) == (fault.kind == "clock skew")


def test_a_lane_gives_the_fault_at_a_time() -> None:
    lane = Lane([Fault("silence", "microphone", 2, 4), Fault("darkness", "camera", 2, 9)], "microphone")
    kinds = [fault.kind if (fault := lane.at(time_s)) else None for time_s in (0, 1.9, 2, 3.9, 4, 50)]
    assert kinds == [None, None, "silence", "silence", None, None]


@pytest.mark.parametrize(
    ("hours", "count", "sentence"),
    [
        (1.0, 3, "at least 15"),
        (0.01, None, "or more, because the"),
        (0.1, 500, "fewer --faults or more --hours"),
    ],
)
def test_too_few_or_too_many_faults_are_refused(hours: float, count: int | None, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        schedule(hours * 3600, count, 0)


def test_the_documentation_names_every_kind() -> None:
    text = (ROOT / "docs" / "soak.md").read_text()
    assert not [kind.name for kind in KINDS if f"| {kind.name} |" not in text]
