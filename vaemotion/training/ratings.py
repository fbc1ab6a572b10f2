"""Human ratings for stage 2: rated images and sounds as tokens, each in several views.

In: data manifests whose items carry valence, arousal or emotions. Out: a `RatedSet` for each source, path
and construct. A label stays with the modality that was rated and the construct that was asked for. Labels
that nobody gave are NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track
from torch import Tensor

from vaemotion.contract.audio import SAMPLE_RATE_HZ
from vaemotion.contract.emotions import EMOTIONS
from vaemotion.contract.errors import UsageError
from vaemotion.contract.front_end import FrontEnd, audio_window
from vaemotion.contract.image import prepare_frame
from vaemotion.data.manifest.item import Item
from vaemotion.data.manifest.loader import load_clip
from vaemotion.data.manifest.manifest import read_manifest
from vaemotion.model.emo_adapter import CONSTRUCTS
from vaemotion.model.vaemotion_llm import VAEmotionLLM

IMAGE_VIEWS, SOUND_VIEWS = 24, 8  # views of each item, the unchanged one first


@dataclass(frozen=True)
class RatedSet:
    """One source's items on one path."""

    source: str
    path: str  # "audio" or "visual"
    construct: int  # index into ``CONSTRUCTS``
    tokens: Tensor  # (items, views, N, D) float16
    affect: Tensor  # (items, 2) valence and arousal, NaN where nobody was asked
    emotions: Tensor  # (items, E), NaN where nobody was asked


def read_rated(
    manifests: Sequence[str], media_root: Path, model: VAEmotionLLM, seed: int, split: str = "train"
) -> list[RatedSet]:
    """Encode the rated items of a split, by source, path and construct.

    Raises UsageError when manifests are given and none of their items is rated on a single path.
    """
    groups: dict[tuple[str, str, str], list[Item]] = {}
    for manifest in manifests:
        for item in read_manifest(Path(manifest), media_root):
            labeled = (
                item.valence is not None or item.arousal is not None or item.emotion_distribution is not None
            )
            if item.split == split and labeled and item.modality != "audio-visual":
                key = (item.source, item.modality, item.construct or "expressed")
                groups.setdefault(key, []).append(item)
    if manifests and not groups:
        raise UsageError(f"{', '.join(manifests)}: no rated item of split {split!r} on a single path")
    return [_rated_set(*key, items, media_root, model, seed) for key, items in groups.items()]


@torch.no_grad()
def _rated_set(
    source: str,
    path: str,
    construct: str,
    items: list[Item],
    media_root: Path,
    model: VAEmotionLLM,
    seed: int,
) -> RatedSet:
    tokens: list[Tensor] = []
    for number, item in enumerate(track(items, source)):
        rng = np.random.default_rng([seed, 12, number])
        clip = load_clip(item, media_root)
        if path == "visual":
            images = _image_views(clip.frames[0], rng)
            pixels = np.stack([prepare_frame(view, model.config.front_end.image) for view in images])
            views = model.vision(torch.from_numpy(pixels).to(model.device))  # (views, T, D)
        else:
            assert clip.samples is not None, "the manifest's rules: an item of the audio path has sound"
            windows = np.stack(_sound_views(clip.samples, rng, model.config.front_end))
            views = model.audio_pathway(torch.from_numpy(windows).to(model.device))  # (views, N_a, D)
        tokens.append(views.half().cpu())
    unrated = (np.nan,) * len(EMOTIONS)
    return RatedSet(
        source,
        path,
        CONSTRUCTS.index(construct),
        torch.stack(tokens),
        torch.tensor([[_or_nan(i.valence), _or_nan(i.arousal)] for i in items]),
        torch.tensor([i.emotion_distribution or unrated for i in items]),
    )


def _or_nan(value: float | None) -> float:
    return np.nan if value is None else value


def _image_views(image: npt.NDArray[np.uint8], rng: np.random.Generator) -> list[npt.NDArray[np.uint8]]:
    """Return the image and augmented views of it, (H, W, 3) each.

    A view is mirrored or not, turned by up to 15°, scaled by up to 10 % and moved by up to 6 %.
    """
    height, width = image.shape[:2]
    background = tuple(int(v) for v in np.median(image[:2].reshape(-1, 3), axis=0))
    views = [image]
    while len(views) < IMAGE_VIEWS:
        turn = cv2.getRotationMatrix2D((width / 2, height / 2), rng.uniform(-15, 15), rng.uniform(0.9, 1.1))
        turn[:, 2] += rng.uniform(-0.06, 0.06, 2) * (width, height)
        mirrored = image[:, ::-1] if rng.random() < 0.5 else image
        moved = cv2.warpAffine(
            np.ascontiguousarray(mirrored),
            turn,
            (width, height),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=background,
        )
        views.append(np.asarray(moved, np.uint8))
    return views


def _sound_views(
    samples: npt.NDArray[np.float32], rng: np.random.Generator, front_end: FrontEnd
) -> list[npt.NDArray[np.float32]]:
    """Return the last window of a sound and augmented views of it, normalized log-mel (frames, mels) each.

    A view is cut by up to 8 % at its start, delayed by up to 0.2 s, and up to 3 dB louder or softer.
    """
    end_s = len(samples) / SAMPLE_RATE_HZ
    views = [audio_window(samples, end_s, front_end)]
    while len(views) < SOUND_VIEWS:
        cut = samples[int(rng.uniform(0, 0.08) * len(samples)) :]
        silence = np.zeros(int(rng.uniform(0, 0.2) * SAMPLE_RATE_HZ), np.float32)
        changed = np.concatenate([silence, cut]) * np.float32(10 ** (rng.uniform(-3, 3) / 20))
        views.append(audio_window(changed, len(changed) / SAMPLE_RATE_HZ, front_end))
    return views
