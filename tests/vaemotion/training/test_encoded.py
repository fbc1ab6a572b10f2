"""Windows in block files: encoded once, by several processes, without the clips that cannot be decoded."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny import tiny_model
from vaemotion.contract.audio import SAMPLE_RATE_HZ, StreamingWindow
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.front_end import SILENT_PADDING, ZERO_PADDING, FrontEnd
from vaemotion.contract.media.files import MediaError
from vaemotion.data.clips.of_art import ArtClips
from vaemotion.data.clips.source import ClipWindow, DamagedClip, window_span_s
from vaemotion.training import encoded
from vaemotion.training.encoded import EncodedWindows, Prepared, Windows, WindowStore, encode_all, heard_s

MODEL = tiny_model(audio=False, adapter=False)
FRONT_END = MODEL.config.front_end


class Damaged(ArtClips):
    """Procedural works of which some cannot be decoded."""

    def __init__(self, count: int, damaged: set[int]) -> None:
        super().__init__(count, "train", FRONT_END.windows)
        self.damaged = damaged

    def window(self, index: int, seed: int, span_s: float) -> ClipWindow:
        if index in self.damaged:
            raise MediaError("it is cut off")
        return super().window(index, seed, span_s)


class Stream:
    """The works of a source, each once."""

    name, identity = "a stream", "s"

    def __init__(self, source: ArtClips) -> None:
        self.source, self.read = source, 0

    def windows(self, seed: int, span_s: float) -> Iterator[ClipWindow | DamagedClip]:
        for index in range(len(self.source)):
            self.read += 1
            try:
                yield self.source.window(index, seed, span_s)
            except MediaError as error:
                yield DamagedClip(f"clip {index}", str(error))


def store(folder: Path, source: object, keep: bool = True, base: str = "a") -> WindowStore:
    return WindowStore(Windows(source, FRONT_END, 0), base, folder, keep)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoded, "BLOCK", 4)


def test_windows_are_encoded_once_for_each_base_in_any_process(tmp_path: Path) -> None:
    source = ArtClips(6, "train", FRONT_END.windows)
    first = encode_all(MODEL, store(tmp_path, source), 0)
    assert first.visual_tokens(range(6), 4).shape == (6, 16, 64)
    assert first.log_mels(range(6)).shape == (6, 50, 32)
    another = tiny_model(audio=False, adapter=False, seed=9)
    again = encode_all(another, store(tmp_path, source), 0)
    assert torch.equal(
        first.visual_tokens(range(6), 4), again.visual_tokens(range(6), 4)
    )  # read, not computed
    in_workers = encode_all(MODEL, store(tmp_path / "workers", source), 2)
    assert torch.equal(first.visual_tokens(range(6), 4), in_workers.visual_tokens(range(6), 4))
    other = encode_all(another, store(tmp_path, source, base="b"), 0)
    assert not torch.equal(first.visual_tokens([0], 4), other.visual_tokens([0], 4))
    assert torch.equal(first.log_mels(range(6)), other.log_mels(range(6)))
    there = pickle.loads(pickle.dumps(first))
    assert torch.equal(there.pictures(5, 2), first.pictures(5, 2))
    assert there.item(5) == source.item(5)


def test_a_window_that_is_not_kept_is_decoded_to_the_same(tmp_path: Path) -> None:
    source = ArtClips(3, "train", FRONT_END.windows)
    kept, decoded = (encode_all(MODEL, store(tmp_path, source, keep), 0) for keep in (True, False))
    pixels = decoded.pictures(1, 2)
    with torch.no_grad():
        tokens = MODEL.vision(pixels)
    torch.testing.assert_close(kept.pictures(1, 2).float(), tokens, atol=2e-3, rtol=2e-3)
    np.testing.assert_allclose(kept.log_mel(1), decoded.log_mel(1), atol=2e-3)
    sizes = [sum(f.stat().st_size for f in s.store.folder.iterdir()) for s in (kept, decoded)]
    assert sizes[1] < sizes[0] / 5


def test_damaged_clips_are_left_out_and_named_and_too_many_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoded, "MOST_DAMAGED", 0.3)
    windows = encode_all(MODEL, store(tmp_path, Damaged(8, {1, 5})), 0)
    assert len(windows) == 6
    assert [clip.reason for clip in windows.damaged] == ["it is cut off"] * 2
    assert windows.damaged[0].name == Damaged(8, set()).item(1).id
    assert [windows.item(k).id for k in range(6)] == [
        Damaged(8, set()).item(k).id for k in (0, 2, 3, 4, 6, 7)
    ]
    monkeypatch.setattr(encoded, "MOST_DAMAGED", 0.05)
    sentence = r"2 of 8 clips cannot be used, more than 5%; .* \(procedural-\d+: it is cut off"
    with pytest.raises(UserError, match=sentence):
        encode_all(MODEL, store(tmp_path / "other", Damaged(8, {1, 5})), 0)


def test_a_run_ends_early_where_nothing_can_be_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoded, "_FEW", 4)
    with pytest.raises(UserError, match="4 of 4 clips cannot be used"):
        encode_all(MODEL, store(tmp_path, Damaged(400, set(range(400)))), 0)


def test_a_stream_is_read_to_its_end_and_read_past_after_a_kill(tmp_path: Path) -> None:
    source = ArtClips(6, "train", FRONT_END.windows)
    plain = encode_all(MODEL, store(tmp_path, source), 0)
    streamed = encode_all(MODEL, store(tmp_path, Stream(source)), 0)
    assert torch.equal(plain.visual_tokens(range(6), 4), streamed.visual_tokens(range(6), 4))
    files = sorted(streamed.store.folder.iterdir())
    made = [file.stat().st_mtime_ns for file in files]
    files[1].unlink()  # as a kill in the second block leaves it
    again = encode_all(MODEL, store(tmp_path, Stream(source)), 0)
    assert torch.equal(plain.log_mels(range(6)), again.log_mels(range(6)))
    assert files[0].stat().st_mtime_ns == made[0]
    with pytest.raises(UsageError, match=r"can be read once only; set align\.keep_tokens=true"):
        store(tmp_path, Stream(source), keep=False)


def test_a_quarter_of_the_windows_has_just_begun_to_fill_in_models_that_pad_with_silence() -> None:
    drawn = np.array([heard_s(index, FRONT_END, 0) for index in range(400)])
    filling = drawn[np.isfinite(drawn)]
    assert 0.2 < len(filling) / len(drawn) < 0.3
    windows = FRONT_END.windows
    assert filling.min() >= windows.audio_stride_s
    assert filling.max() <= windows.audio_window_s
    assert (filling < FRONT_END.least_sound_s).any()  # short files, too
    old = replace(FRONT_END, version=ZERO_PADDING)
    assert all(heard_s(index, old, 0) == math.inf for index in range(100))


@pytest.mark.parametrize("version", [ZERO_PADDING, SILENT_PADDING])
@pytest.mark.parametrize("sound_s", [0.15, 0.6, 1.0, math.inf])
def test_a_training_window_is_what_a_device_hears_that_began_then(
    version: int, sound_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    front_end = replace(FRONT_END, version=version)
    monkeypatch.setattr(encoded, "heard_s", lambda *_: sound_s)
    window = ArtClips(5, "train", front_end.windows).window(3, 0, window_span_s(front_end))
    assert window.clip.samples is not None
    heard = window.clip.samples[-round(min(sound_s, window.now_s) * SAMPLE_RATE_HZ) :]
    device = StreamingWindow(front_end.audio_window_frames, front_end.log_mel, front_end.sound_padding)
    for block in np.array_split(heard, 7):
        device.push(block)
    prepared = Windows(None, front_end, 0).prepare(window, 3)  # type: ignore[arg-type]
    assert isinstance(prepared, Prepared)
    np.testing.assert_allclose(prepared.log_mel, device.newest, atol=1e-5)


def test_a_window_with_too_few_frames_is_damaged() -> None:
    window = ArtClips(5, "train", FRONT_END.windows).window(3, 0, window_span_s(FRONT_END))
    late = replace(window.clip, frames=window.clip.frames[2:], frame_times_s=window.clip.frame_times_s[2:])
    found = Windows(None, FRONT_END, 0).prepare(replace(window, clip=late), 3)  # type: ignore[arg-type]
    assert found == DamagedClip(window.item.id, "its pictures begin 2 frames late")


def test_an_empty_store_has_no_window(tmp_path: Path) -> None:
    assert len(EncodedWindows(store(tmp_path, Stream(ArtClips(1, "train", FrontEnd().windows))))) == 0
