"""Growth of a reading's cost with window length, readings per second, frame rate, tokens, prompt."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.device_runs import open_bundle, stream
from benchmarks.encoders import component
from benchmarks.figures import Curve, Figure, Section
from benchmarks.front_end import LOG_MELS, perceived_hop, sound
from benchmarks.material import clip, tiny_bundle
from benchmarks.timing import Times, interleaved, interleaved_results, ratio
from export.to_onnx import ADAPTER_OUTPUTS, DeviceAdapter, Part, export_onnx
from runtime.engines.language_model import LanguageModel
from runtime.engines.open import OnnxRuntimeEngine
from runtime.machine.facts import usable_cpus
from runtime.messages import End, Message
from runtime.perception.predictor import Constants, DevicePredictor, Tokens, adapter_inputs
from vaemotion.contract.audio import log_mel, normalized_window
from vaemotion.contract.files import whole_file
from vaemotion.contract.windows import WindowConfig, encode_count
from vaemotion.model.emo_adapter import EmoAdapter, EmoAdapterConfig

REPETITIONS = 5
WINDOWS_S = (2.5, 5.0, 10.0, 20.0, 40.0)
CLIP_S = 5.0
FRAME_RATES = (10, 15, 30, 60)
READINGS_PER_S = (1, 2, 5, 10)
TOKENS_PER_FRAME = (4, 16, 64)
PROMPT_TOKENS = (16, 32, 64, 128, 256, 384)
WRITTEN_TOKENS = 16
METHOD = """Medians of {repetitions} interleaved rounds.

