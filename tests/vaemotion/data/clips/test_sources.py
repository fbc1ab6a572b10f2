"""Every source gives the same windows: manifests of real films, procedural art, several as one."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.front_end import FrontEnd, window_at
from vaemotion.contract.media.files import MediaError
from vaemotion.data.art.art import draw_frame, sample_work, synthesize, work_seed
from vaemotion.data.clips.of_art import ArtClips
from vaemotion.data.clips.of_manifest import ManifestClips
from vaemotion.data.clips.open import JoinedClips, open_all, open_clips
from vaemotion.data.clips.source import ClipSource, window_span_s
from vaemotion.data.manifest.item import Item, content_sha256
from vaemotion.data.manifest.loader import Media, load_clip
from vaemotion.data.manifest.manifest import write_manifest
from vaemotion.data.manifest.writer import write_clip

FRONT_END = FrontEnd()
SPAN_S = window_span_s(FRONT_END)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a film of six seconds at 25 frames a second whose frames say their numbers, and a mute one."""
    folder = tmp_path_factory.mktemp("films")
    levels = np.arange(150, dtype=np.uint8)
    frames = np.broadcast_to(levels[:, None, None, None], (150, 32, 32, 3)).copy()
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 96000).astype(np.float32)
    write_clip(folder / "film.mkv", frames, 25.0, samples)
    write_clip(folder / "mute.mkv", frames, 25.0)
    return folder


def clip(root: Path, name: str, video: str, **changes: object) -> Item:
    item = Item(
        id=name,
        video=video,
        pairing="synchronised",
        task="clip",
        modality="audio-visual",
        split="train",
        work_id=name,
        creator_id=name,
        source="films",
        license="CC0-1.0",
        sha256=content_sha256([root / "film.mkv"]),
    )
    return replace(item, **changes)


def manifest(root: Path, *items: Item) -> ManifestClips:
    file = root / "m.jsonl"
    write_manifest(file, items)
    return ManifestClips(file, root, "train", FRONT_END.windows.frame_hop_s)


def test_a_window_is_that_of_the_whole_film_at_its_place(root: Path) -> None:
    source = manifest(root, clip(root, "a", "film.mkv", t0=1.0, t1=5.8), clip(root, "b", "film.mkv"))
    whole = load_clip(Media(video="film.mkv"), root)
    for index in range(2):
        window = source.window(index, 3, SPAN_S)
        begin_s = (source.item(index).t0 or 0.0) + window.start_s
        assert begin_s + SPAN_S <= (source.item(index).t1 or 6.0) + 1e-6
        ours = window.inputs("audio-visual", FRONT_END)
        assert len(ours.pixels) == FRONT_END.windows.frames
        expected = [
            whole.frames[np.searchsorted(whole.frame_times_s, t + 1e-6) - 1]
            for t in begin_s + SPAN_S - 0.4 * np.arange(8)[::-1]
        ]
        shown = [(frame[0].mean() + 1) * 127.5 for frame in ours.pixels]
        np.testing.assert_allclose(shown, [frame.mean() for frame in expected], atol=1.1)
        part = load_clip(Media(video="film.mkv", t0=begin_s, t1=begin_s + SPAN_S), root)
        theirs = window_at(part, SPAN_S, "audio-visual", FRONT_END)
        np.testing.assert_array_equal(ours.pixels, theirs.pixels)
        np.testing.assert_array_equal(ours.log_mel, theirs.log_mel)


def test_sample_i_depends_on_the_seed_and_i_alone(root: Path) -> None:
    source = manifest(root, *(clip(root, str(k), "film.mkv", t0=k / 100) for k in range(4)))
    there = pickle.loads(pickle.dumps(source))
    starts = [source.window(k, 0, SPAN_S).start_s for k in range(4)]
    assert [there.window(k, 0, SPAN_S).start_s for k in (3, 2, 1, 0)] == starts[::-1]
    assert len({*starts, *(source.window(k, 1, SPAN_S).start_s for k in range(4))}) == 8


def test_few_frames_are_kept_of_a_window(root: Path) -> None:
    window = manifest(root, clip(root, "a", "film.mkv")).window(0, 0, SPAN_S)
    assert len(window.clip.frames) <= round(SPAN_S / FRONT_END.windows.frame_hop_s) + 2 < 25 * SPAN_S


