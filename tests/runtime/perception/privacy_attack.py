"""An attack on recordings: a linear decoder that computes pictures from what a recording holds of them.

In: pictures of people, drawn, and what a recording would hold of each. Out: how like the decoded pictures of
other people are to the true ones. ``python -m tests.runtime.perception.privacy_attack`` prints the figures.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from runtime.machine.threads import ThreadBudget
from runtime.perception.perception import Perception
from runtime.perception.predictor import DevicePredictor, Tokens, open_predictor
from runtime.perception.recorder import as_recorded, pooled_tokens
from tests.paths import ROOT
from vaemotion.contract.image import prepare_frame

READY = ROOT / "models" / "vaemotion-tiny-bundle"
PICTURE_PX = 128  # side of a drawn picture
DECODED_PX = 32  # side of a decoded one
Float32 = np.ndarray


def draw_person(random: np.random.Generator) -> np.ndarray:
    """Draw a person in front of a wall, (128, 128, 3) uint8: head, hair, eyes, mouth and clothes."""

    def color(low: int = 0, high: int = 256) -> tuple[int, ...]:
        return tuple(int(value) for value in random.integers(low, high, 3))

    picture = Image.new("RGB", (PICTURE_PX, PICTURE_PX), color())
    draw = ImageDraw.Draw(picture)
    x, y = random.uniform(40, 88), random.uniform(36, 60)
    radius = random.uniform(14, 26)
    skin = random.uniform(0.35, 1.0) * np.array([235, 195, 165])
    skin_color = tuple(int(value) for value in skin)
    draw.rectangle((x - 1.8 * radius, y + 1.2 * radius, x + 1.8 * radius, PICTURE_PX), fill=color())
    draw.ellipse((x - 1.1 * radius, y - 1.4 * radius, x + 1.1 * radius, y + radius), fill=color(0, 120))
    draw.ellipse((x - radius, y - radius, x + radius, y + 1.3 * radius), fill=skin_color)
    for side in (-1, 1):
        eye_x, eye_y = x + side * 0.4 * radius, y - 0.1 * radius
        draw.ellipse((eye_x - 3, eye_y - 3, eye_x + 3, eye_y + 3), fill=color(0, 90))
    mouth_y, half = y + 0.7 * radius, 0.4 * radius
    draw.line((x - half, mouth_y, x + half, mouth_y), fill=(150, 30, 40), width=3)
    return np.asarray(picture)


def decoded_likeness(known: Float32, known_pictures: Float32, held: Float32, held_pictures: Float32) -> float:
    """Return the mean correlation of decoded with true pictures, each less its own mean color.

    ``known`` (n, d) with ``known_pictures`` (n, p) teach the decoder, a ridge regression; ``held`` (m, d) is
    decoded and compared with ``held_pictures`` (m, p).
    """
    mean, scale = known.mean(0), known.std(0) + 1e-6
    x, y = (known - mean) / scale, known_pictures - known_pictures.mean(0)
    kernel = x @ x.T  # (n, n)
    kernel[np.diag_indices(len(x))] += 0.03 * np.trace(kernel) / len(x)
    decoded = ((held - mean) / scale) @ x.T @ np.linalg.solve(kernel, y)  # (m, p)
    true = held_pictures - known_pictures.mean(0)
    decoded, true = _without_color(decoded), _without_color(true)
    products = (decoded * true).sum(1)
    return float(np.mean(products / np.sqrt((decoded**2).sum(1) * (true**2).sum(1) + 1e-12)))


def _without_color(pictures: Float32) -> Float32:
    """Take the mean of each channel out of pictures (n, p): a wall's color alone is no likeness."""
    channels = pictures.reshape(len(pictures), -1, 3)
    return (channels - channels.mean(1, keepdims=True)).reshape(pictures.shape)


def attack(
    bundle: Path, recorded: dict[str, Callable[[DevicePredictor, Float32], Float32]], people: int = 600
) -> dict[str, float]:
    """Return the likeness of pictures decoded from each kind of record.

    ``recorded``: by kind, what a record holds of one frame whose tokens are (T, D).
    """
    random = np.random.default_rng(2)
    pictures = [draw_person(random) for _ in range(people)]
    small = np.stack(
        [
            np.asarray(Image.fromarray(p).resize((DECODED_PX, DECODED_PX)), np.float32).ravel()
            for p in pictures
        ]
    )
    held = people // 6
    with open_predictor(bundle, threads=ThreadBudget(2, 1)) as predictor:
        perception = Perception(predictor)
        image = predictor.constants.front_end.image
        tokens = [
            each
            for first in range(0, people, 8)
            for each in perception.encode(
                "vision_encoder", [prepare_frame(p, image) for p in pictures[first : first + 8]]
            )
        ]
        likeness: dict[str, float] = {}
        for kind, record in recorded.items():
            x = np.stack([record(predictor, each).ravel() for each in tokens if each is not None])
            likeness[kind] = decoded_likeness(x[held:], small[held:], x[:held], small[:held])
    return likeness


def readings_of(predictor: DevicePredictor, tokens: Float32) -> Float32:
    """Return the numbers of a reading of one frame."""
    no_sound = np.zeros((0, tokens.shape[1]), np.float32)
    affect, _ = predictor.adapt(Tokens(tokens[None], np.zeros(1, np.float32), no_sound, 0.0))
    numbers = (affect.valence, affect.arousal, affect.valence_sd, affect.arousal_sd)
    return np.array([*numbers, *affect.emotions])


RECORDED = {
    "tokens": lambda predictor, tokens: as_recorded(tokens),
    "pooled": lambda predictor, tokens: pooled_tokens(tokens),
    "readings": readings_of,
}

if __name__ == "__main__":
    for kind, likeness in attack(READY, RECORDED).items():
        print(f"pictures decoded from {kind}: r {likeness:.2f}")
