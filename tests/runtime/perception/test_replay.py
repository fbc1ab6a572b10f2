"""A recording gives its readings again, bit for bit, and holds no frame and no sample."""

from __future__ import annotations

import json
import os
import resource
import stat
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from runtime.machine.threads import ThreadBudget
from runtime.messages import Sound
from runtime.perception.perception import Evidence, Perception
from runtime.perception.predictor import DevicePredictor, open_predictor
from runtime.perception.recorder import FeatureRecorder, RecordingError
from runtime.perception.replay import Forgotten, FrameTokens, ReadingRequest, read_recording, replay
from tests.tiny import tiny_clip
from vaemotion.contract.bundle import MANIFEST_FILE, sha256_of
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.front_end import Clip


@pytest.fixture(scope="module")
def predictor(small_bundle: Path) -> Generator[DevicePredictor]:
    with open_predictor(small_bundle, threads=ThreadBudget(1, 1)) as opened:
        yield opened


@pytest.fixture(scope="module")
def sha256(small_bundle: Path) -> str:
    return sha256_of(small_bundle / MANIFEST_FILE)


@pytest.fixture(scope="module")
def clip() -> Clip:
    return tiny_clip(4, 2.0)


@pytest.fixture(scope="module")
def recorded(
    predictor: DevicePredictor, sha256: str, clip: Clip, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Evidence]]:
    """Record a run with a repeated frame, a lost camera and a reopened microphone."""
    path = tmp_path_factory.mktemp("recorded") / "features"
    recorder = FeatureRecorder(path, sha256, predictor.constants)
    perception = Perception(predictor, recorder)
    evidence = [perception.read(0.0)]
    assert clip.samples is not None
    for index in range(20):
        now_s = index / 10 + 0.0123456789
        if index == 8:
            perception.forget_sound()
            perception.forget_sound()  # forgotten at every tick while absent, recorded once
        if index == 12:
            perception.forget_frames()
            perception.forget_frames()
        if index == 5:
            perception.repeat_frame(index)
        elif index not in (12, 13):
            perception.encode_frame(clip.frames[index], index, taken_s=now_s - 1 / 300)
        perception.push_sound(Sound(now_s, clip.samples[index * 1600 : (index + 1) * 1600]))
        if index not in (8, 9):
            perception.encode_sound()
        evidence.append(perception.read(now_s))
    evidence.append(perception.read(9.0))  # long after everything
    recorder.close()
    return path, [found for found in evidence if found is not None]


def test_a_replay_gives_the_same_bits(
    predictor: DevicePredictor, sha256: str, recorded: tuple[Path, list[Evidence]]
) -> None:
    path, evidence = recorded
    perception = Perception(predictor)
    again = list(replay(path, sha256, perception))
    assert [found.reading for found in again] == [found.reading for found in evidence]
    assert len(again) == 20
    assert {found.reading.path for found in again} == {"audio-visual", "visual", "audio"}
    for first, second in zip(evidence, again, strict=True):
        for kind in ("plain", "enhanced"):
            one, two = getattr(first, kind), getattr(second, kind)
            for name in ("visual", "frame_ages_s", "audio"):
                assert getattr(one, name).tobytes() == getattr(two, name).tobytes()
    assert perception.encodes == {"vision_encoder": 0, "audio_encoder": 0}


def test_a_replay_can_be_recorded_again(
    predictor: DevicePredictor, sha256: str, recorded: tuple[Path, list[Evidence]], tmp_path: Path
) -> None:
    recorder = FeatureRecorder(tmp_path / "again", sha256, predictor.constants)
    list(replay(recorded[0], sha256, Perception(predictor, recorder)))
    recorder.close()
    assert (tmp_path / "again").read_bytes() == recorded[0].read_bytes()


def test_the_file_holds_tokens_and_nothing_else(
    predictor: DevicePredictor, recorded: tuple[Path, list[Evidence]], clip: Clip
) -> None:
    path, _ = recorded
    content = path.read_bytes()
    constants = predictor.constants
    per_frame = 2 * constants.tokens_per_frame * constants.token_width
    per_sound = 2 * constants.audio_tokens * constants.token_width
    # Of 18 windows of sound, three at the start and one after the loss held too little.
    tokens = 17 * per_frame + 14 * per_sound
    lines = len(content) - tokens
    assert 0 < lines < 75 * 120  # header, records: a few words each
    assert per_frame < clip.frames[0].nbytes
    assert clip.samples is not None
    assert clip.samples[1600:1616].tobytes() not in content
    assert clip.frames[3].tobytes()[:64] not in content
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    header = json.loads(content.partition(b"\n")[0])
    assert header["picture"] == [constants.tokens_per_frame, constants.token_width]


