"""The governor: narration slows down before perception does, and recovers slowly."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.narration.governor import CALM_S, KEPT_LATENCIES, LONGEST_CALM_S, REACT_S, SLOWEST, Governor

HOP_S = 0.1
EVERY_S = 4.0


class Run:
    """A governor at ten ticks a second, with the times at which a narration was allowed."""

    def __init__(self, every_s: float = EVERY_S) -> None:
        self.governor = Governor(every_s, HOP_S)
        self.ticks, self.dropped = 0, 0
        self.allowed_s: list[float] = []

    @property
    def now_s(self) -> float:
        return self.ticks * HOP_S

    def step(
        self, latency_ms: float | None = 20.0, drop: bool = False, headroom_c: float | None = None
    ) -> None:
        self.dropped += drop
        if self.governor.step(self.now_s, latency_ms, self.dropped, headroom_c, False):
            self.allowed_s.append(self.now_s)
        self.ticks += 1

    def go_on(self, seconds: float, latency_ms: float | None = 20.0, headroom_c: float | None = None) -> None:
        for _ in range(round(seconds / HOP_S)):
            self.step(latency_ms, False, headroom_c)

    def until(self, state: str, most_s: float, step: Callable[[], None]) -> float:
        """Step until ``state`` is reached; return the seconds that it took."""
        began_s = self.now_s
        while self.governor.state != state:
            assert self.now_s - began_s <= most_s, f"{state} did not come"
            step()
        return self.now_s - began_s


def test_a_machine_with_room_narrates_at_its_interval() -> None:
    run = Run()
    run.go_on(41)
    np.testing.assert_allclose(run.allowed_s, np.arange(1, 11) * EVERY_S, atol=1e-6)
    assert run.governor.state == "on"


def test_an_interval_of_0_disables_narration() -> None:
    run = Run(every_s=0.0)
    run.go_on(60)
    assert (run.allowed_s, run.governor.state) == ([], "off")


def test_no_narration_is_due_while_one_is_being_made() -> None:
    governor = Governor(EVERY_S, HOP_S)
    assert not any(governor.step(k * HOP_S, 20.0, 0, None, narrating=True) for k in range(200))
    assert governor.step(20.0, 20.0, 0, None, narrating=False)


def test_slow_readings_slow_the_narrator_down_before_a_tick_is_dropped() -> None:
    run = Run()
    run.go_on(30)
    took_s = run.until("slowed", 10.0, lambda: run.step(latency_ms=60.0))  # of a hop of 100 ms
    assert took_s <= 1.0
    assert run.dropped == 0


def test_one_slow_reading_is_no_pressure() -> None:
    run = Run()
    run.go_on(20)
    run.step(latency_ms=300.0)
    run.go_on(20)
    assert run.governor.state == "on"


def test_a_dropped_tick_slows_down_at_once_and_lasting_drops_end_narration() -> None:
    run = Run()
    run.step(drop=True)
    assert run.governor.state == "slowed"
    took_s = run.until("off", 60.0, lambda: run.step(drop=True))
    assert took_s == pytest.approx(3 * REACT_S, abs=0.3)  # × 2, × 4, × 8, off
    silent_from = len(run.allowed_s)
    for _ in range(600):
        run.step(drop=True)
    assert len(run.allowed_s) == silent_from


@pytest.mark.parametrize(
    ("headroom_c", "state"), [(None, "on"), (20.0, "on"), (7.0, "on"), (4.0, "off"), (-3.0, "off")]
)
def test_a_zone_near_its_trip_point_ends_narration(headroom_c: float | None, state: str) -> None:
    run = Run()
    run.go_on(120, headroom_c=headroom_c)
    assert run.governor.state == state


def test_each_slowdown_doubles_the_interval() -> None:
    run = Run()
    run.step(drop=True)
    run.go_on(CALM_S - 1)
    assert run.allowed_s[0] == pytest.approx(2 * EVERY_S)
    assert np.diff(run.allowed_s) == pytest.approx(2 * EVERY_S)


def test_it_recovers_one_step_after_each_calm() -> None:
    run = Run()
    run.until("off", 60.0, lambda: run.step(drop=True))
    steps = 1 + SLOWEST.bit_length() - 1  # off → 8 → 4 → 2 → 1
    took_s = run.until("on", 600.0, run.step)
    assert took_s == pytest.approx(steps * CALM_S, abs=1.0)


@pytest.mark.parametrize(("latency_ms", "headroom_c"), [(20.0, 7.0), (42.0, None)])
def test_between_pressure_and_calm_it_stays_as_it_is(latency_ms: float, headroom_c: float | None) -> None:
    run = Run()
    run.step(drop=True)
    run.go_on(500, latency_ms, headroom_c)
    assert run.governor.state == "slowed"
    run.go_on(CALM_S + 12, headroom_c=12.0)
    assert run.governor.state == "on"


def test_latencies_from_before_a_slowdown_do_not_count_for_the_next() -> None:
    run = Run()
    run.go_on(30)
    run.until("slowed", 10.0, lambda: run.step(latency_ms=60.0))
    assert run.until("on", 600.0, run.step) == pytest.approx(CALM_S, abs=0.5)  # one step, so it was one


def test_one_relapse_doubles_the_calm_once_however_long_it_lasts() -> None:
    run = Run()
    run.step(drop=True)
    run.until("on", CALM_S + 1, run.step)
    run.until("off", 60.0, lambda: run.step(drop=True))
    assert run.until("on", 600.0, run.step) == pytest.approx(4 * 2 * CALM_S, abs=1.0)


def test_pressure_that_returns_after_recovery_doubles_the_calm() -> None:
    run = Run()
    waits_s: list[float] = []
    for _ in range(5):
        run.step(drop=True)
        assert run.governor.state == "slowed"  # at once, too, when it had just recovered
        waits_s.append(run.until("on", LONGEST_CALM_S + 1, run.step))
    assert waits_s == pytest.approx([CALM_S, 2 * CALM_S, 4 * CALM_S, 8 * CALM_S, 16 * CALM_S], abs=0.5)
    run.go_on(LONGEST_CALM_S + 1)
    run.step(drop=True)
    assert run.until("on", LONGEST_CALM_S, run.step) == pytest.approx(CALM_S, abs=0.5)


@settings(max_examples=60, deadline=None)
@given(
    ticks=st.lists(
        st.tuples(
            st.sampled_from([0.01, 0.1, 1.0, 20.0]),
            st.one_of(st.none(), st.floats(0, 500)),
            st.booleans(),
            st.one_of(st.none(), st.floats(-10, 60)),
            st.booleans(),
        ),
        max_size=150,
    )
)
def test_narrations_are_never_nearer_than_their_interval(
    ticks: list[tuple[float, float | None, bool, float | None, bool]],
) -> None:
    governor, now_s, dropped = Governor(EVERY_S, HOP_S), 0.0, 0
    allowed_s = [0.0]
    for step_s, latency_ms, drop, headroom_c, narrating in ticks:
        now_s, dropped = now_s + step_s, dropped + drop
        before = governor.state
        if governor.step(now_s, latency_ms, dropped, headroom_c, narrating):
            assert not narrating
            assert governor.state != "off"
            allowed_s.append(now_s)
        if drop:
            assert (before, governor.state) != ("on", "on")  # a drop always slows down
    assert all(after - before >= EVERY_S - 1e-5 for before, after in pairwise(allowed_s))


def test_perceptions_p99_is_known_with_and_without_narration_in_bounded_memory() -> None:
    governor = Governor(EVERY_S, HOP_S)
    assert governor.latency_p99_ms() == (None, None)
    for k in range(3 * KEPT_LATENCIES):
        slow = k % 100 < 4  # two in a hundred of each kind
        governor.step(k * HOP_S, (40.0 if k % 2 else 10.0) + 50.0 * slow, 0, None, narrating=bool(k % 2))
    assert governor.latency_p99_ms() == (90.0, 60.0)
    assert sum(len(kept) for kept in governor._kept.values()) == 2 * KEPT_LATENCIES
    assert len(governor._recent) <= 101
