"""Answer a manifest's questions with a model, whether checkpoint or bundle, and say how well.

In: items, their media and a `Predict` callable. Out: a `Report`. Each clip is decoded once, and each of its paths is
encoded once, whatever the number of questions about it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.front_end import PATHS, Clip
from vaemotion.contract.prediction import Predict, Prediction, Question
from vaemotion.data.item import Item
from vaemotion.data.loader import MediaError, load_clip
from vaemotion.data.manifest import read_manifest
from vaemotion.evaluation.report import markdown, write_report
from vaemotion.evaluation.results import Answer, Reading, Report, affect_results, choice_results

__all__ = ["evaluate", "run_benchmark", "write_report"]

MediaKey = tuple[str | float | None, ...]


def evaluate(
    items: Sequence[Item],
    media_root: Path,
    predict: Predict,
    *,
    bootstrap: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> Report:
    """Measure ``predict`` on items.

    Multiple choice is by the mean token log-probability of options that the prompt does not list. Valence and arousal are
    compared once per medium and path, with the labels of what a work *expresses*; items with labels of what it
    induces, and questions without options, are counted under ``left_out``. bootstrap: resamples of the 95 % intervals
    over works. Raises MediaError for media that cannot be decoded or lack what a path needs, UserError when there is nothing to
    measure or the model answers with values that are not finite.
    """
    start_s = time.monotonic()
    answers: list[Answer] = []
    readings: list[Reading] = []
    left_out: Counter[str] = Counter()
    media = list(_by_medium(items).values())
    for by_path in track(media, "media", console=Console(stderr=True), disable=not progress):
        first = next(iter(by_path.values()))[0]
        clip = load_clip(first, media_root)
        for path, mine in by_path.items():
            _refuse_lacking(clip, path, mine[0])
            asked = [item for item in mine if item.options is not None]
            prediction = predict(clip, path, [_question(item) for item in asked])
            _refuse_nonsense(prediction, asked, mine[0])
            pairs = zip(asked, prediction.answers, strict=True)
            answers += [Answer(item, tuple(map(float, scores))) for item, scores in pairs]
            left_out["question without options"] += sum(
                i.question is not None and i.options is None for i in mine
            )
            labelled = [item for item in mine if item.valence is not None or item.arousal is not None]
            expressed = [item for item in labelled if item.construct == "expressed"]
            left_out["label of an induced emotion"] += len(labelled) - len(expressed)
            readings += [Reading(item, prediction.affect) for item in expressed[:1]]
    if not answers and not readings:
        raise UserError("there is nothing to measure: no item has options, valence or arousal (expressed)")
    return Report(
        choices=choice_results(answers, bootstrap, seed),
        affects=affect_results(readings, bootstrap, seed),
        answers=tuple(answers),
        readings=tuple(readings),
        left_out={reason: count for reason, count in left_out.items() if count},
        bootstrap=bootstrap,
        seed=seed,
        wall_s=time.monotonic() - start_s,
    )


def run_benchmark(
    manifest: Path,
    media_root: Path,
    model: Path,
    load_predictor: Callable[[Path], AbstractContextManager[Predict]],
    out: Path,
    *,
    split: str | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> None:
    """The command: read the manifest, load the model, evaluate, write the report to ``out`` and print its tables.

    Raises ManifestError, UsageError when no item is of ``split``, and whatever `evaluate` raises.
    """
    items = read_manifest(manifest, media_root)
    chosen = [item for item in items if split in (None, item.split)]
    if not chosen:
        raise UsageError(
            f"{manifest} has no item of split {split!r}, but {sorted({item.split for item in items})}"
        )
    with load_predictor(model) as predict:
        report = evaluate(chosen, media_root, predict, bootstrap=bootstrap, seed=seed, progress=True)
    write_report(report, out)
    print(markdown(report))
    print(f"\nwritten to {out}")


def _by_medium(items: Sequence[Item]) -> dict[MediaKey, dict[str, list[Item]]]:
    """Items by medium (files and part), then by path; both in the order of the manifest and of `PATHS`."""
    grouped: dict[MediaKey, dict[str, list[Item]]] = {}
    for item in sorted(items, key=lambda item: PATHS.index(item.modality)):
        key = (item.video, item.image, item.audio, item.t0, item.t1)
        grouped.setdefault(key, {}).setdefault(item.modality, []).append(item)
    return grouped


def _question(item: Item) -> Question:
    assert item.question is not None, "the manifest's rules: options come with a question"
    assert item.options is not None, "only items with options are asked"
    return Question(item.question, item.options, item.task)


def _refuse_lacking(clip: Clip, path: str, item: Item) -> None:
    if path != "visual" and clip.samples is None:
        raise MediaError(
            f"item {item.id!r} is for path {path!r}, but {' and '.join(item.media)} has no sound"
        )


def _refuse_nonsense(prediction: Prediction, asked: Sequence[Item], item: Item) -> None:
    """A NaN would silently lose every comparison; say which item brought it."""
    affect = prediction.affect
    numbers = [[affect.valence, affect.arousal, affect.valence_sd, affect.arousal_sd], affect.emotions]
    if not all(np.isfinite(values).all() for values in (*numbers, *prediction.answers)):
        raise UserError(f"the model answers item {item.id!r} with values that are not finite: is it damaged?")
    got, expected = [len(scores) for scores in prediction.answers], [len(i.options or ()) for i in asked]
    assert got == expected, f"a predictor answers each option once: expected {expected}, got {got}"
