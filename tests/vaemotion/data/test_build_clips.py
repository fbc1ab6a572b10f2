"""Manifests of clips from folders of videos and from tables in published layouts."""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tests.media import tone, write_wav
from tests.vaemotion.data.films import film, film_mp4
from vaemotion.contract.audio import SAMPLE_RATE_HZ
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.data.build_clips import PARTS, ClipsOptions, build_clips
from vaemotion.data.clip_tables import ClipRow, file_of, read_table
from vaemotion.data.manifest.item import Item, content_sha256
from vaemotion.data.manifest.loader import Media, load_clip
from vaemotion.data.manifest.manifest import read_manifest

TRAIN_ONLY = ClipsOptions(license="CC0-1.0", validation=0.0, test=0.0)


def build(folder: Path, options: ClipsOptions = TRAIN_ONLY, name: str = "out/clips.jsonl") -> list[Item]:
    """Build a manifest, and read it back with all checks."""
    out = folder.parent / name
    build_clips(folder, out, folder, options)
    return read_manifest(out, folder, check_hashes=True)


def with_table(tmp_path: Path, name: str, text: str) -> ClipsOptions:
    (tmp_path / name).write_text(text)
    return ClipsOptions(license="CC-BY-4.0", table=tmp_path / name, validation=0.0, test=0.0)


def test_what_cannot_teach_is_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    videos = tmp_path / "videos"
    good = film(videos / "deep" / "good one.mkv", 4.0, 1)
    film_mp4(videos / "other.mp4", 4.0, 2)
    film(videos / "no sound.mkv", 4.0, 3, sound=None)
    film(videos / "silence.mkv", 4.0, 4, sound=False)
    film(videos / "still.mkv", 4.0, 5, moving=False)
    film(videos / "short.mkv", 2.0, 6)
    write_wav(videos / "no pictures.wav", tone(4.0), SAMPLE_RATE_HZ)
    (videos / "notes.txt").write_text("no video")
    (videos / ".hidden.mkv").write_bytes(good.read_bytes())
    (videos / "again.mkv").write_bytes(good.read_bytes())
    (videos / "cut off.mkv").write_bytes(good.read_bytes()[:300])
    os.symlink(film(tmp_path / "elsewhere.mkv", 4.0, 7), videos / "link.mkv")
    Path(os.fsdecode(os.fsencode(videos) + b"/\xff.mkv")).write_bytes(good.read_bytes())
    (videos / "back\\slash.mkv").write_bytes(good.read_bytes())
    items = build(videos)
    assert [item.video for item in items] == ["again.mkv", "other.mp4"]
    assert (items[0].t0, items[0].t1) == (0.0, 4.0)
    assert {(item.task, item.modality, item.pairing, item.split) for item in items} == {
        ("clip", "audio-visual", "synchronised", "train")
    }
    assert items[0].sha256 == content_sha256([good])
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out")]
    assert sorted(told) == [
        "left out: 1 with a link that leaves the media root",
        "left out: 1 with a still picture",
        "left out: 1 with less than a window",
        "left out: 1 with no pictures",
        "left out: 1 with no sound",
        "left out: 1 with silence",
        "left out: 1 with the same bytes as another file",
        "left out: 2 with a name that is not UTF-8 or has a backslash",
        "left out: 2 with no video or sound that can be read",
    ]


def test_a_longer_video_becomes_clips_and_a_rest_that_fills_a_window(tmp_path: Path):
    film(tmp_path / "v" / "a.mkv", 12.0)
    options = ClipsOptions(license="CC0-1.0", clip_s=4.5, window_s=3.0, validation=0.0, test=0.0)
    items = build(tmp_path / "v", options)
    assert [(item.t0, item.t1) for item in items] == [(0.0, 4.5), (4.5, 9.0), (9.0, 12.0)]
    assert len({item.id for item in items}) == 3
    assert {item.work_id for item in items} == {"a.mkv"}


