"""The front end: incremental log-mel and frame preparation against other implementations.

The peers are the log-mel of the whole window, ``transformers``, PIL and PyTorch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from transformers import ASTFeatureExtractor, SiglipImageProcessorPil
from transformers.utils.import_utils import is_speech_available

from benchmarks.figures import Figure, Section, share_of, times_as_fast
from benchmarks.material import RgbImage, draw_frames, tiny_bundle, works
from benchmarks.timing import interleaved
from runtime.machine.facts import usable_cpus
from runtime.messages import Sound
from runtime.perception.perception import Perception
from runtime.perception.predictor import Constants, DevicePredictor
from runtime.sources.file import SOUND_BLOCK_SAMPLES
from vaemotion.contract.audio import (
    AST_LOG_MEL,
    SAMPLE_RATE_HZ,
    LogMelConfig,
    StreamingLogMel,
    log_mel,
    normalized_window,
)
from vaemotion.contract.bundle import read_manifest
from vaemotion.contract.front_end import FrontEnd
from vaemotion.contract.image import ImageConfig, prepare_frame
from vaemotion.contract.windows import WindowConfig
from vaemotion.data.art.art import synthesize

Float32 = npt.NDArray[np.float32]
Call = Callable[[], object]

REPETITIONS = 9
HOP_SAMPLES = 1600  # 100 ms: ten readings a second
WINDOW_S, SHORT_S, LONG_S = 10.0, 2.5, 40.0
LOG_MELS = {"tiny": LogMelConfig(), "AST": AST_LOG_MEL}
SIZES = {"480p": (854, 480), "1080p": (1920, 1080)}
SIDES_PX = (96, 512)
SAME_LOG_MEL = 1e-5
SAME_PIXELS = 0.02  # mean absolute difference of values in [-1, 1], which is 2.5 of 255 levels
METHOD = """*Sound*: `tiny` has 64 bins every 20 ms, `AST` 128 bins every 10 ms. The whole window is `log_mel`
of 10 s of a procedural work and its normalization, as an implementation without state computes it.
Incremental is `StreamingLogMel.push` of the next 100 ms, or of the next frame alone. 100 ms are a hundredth
of the window's frames. A ratio above 100 is possible because the whole window's arrays do not fit the
processor's caches; a ratio below 100 comes from the overhead of NumPy's calls on few frames. *In perception*
is `Perception.push_sound` and `encode_sound` with an encoder that does nothing: the log-mel of 100 ms in one
block, the update of the window, and its normalization.

The incremental frames, in blocks of 100 ms and of 10 ms, are asserted equal to the whole window's within
{log_mel:g}, and so is the output of `ASTFeatureExtractor` ({branch} branch, 10.24 s, no padding). 100 ms in
perception are also compared with that class, which computes the whole window each time.

*Frames*: an RGB array as a decoder gives it → (3, side, side) float32, resized without keeping the aspect
ratio, mean and standard deviation 0.5; {threads} threads for libraries that use threads. PIL and
`SiglipImageProcessorPil` have PIL's cheapest filter of similar quality: BOX where the frame shrinks, BILINEAR
where it grows. PyTorch is `interpolate` on uint8, bilinear with antialiasing, which the torchvision backend
of `transformers` calls. The filters differ: each row states the mean absolute difference of values in [-1,
1], which is asserted to be at most {pixels:g}."""


@dataclass(frozen=True)
class StubEncoder:
    """An encoder that does nothing, so that only the front end is measured."""

    tokens: Float32

    def run(self, _arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, Float32]:
        """Return the same tokens for any input."""
        return {"tokens": self.tokens[None]}


@dataclass(frozen=True)
class StubPredictor:
    """The parts of a predictor that ``Perception`` needs for sound."""

    constants: Constants
    engines: dict[str, StubEncoder]
    least_sound_s: float = 0.0


def sound(seconds: float) -> Float32:
    """Synthesize the sound of a work, (n,) float32 at 16 kHz."""
    return synthesize(works()[3], seconds).astype(np.float32)


def perceived_hop(bundle: Path, config: LogMelConfig, window_s: float) -> Call:
    """Return a call that runs perception on one hop of sound, without the encoder, in a full window."""
    windows = WindowConfig(audio_window_s=window_s)
    constants = replace(Constants.of(read_manifest(bundle)), front_end=FrontEnd(config, windows=windows))
    encoder = StubEncoder(np.zeros((constants.audio_tokens, constants.token_width), np.float32))
    perception = Perception(cast(DevicePredictor, StubPredictor(constants, {"audio_encoder": encoder})))
    filling, hop = sound(window_s + 1), sound(1.0)[-HOP_SAMPLES:]
    perception.push_sound(Sound(window_s + 1, filling))

    def call() -> None:
        perception.push_sound(Sound(window_s + 1, hop))
        perception.encode_sound()

    return call


def check_incremental(config: LogMelConfig) -> None:
    """Raise RuntimeError if log-mel by hops, or by the runtime's blocks of sound, differs from the whole."""
    samples = sound(WINDOW_S)
    whole = log_mel(samples, config)
    for cut in (HOP_SAMPLES, SOUND_BLOCK_SAMPLES):
        stream = StreamingLogMel(config)
        pieces = [stream.push(samples[k : k + cut]) for k in range(0, len(samples), cut)]
        _assert_close(
            f"log-mel in blocks of {cut} samples", np.concatenate(pieces), whole, SAME_LOG_MEL, np.max
        )


