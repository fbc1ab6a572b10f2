"""A microphone through PortAudio on a private sound server, and its resampler on blocks made by hand."""

from __future__ import annotations

import importlib
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.clock import MonotonicClock
from runtime.machine.child_process import ProbeError
from runtime.messages import Notice, Sound
from runtime.sources.config import MicrophoneConfig
from runtime.sources.microphone import Block, BlockResampler, Microphone
from runtime.sources.microphone_search import find_microphone
from runtime.sources.supervision import DeviceError, DeviceThread
from tests.live_peers import SoundServer, sound_server, tone, until
from vaemotion.contract.audio import resample

RATE_HZ = 16_000


@dataclass
class Listener:
    """A microphone behind its thread, with the sound and notices that it gave."""

    microphone: Microphone
    device: DeviceThread
    clock: MonotonicClock
    sounds: list[Sound] = field(default_factory=list[Sound])
    notices: list[str] = field(default_factory=list[str])

    def state(self) -> str:
        for event in self.device.take(self.clock.now_s())[0]:
            if isinstance(event, Sound):
                self.sounds.append(event)
            elif isinstance(event, Notice):
                self.notices.append(event.text)
        return self.device.monitor.state

    def wait_for(self, state: str) -> None:
        until(lambda: self.state() == state, f"{state}; notices: {self.notices}")

    def record(self, seconds: float) -> np.ndarray:
        """Return the sound of the next seconds, (n,) float32."""
        first = len(self.sounds)
        until(
            lambda: sum(len(s.samples) for s in self._since(first)) >= seconds * RATE_HZ,
            f"sound; notices: {self.notices}",
        )
        return np.concatenate([sound.samples for sound in self.sounds[first:]])[: round(seconds * RATE_HZ)]

    def _since(self, first: int) -> list[Sound]:
        self.state()
        return self.sounds[first:]


@contextmanager
def listening(device: str = "default", offset_ms: float = 0.0) -> Iterator[Listener]:
    clock = MonotonicClock()
    microphone = Microphone(MicrophoneConfig(device=device, offset_ms=offset_ms), clock)
    thread = DeviceThread("microphone", microphone.stream, clock)
    try:
        yield Listener(microphone, thread, clock)
    finally:
        thread.close()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SoundServer]:
    with sound_server(tmp_path, monkeypatch) as running:
        yield running


def strongest_hz(samples: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum) * RATE_HZ / len(samples))


def test_an_absent_microphone_comes_records_dies_and_comes_back_in_the_same_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sound_server(tmp_path, monkeypatch, running=False) as server:
        sounddevice = importlib.import_module("sounddevice")
        sounddevice._terminate()
        sounddevice._initialize()
        assert not list(sounddevice.query_devices())  # from here on PortAudio would never find one by itself
        with listening() as listener:
            comes_and_goes(server, listener)


def comes_and_goes(server: SoundServer, listener: Listener) -> None:
    until(
        lambda: (
            listener.state() == "absent"
            and listener.notices[-1:] == ["microphone absent: there is no microphone"]
        ),
        "absent",
    )
    server.start()
    listener.wait_for("live")
    with server.playing(tone(440, 0.5, 20)):
        until(lambda: np.abs(listener.record(0.1)).max() > 0.1, "sound")
        heard = listener.record(1.0)
    assert strongest_hz(heard) == pytest.approx(440, abs=10)  # a busy machine skips a sample
    assert np.quantile(np.abs(heard), 0.9) == pytest.approx(0.5 * np.sin(0.9 * np.pi / 2), rel=0.1)
    times_s = [sound.time_s for sound in listener.sounds]
    assert times_s == sorted(times_s)
    server.kill()
    listener.wait_for("lost")
    assert "microphone lost: the device disappeared" in listener.notices
    server.start()
    listener.wait_for("live")
    with server.playing(tone(880, 0.5, 20)):
        until(lambda: np.abs(listener.record(0.1)).max() > 0.1, "sound")
        assert strongest_hz(listener.record(1.0)) == pytest.approx(880, abs=10)


def test_a_sound_is_stamped_when_it_came_less_the_offset(server: SoundServer) -> None:
    with listening(offset_ms=2000.0) as listener:
        listener.record(1.0)
        began_s = listener.clock.now_s()
        times_s = [sound.time_s for sound in listener.sounds]
        lengths_s = np.array([len(sound.samples) / RATE_HZ for sound in listener.sounds])
        assert max(times_s) < began_s - 1.9  # while it settles, the clock may be ahead by some milliseconds
        ratios = np.diff(times_s) / lengths_s[1:]
        assert np.mean(np.abs(ratios - 1) < 0.2) > 0.8  # by its samples, not by its callbacks


def test_a_stopped_sound_server_freezes_the_microphone_until_it_goes_on(server: SoundServer) -> None:
    with listening() as listener:
        listener.wait_for("live")
        server.signal(signal.SIGSTOP)
        listener.wait_for("frozen")
        assert listener.device.monitor.losses == 1
        count = len(listener.sounds)
        server.signal(signal.SIGCONT)
        listener.wait_for("live")
        assert len(listener.sounds) > count