def test_splits_share_no_video_and_do_not_depend_on_the_folder(tmp_path: Path):
    for number in range(10):
        data = film(tmp_path / "one" / f"{number}.mkv", 7.0, number).read_bytes()
        (tmp_path / "two" / "deep").mkdir(parents=True, exist_ok=True)
        (tmp_path / "two" / "deep" / f"{number}.mkv").write_bytes(data)
    options = ClipsOptions(license="CC0-1.0", clip_s=3.5, validation=0.2, test=0.3)
    first = build(tmp_path / "one", options, "one.jsonl")
    split_of = {item.video: item.split for item in first}
    assert len(split_of) == 10
    assert all(item.split == split_of[item.video] for item in first)
    assert sorted(split_of.values()) == ["test"] * 3 + ["train"] * 5 + ["validation"] * 2
    again = build(tmp_path / "two" / "deep", options, "two.jsonl")
    assert {item.video: item.split for item in again} == split_of


def test_parts_of_one_film_are_a_wish_and_said(tmp_path: Path):
    whole = film(tmp_path / "v" / "film.mkv", 30.0)
    options = ClipsOptions(license="CC0-1.0", clip_s=4.0, validation=0.2, test=0.2)
    with pytest.raises(UsageError, match=r"1 usable video cannot be in 3 splits .*--parts-of-one-film"):
        build(tmp_path / "v", options)
    wish = ClipsOptions(license="CC0-1.0", clip_s=4.0, validation=0.2, test=0.2, parts_of_one_film=True)
    with pytest.raises(UsageError, match="must lie below --media-root"):
        build(tmp_path / "v", wish)
    items = build(tmp_path / "v", wish, "v/clips.jsonl")
    assert {item.source for item in items} == {f"v{PARTS}"}
    assert {item.split for item in items} == {"train", "validation", "test"}
    original = load_clip(Media(video=whole.name), tmp_path / "v")
    blocks = np.lib.stride_tricks.sliding_window_view(original.samples, 8)
    at_s: dict[str, list[float]] = {}
    for item in (items[0], *(two for two in pairwise(items) if two[0].split != two[1].split)):
        for end in item if isinstance(item, tuple) else (item,):
            clip = load_clip(end, tmp_path / "v")
            assert any(np.array_equal(clip.frames[0], picture) for picture in original.frames)
            place = np.abs(blocks - clip.samples[:8]).max(axis=1).argmin()
            at_s.setdefault(end.split, []).append(float(place) / SAMPLE_RATE_HZ)
    assert list(at_s) == ["train", "validation", "test"]
    assert min(at_s["validation"]) > max(at_s["train"]) + 7.0
    assert min(at_s["test"]) > max(at_s["validation"]) + 7.0


def test_a_license_is_required_and_shares_are_checked():
    with pytest.raises(UsageError, match=r"--license is missing: .*NOASSERTION"):
        ClipsOptions(license=None)
    with pytest.raises(UsageError, match="leave a share for train"):
        ClipsOptions(license="CC0-1.0", validation=0.5, test=0.5)
    with pytest.raises(UsageError, match="--window-s"):
        ClipsOptions(license="CC0-1.0", clip_s=2.0)


def test_nothing_to_use_and_what_exists_are_errors(tmp_path: Path):
    film(tmp_path / "v" / "a.mkv", 1.0)
    with pytest.raises(UserError, match="no clip that can be used"):
        build(tmp_path / "v")
    with pytest.raises(UserError, match="is not a folder"):
        build(tmp_path / "none")
    with pytest.raises(UsageError, match="must lie below --media-root"):
        build_clips(tmp_path, tmp_path / "o.jsonl", tmp_path / "v", TRAIN_ONLY)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "clips.jsonl").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        build(tmp_path / "v")


