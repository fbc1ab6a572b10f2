"""Shards written from a manifest: what webdataset and our own reader find in them."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import numpy as np
import pytest
import torch.utils.data  # noqa: F401  # what webdataset needs
import webdataset

from tests.vaemotion.data.films import film, film_mp4
from vaemotion.cli.main import main
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.front_end import FrontEnd, window_at
from vaemotion.contract.windows import EPSILON_S
from vaemotion.data.build_clips import ClipsOptions, build_clips
from vaemotion.data.clips.of_shards import ShardClips
from vaemotion.data.clips.source import window_span_s
from vaemotion.data.manifest.item import Item
from vaemotion.data.manifest.loader import Media, load_clip
from vaemotion.data.manifest.manifest import read_manifest
from vaemotion.data.shard import ShardOptions, write_shards

FRONT_END = FrontEnd()
SPAN_S = window_span_s(FRONT_END)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write six films, and a manifest of their clips of 4 s."""
    folder = tmp_path_factory.mktemp("videos")
    for number in range(5):
        film(folder / f"film {number}.mkv", 9.0, number)
    film_mp4(folder / "long.mp4", 13.0, 5)
    options = ClipsOptions(license="CC0-1.0", clip_s=4.0, validation=0.2, test=0.2)
    build_clips(folder, folder / "clips.jsonl", None, options)
    return folder


@pytest.fixture(scope="module")
def shards(root: Path) -> Path:
    out = root / "shards"
    write_shards(root / "clips.jsonl", out, root, ShardOptions(samples_per_shard=3))
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("[!.]*")}


def test_a_window_is_the_same_as_that_of_the_manifest(root: Path, shards: Path):
    items = {item.id: item for item in read_manifest(root / "clips.jsonl", root)}
    seen: list[str] = []
    for split in ("train", "validation", "test"):
        clips = ShardClips.open(str(shards), split)
        for number in range(len(clips)):
            window = clips.window(number, 1, SPAN_S)
            item = items[window.item.id]
            assert (window.item.split, window.item.work_id) == (split, item.work_id)
            assert window.item.sha256 != item.sha256
            begin_s = item.t0 + window.start_s
            whole = load_clip(Media(video=item.video, t0=begin_s, t1=begin_s + SPAN_S + EPSILON_S), root)
            wanted = window_at(whole, SPAN_S, "audio-visual", FRONT_END)
            got = window.inputs("audio-visual", FRONT_END)
            np.testing.assert_array_equal(got.pixels, wanted.pixels)
            exact = item.video.endswith(".mkv")
            assert np.abs(got.log_mel - wanted.log_mel).mean() <= (0.0 if exact else 0.005)
            seen.append(item.id)
    assert sorted(seen) == sorted(items)


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",  # of webdataset's reader
)
def test_webdataset_itself_reads_them(root: Path, shards: Path):
    names = sorted(str(file) for file in shards.glob("*.tar"))
    samples = list(webdataset.WebDataset(names, shardshuffle=False))
    items = read_manifest(root / "clips.jsonl", root)
    assert sorted(json.loads(sample["json"])["id"] for sample in samples) == sorted(item.id for item in items)
    for sample in samples:
        values = json.loads(sample["json"])
        key, _, suffix = values["video"].rpartition(".")
        assert key == sample["__key__"]
        assert sample[suffix][4:8] == b"ftyp" or sample[suffix][:4] == b"\x1aE\xdf\xa3"
    del samples
    gc.collect()


def test_a_killed_run_goes_on_and_leaves_the_same_bytes(root: Path, shards: Path, tmp_path: Path):
    whole = contents(shards)
    assert len([name for name in whole if name.startswith("train")]) >= 2
    kept = ("shards.json", "train-000000.tar")
    for name in kept:
        (tmp_path / name).write_bytes(whole[name])
    (tmp_path / ".train-000001.tar.123.abc.tmp").write_bytes(b"half of a shard")
    written = (tmp_path / "train-000000.tar").stat().st_mtime_ns
    write_shards(root / "clips.jsonl", tmp_path, root, ShardOptions(samples_per_shard=3))
    assert contents(tmp_path) == whole
    assert (tmp_path / "train-000000.tar").stat().st_mtime_ns == written
    with pytest.raises(UserError, match="with other options"):
        write_shards(root / "clips.jsonl", tmp_path, root, ShardOptions(samples_per_shard=4))


