"""Clips for the hearing report: their classes, their windows of sound, and their visual tokens.

In: a split of the procedural works, or held-out media of a manifest. Out: `Material`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track
from torch import Tensor

from vaemotion.contract import prompts
from vaemotion.contract.audio import SAMPLE_RATE_HZ
from vaemotion.contract.errors import UsageError
from vaemotion.contract.front_end import Clip, FrontEnd, audio_window, window_at, window_ends_s
from vaemotion.contract.media.files import MediaError
from vaemotion.contract.terminal import Terminal
from vaemotion.data.art.art import sample_work, work_seed
from vaemotion.data.art.questions import content_item
from vaemotion.data.art.windows import SPREAD_S, frames_at, window_log_mel
from vaemotion.data.clips.held_out import HeldOut, report_left_out
from vaemotion.data.clips.source import DamagedClip, window_span_s
from vaemotion.data.manifest.item import Item
from vaemotion.model.vaemotion_llm import VAEmotionLLM

_WORKS_PER_SEED = 10_000_000  # works of a split that belong to one seed
PROCEDURAL, MANIFEST = "procedural", "manifest"  # kinds of material
FEWEST_SEEN = 10  # clips with frames; among fewer, retrieval says nothing
MOST_SEEN = 1000  # each is compared with each
_SEED = 71
_NOISE_RMS = 0.1  # -20 dB of full scale

T = TypeVar("T")
Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Material:
    """Clips with their classes and windows: n clips, m windows, one or more per clip."""

    name: str
    kind: str  # PROCEDURAL or MANIFEST
    question: str  # that the classes answer
    options: tuple[str, ...]  # the classes
    truth: Indices  # (n,) index of each clip's class in ``options``
    works: tuple[str, ...]  # (n,) the work that each clip is part of; intervals are over works
    log_mel: Tensor  # (m, frames, mels), normalized
    clip_of: Indices  # (m,) the clip of each window, ascending
    seen: Indices  # (s,) the clips with frames, ascending
    visual: Tensor  # (s, N_v, D) their visual tokens

    @property
    def chance(self) -> float:
        """Accuracy of guessing."""
        return 1 / len(self.options)

    @property
    def first_windows(self) -> Indices:
        """Index of each clip's first window, (n,)."""
        return np.searchsorted(self.clip_of, np.arange(len(self.truth))).astype(np.int64)

    def per_clip(self, scores: npt.ArrayLike) -> Array:
        """Average scores over each clip's windows: (m, k) → (n, k)."""
        values = np.asarray(scores, np.float64)
        total = np.add.reduceat(values, self.first_windows, axis=0)
        return total / np.bincount(self.clip_of)[:, None]

    def with_frames(self, seed: int) -> Material | None:
        """Return the clips with frames, one window each; None where they are fewer than ``FEWEST_SEEN``.

        ``seed`` draws ``MOST_SEEN`` of them where there are more.
        """
        count = len(self.seen)
        if count < FEWEST_SEEN:
            return None
        drawn = np.arange(count)
        if count > MOST_SEEN:
            drawn = np.sort(np.random.default_rng([seed, 73]).permutation(count)[:MOST_SEEN])
        clips = self.seen[drawn]
        return replace(
            self,
            truth=self.truth[clips],
            works=tuple(self.works[k] for k in clips),
            log_mel=self.log_mel[torch.from_numpy(self.first_windows[clips])],
            clip_of=np.arange(len(clips)),
            seen=np.arange(len(clips)),
            visual=self.visual[torch.from_numpy(drawn)],
        )


def procedural_material(
    model: VAEmotionLLM, split: str, count: int, seed: int, *, with_visual: bool = True
) -> Material:
    """Make material of ``count`` works of a split, one window each; another seed gives other works.

    The visual tokens are those of the newest frames that the language model is given (``language_frames``);
    ``with_visual`` False leaves them out. Works of the split train lie beyond those that any stage trains on.
    """
    front_end = model.config.front_end
    frames = front_end.windows.language_frames
    earliest_s = max(front_end.windows.audio_window_s, front_end.windows.visual_window_s) + 0.1
    truth: list[int] = []
    visual: list[Tensor] = []
    log_mel: list[Tensor] = []
    options = tuple(sorted(content_item(sample_work(work_seed(split, 0)), split).options or ()))
    first = (seed + 1) * _WORKS_PER_SEED
    for index in progress(range(first, first + count), f"works of split {split}"):
        work = sample_work(work_seed(split, index))
        now_s = earliest_s + float(np.random.default_rng([2, work.seed]).uniform(0, SPREAD_S))
        truth.append(options.index(work.content))
        log_mel.append(torch.from_numpy(window_log_mel(work, now_s, front_end)))
        if with_visual:
            with torch.no_grad():
                pixels = torch.from_numpy(frames_at(work, now_s, frames, front_end)).to(model.device)
                visual.append(model.vision(pixels).flatten(0, 1))  # (frames * T, D)
    return Material(
        name="procedural works",
        kind=PROCEDURAL,
        question=prompts.CONTENT.text,
        options=options,
        truth=np.array(truth),
        works=tuple(f"work {first + k}" for k in range(count)),
        log_mel=torch.stack(log_mel),
        clip_of=np.arange(count),
        seen=np.arange(len(visual)),
        visual=torch.stack(visual) if visual else torch.zeros(0, 0, model.width),
    )


