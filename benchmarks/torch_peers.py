"""Two peers in PyTorch eager that drive the same model as the runtime, over the same clip and at the same moments.

In: the checkpoint, a clip, and of the bundle its calibration of confidence. Out: a timeline as the runtime writes it. Each is called in a process of
its own (``benchmarks.device_runs.in_turns``), which keeps its model from one call to the next.
"""

from __future__ import annotations

import functools
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.device_runs import Spent, spent_on, start_of
from benchmarks.material import CHECKPOINT
from export.predictors import checkpoint_predictor
from runtime.agenda import Agenda
from runtime.clock import ManualClock
from runtime.messages import End, Reading
from runtime.perception import with_confidence
from runtime.predictor import Predictor
from runtime.sinks.jsonl import JsonLines
from runtime.sources import FileFeed, FileSource
from runtime.stop import Stop
from vaemotion.contract.audio import SAMPLE_RATE_HZ
from vaemotion.contract.bundle import read_manifest
from vaemotion.contract.confidence import confidence_of
from vaemotion.contract.emotions import EMOTIONS
from vaemotion.contract.front_end import Clip, window_at
from vaemotion.model.checkpoint import load_checkpoint


@functools.cache
def opened(bundle: Path, threads: int) -> Predictor:
    """The checkpoint that ``bundle`` was made of, opened once in this process."""
    torch.set_num_threads(threads)
    predictor = checkpoint_predictor(load_checkpoint(CHECKPOINT))
    predictor.confidence = confidence_of(read_manifest(bundle))
    return predictor


@torch.inference_mode()
def our_caching(bundle: Path, clip: Path, timeline: Path, threads: int, at_once: int = 1) -> Spent:
    """The runtime itself, its engines exchanged for the checkpoint's modules; ``at_once``: moments that are encoded in one batch."""
    return spent_on(opened(bundle, threads), clip, timeline, at_once)


@torch.inference_mode()
def window_anew(bundle: Path, clip: Path, timeline: Path, threads: int) -> Spent:
    """A plain script: at each moment it prepares and encodes, in one batch, every picture of the window, computes the log-mel of the whole window of
    sound and encodes that. What it is spared: a picture is converted to RGB once, and only where a window shows it."""
    predictor = opened(bundle, threads)
    windows = predictor.constants.front_end.windows
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    source, stop, sink = FileSource(clip), Stop(), JsonLines(str(timeline))
    feed, seen = FileFeed(source, ManualClock()), Seen(windows.visual_window_s + windows.frame_hop_s)
    agenda = Agenda(windows, has_frames=source.has_frames, has_sound=source.has_sound)
    sink.publish(start_of(clip))
    now_s, readings = 0.0, 0
    while (moment_s := agenda.next_s()) is not None:
        arrived = feed.until(moment_s, stop)
        if arrived.frame is not None:
            seen.add_picture(arrived.frame.time_s, arrived.frame.picture())
        for sound in arrived.sound:
            seen.add_sound(sound.samples)
        due = agenda.due(moment_s, arrived.frames_end_s, arrived.sound_end_s)
        if due.picture is not None or due.sound:
            now_s = arrived.now_s(moment_s)
            sink.publish(reading_of(predictor, seen.clip(), now_s))
            readings += 1
    wall_s = time.perf_counter() - began_s
    sink.publish(End(now_s, "source ended", "", wall_s, readings, 0, {}, {}, feed.times.summary()))
    sink.close()
    feed.close()
    return Spent(now_s, wall_s, time.process_time() - began_cpu_s, feed.times.summary())


class Seen:
    """What was decoded so far and may still be in a window: pictures of the newest ``keep_s``, and the sound."""

    def __init__(self, keep_s: float) -> None:
        self._keep_s = keep_s
        self._pictures: list[tuple[float, np.ndarray]] = []
        self._sound, self._heard = np.zeros(SAMPLE_RATE_HZ, np.float32), 0

    def add_picture(self, time_s: float, picture: np.ndarray) -> None:
        self._pictures = [(t, p) for t, p in self._pictures if t >= time_s - self._keep_s]
        self._pictures.append((time_s, picture))

    def add_sound(self, samples: np.ndarray) -> None:
        end = self._heard + len(samples)
        if end > len(self._sound):
            self._sound = np.concatenate([self._sound, np.zeros(end, np.float32)])
        self._sound[self._heard : end], self._heard = samples, end

    def clip(self) -> Clip:
        """All of it, without a copy."""
        times_s, pictures = zip(*self._pictures, strict=True)
        return Clip(pictures, times_s, self._sound[: self._heard])


def reading_of(predictor: Predictor, clip: Clip, now_s: float) -> Reading:
    """The whole window anew."""
    path = "audio-visual" if clip.samples is not None and len(clip.samples) else "visual"
    tokens = predictor.encode(window_at(clip, now_s, path, predictor.constants.front_end))
    affect, _ = predictor.adapt(tokens)
    reading = Reading(
        round(now_s, 6), affect.valence, affect.arousal, affect.valence_sd, affect.arousal_sd,
        dict(zip(EMOTIONS, map(float, affect.emotions), strict=True)), path, float(tokens.frame_ages_s[-1]),
        tokens.audio_age_s if len(tokens.audio) else None,
    )  # fmt: skip
    return with_confidence(reading, affect, predictor.confidence)
