"""Clips of WebDataset shards: by their number, and through a pipe."""

from __future__ import annotations

import json
import os
import pickle
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset

from tests.vaemotion.data.films import film, tar
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.front_end import FrontEnd
from vaemotion.contract.media.files import MediaError
from vaemotion.data.clips.of_shards import PipedClips, ShardClips
from vaemotion.data.clips.open import open_clips
from vaemotion.data.clips.shard_sample import sample_of
from vaemotion.data.clips.source import ClipSource, ClipStream, DamagedClip, window_span_s

FRONT_END = FrontEnd()
SPAN_S = window_span_s(FRONT_END)


def described(number: int) -> bytes:
    return json.dumps({"caption": f"thing {number}", "url": "https://example.org"}).encode()


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("films")
    return [film(folder / f"{number}.mkv", 5.0, number).read_bytes() for number in range(5)]


@pytest.fixture(scope="module")
def shards(films: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write two shards in video2dataset's layout, of three clips and of two."""
    folder = tmp_path_factory.mktemp("animals")
    for shard, numbers in enumerate(((0, 1, 2), (3, 4))):
        members: dict[str, bytes] = {}
        for number in numbers:
            members[f"{number:08d}.mkv"] = films[number]
            members[f"{number:08d}.json"] = described(number)
            members[f"{number:08d}.txt"] = b"a caption"
        tar(folder / f"{shard:05d}.tar", members)
    return folder


class Sounds(Dataset[tuple[str, float]]):
    """Mean absolute sound of each clip's window, by the clip's id."""

    def __init__(self, source: ClipSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[str, float, float]:
        window = self.source.window(index, 7, SPAN_S)
        inputs = window.inputs("audio-visual", FRONT_END)
        return window.item.id, float(np.abs(inputs.log_mel).sum()), float(inputs.pixels.sum())


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_clip_is_the_same_for_any_number_of_workers(shards: Path):
    clips = ShardClips.open(str(shards), "train")
    assert len(clips) == 5
    here = [Sounds(clips)[index] for index in range(5)]
    assert len({sound for _, sound, _ in here}) == 5
    for workers in (1, 3):
        loaded = DataLoader(Sounds(clips), batch_size=None, num_workers=workers)
        assert [tuple(each) for each in loaded] == here


def test_published_shards_say_what_they_know(shards: Path, capsys: pytest.CaptureFixture[str]):
    clips = open_clips(str(shards / "{00000,00001}.tar"), Path(), FRONT_END)
    assert isinstance(clips, ShardClips)
    item = clips.item(3)
    assert (item.id, item.label, item.split, item.source) == ("00000003", "thing 3", "train", shards.name)
    assert (item.task, item.pairing, item.modality) == ("clip", "synchronised", "audio-visual")
    assert item.license == "LicenseRef-unknown"
    assert "no license, split and content hash" in capsys.readouterr().err
    assert clips.window(3, 0, SPAN_S).clip.duration_s >= SPAN_S - 0.1
    with pytest.raises(UsageError, match="no clip of split 'test'"):
        ShardClips.open(str(shards), "test")
    with pytest.raises(UsageError, match=r"no \.tar files"):
        ShardClips.open(str(shards / "*.none.tar"), "train")
    with pytest.raises(UserError, match=r"00007\.tar cannot be read"):
        ShardClips.open(str(shards / "{00000,00007}.tar"), "train")


def test_the_index_is_stored_once_and_made_anew_where_a_shard_changed(films: list[bytes], tmp_path: Path):
    shard = tar(tmp_path / "data" / "a.tar", {"x.mkv": films[0]})
    cache = tmp_path / "cache"
    first = ShardClips.open(str(shard), "train", cache_folder=cache)
    (index,) = cache.iterdir()
    assert [file.name for file in shard.parent.iterdir()] == ["a.tar"]
    written = index.stat().st_mtime_ns
    again = ShardClips.open(str(shard), "train", cache_folder=cache)
    assert again.identity == first.identity
    assert index.stat().st_mtime_ns == written
    os.utime(shard, ns=(1, 1))  # a copy has another time, and the same clips
    assert ShardClips.open(str(shard), "train", cache_folder=cache).identity == first.identity
    tar(shard, {"x.mkv": films[0], "y.mkv": films[1]})
    changed = ShardClips.open(str(shard), "train", cache_folder=cache)
    assert len(changed) == 2
    assert changed.identity != first.identity
    index.write_bytes(b"{}")
    assert len(ShardClips.open(str(shard), "train", cache_folder=cache)) == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_read_only_shards_are_indexed_in_the_users_cache(
    films: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shard = tar(tmp_path / "data" / "a.tar", {"x.mkv": films[0]})
    shard.parent.chmod(stat.S_IRUSR | stat.S_IXUSR)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert len(ShardClips.open(str(shard), "train")) == 1
    shard.parent.chmod(stat.S_IRWXU)
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 1


def test_strange_names_are_read_and_never_written(films: list[bytes], tmp_path: Path):
    outside = tmp_path / "outside.mkv"
    names = ("../outside", str(outside.with_suffix("")), "a b/ü, 1:2", os.fsdecode(b"\xff\xfe"), "__meta__/x")
    members = {f"{name}.mkv": films[0] for name in names} | {".hidden.mkv": b"", "no suffix": b""}
    clips = ShardClips.open(str(tar(tmp_path / "s" / "a.tar", members)), "train")
    assert [clips.item(k).id for k in range(len(clips))] == [*names[:3], "\\xff\\xfe"]
    clips.item(3).to_json().encode()
    sums = {float(clips.window(k, 0, 5.0).inputs("audio", FRONT_END).log_mel.sum()) for k in range(4)}
    assert len(sums) == 1
    assert not outside.exists()


def test_a_truncated_shard_gives_what_precedes_the_damage(
    films: list[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shard = tar(tmp_path / "a.tar", {f"{k}.mkv": films[k] for k in range(3)})
    shard.write_bytes(shard.read_bytes()[: -len(films[2])])
    clips = ShardClips.open(str(shard), "train")
    assert [clips.item(k).id for k in range(len(clips))] == ["0", "1"]
    assert "a.tar is truncated or damaged behind 1.mkv" in capsys.readouterr().err
    (tmp_path / "b.tar").write_bytes(b"no tar file at all" * 100)
    with pytest.raises(UserError, match="not an uncompressed tar file"):
        ShardClips.open(str(tmp_path / "b.tar"), "train")


def test_a_damaged_member_is_named_and_the_others_stay(
    films: list[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    members = {
        "a.mkv": films[0],
        "b.mkv": films[1][: len(films[1]) // 2],
        "c.mkv": b"\0" * 5000,
        "d.mkv": films[2],
        "d.json": b"{broken",
        "e.txt": b"a caption without a clip",
        "f.mkv": films[3],
    }
    clips = ShardClips.open(str(tar(tmp_path / "a.tar", members)), "train")
    assert [clips.item(k).id for k in range(len(clips))] == ["a", "b", "c", "f"]
    err = capsys.readouterr().err
    assert "2 samples left out" in err
    assert "d in a.tar: its JSON cannot be read" in err
    for number, name in ((1, "b"), (2, "c")):
        with pytest.raises(MediaError, match=rf"{name}\.mkv in "):
            clips.window(number, 0, 5.0)
    assert clips.window(3, 0, SPAN_S).item.id == "f"


def test_a_source_in_another_process_is_small_and_the_same(shards: Path):
    clips = ShardClips.open(str(shards), "train", FRONT_END.windows.frame_hop_s)
    sent = pickle.dumps(clips)
    assert len(sent) < 5000
    other = pickle.loads(sent)
    mine, theirs = (source.window(2, 3, SPAN_S) for source in (clips, other))
    assert mine.start_s == theirs.start_s > 0
    np.testing.assert_array_equal(mine.clip.samples, theirs.clip.samples)
    assert clips.window(2, 4, SPAN_S).start_s != mine.start_s


@pytest.mark.parametrize(
    ("suffixes", "texts", "label", "media"),
    [
        (["mp4", "cls"], {"cls": b"12"}, None, ("mp4", None, None)),
        (["mp4", "cls"], {"cls": b"dog\n"}, "dog", ("mp4", None, None)),
        (["mov", "txt"], {"txt": b"a  dog\nbarks"}, "a dog barks", ("mov", None, None)),
        (["json", "mp4", "m4a"], {"json": b'{"youtube_title": "x"}'}, "x", ("mp4", None, "m4a")),
        (["jpg", "flac"], {}, None, (None, "jpg", "flac")),
        (["jpg", "video"], {}, None, ("video", None, None)),
    ],
)
def test_the_members_of_published_layouts(suffixes, texts, label, media):
    sample = sample_of("k", suffixes, texts, "set")
    assert sample.item.label == label
    assert (sample.video, sample.image, sample.audio) == media


def piped(command: str) -> Iterator[str]:
    stream = PipedClips(command)
    assert isinstance(stream, ClipStream)
    for window in stream.windows(0, SPAN_S):
        yield str(window.name) if isinstance(window, DamagedClip) else str(window.item.label)


def test_a_pipe_gives_each_clip_once(shards: Path, capsys: pytest.CaptureFixture[str]):
    assert list(piped(f"cat '{shards}'/0000{{0..1}}.tar")) == [f"thing {k}" for k in range(5)]
    assert capsys.readouterr().err.count("pipe:cat: a stream") == 1


def test_a_pipe_names_what_is_damaged(films: list[bytes], tmp_path: Path):
    shard = tar(tmp_path / "a.tar", {"a.mkv": films[0], "b.mkv": b"\0" * 999, "c.mkv": films[1]})
    found = list(PipedClips(f"head -c {shard.stat().st_size - 30_000} '{shard}'").windows(0, SPAN_S))
    assert found[0].item.id == "a"
    assert [type(each) for each in found[1:]] == [DamagedClip, DamagedClip]
    assert found[1].name == "b"
    assert found[2] == DamagedClip("pipe:head behind sample 2", "unexpected end of data")


@pytest.mark.parametrize(
    "command", ["KEY=secret false", "exit 1", "cat a/file/that/is/not/there", "echo; exit 1"]
)
def test_a_command_that_fails_ends_with_its_exit_code(command: str):
    with pytest.raises(UserError, match=r"ended with exit code 1 after 0 samples") as raised:
        list(piped(command))
    assert "secret" not in str(raised.value)


def test_several_archives_from_one_command_are_refused(shards: Path):
    with pytest.raises(UserError, match="several tar files"):
        list(piped(f"cat '{shards}/00000.tar' '{shards}/00001.tar'"))


def test_a_stream_that_is_left_early_ends_its_command(shards: Path):
    windows = PipedClips(f"cat '{shards}/00000.tar'; sleep 60").windows(0, SPAN_S)
    assert next(windows).item.id == "00000000"
    windows.close()
