"""The schedule: every grid point is due once, whatever the rates and the lengths."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.perception.schedule import Schedule
from vaemotion.contract.windows import WindowConfig

HOPS_S = (0.1, 0.2, 0.5)


def windows(hop_s: float, stride_s: float) -> WindowConfig:
    return WindowConfig(frame_hop_s=hop_s, frame_spacing_s=2 * hop_s, audio_stride_s=stride_s)


def walk(
    schedule: Schedule, frames_end_s: float | None, sound_end_s: float | None
) -> list[tuple[float, int | None, bool]]:
    """Return every tick of a stream that ends there; an end is known once it is past."""
    steps: list[tuple[float, int | None, bool]] = []
    while (now_s := schedule.next_s()) is not None:
        assert len(steps) < 10_000
        due = schedule.due(
            now_s,
            frames_end_s if frames_end_s is not None and now_s >= frames_end_s else None,
            sound_end_s if sound_end_s is not None and now_s >= sound_end_s else None,
        )
        steps.append((now_s, due.frame, due.sound))
    return steps


@given(
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.sampled_from(HOPS_S),
    st.sampled_from(HOPS_S),
    st.booleans(),
    st.booleans(),
)
def test_a_medium_is_encoded_as_often_as_its_grid_has_points(
    frames_cs: int, sound_cs: int, hop_s: float, stride_s: float, has_frames: bool, has_sound: bool
) -> None:
    frames_s, sound_s = frames_cs / 100, sound_cs / 100
    steps = walk(
        Schedule(windows(hop_s, stride_s), has_frames=has_frames, has_sound=has_sound), frames_s, sound_s
    )
    frames = [frame for _, frame, _ in steps if frame is not None]
    assert frames == list(range(math.ceil(frames_s / hop_s - 1e-9) if has_frames else 0))
    assert sum(sound for _, _, sound in steps) == (math.ceil(sound_s / stride_s - 1e-9) if has_sound else 0)
    ticks_s = [now_s for now_s, _, _ in steps]
    assert ticks_s == sorted(ticks_s)


@pytest.mark.parametrize("late_s", [0.35, 1.0, 7.123])
def test_skipping_drops_only_ticks_that_newer_ones_replace(late_s: float) -> None:
    schedule = Schedule(windows(0.1, 0.1), has_frames=True, has_sound=True)
    skipped = schedule.skip_to(late_s)
    first = schedule.next_s()
    assert first is not None
    assert late_s - 0.1 < first <= late_s + 1e-6
    assert skipped == round(first / 0.1) + round(first / 0.1) - 1  # frames from 0, sound from 1
    due = schedule.due(late_s, None, None)
    assert due.frame == round(first / 0.1)
    assert due.sound
    assert schedule.skip_to(0.0) == 0
