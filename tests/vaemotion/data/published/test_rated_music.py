from pathlib import Path

import pytest

from tests.tables import write_media, write_table
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.data.manifest.item import label_at
from vaemotion.data.manifest.manifest import read_manifest, validate
from vaemotion.data.published.build import build
from vaemotion.data.published.rated_music import deam, pmemo

SONGS = (2, 7, 1001, 2001, 2002)
DYNAMIC = "dynamic (per second annotations)"
SAMPLES = [f"sample_{ms}ms" for ms in range(15000, 17500, 500)]  # five values


@pytest.fixture
def deam_folder(tmp_path: Path) -> Path:
    root = tmp_path / "DEAM"
    averaged = root / "annotations/annotations averaged per song"
    # Some of the published names have a space before them, and the second table has more columns.
    static = ("song_id", " valence_mean", " valence_std", " arousal_mean", " arousal_std")
    rows = [(song, 3.0, 2.0, "9", 0) for song in SONGS]
    write_table(averaged / "song_level/static_annotations_averaged_songs_1_2000.csv", static, rows[:3])
    write_table(
        averaged / "song_level/static_annotations_averaged_songs_2000_2058.csv",
        (*static, " valence_max_mean"),
        [(*row, 5) for row in rows[3:]],
    )
    for name, sign in (("valence", 1), ("arousal", -1)):
        means = [(song, 0, sign * 0.1, sign * 0.2, "" if song == 7 else 0.3, "") for song in SONGS]
        write_table(averaged / DYNAMIC / f"{name}.csv", ("song_id", *SAMPLES), means)
    metadata = root / "metadata"
    write_table(
        metadata / "metadata_2013.csv",
        ("song_id", "file_name", "Artist", "Song title"),
        [(2, "2.mp3", "\t Ann", "A"), (7, "7.mp3", "Ann", "B")],
    )
    write_table(
        metadata / "metadata_2014.csv",
        ("Id", "Artist", "Album"),
        [(1001, "Bob", "C", "rock", "more", "labels")],
    )
    write_table(
        metadata / "metadata_2015.csv",
        ("id", "Filename", "title", "artist"),
        [(2001, "a.mp3", "D", "Carl"), (2002, "b.mp3", "E", "Dora")],
    )
    write_media(root, *(f"MEMD_audio/{song}.mp3" for song in SONGS))
    return root


def items_of(adapter, folder, out, **options):
    build(adapter, folder, out, **options)
    validate([out], folder)
    return {item.id: item for item in read_manifest(out, folder)}


def test_deam_gives_labels_of_the_excerpt_and_over_time(deam_folder, tmp_path):
    items = items_of(deam, deam_folder, tmp_path / "m.jsonl")
    song = items["deam-2"]
    assert (song.audio, song.construct, song.creator_id) == ("MEMD_audio/2.mp3", "expressed", "deam:Ann")
    assert (song.valence, song.arousal, song.valence_sd, song.arousal_sd) == (-0.5, 1, 0.5, 0)
    assert label_at(song, 15.5) == (0.1, -0.1)
    assert label_at(song, 14.9) == label_at(song, 16.6) == (None, None)
    assert len(items["deam-7"].valence_series) == 3  # the shorter song has empty cells at its end
    assert song.n_raters is None


def test_deams_works_are_named_like_those_of_the_set_that_it_contains(deam_folder, tmp_path):
    works = [item.work_id for item in items_of(deam, deam_folder, tmp_path / "m.jsonl").values()]
    assert works == ["emomusic-2", "emomusic-7", "deam-1001", "deam-2001", "deam-2002"]


def test_an_artist_of_deam_is_in_one_split(deam_folder, tmp_path):
    for fold in (1, 2, 3, 4):
        items = items_of(deam, deam_folder, tmp_path / f"{fold}.jsonl", test_fold=fold)
        assert items["deam-2"].split == items["deam-7"].split


def test_deams_single_raters_are_averaged_without_those_who_never_moved(deam_folder, tmp_path, capsys):
    for name in ("valence", "arousal"):
        for song in SONGS[:4]:
            rows = [("a", 0, 0.2, 0.4, 0.4, ""), ("b", 0, 0.4, 0.8, "", ""), ("c", 0.5, 0.5, 0.5, 0.5, 0.5)]
            path = deam_folder / f"annotations/annotations per each rater/{DYNAMIC}/{name}/{song}.csv"
            write_table(path, ("WorkerId", *SAMPLES), rows)
    items = items_of(deam, deam_folder, tmp_path / "m.jsonl")
    assert items["deam-2"].valence_series == pytest.approx((0, 0.3, 0.6, 0.4))
    assert items["deam-2"].n_raters == 2
    assert items["deam-2002"].valence_series is None  # nobody rated it over time
    assert "left out: 8 ratings over time whose rater never moved" in capsys.readouterr().out


