"""The parts of a recipe, opened and checked: each alone, with the others, and on real clips.

In: a recipe and clips. Out: `Parts` with the constants that follow from them, or one error with all that does
not fit. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from export.assemble.behavior import Arrays, affect_problems, behavior_problems
from export.assemble.engine_file import BATCH, EngineFile, contract_problems, read_engine_file
from export.assemble.language import GgufFile, read_gguf, read_tokenizer, vocabulary_problem
from export.assemble.recipe import Recipe
from export.clips import ComparedClips
from export.tensors import EXPRESSED_OUTPUTS, INDUCED_OUTPUTS
from runtime.engines.io import EngineError
from runtime.engines.language_model import AbsentLanguageModel
from runtime.engines.open import OnnxRuntimeEngine
from runtime.perception.predictor import Constants, Predictor, Tokens, adapter_inputs
from vaemotion.contract.bundle import ENGINE_ROLES, Component, TensorSpec
from vaemotion.contract.context import context_tokens
from vaemotion.contract.errors import UserError
from vaemotion.contract.front_end import PATHS, EncoderInputs, window_at
from vaemotion.contract.prompt_tokens import PromptTokens
from vaemotion.contract.prompts import PromptTemplate
from vaemotion.contract.settings import SettingsError

ENCODERS = {"vision_encoder": "visual", "audio_encoder": "audio"}  # with the path that reads them alone


@dataclass(frozen=True)
class CheckedEngine:
    """An engine's file with inputs and outputs as they are in a bundle: the batch free, all else fixed."""

    file: EngineFile
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class LanguageSizes:
    """The language model before anything is written. ``files``: none where it is a folder."""

    width: int
    trained_tokens: int
    files: tuple[GgufFile, ...]


