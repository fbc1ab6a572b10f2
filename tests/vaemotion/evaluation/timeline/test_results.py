"""Agreement over time against SciPy, one-line definitions, and values computed by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from vaemotion.evaluation.benchmark.rows import Bootstrap, time_blocks
from vaemotion.evaluation.timeline.labels import WorkLabels
from vaemotion.evaluation.timeline.results import Settings, TimelineResult, Track, WorkPair, timeline_results
from vaemotion.evaluation.timeline.series import Array, Series

QUICK = Settings(step_s=0.5, most_lag_s=4.0, bootstrap=Bootstrap(50, 0))
TIMES_S = np.arange(0, 60, 0.1)


def walk(seed: int, times_s: Array = TIMES_S) -> Array:
    """Draw a smooth curve in [-1, 1], (n,)."""
    rng = np.random.default_rng(seed)
    waves = [
        rng.normal() * np.sin(2 * np.pi * times_s / period + rng.uniform(0, 6)) for period in (7, 13, 29)
    ]
    return np.asarray(np.tanh(np.sum(waves, axis=0)))


def track(values: Array, work: str = "a", times_s: Array = TIMES_S, *, band: float = 0.2) -> Track:
    readings = {"valence": Series(times_s, values), "arousal": Series(times_s, -values)}
    bands = {name: Series(times_s, np.full(len(values), band)) for name in readings}
    return Track(work, readings, bands, True, "audio-visual", 1.0)


def labels(values: Array, work: str = "a", times_s: Array = TIMES_S, **raters: Array) -> WorkLabels:
    rated = {name: Series(times_s, rater) for name, rater in raters.items()}
    return WorkLabels(work, frozenset({work}), {"valence": Series(times_s, values)}, {"valence": rated})


def only(pairs: list[WorkPair], settings: Settings = QUICK) -> TimelineResult:
    (result,) = timeline_results(pairs, settings)
    return result


def lin(x: Array, y: Array) -> float:
    """Return Lin's concordance correlation coefficient by its definition."""
    return float(2 * np.cov(x, y, bias=True)[0, 1] / (x.var() + y.var() + (x.mean() - y.mean()) ** 2))


def test_figures_equal_scipys_on_the_grid() -> None:
    predicted, truth = walk(1), 0.6 * walk(1) + 0.3 * walk(2) + 0.1
    result = only([WorkPair(track(predicted), labels(truth))])
    x, y = predicted[::5], truth[::5]  # every 0.5 s
    assert (result.points, result.shared_s) == (120, 60.0)
    assert result.ccc.value == pytest.approx(lin(x, y))
    assert result.pcc.value == pytest.approx(stats.pearsonr(x, y).statistic)
    assert result.rmse.value == pytest.approx(np.sqrt(np.mean((x - y) ** 2)))
    assert result.mean_rmse == pytest.approx(y.std())
    assert result.coverage == pytest.approx(np.mean(np.abs(x - y) <= 0.2))
    assert result.ccc.low <= result.ccc.value <= result.ccc.high


@pytest.mark.parametrize("late_s", [-2.5, 0.0, 1.5, 3.0])
def test_a_shifted_copy_finds_its_lag(late_s: float) -> None:
    curve = walk(3, np.arange(-10, 70, 0.1))
    truth = np.interp(TIMES_S - late_s, np.arange(-10, 70, 0.1), curve)  # what the work does, late_s later
    result = only([WorkPair(track(curve[100:700]), labels(truth))])
    assert result.best.lag_s == late_s
    assert result.best.ccc == pytest.approx(1, abs=1e-6)
    assert result.best.rmse == pytest.approx(0, abs=1e-3)
    if late_s:
        assert result.ccc.value < 0.9
        moved = only([WorkPair(track(curve[100:700]), labels(truth))], replace(QUICK, reaction_lag_s=late_s))
        assert (moved.best.lag_s, moved.ccc.value) == (0.0, pytest.approx(1, abs=1e-6))
    expected = [
        lin(curve[100:700][::5][:-6], truth[::5][6:]),  # a lag of 3 s is 6 steps
        lin(curve[100:700][::5][6:], truth[::5][:-6]),
    ]
    by_lag = dict(result.lags)
    assert [by_lag[3.0], by_lag[-3.0]] == pytest.approx(expected)


def test_lags_that_leave_less_than_half_of_the_points_are_not_tried() -> None:
    short = TIMES_S[:100]  # 10 s
    pair = WorkPair(track(walk(1)[:100], times_s=short), labels(walk(2)[:100], times_s=short))
    result = only([pair], replace(QUICK, most_lag_s=10.0))
    tried = [lag for lag, _ in result.lags]
    assert (min(tried), max(tried)) == (-5.0, 5.0)
    assert only([pair], replace(QUICK, most_lag_s=0.0)).best.lag_s == 0


