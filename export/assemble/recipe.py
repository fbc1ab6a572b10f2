"""The recipe of an assembled bundle: a TOML file that names the parts, their constants and their origin.

In: the file; paths in it start from its folder. Out: `Recipe`, whole, or one error with all problems. What a
result depends on has no default: a constant of another model would be taken silently.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from vaemotion.contract.bundle import ENGINE_ROLES
from vaemotion.contract.emotions import emotion_names_problem
from vaemotion.contract.front_end import FrontEnd
from vaemotion.contract.positions import PictureGrid
from vaemotion.contract.prompts import PromptTemplate
from vaemotion.contract.settings import read_settings
from vaemotion.contract.speech import Speech

_Problems = Iterator[tuple[str, str]]
_NO_PROMPT = PromptTemplate(prefix="", question="", answer="", stop="")


@dataclass(frozen=True)
class FilePart:
    """A part in one file. ``license``: its SPDX expression, "" for that of the whole."""

    file: str = ""
    license: str = ""


@dataclass(frozen=True)
class LanguageModelPart:
    """The language model: GGUF ``files``, or a ``folder`` that transformers saved.

    ``adapter``: the folder of a LoRA adapter that is merged into it. ``types``: of the GGUF files that the
    folder becomes. A device runs the first file, or the first type.
    """

    files: tuple[str, ...] = ()
    folder: str = ""
    adapter: str = ""
    types: tuple[str, ...] = ("Q8_0",)
    license: str = ""


@dataclass(frozen=True)
class DelimitersPart:
    """Embeddings before and after the sound's tokens.

    ``file``: rows (2, D) of an ``.npy`` file. ``tokens``: two tokens of the tokenizer. Neither: nothing.
    """

    file: str = ""
    tokens: tuple[str, ...] = ()
    license: str = ""


@dataclass(frozen=True)
class GridPart:
    """Rows and columns of a frame's tokens, for a language model that places them in two dimensions."""

    rows: int = 0
    columns: int = 0


@dataclass(frozen=True)
class Recipe:
    """The parts of a bundle, and how it speaks. Paths are absolute once the recipe has been read.

    ``lineage``: where the parts come from, for people. ``prompt``: with empty texts for that of the chat
    template beside the tokenizer.
    """

    name: str = ""
    license: str = ""
    lineage: str = ""
    emotions: tuple[str, ...] = ()
    vision_encoder: FilePart = FilePart()
    audio_encoder: FilePart = FilePart()
    emo_adapter: FilePart = FilePart()
    language_model: LanguageModelPart = LanguageModelPart()
    tokenizer: FilePart = FilePart()
    delimiters: DelimitersPart = DelimitersPart()
    prompt: PromptTemplate = _NO_PROMPT
    front_end: FrontEnd = field(default_factory=FrontEnd)
    picture_grid: GridPart = GridPart()
    speech: Speech = field(default_factory=Speech)

    @property
    def grid(self) -> PictureGrid | None:
        """The places of a frame's tokens, None where they follow each other as text does."""
        grid = self.picture_grid
        return PictureGrid(grid.rows, grid.columns) if grid != GridPart() else None

    @property
    def has_prompt(self) -> bool:
        """False where the prompt is that of the chat template beside the tokenizer."""
        return self.prompt != _NO_PROMPT

    def engine(self, role: str) -> Path:
        """Return the ONNX file of a role."""
        return Path(getattr(self, role).file)

    @property
    def language_model_files(self) -> tuple[Path, ...]:
        """The GGUF files; none where the language model is a folder."""
        return tuple(map(Path, self.language_model.files))

    @property
    def language_model_folder(self) -> Path | None:
        """The folder of the language model, None where it is in GGUF files."""
        return Path(self.language_model.folder) if self.language_model.folder else None

    @property
    def language_model_adapter(self) -> Path | None:
        """The folder of the LoRA adapter for the language model's folder, None for none."""
        return Path(self.language_model.adapter) if self.language_model.adapter else None

    @property
    def tokenizer_file(self) -> Path:
        """The tokenizer; by default that of the language model's folder."""
        return Path(self.tokenizer.file or f"{self.language_model.folder}/tokenizer.json")

    def without_paths(self) -> Recipe:
        """Return the recipe with everything but the places of its files."""
        return _with_paths(self, lambda _: "")

    def files(self) -> dict[str, Path]:
        """List every file that the bundle is made of, by the name of its part, such as "vision_encoder"."""
        listed = {role: self.engine(role) for role in ENGINE_ROLES}
        listed |= {f"language_model {i + 1}": path for i, path in enumerate(self.language_model_files)}
        for folder in filter(None, (self.language_model_folder, self.language_model_adapter)):
            found = sorted(path for path in folder.iterdir() if path.is_file())
            listed |= {f"language_model {folder.name}/{path.name}": path for path in found}
        if self.delimiters.file:
            listed["delimiters"] = Path(self.delimiters.file)
        return {**listed, "tokenizer": self.tokenizer_file}


