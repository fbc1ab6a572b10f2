"""Labels over time: both forms of a table, manifests, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.vaemotion.evaluation.benchmark.rows import item
from vaemotion.contract.errors import UserError
from vaemotion.data.manifest.item import label_at
from vaemotion.evaluation.timeline.labels import read_labels


def table(folder: Path, text: str) -> Path:
    (folder / "labels.csv").write_text(text)
    return folder / "labels.csv"


def test_a_table_of_one_work_has_no_name_and_other_columns_are_left_out(tmp_path: Path) -> None:
    text = (
        "\ufeffframe,time_s, valence ,arousal,valence_sd\n1,0,0.5,-0.5,0.1\n\n2,0.5,,nan,0.1\n3,1,1,0,0.1\n"
    )
    (found,) = read_labels(table(tmp_path, text))
    assert (found.work, found.names, found.raters) == ("", frozenset(), {})
    assert found.labels["valence"].time_s.tolist() == found.labels["arousal"].time_s.tolist() == [0, 1]
    assert found.labels["valence"].values.tolist() == [0.5, 1]
    assert found.labels["arousal"].values.tolist() == [-0.5, 0]


def test_raters_in_columns_and_in_rows_are_the_same_labels(tmp_path: Path) -> None:
    wide = "work,time_s,valence_rater1,valence_rater2\na.mkv,0,0.2,0.4\na.mkv,1,0.3,\nb,0,-1,0\nb,1,-1,0.5\n"
    long = (
        "rater,work,time_s,valence\nrater1,a.mkv,0,0.2\nrater1,a.mkv,1,0.3\nrater2,a.mkv,0,0.4\n"
        "rater1,b,0,-1\nrater1,b,1,-1\nrater2,b,0,0\nrater2,b,1,0.5\n"
    )
    for text in (wide, long):
        a, b = read_labels(table(tmp_path, text))
        assert (a.work, a.names, b.names) == ("a.mkv", {"a.mkv", "a"}, {"b"})
        np.testing.assert_allclose(a.labels["valence"].values, [0.3, 0.3])
        np.testing.assert_allclose(b.labels["valence"].values, [-0.5, -0.25])
        assert {name: s.values.tolist() for name, s in b.raters["valence"].items()} == {
            "rater1": [-1, -1],
            "rater2": [0, 0.5],
        }
        assert "arousal" not in b.labels


def test_a_label_beside_its_raters_is_kept(tmp_path: Path) -> None:
    (found,) = read_labels(table(tmp_path, "time_s,valence,valence_rater1,valence_rater2\n0,0.9,0,0.2\n"))
    assert found.labels["valence"].values.tolist() == [0.9]


def test_a_manifests_series_stand_where_label_at_reads_them(tmp_path: Path) -> None:
    series = tuple(float(v) for v in np.linspace(-0.8, 0.8, 9))
    labeled = item(
        1,
        t0=10.0,
        construct="expressed",
        valence_series=series,
        series_rate_hz=2.0,
        series_start_s=1.5,
        reaction_lag_s=0.75,
    )
    file = tmp_path / "manifest.jsonl"
    file.write_text(labeled.to_json() + "\n")
    (found,) = read_labels(file)
    assert {"1.mkv", "1", "work-1", "item-1"} == found.names
    assert (found.construct, found.path) == ("expressed", "audio-visual")
    for now_s in np.arange(0, 6, 0.1):
        expected, _ = label_at(labeled, float(now_s))
        value = found.labels["valence"].at(np.array([10.0 + now_s]))[0]
        assert (expected is None) == bool(np.isnan(value))
        assert expected is None or value == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no column time_s in its first line; labels are a CSV file with the columns"),
        ("time,valence\n0,1\n", "has no column time_s"),
        ("time_s,valence\n", "has no rows below its first line"),
        (
            "time_s,vallence\n0,1\n",
            "has the columns time_s, vallence; it needs time_s, and valence or arousal",
        ),
        ("time_s,valence,valence\n0,1,1\n", "has a column twice"),
        ("time_s,valence\n0,\n1,nan\n", "has no value of valence or arousal; fill its cells"),
        ("time_s,valence\n0,0.1\n1,5\n", "line 3: valence must be a number in [-1, 1], got '5'"),
        ("time_s,valence\n0,0.1\nsoon,0\n", "line 3: time_s must be a number"),
        ("time_s,valence\n0,0.1\n1\n", "line 3: 1 cells, but the first line has 2"),
        (
            "time_s,valence\n1,0.1\n1,0.2\n",
            "line 3: time_s must ascend within a work and a rater, got 1 after 1",
        ),
        ("work,time_s,valence\n,0,0.1\n", "line 2: work is empty"),
        ('time_s,valence\n0,"0.1\n', "cannot be read as CSV"),
    ],
)
def test_a_bad_table_is_refused_with_the_line_and_the_way_out(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        read_labels(table(tmp_path, text))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_files_that_are_no_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing.csv cannot be read \(No such file"):
        read_labels(tmp_path / "nothing.csv")
    with pytest.raises(UserError, match="cannot be read"):
        read_labels(tmp_path)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe")
    with pytest.raises(UserError, match="byte 0 is not UTF-8 text"):
        read_labels(tmp_path / "picture.png")
    constant = item(1, valence=0.5, construct="expressed")
    (tmp_path / "m.jsonl").write_text(constant.to_json() + "\n")
    with pytest.raises(UserError, match="has no labels over time; give items with valence_series"):
        read_labels(tmp_path / "m.jsonl")