def test_a_shard_is_closed_before_it_grows_too_large(root: Path, tmp_path: Path):
    write_shards(root / "clips.jsonl", tmp_path, root, ShardOptions(max_mb=0.5))
    sizes = [file.stat().st_size for file in tmp_path.glob("train-*.tar")]
    assert len(sizes) > 1
    assert max(sizes) < 0.6e6
    with pytest.raises(UsageError, match="--samples-per-shard"):
        ShardOptions(samples_per_shard=0)


def test_clips_are_encoded_again_only_when_asked(root: Path, tmp_path: Path):
    write_shards(root / "clips.jsonl", tmp_path, root, ShardOptions(re_encode=True))
    items = {item.id: item for item in read_manifest(root / "clips.jsonl", root)}
    clips = ShardClips.open(str(tmp_path), "train")
    item = clips.item(0)
    assert item.t0 == 0.0
    assert item.video.endswith(".mkv")
    window = clips.window(0, 0, SPAN_S)
    begin_s = items[item.id].t0 + window.start_s
    whole = load_clip(Media(video=items[item.id].video, t0=begin_s, t1=begin_s + SPAN_S), root)
    assert np.abs(window.clip.samples[:48000] - whole.samples[:48000]).max() < 1e-3
    first, again = (np.stack(clip.frames[5:25]).astype(int) for clip in (whole, window.clip))
    assert np.abs(first - again).mean() < 4


def test_damaged_media_are_left_out_and_named(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    items: list[Item] = read_manifest(root / "clips.jsonl", root)
    folder = tmp_path / "media"
    folder.mkdir()
    for name in {item.video for item in items}:
        (folder / name).symlink_to(root / name)
    lines = (root / "clips.jsonl").read_text()
    (folder / "clips.jsonl").write_text(lines)
    # A link out of the media root is refused for every file.
    with pytest.raises(UserError, match="leaves the media root through a link"):
        write_shards(folder / "clips.jsonl", tmp_path / "out", folder, ShardOptions())
    for name in {item.video for item in items}:
        (folder / name).unlink()
        (folder / name).write_bytes((root / name).read_bytes())
    broken = next(
        item for item in items if item.split == "train" and sum(i.work_id == item.work_id for i in items) < 3
    )
    (folder / broken.video).write_bytes(b"no film")
    with pytest.raises(UserError, match=f"{broken.video}.*repair them or take them out"):
        write_shards(folder / "clips.jsonl", tmp_path / "out2", folder, ShardOptions())


def test_the_commands_from_a_folder_of_videos_to_shards(root: Path, tmp_path: Path, capsys):
    manifest, out = root / "by command.jsonl", tmp_path / "shards"
    build = ["data", "build", "clips", "--from", str(root), "--out", str(manifest), "--clip-s", "4"]
    assert main(build) == 2
    assert "--license is missing" in capsys.readouterr().err
    assert (
        main([*build, "--license", "CC0-1.0", "--validation", "0", "--test", "0.2", "--source", "mine"]) == 0
    )
    assert {item.source for item in read_manifest(manifest, root)} == {"mine"}
    shard = ["data", "shard", str(manifest), "--to", str(out), "--media-root", str(root)]
    assert main([*shard, "--samples-per-shard", "5"]) == 0
    assert sorted(file.name for file in out.glob("*.tar")) == [
        "test-000000.tar",
        "train-000000.tar",
        "train-000001.tar",
        "train-000002.tar",
    ]
    assert main(["data", "shard", str(tmp_path / "none.jsonl"), "--to", str(out), "--media-root", "."]) == 1
    assert "is not a file" in capsys.readouterr().err
