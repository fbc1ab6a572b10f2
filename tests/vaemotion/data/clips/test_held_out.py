"""Held-out media: every kind of medium of a manifest, shards, and the split that is taken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.own_media import film_items, write_own_manifest
from tests.tiny import tiny_config
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.front_end import FrontEnd
from vaemotion.data.clips.held_out import open_held_out, paths_of, report_left_out
from vaemotion.data.clips.source import DamagedClip, window_span_s
from vaemotion.data.manifest.manifest import read_manifest, write_manifest
from vaemotion.data.shard import ShardOptions, write_shards

CONFIG = tiny_config()
FRONT_END = FrontEnd(CONFIG.log_mel, CONFIG.image, CONFIG.windows)
SPAN_S = window_span_s(FRONT_END)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_own_manifest(tmp_path_factory.mktemp("own"), 2, ("train", "validation", "test"))


def test_a_medium_comes_once_with_all_items_about_it(own: Path) -> None:
    media = open_held_out(str(own), own.parent, FRONT_END)
    assert media.split == "validation"
    assert [[item.modality for item in media.items(index)] for index in range(len(media))] == [
        ["audio", "audio", "visual", "audio-visual"],
        ["audio", "audio", "visual", "audio-visual"],
        ["visual"],
        ["audio"],
    ]
    windows = [media.window(index, 0, SPAN_S) for index in range(len(media))]
    assert [paths_of(window.clip)[-1] for window in windows] == [
        "audio-visual",
        "audio-visual",
        "visual",
        "audio",
    ]
    assert [window.now_s for window in windows] == pytest.approx([SPAN_S, SPAN_S, 0, SPAN_S])


def test_the_seed_moves_a_window_within_the_items_part(own: Path, tmp_path: Path) -> None:
    item = replace(film_items(tmp_path, 0, "test", duration_s=4.0)[0], t0=1.0, t1=3.0)
    write_manifest(tmp_path / "part.jsonl", [item])
    media = open_held_out(str(tmp_path / "part.jsonl"), tmp_path, FRONT_END)
    windows = [media.window(0, seed, SPAN_S) for seed in range(8)]
    assert len({window.start_s for window in windows}) == 8
    assert all(0 <= window.start_s <= 2.0 - SPAN_S for window in windows)
    assert all(len(window.clip.frames) == 14 for window in windows)
    again = media.window(0, 3, SPAN_S)
    assert (again.start_s, again.clip.frames[0].tobytes()) == (
        windows[3].start_s,
        windows[3].clip.frames[0].tobytes(),
    )


def test_the_identity_follows_from_what_is_known_and_from_the_split(own: Path, tmp_path: Path) -> None:
    def identity(manifest: Path, *splits: str) -> str:
        return open_held_out(str(manifest), own.parent, FRONT_END, splits or ("validation",)).identity

    items = read_manifest(own, own.parent)
    write_manifest(tmp_path / "same.jsonl", items)
    write_manifest(tmp_path / "other.jsonl", [replace(i, valence=-0.9) if i.valence else i for i in items])
    assert identity(tmp_path / "same.jsonl") == identity(own)
    assert identity(tmp_path / "other.jsonl") != identity(own)
    assert identity(own, "test") != identity(own)


def test_shards_of_a_manifest_are_held_out_media_too(own: Path, tmp_path: Path) -> None:
    write_shards(own, tmp_path / "shards", own.parent, ShardOptions())
    media = open_held_out(str(tmp_path / "shards"), Path(), FRONT_END)
    assert (media.split, len(media)) == ("validation", 2)
    names = {media.items(index)[0].work_id for index in range(2)}
    assert names == {"validation-0", "validation-1"}
    assert paths_of(media.window(0, 0, SPAN_S).clip) == ("audio", "visual", "audio-visual")


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("pipe:cat x.tar", "is a stream"),
        ("nothing.jsonl", "does not exist"),
        ("own.jsonl", "its splits: train"),
    ],
)
def test_what_cannot_be_held_out_is_refused(own: Path, tmp_path: Path, spec: str, sentence: str) -> None:
    items = [item for item in read_manifest(own, own.parent) if item.split == "train"]
    write_manifest(tmp_path / "own.jsonl", items)
    given = spec if spec.startswith("pipe:") else str(tmp_path / spec)
    with pytest.raises(UserError, match=sentence) as caught:
        open_held_out(given, own.parent, FRONT_END)
    assert isinstance(caught.value, UsageError) or "does not exist" in sentence


def test_one_damaged_medium_is_always_allowed(capsys: pytest.CaptureFixture[str]) -> None:
    report_left_out([], 3, "own.jsonl")
    assert capsys.readouterr().err == ""
    report_left_out([DamagedClip("a", "it is empty")], 3, "own.jsonl")
    assert "1 of 3 media of own.jsonl cannot be used (a: it is empty)" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"2 of 30 media"):
        report_left_out([DamagedClip("a", "it is empty")] * 2, 30, "own.jsonl")
    report_left_out([DamagedClip("a", "it is empty")] * 2, 40, "own.jsonl")