def test_a_record_that_was_cut_off_is_left_out_wherever_the_cut_is(
    predictor: DevicePredictor, sha256: str, recorded: tuple[Path, list[Evidence]], tmp_path: Path
) -> None:
    content = recorded[0].read_bytes()
    records = list(read_recording(recorded[0], sha256, predictor.constants))
    assert sum(isinstance(record, Forgotten) for record in records) == 2
    assert isinstance(records[0], ReadingRequest)
    header = content.index(b"\n") + 1
    counts: list[int] = []
    cut = tmp_path / "cut"
    for size in range(header, header + 6000, 7):
        cut.write_bytes(content[:size])
        counts.append(len(list(read_recording(cut, sha256, predictor.constants))))
    assert counts[0] == 0
    assert counts == sorted(counts)
    assert set(counts) == set(range(counts[-1] + 1))  # every record is there as soon as it is whole
    assert counts[-1] > 5


def test_a_damaged_record_is_named_by_its_place(
    predictor: DevicePredictor, sha256: str, recorded: tuple[Path, list[Evidence]], tmp_path: Path
) -> None:
    content = bytearray(recorded[0].read_bytes())
    record = content.index(b'{"kind": "picture"')
    place = content.index(b"\n", record) + 100
    for position, byte in ((place, content[place] ^ 1), (record + 12, ord("x")), (record, ord("["))):
        damaged = bytearray(content)
        damaged[position] = byte
        (tmp_path / "damaged").write_bytes(damaged)
        with pytest.raises(RecordingError, match=f"damaged is damaged at byte {record}: give a whole copy"):
            list(read_recording(tmp_path / "damaged", sha256, predictor.constants))


def test_a_file_that_is_not_a_recording_of_this_bundle_is_refused_at_once(
    predictor: DevicePredictor, sha256: str, recorded: tuple[Path, list[Evidence]], tmp_path: Path
) -> None:
    path, constants = recorded[0], predictor.constants
    with pytest.raises(RecordingError, match="with another bundle"):
        read_recording(path, "0" * 64, constants)
    with pytest.raises(RecordingError, match="with another bundle"):
        read_recording(path, sha256, replace(constants, audio_tokens=constants.audio_tokens + 1))
    with pytest.raises(RecordingError, match="cannot be read"):
        read_recording(tmp_path / "nowhere", sha256, constants)
    later = path.read_bytes().replace(b'"schema": 2', b'"schema": 3', 1)
    for content in (b"", b"{", b"[]\n", b"\x00" * 9000, b'{"type":"start"}\n', later):
        (tmp_path / "foreign").write_bytes(content)
        with pytest.raises(RecordingError, match="is not a recording of this version"):
            read_recording(tmp_path / "foreign", sha256, constants)


def test_a_recording_is_never_replaced(predictor: DevicePredictor, sha256: str, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("precious")
    with pytest.raises(UsageError, match="exists; give a new file"):
        FeatureRecorder(tmp_path / "there", sha256, predictor.constants)
    with pytest.raises(UserError, match="No such file"):
        FeatureRecorder(tmp_path / "no" / "folder", sha256, predictor.constants)


def test_a_full_disk_leaves_whole_records(predictor: DevicePredictor, sha256: str, tmp_path: Path) -> None:
    constants, path = predictor.constants, tmp_path / "full"
    recorder = FeatureRecorder(path, sha256, constants)
    tokens = np.ones((constants.tokens_per_frame, constants.token_width), np.float32)
    recorder.add_frame_tokens(0, tokens)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (os.stat(path).st_size + 100, hard))
    try:
        with pytest.raises(UserError, match="make room or choose another file"):
            recorder.add_frame_tokens(1, tokens)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    recorder.add_frame_tokens(2, tokens)
    recorder.close()
    found = list(read_recording(path, sha256, constants))
    assert [record.index for record in found if isinstance(record, FrameTokens)] == [0, 2]
