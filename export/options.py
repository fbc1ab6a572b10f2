"""Options of an export, checked before the first step.

In: options and the checkpoint. Out: calibration windows, or one error that names the option, its value and
the way out.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from export.clips import CLIPS, CalibrationWindows
from export.components import FLOAT_TYPES
from export.errors import ExportError
from export.int8.judge import Budget
from export.int8.search import LEAST_SEARCH_WINDOWS
from export.source import Source
from export.workshop import ExportFolder
from vaemotion.contract.errors import UsageError

PRECISIONS = ("fp32", "fp16", "int8")
LEAST_WINDOWS = 16


@dataclass(frozen=True)
class Options:
    """Options of an export.

    ``language_models``: GGUF types, of which INT8 chooses by itself; F16, the reference, is always made.
    ``max_drop``: largest loss of CCC on each path and of content accuracy, in [0, 1]; None for INT8 without
    search and judgement. ``windows``: judge INT8. ``calibration``: a manifest, whose split ``train`` is used;
    None for procedural art, which needs a checkpoint that was trained on it. ``clips``: on which the bundle
    is compared with the checkpoint.
    """

    precision: str = "fp32"
    max_drop: float | None = Budget().max_drop
    windows: int = 2000
    calibration: Path | None = None
    media_root: Path = Path()
    calibration_windows: int = 256
    clips: int = CLIPS
    language_models: tuple[str, ...] = FLOAT_TYPES


DEFAULTS = Options()


def parse_drop(text: str) -> float | None:
    """Parse ``0.5pp`` (percentage points of CCC and accuracy), ``0.005``, or ``none``. Raises UsageError."""
    if text == "none":
        return None
    try:
        value = float(text.removesuffix("pp")) / (100 if text.endswith("pp") else 1)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise UsageError(f"--max-drop takes percentage points such as 0.5pp, or none, got {text!r}")
    return value


def language_models(options: Options) -> tuple[str, ...]:
    """List the GGUF types that are written from the weights, F16 among them."""
    return tuple(t for t in FLOAT_TYPES if t == "F16" or t in options.language_models)


def check_options(options: Options) -> None:
    """Check everything about the options that does not need the checkpoint. Raises UsageError.

    Raises ModuleNotFoundError for a package that only a later step loads.
    """
    if options.precision not in PRECISIONS:
        raise UsageError(f"--precision must be one of {', '.join(PRECISIONS)}, got {options.precision!r}")
    if options.max_drop is not None and not 0 < options.max_drop < 1:
        raise UsageError(f"--max-drop must be between 0 and 1 (100pp), got {options.max_drop}")
    if unknown := sorted(set(options.language_models) - set(FLOAT_TYPES)):
        raise UsageError(f"--language-model must be one of {', '.join(FLOAT_TYPES)}, got {unknown[0]!r}")
    if options.precision == "int8" and options.language_models != FLOAT_TYPES:
        raise UsageError(
            "--language-model: INT8 chooses the language model by its budget; leave the option out"
        )
    for flag, value, least in (
        ("--windows", options.windows, LEAST_WINDOWS),
        ("--calibration-windows", options.calibration_windows, LEAST_WINDOWS),
        ("--clips", options.clips, 1),
    ):
        if value < least:
            raise UsageError(f"{flag} must be at least {least}, got {value}")
    if options.calibration is not None:
        if options.precision == "fp32":
            raise UsageError("--calibration: FP32 has no calibration; give --precision fp16 or int8 with it")
        if not options.media_root.is_dir():
            raise UsageError(f"--media-root: there is no folder {options.media_root}")
    for package in ("llama_cpp", "onnxscript"):
        if find_spec(package) is None:
            raise ModuleNotFoundError(name=package)


def calibration_windows(source: Source, options: Options) -> CalibrationWindows | None:
    """Prepare the calibration windows, or None where the precision needs none.

    Raises ExportError for a checkpoint that needs a manifest, UserError for a manifest that cannot be used.
    """
    if options.precision == "fp32":
        return None
    if options.calibration is None and not source.knows_procedural_art:
        raise ExportError(
            f"{options.precision} needs calibration windows, and this checkpoint was not trained on "
            "procedural art; give --calibration MANIFEST --media-root FOLDER with data like its training data"
        )
    front_end, count = source.model.config.front_end, options.calibration_windows
    return CalibrationWindows(front_end, count, options.calibration, options.media_root)


def check_space(source: Source, folder: ExportFolder, options: Options) -> None:
    """Raise ExportError where the disk cannot hold even the files that are sure to be written."""
    weights = sum(p.numel() for part in source.parts.values() for p in part.module.parameters())
    language_model = sum(tensor.size for tensor in source.language_model_tensors().values())
    # FP32 files hold exact weights in float16. In GGUF a weight takes two bytes as F16, one as Q8_0.
    needed = 2 * weights + (1 + len(language_models(options))) * language_model
    if options.precision != "fp32":
        needed += 2 * weights
    if options.precision == "int8":
        needed += weights + language_model  # at least half of it in INT8, for two schemes; Q5_0, Q4_K_M
    free = shutil.disk_usage(folder.folder).free + folder.store.size()
    if free < needed:
        raise ExportError(
            f"{folder.folder.parent} has {free / 1e6:,.0f} MB for this export, which needs at least "
            f"{needed / 1e6:,.0f} MB; make room or choose another --out"
        )


def check_windows(counts: dict[str, Any], options: Options) -> None:
    """Raise ExportError for windows that leave an engine without calibration, or INT8 without a search."""
    least = LEAST_SEARCH_WINDOWS if options.precision == "int8" and options.max_drop is not None else 0
    needed = {"frames": ("with_frames", 1), "sound": ("with_sound", 1), "both": ("with_both", least)}
    for what, (name, minimum) in needed.items():
        if counts[name] < minimum:
            words = "frames and sound" if what == "both" else what
            raise ExportError(
                f"{options.calibration}: {counts[name]} of {options.calibration_windows} calibration windows "
                f"have {words}, {options.precision} needs {minimum}; add such items to the split 'train'"
            )