@dataclass(frozen=True)
class _Asked:
    """Questions about media: by number, the item that is asked about and its right answer."""

    question: str
    options: tuple[str, ...]
    items: dict[int, tuple[Item, str]]


def manifest_material(model: VAEmotionLLM, media: HeldOut, asked_as: Material | None = None) -> Material:
    """Make material of held-out media with sound whose items tell its content.

    The items' own options are the classes. Where none has options, the labels of all are. Sounds are heard in
    the windows of ``contract.front_end.window_ends_s``, a film in one window, with its frames. ``asked_as``:
    other material of the same source, whose question and classes count; answers that it lacks are left out.
    Media that cannot be decoded or have no sound are left out and named. Raises UsageError where fewer than
    two classes are left, or items differ in their question or options.
    """
    asked = _asked(media, asked_as)
    front_end = model.config.front_end
    truth: list[int] = []
    works: list[str] = []
    windows: list[Tensor] = []
    clip_of: list[int] = []
    pixels: dict[int, Tensor] = {}
    left_out: list[DamagedClip] = []
    for index in progress(sorted(asked.items), f"{media.name}, split {media.split}"):
        item, answer = asked.items[index]
        try:
            heard, frames = _heard_and_seen(media, index, item, front_end)
        except MediaError as error:
            left_out.append(DamagedClip(item.id, str(error)))
            continue
        if frames is not None and asked_as is None:
            pixels[len(truth)] = frames
        windows += heard
        clip_of += [len(truth)] * len(heard)
        truth.append(asked.options.index(answer))
        works.append(item.work_id)
    report_left_out(left_out, len(asked.items), media.name)
    if len(set(truth)) < 2:
        raise UsageError(
            f"{media.name} has sounds of {len(set(truth))} classes in its split '{media.split}'; recognition "
            "needs two or more"
        )
    sources = sorted({item.source for item, _ in asked.items.values()})
    return Material(
        name="recordings of " + ", ".join(sources) if not pixels else "clips of " + ", ".join(sources),
        kind=MANIFEST,
        question=asked.question,
        options=asked.options,
        truth=np.array(truth),
        works=tuple(works),
        log_mel=torch.stack(windows),
        clip_of=np.array(clip_of),
        seen=np.array(sorted(pixels), np.int64),
        visual=_visual_tokens(model, [pixels[clip] for clip in sorted(pixels)]),
    )


def _heard_and_seen(
    media: HeldOut, index: int, item: Item, front_end: FrontEnd
) -> tuple[list[Tensor], Tensor | None]:
    """Return the log-mel windows of a medium, and the newest frames of the first, (k, 3, side, side)."""
    is_sound = item.video is None and item.image is None and item.audio is not None
    window = media.window(index, _SEED, math.inf if is_sound else window_span_s(front_end))
    samples = window.clip.samples
    if samples is None:
        raise MediaError("it has no sound")
    ends_s = window_ends_s(window.clip, "audio", front_end) if is_sound else [window.now_s]
    heard = [torch.from_numpy(audio_window(samples, end_s, front_end)) for end_s in ends_s]
    return heard, _newest_frames(window.clip, window.now_s, front_end)


def _newest_frames(clip: Clip, now_s: float, front_end: FrontEnd) -> Tensor | None:
    if not clip.frames:
        return None
    pixels = window_at(clip, now_s, "visual", front_end).pixels
    return torch.from_numpy(pixels[-front_end.windows.language_frames :])


