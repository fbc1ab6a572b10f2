"""The model's forward pass: window → tokens → EmoAdapter → affect, and answers by the language model.

The engines and the language model are handed in: those of a bundle on the device (``open_predictor``), or a
checkpoint's torch modules behind the same few methods when an export is compared with its source.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer  # pyright: ignore[reportMissingTypeStubs]

from runtime.engines.language_model import (
    AbsentLanguageModel,
    Generation,
    LanguageModel,
    llama_is_installed,
    open_language_model,
    read_token_embeddings,
)
from runtime.engines.open import Engine, open_engine
from runtime.machine.threads import ThreadBudget, thread_budget
from runtime.perception.encoder_memory import ENCODER_INPUTS, EncoderMemory
from runtime.sinks.console import error_console
from vaemotion.contract.bundle import (
    ENGINE_ROLES,
    Manifest,
    check_front_end,
    component_path,
    read_golden,
    read_manifest,
    verify_files,
)
from vaemotion.contract.confidence import Confidence, confidence_of, scaled
from vaemotion.contract.emotions import EMOTIONS
from vaemotion.contract.errors import UserError
from vaemotion.contract.front_end import (
    Clip,
    EncoderInputs,
    FrontEnd,
    reads_frames,
    reads_sound,
    window_at,
    window_ends_s,
)
from vaemotion.contract.positions import PictureGrid, text_places
from vaemotion.contract.prediction import Affect, Prediction, Question, rotated_options
from vaemotion.contract.prompt_tokens import PromptTokens
from vaemotion.contract.prompts import PromptTemplate, listed_question
from vaemotion.contract.speech import STANDARD, UNSET, Speech

Float32 = npt.NDArray[np.float32]
# Of an answer in words, beyond the longest option: an article and a full stop at least, and the sentence that
# some models put around it where the context has the room.
SLACK_TOKENS, SENTENCE_TOKENS = 4, 32


class AnsweringModel(Protocol):
    """A language model as the predictor uses it, such as ``runtime.engines.language_model.LanguageModel``.

    ``context_tokens``: all that fits, prefix included.
    """

    context_tokens: int

    def embed(self, token_ids: Sequence[int]) -> Float32: ...
    def set_prefix(self, embeddings: Float32) -> None: ...
    def score(self, prompt: Float32, options: Sequence[Sequence[int]]) -> npt.NDArray[np.float64]: ...
    def generate(
        self,
        prompt: Float32,
        *,
        max_tokens: int,
        stop_ids: Sequence[int],
        should_abort: Callable[[], bool] | None = None,
    ) -> Generation: ...


A = TypeVar("A", bound=AnsweringModel)


@dataclass(frozen=True)
class Constants:
    """Constants of a model that the predictor needs besides the model's parts.

    ``stop_token_ids``: all that end an answer; the first closes the answers of training. ``emotions``: the
    names of the EmoAdapter's emotions, in its order. ``speech``: of narrations, as far as the bundle sets it.
    """

    front_end: FrontEnd
    prompt: PromptTemplate
    tokens_per_frame: int
    audio_tokens: int
    token_width: int
    stop_token_ids: tuple[int, ...]
    emotions: tuple[str, ...] = EMOTIONS
    speech: Speech = UNSET
    picture_grid: PictureGrid | None = None

    @classmethod
    def of(cls, manifest: Manifest) -> Constants:
        """Return the constants of a bundle."""
        return cls(
            manifest.front_end,
            manifest.prompt,
            manifest.tokens_per_frame,
            manifest.audio_tokens,
            manifest.token_width,
            manifest.stop_token_ids,
            manifest.emotions,
            manifest.speech,
            manifest.picture_grid,
        )

    @property
    def narrator_question(self) -> str:
        """The question of narrations as the language model is asked it; the standard one if none is set."""
        return self.speech.over(STANDARD).question_text


@dataclass(frozen=True)
class Tokens:
    """One window's tokens.

    ``visual`` (n, T, D): n frames, oldest first, of ages ``frame_ages_s`` (n,). ``audio`` (N_a, D), or (0, D)
    without sound; its newest token is ``audio_age_s`` old, and its window held ``sound_s`` seconds of sound.
    """

    visual: Float32
    frame_ages_s: Float32
    audio: Float32
    audio_age_s: float
    sound_s: float = math.inf

    @property
    def path(self) -> str | None:
        """The path of these tokens, None where there are none."""
        return {(True, True): "audio-visual", (True, False): "visual", (False, True): "audio"}.get(
            (len(self.visual) > 0, len(self.audio) > 0)
        )

    def only(self, path: str) -> Tokens:
        """Return the tokens that a path reads."""
        kept = self
        if not reads_frames(path):
            kept = replace(kept, visual=kept.visual[:0], frame_ages_s=kept.frame_ages_s[:0])
        return kept if reads_sound(path) else replace(kept, audio=kept.audio[:0])


def adapter_inputs(tokens: Tokens, constants: Constants) -> dict[str, npt.NDArray[np.generic]]:
    """Build the EmoAdapter's fixed-length inputs for one window, with a batch dimension of 1.

    Absent tokens are masked, and frames are right-aligned.
    """
    windows, width, per_frame = constants.front_end.windows, constants.token_width, constants.tokens_per_frame
    n_visual, n_audio = windows.frames * per_frame, constants.audio_tokens
    visual, visual_age = np.zeros((n_visual, width), np.float32), np.zeros(n_visual, np.float32)
    start = n_visual - len(tokens.visual) * per_frame  # padding before the oldest frame
    visual[start:] = tokens.visual.reshape(-1, width)
    visual_age[start:] = np.repeat(tokens.frame_ages_s, per_frame)
    audio = np.zeros((n_audio, width), np.float32)
    audio[: len(tokens.audio)] = tokens.audio
    from_end = (
        1 - (np.arange(n_audio, dtype=np.float32) + 1) / n_audio
    )  # (N_a,): share of the window after it
    return {
        "audio_tokens": audio[None],
        "audio_mask": np.full((1, n_audio), len(tokens.audio) > 0),
        "audio_age_s": (windows.audio_window_s * from_end + np.float32(tokens.audio_age_s)).astype(
            np.float32
        )[None],
        "visual_tokens": visual[None],
        "visual_mask": (np.arange(n_visual) >= start)[None],
        "visual_age_s": visual_age[None],
    }


def affect_of(outputs: Mapping[str, npt.NDArray[np.generic]], prefix: str = "") -> Affect:
    """Return the first row of the EmoAdapter's outputs as an ``Affect``. ``prefix``: "" or "induced_"."""
    valence, arousal = (float(v) for v in outputs[f"{prefix}valence_arousal"][0])
    valence_sd, arousal_sd = (float(v) for v in outputs[f"{prefix}spread"][0])
    emotions = np.asarray(outputs[f"{prefix}emotions"][0], np.float32)
    return Affect(valence, arousal, valence_sd, arousal_sd, emotions)


