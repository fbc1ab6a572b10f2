"""``--keep-media``: frames and sound as files that play, stamped with the run's clock, and bounded."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest

from runtime.messages import Frame, Sound
from runtime.sources.feed import Arrived
from runtime.sources.keep_media import MediaKeeper
from tests.live_peers import until
from tests.media import tone
from vaemotion.contract.errors import UsageError, UserError


def ticks(duration_s: float, noise: bool = False) -> list[Arrived]:
    """Return the input of ticks every 0.1 s; ``noise``: frames that take some kilobytes."""
    sound, arrived = tone(duration_s), []
    for k in range(round(10 * duration_s)):
        rgb = np.full((48, 64, 3), (k * 5 % 250, 100, 50), np.uint8)
        if noise:
            rgb = np.random.default_rng(k).integers(0, 256, (48, 64, 3), np.uint8)
        blocks = [
            Sound(5.0 + k / 10 + j / 100, sound[k * 1600 + (j - 1) * 160 : k * 1600 + j * 160])
            for j in range(1, 11)
        ]
        arrived.append(Arrived(Frame(5.0 + k / 10, lambda rgb=rgb: rgb), blocks))
    return arrived


def keep(keeper: MediaKeeper, arrived: list[Arrived]) -> list[str]:
    """Give the keeper no more than it can write, and return what it told."""
    told: list[str] = []
    for tick in arrived:
        until(lambda: len(keeper._queue) <= 32, "room in the queue", poll_s=0.001)
        told += keeper.take(tick)
    until(lambda: not len(keeper._queue), "an empty queue", poll_s=0.001)
    return told


def frames_of(file: Path) -> list[av.VideoFrame]:
    with av.open(str(file)) as container:
        return list(container.decode(video=0))


def test_frames_and_sound_are_kept_with_their_times(tmp_path: Path) -> None:
    keeper = MediaKeeper(tmp_path / "kept")
    assert keep(keeper, ticks(2.0)) == []
    keeper.close()
    assert keeper.dropped == 0
    frames = frames_of(tmp_path / "kept" / "pictures.mkv")
    assert [round(float(frame.time or 0), 2) for frame in frames] == pytest.approx(
        [5 + k / 10 for k in range(20)]
    )
    middle = frames[7].to_ndarray(format="rgb24")[24, 32]
    assert np.abs(middle.astype(int) - (35, 100, 50)).max() <= 6
    with av.open(str(tmp_path / "kept" / "sound.mkv")) as container:
        blocks = [block.to_ndarray()[0] for block in container.decode(audio=0)]
    heard = np.concatenate(blocks) / 32767
    assert np.abs(heard - tone(2.0)).max() <= 1 / 32767
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "kept").iterdir()} == {0o600}


def test_another_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "film.mkv").write_text("mine")
    with pytest.raises(UsageError, match="holds other files"):
        MediaKeeper(tmp_path)
    with pytest.raises(UserError, match="cannot write to"):
        MediaKeeper(tmp_path / "film.mkv" / "inside")


def test_files_are_bounded_and_a_restart_continues_them(tmp_path: Path) -> None:
    for _ in range(2):
        keeper = MediaKeeper(tmp_path / "kept", max_bytes=20_000, keep=3)
        keep(keeper, ticks(16.0, noise=True))
        keeper.close()
        assert keeper.dropped == 0
    files = sorted((tmp_path / "kept").glob("pictures*"), key=lambda file: file.stat().st_mtime_ns)
    numbers = [int(file.name.split(".")[1]) for file in files]
    assert numbers == list(range(numbers[-1] - 3, numbers[-1] + 1))
    assert numbers[-1] > 5  # the first ones were removed
    a_frame_bytes = 2 * 48 * 64
    assert (
        max(file.stat().st_size for file in files) < 20_000 + 60 * a_frame_bytes
    )  # Matroska writes every 5 s
    times_s = [float(frame.time or 0) for file in files for frame in frames_of(file)]
    assert times_s[-1] == pytest.approx(20.9)
    assert all(frames_of(file) for file in files)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_full_disk_costs_media_until_there_is_room(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]).returncode:
        pytest.skip("no mount in this container")
    try:
        (disk / "others").write_bytes(b"x" * 150_000)
        keeper = MediaKeeper(disk / "kept", retry_s=0.0)
        told = keep(keeper, ticks(6.0, noise=True))
        assert keeper.losses.count > 0
        assert len(told) == 1
        assert told[0].startswith("frames and blocks of sound for --keep-media lost so far: ")
        assert "No space left on device" in told[0]
        (disk / "others").unlink()
        lost = keeper.losses.count
        keep(keeper, ticks(0.5, noise=True))
        keeper.close()
        assert keeper.losses.count <= lost + 1  # the file of the other kind may only now be given up
        newest = max((disk / "kept").glob("pictures*"), key=lambda file: file.stat().st_mtime_ns)
        assert float(frames_of(newest)[-1].time or 0) == pytest.approx(5.4)
        assert len(os.listdir(disk / "kept")) < 12
    finally:
        subprocess.run(["umount", str(disk)], check=True)
