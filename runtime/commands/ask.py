"""``vaemotion ask``: answer a question about a video, a sound file or an image with a bundle.

Free text is generated greedily; multiple choice compares the mean token log-probability of each option.
"""

from __future__ import annotations

import contextlib
import json
import threading
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from runtime.clock import ManualClock
from runtime.machine.memory import return_large_blocks
from runtime.messages import Picture, Reading
from runtime.narration.sentences import whole_sentences
from runtime.narration.speaking import speak
from runtime.perception.perception import Evidence, Perception
from runtime.perception.predictor import DevicePredictor, open_predictor
from runtime.sources.file import FileFeed, FileSource
from vaemotion.contract import prompts
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.front_end import PATHS
from vaemotion.contract.image import squash
from vaemotion.contract.settings import shown
from vaemotion.contract.speech import STANDARD, Speech
from vaemotion.contract.terminal import Terminal
from vaemotion.contract.windows import EPSILON_S, grid_index, window_frame_indices

ANSWER_TOKENS = 60  # of free text, at most
TASKS = ("content", "emotion")


@dataclass(frozen=True)
class AskOptions:
    """Options of ``vaemotion ask``.

    ``options``: answers to choose from, separated by commas; None: free text. ``at_s``: None: the end of the
    file. ``path``: one of ``PATHS``; None: all that the file has. ``task``: one of ``TASKS``; None: as the
    standard question of that text, else "content". ``max_tokens``: of free text.
    """

    options: str | None = None
    at_s: float | None = None
    path: str | None = None
    task: str | None = None
    max_tokens: int = ANSWER_TOKENS


@dataclass(frozen=True)
class AskResult:
    """An answer, and the reading of the window that it is about.

    ``probabilities``: by option, with sum 1; empty for free text. ``cut``: the free text did not end within
    its tokens; its whole sentences are given, where it has any.
    """

    question: str
    answer: str
    probabilities: dict[str, float]
    reading: Reading
    cut: bool = False


def ask(bundle: Path, source: Path, question: str, options: AskOptions, as_json: bool) -> None:
    """Answer a question about the window of ``source`` that ends at ``options.at_s``, and print the answer.

    Raises UsageError for wrong arguments, MediaError for an unusable file, UserError where the file has
    nothing at that time.
    """
    choices, path = _checked_texts(question, options.options), options.path
    if path not in (None, *PATHS):
        raise UsageError(f"--path takes {', '.join(PATHS)}, got {path!r}")
    if options.task not in (None, *TASKS):
        raise UsageError(f"--task takes {', '.join(TASKS)}, got {options.task!r}")
    return_large_blocks()
    file = FileSource(source)
    if path in ("visual", "audio-visual") and not file.has_frames:
        raise UsageError(f"--path {path} needs video frames, and {source} has none; choose another --path")
    if path in ("audio", "audio-visual") and not file.has_sound:
        raise UsageError(f"--path {path} needs sound, and {source} has none; choose another --path")
    with open_predictor(bundle) as predictor:
        evidence = evidence_at(predictor, file, options.at_s, path)
        result = answer(predictor, evidence, question, choices, options.task, options.max_tokens)
    _print(result, as_json)


def _checked_texts(question: str, options: str | None) -> list[str]:
    """Return the answers to choose from. Raises UsageError for texts that cannot be asked or chosen from.

    Two spellings of one answer (``prompts.folded``) would share its probability.
    """
    for text in (question, options or ""):
        if any(unicodedata.category(sign) in ("Cc", "Cs") and not sign.isspace() for sign in text):
            raise UsageError(f"{shown(text)} is no text: it holds control characters, or is not UTF-8")
    if not question.strip():
        raise UsageError("the question is empty; ask for example 'What is this?'")
    if options is None:
        return []
    choices = [" ".join(option.split()) for option in options.split(",")]
    if "" in choices or len(choices) < 2:
        raise UsageError(f"--options takes two or more answers, separated by commas, got {shown(options)}")
    seen: dict[str, str] = {}
    for choice in choices:
        first = seen.setdefault(prompts.folded(choice), choice)
        if first != choice:
            both = f"{shown(first)} and {shown(choice)}, which are the same answer"
            raise UsageError(f"--options names {both}; give each answer once")
    if len(seen) < len(choices):
        twice = next(choice for choice in choices if choices.count(choice) > 1)
        raise UsageError(f"--options names {shown(twice)} twice; give each answer once")
    return choices


