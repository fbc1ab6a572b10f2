"""Options of an export, checked before the first step.

In: options and the checkpoint. Out: calibration windows and the held-out material that the export is judged
on, with a sentence for everything that will not be judged; or one error that names the option, its value and
the way out.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from calibration.confidence import LEAST_WORKS
from calibration.rated import RatedArt, RatedMaterial, RatedMedia
from export.clips import CLIPS, CalibrationWindows, ComparedClips
from export.components import FLOAT_TYPES
from export.errors import ExportError
from export.int8.judge import Budget
from export.int8.material import ArtMaterial, Material, MediaMaterial
from export.int8.search import LEAST_SEARCH_WINDOWS
from export.source import Source
from export.to_onnx import EXPORTERS
from export.workshop import ExportFolder
from vaemotion.contract.emotions import EMOTIONS
from vaemotion.contract.errors import UsageError
from vaemotion.contract.settings import Impossible
from vaemotion.contract.speech import STANDARD, Speech
from vaemotion.data.clips.held_out import HeldOut, open_held_out

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

    ``judge``: a manifest or shards with held-out media (`data.clips.held_out`) that INT8 is judged on and the
    bundle compared on. ``confidence``: a manifest whose split ``validation`` has the ratings that confidence
    is fitted on. None for what ``judge`` has of it, and for procedural art where the checkpoint was trained
    on it. All paths start from ``media_root``. ``question``: that narrations answer; empty for the standard
    one. ``exporter``: key of ``export.to_onnx.EXPORTERS``.
    """

    precision: str = "fp32"
    max_drop: float | None = Budget().max_drop
    windows: int = 2000
    calibration: Path | None = None
    media_root: Path = Path()
    calibration_windows: int = 256
    clips: int = CLIPS
    language_models: tuple[str, ...] = FLOAT_TYPES
    judge: Path | None = None
    confidence: Path | None = None
    question: str = ""
    exporter: str = "torch"

    def speech(self) -> Speech:
        """Return how the bundle's narrations are spoken. Raises UsageError for an impossible question."""
        try:
            return Speech(self.question).over(STANDARD)
        except Impossible as error:
            raise UsageError(f"--question {error.fields['question']}") from error


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
    if options.exporter not in EXPORTERS:
        raise UsageError(f"--exporter must be one of {', '.join(EXPORTERS)}, got {options.exporter!r}")
    options.speech()
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
    if options.calibration is not None and options.precision == "fp32":
        raise UsageError("--calibration: FP32 has no calibration; give --precision fp16 or int8 with it")
    given = (options.calibration, options.judge, options.confidence)
    if any(path is not None for path in given) and not options.media_root.is_dir():
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


@dataclass(frozen=True)
class HeldOutMaterial:
    """Material that an export is judged on.

    ``judged``: INT8's losses; None where they are not asked for, or cannot be judged. ``rated``: the
    confidence of readings, None where there are no ratings. ``compared``: clips on which the bundle is
    compared with the checkpoint. ``not_judged``: a sentence for everything that is missing.
    """

    judged: Material | None
    rated: RatedMaterial | None
    compared: ComparedClips
    not_judged: tuple[str, ...]

    @property
    def reads(self) -> dict[str, Any]:
        """Everything that it depends on, in JSON's types."""
        return {
            "judged": None if self.judged is None else self.judged.reads,
            "rated": None if self.rated is None else self.rated.reads,
            "compared": [self.compared.count, self.compared.reads],
        }


def held_out_material(
    source: Source, options: Options, windows: CalibrationWindows | None
) -> HeldOutMaterial:
    """Open the material that the export is judged on.

    Raises UsageError for a manifest that has none of it, or shares media with the calibration ``windows``.
    """
    front_end, knows_art = source.model.config.front_end, source.knows_procedural_art
    media: HeldOut | None = None
    if options.judge is not None:
        media = open_held_out(str(options.judge), options.media_root, front_end)
        if windows is not None:
            windows.refuse_shared(media)
    judged: Material | None = None
    if options.precision == "int8" and options.max_drop is not None:
        if media is not None:
            judged = MediaMaterial(media, front_end, options.windows)
        elif knows_art:
            judged = ArtMaterial(front_end, options.windows, options.speech().question_text)
    rated = _rated_material(source, options, media)
    compared = ComparedClips(front_end, options.clips, media)
    return HeldOutMaterial(
        judged, rated, compared, tuple(_missing(options, judged, rated, compared, knows_art))
    )


def _rated_material(source: Source, options: Options, media: HeldOut | None) -> RatedMaterial | None:
    """Choose the ratings of confidence: those asked for, those of ``media``, those of procedural art."""
    model = source.model
    front_end, emotions = model.config.front_end, model.emo_adapter.config.emotions
    if options.confidence is not None:
        held_out = open_held_out(str(options.confidence), options.media_root, front_end, ("validation",))
        rated = RatedMedia(held_out, front_end, emotions)
        if len(rated) < LEAST_WORKS:
            raise UsageError(
                f"--confidence {options.confidence}: {len(rated)} of {len(held_out)} media of split "
                "'validation' have people's ratings of the expressed valence, arousal and the model's "
                f"emotions, {LEAST_WORKS} are needed"
            )
        return rated
    if media is not None and media.split == "validation":
        rated = RatedMedia(media, front_end, emotions)
        if len(rated) >= LEAST_WORKS:
            return rated
    if source.knows_procedural_art and emotions == EMOTIONS:
        return RatedArt(front_end, emotions)
    return None


def _missing(
    options: Options,
    judged: Material | None,
    rated: RatedMaterial | None,
    compared: ComparedClips,
    knows_art: bool,
) -> Iterator[str]:
    """Say what will not be judged, in one sentence each."""
    if judged is None and options.precision == "int8" and options.max_drop is not None:
        yield (
            "INT8's loss of affect, content, narration and steadiness end to end; this checkpoint did not "
            "learn on procedural art, give --judge MANIFEST with held-out media like its training data"
        )
    if rated is None:
        yield (
            "how far readings can be trusted: no confidence and no intervals; give --confidence MANIFEST "
            "with people's ratings in its split 'validation'"
        )
    if options.judge is None and not knows_art:
        yield (
            f"accuracy on media that the model knows: the bundle is compared with its checkpoint on "
            f"{compared.name}, which shows equal arithmetic and no more; give --judge MANIFEST"
        )


def check_space(source: Source, folder: ExportFolder, options: Options) -> None:
    """Raise ExportError where the disk cannot hold even the files that are sure to be written."""
    weights = sum(p.numel() for part in source.parts.values() for p in part.module.parameters())
    language_model = sum(tensor.size for tensor in source.language_model_tensors().values())
    # FP32 files hold exact weights in float16. In GGUF a weight takes two bytes as F16, one as Q8_0.
    needed = 2 * weights + (1 + len(language_models(options))) * language_model
    if options.precision != "fp32":
        needed += 2 * weights
    if options.precision == "int8":
        needed += weights  # at least half of it in INT8, for two schemes
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