def test_a_gap_in_the_readings_is_left_out() -> None:
    kept = (TIMES_S < 20) | (TIMES_S > 40.05)
    result = only([WorkPair(track(walk(1)[kept], times_s=TIMES_S[kept]), labels(walk(2)))])
    x, y = (walk(k)[kept & (np.arange(600) % 5 == 0)] for k in (1, 2))
    assert result.points == len(x) == 79  # 0 … 19.5 without 40.0, which no reading reaches
    assert result.ccc.value == pytest.approx(lin(x, y))


def test_the_ceiling_is_the_mean_agreement_of_each_rater_with_the_others() -> None:
    raters = {f"rater{k}": np.clip(0.7 * walk(5) + 0.2 * walk(6 + k), -1, 1) for k in range(3)}
    mean = np.mean(list(raters.values()), axis=0)
    result = only([WorkPair(track(walk(1)), labels(mean, **raters))])
    on_grid = np.stack(list(raters.values()))[:, ::5]
    expected = [lin(row, np.delete(on_grid, k, axis=0).mean(axis=0)) for k, row in enumerate(on_grid)]
    assert (result.raters, result.ceiling_ccc) == (3, pytest.approx(np.mean(expected)))
    perfect = {"rater1": mean, "rater2": mean}
    assert only([WorkPair(track(walk(1)), labels(mean, **perfect))]).ceiling_ccc == pytest.approx(1)
    alone = only([WorkPair(track(walk(1)), labels(mean, rater1=mean))])
    assert (alone.raters, alone.ceiling_ccc) == (0, None)


def test_a_ceiling_by_hand() -> None:
    """Two raters at 0, 1, 0, 1, … and at 0, 1, 1, 0, …: each has a covariance of 0 with the other."""
    times_s = np.arange(0, 20, 0.5)
    first, second = np.tile([0.0, 1, 0, 1], 10), np.tile([0.0, 1, 1, 0], 10)
    result = only(
        [
            WorkPair(
                track(first, times_s=times_s), labels(second, times_s=times_s, rater1=first, rater2=second)
            )
        ],
    )
    assert result.ceiling_ccc == pytest.approx(0)
    assert result.ccc.value == pytest.approx(0)
    assert result.rmse.value == pytest.approx(np.sqrt(0.5))


def test_pooled_figures_are_of_all_pairs_and_their_intervals_over_works() -> None:
    pairs = [
        WorkPair(track(walk(k), str(k)), labels(0.5 * walk(k) + 0.1 * k, str(k), rater1=walk(k)))
        for k in range(4)
    ]
    pooled, *each = timeline_results(pairs, QUICK)
    x = np.concatenate([walk(k)[::5] for k in range(4)])
    y = np.concatenate([0.5 * walk(k)[::5] + 0.1 * k for k in range(4)])
    assert (pooled.work, pooled.works, pooled.points) == (None, 4, 480)
    assert pooled.ccc.value == pytest.approx(lin(x, y))
    assert [result.work for result in each] == ["0", "1", "2", "3"]
    # Every resample of one work repeated is that work: the interval of equal works has no width.
    equal = [WorkPair(track(walk(1), str(k)), labels(walk(2), str(k))) for k in range(3)]
    same = timeline_results(equal, QUICK)[0].ccc
    assert (same.low, same.high) == (pytest.approx(same.value), pytest.approx(same.value))


def test_blocks_of_time_are_ten_seconds_or_an_eighth_of_a_short_work() -> None:
    blocks = time_blocks(400, 0.5)
    assert [blocks.count(str(k)) for k in range(10)] == [20] * 10
    assert blocks == sorted(blocks, key=int)
    assert sorted(time_blocks(16, 1.0)) == sorted(str(k // 2) for k in range(16))


def test_a_block_bootstrap_is_wider_than_one_of_single_points() -> None:
    """Half a second apart, the points of a slow curve say nearly the same."""
    predicted, truth = walk(1), walk(1) + 0.5 * walk(9)
    result = only([WorkPair(track(predicted), labels(truth))], replace(QUICK, bootstrap=Bootstrap(400, 0)))
    x, y = predicted[::5], truth[::5]
    rng = np.random.default_rng(0)
    single = [lin(x[picked], y[picked]) for picked in rng.integers(0, 120, (400, 120))]
    width = result.ccc.high - result.ccc.low
    assert width > 1.5 * float(np.diff(np.quantile(single, [0.025, 0.975]))[0])


def test_works_with_too_few_common_times_have_no_result() -> None:
    few = labels(walk(2)[:40], times_s=TIMES_S[:40])
    assert timeline_results([WorkPair(track(walk(1)), few)], QUICK) == ()
