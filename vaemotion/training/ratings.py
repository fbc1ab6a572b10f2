"""Human ratings for stage 2: rated pictures and sounds as tokens, each in several views.

In: data manifests whose items carry valence or arousal. Out: a `RatedSet` for each source. The labels stay with the modality that
was rated and with the construct that was asked for; what was not rated is NaN.
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
from vaemotion.contract.errors import UsageError
from vaemotion.contract.front_end import FrontEnd, audio_window
from vaemotion.contract.image import prepare_frame
from vaemotion.data.item import Item
from vaemotion.data.loader import load_clip
from vaemotion.data.manifest import read_manifest
from vaemotion.model.emo_adapter import CONSTRUCTS
from vaemotion.model.vaemotion_llm import VAEmotionLLM

PICTURE_VIEWS, SOUND_VIEWS = 24, 8


@dataclass(frozen=True)
class RatedSet:
    """One source's items on one path. ``tokens`` (items, views, N, D) float16; ``affect`` (items, 2) and ``emotions`` (items, 9), NaN where
    nobody was asked; ``construct``: index into ``CONSTRUCTS``."""

    source: str
    path: str  # "audio" or "visual"
    construct: int
    tokens: Tensor
    affect: Tensor
    emotions: Tensor


def read_rated(
    manifests: Sequence[str], media_root: Path, model: VAEmotionLLM, seed: int, split: str = "train"
) -> list[RatedSet]:
    """The rated items of a split, by source, path and construct. Raises UsageError when there is none."""
    groups: dict[tuple[str, str, str], list[Item]] = {}
    for manifest in manifests:
        for item in read_manifest(Path(manifest), media_root):
            labelled = (
                item.valence is not None or item.arousal is not None or item.emotion_distribution is not None
            )
            if item.split == split and labelled and item.modality != "audio-visual":
                groups.setdefault((item.source, item.modality, item.construct or "expressed"), []).append(
                    item
                )
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
            pixels = [
                prepare_frame(v, model.config.front_end.image) for v in _picture_views(clip.frames[0], rng)
            ]
            views = model.vision(torch.from_numpy(np.stack(pixels)).to(model.device))  # (views, T, D)
        else:
            assert model.audio is not None
            assert clip.samples is not None, "the manifest's rules: an item of the audio path has sound"
            windows = _sound_views(clip.samples, rng, model.config.front_end)
            views = model.audio(torch.from_numpy(np.stack(windows)).to(model.device))
        tokens.append(views.half().cpu())
    nine = (np.nan,) * 9
    return RatedSet(
        source, path, CONSTRUCTS.index(construct), torch.stack(tokens),
        torch.tensor([[_or_nan(i.valence), _or_nan(i.arousal)] for i in items]),
        torch.tensor([i.emotion_distribution or nine for i in items]),
    )  # fmt: skip


def _or_nan(value: float | None) -> float:
    return np.nan if value is None else value


def _picture_views(picture: npt.NDArray[np.uint8], rng: np.random.Generator) -> list[npt.NDArray[np.uint8]]:
    """The picture itself, and others of it: mirrored, turned by up to 15°, a little larger, smaller or elsewhere. (H, W, 3) each."""
    height, width = picture.shape[:2]
    ground = tuple(int(v) for v in np.median(picture[:2].reshape(-1, 3), axis=0))
    views = [picture]
    while len(views) < PICTURE_VIEWS:
        turn = cv2.getRotationMatrix2D((width / 2, height / 2), rng.uniform(-15, 15), rng.uniform(0.9, 1.1))
        turn[:, 2] += rng.uniform(-0.06, 0.06, 2) * (width, height)
        shown = picture[:, ::-1] if rng.random() < 0.5 else picture
        moved = cv2.warpAffine(
            np.ascontiguousarray(shown), turn, (width, height), flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT, borderValue=ground,
        )  # fmt: skip
        views.append(np.asarray(moved, np.uint8))
    return views


def _sound_views(
    samples: npt.NDArray[np.float32], rng: np.random.Generator, front_end: FrontEnd
) -> list[npt.NDArray[np.float32]]:
    """Normalised log-mel windows (frames, mels): the last window itself, and others: a little later or earlier, louder or softer."""
    end_s = len(samples) / SAMPLE_RATE_HZ
    views = [audio_window(samples, end_s, front_end)]
    while len(views) < SOUND_VIEWS:
        cut = samples[int(rng.uniform(0, 0.08) * len(samples)) :]
        silence = np.zeros(int(rng.uniform(0, 0.2) * SAMPLE_RATE_HZ), np.float32)
        heard = np.concatenate([silence, cut]) * np.float32(10 ** (rng.uniform(-3, 3) / 20))
        views.append(audio_window(heard, len(heard) / SAMPLE_RATE_HZ, front_end))
    return views
