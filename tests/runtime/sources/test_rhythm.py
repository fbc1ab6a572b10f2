"""The limit of a device's pauses: it follows the rate, from 0.2 to 120 a second, and forgets freezes."""

from __future__ import annotations

from itertools import groupby, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.sources.rhythm import MEMORY_S, PAUSES, SLOWEST_S, Rhythm
from runtime.sources.supervision import DeviceMonitor

FREEZE_S = 0.8
TICK_S = 0.1


def states_of(arrivals_s: list[float], until_s: float) -> list[tuple[float, str]]:
    """Return time and state at each tick of a camera whose frames come at ``arrivals_s``."""
    monitor, left, states = (
        DeviceMonitor("camera", FREEZE_S, SLOWEST_S),
        sorted(arrivals_s),
        list[tuple[float, str]](),
    )
    for tick in range(round(until_s / TICK_S)):
        now_s = tick * TICK_S
        while left and left[0] <= now_s:
            monitor.add_evidence(left.pop(0))
        monitor.step(now_s)
        states.append((now_s, monitor.state))
    return states


def changes(states: list[tuple[float, str]]) -> list[str]:
    return [state for state, _ in groupby(state for _, state in states)]


@pytest.mark.parametrize("rate_hz", [0.2, 0.5, 1.0, 2.0, 5.0, 15.0, 30.0, 120.0])
@pytest.mark.parametrize(("jitter", "lost"), [(0.2, 0), (0.05, 1)])
@pytest.mark.parametrize("seed", range(3))
def test_a_camera_of_any_rate_is_live_until_it_stops(
    rate_hz: float, jitter: float, lost: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    count = round(40 * rate_hz) + 4
    arrivals_s = list((np.arange(1, count + 1) + random.uniform(-jitter, jitter, count)) / rate_hz)
    for _ in range(lost):  # frames that never came
        del arrivals_s[random.integers(count - 1)]
    states = states_of(arrivals_s, arrivals_s[-1] + 4 * PAUSES / rate_hz + 3)
    assert [state for state in changes(states) if state != "absent"] == ["live", "frozen"]
    frozen_s = next(time_s for time_s, state in states if state == "frozen")
    assert frozen_s <= arrivals_s[-1] + max(FREEZE_S, 1.5 * PAUSES / rate_hz) + 2 * TICK_S


def test_a_camera_at_30_a_second_is_frozen_after_freeze_s_also_where_it_froze_before() -> None:
    began_s = [10.0, 14.0, 30.0]
    arrivals_s = [k / 30 for k in range(900) if not any(s < k / 30 < s + 2 for s in began_s)]
    states = states_of(arrivals_s, 35.0)
    assert changes(states) == ["live", "frozen"] * 3
    found_s = [now_s for (_, before), (now_s, state) in pairwise(states) if state == "frozen" != before]
    for began, found in zip(began_s, found_s, strict=True):
        assert FREEZE_S - 1 / 15 < found - began <= FREEZE_S + 2 * TICK_S


@pytest.mark.parametrize("slow_s", [1.0, 5.0])
def test_a_camera_that_turns_slow_at_night_is_known_after_three_pauses(slow_s: float) -> None:
    night = [20 + slow_s * k for k in range(1, 12)]
    day = [night[-1] + k / 30 for k in range(1, 900)]
    states = states_of([*(k / 30 for k in range(600)), *night, *day], day[-1])
    assert changes(states).count("frozen") <= 3
    stopped = states_of([*(k / 30 for k in range(600)), *night, *day], day[-1] + 3.0)
    assert stopped[-1][1] == "frozen"  # the slow night is forgotten


def test_a_camera_that_sends_in_bursts_is_known_after_three() -> None:
    bursts = [1.5 * burst + k / 1000 for burst in range(20) for k in range(38)]
    assert changes(states_of(bursts, 28.0)).count("frozen") <= 3


def test_a_slow_camera_that_is_opened_anew_each_time_with_a_burst_stays_slow() -> None:
    rhythm = Rhythm()
    for opening in range(10):
        for k in range(15):
            rhythm.add(6.0 * opening + 0.04 * k)
        assert rhythm.limit_s(FREEZE_S) > 12
        rhythm.add(6.0 * opening + 5.5)
        rhythm.interrupt()


@given(st.lists(st.floats(0.0, 1e4), max_size=50), st.floats(0.2, 30))
def test_the_limit_is_bounded_and_a_loss_is_no_pause(times_s: list[float], least_s: float) -> None:
    rhythm = Rhythm()
    for time_s in times_s:
        rhythm.add(time_s)
        assert least_s <= rhythm.limit_s(least_s) <= max(least_s, PAUSES * SLOWEST_S)
    before_s = rhythm.limit_s(least_s)
    rhythm.interrupt()
    rhythm.add(max(times_s, default=0.0) + 1.0)
    assert rhythm.limit_s(least_s) == before_s


def test_a_year_of_frames_needs_little_memory() -> None:
    rhythm = Rhythm()
    for k in range(100_000):
        rhythm.add(k / 30)
    assert len(rhythm._pauses) <= 30 * MEMORY_S + 2
