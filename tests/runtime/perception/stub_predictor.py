"""A predictor over engines that take no time: tokens and readings follow their inputs, and fail on demand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from tokenizers import Tokenizer

from runtime.engines.io import Arrays
from runtime.engines.language_model import AbsentLanguageModel, read_token_embeddings
from runtime.perception.predictor import Constants, DevicePredictor, Predictor
from tests.paths import ROOT
from vaemotion.contract.bundle import component_path, read_manifest

READY = ROOT / "models" / "vaemotion-tiny-bundle"
Outputs = dict[str, np.ndarray]


class StubEngine:
    """An engine that computes its outputs with ``compute``; those of ``broken_runs`` hold one ``value``."""

    def __init__(
        self, compute: Callable[[Arrays], Outputs], broken_runs: range = range(0), value: float = np.nan
    ) -> None:
        self.compute, self.broken_runs, self.value = compute, broken_runs, value
        self.runs = 0

    def run(self, arrays: Arrays) -> Outputs:
        outputs = self.compute(arrays)
        if self.runs in self.broken_runs:
            for output in outputs.values():
                output.flat[output.size // 2] = self.value
        self.runs += 1
        return outputs


def stub_predictor(**broken: range) -> DevicePredictor:
    """Return the predictor; ``broken``: runs of an engine, by role, in which its outputs hold one NaN."""
    manifest = read_manifest(READY)
    constants = replace(Constants.of(manifest), tokens_per_frame=2, token_width=8, audio_tokens=3)
    compute = {
        "vision_encoder": lambda a: {"tokens": _tokens(a["pixels"], constants.tokens_per_frame)},
        "audio_encoder": lambda a: {"tokens": _tokens(a["log_mel"], constants.audio_tokens)},
        "emo_adapter": lambda a: _affect(a, len(constants.emotions)),
    }
    engines = {role: StubEngine(make, broken.get(role, range(0))) for role, make in compute.items()}
    return Predictor(
        constants,
        engines,
        AbsentLanguageModel(read_token_embeddings(READY, manifest)),
        Tokenizer.from_file(str(component_path(READY, manifest.component("tokenizer")))),
        np.load(component_path(READY, manifest.component("delimiters"))),
    )


def _tokens(inputs: np.ndarray, count: int) -> np.ndarray:
    """Return (B, count, 8) float32: a function of each input."""
    of_each = inputs.reshape(len(inputs), -1)[:, : 8 * count]
    return np.tanh(of_each).reshape(len(inputs), count, 8).astype(np.float32)


def _affect(arrays: Arrays, emotions: int) -> Outputs:
    visual, audio = arrays["visual_tokens"], arrays["audio_tokens"]  # (B, n, 8)
    sums = np.stack([visual.mean((1, 2)), audio.mean((1, 2))], 1)  # (B, 2)
    shares = np.abs(visual[:, -1, :1] + np.arange(1, emotions + 1))
    return {
        "valence_arousal": np.tanh(sums),
        "spread": 0.1 + np.abs(sums),
        "emotions": shares / shares.sum(1, keepdims=True),
        "enhanced_visual_tokens": visual + 1,
        "enhanced_audio_tokens": audio + 1,
    }
