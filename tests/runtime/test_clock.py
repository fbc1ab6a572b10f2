import pickle
import sys
import threading
import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.clock import ManualClock, MonotonicClock, SampleClock

RATE_HZ = 16_000
START_S = 5.0  # time of the device's first sample


def arrivals(drift_ppm, block, jitter_s, bursts_s, duration_s, seed=0):
    """Simulate a device: callback times, and true times of the sample after each block; (n,) each, in s.

    Jitter is exponential. At each time of ``bursts_s`` the machine stalls for 60 ms, and then delivers all
    waiting blocks at once.
    """
    counts = block * np.arange(1, int(duration_s * RATE_HZ / block) + 1)
    true_s = START_S + counts / RATE_HZ * (1 + drift_ppm * 1e-6)
    arrival_s = true_s + np.random.default_rng(seed).exponential(jitter_s, len(counts))
    for burst_s in bursts_s:
        stalled = (true_s >= START_S + burst_s) & (true_s < START_S + burst_s + 0.06)
        arrival_s[stalled] = np.maximum(arrival_s[stalled], START_S + burst_s + 0.06)
    return np.maximum.accumulate(arrival_s), true_s


def run(clock, block, arrival_s):
    """Push every block; return the time published then for the sample after each: (n,) in seconds."""
    published_s = []
    for k, time_s in enumerate(arrival_s):
        clock.push(block, time_s)
        published_s.append(clock.time_of(block * (k + 1)))
    return np.array(published_s)


@settings(max_examples=40, deadline=None)
@given(
    drift_ppm=st.floats(-200, 200),
    block=st.sampled_from([160, 320, 480, 1024]),
    jitter_s=st.floats(0.0, 0.003),
    bursts_s=st.lists(st.floats(0, 62), max_size=30),
    seed=st.integers(0, 2**32 - 1),
)
def test_after_a_minute_rate_and_time_are_right_whatever_the_jitter(
    drift_ppm, block, jitter_s, bursts_s, seed
):
    arrival_s, true_s = arrivals(drift_ppm, block, jitter_s, bursts_s, 62, seed)
    clock = SampleClock(RATE_HZ)
    published_s = run(clock, block, arrival_s)
    assert clock.drift_ppm == pytest.approx(drift_ppm, abs=6)
    last_second = true_s > true_s[-1] - 1
    assert np.abs(published_s - true_s)[last_second].max() < 1e-3


def test_a_late_first_block_is_corrected_within_three_seconds():
    arrival_s, true_s = arrivals(150, 160, 0.001, [0.0], 10)
    assert arrival_s[0] - true_s[0] > 0.04
    error_s = np.abs(run(SampleClock(RATE_HZ), 160, arrival_s) - true_s)
    assert error_s[300:].max() < 1e-3


def test_for_hours_the_error_stays_small_and_memory_does_not_grow():
    clock, block = SampleClock(RATE_HZ), 1600
    arrival_s, true_s = arrivals(-80, block, 0.0005, range(0, 7200, 7), 7200)
    error_s = run(clock, block, arrival_s[:6000]) - true_s[:6000]
    kept = len(pickle.dumps(clock))
    for time_s in arrival_s[6000:]:
        clock.push(block, time_s)
    assert np.abs(error_s[100:]).max() < 1e-3
    assert clock.time_of(block * len(true_s)) == pytest.approx(true_s[-1], abs=1e-3)
    assert clock.drift_ppm == pytest.approx(-80, abs=2)
    assert len(pickle.dumps(clock)) < 1.2 * kept


@pytest.mark.parametrize(
    "drift_ppm",
    [lambda _: 300.0, lambda _: -300.0, lambda day: 300 * np.sin(2 * np.pi * day)],
    ids=["slow", "fast", "swings with the temperature of the day"],
)
def test_for_a_day_300_ppm_of_drift_stay_under_20_ms_of_error(drift_ppm):
    block = 10 * RATE_HZ  # long ones, because the day is long
    nominal_s = 10.0 * np.arange(1, 8641)
    true_s = START_S + np.cumsum(10.0 * (1 + 1e-6 * (drift_ppm(nominal_s / 86_400) + 0 * nominal_s)))
    late_s = np.random.default_rng(0).exponential(0.003, len(true_s))
    late_s[20::30] += 0.06  # a machine that is busy every few minutes
    clock = SampleClock(RATE_HZ)
    error_s = np.abs(run(clock, block, true_s + late_s) - true_s)
    assert error_s.max() < 0.02
    assert error_s[60:].max() < 0.01  # once the window is full
    assert clock.drift_ppm == pytest.approx(drift_ppm(1.0), abs=10)


def test_seconds_that_are_wrong_to_either_side_do_not_tilt_the_line():
    arrival_s, true_s = arrivals(50, 160, 0.0005, [], 62)
    arrival_s[:100] -= 0.03  # a server that delivers its first buffers at once
    arrival_s[3000:3700] += 0.2  # seven seconds of a machine that is busy
    clock = SampleClock(RATE_HZ)
    published_s = run(clock, 160, arrival_s)
    assert clock.drift_ppm == pytest.approx(50, abs=2)
    assert published_s[-1] == pytest.approx(true_s[-1], abs=1e-3)


blocks = st.lists(
    st.tuples(st.integers(1, 40_000), st.floats(-1e4, 1e4, allow_nan=False)), min_size=1, max_size=150
)


