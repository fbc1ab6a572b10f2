from pathlib import Path

import numpy as np
import pytest

from vaemotion.contract.errors import UsageError
from vaemotion.evaluation.benchmark.seeds import model_names, seeds_markdown, spread_over_models


def test_models_are_named_by_as_many_folders_as_tell_them_apart():
    assert model_names([Path("/a/one"), Path("/b/two")]) == ["one", "two"]
    same = [Path(f"/runs/seed{k}/emotion") for k in range(3)]
    assert model_names(same) == ["seed0-emotion", "seed1-emotion", "seed2-emotion"]


def test_one_model_given_twice_is_no_spread():
    with pytest.raises(UsageError, match="must be different"):
        model_names([Path("/a/one"), Path("/a/b/../one")])


def summary_of(value, *, induced=True):
    estimate = {"value": value, "low": value - 0.1, "high": value + 0.1}
    row = {"source": "art", "construct": "expressed", "readings": 7, "ccc": estimate, "nll": -value}
    gain = {"source": "art", "best_single": "audio" if value > 0.5 else "visual", "gain": estimate}
    rows = [row, {**row, "construct": "induced"}] if induced else [row]
    empty = {"choices": [], "listed": [], "distributions": [], "series": []}
    return {**empty, "affects": rows, "gains": [gain]}


def test_mean_and_deviation_are_over_the_models():
    values = (0.4, 0.5, 0.9)
    rows = spread_over_models({f"seed{k}": summary_of(v) for k, v in enumerate(values)})
    assert [row.section for row in rows] == ["affects", "affects", "gains"]
    ccc, nll = rows[0].figures["ccc"], rows[0].figures["nll"]
    assert (ccc.mean, ccc.deviation) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert (nll.mean, nll.deviation) == pytest.approx((-np.mean(values), np.std(values, ddof=1)))
    assert rows[0].counts == {"readings": 7}
    text = seeds_markdown(rows)
    assert "| art | expressed | 7 | 0.600 ± 0.265 | -0.600 ± 0.265 |" in text
    assert "over 3 models: seed0, seed1, seed2" in text


def test_a_row_that_an_older_model_lacks_is_left_out():
    rows = spread_over_models({"new": summary_of(0.4), "old": summary_of(0.6, induced=False)})
    assert [row.name.get("construct") for row in rows] == ["expressed", None]
