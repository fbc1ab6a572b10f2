"""Linear baselines: they find what their features carry, and learn from the training split only."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from vaemotion.cli.main import main
from vaemotion.contract.front_end import Clip
from vaemotion.data.manifest.item import Item, content_sha256
from vaemotion.data.manifest.manifest import write_manifest
from vaemotion.evaluation.baselines import gradient_statistics


def shapes(folder: Path, *, shuffled: bool = False) -> Path:
    """Write forty images whose number of lines follows their arousal; thirty of them are for training."""
    rng, items = np.random.default_rng(0), []
    arousal = rng.uniform(-1, 1, 40)
    for number, value in enumerate(arousal):
        image = np.full((80, 80, 3), 255, np.uint8)
        for _ in range(round(6 + 5 * value)):
            start, end = (tuple(map(int, rng.integers(0, 80, 2))) for _ in range(2))
            cv2.line(image, start, end, (0, 0, 0), 1)
        file = folder / f"{number}.png"
        cv2.imwrite(str(file), image)
        label = float(rng.uniform(-1, 1)) if shuffled else float(value)
        items.append(
            Item(
                id=str(number),
                image=file.name,
                pairing="none",
                task="emotion",
                modality="visual",
                arousal=label,
                construct="expressed",
                split="test" if number >= 30 else "train",
                work_id=str(number),
                creator_id=str(number),
                source="lines",
                license="CC0-1.0",
                sha256=content_sha256([file]),
            )
        )
    write_manifest(folder / "m.jsonl", items)
    return folder / "m.jsonl"


def measured_ccc(folder: Path, capsys: pytest.CaptureFixture[str]) -> float:
    command = ["evaluate", "baselines", str(folder / "m.jsonl"), "--media-root", str(folder)]
    assert main([*command, "--bootstrap", "50"]) == 0
    [row] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| lines")]
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells[:7] == ["lines", "arousal", "gradient statistics", "ridge", "30", "10", "CCC"]
    return float(cells[7].split()[0])


def test_ridge_finds_what_gradients_tell_and_nothing_where_there_is_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("related", "unrelated"):
        (tmp_path / name).mkdir()
        shapes(tmp_path / name, shuffled=name == "unrelated")
    assert measured_ccc(tmp_path / "related", capsys) > 0.7
    assert abs(measured_ccc(tmp_path / "unrelated", capsys)) < 0.5


def test_a_split_that_is_not_there_leaves_nothing_to_measure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "baselines", str(shapes(tmp_path)), "--media-root", str(tmp_path)]
    assert main([*command, "--split", "validation"]) == 2
    assert "no source has labeled items of both splits, train and validation" in capsys.readouterr().err


def test_gradients_of_an_empty_image_are_nothing_and_of_stripes_lie_in_one_direction() -> None:
    blank = gradient_statistics(Clip((np.full((64, 64, 3), 200, np.uint8),), (0.0,)))
    assert blank.shape == (36,)
    assert not blank.any()
    row = (np.arange(64) // 8 % 2 * 255).astype(np.uint8)
    stripes = np.broadcast_to(row[None, :, None], (64, 64, 3)).copy()
    across = gradient_statistics(Clip((stripes,), (0.0,)))[:8]
    assert across.argmax() == 0
    assert across[0] > 0.8 * across.sum()
