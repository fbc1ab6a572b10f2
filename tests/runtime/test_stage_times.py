"""Stage times: waiting counts as time, but not as processor time."""

from __future__ import annotations

import time

from runtime.stage_times import StageTimes


def test_waiting_costs_time_and_no_processor_time() -> None:
    times = StageTimes()
    with times.measure("waits"):
        time.sleep(0.1)
    with times.measure("works"):
        began_s = time.thread_time()
        while time.thread_time() - began_s < 0.1:
            pass
    waits, works = times.summary()["waits"], times.summary()["works"]
    assert waits["total_s"] >= 0.1
    assert waits["cpu_s"] < waits["total_s"] / 2
    assert 0.1 <= works["cpu_s"] <= works["total_s"] + 0.01  # the two clocks tick differently
