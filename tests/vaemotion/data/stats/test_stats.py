from dataclasses import replace

import pytest

from tests.media import tone, write_wav
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.media.files import MediaError
from vaemotion.data.manifest.item import Item
from vaemotion.data.manifest.manifest import write_manifest
from vaemotion.data.stats import stats

HEARD = Item(
    id="a",
    audio="a.wav",
    pairing="none",
    question="What is this?",
    answer="bell",
    task="content",
    modality="audio",
    valence=0.5,
    arousal=-1.0,
    construct="expressed",
    n_raters=7,
    split="train",
    work_id="w1",
    creator_id="c1",
    source="ours",
    license="CC0-1.0",
    sha256="0" * 64,
)


def test_tables_ceilings_and_baselines_are_printed(capsys):
    stats.print_stats("validation", 60, 150)
    out = capsys.readouterr().out
    for part in (
        "rooster",
        "contentment",
        "oracle ceiling (CCC)",
        "audio-visual",
        "color histogram",
        "mean log-mel",
    ):
        assert part in out
    shares = [
        float(word) for line in out.splitlines() if "rooster" in line for word in line.split() if "0." in word
    ]
    assert 0 <= shares[0] <= 0.3


def test_data_that_a_trivial_baseline_solves_is_refused(monkeypatch, capsys):
    # A lower limit tests the same as easier data, in seconds instead of minutes.
    monkeypatch.setattr(stats, "MEAN_LOG_MEL_LIMIT", 0.01)
    with pytest.raises(UserError, match="mean log-mel exceeds"):
        stats.print_stats("validation", 60, 150)
    assert "(limit 0.01)" in capsys.readouterr().out


def test_an_unknown_split_is_wrong_usage():
    with pytest.raises(UsageError, match="split must be one of"):
        stats.print_stats("holdout", 60, 150)


def row_of(out: str, *start: str) -> list[str]:
    """Return the cells after ``start`` of the only table row that begins with it."""
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines() if "│" in line]
    [row] = [row for row in rows if row[: len(start)] == list(start)]
    return row[len(start) :]


def test_manifests_are_described_as_one(tmp_path, capsys):
    write_wav(tmp_path / "a.wav", tone(1.5), 16000)
    elsewhere = replace(HEARD, id="b", work_id="w2", creator_id="c2", split="test", sha256="1" * 64)
    seen = replace(elsewhere, id="c", audio=None, image="a.png", modality="visual", valence=None, n_raters=3)
    write_manifest(tmp_path / "1.jsonl", [HEARD, replace(HEARD, id="a2", answer="drum", t0=0.5)])
    write_manifest(
        tmp_path / "2.jsonl",
        [replace(elsewhere, audio="gone.wav"), replace(seen, source="theirs", license="X")],
    )
    stats.describe([tmp_path / "1.jsonl", tmp_path / "2.jsonl"], tmp_path, None, None, None)
    out = capsys.readouterr().out
    assert "4 items of 2 works by 2 creators" in out
    assert row_of(out, "ours", "audio") == ["2", "0", "1", "3"]
    assert row_of(out, "theirs", "visual") == ["0", "0", "1", "1"]
    assert row_of(out, "all") == ["", "2", "0", "2", "4"]
    assert row_of(out, "bell")[:2] == ["3", "0.750"]
    assert row_of(out, "CC0-1.0")[:2] == ["3", "0.750"]
    assert row_of(out, "-1.0", "-0.8")[2] == "4"
    assert row_of(out, "+0.4", "+0.6")[0] == "3"
    assert "25% missing" in " ".join(out.split())
    assert row_of(out, "ours", "expressed")[2].startswith("7 to 7")
    assert row_of(out, "ours", "2.5") == ["2", "1"]  # a.wav complete and from 0.5 s on; gone.wav is missing


def test_media_are_optional_but_must_be_readable_when_they_exist(tmp_path, capsys):
    write_manifest(tmp_path / "m.jsonl", [HEARD])
    stats.describe([tmp_path / "m.jsonl"], None, None, None, None)
    assert "seconds of sound" not in capsys.readouterr().out
    (tmp_path / "a.wav").write_bytes(b"no sound at all")
    with pytest.raises(MediaError, match=r"a\.wav cannot be opened"):
        stats.describe([tmp_path / "m.jsonl"], tmp_path, None, None, None)


def test_options_of_the_other_subject_are_wrong_usage(tmp_path):
    with pytest.raises(UsageError, match="--split applies to the procedural art"):
        stats.describe([tmp_path / "m.jsonl"], tmp_path, "test", None, None)
    with pytest.raises(UsageError, match="--media-root applies to manifests"):
        stats.describe([], tmp_path, None, None, None)