@torch.no_grad()
def _visual_tokens(model: VAEmotionLLM, pixels: Sequence[Tensor]) -> Tensor:
    """Encode the newest frames of each clip, as many as all of them have, as (s, N_v, D)."""
    if not pixels:
        return torch.zeros(0, 0, model.width)
    shared = min(len(frames) for frames in pixels)
    return torch.stack([model.vision(frames[-shared:].to(model.device)).flatten(0, 1) for frames in pixels])


def _asked(media: HeldOut, asked_as: Material | None) -> _Asked:
    """Choose one question about the content of each medium that is heard."""
    with_options: dict[int, Item] = {}
    labeled: dict[int, Item] = {}
    for index in range(len(media)):
        heard = [i for i in media.items(index) if i.modality != "visual"]
        chosen = [i for i in heard if i.options and i.task == "content" and i.audible is not False]
        if chosen:
            with_options[index] = min(chosen, key=lambda i: (not _asks_for_content(i), i.modality != "audio"))
        if named := [i for i in heard if i.label is not None]:
            labeled[index] = named[0]
    if with_options:
        found = _Asked(
            _shared_question(with_options.values(), media.name),
            _shared_options(with_options.values(), media.name),
            {k: (item, (item.options or ())[item.answer_index or 0]) for k, item in with_options.items()},
        )
    elif labeled:
        by_fold = {prompts.folded(item.label or ""): item.label or "" for item in labeled.values()}
        found = _Asked(
            prompts.CONTENT.text,
            tuple(sorted(by_fold.values())),
            {k: (item, by_fold[prompts.folded(item.label or "")]) for k, item in labeled.items()},
        )
    else:
        raise UsageError(
            f"{media.name} has no item about a sound in its split '{media.split}' that asks for its content "
            f"with options (“{prompts.CONTENT.text}”), or names it by a label"
        )
    if asked_as is None:
        return found
    known = {k: pair for k, pair in found.items.items() if pair[1] in asked_as.options}
    return _Asked(asked_as.question, asked_as.options, known)


def _asks_for_content(item: Item) -> bool:
    return item.question in {prompts.CONTENT.text, *prompts.CONTENT.paraphrases}


def _shared_question(items: Iterable[Item], name: str) -> str:
    """Return the question that all items ask; all wordings of the standard one are one question."""
    texts = {prompts.CONTENT.text if _asks_for_content(i) else i.question or "" for i in items}
    if len(texts) > 1:
        raise UsageError(
            f"the items of {name} must all ask the same question about content, got {len(texts)}, such as "
            f"“{sorted(texts)[0]}” and “{sorted(texts)[1]}”"
        )
    return texts.pop()


def _shared_options(items: Iterable[Item], name: str) -> tuple[str, ...]:
    """Return the options that all items share, by name."""
    sets = {frozenset(item.options or ()) for item in items}
    if len(sets) > 1:
        raise UsageError(
            f"the items of {name} must all offer the same options, got {len(sets)} different sets"
        )
    return tuple(sorted(sets.pop()))


def silence(front_end: FrontEnd) -> Tensor:
    """Return the log-mel window of digital silence, (1, frames, mels)."""
    filled_s = front_end.filled_audio_window_s
    samples = np.zeros(round(filled_s * SAMPLE_RATE_HZ), np.float32)
    return torch.from_numpy(audio_window(samples, filled_s, front_end))[None]


def noise(front_end: FrontEnd, seed: int) -> Tensor:
    """Return the log-mel window of white noise, (1, frames, mels)."""
    filled_s = front_end.filled_audio_window_s
    drawn = np.random.default_rng([seed, 24]).normal(0, _NOISE_RMS, round(filled_s * SAMPLE_RATE_HZ))
    samples = np.clip(drawn, -1, 1).astype(np.float32)
    return torch.from_numpy(audio_window(samples, filled_s, front_end))[None]


def other_clips(truth: Indices, seed: int) -> Indices:
    """Assign to each clip another one of another class; each is used once, (n,).

    Raises UsageError when one class has more than half of the clips.
    """
    rng = np.random.default_rng([seed, 12])
    order = np.lexsort((rng.random(len(truth)), truth))  # by class, at random within it
    largest = int(np.bincount(truth).max())
    if 2 * largest > len(truth):
        raise UsageError(
            f"{largest} of {len(truth)} clips are of one class, which leaves too few of other classes to "
            "swap sounds with; use more clips"
        )
    others = np.empty_like(order)
    others[order] = np.roll(order, -largest)  # a shift by the largest class leaves every class
    return others


def progress(values: Sequence[T], title: str) -> Iterable[T]:
    """Show a progress bar on standard error while iterating over values."""
    return track(values, title, console=Terminal(stderr=True))
