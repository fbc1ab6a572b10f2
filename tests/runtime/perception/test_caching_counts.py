"""Nothing is computed twice: counts of a run's conversions, encodings and readings over a clip."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vaemotion.contract.audio
import vaemotion.contract.media.medium
from runtime.clock import ManualClock
from runtime.engines.open import Arrays, Engine
from runtime.file_session import FilePresenter
from runtime.machine.stop import Stop
from runtime.messages import End, Message, Reading, Start
from runtime.perception.perception import Perception
from runtime.perception.predictor import DevicePredictor, open_predictor
from runtime.perception.ticks import BATCH_TICKS, IntakeOptions
from runtime.run import build_session
from runtime.show.controls import ControlState
from runtime.sinks.outbox import Outbox
from runtime.sinks.publisher import Publisher
from runtime.sources.file import FileFeed, FileSource
from tests.media import write_work
from vaemotion.contract.audio import SAMPLE_RATE_HZ, LogMelConfig, log_mel
from vaemotion.contract.media.picture import to_picture

FRAMES_HZ = 30  # three times as many as the grid has points


class CountedEngine:
    """An engine that counts its runs, and the frames, windows or readings in them."""

    def __init__(self, role: str, engine: Engine, counts: Counter[str]) -> None:
        self.role, self.engine, self.counts = role, engine, counts

    def run(self, arrays: Arrays) -> dict[str, np.ndarray]:
        self.counts[self.role] += len(next(iter(arrays.values())))
        self.counts[f"{self.role} runs"] += 1
        return self.engine.run(arrays)


class KeepingSink:
    """A sink that keeps the readings and the end."""

    def __init__(self) -> None:
        self.readings: list[Reading] = []
        self.end: End | None = None

    def publish(self, message: Message) -> None:
        if isinstance(message, Reading):
            self.readings.append(message)
        self.end = message if isinstance(message, End) else self.end

    def close(self) -> None:
        """Nothing to close."""


@pytest.fixture(scope="module")
def predictor(small_bundle: Path) -> Generator[DevicePredictor]:
    with open_predictor(small_bundle) as opened:
        yield opened


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Clips by their length in seconds."""
    folder = tmp_path_factory.mktemp("clips")
    return {
        length_s: write_work(folder / f"{length_s}.mkv", length_s, rate_hz=FRAMES_HZ) for length_s in (4, 8)
    }


def counted_run(
    predictor: DevicePredictor,
    clip: Path,
    monkeypatch: pytest.MonkeyPatch,
    sink: KeepingSink | None = None,
    at_once: int = BATCH_TICKS,
) -> Counter[str]:
    """Run at full pace; count frames converted to RGB, frames of log-mel, engines' inputs, and readings."""
    sink = sink or KeepingSink()
    counts: Counter[str] = Counter()

    def counted_conversion(*arguments: Any) -> np.ndarray:
        counts["converted"] += 1
        return to_picture(*arguments)

    def counted_log_mel(samples: np.ndarray, config: LogMelConfig) -> np.ndarray:
        frames = log_mel(samples, config)
        counts["log-mel frames"] += len(frames)
        return frames

    engines = {role: CountedEngine(role, engine, counts) for role, engine in predictor.engines.items()}
    source, clock, stop = FileSource(clip), ManualClock(), Stop()
    with monkeypatch.context() as patch:
        patch.setattr(vaemotion.contract.media.medium, "to_picture", counted_conversion)
        patch.setattr(vaemotion.contract.audio, "log_mel", counted_log_mel)
        feed = FileFeed(source, clock)
        boxes = [Outbox("end", sink, "wait", stop)]
        presenter = FilePresenter(0.0, ControlState(), clock)
        options = IntakeOptions(source.has_frames, source.has_sound, batch_ticks=at_once)
        perception = Perception(predictor.with_engines(engines))
        session = build_session(perception, feed, clock, stop, presenter, Publisher(boxes), options)
        session.run(Start("", "", clip.name, "max", (), {}, ""))
        feed.close()
    assert sink.end is not None
    counts["readings"] = sink.end.readings
    return counts


@pytest.mark.parametrize("length_s", [4, 8])
def test_each_frame_and_each_stride_of_sound_is_encoded_once(
    predictor: DevicePredictor, clips: dict[int, Path], length_s: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = counted_run(predictor, clips[length_s], monkeypatch)
    windows, mel = predictor.constants.front_end.windows, predictor.constants.front_end.log_mel
    assert counts["vision_encoder"] == round(length_s / windows.frame_hop_s)
    unheard = math.ceil(predictor.least_sound_s / windows.audio_stride_s) - 1
    assert counts["audio_encoder"] == round(length_s / windows.audio_stride_s) - unheard
    assert counts["emo_adapter"] == counts["readings"]
    assert counts["log-mel frames"] == mel.frames_in(length_s * SAMPLE_RATE_HZ)


def test_a_batch_of_ticks_gives_the_same_readings_in_fewer_runs(
    predictor: DevicePredictor, clips: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readings are equal bit for bit, whatever the batch."""
    one, several = KeepingSink(), KeepingSink()
    counts = counted_run(predictor, clips[4], monkeypatch, one, at_once=1)
    fewer = counted_run(predictor, clips[4], monkeypatch, several, at_once=BATCH_TICKS)
    assert several.readings == one.readings
    assert fewer["vision_encoder"] == counts["vision_encoder"] == counts["vision_encoder runs"]
    for role in ("vision_encoder", "audio_encoder", "emo_adapter"):
        assert fewer[f"{role} runs"] <= counts["readings"] / BATCH_TICKS + 1, role


def test_a_frame_that_no_grid_point_shows_is_never_converted(
    predictor: DevicePredictor, clips: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = counted_run(predictor, clips[4], monkeypatch)
    assert counts["converted"] == counts["vision_encoder"]
    assert counts["converted"] * 3 == 4 * FRAMES_HZ


def test_twice_the_media_is_twice_the_work(
    predictor: DevicePredictor, clips: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The work for a second does not grow with the length of the stream before it."""
    shorter, longer = (counted_run(predictor, clips[length_s], monkeypatch) for length_s in (4, 8))
    for what in ("vision_encoder", "converted"):
        assert longer[what] == 2 * shorter[what], what
    windows = predictor.constants.front_end.windows
    assert longer["audio_encoder"] - shorter["audio_encoder"] == round(4 / windows.audio_stride_s)
    # One reading more, at 0 s, and of log-mel one hop that the second half has and the first not yet.
    assert longer["emo_adapter"] - 1 == 2 * (shorter["emo_adapter"] - 1)
    mel = predictor.constants.front_end.log_mel
    assert longer["log-mel frames"] - shorter["log-mel frames"] == round(4 / mel.hop_s)


def test_a_frame_on_several_grid_points_is_encoded_once(
    predictor: DevicePredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = counted_run(predictor, write_work(tmp_path / "slow.mkv", 4, rate_hz=5), monkeypatch)
    assert counts["vision_encoder"] == counts["converted"] == 20
    assert counts["readings"] > 40  # and yet there is one at each grid point
