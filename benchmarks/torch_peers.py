"""Two peers in PyTorch eager that run the runtime's model over the same clip at the same ticks.

In: the checkpoint, a clip, and the bundle's calibration of confidence. Out: a timeline as the runtime writes
it. Each peer is called in a process of its own (``benchmarks.device_runs.interleaved_processes``), which
keeps its model from one call to the next.
"""

from __future__ import annotations

import functools
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.device_runs import RunCost, start_of, timed_run
from benchmarks.material import CHECKPOINT
from export.predictors import checkpoint_predictor
from runtime.clock import ManualClock
from runtime.machine.stop import Stop
from runtime.messages import End, Reading
from runtime.perception.perception import with_confidence
from runtime.perception.predictor import Predictor
from runtime.perception.schedule import Schedule
from runtime.sinks.jsonl import JsonLines
from runtime.sources.file import FileFeed, FileSource
from vaemotion.contract.audio import SAMPLE_RATE_HZ
from vaemotion.contract.bundle import read_manifest
from vaemotion.contract.confidence import confidence_of
from vaemotion.contract.front_end import Clip, window_at
from vaemotion.contract.windows import EPSILON_S
from vaemotion.model.checkpoint import load_checkpoint


@functools.cache
def open_checkpoint(bundle: Path, threads: int) -> Predictor:
    """Open the checkpoint that ``bundle`` was exported from, once per process."""
    torch.set_num_threads(threads)
    predictor = checkpoint_predictor(load_checkpoint(CHECKPOINT))
    predictor.confidence = confidence_of(read_manifest(bundle))
    return predictor


@torch.inference_mode()
def our_caching(bundle: Path, clip: Path, timeline: Path, threads: int, batch_ticks: int = 1) -> RunCost:
    """Run the runtime with the checkpoint's modules as engines.

    ``batch_ticks``: number of ticks that are encoded in one batch.
    """
    return timed_run(open_checkpoint(bundle, threads), clip, timeline, batch_ticks)


@torch.inference_mode()
def window_anew(bundle: Path, clip: Path, timeline: Path, threads: int) -> RunCost:
    """Run a plain script that computes every window anew.

    At each tick it prepares and encodes all frames of the window in one batch, computes the log-mel of the
    whole window and encodes that. As in the runtime, a frame is converted to RGB once, and only if a window
    needs it.
    """
    predictor = open_checkpoint(bundle, threads)
    windows = predictor.constants.front_end.windows
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    source, stop, sink = FileSource(clip), Stop(), JsonLines(str(timeline))
    feed, media = FileFeed(source, ManualClock()), DecodedMedia(windows.visual_window_s + windows.frame_hop_s)
    schedule = Schedule(windows, has_frames=source.has_frames, has_sound=source.has_sound)
    sink.publish(start_of(clip))
    now_s, readings = 0.0, 0
    while (tick_s := schedule.next_s()) is not None:
        arrived = feed.until(tick_s, stop)
        if arrived.frame is not None:
            media.add_frame(arrived.frame.time_s, arrived.frame.picture())
        for sound in arrived.sound:
            media.add_sound(sound.samples)
        due = schedule.due(tick_s, arrived.frames_end_s, arrived.sound_end_s)
        if due.frame is not None or due.sound:
            now_s = arrived.now_s(tick_s)
            sink.publish(reading_of(predictor, media.clip(), now_s))
            readings += 1
    wall_s = time.perf_counter() - began_s
    sink.publish(End(now_s, "source ended", "", wall_s, readings, 0, {}, {}, feed.times.summary()))
    sink.close()
    feed.close()
    return RunCost(now_s, wall_s, time.process_time() - began_cpu_s, feed.times.summary())


class DecodedMedia:
    """Decoded media that may still be in a window: the frames of the newest ``keep_s``, and all sound."""

    def __init__(self, keep_s: float) -> None:
        self._keep_s = keep_s
        self._frames: list[tuple[float, np.ndarray]] = []
        self._sound, self._n_samples = np.zeros(SAMPLE_RATE_HZ, np.float32), 0

    def add_frame(self, time_s: float, image: np.ndarray) -> None:
        """Add an RGB frame and forget those that are too old."""
        self._frames = [(t, p) for t, p in self._frames if t >= time_s - self._keep_s]
        self._frames.append((time_s, image))

    def add_sound(self, samples: np.ndarray) -> None:
        """Append samples at 16 kHz."""
        end = self._n_samples + len(samples)
        if end > len(self._sound):
            self._sound = np.concatenate([self._sound, np.zeros(end, np.float32)])
        self._sound[self._n_samples : end], self._n_samples = samples, end

    def clip(self) -> Clip:
        """Return all of it as a clip, without a copy."""
        times_s, images = zip(*self._frames, strict=True)
        return Clip(images, times_s, self._sound[: self._n_samples])


def reading_of(predictor: Predictor, clip: Clip, now_s: float) -> Reading:
    """Compute a reading from a clip's window at ``now_s``."""
    sound_s = 0.0 if clip.samples is None else len(clip.samples) / SAMPLE_RATE_HZ
    path = "audio-visual" if sound_s >= predictor.least_sound_s - EPSILON_S else "visual"
    tokens = predictor.encode(window_at(clip, now_s, path, predictor.constants.front_end))
    affect, _ = predictor.adapt(tokens)
    reading = Reading(
        round(now_s, 6),
        affect.valence,
        affect.arousal,
        affect.valence_sd,
        affect.arousal_sd,
        dict(zip(predictor.constants.emotions, map(float, affect.emotions), strict=True)),
        path,
        float(tokens.frame_ages_s[-1]),
        tokens.audio_age_s if len(tokens.audio) else None,
    )
    return with_confidence(reading, affect, predictor.confidence, tokens.sound_s)