def mean_affect(affects: Sequence[Affect]) -> Affect | None:
    """Return the mean of several windows' affects, None for none.

    Its standard deviations are the root mean square of the windows'.
    """
    if not affects:
        return None
    values = np.array([(a.valence, a.arousal) for a in affects]).mean(axis=0)
    spreads = np.sqrt(np.square([(a.valence_sd, a.arousal_sd) for a in affects]).mean(axis=0))
    emotions = np.asarray(np.mean([a.emotions for a in affects], axis=0), np.float32)
    return Affect(float(values[0]), float(values[1]), float(spreads[0]), float(spreads[1]), emotions)


@dataclass(frozen=True)
class _Window:
    """One window of a clip, encoded and read by the EmoAdapter."""

    plain: Tokens
    enhanced: Tokens
    expressed: Affect
    induced: Affect | None

    def tokens_for(self, question: Question) -> Tokens:
        return self.enhanced if question.task == "emotion" else self.plain


class Predictor(Generic[A]):
    """A ``vaemotion.contract.prediction.Predict`` over engines and a language model.

    ``engines`` by role; ``delimiters`` (2, D) around the audio tokens; ``confidence``: the bundle's
    calibration, if it has one. The standard deviations of an affect are scaled by it.
    """

    def __init__(
        self,
        constants: Constants,
        engines: Mapping[str, Engine],
        language_model: A,
        tokenizer: Tokenizer,
        delimiters: Float32,
        confidence: Confidence | None = None,
    ) -> None:
        self.constants = constants
        self.engines = engines
        self.language_model = language_model
        self.tokenizer = tokenizer
        self.delimiters = delimiters
        self.confidence = confidence
        self._memories: dict[str, EncoderMemory] = {}  # by the encoder's role
        self._prompt_tokens = PromptTokens(tokenizer, constants.prompt)
        prefix = self.token_ids(constants.prompt.prefix)
        self._prefix_tokens = len(prefix)
        self._before_frame = language_model.embed(self.token_ids(constants.prompt.before_picture))
        self._after_frame = language_model.embed(self.token_ids(constants.prompt.after_picture))
        language_model.set_prefix(language_model.embed(prefix))

    @property
    def least_sound_s(self) -> float:
        """Seconds of sound from which a stream that goes on is heard."""
        front_end = self.constants.front_end
        return front_end.least_sound_s if self.confidence is None else self.confidence.least_sound_s

    def with_engines(self, engines: Mapping[str, Engine], language_model: A | None = None) -> Predictor[A]:
        """Return the same predictor with other engines for some roles, or another language model."""
        model = self.language_model if language_model is None else language_model
        parts = {**self.engines, **engines}
        made = Predictor(self.constants, parts, model, self.tokenizer, self.delimiters, self.confidence)
        made._memories |= self._memories
        return made

    def token_ids(self, text: str) -> list[int]:
        """Return the ids of a part of the prompt's template, which may hold special tokens."""
        return self._prompt_tokens.of_template(text)

    def encode(self, inputs: EncoderInputs) -> Tokens:
        """Encode a window's frames and sound to tokens; what was encoded lately is not encoded again."""
        width = self.constants.token_width
        visual = np.zeros((0, self.constants.tokens_per_frame, width), np.float32)
        audio = np.zeros((0, width), np.float32)
        if len(inputs.pixels):
            visual = self._memory("vision_encoder").tokens(inputs.pixels)
        if len(inputs.log_mel):
            audio = self._memory("audio_encoder").tokens(inputs.log_mel)[0]
        return Tokens(visual, inputs.frame_ages_s, audio, inputs.audio_age_s, inputs.sound_s)

    def _memory(self, role: str) -> EncoderMemory:
        engine, memory = self.engines[role], self._memories.get(role)
        if memory is None or memory.engine is not engine:
            memory = self._memories[role] = EncoderMemory(engine, ENCODER_INPUTS[role])
        return memory

    def adapt(self, tokens: Tokens) -> tuple[Affect, Tokens]:
        """Return the affect that a window expresses, and its emotion-enhanced tokens."""
        return self.adapt_all([tokens])[0]

    def adapt_all(self, windows: Sequence[Tokens]) -> list[tuple[Affect, Tokens]]:
        """Run ``adapt`` on at least one window, in one batch."""
        each = [adapter_inputs(tokens, self.constants) for tokens in windows]
        out = self.engines["emo_adapter"].run(
            {name: np.concatenate([inputs[name] for inputs in each]) for name in each[0]}
        )
        rows = [{name: values[k : k + 1] for name, values in out.items()} for k in range(len(windows))]
        return [
            (self._affect(row, tokens), self._enhanced(row, tokens))
            for row, tokens in zip(rows, windows, strict=True)
        ]

    def _affect(self, out: Mapping[str, npt.NDArray[Any]], tokens: Tokens, prefix: str = "") -> Affect:
        """Return the first row's affect, its standard deviations scaled for as much sound as there is."""
        affect = affect_of(out, prefix)
        if self.confidence is None or tokens.path is None:
            return affect
        return scaled(self.confidence, tokens.path, affect, tokens.sound_s)

    def _enhanced(self, out: Mapping[str, npt.NDArray[Any]], tokens: Tokens) -> Tokens:
        """Return the EmoAdapter's tokens without the padding of its fixed lengths."""
        n = tokens.visual.size // self.constants.token_width  # visual tokens that are not padding
        visual = out["enhanced_visual_tokens"][0]
        return Tokens(
            visual[len(visual) - n :].reshape(tokens.visual.shape),
            tokens.frame_ages_s,
            out["enhanced_audio_tokens"][0, : len(tokens.audio)],
            tokens.audio_age_s,
            tokens.sound_s,
        )

    def prompt(self, tokens: Tokens, question: str) -> Float32:
        """Return the embeddings between the kept prefix and the answer: newest frames, sound, question.

        (n, D) float32, or (n, D + 3) with places for a language model that places frames in two dimensions.
        """
        newest = tokens.visual[-self.constants.front_end.windows.language_frames :]  # (n, T, D)
        grid = self.constants.picture_grid
        frames = [frame if grid is None else np.concatenate([frame, grid.places()], 1) for frame in newest]
        parts = [part for frame in frames for part in (self._before_frame, frame, self._after_frame)]
        if len(tokens.audio):
            sound = np.concatenate([self.delimiters[:1], tokens.audio, self.delimiters[1:]])
            parts.append(sound if grid is None else np.concatenate([sound, text_places(len(sound))], 1))
        parts.append(self.language_model.embed(self._prompt_tokens.of_question(question)))
        return np.concatenate(parts)

    def option_ids(self, option: str) -> list[int]:
        """Return the token ids of an answer as the model would give it, closed by the stop token."""
        return [*self._prompt_tokens.of_answer(option), self.constants.stop_token_ids[0]]

    def __call__(self, clip: Clip, path: str, questions: Sequence[Question]) -> Prediction:
        """Predict affect and answers of a clip on ``path``.

        Valence, arousal and emotions are means over the clip's windows (see ``window_ends_s``), and so is
        each option's mean token log-probability. Written answers are those of the last window. Raises
        UserError for a question that does not fit into the language model's context with its options
        listed.
        """
        windows = [
            self._window(clip, now_s, path) for now_s in window_ends_s(clip, path, self.constants.front_end)
        ]
        answers = [
            np.mean([self._scores(window, question) for window in windows], axis=0) for question in questions
        ]
        written = tuple(self._written(windows[-1].tokens_for(question), question) for question in questions)
        induced = mean_affect([w.induced for w in windows if w.induced is not None])
        expressed = mean_affect([window.expressed for window in windows])
        assert expressed is not None, "a clip has at least one window"
        return Prediction(expressed, tuple(answers), written, induced)

    def affects(self, clip: Clip, path: str, ends_s: Sequence[float]) -> list[tuple[Affect, Affect | None]]:
        """Return the expressed and the induced affect of the windows of a clip that end at these times."""
        windows = [self._window(clip, now_s, path) for now_s in ends_s]
        return [(window.expressed, window.induced) for window in windows]

    def _window(self, clip: Clip, now_s: float, path: str) -> _Window:
        plain = self.encode(window_at(clip, now_s, path, self.constants.front_end))
        out = self.engines["emo_adapter"].run(adapter_inputs(plain, self.constants))
        induced = self._affect(out, plain, "induced_") if "induced_valence_arousal" in out else None
        return _Window(plain, self._enhanced(out, plain), self._affect(out, plain), induced)

    def _scores(self, window: _Window, question: Question) -> npt.NDArray[np.float64]:
        prompt = self.prompt(window.tokens_for(question), question.text)
        return self.language_model.score(prompt, [self.option_ids(option) for option in question.options])

    def _written(self, tokens: Tokens, question: Question) -> tuple[str, ...]:
        """Generate one greedy answer per rotation of the listed options."""
        longest = max(len(self.option_ids(option)) for option in question.options)
        texts: list[str] = []
        for options in rotated_options(question.options, question.rotations):
            prompt = self.prompt(tokens, listed_question(question.text, options))
            room = self.language_model.context_tokens - self._prefix_tokens - len(prompt)
            if room < longest + SLACK_TOKENS:
                needed = self.language_model.context_tokens - room + longest + SLACK_TOKENS
                raise UserError(
                    f"question {question.text!r} with its {len(options)} options listed needs {needed} "
                    f"tokens, but the language model's context holds {self.language_model.context_tokens}: "
                    "ask with fewer or shorter options, or leave listing out (--rotations 0)"
                )
            texts.append(generate_text(self, prompt, min(longest + SENTENCE_TOKENS, room))[0])
        return tuple(texts)