*Window*: one hop of 100 ms through perception without its encoder (see the front end's section), beside the
log-mel of the whole window.

*Readings per second* and *frame rate*: procedural clips of {clip_s:g} s, 480p, through the runtime's session
at full pace on the bundle of `vaemotion-tiny`, engines on one thread, no narrator. CPU time of perception is
the sum of its stages: frame preparation, log-mel, encoders, EmoAdapter. *Whole process* includes decoding.
The same works at another frame rate must be encoded equally often, which is asserted. Fewer readings per
second are a coarser schedule on the bundle's grid.

*Tokens per frame*: an EmoAdapter with random weights at the bundle's width over {frames} frames, exported as
by `vaemotion export` and run in the runtime's engine; and the bundle's language model on its
{language_frames} frames.

*Prompt*: the same language model reading a prompt after its prefix, and writing one token after it. {threads}
threads for both."""


@dataclass(frozen=True)
class Run:
    """The cost of a clip in the session: CPU time in ms per second of media."""

    whole_ms: float
    perception_ms: float
    end: End

    @property
    def reading_ms(self) -> float:
        """CPU time of perception per encoded frame, in ms.

        Frames are counted, not readings: readings at a clip's start and end lack the frame or the sound.
        """
        return self.perception_ms * self.end.time_s / self.end.encodes["vision_encoder"]


class EndSink:
    """A sink that keeps a run's end message."""

    def __init__(self) -> None:
        self.end: End | None = None

    def publish(self, message: Message) -> None:
        """Keep the end message, ignore others."""
        if isinstance(message, End):
            self.end = message

    def close(self) -> None:
        """Nothing to close."""


def run(predictor: DevicePredictor, path: Path, schedule: WindowConfig | None = None) -> Run:
    """Run a file through the session at full pace, without a narrator."""
    sink = EndSink()
    began_s = time.process_time()
    stream(predictor, path, "max", {"end": sink}, schedule)
    whole_s, end = time.process_time() - began_s, sink.end
    assert end is not None
    perception = [
        stage["cpu_s"] for name, stage in end.stages_ms.items() if not name.startswith(("decode", "sink "))
    ]
    return Run(1e3 * whole_s / end.time_s, 1e3 * sum(perception) / end.time_s, end)


def window_length(bundle: Path) -> list[Curve]:
    """Measure one hop of sound against the whole window, for windows of several lengths."""
    curves: list[Curve] = []
    for name, config in LOG_MELS.items():
        calls: dict[str, Callable[[], object]] = {}
        for window_s in WINDOWS_S:
            samples, n_frames = sound(window_s), round(window_s / config.hop_s)
            calls[f"whole window, {window_s:g} s"] = lambda samples=samples, n=n_frames, config=config: (
                normalized_window(log_mel(samples, config), n, config)
            )
            calls[f"incremental, {window_s:g} s"] = perceived_hop(bundle, config, window_s)
        times = interleaved(calls, REPETITIONS)
        for kind in ("whole window", "incremental"):
            medians = [times[f"{kind}, {window_s:g} s"].median_ms for window_s in WINDOWS_S]
            line, x, y = f"{kind}, {name}", "window of sound (s)", "ms per hop of 100 ms"
            curves.append(_curve("window", line, x, y, WINDOWS_S, medians))
    return curves


def frame_rate(bundle: Path, folder: Path) -> tuple[list[Curve], list[Figure]]:
    """Measure the same works at several frame rates; the number of encoded frames must not change."""
    predictor = open_bundle(bundle, 1)
    paths = {f"{rate} fps": clip(folder, CLIP_S, rate) for rate in FRAME_RATES}
    calls = {name: lambda path=path: run(predictor, path) for name, path in paths.items()}
    runs = interleaved_results(calls, REPETITIONS)
    hop_s = predictor.constants.front_end.windows.frame_hop_s
    counts = {name: [r.end.encodes["vision_encoder"] for r in kept] for name, kept in runs.items()}
    for name, encoded in counts.items():
        if set(encoded) != {encode_count(CLIP_S, hop_s)}:
            counted = ", ".join(map(str, encoded))
            raise RuntimeError(f"at {name}, {counted} frames were encoded, expected one per {hop_s} s")
    x = "frames per second of the source"
    slow, fast = (f"{rate} fps" for rate in (FRAME_RATES[0], FRAME_RATES[-1]))
    encodes = counts[fast][0] / counts[slow][0]
    encoded = Figure(
        f"pictures encoded, {fast} over {slow}",
        encodes,
        encodes,
        encodes,
        ours=f"{fast}: {counts[fast][0]}",
        peer=f"{slow}: {counts[slow][0]}",
        at_most=1.0,
    )
    times = {name: [r.perception_ms for r in runs[name]] for name in (fast, slow)}
    figures = [encoded, _flat(f"CPU time of perception, {fast} over {slow}", times, "ms per s of media")]
    return _run_curves("frame-rate", x, FRAME_RATES, list(runs.values())), figures


def readings_per_s(bundle: Path, folder: Path) -> tuple[list[Curve], list[Figure]]:
    """Measure the same clip with fewer readings per second; the cost of one reading must not change."""
    predictor, path = open_bundle(bundle, 1), clip(folder, CLIP_S)
    windows = predictor.constants.front_end.windows
    schedules = {
        f"{rate} readings/s": replace(
            windows, frame_hop_s=1 / rate, frame_spacing_s=1 / rate, audio_stride_s=1 / rate
        )
        for rate in READINGS_PER_S
    }
    calls = {name: lambda s=schedule: run(predictor, path, s) for name, schedule in schedules.items()}
    runs = interleaved_results(calls, REPETITIONS)
    few, many = (f"{rate} readings/s" for rate in (READINGS_PER_S[0], READINGS_PER_S[-1]))
    times = {name: [r.reading_ms for r in runs[name]] for name in (many, few)}
    flat = _flat(f"CPU time of a reading, {many} over {few}", times, "ms per reading")
    x = "readings per second"
    return _run_curves("readings", x, READINGS_PER_S, list(runs.values())), [flat]


def tokens_per_frame(bundle: Path, folder: Path, threads: int) -> list[Curve]:
    """Measure EmoAdapter and language model with more tokens per frame."""
    predictor = open_bundle(bundle, threads)
    model, language_frames = _language_model(predictor), predictor.constants.front_end.windows.language_frames
    adapters: dict[str, Callable[[], object]] = {}
    prefills: dict[str, Callable[[], object]] = {}
    for count in TOKENS_PER_FRAME:
        engine, arrays = adapter_of(predictor.constants, count, folder, threads)
        adapters[f"{count}, EmoAdapter"] = lambda engine=engine, arrays=arrays: engine.run(arrays)
        rows = _rows(model, language_frames * count)
        prefills[f"{count}, prefill"] = lambda rows=rows: model.logits(rows)
    times = interleaved({**adapters, **prefills}, REPETITIONS)
    names = {"EmoAdapter": adapters, f"language model, {language_frames} pictures": prefills}
    x, y = "tokens per picture", "ms"
    return [
        _curve("tokens", name, x, y, TOKENS_PER_FRAME, [times[c].median_ms for c in calls])
        for name, calls in names.items()
    ]


def adapter_of(
    constants: Constants, count: int, folder: Path, threads: int
) -> tuple[OnnxRuntimeEngine, dict[str, np.ndarray]]:
    """Export and open an EmoAdapter with random weights; return it with a full window of random tokens.

    ``count``: tokens per frame.
    """
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
        with whole_file(file) as temporary:
            export_onnx(Part(module, examples, ADAPTER_OUTPUTS), temporary)
    return OnnxRuntimeEngine(file, component(file, "emo_adapter", "fp32"), threads), arrays


def prompt_length(bundle: Path, threads: int) -> list[Curve]:
    """Measure reading a prompt of n tokens, and writing one token after it."""
    model = _language_model(open_bundle(bundle, threads))
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


def _language_model(predictor: DevicePredictor) -> LanguageModel:
    model = predictor.language_model
    if not isinstance(model, LanguageModel):
        raise SystemExit("python -m benchmarks growth: llama-cpp-python is missing; install 'vaemotion[llm]'")
    return model


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


def _flat(what: str, times: dict[str, list[float]], unit: str) -> Figure:
    """Compare the first times with the second; they must not grow. The limit of 1.2 allows for noise."""
    found = ratio(*times.values())
    ours, peer = (f"{name}: {statistics.median(values):.3g} {unit}" for name, values in times.items())
    return Figure(what, found.median, found.least, found.most, ours=ours, peer=peer, at_most=1.2)


def measure(folder: Path, full: bool) -> Section:
    """Measure the section; the full set is the same."""
    threads = usable_cpus()
    bundle = tiny_bundle(folder)
    windows = open_bundle(bundle, threads).constants.front_end.windows
    method = METHOD.format(
        repetitions=REPETITIONS,
        clip_s=CLIP_S,
        threads=threads,
        frames=windows.frames,
        language_frames=windows.language_frames,
    )
    section = Section("Growth", method, curves=window_length(bundle))
    for curves, figures in (readings_per_s(bundle, folder), frame_rate(bundle, folder)):
        section.curves += curves
        section.figures += figures
    section.curves += tokens_per_frame(bundle, folder, threads) + prompt_length(bundle, threads)
    return section
