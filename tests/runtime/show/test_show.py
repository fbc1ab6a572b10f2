"""The show: smoothing, committed labels, states that do not flicker, opening hours, activity."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.venue import measure_noise_floor
from runtime.messages import Reading, record
from runtime.show.activity import frame_activity, shrink, sound_activity
from runtime.show.opening_hours import parse_opening_hours
from runtime.show.show import Show, ShowConfig, Shown, State
from vaemotion.contract.audio import level_dbfs
from vaemotion.contract.errors import UsageError

NOON = datetime(2025, 6, 4, 12, 0)  # a Wednesday
BOTH = frozenset({"visual", "audio"})
HOP_S = 0.1
CONFIG = ShowConfig()


def reading(arousal: float = 0.0, strongest: str = "awe") -> Reading:
    emotions = {name: 0.8 if name == strongest else 0.1 for name in ("awe", "fear", "sadness")}
    return Reading(0.0, -arousal, arousal, 0.1, 0.1, emotions, "audio-visual", 0.0, 0.0)


class Run:
    """A show that is stepped at 10 Hz."""

    def __init__(self, config: ShowConfig = CONFIG, wanted: tuple[str, ...] = ("visual", "audio")) -> None:
        self.show, self.ticks = Show(config, wanted), 0

    def step(
        self,
        read: Reading | None = None,
        activity: float = 0.0,
        live: frozenset[str] = BOTH,
        muted: bool = False,
        local_time: datetime = NOON,
    ) -> Shown:
        shown = self.show.step(self.ticks * HOP_S, read, activity, live, muted, local_time)
        self.ticks += 1
        return shown

    def states(
        self, steps: int, activity: float = 0.0, live: frozenset[str] = BOTH, muted: bool = False
    ) -> list[str]:
        return [self.step(None, activity, live, muted).state for _ in range(steps)]


def read_of(shown: Shown) -> Reading:
    assert shown.reading is not None
    return shown.reading


# --- smoothing -------------------------------------------------------------------------------------------


def test_after_a_step_the_published_arousal_crosses_half_of_its_change_within_a_few_updates() -> None:
    run = Run()
    for _ in range(20):
        run.step(reading(-0.6))
    arousals = [read_of(run.step(reading(0.8))).arousal for _ in range(30)]
    assert arousals == sorted(arousals)
    crossed = next(count for count, arousal in enumerate(arousals, start=1) if arousal >= 0.1)
    assert crossed == 2  # updates of 0.1 s, well within a second
    assert arousals[-1] == pytest.approx(0.8, abs=1e-3)


@given(steps_s=st.lists(st.floats(0, 0.9), min_size=1, max_size=30), value=st.floats(-1, 1))
def test_smoothing_depends_on_the_time_that_passed_and_not_on_the_number_of_steps(
    steps_s: list[float], value: float
) -> None:
    config = ShowConfig(smoothing_s=2.0)
    show, now_s = Show(config, ()), 0.0
    show.step(now_s, reading(0.0), 0, BOTH, False, NOON)
    for step_s in steps_s:
        now_s += step_s
        shown = show.step(now_s, reading(value), 0, BOTH, False, NOON)
        assert read_of(shown).arousal == pytest.approx(value * -math.expm1(-now_s / 2.0), abs=1e-5)


@given(
    arousals=st.lists(st.floats(-1, 1), min_size=1, max_size=30), smoothing_s=st.sampled_from([0.0, 0.4, 5.0])
)
def test_smoothed_values_stay_within_the_inputs_and_emotions_stay_a_distribution(
    arousals: list[float], smoothing_s: float
) -> None:
    run = Run(ShowConfig(smoothing_s=smoothing_s))
    for index, arousal in enumerate(arousals):
        shown = read_of(run.step(reading(arousal, ("awe", "fear", "sadness")[index % 3])))
        assert min(arousals) - 1e-6 <= shown.arousal <= max(arousals) + 1e-6
        assert sum(shown.emotions.values()) == pytest.approx(1, abs=1e-3)
        if smoothing_s == 0:
            assert shown.arousal == pytest.approx(arousal, abs=1e-6)


def test_everything_else_of_a_reading_is_unchanged() -> None:
    came = replace(reading(0.3), time_s=7.0, latency_ms=12.0, audio_age_s=0.25, confidence=0.8)
    shown = read_of(Run().step(came))
    assert shown == replace(came, state="empty")
    assert json.loads(json.dumps(record(shown)))["state"] == "empty"


def test_after_a_gap_smoothing_and_label_restart() -> None:
    run = Run(ShowConfig(smoothing_s=30.0, forget_after_s=1.0, commit_updates=2))
    run.step(reading(-1.0))
    assert read_of(run.step(reading(-1.0))).label == "awe"
    run.states(9)
    assert read_of(run.step(reading(1.0))).arousal < -0.9  # a second without a reading: no gap yet
    run.states(10)
    shown = read_of(run.step(reading(1.0)))
    assert (shown.arousal, shown.label) == (1.0, None)


def test_without_a_reading_none_is_shown() -> None:
    assert Run().step(None).reading is None


# --- labels ----------------------------------------------------------------------------------------------


def test_a_label_is_committed_when_as_many_updates_agree() -> None:
    run = Run(ShowConfig(smoothing_s=0.0, commit_updates=3))
    strongest = ["awe"] * 3 + ["fear", "awe"] + ["fear"] * 3 + ["sadness"]
    labels = [read_of(run.step(reading(0.0, name))).label for name in strongest]
    assert labels == [None, None, *["awe"] * 5, "fear", "fear"]


@settings(max_examples=60)
@given(
    names=st.lists(st.sampled_from(["awe", "fear", "sadness"]), max_size=60), commit_updates=st.integers(1, 6)
)
def test_a_label_was_always_the_strongest_in_as_many_updates_in_a_row(
    names: list[str], commit_updates: int
) -> None:
    run = Run(ShowConfig(smoothing_s=0.0, commit_updates=commit_updates))
    labels = [read_of(run.step(reading(0.0, name))).label for name in names]
    for index, (before, label) in enumerate(pairwise([None, *labels])):
        if label != before:
            assert names[index + 1 - commit_updates : index + 1] == [label] * commit_updates
        if index + 1 >= commit_updates and len(set(names[index + 1 - commit_updates : index + 1])) == 1:
            assert label == names[index]


# --- states ----------------------------------------------------------------------------------------------


def test_an_evening_from_empty_to_engaged_and_back() -> None:
    run = Run()
    assert set(run.states(30)) == {"empty"}
    came = run.states(30, activity=0.6)
    assert [name for name in dict.fromkeys(came)] == ["empty", "attract", "engaged"]
    assert came.index("engaged") - came.index("attract") == 20  # engage_after_s
    left = run.states(800)
    assert [name for name in dict.fromkeys(left)] == ["engaged", "attract", "empty"]
    assert left.index("empty") - left.index("attract") == 500  # empty_after_s - release_after_s
    assert 100 <= left.index("attract") <= 130  # release_after_s, behind the smoothed activity


def test_a_passer_by_attracts_and_does_not_engage() -> None:
    run = Run()
    assert "engaged" not in run.states(8, activity=0.5) + run.states(100)
    assert run.states(1) == ["attract"]


def test_a_short_pause_of_a_visitor_does_not_release() -> None:
    run = Run()
    run.states(50, activity=0.6)
    for _ in range(20):
        assert set(run.states(90) + run.states(5, activity=0.6)) == {"engaged"}


def test_activity_between_its_thresholds_changes_nothing() -> None:
    between = 0.12
    assert set(Run().states(100, activity=between)) == {"empty"}
    run = Run()
    run.states(50, activity=0.6)
    assert set(run.states(2000, activity=between)) == {"engaged"}


def test_a_lost_device_degrades_at_once_and_counts_again_after_settling() -> None:
    run = Run()
    run.states(50, activity=0.6)
    assert run.states(1, 0.6, frozenset({"audio"})) == ["degraded"]
    run.states(20, 0.6, frozenset({"audio"}))
    back = run.states(20, 0.6)
    assert back == ["degraded"] * 10 + ["engaged"] * 10


def test_a_flapping_device_does_not_make_the_state_flap() -> None:
    run = Run()
    run.states(50, activity=0.6)
    flapping = [run.states(3, 0.6, frozenset({"audio"})) + run.states(3, 0.6) for _ in range(50)]
    assert {name for states in flapping for name in states} == {"degraded"}


def test_without_any_device_the_show_is_empty_and_activity_restarts() -> None:
    run = Run()
    run.states(50, activity=0.6)
    assert run.states(100, 0.6, frozenset())[-1] == "empty"
    assert run.states(20)[-1] == "empty"  # the devices are back; nothing has moved yet
    assert Run().states(30, 0.9, frozenset()) == ["empty"] * 30


def test_one_device_is_enough_where_one_is_configured() -> None:
    run = Run(wanted=("visual",))
    assert run.states(40, 0.6, frozenset({"visual"}))[-1] == "engaged"


def test_muting_applies_at_once_and_the_state_before_it_returns() -> None:
    run = Run()
    run.states(50, activity=0.6)
    assert run.states(1, 0.6, muted=True) == ["muted"]
    assert run.states(1, 0.6) == ["engaged"]
    assert run.step(reading(0.2), 0.6, BOTH, muted=True).reading is not None


def test_outside_the_opening_hours_the_show_is_muted() -> None:
    run = Run(ShowConfig(opening_hours=("tue-sun 10:00-18:00",)))
    assert run.step(local_time=NOON.replace(hour=9, minute=59)).state is State.MUTED
    assert run.step(local_time=NOON.replace(hour=10)).state is State.EMPTY
    assert run.step(local_time=NOON.replace(hour=18)).state is State.MUTED


steps = st.tuples(
    st.sampled_from([0.01, 0.1, 0.3, 2.0, 30.0]),
    st.sampled_from([0.0, 0.1, 0.16, 1.0]),
    st.sampled_from([BOTH, BOTH, BOTH, frozenset({"audio"}), frozenset({"visual"}), frozenset[str]()]),
)


@settings(max_examples=100, deadline=None)
@given(ticks=st.lists(steps, min_size=1, max_size=120))
def test_every_state_lasts_whatever_happens(ticks: list[tuple[float, float, frozenset[str]]]) -> None:
    show, now_s = Show(CONFIG, ("visual", "audio")), 0.0
    entered: list[tuple[float, str]] = []
    for step_s, activity, live in ticks:
        now_s += step_s
        state = show.step(now_s, None, activity, live, False, NOON).state
        if not entered or entered[-1][1] != state:
            entered.append((now_s, state))
    for (before_s, _), (after_s, _) in pairwise(entered):
        assert after_s - before_s >= CONFIG.settle_s - 1e-5
    engaged = [time_s for time_s, state in entered if state == "engaged"]
    assert not engaged or engaged[0] >= CONFIG.engage_after_s


# --- opening hours ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "open_at", "closed_at"),
    [
        ("10:00-18:00", ["Mon 10:00", "Sun 17:59"], ["Mon 09:59", "Mon 18:00", "Sat 23:00"]),
        ("tue-sun 10:00-18:00", ["Tue 10:00", "Sun 12:00"], ["Mon 12:00"]),
        (
            "Fri,Sat 20:00-02:00",
            ["Fri 20:00", "Sat 01:59", "Sun 01:00"],
            ["Fri 01:00", "Sun 20:00", "Sun 02:00"],
        ),
        ("sun 22:00-03:00", ["Sun 23:00", "Mon 02:00"], ["Sun 02:00", "Mon 03:00"]),
        ("sat-mon 00:00-24:00", ["Sat 00:00", "Sun 12:00", "Mon 23:59"], ["Tue 00:00", "Fri 23:59"]),
        ("fri 18:00-24:00", ["Fri 23:59"], ["Sat 00:00"]),
    ],
)
def test_opening_hours(text: str, open_at: list[str], closed_at: list[str]) -> None:
    hours = parse_opening_hours(text)
    assert [at for at in open_at if not hours.is_open(on(at))] == []
    assert [at for at in closed_at if hours.is_open(on(at))] == []


def on(at: str) -> datetime:
    """Return a day and time in the week of ``NOON``."""
    day, time = at.split()
    offset = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"].index(day) - NOON.weekday()
    return datetime.combine(NOON.date() + timedelta(days=offset), datetime.strptime(time, "%H:%M").time())


@given(opens=st.integers(0, 1439), closes=st.integers(0, 1440), minute=st.integers(0, 7 * 1440 - 1))
def test_opening_hours_over_midnight_are_the_complement_of_their_counterpart(
    opens: int, closes: int, minute: int
) -> None:
    if opens in (closes, 0) or closes in (0, 1440):
        return
    times = [f"{m // 60:02}:{m % 60:02}" for m in (opens, closes)]
    local_time = datetime(2025, 6, 2) + timedelta(minutes=minute)
    one, other = (parse_opening_hours("-".join(pair)) for pair in (times, times[::-1]))
    assert one.is_open(local_time) != other.is_open(local_time)


@pytest.mark.parametrize(
    "text",
    [
        *("", "10-18", "10:00", "25:00-26:00", "10:60-11:00", "10:00-10:00", "10:00-24:01", "mon-sun"),
        *("mon- 10:00-18:00", "mo 10:00-18:00", "mon,,tue 10:00-18:00", "mon 10:00-18:00 x"),
    ],
)
def test_invalid_opening_hours_are_named(text: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_opening_hours(text)
    assert f"invalid opening hours {text!r}" in str(raised.value)
    with pytest.raises(ValueError, match="opening_hours cannot be read"):
        ShowConfig(opening_hours=("10:00-18:00", text))


@given(st.text(alphabet="monteufrisa0123456789:-, ", max_size=24))
def test_any_text_gives_hours_or_a_usage_error(text: str) -> None:
    try:
        hours = parse_opening_hours(text)
    except UsageError:
        return
    assert hours.days
    assert 0 <= hours.opens_min < hours.closes_min <= 2880


@pytest.mark.parametrize(
    "values",
    [
        {"smoothing_s": -1.0},
        {"smoothing_s": math.nan},
        {"commit_updates": 0},
        {"active_below": 0.5},
        {"active_above": 2.0},
        {"empty_after_s": 1.0},
        {"settle_s": math.inf},
    ],
)
def test_an_invalid_config_is_refused_by_its_field(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        ShowConfig(**values)  # type: ignore[arg-type]


# --- activity --------------------------------------------------------------------------------------------


def noisy_frame(seed: int, noise: float = 3.0) -> np.ndarray:
    """Draw a gray room with a camera's noise of three levels."""
    rng = np.random.default_rng(seed)
    return np.clip(120 + rng.normal(0, noise, (480, 640, 3)), 0, 255).astype(np.uint8)


