"""Clips and prompts that an export is verified on, and the windows that calibrate it.

In: a front end, a predictor, held-out media or none. Out: clips of them or of procedural art, the inputs that
each engine has on them, prompts for the language model, and calibration windows with hashes of what they were
drawn from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from calibration.samples import Sample, manifest_samples, procedural_samples, training_items
from export.errors import ExportError
from runtime.perception.predictor import Predictor, adapter_inputs
from vaemotion.contract import prompts
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.front_end import PATHS, Clip, EncoderInputs, FrontEnd, window_at
from vaemotion.contract.media.files import MediaError
from vaemotion.contract.prediction import Question
from vaemotion.data.art.art import sample_work, work_seed
from vaemotion.data.art.questions import content_item
from vaemotion.data.clips.held_out import HeldOut, paths_of, report_left_out
from vaemotion.data.clips.source import DamagedClip, window_span_s
from vaemotion.data.instructions import procedural_clip
from vaemotion.data.manifest.item import Item, content_sha256

Array = npt.NDArray[Any]
CLIPS = 40  # held-out works on which an export is compared with its checkpoint
CLIP_S = 3.2
OWN_QUESTIONS = 2  # of a clip and path, besides those about valence and arousal
LEVEL_QUESTIONS = (
    Question(prompts.AROUSAL.text, prompts.AROUSAL_WORDS, "emotion"),
    Question(prompts.VALENCE.text, prompts.VALENCE_WORDS, "emotion"),
)
_SEED = 61


@dataclass(frozen=True)
class ComparedClip:
    """A clip on which a bundle is compared with its checkpoint, and all items about it."""

    clip: Clip
    items: tuple[Item, ...]

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths that the clip has the media for."""
        return paths_of(self.clip)

    def questions(self, path: str) -> list[Question]:
        """List the items' own questions for a path, and those about valence and arousal."""
        asked = [
            Question(item.question, item.options, item.task)
            for item in self.items
            if item.modality == path and item.question is not None and item.options is not None
        ]
        return [*asked[:OWN_QUESTIONS], *LEVEL_QUESTIONS]


class ComparedClips:
    """Up to ``count`` clips that no training and no calibration uses, made once, when they are asked for.

    ``media``: held-out media; None for procedural art. ``reads``: everything that the clips depend on, for
    the keys of steps.
    """

    def __init__(self, front_end: FrontEnd, count: int, media: HeldOut | None = None) -> None:
        self._front_end, self._media, self._made = front_end, media, list[ComparedClip]()
        self.count = count if media is None else min(count, len(media))
        self.name = "procedural art" if media is None else f"{media.name}, split {media.split}"
        self.reads = "procedural art" if media is None else media.identity

    def __call__(self) -> list[ComparedClip]:
        """Make the clips.

        Raises UserError for media without frames, without sound, or of which too many cannot be decoded.
        """
        if not self._made:
            self._made = list(self._clips(self.count))
            for path in ("visual", "audio"):
                self._with(path, self._made)
        return self._made

    def first(self) -> list[ComparedClip]:
        """Return a clip with frames and sound, or one with each where the first clips have not both.

        They do not depend on ``count``. Raises UserError as a call does.
        """
        seen: list[ComparedClip] = []
        for compared in self._clips(CLIPS):
            if "audio-visual" in compared.paths:
                return [compared]
            seen.append(compared)
        return [self._with("visual", seen), self._with("audio", seen)]

    def _clips(self, count: int) -> Iterator[ComparedClip]:
        if self._media is None:
            return _clips_of_art(self._front_end, count)
        return _clips_of_media(self._media, self._front_end, count)

    def _with(self, path: str, clips: Sequence[ComparedClip]) -> ComparedClip:
        """Return the first clip that has the media for a path."""
        for compared in clips:
            if path in compared.paths:
                return compared
        lacks = "frames" if path == "visual" else "sound"
        raise UserError(
            f"none of the {len(clips)} clips of {self.name} has {lacks}, so that a bundle cannot be compared "
            "with its checkpoint on them; give a manifest with frames and sound"
        )


def _clips_of_art(front_end: FrontEnd, count: int) -> Iterator[ComparedClip]:
    hop_s = front_end.windows.frame_hop_s
    for index in range(count):
        work = sample_work(work_seed("validation", index))
        items = tuple(content_item(work, "validation", path) for path in PATHS)
        yield ComparedClip(procedural_clip(work, CLIP_S, hop_s), items)


def _clips_of_media(media: HeldOut, front_end: FrontEnd, count: int) -> Iterator[ComparedClip]:
    left_out: list[DamagedClip] = []
    given = 0
    for index in np.random.default_rng(_SEED).permutation(len(media)).tolist():
        if given == count:
            break
        items = media.items(index)
        try:
            clip = media.window(index, _SEED, window_span_s(front_end)).clip
        except MediaError as error:
            left_out.append(DamagedClip(items[0].id, str(error)))
        else:
            given += 1
            yield ComparedClip(clip, items)
    report_left_out(left_out, given + len(left_out), media.name)


