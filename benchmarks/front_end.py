"""Sound and pictures on their way to the encoders: incremental log-mel against the whole window and against ``transformers``, pictures
against PIL, PyTorch and ``transformers``."""

from __future__ import annotations

import os
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
from benchmarks.material import pictures, tiny_bundle, works
from benchmarks.timing import interleaved
from runtime.messages import Sound
from runtime.perception import Perception
from runtime.predictor import Constants, DevicePredictor
from runtime.sources import SOUND_BLOCK_SAMPLES
from vaemotion.contract.audio import (
    AST_LOG_MEL,
    SAMPLE_RATE_HZ,
    LogMelConfig,
    StreamingLogMel,
    log_mel,
    normalised_window,
)
from vaemotion.contract.bundle import read_manifest
from vaemotion.contract.front_end import FrontEnd
from vaemotion.contract.image import ImageConfig, prepare_frame
from vaemotion.contract.windows import WindowConfig
from vaemotion.data.procedural_art import synthesise

Float32 = npt.NDArray[np.float32]
Picture = npt.NDArray[np.uint8]
Call = Callable[[], object]

REPETITIONS = 9
HOP_SAMPLES = 1600  # 100 ms: ten readings a second
WINDOW_S, SHORT_S, LONG_S = 10.0, 2.5, 40.0
LOG_MELS = {"tiny": LogMelConfig(), "AST": AST_LOG_MEL}
SIZES = {"480p": (854, 480), "1080p": (1920, 1080)}
SIDES_PX = (96, 512)
SAME_LOG_MEL = 1e-5
SAME_PIXELS = 0.02  # mean absolute difference of values in [-1, 1]: two and a half of 255 levels
METHOD = """Sound: the whole window is `log_mel` of 10 s of a procedural work and its normalisation, as one computes it who keeps no state; `tiny` has 64 bins every 20 ms, `AST` 128 bins every
10 ms. Incremental is `StreamingLogMel.push` of the next 100 ms, or of the next frame alone. 100 ms are a hundredth of the window's frames: more than 100 is possible only because the whole
window's arrays leave the caches, less is what NumPy's calls cost on few frames. *In perception* is `Perception.listen` and `hear` with an encoder that does nothing: log-mel of 100 ms taken
in as one block, the window kept, and normalised as the encoder reads it. The incremental frames, of 100 ms and of 10 ms blocks, are asserted equal to the whole's within {log_mel:g}, and so is
`ASTFeatureExtractor`'s output ({branch} branch, 10.24 s, nothing to pad), which is also what 100 ms in perception are compared with: it computes the whole window anew. Pictures: an RGB array as a decoder gives it → (3, side, side) float32, squashed, mean and standard deviation 0.5; {threads}
threads where a library has any. PIL gets its cheapest filter of like quality (BOX where the picture shrinks, BILINEAR where it grows), and so does `SiglipImageProcessorPil`; PyTorch is
`interpolate` on uint8, bilinear with antialiasing, which `transformers`' torchvision backend calls. The filters are not the same: the mean absolute difference of values in [-1, 1] stands in
each row and is asserted to be at most {pixels:g}."""


@dataclass(frozen=True)
class Silent:
    """An encoder that does nothing, so that what remains is the front end."""

    tokens: Float32

    def run(self, _arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, Float32]:
        return {"tokens": self.tokens[None]}


@dataclass(frozen=True)
class Listener:
    """What ``Perception`` needs of a predictor to listen and to hear."""

    constants: Constants
    engines: dict[str, Silent]


def sound(seconds: float) -> Float32:
    """(n,) float32 at 16 kHz."""
    return synthesise(works()[3], seconds).astype(np.float32)


def perceived_hop(bundle: Path, config: LogMelConfig, window_s: float) -> Call:
    """All that perception does with one hop of sound but the encoder, in a window of ``window_s`` that is full."""
    windows = WindowConfig(audio_window_s=window_s)
    constants = replace(Constants.of(read_manifest(bundle)), front_end=FrontEnd(config, windows=windows))
    silent = Silent(np.zeros((constants.audio_tokens, constants.token_width), np.float32))
    perception = Perception(cast(DevicePredictor, Listener(constants, {"audio_encoder": silent})))
    filling, hop = sound(window_s + 1), sound(1.0)[-HOP_SAMPLES:]
    perception.listen(Sound(window_s + 1, filling))

    def call() -> None:
        perception.listen(Sound(window_s + 1, hop))
        perception.hear()

    return call


def check_incremental(config: LogMelConfig) -> None:
    """Hop by hop, and block by block as the runtime's sources cut it: both equal the whole."""
    samples = sound(WINDOW_S)
    whole = log_mel(samples, config)
    for cut in (HOP_SAMPLES, SOUND_BLOCK_SAMPLES):
        stream = StreamingLogMel(config)
        pieces = [stream.push(samples[k : k + cut]) for k in range(0, len(samples), cut)]
        _assert_close(
            f"log-mel in blocks of {cut} samples", np.concatenate(pieces), whole, SAME_LOG_MEL, np.max
        )


