"""Multiple choice, scored in two ways: by the options' log-probabilities, and by greedy answers.

In: answer rows. Out: figures per source, task and path. For greedy answers, the prompt lists the options in
rotated order. An answer that does not name one of the options (see `matched_option`) is unparsable and counts
as wrong.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vaemotion.evaluation.benchmark.rows import AnswerRow, Bootstrap, Estimate, grouped, path_order
from vaemotion.evaluation.metrics import accuracy, macro_f1, unweighted_average_recall

Classes = npt.NDArray[np.int64]
_AROUND = string.whitespace + string.punctuation + "“”‘’«»…–—"
_ARTICLES = ("a", "an", "the")


@dataclass(frozen=True)
class ChoiceResult:
    """Multiple choice over options that the prompt does not list.

    ``path``: the path that the items were asked on; ``own_path``: the path that they are for. ``chance``: the
    accuracy of guessing. ``uar``: mean recall over the classes of the truth.
    """

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
    """Multiple choice over options that the prompt lists, answered in words.

    ``path``: the path that the items were asked on; ``own_path``: the path that they are for. ``texts``:
    number of answers, one per item and rotation; ``rotations``: the largest number for one item.
    ``parse_rate``: share of answers that name an option; ``accuracy``: share of answers that are the right
    option; ``circular``: share of items that are right under every rotation. ``chance`` and
    ``circular_chance``: the same for guessing.
    """

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


def normalized(text: str) -> str:
    """Normalize an answer for comparison.

    Case, surrounding punctuation and whitespace, and a leading article are removed; inner whitespace becomes
    one space.
    """
    words = unicodedata.normalize("NFKC", text).casefold().strip(_AROUND).split()
    if len(words) > 1 and words[0] in _ARTICLES:
        words = words[1:]
    return " ".join(words).strip(_AROUND)


def matched_option(text: str, options: Sequence[str]) -> int | None:
    """Return the index of the only option that a text is or names, both `normalized`; None for none or more.

    "The sound is a dog bark." names "dog bark", and not "dog", which is part of it.
    """
    written, named = normalized(text), [normalized(option) for option in options]
    found = [name for name in named if name == written] or _named_in(written, named)
    return named.index(found[0]) if len(found) == 1 else None


def _named_in(text: str, names: Sequence[str]) -> list[str]:
    """List the names whose words stand in a text one after the other, without those within longer ones."""

    def stands(name: str, within: str) -> bool:
        return bool(name) and re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", within) is not None

    found = [name for name in names if stands(name, text)]
    return [name for name in found if not any(name != other and stands(name, other) for other in found)]


def choice_results(answers: Sequence[AnswerRow], bootstrap: Bootstrap) -> tuple[ChoiceResult, ...]:
    """Score options by log-probability: one result per source, task and path."""
    return tuple(_choice_result(rows, bootstrap) for rows in _by_path(answers))


def listed_results(answers: Sequence[AnswerRow], bootstrap: Bootstrap) -> tuple[ListedResult, ...]:
    """Score greedy answers: one result per source, task and path that has any."""
    return tuple(_listed_result(rows, bootstrap) for rows in _by_path([a for a in answers if a.written]))


def _by_path(answers: Sequence[AnswerRow]) -> list[list[AnswerRow]]:
    return grouped(answers, lambda a: (a.item.source, a.item.task, *path_order(a.path, a.item.modality)))


def _choice_result(rows: Sequence[AnswerRow], bootstrap: Bootstrap) -> ChoiceResult:
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


def _listed_result(rows: Sequence[AnswerRow], bootstrap: Bootstrap) -> ListedResult:
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
    """Return accuracy, macro-F1 and UAR of class numbers, (n,) each."""
    right, f1, uar = (
        bootstrap.estimate(lambda i, metric=metric: metric(chosen[i], truth[i]), works)
        for metric in (accuracy, macro_f1, unweighted_average_recall)
    )
    return right, f1, uar


def _right_in_every_rotation(row: AnswerRow) -> float:
    return float(all(matched_option(text, row.options) == row.right_index for text in row.written))


def _class_numbers(rows: Sequence[AnswerRow]) -> dict[str, int]:
    names = sorted({option for row in rows for option in row.options})
    return {name: number for number, name in enumerate(names)}