def incremental(bundle: Path, name: str, config: LogMelConfig) -> list[Figure]:
    """Measure one hop against the whole window, and the cost of a hop in longer windows."""
    check_incremental(config)
    samples, hop = sound(WINDOW_S), sound(WINDOW_S)[-HOP_SAMPLES:]
    blocks = np.split(hop, HOP_SAMPLES // SOUND_BLOCK_SAMPLES)
    n_frames = round(WINDOW_S / config.hop_s)
    streams = {length_s: StreamingLogMel(config) for length_s in (SHORT_S, WINDOW_S, LONG_S)}
    for length_s, stream in streams.items():
        stream.push(sound(length_s))

    def in_blocks() -> None:
        for block in blocks:
            streams[WINDOW_S].push(block)

    whole, one = "whole window", "incremental"
    ten, frame = "incremental, ten blocks", "incremental, one frame"
    calls: dict[str, Call] = {
        whole: lambda: normalized_window(log_mel(samples, config), n_frames, config),
        one: lambda: streams[WINDOW_S].push(hop),
        ten: in_blocks,
        frame: lambda: streams[WINDOW_S].push(hop[: config.hop_samples]),
    }
    for length_s in (SHORT_S, WINDOW_S, LONG_S):
        calls[f"{one}, {length_s:g} s"] = lambda stream=streams[length_s]: stream.push(hop)
        calls[f"in perception, {length_s:g} s"] = perceived_hop(bundle, config, length_s)
    times = interleaved(calls, REPETITIONS, log=lambda line: print(f"{name}: {line}", flush=True))
    longer = f"{LONG_S:g} s over {SHORT_S:g} s"
    return [
        times_as_fast(f"log-mel of 100 ms, {name}", times, one, whole, at_least=100.0),
        times_as_fast(f"log-mel of one frame ({1e3 * config.hop_s:g} ms), {name}", times, frame, whole),
        times_as_fast(f"log-mel of 100 ms in blocks of 10 ms, {name}", times, ten, whole),
        times_as_fast(f"100 ms in perception, {name}", times, f"in perception, {WINDOW_S:g} s", whole),
        share_of(
            f"log-mel of 100 ms after {longer}, {name}",
            times,
            f"{one}, {LONG_S:g} s",
            f"{one}, {SHORT_S:g} s",
            at_most=1.2,
        ),
        share_of(
            f"100 ms in perception, window of {longer}, {name}",
            times,
            f"in perception, {LONG_S:g} s",
            f"in perception, {SHORT_S:g} s",
            at_most=1.2,
        ),
    ]


def against_transformers(bundle: Path) -> list[Figure]:
    """Measure the whole window, and a hop in a window of that length, against ``ASTFeatureExtractor``."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "At least one mel filter")  # with AST's own 128 bins
        extractor = ASTFeatureExtractor()
    samples = sound(AST_LOG_MEL.samples_for(extractor.max_length) / SAMPLE_RATE_HZ)

    def ours() -> Float32:
        return normalized_window(log_mel(samples, AST_LOG_MEL), extractor.max_length, AST_LOG_MEL)

    def theirs() -> Float32:
        given = extractor(samples, sampling_rate=SAMPLE_RATE_HZ, return_tensors="np")
        return np.asarray(given["input_values"][0])

    _assert_close("ASTFeatureExtractor's log-mel", theirs(), ours(), SAME_LOG_MEL, np.max)
    hop = perceived_hop(bundle, AST_LOG_MEL, len(samples) / SAMPLE_RATE_HZ)
    peer, one = "ASTFeatureExtractor", "100 ms in perception"
    times = interleaved({"log_mel": ours, one: hop, peer: theirs}, REPETITIONS)
    return [
        times_as_fast("log-mel of 10.24 s, AST", times, "log_mel", peer),
        times_as_fast("100 ms in perception, against the window anew, AST", times, one, peer, at_least=100.0),
    ]


def with_pil(image: RgbImage, side_px: int) -> Float32:
    """Prepare a frame as ``prepare_frame`` does, with PIL."""
    height, width = image.shape[:2]
    resized = Image.fromarray(image)
    resized = resized.resize((min(width, side_px), min(height, side_px)), Image.Resampling.BOX)
    if resized.size != (side_px, side_px):
        resized = resized.resize((side_px, side_px), Image.Resampling.BILINEAR)
    scaled = np.asarray(resized, np.float32) * np.float32(1 / 127.5) - np.float32(1)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))


def with_pytorch(image: RgbImage, side_px: int) -> Float32:
    """Prepare a frame as ``prepare_frame`` does, with the calls of ``transformers``' torchvision backend."""
    batch = torch.from_numpy(image).permute(2, 0, 1)[None]  # (1, 3, H, W), channels last in memory
    size = (side_px, side_px)
    square = torch.nn.functional.interpolate(batch, size, mode="bilinear", antialias=True)
    return ((square[0].float() * (1 / 127.5)) - 1).contiguous().numpy()


def frame_figures(size: str, side_px: int) -> list[Figure]:
    """Measure the preparation of one frame."""
    image = next(draw_frames(works()[4], 1, 1, *SIZES[size]))
    filter_ = Image.Resampling.BOX if min(image.shape[:2]) >= side_px else Image.Resampling.BILINEAR
    square = {"height": side_px, "width": side_px}
    processor = SiglipImageProcessorPil(
        size=square, resample=filter_, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    config = ImageConfig(side_px)
    peers: dict[str, Callable[[], Float32]] = {
        "PIL": lambda: with_pil(image, side_px),
        "PyTorch": lambda: with_pytorch(image, side_px),
        "SiglipImageProcessorPil": lambda: np.asarray(
            processor(image, return_tensors="np")["pixel_values"][0]
        ),
    }
    ours = prepare_frame(image, config)
    gaps = {name: _assert_close(name, call(), ours, SAME_PIXELS, np.mean) for name, call in peers.items()}
    times = interleaved({"prepare_frame": lambda: prepare_frame(image, config), **peers}, REPETITIONS)
    what = f"{size} picture to {side_px} px"
    return [
        times_as_fast(f"{what}, {name} (differs by {gaps[name]:.4f})", times, "prepare_frame", name)
        for name in peers
    ]


def _assert_close(
    what: str, got: Float32, expected: Float32, limit: float, measure: Callable[[Float32], np.floating[Any]]
) -> float:
    """Return the largest or the mean absolute difference; raise RuntimeError if it is above ``limit``."""
    if got.shape != expected.shape:
        raise RuntimeError(f"{what} has shape {got.shape}, expected {expected.shape}")
    gap = float(measure(np.abs(got - expected)))
    if not gap <= limit:
        raise RuntimeError(f"{what} differs from ours by {gap:.1e}, more than {limit:g}")
    return gap


def measure(folder: Path, full: bool) -> Section:
    """Measure the section; the full set is the same."""
    threads = usable_cpus()
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    branch = "torchaudio's" if is_speech_available() else "NumPy"
    method = METHOD.format(log_mel=SAME_LOG_MEL, branch=branch, threads=threads, pixels=SAME_PIXELS)
    section = Section("Front end", method)
    bundle = tiny_bundle(folder)
    for name, config in LOG_MELS.items():
        section.figures += incremental(bundle, name, config)
    section.figures += against_transformers(bundle)
    for size in SIZES:
        for side_px in SIDES_PX:
            section.figures += frame_figures(size, side_px)
    return section
