"""Clips and prompts that an export is verified on, and the windows that calibrate it.

In: a front end, a predictor. Out: held-out works of procedural art, the inputs that each engine has on them,
prompts for the language model, and calibration windows with hashes of what they were drawn from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from calibration.samples import Sample, manifest_samples, procedural_samples, training_items
from export.errors import ExportError
from runtime.perception.predictor import Predictor, adapter_inputs
from vaemotion.contract import prompts
from vaemotion.contract.front_end import PATHS, Clip, EncoderInputs, FrontEnd, window_at
from vaemotion.data.art.art import sample_work, work_seed
from vaemotion.data.instructions import procedural_clip
from vaemotion.data.manifest.item import Item, content_sha256

Array = npt.NDArray[Any]
CLIPS = 40  # held-out works on which an export is compared with its checkpoint
CLIP_S = 3.2


def held_out_clips(front_end: FrontEnd, count: int) -> list[Clip]:
    """Make clips of procedural works that no training and no calibration uses."""
    hop_s = front_end.windows.frame_hop_s
    return [procedural_clip(sample_work(work_seed("validation", i)), CLIP_S, hop_s) for i in range(count)]


def engine_inputs(predictor: Predictor[Any], clips: Sequence[Clip]) -> dict[str, dict[str, Array]]:
    """Compute real inputs of each engine by role, one row for each clip.

    The rows of the EmoAdapter take the paths in turn.
    """
    front_end = predictor.constants.front_end
    windows = [window_at(clip, clip.duration_s, "audio-visual", front_end) for clip in clips]
    rows: list[dict[str, Array]] = []
    for index, clip in enumerate(clips):
        inputs = window_at(clip, clip.duration_s, PATHS[index % len(PATHS)], front_end)
        rows.append(dict(adapter_inputs(predictor.encode(inputs), predictor.constants)))
    return {
        "vision_encoder": {"pixels": np.concatenate([w.pixels[-1:] for w in windows])},
        "audio_encoder": {"log_mel": np.concatenate([w.log_mel for w in windows])},
        "emo_adapter": {name: np.concatenate([row[name] for row in rows]) for name in rows[0]},
    }


def language_prompts(predictor: Predictor[Any], clips: Sequence[Clip]) -> list[npt.NDArray[np.float32]]:
    """Build a prompt of each clip with real audio and visual embeddings, prefix included, (n, D) each."""
    front_end = predictor.constants.front_end
    prompted: list[npt.NDArray[np.float32]] = []
    for clip in clips:
        plain = predictor.encode(window_at(clip, clip.duration_s, "audio-visual", front_end))
        prompted.append(np.concatenate([prefix_of(predictor), predictor.prompt(plain, prompts.CONTENT.text)]))
    return prompted


def narrator_prompt(predictor: Predictor[Any], inputs: EncoderInputs) -> npt.NDArray[np.float32]:
    """Build the narrator's prompt for a window, with prefix and emotion-enhanced tokens, (n, D)."""
    _, enhanced = predictor.adapt(predictor.encode(inputs))
    return np.concatenate([prefix_of(predictor), predictor.prompt(enhanced, prompts.CAPTION.text)])


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