def incremental(bundle: Path, name: str, config: LogMelConfig) -> list[Figure]:
    """One hop against the whole window; then what a longer window costs."""
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

    whole, one, ten, frame = (
        "whole window",
        "incremental",
        "incremental, ten blocks",
        "incremental, one frame",
    )
    calls: dict[str, Call] = {
        whole: lambda: normalised_window(log_mel(samples, config), n_frames, config),
        one: lambda: streams[WINDOW_S].push(hop),
        ten: in_blocks,
        frame: lambda: streams[WINDOW_S].push(hop[: config.hop_samples]),
    }
    for length_s in (SHORT_S, WINDOW_S, LONG_S):
        calls[f"{one}, {length_s:g} s"] = lambda stream=streams[length_s]: stream.push(hop)
        calls[f"in perception, {length_s:g} s"] = perceived_hop(bundle, config, length_s)
    times = interleaved(calls, REPETITIONS, tell=lambda told: print(f"{name}: {told}", flush=True))
    longer = f"{LONG_S:g} s over {SHORT_S:g} s"
    return [
        times_as_fast(f"log-mel of 100 ms, {name}", times, one, whole, at_least=100.0),
        times_as_fast(f"log-mel of one frame ({1e3 * config.hop_s:g} ms), {name}", times, frame, whole),
        times_as_fast(f"log-mel of 100 ms in blocks of 10 ms, {name}", times, ten, whole),
        times_as_fast(f"100 ms in perception, {name}", times, f"in perception, {WINDOW_S:g} s", whole),
        share_of(
            f"log-mel of 100 ms after {longer}, {name}",
            times, f"{one}, {LONG_S:g} s", f"{one}, {SHORT_S:g} s", at_most=1.2,
        ),
        share_of(
            f"100 ms in perception, window of {longer}, {name}",
            times, f"in perception, {LONG_S:g} s", f"in perception, {SHORT_S:g} s", at_most=1.2,
        ),
    ]  # fmt: skip


def against_transformers(bundle: Path) -> list[Figure]:
    """The whole window, and a hop that leaves the same window behind, against the class that they equal."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "At least one mel filter")  # of AST's own 128 bins
        extractor = ASTFeatureExtractor()
    samples = sound(AST_LOG_MEL.samples_for(extractor.max_length) / SAMPLE_RATE_HZ)

    def ours() -> Float32:
        return normalised_window(log_mel(samples, AST_LOG_MEL), extractor.max_length, AST_LOG_MEL)

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


def with_pil(picture: Picture, side_px: int) -> Float32:
    """As ``prepare_frame``, by PIL."""
    height, width = picture.shape[:2]
    image = Image.fromarray(picture)
    image = image.resize((min(width, side_px), min(height, side_px)), Image.Resampling.BOX)
    if image.size != (side_px, side_px):
        image = image.resize((side_px, side_px), Image.Resampling.BILINEAR)
    scaled = np.asarray(image, np.float32) * np.float32(1 / 127.5) - np.float32(1)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))


def with_pytorch(picture: Picture, side_px: int) -> Float32:
    """As ``prepare_frame``, by what ``transformers``' torchvision backend calls."""
    batch = torch.from_numpy(picture).permute(2, 0, 1)[None]  # (1, 3, H, W), channels last in memory
    size = (side_px, side_px)
    square = torch.nn.functional.interpolate(batch, size, mode="bilinear", antialias=True)
    return ((square[0].float() * (1 / 127.5)) - 1).contiguous().numpy()


def frames(size: str, side_px: int) -> list[Figure]:
    """One picture to one square."""
    picture = next(pictures(works()[4], 1, 1, *SIZES[size]))
    filter_ = Image.Resampling.BOX if min(picture.shape[:2]) >= side_px else Image.Resampling.BILINEAR
    square = {"height": side_px, "width": side_px}
    processor = SiglipImageProcessorPil(
        size=square, resample=filter_, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    config = ImageConfig(side_px)
    peers: dict[str, Callable[[], Float32]] = {
        "PIL": lambda: with_pil(picture, side_px),
        "PyTorch": lambda: with_pytorch(picture, side_px),
        "SiglipImageProcessorPil": lambda: np.asarray(
            processor(picture, return_tensors="np")["pixel_values"][0]
        ),
    }
    ours = prepare_frame(picture, config)
    gaps = {name: _assert_close(name, call(), ours, SAME_PIXELS, np.mean) for name, call in peers.items()}
    times = interleaved({"prepare_frame": lambda: prepare_frame(picture, config), **peers}, REPETITIONS)
    what = f"{size} picture to {side_px} px"
    return [
        times_as_fast(f"{what}, {name} (differs by {gaps[name]:.4f})", times, "prepare_frame", name)
        for name in peers
    ]


def _assert_close(
    what: str, got: Float32, expected: Float32, limit: float, measure: Callable[[Float32], np.floating[Any]]
) -> float:
    """The largest or the mean absolute difference. RuntimeError where it is more than ``limit``."""
    if got.shape != expected.shape:
        raise RuntimeError(f"{what} has shape {got.shape}, expected {expected.shape}")
    gap = float(measure(np.abs(got - expected)))
    if not gap <= limit:
        raise RuntimeError(f"{what} differs from ours by {gap:.1e}, more than {limit:g}")
    return gap


def measure(folder: Path, full: bool) -> Section:
    """See the module's docstring; the short set is the whole."""
    threads = len(os.sched_getaffinity(0))
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
            section.figures += frames(size, side_px)
    return section
