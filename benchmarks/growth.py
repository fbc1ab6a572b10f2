"""What a reading costs when something grows: the window of sound, readings per second, the source's frame rate, tokens per picture, the prompt."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.device_runs import opened, stream
from benchmarks.encoders import component
from benchmarks.figures import Curve, Figure, Section
from benchmarks.front_end import LOG_MELS, perceived_hop, sound
from benchmarks.material import clip, tiny_bundle
from benchmarks.timing import Times, in_turns, interleaved, ratio
from export.to_onnx import ADAPTER_OUTPUTS, DeviceAdapter, Part, export_onnx
from runtime.engines import OnnxRuntimeEngine
from runtime.language_model import LanguageModel
from runtime.messages import End, Message
from runtime.predictor import Constants, DevicePredictor, Tokens, adapter_inputs
from vaemotion.contract.audio import log_mel, normalised_window
from vaemotion.contract.windows import WindowConfig, encode_count
from vaemotion.model.emo_adapter import EmoAdapter, EmoAdapterConfig

REPETITIONS = 5
WINDOWS_S = (2.5, 5.0, 10.0, 20.0, 40.0)
CLIP_S = 5.0
FRAME_RATES = (10, 15, 30, 60)
READINGS_PER_S = (1, 2, 5, 10)
TOKENS_PER_PICTURE = (4, 16, 64)
PROMPT_TOKENS = (16, 32, 64, 128, 256, 384)
WRITTEN_TOKENS = 16
METHOD = """Medians of {repetitions} interleaved rounds. *Window*: one hop of 100 ms through perception without its encoder (see the front end's section), beside the log-mel of the whole
window. *Readings per second* and *frame rate*: procedural clips of {clip_s:g} s, 480p, through the runtime's session at full pace on the bundle of `vaemotion-tiny`, engines on one thread, no
narrator; CPU time of perception is the sum of its stages (pictures prepared, log-mel, encoders, EmoAdapter), *whole process* has decoding with it. The same works at another frame rate must
be encoded equally often, and that is asserted. Fewer readings per second are a session's `schedule` on the bundle's grid. *Tokens per picture*: an EmoAdapter with random weights at the bundle's width over
{frames} pictures, exported by `vaemotion export`'s function and run in the runtime's engine; and the bundle's language model, reading the {language_frames} pictures that it is shown. *Prompt*: the same language model after its
prefix, and one token more after so long a prompt. {threads} threads for both."""


@dataclass(frozen=True)
class Run:
    """A clip through the session: CPU milliseconds per second of media."""

    whole_ms: float
    perception_ms: float
    end: End

    @property
    def reading_ms(self) -> float:
        """Of perception, per picture with its window of sound: the readings at a clip's two ends have only one of them."""
        return self.perception_ms * self.end.time_s / self.end.encodes["vision_encoder"]


class Ending:
    """A sink that keeps a run's last message."""

    def __init__(self) -> None:
        self.end: End | None = None

    def publish(self, message: Message) -> None:
        if isinstance(message, End):
            self.end = message

    def close(self) -> None:
        """Nothing to close."""


def run(predictor: DevicePredictor, path: Path, schedule: WindowConfig | None = None) -> Run:
    """A file at full pace, without a narrator."""
    ending = Ending()
    began_s = time.process_time()
    stream(predictor, path, "max", {"ending": ending}, schedule)
    whole_s, end = time.process_time() - began_s, ending.end
    assert end is not None
    perception = [
        stage["cpu_s"] for name, stage in end.stages_ms.items() if not name.startswith(("decode", "sink "))
    ]
    return Run(1e3 * whole_s / end.time_s, 1e3 * sum(perception) / end.time_s, end)


def window_length(bundle: Path) -> list[Curve]:
    """One hop of sound against the whole window, for windows of any length."""
    curves: list[Curve] = []
    for name, config in LOG_MELS.items():
        calls: dict[str, Callable[[], object]] = {}
        for window_s in WINDOWS_S:
            samples, n_frames = sound(window_s), round(window_s / config.hop_s)
            calls[f"whole window, {window_s:g} s"] = lambda samples=samples, n=n_frames, config=config: (
                normalised_window(log_mel(samples, config), n, config)
            )
            calls[f"incremental, {window_s:g} s"] = perceived_hop(bundle, config, window_s)
        times = interleaved(calls, REPETITIONS)
        for kind in ("whole window", "incremental"):
            medians = [times[f"{kind}, {window_s:g} s"].median_ms for window_s in WINDOWS_S]
            curves.append(
                _curve("window", f"{kind}, {name}", "window of sound (s)", "ms per hop of 100 ms", WINDOWS_S, medians)
            )  # fmt: skip
    return curves


def frame_rate(bundle: Path, folder: Path) -> tuple[list[Curve], list[Figure]]:
    """The same works shown at other rates: encoded equally often, whatever the rate."""
    predictor = opened(bundle, 1)
    paths = {f"{rate} fps": clip(folder, CLIP_S, rate) for rate in FRAME_RATES}
    runs = in_turns(
        {name: lambda path=path: run(predictor, path) for name, path in paths.items()},
        REPETITIONS,
    )
    hop_s = predictor.constants.front_end.windows.frame_hop_s
    counts = {name: [r.end.encodes["vision_encoder"] for r in kept] for name, kept in runs.items()}
    for name, encoded in counts.items():
        if set(encoded) != {encode_count(CLIP_S, hop_s)}:
            raise RuntimeError(f"at {name} {encoded} pictures were encoded, expected one per {hop_s} s")
    x = "frames per second of the source"
    slow, fast = (f"{rate} fps" for rate in (FRAME_RATES[0], FRAME_RATES[-1]))
    encodes = counts[fast][0] / counts[slow][0]
    figures = [
        Figure(
            f"pictures encoded, {fast} over {slow}", encodes, encodes, encodes,
            ours=f"{fast}: {counts[fast][0]}", peer=f"{slow}: {counts[slow][0]}", at_most=1.0,
        ),
        _flat(
            f"CPU time of perception, {fast} over {slow}", runs[fast], runs[slow], lambda r: r.perception_ms,
            (fast, slow), "ms per s of media",
        ),
    ]  # fmt: skip
    return _run_curves("frame-rate", x, FRAME_RATES, list(runs.values())), figures


def readings_per_s(bundle: Path, folder: Path) -> tuple[list[Curve], list[Figure]]:
    """The same clip with fewer readings: what a second costs is in proportion, what a reading costs is not."""
    predictor, path = opened(bundle, 1), clip(folder, CLIP_S)
    windows = predictor.constants.front_end.windows
    schedules = {
        f"{rate} readings/s": replace(
            windows, frame_hop_s=1 / rate, frame_spacing_s=1 / rate, audio_stride_s=1 / rate
        )
        for rate in READINGS_PER_S
    }
    runs = in_turns({name: lambda s=schedule: run(predictor, path, s) for name, schedule in schedules.items()}, REPETITIONS)  # fmt: skip
    few, many = (f"{rate} readings/s" for rate in (READINGS_PER_S[0], READINGS_PER_S[-1]))
    flat = _flat(
        f"CPU time of a reading, {many} over {few}", runs[many], runs[few], lambda r: r.reading_ms,
        (many, few), "ms per reading",
    )  # fmt: skip
    x = "readings per second"
    return _run_curves("readings", x, READINGS_PER_S, list(runs.values())), [flat]


def tokens_per_picture(bundle: Path, folder: Path, threads: int) -> list[Curve]:
    """EmoAdapter and language model over pictures of more and more tokens."""
    predictor = opened(bundle, threads)
    language_frames = predictor.constants.front_end.windows.language_frames
    adapters: dict[str, Callable[[], object]] = {}
    prefills: dict[str, Callable[[], object]] = {}
    for count in TOKENS_PER_PICTURE:
        engine, arrays = adapter_of(predictor.constants, count, folder, threads)
        adapters[f"{count}, EmoAdapter"] = lambda engine=engine, arrays=arrays: engine.run(arrays)
        rows = _rows(predictor.language_model, language_frames * count)
        prefills[f"{count}, prefill"] = lambda rows=rows: predictor.language_model.logits(rows)
    times = interleaved({**adapters, **prefills}, REPETITIONS)
    names = {"EmoAdapter": adapters, f"language model, {language_frames} pictures": prefills}
    return [
        _curve(
            "tokens", name, "tokens per picture", "ms", TOKENS_PER_PICTURE, [times[c].median_ms for c in calls]
        )
        for name, calls in names.items()
    ]  # fmt: skip


def adapter_of(
    constants: Constants, count: int, folder: Path, threads: int
) -> tuple[OnnxRuntimeEngine, dict[str, np.ndarray]]:
    """An EmoAdapter with random weights for ``count`` tokens per picture, and a full window of random tokens for it."""
    wider = replace(constants, tokens_per_frame=count)
    noise, frames = np.random.default_rng(0), constants.front_end.windows.frames
    tokens = Tokens(
        noise.standard_normal((frames, count, wider.token_width), np.float32),
        np.linspace(2, 0, frames, dtype=np.float32),
        noise.standard_normal((wider.audio_tokens, wider.token_width), np.float32),
        0.0,
    )
    arrays = dict(adapter_inputs(tokens, wider))
    file = folder / f"emo-adapter-{wider.token_width}-wide-{count}-tokens.onnx"
    if not file.is_file():
        print(f"exporting {file}", flush=True)
        torch.manual_seed(0)
        module = DeviceAdapter(EmoAdapter(EmoAdapterConfig(), wider.token_width))
        examples = {name: torch.from_numpy(np.repeat(array, 2, axis=0)) for name, array in arrays.items()}
        export_onnx(Part(module, examples, ADAPTER_OUTPUTS), file.with_suffix(".tmp"))
        file.with_suffix(".tmp").replace(file)
    return OnnxRuntimeEngine(file, component(file, "emo_adapter", "fp32"), threads), arrays


def prompt_length(bundle: Path, threads: int) -> list[Curve]:
    """Reading a prompt of n tokens, and writing one token after it."""
    model = opened(bundle, threads).language_model
    calls: dict[str, Callable[[], object]] = {}
    for count in PROMPT_TOKENS:
        rows = _rows(model, count)
        for written in (1, 1 + WRITTEN_TOKENS):
            calls[f"{count}, {written}"] = lambda rows=rows, written=written: model.generate(
                rows, max_tokens=written, stop_ids=()
            )
    times = interleaved(calls, REPETITIONS)
    read = [times[f"{count}, 1"].median_ms for count in PROMPT_TOKENS]
    write = [
        _difference_ms(times[f"{count}, {1 + WRITTEN_TOKENS}"], times[f"{count}, 1"]) / WRITTEN_TOKENS
        for count in PROMPT_TOKENS
    ]
    x, y = "tokens of the prompt", "ms"
    return [
        _curve("prompt", "the whole prompt read", x, y, PROMPT_TOKENS, read),
        _curve("prompt", "one token written after it", x, y, PROMPT_TOKENS, write),
    ]


def _rows(model: LanguageModel, count: int) -> np.ndarray:
    return model.embed(np.random.default_rng(0).integers(0, model.vocab_size, count).tolist())


def _difference_ms(longer: Times, shorter: Times) -> float:
    return statistics.median(a - b for a, b in zip(longer.wall_ms, shorter.wall_ms, strict=True))


def _curve(plot: str, name: str, x_label: str, y_label: str, x: Sequence[float], y: Sequence[float]) -> Curve:
    return Curve(plot, name, x_label, y_label, [float(v) for v in x], [round(v, 4) for v in y])


def _run_curves(plot: str, x_label: str, x: Sequence[float], runs: Sequence[list[Run]]) -> list[Curve]:
    whole = [statistics.median(r.whole_ms for r in kept) for kept in runs]
    perception = [statistics.median(r.perception_ms for r in kept) for kept in runs]
    y_label = "CPU ms per second of media"
    return [
        _curve(plot, "whole process", x_label, y_label, x, whole),
        _curve(plot, "perception", x_label, y_label, x, perception),
    ]


def _flat(
    what: str, above: list[Run], below: list[Run], of: Callable[[Run], float], names: tuple[str, str], unit: str
) -> Figure:  # fmt: skip
    """What must not grow: at most a fifth, for a machine's own noise."""
    values = [of(r) for r in above], [of(r) for r in below]
    found = ratio(*values)
    told = [f"{name}: {statistics.median(v):.3g} {unit}" for name, v in zip(names, values, strict=True)]
    return Figure(what, found.median, found.least, found.most, ours=told[0], peer=told[1], at_most=1.2)


def measure(folder: Path, full: bool) -> Section:
    """See the module's docstring; the short set is the whole."""
    threads = len(os.sched_getaffinity(0))
    bundle = tiny_bundle(folder)
    windows = opened(bundle, threads).constants.front_end.windows
    method = METHOD.format(
        repetitions=REPETITIONS, clip_s=CLIP_S, threads=threads, frames=windows.frames, language_frames=windows.language_frames
    )  # fmt: skip
    section = Section("Growth", method, curves=window_length(bundle))
    for curves, figures in (readings_per_s(bundle, folder), frame_rate(bundle, folder)):
        section.curves += curves
        section.figures += figures
    section.curves += tokens_per_picture(bundle, folder, threads) + prompt_length(bundle, threads)
    return section
