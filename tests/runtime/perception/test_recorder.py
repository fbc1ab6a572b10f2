"""A recording in float16 gives the readings of its run, wide tokens and older recordings as well."""

from __future__ import annotations

import errno
import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest

from runtime.messages import Reading
from runtime.perception.perception import Perception
from runtime.perception.recorder import FeatureRecorder, PartLimits, RecordingError, as_recorded
from runtime.perception.replay import AudioTokens, FrameTokens, read_recording, replay
from runtime.sinks.jsonl import JsonLines
from tests.runtime.perception.stub_predictor import stub_predictor
from vaemotion.contract.errors import UsageError

SHA256 = "0" * 64
CONSTANTS = stub_predictor().constants


def run(recorder: FeatureRecorder, moments: range, scale: float = 1.0) -> list[Reading]:
    """Give perception tokens of no few digits, and return its readings."""
    perception, random = Perception(stub_predictor(), recorder), np.random.default_rng(5)
    readings: list[Reading] = []
    for moment in moments:
        visual = random.standard_normal((CONSTANTS.tokens_per_frame, CONSTANTS.token_width)) / 3
        audio = random.standard_normal((CONSTANTS.audio_tokens, CONSTANTS.token_width)) / 3
        if moment % 5 == 3:
            perception.repeat_frame(moment)
        else:
            perception.add_frame_tokens(moment, (scale * visual).astype(np.float32), moment / 10)
        perception.add_audio_tokens(moment / 10, (scale * audio).astype(np.float32), 3.0)
        evidence = perception.read(moment / 10)
        assert evidence is not None
        readings.append(evidence.reading)
    return readings


def replayed(file: Path) -> list[Reading]:
    return [evidence.reading for evidence in replay(file, SHA256, Perception(stub_predictor()))]


@pytest.mark.parametrize(("scale", "bytes_per_value"), [(1.0, 2), (1e6, 4)])
def test_tokens_take_two_bytes_where_float16_holds_them_and_the_replay_is_exact(
    tmp_path: Path, scale: float, bytes_per_value: int
) -> None:
    recorder = FeatureRecorder(tmp_path / "features", SHA256, CONSTANTS)
    readings = run(recorder, range(40), scale)
    recorder.close()
    assert replayed(tmp_path / "features") == readings
    sizes = {
        json.loads(line)["bytes"] // CONSTANTS.token_width
        for line in (tmp_path / "features").read_bytes().split(b"\n")
        if b'"kind": "picture"' in line
    }
    assert sizes == {bytes_per_value * CONSTANTS.tokens_per_frame}


def test_rounded_tokens_are_within_float16_s_precision() -> None:
    tokens = np.random.default_rng(1).standard_normal((100, 8)).astype(np.float32)
    assert np.abs(as_recorded(tokens) / tokens - 1).max() <= 2**-11
    np.testing.assert_array_equal(as_recorded(as_recorded(tokens)), as_recorded(tokens))


def test_a_recording_in_float32_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    recorder = FeatureRecorder(tmp_path / "new", SHA256, CONSTANTS)
    readings = run(recorder, range(20))
    recorder.close()
    header, *_ = (tmp_path / "new").read_bytes().split(b"\n", 1)
    old = json.loads(header) | {"schema": 1, "dtype": "<f4"}
    content = json.dumps(old).encode() + b"\n"
    for record in read_recording(tmp_path / "new", SHA256, CONSTANTS):
        values = dict(record.__dict__)
        tokens = values.pop("tokens", None)
        if isinstance(record, FrameTokens):
            values = {"kind": "picture", **values}
        elif isinstance(record, AudioTokens):
            values = {"kind": "sound", "heard_s": record.end_s, "sound_s": record.sound_s}
        else:
            values = {"kind": "read" if "now_s" in values else "still", **values}
        data = b"" if tokens is None else tokens.astype("<f4").tobytes()
        if data:
            values |= {"bytes": len(data), "crc32": zlib.crc32(data)}
        content += json.dumps(values).encode() + b"\n" + data
    (tmp_path / "old").write_bytes(content)
    assert replayed(tmp_path / "old") == readings


def test_a_part_that_cannot_be_followed_by_another_does_not_grow(tmp_path: Path) -> None:
    file = tmp_path / "features"
    recorder = FeatureRecorder(file, SHA256, CONSTANTS, PartLimits(20_000, 3))
    (tmp_path / "features.new").mkdir()  # in the way of the next part
    readings = run(recorder, range(150))
    assert file.stat().st_size < 21_000
    recorded = len(readings) - recorder.losses.count
    assert 0 < recorded < 150
    assert recorder.losses.sentence(0.0) == (
        f"recorded readings lost so far: {150 - recorded} (cannot write to features: Is a directory)"
    )
    (tmp_path / "features.new").rmdir()
    later = run(recorder, range(150, 200))
    recorder.close()
    assert replayed(tmp_path / "features.1") == readings[:recorded]
    assert replayed(file) == later


def test_what_was_forgotten_while_nothing_could_be_written_stays_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    recorder = FeatureRecorder(tmp_path / "features", SHA256, CONSTANTS, PartLimits())
    perception = Perception(stub_predictor(), recorder)
    perception.add_audio_tokens(
        0.1, np.ones((CONSTANTS.audio_tokens, CONSTANTS.token_width), np.float32), 3.0
    )
    for index, lost in ((1, False), (2, True), (3, False)):
        tokens = np.full((CONSTANTS.tokens_per_frame, CONSTANTS.token_width), index / 8, np.float32)
        with monkeypatch.context() as patch:
            if lost:
                patch.setattr(recorder._file, "write", full)
                perception.forget_sound()
            perception.add_frame_tokens(index, tokens, index / 10)
            evidence = perception.read(index / 10)
    recorder.close()
    assert evidence is not None
    assert recorder.losses.count == 1
    first, third = replayed(tmp_path / "features")
    assert (first.path, third) == ("audio-visual", evidence.reading)
    assert third.path == "visual"


def test_a_pooled_recording_holds_mean_tokens_and_is_not_replayed(tmp_path: Path) -> None:
    for name, pooled in (("whole", False), ("pooled", True)):
        recorder = FeatureRecorder(tmp_path / name, SHA256, CONSTANTS, pooled=pooled)
        run(recorder, range(20))
        recorder.close()
    with pytest.raises(RecordingError, match="pooled holds pooled tokens, of which no reading can be made"):
        replayed(tmp_path / "pooled")
    whole = read_recording(tmp_path / "whole", SHA256, CONSTANTS)
    pooled_records = list(read_recording(tmp_path / "pooled", SHA256, CONSTANTS, pooled=True))
    for record, mean in zip(whole, pooled_records, strict=True):
        assert type(record) is type(mean)
        if isinstance(record, FrameTokens | AudioTokens):
            assert mean.tokens.shape == (1, CONSTANTS.token_width)
            np.testing.assert_allclose(mean.tokens, record.tokens.mean(0, keepdims=True), atol=1e-3)


def test_a_recording_is_not_taken_for_a_timeline(tmp_path: Path) -> None:
    recorder = FeatureRecorder(tmp_path / "features", SHA256, CONSTANTS)
    run(recorder, range(3))
    recorder.close()
    for live in (True, False):
        with pytest.raises(UsageError, match="exists and is not a timeline"):
            JsonLines(str(tmp_path / "features"), live=live)
    assert len(replayed(tmp_path / "features")) == 3