def test_a_suspended_device_is_lost_and_found_again(
    server: SoundServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.sources.microphone.SILENT_S", 1.0)
    with listening() as listener:
        listener.wait_for("live")
        server.control("suspend-sink", "room", "1")
        listener.wait_for("lost")
        assert listener.notices[-1] == "microphone lost: no data for 1 s"
        server.control("suspend-sink", "room", "0")
        listener.wait_for("live")


def test_a_microphone_is_found_by_a_part_of_its_name_by_its_index_and_as_the_default(
    server: SoundServer,
) -> None:
    by_default = find_microphone("default")
    assert (by_default.channels, by_default.names[by_default.index]) == (2, "default")
    by_part = find_microphone("PUL")
    assert by_part.names[by_part.index] == "pulse"
    assert find_microphone(str(by_part.index)) == by_part


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("Ghost", "No input device matching 'Ghost'"),
        ("77", "no microphone has the index 77"),
        ("l", "Multiple input devices"),
    ],
)
def test_a_microphone_that_cannot_be_found_is_named(server: SoundServer, device: str, said: str) -> None:
    with pytest.raises(ProbeError, match=said):
        find_microphone(device)
    stream = Microphone(MicrophoneConfig(device=device), MonotonicClock()).stream(threading.Event())
    with pytest.raises(DeviceError, match=said):
        next(stream)


def test_without_a_microphone_this_process_does_not_restart_portaudio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time leaks 12 kB, and the wait may last for weeks."""
    with sound_server(tmp_path, monkeypatch, running=False):
        sounddevice = importlib.import_module("sounddevice")
        restarts: list[int] = []
        monkeypatch.setattr(sounddevice, "_initialize", lambda: restarts.append(1))
        microphone = Microphone(MicrophoneConfig(), MonotonicClock())
        for _ in range(3):
            with pytest.raises(DeviceError, match="there is no microphone"):
                next(microphone.stream(threading.Event()))
        assert restarts == []
        assert microphone.drift_ppm is None


def blocks_of(samples: np.ndarray, rate_hz: int, drift_ppm: float = 0.0) -> list[Block]:
    """Cut samples (n, channels) into blocks of 10 ms, each arriving 1 ms after its last sample."""
    size = rate_hz // 100
    return [
        Block(
            k,
            5.0 + (k + 1) * size / rate_hz * (1 + drift_ppm * 1e-6) + 0.001,
            samples[k * size : (k + 1) * size],
        )
        for k in range(len(samples) // size)
    ]


@settings(deadline=None, max_examples=25)
@given(
    rate_hz=st.sampled_from([8_000, 16_000, 44_100, 48_000, 96_000]),
    channels=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_blocks_become_what_the_whole_would_become_and_each_carries_the_time_of_its_last_sample(
    rate_hz: int, channels: int, seed: int
) -> None:
    samples = np.random.default_rng(seed).uniform(-1, 1, (rate_hz, channels)).astype(np.float32)
    resampler = BlockResampler(rate_hz)
    sounds = [sound for block in blocks_of(samples, rate_hz) if (sound := resampler.push(block)) is not None]
    heard = np.concatenate([sound.samples for sound in sounds])
    whole = resample(samples.mean(axis=1, dtype=np.float64).astype(np.float32), rate_hz)
    assert 0.8 * RATE_HZ < len(heard) <= RATE_HZ
    assert np.abs(heard - whole[: len(heard)]).max() < 1e-5
    ends_s = np.cumsum([len(sound.samples) for sound in sounds]) / RATE_HZ
    assert [sound.time_s for sound in sounds] == pytest.approx(5.001 + ends_s, abs=1e-4)
    assert resampler.gaps == 0


def test_the_drift_is_none_until_it_is_known() -> None:
    resampler, drifts_ppm = BlockResampler(RATE_HZ), []
    for block in blocks_of(np.zeros((30 * RATE_HZ, 1), np.float32), RATE_HZ, drift_ppm=120.0):
        resampler.push(block)
        drifts_ppm.append(resampler.drift_ppm)
    assert drifts_ppm[900] is None
    assert drifts_ppm[-1] == pytest.approx(120, abs=2)


@pytest.mark.parametrize("how", ["overflow", "dropped"])
def test_where_samples_are_missing_the_count_restarts_and_the_time_is_right_again(how: str) -> None:
    resampler = BlockResampler(RATE_HZ)
    blocks = blocks_of(np.zeros((4 * RATE_HZ, 2), np.float32), RATE_HZ)
    before, after = blocks[:150], blocks[170:]  # 200 ms are missing
    if how == "overflow":
        after = [Block(150 + k, block.arrival_s, block.samples, k == 0) for k, block in enumerate(after)]
    sounds = [resampler.push(block) for block in [*before, *after]]
    assert resampler.gaps == 1
    for block, sound in zip([*before, *after], sounds, strict=True):
        assert sound is not None
        assert sound.time_s == pytest.approx(block.arrival_s, abs=1e-3)


@settings(deadline=None)
@given(st.lists(st.sampled_from([0.5, np.nan, np.inf, -np.inf, 3e38]), min_size=160, max_size=160))
def test_nan_and_infinity_become_silence(values: list[float]) -> None:
    samples = np.array([0.5, *values[1:]], np.float32).reshape(80, 2)
    sound = BlockResampler(RATE_HZ).push(Block(0, 1.0, samples))
    assert sound is not None
    assert sound.broken == np.count_nonzero(~np.isfinite(samples))
    assert np.isfinite(sound.samples).all()
    expected = np.where(np.isfinite(samples), samples, 0).mean(axis=1, dtype=np.float64)
    assert sound.samples == pytest.approx(expected)


def test_blocks_that_are_never_finite_are_no_sound_and_are_counted_with_the_next_one() -> None:
    resampler = BlockResampler(RATE_HZ)
    blocks = blocks_of(np.zeros((RATE_HZ, 1), np.float32), RATE_HZ)
    for block in blocks[10:40]:
        block.samples[:] = np.nan
    sounds = [resampler.push(block) for block in blocks]
    assert [k for k, sound in enumerate(sounds) if sound is None] == list(range(10, 40))
    assert [sound.broken for sound in sounds if sound is not None and sound.broken] == [30 * 160]
    assert resampler.gaps == 1
