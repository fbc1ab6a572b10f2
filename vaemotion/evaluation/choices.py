"""Multiple choice, scored in two ways: by the options' log-probabilities, and by what the model writes.

In: answered items. Out: figures per source, task and path. The second scoring lists the options in the prompt, rotated, and
reads a greedy answer; a text that is no option (see `matched_option`) is unparsable, and wrong.
"""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vaemotion.evaluation.metrics import accuracy, macro_f1, unweighted_average_recall
from vaemotion.evaluation.rows import Answer, Bootstrap, Estimate, grouped, path_order

Classes = npt.NDArray[np.int64]
_AROUND = string.whitespace + string.punctuation + "“”‘’«»…–—"
_ARTICLES = ("a", "an", "the")


@dataclass(frozen=True)
class ChoiceResult:
    """Multiple choice over unlisted options. ``path``: asked on; ``own_path``: the items' own. ``chance``: accuracy of guessing.
    ``uar``: mean recall over the classes of the truth."""

    source: str
    task: str
    path: str
    own_path: str
    items: int
    works: int
    accuracy: Estimate
    chance: float
    macro_f1: Estimate
    uar: Estimate


@dataclass(frozen=True)
class ListedResult:
    """Multiple choice over listed options, answered in words. ``texts``: answers read, one per item and rotation; ``rotations``:
    of the item with most. ``parse_rate``: share of texts that are an option; ``accuracy``: share of texts that are the
    right one; ``circular``: share of items that are right under every rotation; the chances are those of guessing."""

    source: str
    task: str
    path: str
    own_path: str
    items: int
    works: int
    texts: int
    rotations: int
    parse_rate: Estimate
    accuracy: Estimate
    chance: float
    circular: Estimate
    circular_chance: float
    macro_f1: Estimate
    uar: Estimate


def normalised(text: str) -> str:
    """Case, punctuation and space around, and a leading article do not count; space within is one space."""
    words = unicodedata.normalize("NFKC", text).casefold().strip(_AROUND).split()
    if len(words) > 1 and words[0] in _ARTICLES:
        words = words[1:]
    return " ".join(words).strip(_AROUND)


def matched_option(text: str, options: Sequence[str]) -> int | None:
    """The number of the one option that a text is, once both are `normalised`; None for no option, or for several."""
    written = normalised(text)
    found = [index for index, option in enumerate(options) if normalised(option) == written]
    return found[0] if len(found) == 1 else None


def choice_results(answers: Sequence[Answer], bootstrap: Bootstrap) -> tuple[ChoiceResult, ...]:
    """One row per source, task and path."""
    return tuple(_choice_result(rows, bootstrap) for rows in _by_path(answers))


def listed_results(answers: Sequence[Answer], bootstrap: Bootstrap) -> tuple[ListedResult, ...]:
    """One row per source, task and path whose items were also answered in words."""
    return tuple(_listed_result(rows, bootstrap) for rows in _by_path([a for a in answers if a.written]))


def _by_path(answers: Sequence[Answer]) -> list[list[Answer]]:
    return grouped(answers, lambda a: (a.item.source, a.item.task, *path_order(a.path, a.item.modality)))


def _choice_result(rows: Sequence[Answer], bootstrap: Bootstrap) -> ChoiceResult:
    numbers = _class_numbers(rows)
    truth = np.array([numbers[row.options[row.right_index]] for row in rows])
    chosen = np.array([numbers[row.chosen] for row in rows])
    works = [row.item.work_id for row in rows]
    right, f1, uar = _class_figures(chosen, truth, works, bootstrap)
    return ChoiceResult(
        source=rows[0].item.source,
        task=rows[0].item.task,
        path=rows[0].path,
        own_path=rows[0].item.modality,
        items=len(rows),
        works=len(set(works)),
        accuracy=right,
        chance=float(np.mean([1 / len(row.options) for row in rows])),
        macro_f1=f1,
        uar=uar,
    )


def _listed_result(rows: Sequence[Answer], bootstrap: Bootstrap) -> ListedResult:
    numbers = _class_numbers(rows)
    texts = [(row, matched_option(text, row.options)) for row in rows for text in row.written]
    truth = np.array([numbers[row.options[row.right_index]] for row, _ in texts])
    chosen = np.array([-1 if k is None else numbers[row.options[k]] for row, k in texts])
    works, item_works = [row.item.work_id for row, _ in texts], [row.item.work_id for row in rows]
    right, f1, uar = _class_figures(chosen, truth, works, bootstrap)
    return ListedResult(
        source=rows[0].item.source,
        task=rows[0].item.task,
        path=rows[0].path,
        own_path=rows[0].item.modality,
        items=len(rows),
        works=len(set(works)),
        texts=len(texts),
        rotations=max(len(row.written) for row in rows),
        parse_rate=bootstrap.mean((chosen >= 0).astype(np.float64), works),
        accuracy=right,
        chance=float(np.mean([1 / len(row.options) for row, _ in texts])),
        circular=bootstrap.mean(np.array([_right_in_every_rotation(row) for row in rows]), item_works),
        circular_chance=float(np.mean([len(row.options) ** -len(row.written) for row in rows])),
        macro_f1=f1,
        uar=uar,
    )


def _class_figures(
    chosen: Classes, truth: Classes, works: Sequence[str], bootstrap: Bootstrap
) -> tuple[Estimate, Estimate, Estimate]:
    """Accuracy, macro-F1 and UAR of class numbers, (n,) each."""
    right, f1, uar = (
        bootstrap.estimate(lambda i, metric=metric: metric(chosen[i], truth[i]), works)
        for metric in (accuracy, macro_f1, unweighted_average_recall)
    )
    return right, f1, uar


def _right_in_every_rotation(row: Answer) -> float:
    return float(all(matched_option(text, row.options) == row.right_index for text in row.written))


def _class_numbers(rows: Sequence[Answer]) -> dict[str, int]:
    names = sorted({option for row in rows for option in row.options})
    return {name: number for number, name in enumerate(names)}
