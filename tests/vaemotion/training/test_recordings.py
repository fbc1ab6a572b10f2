"""Recordings for stage 1: read with their label, and heard in many ways."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.rated import item, write_sound
from vaemotion.contract.audio import LogMelConfig
from vaemotion.contract.errors import UsageError
from vaemotion.contract.front_end import FrontEnd
from vaemotion.data.manifest.manifest import write_manifest
from vaemotion.training.recordings import read_recordings, strong_augmentation

FRONT_END = FrontEnd(log_mel=LogMelConfig(n_mels=32))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two recordings, the first a bang with silence behind it."""
    folder = tmp_path_factory.mktemp("media")
    rng = np.random.default_rng(0)
    write_sound(folder / "bang.flac", np.concatenate([rng.uniform(-0.5, 0.5, 8000), np.zeros(72000)]))
    write_sound(folder / "hum.flac", 0.3 * np.sin(np.arange(20000) * 0.2))
    recording = {
        "pairing": "matched",
        "task": "content",
        "question": "What is this?",
        "modality": "audio",
        "construct": None,
        "source": "r",
    }
    bang = item(folder, "bang", audio="bang.flac", answer="dog bark", **recording)
    hum = item(folder, "hum", audio="hum.flac", answer="rain", **{**recording, "split": "test"})
    write_manifest(folder / "recordings.jsonl", [bang, hum])
    return folder


def test_only_the_training_split_is_read(root: Path) -> None:
    [bang] = read_recordings(root / "recordings.jsonl", root, FRONT_END)
    assert bang.label == "dog bark"
    assert bang.log_mel.shape[1] == 32
    [hum] = read_recordings(root / "recordings.jsonl", root, FRONT_END, "test")
    assert len(hum.log_mel) == FRONT_END.audio_window_frames  # shorter than a window: silence behind it
    with pytest.raises(UsageError, match="no item of split 'validation'"):
        read_recordings(root / "recordings.jsonl", root, FRONT_END, "validation")


def test_a_recording_may_have_any_label_but_needs_one(root: Path, tmp_path: Path) -> None:
    line = json.loads((root / "recordings.jsonl").read_text().splitlines()[0])
    (tmp_path / "m.jsonl").write_text(json.dumps({**line, "label": "theremin"}) + "\n")
    assert [each.label for each in read_recordings(tmp_path / "m.jsonl", root, FRONT_END)] == ["theremin"]
    del line["answer"], line["question"]
    (tmp_path / "m.jsonl").write_text(json.dumps({**line, "valence": 0.5, "construct": "induced"}) + "\n")
    with pytest.raises(UsageError, match="item 'bang' has no label"):
        read_recordings(tmp_path / "m.jsonl", root, FRONT_END)


def test_strong_augmentation_makes_audible_windows_at_any_position(root: Path) -> None:
    [bang] = read_recordings(root / "recordings.jsonl", root, FRONT_END)
    background = np.full((FRONT_END.audio_window_frames, 32), -12.0, np.float32)
    rng = np.random.default_rng(3)
    windows = np.stack([strong_augmentation(bang, background, rng, FRONT_END) for _ in range(30)])
    assert windows.shape == (30, 150, 32)
    assert windows.dtype == np.float32
    assert np.isfinite(windows).all()
    loudest = windows.mean(axis=2).max(axis=1)
    audible = loudest > 0.2  # the bang: silence would be -1.3
    assert audible.mean() > 0.9  # in each, unless the masks hide it
    places = windows[audible].mean(axis=2).argmax(axis=1)
    assert np.ptp(places) > 40  # and anywhere
    again = strong_augmentation(bang, background, np.random.default_rng(3), FRONT_END)
    assert np.array_equal(again, windows[0])


def test_recordings_may_be_any_length(root: Path) -> None:
    [bang] = read_recordings(root / "recordings.jsonl", root, FRONT_END)
    short = replace(bang, log_mel=bang.log_mel[:150])
    window = strong_augmentation(short, bang.log_mel[:150], np.random.default_rng(0), FRONT_END)
    assert window.shape == (150, 32)
