"""The linear peers: what they can learn they find, and only from the training split."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from vaemotion.cli import main
from vaemotion.contract.front_end import Clip
from vaemotion.data.item import Item, content_sha256
from vaemotion.data.manifest import write_manifest
from vaemotion.evaluation.baselines import gradient_statistics


def shapes(folder: Path, *, shuffled: bool = False) -> Path:
    """Forty pictures with more or fewer lines, which are their arousal; thirty to learn from."""
    rng, items = np.random.default_rng(0), []
    arousal = rng.uniform(-1, 1, 40)
    for number, value in enumerate(arousal):
        picture = np.full((80, 80, 3), 255, np.uint8)
        for _ in range(round(6 + 5 * value)):
            cv2.line(
                picture,
                tuple(map(int, rng.integers(0, 80, 2))),
                tuple(map(int, rng.integers(0, 80, 2))),
                (0, 0, 0),
                1,
            )
        file = folder / f"{number}.png"
        cv2.imwrite(str(file), picture)
        label = float(rng.uniform(-1, 1)) if shuffled else float(value)
        items.append(
            Item(
                id=str(number), image=file.name, pairing="none", task="emotion", modality="visual", arousal=label,
                construct="expressed", split="test" if number >= 30 else "train", work_id=str(number),
                creator_id=str(number), source="lines", license="CC0-1.0", sha256=content_sha256([file]),
            )
        )  # fmt: skip
    write_manifest(folder / "m.jsonl", items)
    return folder / "m.jsonl"


def figure(folder: Path, capsys: pytest.CaptureFixture[str]) -> float:
    assert (
        main(
            [
                "evaluate",
                "baselines",
                str(folder / "m.jsonl"),
                "--media-root",
                str(folder),
                "--bootstrap",
                "50",
            ]
        )
        == 0
    )
    [row] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| lines")]
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells[:7] == ["lines", "arousal", "gradient statistics", "ridge", "30", "10", "CCC"]
    return float(cells[7].split()[0])


def test_ridge_finds_what_gradients_tell_and_nothing_where_there_is_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("told", "nothing"):
        (tmp_path / name).mkdir()
        shapes(tmp_path / name, shuffled=name == "nothing")
    assert figure(tmp_path / "told", capsys) > 0.7
    assert abs(figure(tmp_path / "nothing", capsys)) < 0.5


def test_a_split_that_is_not_there_leaves_nothing_to_measure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "evaluate",
        "baselines",
        str(shapes(tmp_path)),
        "--media-root",
        str(tmp_path),
        "--split",
        "validation",
    ]
    assert main(words) == 2
    assert "no labelled items of both splits, train and validation" in capsys.readouterr().err


def test_gradients_of_an_empty_picture_are_nothing_and_of_stripes_lie_in_one_direction() -> None:
    blank = gradient_statistics(Clip((np.full((64, 64, 3), 200, np.uint8),), (0.0,)))
    assert blank.shape == (36,)
    assert not blank.any()
    stripes = np.repeat((np.arange(64) // 8 % 2 * 255).astype(np.uint8)[None, :, None], 64, axis=0).repeat(
        3, axis=2
    )
    across = gradient_statistics(Clip((stripes,), (0.0,)))[:8]
    assert across.argmax() == 0
    assert across[0] > 0.8 * across.sum()
