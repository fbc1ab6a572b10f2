"""Command groups, shared options, and the choices that options offer.

The commands import their implementation when they run, so the choices are repeated here as enums. A test
compares each enum with what the implementation accepts.
"""

from __future__ import annotations

import os
import re
import stat
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer
from typer.core import TyperGroup

from vaemotion.contract.address import without_secrets
from vaemotion.contract.errors import UsageError

_HELP = "Train an audio-visual emotion model, export it, and run it on a small device."
# Commands in the order of the help: running a bundle, making one, training the model.
_ORDER: Final = (
    *("demo", "run", "ask", "record", "plot", "report", "doctor", "install-service", "soak"),
    *("verify", "bundle", "bench", "engines", "export", "assemble", "gguf"),
    *("base", "data", "train", "evaluate"),
)


class _OrderedGroup(TyperGroup):
    """The top group, which lists its commands in ``_ORDER`` instead of the order of their imports."""

    def list_commands(self, ctx: object) -> list[str]:
        """Return the names of the commands in the order of the help."""
        return sorted(self.commands, key=_ORDER.index)


def _group(help_text: str, cls: type[TyperGroup] = TyperGroup) -> typer.Typer:
    # `main` prints tracebacks with --debug. Plain help: Rich's takes as long as all other imports together.
    return typer.Typer(
        cls=cls,
        help=help_text,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"max_content_width": 120},
    )


app = _group(_HELP, _OrderedGroup)
bundle_app = _group("Inspect and compare bundles.")
base_app = _group("Fetch the pretrained parts that a model is built on.")
data_app = _group("Build, check and describe data sets.")
build_app = _group("Write a data set to disk.")
train_app = _group("Train the model in stages: base, align, emotion.")
evaluate_app = _group("Measure the accuracy of a checkpoint or a bundle.")
app.add_typer(bundle_app, name="bundle")
app.add_typer(base_app, name="base")
app.add_typer(data_app, name="data")
data_app.add_typer(build_app, name="build")
app.add_typer(train_app, name="train")
app.add_typer(evaluate_app, name="evaluate")


class Choice(StrEnum):
    """The values of an option; each member behaves and prints as its plain string."""

    __repr__ = str.__repr__


class Pace(Choice):
    """The paces of a run."""

    REAL = "real"
    MAX = "max"


class EngineName(Choice):
    """The engines that execute the encoders and the EmoAdapter, in the order of preference."""

    TENSORRT = "tensorrt"
    CUDA = "cuda"
    CPU = "cpu"


class Precision(Choice):
    """The precisions of a bundle's components."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


class OnnxExporter(Choice):
    """The exporters of a bundle's ONNX files."""

    TORCH = "torch"
    TRANSFORMERS = "transformers"


class GgufType(Choice):
    """The file types of a GGUF file."""

    AUTO = "auto"
    F32 = "F32"
    F16 = "F16"
    Q8_0 = "Q8_0"
    Q6_K = "Q6_K"
    Q5_K_M = "Q5_K_M"
    Q5_1 = "Q5_1"
    Q5_0 = "Q5_0"
    Q4_K_M = "Q4_K_M"
    Q4_1 = "Q4_1"
    IQ4_NL = "IQ4_NL"
    Q4_0 = "Q4_0"


class TensorType(Choice):
    """The types of a GGUF file's matrices that a search mixes."""

    Q8_0 = "Q8_0"
    Q6_K = "Q6_K"
    Q5_K = "Q5_K"
    Q5_1 = "Q5_1"
    Q5_0 = "Q5_0"
    Q4_K = "Q4_K"
    Q4_1 = "Q4_1"
    IQ4_NL = "IQ4_NL"
    Q4_0 = "Q4_0"


class LanguageModelType(Choice):
    """The GGUF types of an FP32 or FP16 bundle."""

    F16 = "F16"
    Q8_0 = "Q8_0"


class PathName(Choice):
    """The paths that answer a question."""

    AUDIO = "audio"
    VISUAL = "visual"
    AUDIO_VISUAL = "audio-visual"


class Task(Choice):
    """The kinds of questions."""

    CONTENT = "content"
    EMOTION = "emotion"


class Split(Choice):
    """The splits of a data set."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


class HeldOutSplit(Choice):
    """The splits that no model is trained on."""

    TEST = "test"
    VALIDATION = "validation"


_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://|(gst|csi):")


def local_path(text: str) -> Path:
    """Parse the path of a file or folder to read. Raises UsageError for an address, and for a device node."""
    if _is_address(text) or _is_device_node(text):
        raise UsageError(f"{_named(text)}, not a file or folder; save what is there to a file first")
    return Path(text)


def live_source(text: str) -> Path:
    """Parse the source of a run: a file. Raises UsageError for a camera's address or device node."""
    if _is_address(text) or _is_device_node(text):
        raise UsageError(
            f"{_named(text)}, not a file; for a live camera leave the source out and give "
            "--config a configuration file that names it as device in [camera], as configs/live.toml shows"
        )
    return Path(text)


def _named(text: str) -> str:
    return f"{text} is a device" if _is_device_node(text) else f"{without_secrets(text)} is an address"


def _is_address(text: str) -> bool:
    return _ADDRESS.match(text) is not None and not os.path.lexists(text)


def _is_device_node(text: str) -> bool:
    try:
        return stat.S_ISCHR(os.stat(text).st_mode)
    except (OSError, ValueError):  # the command itself says what is wrong with the path
        return False


Config = Annotated[
    Path,
    typer.Option("--config", parser=local_path, metavar="FILE", help="TOML file with the configuration."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one configuration value; may be repeated."),
]
Manifest = Annotated[Path, typer.Argument(parser=local_path, help="Data manifest (JSON lines).")]
Manifests = Annotated[list[Path], typer.Argument(parser=local_path, help="Data manifests (JSON lines).")]
MediaRoot = Annotated[Path, typer.Option("--media-root", help="Root folder of the manifest's paths.")]
Bundle = Annotated[Path, typer.Argument(parser=local_path, metavar="bundle", help="Bundle folder.")]
Seed = Annotated[
    int,
    typer.Option("--seed", min=0, max=2**32 - 1, help="Random seed; the same seed gives the same result."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        from vaemotion import __version__

        typer.echo(f"vaemotion {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Print tracebacks; may stand anywhere in the command line.")
    ] = False,
) -> None:
    """Declare the options of every command; `main` removes --debug before the parser reads it."""