def engine_inputs(predictor: Predictor[Any], clips: Sequence[ComparedClip]) -> dict[str, dict[str, Array]]:
    """Compute real inputs of each engine by role, one row for each clip that has what the engine reads.

    The rows of the EmoAdapter take the paths of their clips in turn.
    """
    front_end = predictor.constants.front_end
    windows = [window_at(c.clip, c.clip.duration_s, c.paths[-1], front_end) for c in clips]
    rows: list[dict[str, Array]] = []
    for index, compared in enumerate(clips):
        path = compared.paths[index % len(compared.paths)]
        inputs = window_at(compared.clip, compared.clip.duration_s, path, front_end)
        rows.append(dict(adapter_inputs(predictor.encode(inputs), predictor.constants)))
    return {
        "vision_encoder": {"pixels": np.concatenate([w.pixels[-1:] for w in windows])},
        "audio_encoder": {"log_mel": np.concatenate([w.log_mel for w in windows])},
        "emo_adapter": {name: np.concatenate([row[name] for row in rows]) for name in rows[0]},
    }


def language_prompts(
    predictor: Predictor[Any], clips: Sequence[ComparedClip]
) -> list[npt.NDArray[np.float32]]:
    """Build a prompt of each clip with real embeddings of all that it has, prefix included, (n, D) each.

    They ask for content and for a narration in turn.
    """
    front_end = predictor.constants.front_end
    questions = (prompts.CONTENT.text, predictor.constants.narrator_question)
    prompted: list[npt.NDArray[np.float32]] = []
    for index, compared in enumerate(clips):
        inputs = window_at(compared.clip, compared.clip.duration_s, compared.paths[-1], front_end)
        plain = predictor.encode(inputs)
        asked = predictor.prompt(plain, questions[index % len(questions)])
        prompted.append(np.concatenate([prefix_of(predictor), asked]))
    return prompted


def narrator_prompt(predictor: Predictor[Any], inputs: EncoderInputs) -> npt.NDArray[np.float32]:
    """Build the narrator's prompt for a window, with prefix and emotion-enhanced tokens, (n, D)."""
    _, enhanced = predictor.adapt(predictor.encode(inputs))
    asked = predictor.prompt(enhanced, predictor.constants.narrator_question)
    return np.concatenate([prefix_of(predictor), asked])


def prefix_of(predictor: Predictor[Any]) -> npt.NDArray[np.float32]:
    """Embed the prefix that stands before every prompt, (n, D)."""
    return predictor.language_model.embed(predictor.token_ids(predictor.constants.prompt.prefix))


class CalibrationWindows:
    """Calibration windows, drawn when a step asks for them: of a manifest, or of procedural art.

    ``reads``: everything that they depend on, for the keys of steps. Paths are not part of it. Raises
    UserError for a manifest that cannot be read or has no training item.
    """

    def __init__(
        self, front_end: FrontEnd, count: int, manifest: Path | None = None, media_root: Path = Path()
    ) -> None:
        self._front_end, self._count, self._media_root = front_end, count, media_root
        self._drawn: list[Sample] = []
        self._items: list[Item] | None = None  # one for each window
        if manifest is not None:
            self._items = training_items(manifest, media_root, count)
        self.reads = {"windows": count, "front_end": asdict(front_end), "items": self._content()}

    def __call__(self) -> list[Sample]:
        """Draw the windows, once. Raises ExportError when a medium was changed since the start."""
        if not self._drawn:
            if self._items is None:
                self._drawn = list(procedural_samples(self._front_end, self._count))
            else:
                self._drawn = list(manifest_samples(self._items, self._media_root, self._front_end))
                if self._content() != self.reads["items"]:
                    raise ExportError(
                        "calibration media were changed while the export ran; run the same command again"
                    )
        return self._drawn

    def refuse_shared(self, media: HeldOut) -> None:
        """Raise UsageError for held-out media that calibrate, too."""
        own = {item.sha256: item for item in self._items or ()}
        for index in range(len(media)):
            for item in media.items(index):
                if item.sha256 in own:
                    raise UsageError(
                        f"the media of calibration item '{own[item.sha256].id}' and of item '{item.id}' of "
                        f"{media.name}, which judges, are the same; take it out of one of the manifests"
                    )

    def free(self) -> None:
        """Free the memory of the windows until they are needed again."""
        self._drawn = []

    def _content(self) -> list[Any]:
        """Describe each window's item: the hash of its media, the part that is read, its labels."""
        hashes: dict[tuple[str, ...], str] = {}
        content: list[Any] = []
        for item in self._items or ():
            if item.media not in hashes:
                hashes[item.media] = content_sha256(self._media_root / path for path in item.media)
            kinds = [kind for kind in ("video", "image", "audio") if getattr(item, kind) is not None]
            labels = [item.emotion_distribution, item.valence, item.arousal]
            content.append([hashes[item.media], kinds, item.t0, item.t1, labels])
        return content
