"""``--keep-media``: frames and sound as files that play, stamped with the run's clock."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from runtime.messages import Frame, Sound
from runtime.sources.feed import Arrived
from runtime.sources.keep_media import MediaKeeper
from tests.media import tone
from vaemotion.contract.errors import UsageError, UserError


def ticks(duration_s: float) -> list[Arrived]:
    sound, arrived = tone(duration_s), []
    for k in range(round(10 * duration_s)):
        rgb = np.full((48, 64, 3), (k * 5 % 250, 100, 50), np.uint8)
        blocks = [
            Sound(5.0 + k / 10 + j / 100, sound[k * 1600 + (j - 1) * 160 : k * 1600 + j * 160])
            for j in range(1, 11)
        ]
        arrived.append(Arrived(Frame(5.0 + k / 10, lambda rgb=rgb: rgb), blocks))
    return arrived


def test_frames_and_sound_are_kept_with_their_times(tmp_path: Path) -> None:
    keeper = MediaKeeper(tmp_path / "kept")
    for arrived in ticks(2.0):
        while keeper.dropped == 0 and len(keeper._queue) > 32:
            pass
        keeper.take(arrived)
    keeper.close()
    assert keeper.failure is None
    assert keeper.dropped == 0
    with av.open(str(tmp_path / "kept" / "pictures.mkv")) as container:
        frames = list(container.decode(video=0))
    assert [round(float(frame.time or 0), 2) for frame in frames] == pytest.approx(
        [5 + k / 10 for k in range(20)]
    )
    middle = frames[7].to_ndarray(format="rgb24")[24, 32]
    assert np.abs(middle.astype(int) - (35, 100, 50)).max() <= 6
    with av.open(str(tmp_path / "kept" / "sound.mkv")) as container:
        blocks = [block.to_ndarray()[0] for block in container.decode(audio=0)]
    heard = np.concatenate(blocks) / 32767
    assert np.abs(heard - tone(2.0)).max() <= 1 / 32767


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "film.mkv").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        MediaKeeper(tmp_path)
    with pytest.raises(UserError, match="cannot write to"):
        MediaKeeper(tmp_path / "film.mkv" / "inside")


def test_a_full_disk_ends_the_keeping_and_not_the_run(tmp_path: Path) -> None:
    keeper = MediaKeeper(tmp_path / "kept")
    (tmp_path / "kept" / "pictures.mkv").write_text("in the way")
    for arrived in ticks(0.5):
        keeper.take(arrived)
    keeper.close()
    assert keeper.failure is not None
    assert "no longer kept" in keeper.failure
    keeper.take(ticks(0.1)[0])