def test_a_still_room_is_quiet_and_a_visitor_is_not() -> None:
    still = frame_activity(shrink(noisy_frame(0)), shrink(noisy_frame(1)))
    with_visitor, moved = noisy_frame(2), noisy_frame(3)
    with_visitor[100:, 200:300] = 40
    moved[100:, 240:340] = 40
    assert still < CONFIG.active_below / 2
    assert frame_activity(shrink(with_visitor), shrink(moved)) > CONFIG.active_above


def test_activity_of_frames_goes_from_none_to_one() -> None:
    black, white = (shrink(np.full((90, 160, 3), level, np.uint8)) for level in (0, 255))
    assert black.shape == (18, 32)
    assert (frame_activity(black, black), frame_activity(black, white)) == (0.0, 1.0)
    assert white.min() == pytest.approx(1.0)


@given(seed=st.integers(0, 1000), amplitude=st.floats(1e-4, 0.5), offset=st.floats(-0.3, 0.3))
@settings(deadline=None)
def test_a_level_is_what_the_venue_measures(seed: int, amplitude: float, offset: float) -> None:
    noise = np.random.default_rng(seed).normal(0, amplitude / 4, 16_000)
    samples = (noise + offset).astype(np.float32)
    assert level_dbfs(samples) == pytest.approx(measure_noise_floor(samples).level_dbfs, abs=0.01)


def test_sound_counts_above_the_rooms_noise_floor() -> None:
    assert level_dbfs(np.zeros(1600, np.float32)) == -math.inf
    assert sound_activity(-math.inf, -60) == sound_activity(-70, -60) == sound_activity(-60, -60) == 0.0
    assert sound_activity(-45, -60) == 0.5
    assert sound_activity(0, -60) == 1.0
