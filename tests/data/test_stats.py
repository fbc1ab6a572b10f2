import pytest

from vaemotion.contract.errors import UsageError, UserError
from vaemotion.data import stats


def test_tables_ceilings_and_baselines_are_printed(capsys):
    stats.print_stats("validation", 60, 150)
    out = capsys.readouterr().out
    for part in (
        "rooster",
        "contentment",
        "oracle ceiling (CCC)",
        "audio-visual",
        "colour histogram",
        "mean log-mel",
    ):
        assert part in out
    shares = [
        float(word) for line in out.splitlines() if "rooster" in line for word in line.split() if "0." in word
    ]
    assert 0 <= shares[0] <= 0.3


def test_data_that_a_trivial_baseline_solves_is_refused(monkeypatch, capsys):
    # A lower limit is the same test as easier data, in seconds instead of minutes.
    monkeypatch.setattr(stats, "MEAN_LOG_MEL_LIMIT", 0.01)
    with pytest.raises(UserError, match="mean log-mel exceeds"):
        stats.print_stats("validation", 60, 150)
    assert "(limit 0.01)" in capsys.readouterr().out


def test_an_unknown_split_is_wrong_usage():
    with pytest.raises(UsageError, match="split must be one of"):
        stats.print_stats("holdout", 60, 150)