@dataclass(frozen=True)
class Parts:
    """Parts that fit together. ``context_tokens``: of the language model, as their prompts need it."""

    recipe: Recipe
    engines: Mapping[str, CheckedEngine]
    language: LanguageSizes
    tokenizer: Tokenizer
    constants: Constants
    context_tokens: int

    def delimiters(self, embeddings: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return the rows around the sound's tokens, (2, D), or (0, D) for none.

        ``embeddings``: (vocab, D), of the language model.
        """
        given = self.recipe.delimiters
        if given.file:
            return np.load(given.file, allow_pickle=False).astype(np.float32)
        ids = [self.tokenizer.token_to_id(token) for token in given.tokens]
        return np.asarray(embeddings[np.asarray(ids, np.int64)], np.float32)

    def lines(self) -> Iterator[str]:
        """Say what each engine reads and gives."""
        for role, engine in self.engines.items():
            reads, gives = (", ".join(map(_spec_text, specs)) for specs in (engine.inputs, engine.outputs))
            yield f"{role}: {reads} → {gives}"
            if engine.file.domains:
                yield (
                    f"{role} has operators of {', '.join(engine.file.domains)}, which ONNX Runtime runs and "
                    "TensorRT does not"
                )


def check_parts(recipe: Recipe, clips: ComparedClips) -> Parts:
    """Open all parts of a recipe and check them on clips.

    Raises SettingsError with every problem of the first kind that was found: of single files, then of files
    together, then of their behavior.
    """
    language, tokenizer = _language_sizes(recipe), read_tokenizer(recipe.tokenizer_file)
    files = {role: read_engine_file(role, recipe.engine(role)) for role in ENGINE_ROLES}
    prompt = recipe.prompt if recipe.has_prompt else _prompt_beside(recipe.tokenizer_file, tokenizer)
    _refuse(_language_problems(recipe, language, tokenizer, prompt))
    windows = _Windows(recipe, clips)
    encoders: dict[str, CheckedEngine] = {}
    problems: list[str] = []
    for role, path in ENCODERS.items():
        problems += contract_problems(files[role], specs_of(windows.encoder_inputs(role, path)))
    _refuse(problems)
    for role, path in ENCODERS.items():
        encoders[role] = _checked_encoder(files[role], windows, path, language.width)
    known = tokenizer.get_vocab(with_added_tokens=True)
    constants = Constants(
        recipe.front_end,
        prompt,
        tokens_per_frame=_tokens(encoders["vision_encoder"]),
        audio_tokens=_tokens(encoders["audio_encoder"]),
        token_width=language.width,
        stop_token_ids=tuple(known[stop] for stop in prompt.ends),
        emotions=recipe.emotions,
        speech=recipe.speech,
        picture_grid=recipe.grid,
    )
    if recipe.grid is not None and recipe.grid.tokens != constants.tokens_per_frame:
        _refuse(
            [
                f"picture_grid has {recipe.grid.tokens} tokens, and {files['vision_encoder'].label} gives "
                f"{constants.tokens_per_frame} for a frame"
            ]
        )
    adapter = _checked_adapter(files["emo_adapter"], encoders, windows, constants, tokenizer)
    window_tokens = PromptTokens(tokenizer, prompt).of_window(
        recipe.front_end.windows.language_frames, constants.tokens_per_frame, constants.audio_tokens
    )
    needed = context_tokens(window_tokens, language.trained_tokens)
    return Parts(recipe, {**encoders, "emo_adapter": adapter}, language, tokenizer, constants, needed)


def specs_of(arrays: Arrays) -> tuple[TensorSpec, ...]:
    """Describe arrays as tensors whose first dimension is the batch."""
    return tuple(TensorSpec(name, (BATCH, *a.shape[1:]), str(a.dtype)) for name, a in arrays.items())


def _refuse(problems: Iterator[str] | Sequence[str]) -> None:
    if found := list(problems):
        raise SettingsError(found)


# --- the language model ------------------------------------------------------------------------------------


def _language_sizes(recipe: Recipe) -> LanguageSizes:
    folder = recipe.language_model_folder
    if folder is not None:
        # transformers and torch are needed for a folder alone.
        from export.gguf.decoder_folder import read_decoder_folder

        shape = read_decoder_folder(folder, recipe.language_model_adapter).shape
        return LanguageSizes(shape.hidden_size, shape.context_length, ())
    files = tuple(read_gguf(path) for path in recipe.language_model_files)
    return LanguageSizes(files[0].width, files[0].trained_tokens, files)


def _prompt_beside(tokenizer_file: Path, tokenizer: Tokenizer) -> PromptTemplate:
    """Read the prompt from the chat template that lies beside the tokenizer."""
    from vaemotion.model.chat_template import prompt_template

    return prompt_template(tokenizer_file.parent, tokenizer)


def _language_problems(
    recipe: Recipe, language: LanguageSizes, tokenizer: Tokenizer, prompt: PromptTemplate
) -> Iterator[str]:
    first, *others = language.files or (None,)
    for file in others:
        if first is not None and (file.width, file.tokens) != (first.width, first.tokens):
            yield f"{file.path.name} and {first.path.name} are of different language models"
    types = [file.type for file in language.files]
    for kind in dict.fromkeys(types):
        if types.count(kind) > 1:
            yield f"language_model.files: {types.count(kind)} files are of type {kind}; give one of each type"
    if first is not None and (problem := vocabulary_problem(first, tokenizer)):
        yield problem
    wanted = {"prompt.stop": [prompt.stop], "prompt.stops": prompt.stops}
    wanted["delimiters.tokens"] = recipe.delimiters.tokens
    for key, tokens in wanted.items():
        for token in tokens:
            if tokenizer.token_to_id(token) is None:
                yield f"{key}: {token!r} is no token of {recipe.tokenizer_file.name}"
    if recipe.delimiters.file:
        yield from _delimiter_problems(Path(recipe.delimiters.file), language.width)


def _delimiter_problems(file: Path, width: int) -> Iterator[str]:
    try:
        rows = np.load(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        yield f"{file} cannot be read as an array ({error}); write it with numpy.save"
        return
    if rows.shape != (2, width):
        yield f"{file} must be (2, {width}), the rows before and after sound; it has the shape {rows.shape}"
    elif rows.dtype.kind != "f" or not np.isfinite(rows).all():
        yield f"{file} must hold finite floating-point numbers"


# --- the engines -------------------------------------------------------------------------------------------


class _Windows:
    """The newest windows of the clips, as each path reads them."""

    def __init__(self, recipe: Recipe, clips: ComparedClips) -> None:
        self._clips, self._front_end = clips, recipe.front_end

    def of_path(self, path: str) -> list[EncoderInputs]:
        clips = (compared.clip for compared in self._clips() if path in compared.paths)
        return [window_at(clip, clip.duration_s, path, self._front_end) for clip in clips]

    def encoder_inputs(self, role: str, path: str) -> dict[str, npt.NDArray[Any]]:
        """Collect one row of each window: its newest frame, or its sound."""
        windows = self.of_path(path)
        if role == "vision_encoder":
            return {"pixels": np.concatenate([window.pixels[-1:] for window in windows])}
        return {"log_mel": np.concatenate([window.log_mel for window in windows])}


def _opened(
    file: EngineFile, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> OnnxRuntimeEngine:
    component = Component(file.role, "fp32", file.path.name, "", 0, "", tuple(inputs), tuple(outputs))
    return OnnxRuntimeEngine(file.path, component)


def _runner(
    file: EngineFile, inputs: Sequence[TensorSpec]
) -> Callable[[Arrays], dict[str, npt.NDArray[Any]]]:
    """Open a file; the function that runs it raises UserError."""
    engine = _opened(file, inputs, file.outputs)

    def run(arrays: Arrays) -> dict[str, npt.NDArray[Any]]:
        try:
            return engine.run(arrays)
        except EngineError:
            raise
        except Exception as error:  # onnxruntime raises its own types, all of them derived from Exception
            n = len(next(iter(arrays.values())))
            reason = " ".join(str(error).split())
            raise UserError(
                f"{file.label} fails on a batch of {n}, where the batch must be free ({reason:.300})"
            ) from error

    return run


def _checked_encoder(file: EngineFile, windows: _Windows, path: str, width: int) -> CheckedEngine:
    inputs = windows.encoder_inputs(file.role, path)
    run, expected = _runner(file, specs_of(inputs)), specs_of(inputs)
    outputs = run(inputs)
    tokens = outputs["tokens"]
    if tokens.ndim != 3 or tokens.shape[2] != width:
        _refuse(
            [
                f"{file.label}: output 'tokens' must be (batch, tokens, {width}), as wide as the language "
                f"model; the file gives {_shape_text(tokens.shape[1:])}"
            ]
        )
    seen = "frames" if path == "visual" else "sound"
    rows = len(next(iter(inputs.values())))
    _refuse(behavior_problems(file.label, run, inputs, [seen] * rows, ["tokens"]))
    return CheckedEngine(file, expected, specs_of(outputs))


def _tokens(encoder: CheckedEngine) -> int:
    return int(encoder.outputs[0].shape[1])


def _checked_adapter(
    file: EngineFile,
    encoders: Mapping[str, CheckedEngine],
    windows: _Windows,
    constants: Constants,
    tokenizer: Tokenizer,
) -> CheckedEngine:
    width = constants.token_width
    nothing = Tokens(
        np.zeros((0, constants.tokens_per_frame, width), np.float32),
        np.zeros(0, np.float32),
        np.zeros((0, width), np.float32),
        0.0,
    )
    expected = specs_of(adapter_inputs(nothing, constants))
    _refuse(contract_problems(file, expected))
    inputs, paths = _adapter_inputs(encoders, windows, constants, tokenizer)
    run = _runner(file, expected)
    outputs = run(inputs)
    emotions = len(constants.emotions)
    shapes = {"valence_arousal": (2,), "spread": (2,), "emotions": (emotions,)}
    shapes |= {f"induced_{name}": shape for name, shape in shapes.items()}
    shapes |= {f"enhanced_{name}": inputs[name].shape[1:] for name in ("audio_tokens", "visual_tokens")}
    _refuse(
        [
            f"{file.label}: output {name!r} must be {_shape_text(shapes[name])}, the file gives "
            f"{_shape_text(values.shape[1:])}"
            + (f"; the recipe names {emotions} emotions" if name.endswith("emotions") else "")
            for name, values in outputs.items()
            if values.shape[1:] != shapes[name]
        ]
    )
    _refuse(behavior_problems(file.label, run, inputs, paths, EXPRESSED_OUTPUTS))
    problems = list(affect_problems(file.label, outputs))
    if set(INDUCED_OUTPUTS) <= set(outputs):
        problems += affect_problems(file.label, outputs, "induced_")
    _refuse(problems)
    return CheckedEngine(file, expected, specs_of(outputs))


def _adapter_inputs(
    encoders: Mapping[str, CheckedEngine], windows: _Windows, constants: Constants, tokenizer: Tokenizer
) -> tuple[dict[str, npt.NDArray[Any]], list[str]]:
    """Compute the EmoAdapter's inputs for every clip on every path, with a word for the path of each row."""
    engines = {role: _opened(e.file, e.inputs, e.outputs) for role, e in encoders.items()}
    # Encoding needs no language model.
    absent = AbsentLanguageModel(
        np.broadcast_to(np.zeros(constants.token_width, np.float32), (2**31, constants.token_width))
    )
    predictor = Predictor(
        constants, engines, absent, tokenizer, np.zeros((0, constants.token_width), np.float32)
    )
    rows: list[dict[str, npt.NDArray[Any]]] = []
    paths: list[str] = []
    for path in PATHS:
        for window in windows.of_path(path):
            rows.append(dict(adapter_inputs(predictor.encode(window), constants)))
            paths.append({"audio": "sound alone", "visual": "frames alone"}.get(path, "frames and sound"))
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}, paths


def _spec_text(spec: TensorSpec) -> str:
    return f"{spec.name} ({', '.join(map(str, spec.shape))})"


def _shape_text(shape: Sequence[int]) -> str:
    return f"({', '.join(map(str, (BATCH, *shape)))})"
