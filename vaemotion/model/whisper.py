"""Whisper's encoder from a local folder, its table of positions cut to the audio window.

In: the folder of a Whisper as its authors publish it, with or without its decoder. Out: the configuration of
``WhisperEncoder`` and its weights, every one of them from the folder.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from transformers.models.whisper import modeling_whisper

from vaemotion.contract.audio import WHISPER_LOG_MEL, LogMelConfig
from vaemotion.contract.errors import UsageError
from vaemotion.contract.front_end import FrontEnd
from vaemotion.model.audio_encoders import WhisperEncoderConfig
from vaemotion.model.strict_loading import load_strictly
from vaemotion.model.weights_folder import FolderWeights

MODEL_TYPE = "whisper"
STEP_S = 0.02  # a row of the table of positions
_ENCODER = re.compile(r"(?:model\.)?encoder\.(.+)")  # names of a whole Whisper's tensors
_POSITIONS = "embed_positions.weight"


def read_whisper(
    folder: Path, stored: Mapping[str, Any], front_end: FrontEnd
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return ``AudioPathwayConfig.encoder`` for the front end's window, and ``WhisperEncoder``'s weights.

    stored: the folder's ``config.json``. Raises UsageError when the front end is not Whisper's, or for
    weights that are not those of the configuration.
    """
    try:
        config = WhisperEncoderConfig(
            frames=front_end.audio_window_frames,
            n_mels=stored["num_mel_bins"],
            width=stored["d_model"],
            layers=stored["encoder_layers"],
            heads=stored["encoder_attention_heads"],
            mlp=stored["encoder_ffn_dim"],
            activation=stored["activation_function"],
            dropout=stored.get("dropout", 0.0),
        )
        rows = int(stored["max_source_positions"])
        built = config.by_transformers()
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{folder / 'config.json'} does not describe a Whisper ({error}); copy the config.json that "
            f"belongs to these weights"
        ) from error
    _check_log_mel(folder, config.n_mels, front_end.log_mel)
    if config.steps > rows:
        raise UsageError(
            f"{folder} takes at most {rows * STEP_S:g} s of sound; set windows.audio_window_s to that or less"
        )
    weights = _EncoderWeights(folder, rows, config.steps)
    network = load_strictly(modeling_whisper.WhisperEncoder, built, folder, weights)
    tensors = {f"whisper.{name}": tensor for name, tensor in network.state_dict().items()}
    return {"kind": MODEL_TYPE, **asdict(config)}, tensors


def _check_log_mel(folder: Path, n_mels: int, given: LogMelConfig) -> None:
    """Raise UsageError, with the settings to change, unless the log-mel is Whisper's."""
    expected, found = asdict(replace(WHISPER_LOG_MEL, n_mels=n_mels)), asdict(given)
    wrong = [
        f"--set log_mel.{name}={value}" for name, value in expected.items() if not _same(value, found[name])
    ]
    if wrong:
        raise UsageError(
            f"{folder} takes Whisper's log-mel of {n_mels} mels, the configuration gives another; start from "
            f"configs/smolvlm2-500m-whisper.toml, or add {' '.join(wrong)}"
        )


def _same(expected: object, found: object) -> bool:
    if isinstance(expected, float) and isinstance(found, int | float):
        return math.isclose(expected, found, rel_tol=1e-6)
    return expected == found


class _EncoderWeights(Mapping[str, np.ndarray]):
    """The encoder's tensors of a folder under its own names; the positions end after ``steps`` rows."""

    def __init__(self, folder: Path, rows: int, steps: int) -> None:
        self._weights, self._steps = FolderWeights(folder), steps
        of_whole = {match[1]: name for name in self._weights if (match := _ENCODER.fullmatch(name))}
        self._stored = of_whole or {name: name for name in self._weights}
        shape = self._weights.shapes().get(self._stored.get(_POSITIONS, ""))
        if shape and shape[0] != rows:
            raise UsageError(
                f"{folder} holds {shape[0]} positions, its config.json says {rows}; copy config.json and "
                f"weights of one model"
            )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor; no data is read."""
        stored = self._weights.shapes()
        shapes = {name: stored[whole] for name, whole in self._stored.items()}
        cut = {name: (self._steps, *shape[1:]) for name, shape in shapes.items() if name == _POSITIONS}
        return shapes | cut

    def __getitem__(self, name: str) -> np.ndarray:
        values = self._weights[self._stored[name]]
        return values[: self._steps] if name == _POSITIONS else values

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)