@settings(deadline=None)
@given(blocks)
def test_time_increases_strictly_and_stays_what_it_was_whatever_arrives(blocks):
    clock, count, said = SampleClock(RATE_HZ), 0, {}
    for n_samples, arrival_s in blocks:
        clock.push(n_samples, arrival_s)
        for index in {count, count + 1, count + n_samples // 2, count + n_samples - 1}:
            said[index] = clock.time_of(index)
        count += n_samples
    times_s = [said[index] for index in sorted(said)]
    assert all(a < b for a, b in pairwise(times_s))
    for index, time_s in said.items():
        if index >= count - 60 * RATE_HZ:
            assert clock.time_of(index) == pytest.approx(time_s, abs=1e-9)


@settings(deadline=None)
@given(blocks)
def test_a_correction_is_never_steeper_than_a_millisecond_per_second_once_settled(blocks):
    clock, count = SampleClock(RATE_HZ), 0
    for _ in range(3):  # two whole seconds, and the block that ends the second of them
        count += RATE_HZ
        clock.push(RATE_HZ, count / RATE_HZ)
    settled = count
    for n_samples, arrival_s in blocks:
        clock.push(n_samples, arrival_s)
        count += n_samples
        first = max(settled, count - n_samples)
        nominal_s = (count - first) / RATE_HZ
        passed_s = clock.time_of(count) - clock.time_of(first)
        assert abs(passed_s - nominal_s) <= 1.0001e-3 * nominal_s + 1e-9


def test_before_two_seconds_are_over_there_is_no_slope():
    clock = SampleClock(RATE_HZ)
    arrival_s, _ = arrivals(200, 160, 0.0, [], 1.9)
    run(clock, 160, arrival_s)
    assert clock.drift_ppm == 0
    arrival_s, true_s = arrivals(200, 160, 0.0, [], 4)
    clock = SampleClock(RATE_HZ)
    published_s = run(clock, 160, arrival_s)
    assert clock.drift_ppm == pytest.approx(200, abs=0.01)
    assert published_s[-1] == pytest.approx(true_s[-1], abs=1e-4)


def test_one_block_is_placed_by_its_arrival():
    clock = SampleClock(48_000)
    clock.push(480, 7.0)
    assert clock.time_of(480) == 7.0
    assert clock.time_of(0) == pytest.approx(6.99)


def test_after_a_reset_nothing_of_the_old_stream_is_left():
    old, _ = arrivals(-150, 160, 0.002, [3, 9], 20)
    new, _ = arrivals(90, 480, 0.001, [1], 20, seed=1)
    used, fresh = SampleClock(RATE_HZ), SampleClock(RATE_HZ)
    run(used, 160, old)
    used.reset()
    assert used.drift_ppm == 0
    assert np.array_equal(run(used, 480, new + 40), run(fresh, 480, new + 40))
    assert used.drift_ppm == fresh.drift_ppm


@pytest.mark.parametrize("rate_hz", [0, -16_000, float("nan")])
def test_a_rate_that_is_none_is_refused(rate_hz):
    with pytest.raises(ValueError, match="rate_hz must be positive"):
        SampleClock(rate_hz)


@settings(deadline=None)
@given(st.floats(-1e6, 1e6), st.lists(st.floats(), max_size=20))
def test_a_manual_clock_goes_where_it_is_sent_and_never_back(start_s, times_s):
    clock, expected_s = ManualClock(start_s), start_s
    for time_s in times_s:
        clock.sleep_until(time_s)
        expected_s = time_s if time_s > expected_s else expected_s
        assert clock.now_s() == expected_s


def test_a_manual_clock_shared_by_threads_never_goes_back():
    clock, went_back = ManualClock(), []

    def sleeper(first):
        for time_s in range(first, 20_000, 4):
            before_s = clock.now_s()
            clock.sleep_until(time_s)
            if clock.now_s() < max(before_s, time_s):
                went_back.append(time_s)

    threads = [threading.Thread(target=sleeper, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert went_back == []
    assert clock.now_s() == 19_999


def test_a_manual_clock_that_is_told_to_stop_stands_still():
    clock, stop = ManualClock(), threading.Event()
    stop.set()
    clock.sleep_until(9.0, stop)
    assert clock.now_s() == 0
    stop.clear()
    clock.sleep_until(9.0, stop)
    assert clock.now_s() == 9


@pytest.mark.parametrize("stoppable", [False, True])
def test_a_monotonic_clock_sleeps_at_least_until_the_time_and_not_for_the_past(stoppable):
    clock, stop = MonotonicClock(), threading.Event() if stoppable else None
    until_s = clock.now_s() + 0.05
    clock.sleep_until(until_s, stop)
    assert clock.now_s() >= until_s
    clock.sleep_until(-3600.0, stop)
    assert clock.now_s() >= 0


def test_a_sleeper_on_the_monotonic_clock_wakes_when_it_is_stopped():
    clock, stop = MonotonicClock(), threading.Event()
    thread = threading.Thread(target=clock.sleep_until, args=(3600.0, stop), daemon=True)
    thread.start()
    for _ in range(20_000):  # until it does wait
        if sys._current_frames()[thread.ident].f_code.co_name == "wait":
            break
        time.sleep(0.001)
    stop.set()
    thread.join(30)
    assert not thread.is_alive()