def test_vggsound(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    videos = tmp_path / "v"
    film(videos / "--aaaaaaaaa_000030.mkv", 10.0, 1)
    film(videos / "bbbbbbbbb_1.mkv", 10.0, 2)  # the clip, named by its id alone
    film(videos / "Yccccccccccc.mkv", 15.0, 3)  # a whole video
    table = with_table(
        tmp_path,
        "vggsound.csv",
        "--aaaaaaaaa,30,waterfall burbling,train\n"
        'bbbbbbbbb_1,1,"bird chirping, tweeting",test\n'
        "ccccccccccc,4,people marching,train\n"
        "ddddddddddd,4,people marching,train\n",
    )
    items = {item.work_id: item for item in build(videos, table)}
    assert [(i.t0, i.t1, i.label, i.split) for i in items.values()] == [
        (0.0, 10.0, "waterfall burbling", "train"),
        (4.0, 14.0, "people marching", "train"),
        (0.0, 10.0, "bird chirping, tweeting", "test"),
    ]
    assert {item.source for item in items.values()} == {"vggsound"}
    assert "left out: 1 with a video that is not in the folder" in capsys.readouterr().out


def test_audioset(tmp_path: Path):
    film(tmp_path / "v" / "0aaaaaaaaaa_5.000-11.000.mkv", 6.0, 1)
    film(tmp_path / "v" / "0bbbbbbbbbb_30000_36000.mkv", 6.0, 2)
    film(tmp_path / "v" / "0cccccccccc.mkv", 12.0, 3)
    (tmp_path / "class_labels_indices.csv").write_text(
        'index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/m/04rlf,"Music, loud"\n'
    )
    table = with_table(
        tmp_path,
        "eval_segments.csv",
        "# Segments csv created Sun Mar  5 10:54:25 2017\n"
        "# num_ytids=20371, num_segs=20371, num_unique_labels=527, num_positive_labels=51804\n"
        "# YTID, start_seconds, end_seconds, positive_labels\n"
        '0aaaaaaaaaa, 5.000, 11.000, "/m/09x0r,/m/04rlf"\n'
        '0bbbbbbbbbb, 30.000, 36.000, "/m/04rlf,/t/unknown"\n'
        '0cccccccccc, 2.000, 8.000, "/t/unknown"\n',
    )
    items = build(tmp_path / "v", table)
    assert [(item.t0, item.t1, item.label) for item in items] == [
        (0.0, 6.0, "Speech; Music, loud"),
        (0.0, 6.0, "Music, loud"),
        (2.0, 8.0, None),
    ]


def test_finevideo(tmp_path: Path):
    film(tmp_path / "v" / "abc.mkv", 12.0)
    scenes = [
        {
            "title": "Opening",
            "timestamps": {"start_timestamp": "00:00:00.000", "end_timestamp": "00:00:05.500"},
        },
        {"title": "Race", "timestamps": {"start_timestamp": "00:00:06.000", "end_timestamp": "00:00:11.250"}},
    ]
    values = {"youtube_channel": "someone", "content_metadata": {"scenes": scenes}}
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "abc.json").write_text(json.dumps(values))
    options = ClipsOptions(license="CC-BY-4.0", table=tmp_path / "metadata", validation=0.0, test=0.0)
    items = build(tmp_path / "v", options)
    assert [(i.t0, i.t1, i.label) for i in items] == [(0.0, 5.5, "Opening"), (6.0, 11.25, "Race")]
    assert {i.creator_id for i in items} == {"someone"}
    (tmp_path / "metadata" / "abc.json").write_text("{}")
    with pytest.raises(UserError, match="not in FineVideo's layout"):
        read_table(tmp_path / "metadata")


def test_tables_with_a_header_and_tables_that_are_none(tmp_path: Path):
    table = tmp_path / "t.csv"
    table.write_text("Label,Video ID,Start,End,Set\ndog,a b,1,4.5,val\n,c,2,,eval\n")
    assert read_table(table) == [
        ClipRow("a b", 1.0, 4.5, "dog", "validation"),
        ClipRow("c", 2.0, None, None, "test"),
    ]
    for text, message in (
        ("a,b,c\n1,2,3\n", "no header that names id, start, end and label"),
        ("id,start,end\nx,5,4\n", r"line 2: its end \(4\) must come after its start"),
        ("id,start\nx,soon\n", "line 2: an id and times in seconds are needed"),
        ("", "has no rows"),
    ):
        table.write_text(text)
        with pytest.raises(UserError, match=message):
            read_table(table)
    with pytest.raises(UserError, match="does not exist"):
        read_table(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("name", "is_cut"),
    [
        ("x_000007", True),
        ("x_7", True),
        ("x_7000_12500", True),
        ("x_7-12.5", True),
        ("Yx", False),
        ("x", False),
    ],
)
def test_the_names_of_downloaded_clips(name: str, is_cut: bool):
    files = {name: Path(f"{name}.mp4"), "xx": Path("xx.mp4"), "x_70": Path("x_70.mp4")}
    assert file_of(ClipRow("x", 7.0, 12.5), files) == (Path(f"{name}.mp4"), is_cut)
    assert file_of(ClipRow("z", 7.0, 12.5), files) is None