def test_deam_refuses_what_is_missing_or_unknown(deam_folder, tmp_path):
    arousal = deam_folder / f"annotations/annotations averaged per song/{DYNAMIC}/arousal.csv"
    text = arousal.read_text()
    for old, new, message in (
        ("sample_15500ms", "sample_15600ms", "expected columns sample_15000ms"),
        ("sample_17000ms", "genre", "has a column 'genre', which this set does not have"),
        ("-0.1", "-1.1", r"must be a number in \[-1, 1\], got '-1.1'"),
    ):
        arousal.write_text(text.replace(old, new, 1))
        with pytest.raises(UserError, match=message):
            build(deam, deam_folder, tmp_path / "m.jsonl")
    arousal.write_text(text)
    (deam_folder / "MEMD_audio/1001.mp3").unlink()
    with pytest.raises(UserError, match=r"names MEMD_audio/1001.mp3, which is not in"):
        build(deam, deam_folder, tmp_path / "m.jsonl")
    (deam_folder / "metadata/metadata_2014.csv").write_text("Id,Artist\n")
    with pytest.raises(UserError, match=r"song 1001 is in none of metadata_2013.csv"):
        build(deam, deam_folder, tmp_path / "m.jsonl")
    (deam_folder / "metadata/metadata_2014.csv").unlink()
    with pytest.raises(UserError, match=r"metadata_2014.csv does not exist; --from takes the folder of DEAM"):
        build(deam, deam_folder, tmp_path / "m.jsonl")


@pytest.fixture
def pmemo_folder(tmp_path: Path) -> Path:
    root = tmp_path / "PMEmo2019"
    songs = (1, 4, 5, 6)
    metadata = [(n, f"{n}.mp3", 'A "song", new', f"artist {n % 3}", "album") for n in songs]
    write_table(root / "metadata.csv", ("musicId", "fileName", "title", "artist", "album"), metadata)
    folder = root / "annotations"
    values = ("Arousal(mean)", "Valence(mean)")
    write_table(folder / "static_annotations.csv", ("musicId", *values), [(n, 0.25, "0.75") for n in songs])
    spreads = ("musicId", "Arousal(std)", "Valence(std)")
    write_table(folder / "static_annotations_std.csv", spreads, [(n, 0.1, 0.2) for n in songs])
    times = [(n, 15 + k / 2, 0.5 + k / 10, 0.5 - k / 10) for n in songs[:3] for k in range(4)]
    write_table(folder / "dynamic_annotations.csv", ("musicId", "frameTime", *values), times)
    write_media(root, *(f"chorus/{n}.mp3" for n in songs))
    return root


def test_pmemo_gives_what_a_chorus_induced_and_when(pmemo_folder, tmp_path):
    items = items_of(pmemo, pmemo_folder, tmp_path / "m.jsonl", test_fold=1, validation_fold=2)
    song = items["pmemo-1"]
    assert (song.audio, song.construct, song.creator_id) == ("chorus/1.mp3", "induced", "pmemo:artist 1")
    assert (song.valence, song.arousal, song.valence_sd, song.arousal_sd) == (0.5, -0.5, 0.4, 0.2)
    assert label_at(song, 16.0) == (pytest.approx(-0.4), pytest.approx(0.4))
    assert items["pmemo-4"].split == song.split  # by one artist
    assert items["pmemo-6"].valence_series is None


@pytest.mark.parametrize(
    ("table", "old", "new", "message"),
    [
        (
            "annotations/dynamic_annotations.csv",
            "1,15.5",
            "1,15.7",
            "values of musicId 1 must be 0.5 s apart",
        ),
        ("annotations/static_annotations.csv", "0.75", "1.75", r"must be a number in \[0, 1\], got '1.75'"),
        (
            "annotations/static_annotations_std.csv",
            "\n6,",
            "\n7,",
            "musicId 6 is not in static_annotations_s",
        ),
        ("metadata.csv", "\n4,", "\n40,", "musicId 4 is not in metadata.csv"),
        ("metadata.csv", "artist,", "singer,", "lacks the columns artist"),
    ],
)
def test_pmemo_refuses_tables_that_do_not_fit_together(pmemo_folder, tmp_path, table, old, new, message):
    path = pmemo_folder / table
    path.write_text(path.read_text().replace("\r\n", "\n").replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        build(pmemo, pmemo_folder, tmp_path / "m.jsonl")


def test_a_lag_is_for_sets_with_series_only(pmemo_folder, tmp_path):
    items = items_of(pmemo, pmemo_folder, tmp_path / "m.jsonl", reaction_lag_s=2.0)
    assert (items["pmemo-1"].reaction_lag_s, items["pmemo-6"].reaction_lag_s) == (2.0, 0.0)
    table = pmemo_folder / "annotations/dynamic_annotations.csv"
    table.write_text(table.read_text().splitlines()[0] + "\n99,15.0,0.5,0.5\n99,15.5,0.5,0.5\n")
    with pytest.raises(UsageError, match="--reaction-lag is for sets that were rated over time"):
        build(pmemo, pmemo_folder, tmp_path / "n.jsonl", reaction_lag_s=2.0)
