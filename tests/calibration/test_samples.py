"""Calibration windows: seeded, with coverage, of the training split only, and disjoint from judging ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from calibration.samples import (
    EXTREMES,
    content_hash,
    coverage,
    manifest_samples,
    procedural_samples,
    refuse_overlap,
    training_items,
)
from export.int8.material import judging_clips
from tests.tiny import tiny_config
from vaemotion.contract.emotions import EMOTIONS
from vaemotion.contract.errors import UserError
from vaemotion.contract.front_end import FrontEnd
from vaemotion.data.art.build import build_procedural
from vaemotion.data.manifest.manifest import read_manifest

CONFIG = tiny_config()
FRONT_END = FrontEnd(CONFIG.log_mel, CONFIG.image, CONFIG.windows)


def test_every_emotion_silence_noise_and_darkness_are_covered() -> None:
    samples = list(procedural_samples(FRONT_END, 72))
    report = coverage(samples)
    assert report["missing_emotions"] == []
    assert min(report["emotions"].values()) >= 8
    assert sum(report["emotions"].values()) == 72
    assert report["kinds"] == {"scene": 72, **dict.fromkeys(EXTREMES, 8)}
    dark = [s.inputs.pixels for s in samples if s.kind == "darkness"]
    assert all((pixels == pixels.min()).all() for pixels in dark)
    silent = next(s for s in samples if s.kind == "silence")
    assert (
        silent.inputs.log_mel.std() < 0.1 * next(s for s in samples if s.kind == "scene").inputs.log_mel.std()
    )


def test_the_same_seed_gives_the_same_windows_and_another_gives_others() -> None:
    first, again, other = (list(procedural_samples(FRONT_END, 12, seed)) for seed in (0, 0, 1))
    assert [s.sha256 for s in first] == [s.sha256 for s in again]
    np.testing.assert_array_equal(first[3].inputs.pixels, again[3].inputs.pixels)
    assert not {s.sha256 for s in first} & {s.sha256 for s in other}


def test_windows_that_judge_are_refused_as_calibration() -> None:
    judged = [content_hash(clip) for _, clip in judging_clips(FRONT_END, 12)]
    samples = list(procedural_samples(FRONT_END, 12))
    refuse_overlap(samples, judged)
    with pytest.raises(
        UserError, match=r"1 calibration windows have the same content as windows that judge the export"
    ):
        refuse_overlap(samples, [*judged, samples[0].sha256])


def test_every_judging_window_is_whole() -> None:
    for _, clip in judging_clips(FRONT_END, 4):
        assert len(clip.frames) == FRONT_END.windows.frames
        assert clip.samples is not None
        assert len(clip.samples) >= FRONT_END.filled_audio_window_s * 16000


def test_a_manifest_calibrates_with_its_training_split_only(tmp_path: Path) -> None:
    for split in ("test", "train"):
        build_procedural(tmp_path / split, split, 3, 0)
    with pytest.raises(UserError, match="no item in its split 'train'"):
        training_items(tmp_path / "test" / "manifest.jsonl", tmp_path / "test", 4)
    manifest = tmp_path / "train" / "manifest.jsonl"
    items = training_items(manifest, manifest.parent, 6)
    samples = list(manifest_samples(items, manifest.parent, FRONT_END))
    assert len(samples) == 6 + len(EXTREMES) * 2
    assert {s.emotion for s in samples if s.kind == "scene"} <= set(EMOTIONS)
    assert {item.split for item in read_manifest(manifest, manifest.parent)} == {"train"}
