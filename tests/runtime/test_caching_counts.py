"""Nothing is computed twice: how often a run over a clip converts, encodes and computes. Counts, not times."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runtime.sources
import vaemotion.contract.audio
import vaemotion.contract.front_end
from runtime.clock import ManualClock
from runtime.engines import Arrays, Engine
from runtime.messages import End, Message, Reading, Start
from runtime.moments import AT_ONCE
from runtime.predictor import DevicePredictor, open_predictor
from runtime.session import Session
from runtime.sinks.outbox import Outbox
from runtime.sources import FileFeed, FileSource
from runtime.stop import Stop
from tests.media import write_work
from vaemotion.contract.audio import SAMPLE_RATE_HZ, LogMelConfig, log_mel
from vaemotion.contract.media import upright

PICTURES_HZ = 30  # three times as many as the grid has points


class CountedEngine:
    """An engine that counts its runs, and the pictures, windows or readings in them."""

    def __init__(self, role: str, engine: Engine, counts: Counter[str]) -> None:
        self.role, self.engine, self.counts = role, engine, counts

    def run(self, arrays: Arrays) -> dict[str, np.ndarray]:
        self.counts[self.role] += len(next(iter(arrays.values())))
        self.counts[f"{self.role} runs"] += 1
        return self.engine.run(arrays)


class Kept:
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
    """By their length in seconds."""
    folder = tmp_path_factory.mktemp("clips")
    return {
        length_s: write_work(folder / f"{length_s}.mkv", length_s, rate_hz=PICTURES_HZ) for length_s in (4, 8)
    }


def counted_run(
    predictor: DevicePredictor, clip: Path, monkeypatch: pytest.MonkeyPatch, sink: Kept | None = None, at_once: int = AT_ONCE
) -> Counter[str]:  # fmt: skip
    """What a run at full pace computed: pictures converted to RGB, frames of log-mel, what each engine was given, and readings."""
    sink = sink or Kept()
    counts: Counter[str] = Counter()

    def counted_upright(*arguments: Any) -> np.ndarray:
        counts["converted"] += 1
        return upright(*arguments)

    def counted_log_mel(samples: np.ndarray, config: LogMelConfig) -> np.ndarray:
        frames = log_mel(samples, config)
        counts["log-mel frames"] += len(frames)
        return frames

    engines = {role: CountedEngine(role, engine, counts) for role, engine in predictor.engines.items()}
    source, clock, stop = FileSource(clip), ManualClock(), Stop()
    with monkeypatch.context() as patch:
        patch.setattr(runtime.sources, "upright", counted_upright)
        for module in (
            vaemotion.contract.audio,
            vaemotion.contract.front_end,
        ):  # a stream's, and a whole window's
            patch.setattr(module, "log_mel", counted_log_mel)
        feed = FileFeed(source, clock)
        boxes = [Outbox("end", sink, "wait", stop)]
        session = Session(
            predictor.exchanged(engines), feed, clock, boxes, stop, "max", 0.0,
            has_frames=source.has_frames, has_sound=source.has_sound, at_once=at_once,
        )  # fmt: skip
        session.run(Start("", "", clip.name, "max", (), {}, ""))
        feed.close()
    assert sink.end is not None
    counts["readings"] = sink.end.readings
    return counts


@pytest.mark.parametrize("length_s", [4, 8])
def test_each_picture_and_each_stride_of_sound_is_encoded_once(
    predictor: DevicePredictor, clips: dict[int, Path], length_s: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = counted_run(predictor, clips[length_s], monkeypatch)
    windows, mel = predictor.constants.front_end.windows, predictor.constants.front_end.log_mel
    assert counts["vision_encoder"] == round(length_s / windows.frame_hop_s)
    assert counts["audio_encoder"] == round(length_s / windows.audio_stride_s)
    assert counts["emo_adapter"] == counts["readings"]
    assert counts["log-mel frames"] == mel.frames_in(length_s * SAMPLE_RATE_HZ)


def test_several_moments_at_once_are_the_same_readings_in_fewer_runs(
    predictor: DevicePredictor, clips: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit: what stands in a timeline does not tell how it was batched."""
    one, several = Kept(), Kept()
    counts = counted_run(predictor, clips[4], monkeypatch, one, at_once=1)
    fewer = counted_run(predictor, clips[4], monkeypatch, several, at_once=AT_ONCE)
    assert several.readings == one.readings
    assert fewer["vision_encoder"] == counts["vision_encoder"] == counts["vision_encoder runs"]
    for role in ("vision_encoder", "audio_encoder", "emo_adapter"):
        assert fewer[f"{role} runs"] <= counts[f"{role} runs"] / AT_ONCE + 1, role


def test_a_picture_that_no_grid_point_shows_is_never_converted(
    predictor: DevicePredictor, clips: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = counted_run(predictor, clips[4], monkeypatch)
    assert counts["converted"] == counts["vision_encoder"]
    assert counts["converted"] * 3 == 4 * PICTURES_HZ


def test_twice_the_media_is_twice_the_work(
    predictor: DevicePredictor, clips: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a second costs does not grow with what came before it."""
    shorter, longer = (counted_run(predictor, clips[length_s], monkeypatch) for length_s in (4, 8))
    for what in ("vision_encoder", "audio_encoder", "converted"):
        assert longer[what] == 2 * shorter[what], what
    # One reading more, at 0 s, and of log-mel one hop that the second half has and the first not yet.
    assert longer["emo_adapter"] - 1 == 2 * (shorter["emo_adapter"] - 1)
    mel = predictor.constants.front_end.log_mel
    assert longer["log-mel frames"] - shorter["log-mel frames"] == round(4 / mel.hop_s)


def test_a_picture_that_stands_on_several_grid_points_is_encoded_once(
    predictor: DevicePredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = counted_run(predictor, write_work(tmp_path / "slow.mkv", 4, rate_hz=5), monkeypatch)
    assert counts["vision_encoder"] == counts["converted"] == 20
    assert counts["readings"] > 40  # and yet there is one at each grid point