def evidence_at(
    predictor: DevicePredictor, file: FileSource, at_s: float | None, path: str | None
) -> Evidence:
    """Return the evidence of the window that ends at ``at_s`` (None: the end of the file).

    Each of its frames and its sound is encoded once. Raises UserError where the window is empty.
    """
    front_end, perception = predictor.constants.front_end, Perception(predictor)
    windows = front_end.windows
    # Grid point → the newest frame at it, for the frames of one window, as small as the encoder takes it.
    frames: dict[int, Picture] = {}
    index, newest, small, never = 0, None, None, threading.Event()
    end_s, sound_end_s = 0.0, None
    with contextlib.closing(FileFeed(file, ManualClock(), windows.frame_hop_s)) as feed:
        while at_s is None or index * windows.frame_hop_s <= at_s + EPSILON_S:
            arrived = feed.until(index * windows.frame_hop_s, never)
            if arrived.frame is not None:
                newest, small = arrived.frame, None
            if path != "visual" and (sound := arrived.joined_sound()) is not None:
                perception.push_sound(sound)
            on_screen = arrived.frames_end_s is None or index * windows.frame_hop_s < arrived.frames_end_s
            if newest is not None and on_screen and path != "audio":
                small = squash(newest.picture(), front_end.image.side_px) if small is None else small
                frames[index] = small
                frames.pop(index - windows.frames * windows.hops_per_spacing, None)
            end_s, sound_end_s = arrived.now_s(index * windows.frame_hop_s), arrived.sound_end_s
            if arrived.over:
                break
            index += 1
    if frames:
        last = max(frames)
        for i in window_frame_indices(min(last, grid_index(end_s, windows.frame_hop_s)), windows):
            if i in frames:
                perception.encode_frame(frames[i], i)
    if file.has_sound and path != "visual":
        perception.encode_sound(sound_end_s)
    evidence = perception.read(end_s)
    if evidence is None:
        where = "" if at_s is None else f" at {at_s} s"
        raise UserError(f"no video frame or audio{where} in {file.path}; choose another --at or --path")
    if path is not None and path not in ("visual", evidence.reading.path):
        least = f"{predictor.least_sound_s:g} s"
        raise UserError(
            f"there is less than {least} of sound up to {end_s:g} s; choose a later --at or --path visual"
        )
    return evidence


def answer(
    predictor: DevicePredictor,
    evidence: Evidence,
    question: str,
    choices: Sequence[str],
    task: str | None,
    max_tokens: int = ANSWER_TOKENS,
) -> AskResult:
    """Return the answer to ``question``: one of ``choices``, or free text where there are none.

    Emotion questions use the emotion-enhanced tokens, all others the plain ones. ``task`` None: that of the
    standard question with this text, else "content". Raises UserError for a question that leaves no room for
    an answer in the language model's context.
    """
    standard = {text: q.task for q in prompts.STANDARD_QUESTIONS for text in (q.text, *q.paraphrases)}
    enhanced = (task or standard.get(question, "content")) == "emotion"
    prompt = predictor.prompt(evidence.enhanced if enhanced else evidence.plain, question)
    if choices:
        scores = predictor.language_model.score(prompt, [predictor.option_ids(choice) for choice in choices])
        shares = np.exp(scores - scores.max())
        probabilities = dict(zip(choices, (float(p) for p in shares / shares.sum()), strict=True))
        return AskResult(question, choices[int(scores.argmax())], probabilities, evidence.reading)
    said = speak(predictor, prompt, Speech(max_tokens=max_tokens).over(STANDARD))
    if said is None:
        raise UserError("the question fills the language model's context; ask a shorter one")
    if said.ended:
        return AskResult(question, said.text, {}, evidence.reading)
    text = " ".join(whole_sentences(said.text, ended=False)) or " ".join(said.text.split())
    return AskResult(question, text, {}, evidence.reading, cut=True)


def _print(result: AskResult, as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(result)))
        return
    console, reading = Terminal(), result.reading
    console.print(result.answer, style="bold")
    if result.cut:
        console.print("the answer was cut at its limit; --tokens gives it more", style="dim")
    for option, probability in sorted(result.probabilities.items(), key=lambda item: -item[1]):
        console.print(f"  {probability:6.1%}  {option}")
    console.print(
        f"at {reading.time_s:.1f} s, {reading.path}: "
        f"valence {reading.valence:+.2f} ± {reading.valence_sd:.2f}, "
        f"arousal {reading.arousal:+.2f} ± {reading.arousal_sd:.2f}",
        style="dim",
    )
