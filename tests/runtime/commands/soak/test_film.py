"""The recordings that a soak's simulated devices deliver: read from files, or generated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runtime.commands.soak.film import make_recording, read_recording
from tests.media import tone, write_wav, write_work
from vaemotion.contract.media.files import MediaError


def test_recordings_are_read_from_files_or_generated(tmp_path: Path) -> None:
    film = read_recording(
        [write_work(tmp_path / "a.mkv", 2.0), write_wav(tmp_path / "b.wav", tone(1.0), 16_000)], 24
    )
    assert film.frames.shape == (20, 24, 24, 3)
    assert len(film.samples) == pytest.approx(3 * 16_000, abs=400)
    with pytest.raises(MediaError, match=r"--media: no video frames in .*; add a file that has some"):
        read_recording([tmp_path / "b.wav"], 24)
    made = make_recording(500, seed=1, duration_s=10)
    assert made.frames.shape == (100, 160, 160, 3)
    assert made.samples.shape == (160_000,)
    assert np.abs(made.samples).max() <= 1.01
    assert made.frames.std() > 10
