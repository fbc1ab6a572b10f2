"""A user's own media for tests, made here: short films with sound, a still, a sound, and their manifest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from tests.media import tone, write_wav
from vaemotion.contract.audio import SAMPLE_RATE_HZ
from vaemotion.contract.emotions import EMOTIONS
from vaemotion.data.manifest.item import SPLITS, Item, content_sha256
from vaemotion.data.manifest.manifest import write_manifest
from vaemotion.data.manifest.writer import write_clip

LABELS = ("engine", "flute", "green frog", "siren")  # no class of procedural art
QUESTION = "Which of these is it?"
_RATE_HZ = 10
_SIDE_PX = 32


def write_film(path: Path, kind: int, number: int, split: str, duration_s: float) -> None:
    """Write a film of a square that moves, with a tone whose height follows from ``kind``."""
    rng = np.random.default_rng([kind, number, SPLITS.index(split)])
    frames = np.full((round(duration_s * _RATE_HZ), _SIDE_PX, _SIDE_PX, 3), 40 + 30 * kind, np.uint8)
    color, size = rng.integers(0, 255, 3), 6 + 2 * kind
    for k, frame in enumerate(frames):
        x = (k * (kind + 1) + number) % (_SIDE_PX - size)
        frame[x : x + size, 4 : 4 + size] = color
    beat = np.sin(2 * np.pi * (1 + kind) * np.arange(round(duration_s * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ)
    samples = (
        tone(duration_s, 300.0 * (kind + 1) + 11 * number + 3 * SPLITS.index(split)) * (0.6 + 0.4 * beat)
    ).astype(np.float32)
    write_clip(path, frames, _RATE_HZ, samples)


def film_items(folder: Path, index: int, split: str, duration_s: float = 1.6) -> list[Item]:
    """Write film ``index`` and return its items: content with options, ratings of film, frames and sound."""
    kind = index % len(LABELS)
    name = f"{split}-{index}"
    write_film(folder / f"{name}.mkv", kind, index, split, duration_s)
    shares = np.random.default_rng(index).dirichlet(np.ones(len(EMOTIONS)))
    common: dict[str, object] = {
        "video": f"{name}.mkv",
        "pairing": "synchronised",
        "label": LABELS[kind],
        "split": split,
        "work_id": name,
        "creator_id": f"{split}-people",
        "source": "own films",
        "license": "CC0-1.0",
        "sha256": content_sha256([folder / f"{name}.mkv"]),
    }
    asked = {
        "question": QUESTION,
        "options": (*LABELS[kind:], *LABELS[:kind]),
        "answer_index": 0,
        "task": "content",
        "audible": True,
    }
    rated = {
        "task": "emotion",
        "valence": round(float(np.sin(index)), 3),
        "arousal": round(float(np.cos(2 * index)), 3),
        "construct": "expressed",
        "emotion_distribution": tuple(
            round(float(share), 6) for share in (*shares[:-1], 1 - shares[:-1].round(6).sum())
        ),
    }
    items = [Item(id=f"{name}-content", modality="audio", **common, **asked)]  # type: ignore[arg-type]
    for path in ("audio", "visual", "audio-visual"):
        items.append(Item(id=f"{name}-{path}", modality=path, **common, **rated))  # type: ignore[arg-type]
    return items


def still_and_sound(folder: Path, split: str) -> list[Item]:
    """Write a picture and a sound that people rated, and return their items."""
    cv2.imwrite(str(folder / f"{split}.png"), np.full((24, 24, 3), 120 + SPLITS.index(split), np.uint8))
    write_wav(folder / f"{split}.wav", tone(1.4, 440.0 + 20 * SPLITS.index(split)), SAMPLE_RATE_HZ)
    common: dict[str, object] = {
        "pairing": "none",
        "task": "emotion",
        "valence": 0.3,
        "arousal": -0.2,
        "construct": "induced",
        "split": split,
        "creator_id": f"{split}-people",
        "source": "own media",
        "license": "CC0-1.0",
    }
    return [
        Item(
            id=f"{split}-{kind}",
            modality=path,
            work_id=f"{split}-{kind}",
            sha256=content_sha256([folder / name]),
            **{kind: name},  # type: ignore[arg-type]
            **common,  # type: ignore[arg-type]
        )
        for kind, path, name in (("image", "visual", f"{split}.png"), ("audio", "audio", f"{split}.wav"))
    ]


def write_own_manifest(
    folder: Path, films: int, splits: Sequence[str] = ("validation",), duration_s: float = 1.6
) -> Path:
    """Write ``films`` films per split with a still and a sound each, and their manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    items: list[Item] = []
    for split in splits:
        for index in range(films):
            items += film_items(folder, index, split, duration_s)
        items += still_and_sound(folder, split)
    write_manifest(folder / "own.jsonl", items)
    return folder / "own.jsonl"
