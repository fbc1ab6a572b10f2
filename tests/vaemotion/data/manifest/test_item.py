import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaemotion.data.manifest.item import Item, label_at

FILM = Item(
    id="film",
    video="film.mp4",
    pairing="synchronised",
    task="emotion",
    modality="audio-visual",
    valence_series=(-1.0, 0.0, 1.0),
    series_rate_hz=2.0,
    series_start_s=15.0,
    reaction_lag_s=2.0,
    arousal=0.25,
    construct="expressed",
    split="train",
    work_id="film",
    creator_id="c",
    source="s",
    license="CC0-1.0",
    sha256="0" * 64,
)


@pytest.mark.parametrize(
    ("now_s", "valence"),
    [(13.0, -1.0), (13.25, -0.5), (13.5, 0.0), (14.0, 1.0), (12.99, None), (14.01, None), (15.0, None)],
)
def test_a_window_gets_the_series_of_its_time_minus_the_reaction_lag(now_s, valence):
    # The raters answered 2 s late: what they rated at 15 s was shown at 13 s.
    assert label_at(FILM, now_s) == (valence if valence is None else pytest.approx(valence), 0.25)


@given(
    st.lists(st.floats(-1, 1), min_size=2, max_size=50),
    st.sampled_from([0.5, 1.0, 2.0, 3.0, 7.0, 29.97]),
    st.floats(-60, 60),
    st.floats(0, 10),
)
def test_every_value_is_found_at_its_own_time(series, rate_hz, start_s, lag_s):
    item = Item(
        **{
            **vars(FILM),
            "valence_series": tuple(series),
            "series_rate_hz": rate_hz,
            "series_start_s": start_s,
            "reaction_lag_s": lag_s,
        }
    )
    for number, value in enumerate(series):
        now_s = start_s + number / rate_hz - lag_s
        assert label_at(item, now_s)[0] == pytest.approx(value, abs=1e-5)
    assert label_at(item, start_s - lag_s - 0.01)[0] is None
    assert label_at(item, start_s - lag_s + (len(series) - 1) / rate_hz + 0.01)[0] is None


def test_the_line_of_an_item_leaves_defaults_out():
    line = json.loads(FILM.to_json())
    assert line["series_start_s"] == 15.0
    assert line["reaction_lag_s"] == 2.0
    constant = Item(
        **{
            **vars(FILM),
            "valence_series": None,
            "series_rate_hz": None,
            "series_start_s": 0.0,
            "reaction_lag_s": 0.0,
        }
    )
    assert not {"series_start_s", "reaction_lag_s", "label", "machine_made"} & set(
        json.loads(constant.to_json())
    )
