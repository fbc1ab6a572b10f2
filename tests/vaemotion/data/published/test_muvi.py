from pathlib import Path

import pytest

from tests.tables import write_media, write_table
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.data.emotion_vocabularies import vocabularies
from vaemotion.data.manifest.item import label_at
from vaemotion.data.manifest.manifest import read_manifest, validate
from vaemotion.data.published.build import build
from vaemotion.data.published.muvi import PATHS_OF, muvi

TERMS = vocabularies()["gems-27"].names
VIDEOS = ("o_v9MY_FMcw", "lDK9QqIzhwk", "4JipHEz53sU")
COLUMNS = (
    "participant_id",
    "media_id",
    "media_modality",
    "arousal",
    "valence",
    "timestamp",
    "overlay_type",
    "seq",
)


def rating(person: int, video: str, condition: str, arousal: float, valence: float, length: int = 120):
    """Rate from 0 on, and from 30 s on with the given values; the tables cut an id at its underscore."""
    return [
        (
            person,
            video.partition("_")[0],
            condition,
            *((arousal, valence) if n >= 60 else (0, 0)),
            (n + 1) / 2,
            "x",
            n,
        )
        for n in range(length)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "MuVi"
    write_table(root / "video_urls.csv", ("video_id",), [(video,) for video in VIDEOS])
    rows = [
        point
        for video in VIDEOS
        for n, condition in enumerate(PATHS_OF)
        for person in (1, 2)
        for point in rating(person, video, condition, 0.2 * person, 0.1 * n - 0.4 * person)
    ]
    rows += rating(3, VIDEOS[0], "music", 0.9, 0)  # moved in arousal only
    rows += rating(4, VIDEOS[0], "music", 0.9, 0.9, length=111)
    write_table(root / "av_data.csv", COLUMNS, reversed(rows))
    about = ("participant_id", "media_id", "media_modality", "seen_previously")
    answers = [
        (person, "o", "music", False, *(int(term in chosen) for term in TERMS), "irrelevant")
        for person, chosen in ((1, ["calm", "serene"]), (2, ["calm", "tense"]))
    ]
    write_table(root / "media_data.csv", (*about, *TERMS, "overlay_type"), answers)
    write_media(root, "media/o_v9MY_FMcw.mp4", "media/YT_lDK9QqIzhwk.mp4", "media/4JipHEz53sU.mp4")
    return root


def test_muvi_gives_a_video_on_three_paths(folder, tmp_path, capsys):
    build(muvi, folder, tmp_path / "m.jsonl")
    validate([tmp_path / "m.jsonl"], folder)
    items = {item.id: item for item in read_manifest(tmp_path / "m.jsonl", folder)}
    assert len(items) == 9
    assert {item.modality: item.audible for item in items.values() if "o_v9" in item.id} == {
        "audio": True,
        "visual": False,
        "audio-visual": None,
    }
    music = items["muvi-o_v9MY_FMcw-music"]
    assert (music.video, music.construct, music.n_raters) == ("media/o_v9MY_FMcw.mp4", "expressed", 2)
    assert label_at(music, 20.0) == (0, 0)
    assert label_at(music, 59.0) == (pytest.approx(-0.6), pytest.approx(0.3))
    assert label_at(music, 0.4) == label_at(music, 59.6) == (None, None)
    assert label_at(items["muvi-o_v9MY_FMcw-video"], 40.0)[0] == pytest.approx(-0.4)
    votes = dict(zip(music.emotion_names, music.emotion_distribution, strict=True))
    assert (votes["calm"], votes["serene"], votes["tense"]) == (0.5, 0.25, 0.25)
    assert items["muvi-lDK9QqIzhwk-music"].emotion_distribution is None
    printed = capsys.readouterr().out
    assert "left out: 1 ratings over time whose rater never moved" in printed
    assert "left out: 1 ratings over time that end early" in printed


def test_the_three_conditions_of_a_video_are_in_one_split(folder, tmp_path):
    build(muvi, folder, tmp_path / "m.jsonl", test_fold=1, validation_fold=2)
    splits: dict[str, set[str]] = {}
    for item in read_manifest(tmp_path / "m.jsonl", folder):
        splits.setdefault(item.work_id, set()).add(item.split)
    assert sorted(map(sorted, splits.values())) == [["test"], ["train"], ["validation"]]


def test_a_reaction_lag_moves_the_labels_earlier(folder, tmp_path):
    build(muvi, folder, tmp_path / "m.jsonl", reaction_lag_s=3.0)
    [item] = [i for i in read_manifest(tmp_path / "m.jsonl", folder) if i.id == "muvi-4JipHEz53sU-video"]
    assert label_at(item, 28.0)[0] == pytest.approx(-0.4)  # rated at 31 s
    for wrong in (-1.0, float("inf")):
        with pytest.raises(UsageError, match="--reaction-lag must be seconds, at least 0"):
            build(muvi, folder, tmp_path / "n.jsonl", reaction_lag_s=wrong)


@pytest.mark.parametrize(
    ("table", "old", "new", "message"),
    [
        ("av_data.csv", "muted_video", "silent", "media_modality must be one of music, muted_video, video"),
        ("av_data.csv", "lDK9QqIzhwk", "unknown", "media_id 'unknown' is not in video_urls.csv"),
        ("av_data.csv", ",valence", ",mood", "lacks the columns valence"),
        ("media_data.csv", "seen_previously", "joy", "lacks the columns seen_previously"),
        ("media_data.csv", "nervous,", "nervous,joy,", "expected 33 cells"),
        ("video_urls.csv", "4JipHEz53sU", "o_another", "o_another is cut to the same name as o_v9MY_FMcw"),
        ("video_urls.csv", "4JipHEz53sU", "xJipHEz53sU", "is not in video_urls.csv"),
    ],
)
def test_tables_that_are_not_muvis_are_refused(folder, tmp_path, table, old, new, message):
    path = folder / table
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        build(muvi, folder, tmp_path / "m.jsonl")


def test_a_video_must_be_there_once(folder, tmp_path):
    write_media(folder, "muted/4JipHEz53sU.mp4")
    with pytest.raises(UserError, match=r"one video named 4JipHEz53sU, with its sound; found 2 of them"):
        build(muvi, folder, tmp_path / "m.jsonl")
    for path in folder.rglob("4JipHEz53sU.mp4"):
        path.unlink()
    with pytest.raises(UserError, match=r"one video named 4JipHEz53sU, with its sound; found none"):
        build(muvi, folder, tmp_path / "m.jsonl")