def test_of_several_questions_about_a_video_one_is_a_clip(root: Path) -> None:
    items = [clip(root, "1", "film.mkv"), clip(root, "2", "film.mkv"), clip(root, "3", "film.mkv", t1=4.0)]
    image = replace(clip(root, "4", "film.mkv"), video=None, image="x.png", modality="visual")
    assert [manifest(root, *items, image).item(k).id for k in range(2)] == ["1", "3"]


@pytest.mark.parametrize(
    ("video", "changes", "reason"),
    [
        ("mute.mkv", {}, "it has no sound"),
        ("film.mkv", {"t0": 4.5}, r"it lasts 1\.5 s, a window 3\.1 s"),
        ("gone.mkv", {}, "gone.mkv does not exist below the media root"),
    ],
)
def test_a_clip_that_fills_no_window_is_damaged(
    root: Path, video: str, changes: dict[str, object], reason: str
) -> None:
    with pytest.raises(MediaError, match=reason):
        manifest(root, clip(root, "a", video, **changes)).window(0, 0, SPAN_S)


def test_a_link_out_of_the_media_root_is_not_followed(root: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link.mkv").symlink_to(root / "film.mkv")
    write_manifest(tmp_path / "m.jsonl", [clip(root, "a", "link.mkv")])
    source = ManifestClips(tmp_path / "m.jsonl", tmp_path / "in", "train", 0.1)
    with pytest.raises(MediaError, match="leaves the media root through a link"):
        source.window(0, 0, SPAN_S)


def test_every_line_is_checked_and_problems_have_their_numbers(root: Path) -> None:
    good = clip(root, "a", "film.mkv")
    lines = [good.to_json(), "{", good.to_json(), replace(good, id="b", split="test").to_json()]
    file = root / "bad.jsonl"
    file.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError) as refused:
        ManifestClips(file, root, "train", 0.1)
    text = str(refused.value)
    assert "line 2: not JSON" in text
    assert "line 3: its id was used in line 1" in text
    assert "line 4: its work_id is in another split in line 3" in text
    file.write_bytes(b"\xff\n")
    with pytest.raises(UserError, match="byte 0 is not UTF-8"):
        ManifestClips(file, root, "train", 0.1)
    file.write_text(json.dumps(json.loads(good.to_json()) | {"split": "test"}) + "\n")
    with pytest.raises(UsageError, match="no clip with pictures and sound of split 'train'"):
        ManifestClips(file, root, "train", 0.1)


def test_procedural_art_is_a_source_like_any_other() -> None:
    source = open_clips("art:3", Path(), FRONT_END, "validation")
    assert isinstance(source, ArtClips)
    window = source.window(1, 0, SPAN_S)
    work = sample_work(work_seed("validation", 1))
    assert (window.item.label, window.item.valence) == (work.content, work.valence)
    inputs = window.inputs("audio-visual", FRONT_END)
    assert len(inputs.pixels) == 8
    np.testing.assert_array_equal(window.clip.frames[-1], draw_frame(work, window.start_s + SPAN_S))
    whole = synthesize(work, window.start_s + SPAN_S)
    assert window.clip.samples is not None
    np.testing.assert_allclose(window.clip.samples, whole[-len(window.clip.samples) :], atol=2e-2)


def test_several_sources_are_one_and_a_stream_is_alone(root: Path) -> None:
    films = manifest(root, clip(root, "a", "film.mkv"))
    both = open_all(["art:2", str(root / "m.jsonl")], root, FRONT_END)
    assert isinstance(both, JoinedClips)
    assert (len(both), both.procedural) == (3, False)
    assert both.item(2) == films.item(0)
    assert both.window(2, 0, SPAN_S).start_s == films.window(0, 0, SPAN_S).start_s
    with pytest.raises(IndexError):
        both.item(3)
    with pytest.raises(UsageError, match="is a stream, which can only be"):
        open_all(["art:2", "pipe:cat x.tar"], root, FRONT_END)
    with pytest.raises(UsageError, match=r"art:N takes a number of works"):
        open_clips("art:none", Path(), FRONT_END)


def test_a_source_says_what_it_depends_on(root: Path) -> None:
    one = manifest(root, clip(root, "a", "film.mkv")).identity
    assert manifest(root, clip(root, "a", "film.mkv", t0=0.5)).identity != one
    sources: list[ClipSource] = [ArtClips(n, "train", FRONT_END.windows) for n in (1, 2)]
    assert sources[0].identity != sources[1].identity