DevicePredictor = Predictor[LanguageModel | AbsentLanguageModel]  # a bundle's


def generate_text(predictor: Predictor[Any], prompt: Float32, max_tokens: int) -> tuple[str, bool]:
    """Continue a prompt (n, D) greedily; return the text, and True if it ended with a stop token."""
    generated = predictor.language_model.generate(
        prompt, max_tokens=max_tokens, stop_ids=predictor.constants.stop_token_ids
    )
    return predictor.tokenizer.decode(list(generated.token_ids)).strip(), generated.complete


@contextmanager
def open_predictor(
    bundle: Path,
    *,
    threads: ThreadBudget | None = None,
    f32_kv: bool = False,
    engine: str | None = None,
    precision: str | None = None,
    language_type: str | None = None,
    warn: bool = True,
) -> Generator[DevicePredictor]:
    """Open a bundle as a predictor, after a check of its files and its golden front end.

    ``threads``: by default engines and language model take turns. ``engine`` and ``precision`` of the
    encoders and the EmoAdapter: by default the fastest available. ``language_type``: the quantization of the
    language model, by default the manifest's first. ``f32_kv``: see ``LanguageModel``. ``warn``: print a
    warning when the bundle is unverified. Where llama.cpp is not installed, the predictor gives affect and
    refuses questions. Raises BundleError, EngineError or LanguageModelError.
    """
    threads = threads or thread_budget()
    manifest = read_manifest(bundle)
    verify_files(bundle, manifest)
    check_front_end(manifest, read_golden(bundle, manifest))
    confidence = confidence_of(manifest)
    if warn and not manifest.verified:
        warning = f"{bundle} is not verified: its results may differ from its checkpoint's; export it again"
        error_console().print(warning, style="yellow", soft_wrap=True)
    engines = {
        role: open_engine(bundle, manifest, role, threads.engines, precision=precision, engine=engine)
        for role in ENGINE_ROLES
    }
    tokenizer = Tokenizer.from_file(str(component_path(bundle, manifest.component("tokenizer"))))
    delimiters = np.load(component_path(bundle, manifest.component("delimiters")), allow_pickle=False)
    component = manifest.component("language_model", language_type)
    opened = (
        open_language_model(bundle, manifest, component, threads=threads.language_model, f32_kv=f32_kv)
        if llama_is_installed()
        else AbsentLanguageModel(read_token_embeddings(bundle, manifest))
    )
    with opened as language_model:
        yield Predictor(Constants.of(manifest), engines, language_model, tokenizer, delimiters, confidence)
