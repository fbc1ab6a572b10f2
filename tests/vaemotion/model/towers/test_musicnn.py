"""musicnn, compared with what TensorFlow computed by the published code."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.vaemotion.model.towers.cached_wheels import cached_wheel
from tests.vaemotion.model.towers.musicnn_reference import EACH, FILE, patch, sound
from tests.vaemotion.model.towers.onnx_parity import assert_onnx_computes_the_same
from tests.vaemotion.model.towers.test_tensor_bundle import written
from vaemotion.contract.audio import log_mel
from vaemotion.contract.errors import UsageError
from vaemotion.model import wheels
from vaemotion.model.towers.base import Base
from vaemotion.model.towers.musicnn import FRAMES, GAIN, LOG_MEL, MusicNN, read_published, read_tags

CHECKPOINT = ("musicnn/MSD_musicnn/.index", "musicnn/MSD_musicnn/.data-00000-of-00001")


@pytest.fixture(scope="module")
def published() -> MusicNN:
    wheel = cached_wheel(wheels.MUSICNN)
    index, shard = (wheels.read_member(wheel, name) for name in CHECKPOINT)
    return MusicNN.of(read_published(index, shard))


def heard() -> np.ndarray:
    """Return the log-mel of the reference's sound, (187, 96)."""
    return log_mel(sound(), LOG_MEL)[:FRAMES]


def test_the_log_mel_is_librosas() -> None:
    compressed = np.log10(GAIN * np.exp(heard()) + 1)
    difference = np.abs(compressed[::EACH] - np.load(FILE)["log_mel"])
    print(f"\nlog-mel: max {difference.max():.2e}")
    assert difference.max() <= 1e-5


def test_the_forward_is_tensorflows(published: MusicNN) -> None:
    """Of an input that no sound has, and of a sound through our own log-mel."""
    reference = np.load(FILE)
    with torch.inference_mode():
        of_patch = published.of_compressed(torch.from_numpy(patch())[None])
        of_sound = published(torch.from_numpy(heard())[None])
    for row, outputs in enumerate((of_patch, of_sound)):
        for name, ours in zip(MusicNN.outputs, outputs, strict=True):
            expected = reference[name][row]
            scale = max(1.0, np.abs(expected).max())
            difference = np.abs(ours[0].numpy() - expected).max()
            print(f"\n{name}: max {difference:.2e}, largest value {scale:.3g}")
            assert difference <= 1e-5 * scale


def test_what_is_stored_as_float16_gives_the_same_tags(published: MusicNN, base: Base) -> None:
    stored = MusicNN.of(base.tower("musicnn"))
    given = torch.from_numpy(heard())[None]
    with torch.inference_mode():
        difference = (stored(given)[3] - published(given)[3]).abs().max()
    assert difference <= 1e-3


def test_onnx_runtime_computes_the_same(base: Base, tmp_path: Path) -> None:
    tower = MusicNN.of(base.tower("musicnn"))
    assert_onnx_computes_the_same(tower, torch.from_numpy(heard())[None], tmp_path / "musicnn.onnx")


def test_silence_has_finite_outputs(published: MusicNN) -> None:
    silence = torch.from_numpy(log_mel(np.zeros(FRAMES * LOG_MEL.hop_samples, np.float32), LOG_MEL))[None]
    with torch.inference_mode():
        assert all(output.isfinite().all() for output in published(silence))


def test_tags_have_the_published_names_and_files_are_not_run(tmp_path: Path) -> None:
    configuration = wheels.read_member(cached_wheel(wheels.MUSICNN), "musicnn/configuration.py")
    tags = read_tags(configuration)
    assert (tags[:3], tags[-1]) == (("rock", "pop", "alternative"), "happy")
    attack = f"MSD_LABELS = __import__('os').mkdir({str(tmp_path / 'ran')!r})"
    for wrong in (b"MSD_LABELS = ['rock']", b"MSD_LABELS = [", attack.encode(), b"", b"\xff\0"):
        with pytest.raises(UsageError, match=r"configuration.py"):
            read_tags(wrong)
    assert not (tmp_path / "ran").exists()


def test_another_checkpoint_is_refused_by_name() -> None:
    """The optimizer's state is known and left out."""
    state = {"beta1_power": np.zeros(1, "<f4"), "conv2d/kernel/Adam": np.zeros(1, "<f4")}
    with pytest.raises(UsageError, match="lacks 'conv2d/kernel'"):
        read_published(*written(state))