def read_recipe(file: Path) -> Recipe:
    """Read a recipe and check everything that needs no part opened.

    Raises SettingsError with all problems.
    """
    recipe = read_settings(file, Recipe(), check=partial(_problems, file))
    folder = file.resolve().parent
    return _with_paths(recipe, lambda path: str(folder / path) if path else "")


def _with_paths(recipe: Recipe, path_of: Callable[[str], str]) -> Recipe:
    """Return the recipe with other paths of all its parts."""
    parts: dict[str, Any] = {
        f.name: replace(part, file=path_of(part.file))
        for f in fields(recipe)
        if isinstance(part := getattr(recipe, f.name), FilePart | DelimitersPart)
    }
    model = recipe.language_model
    folders = {"folder": path_of(model.folder), "adapter": path_of(model.adapter)}
    model = replace(model, files=tuple(map(path_of, model.files)), **folders)
    return replace(recipe, language_model=model, **parts)


def _problems(file: Path, recipe: Recipe) -> _Problems:
    """Find what is missing or contradictory: a key, and a predicate."""
    given = tomllib.loads(file.read_text(encoding="utf-8"))
    folder = file.resolve().parent
    for key, what in (
        ("name", "a name for the bundle"),
        ("license", "the SPDX expression of the whole, such as Apache-2.0"),
        ("lineage", "a sentence on where the parts come from"),
    ):
        if not getattr(recipe, key).strip():
            yield key, f"is missing; give {what}"
    if problem := emotion_names_problem(recipe.emotions):
        yield "emotions", problem
    grid = recipe.picture_grid
    if grid != GridPart() and min(grid.rows, grid.columns) < 1:
        yield "picture_grid", "takes rows and columns, each at least 1"
    yield from _part_problems(recipe, folder)
    if recipe.has_prompt:
        yield from _prompt_problems(recipe.prompt, given.get("prompt", {}))
    for key in _missing_keys(recipe.front_end, given.get("front_end", {}), "front_end"):
        yield key, "is missing; give the value that the encoders were trained with"


def _part_problems(recipe: Recipe, folder: Path) -> _Problems:
    def file_problem(key: str, path: str) -> _Problems:
        if not (folder / path).is_file():
            yield key, f"names no file: there is no {folder / path}"

    for role in ENGINE_ROLES:
        path = getattr(recipe, role).file
        if path:
            yield from file_problem(f"{role}.file", path)
        else:
            yield f"{role}.file", "is missing; give the ONNX file"
    model, delimiters = recipe.language_model, recipe.delimiters
    if bool(model.files) == bool(model.folder):
        both = "both are given" if model.files else "neither is given"
        yield "language_model", f"takes files (GGUF) or folder (as transformers saves it), and {both}"
    for path in model.files:
        yield from file_problem("language_model.files", path)
    for key, path in (("folder", model.folder), ("adapter", model.adapter)):
        if path and not (folder / path).is_dir():
            yield f"language_model.{key}", f"names no folder: there is no {folder / path}"
    if model.adapter and not model.folder:
        yield "language_model.adapter", "is merged into a folder, and none is given"
    tokenizer = recipe.tokenizer_file
    if recipe.tokenizer.file or model.folder:
        yield from file_problem("tokenizer.file", str(tokenizer))
    else:
        yield "tokenizer.file", "is missing; give the tokenizer.json of the language model"
    if delimiters.file and delimiters.tokens:
        yield "delimiters", "takes file or tokens, and both are given"
    elif delimiters.file:
        yield from file_problem("delimiters.file", delimiters.file)
    elif delimiters.tokens and len(delimiters.tokens) != 2:
        yield "delimiters.tokens", f"must be two tokens, got {len(delimiters.tokens)}"


def _prompt_problems(prompt: PromptTemplate, given: dict[str, Any]) -> _Problems:
    for key in ("prefix", "question", "answer", "stop"):
        if key not in given:
            yield f"prompt.{key}", "is missing; leave out all of [prompt] for that of the chat template"
    for key in ("question", "answer"):
        if key in given and not _has_one_place(getattr(prompt, key), key):
            yield f"prompt.{key}", f"must hold {{{key}}} once and no other braces; write {{{{ for a brace"


def _has_one_place(pattern: str, name: str) -> bool:
    """Check that a pattern takes the text ``name`` once, as ``str.format`` reads it."""
    mark = "\0"
    try:
        return pattern.format(**{name: mark}).count(mark) == 1
    except (LookupError, ValueError, AttributeError):
        return False


def _missing_keys(config: Any, given: Any, where: str) -> Iterator[str]:
    """List the fields of a section, and of the sections in it, that the file does not give."""
    for f in fields(config):
        key, value = f"{where}.{f.name}", getattr(config, f.name)
        inside = given.get(f.name) if isinstance(given, dict) else None
        if is_dataclass(value):
            yield from _missing_keys(value, inside or {}, key)
        elif inside is None:
            yield key
