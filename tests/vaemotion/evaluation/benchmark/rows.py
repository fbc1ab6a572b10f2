"""Answer rows and affect rows for the tests of benchmark results, without media."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vaemotion.contract.prediction import Affect
from vaemotion.data.manifest.item import Item
from vaemotion.evaluation.benchmark.rows import AffectRow, AnswerRow

UNIFORM = (1 / 9,) * 9


def item(index: int, **fields: object) -> Item:
    values = {
        "id": f"item-{index}",
        "video": f"{index}.mkv",
        "pairing": "synchronised",
        "task": "content",
        "modality": "audio-visual",
        "split": "test",
        "work_id": f"work-{index}",
        "creator_id": "us",
        "source": "made-up",
        "license": "CC0-1.0",
        "sha256": "0" * 64,
    }
    return Item(**{**values, **fields})


def answer(
    index: int, options: tuple[str, ...], right: int, chosen: int, written: Sequence[str]
) -> AnswerRow:
    labeled = item(index, question="What is this?", options=options, answer_index=right)
    scores = tuple(-0.1 if k == chosen else -3.0 for k in range(len(options)))
    return AnswerRow(labeled, "audio-visual", scores, tuple(written))


def reading(index: int, path: str, label: float, predicted: float, **fields: object) -> AffectRow:
    """Make an affect row with the given valence and no label of arousal."""
    labeled = item(index, **{"modality": path, "valence": label, "construct": "expressed", **fields})
    return AffectRow(labeled, path, Affect(predicted, 0.0, 0.2, 0.2, np.array(UNIFORM, np.float32)))
