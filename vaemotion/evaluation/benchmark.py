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
from vaemotion.contract.prediction import Affect, Predict, Prediction, Question
from vaemotion.data.item import Item
from vaemotion.data.loader import MediaError, load_clip
from vaemotion.data.manifest import read_manifest
from vaemotion.evaluation.report import markdown, summary, write_report
from vaemotion.evaluation.results import Report, make_report
from vaemotion.evaluation.rows import Answer, Bootstrap, Reading
from vaemotion.evaluation.seeds import model_names, seeds_markdown, spread_over_models, write_seeds

__all__ = ["evaluate", "run_benchmark", "write_report"]

MediaKey = tuple[str | float | None, ...]


def evaluate(
    items: Sequence[Item],
    media_root: Path,
    predict: Predict,
    *,
    path: str | None = None,
    rotations: int = 0,
    bootstrap: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> Report:
    """Measure ``predict`` on items.

    Multiple choice is by the mean token log-probability of options that the prompt does not list and, ``rotations`` times (but
    at most once for each option), by a greedy answer to the question with its options listed. Valence, arousal and
    emotions are compared once per medium, path and construct. ``path``: ask every item on this path instead of its own
    (a control run). Labels of what a work induces, from a model that does not predict it, questions without options,
    and, in a control run, items whose medium lacks the path, are counted under ``left_out``. bootstrap: resamples of the
    95 % intervals over works. Raises MediaError for media that cannot be decoded or lack what their own path needs,
    UserError when there is nothing to measure or the model answers with values that are not finite.
    """
    start_s = time.monotonic()
    answers: list[Answer] = []
    readings: list[Reading] = []
    left_out: Counter[str] = Counter()
    media = list(_by_medium(items, path).values())
    for by_path in track(media, "media", console=Console(stderr=True), disable=not progress):
        first = next(iter(by_path.values()))[0]
        clip = load_clip(first, media_root)
        for asked_path, mine in by_path.items():
            if path is None:
                _refuse_lacking(clip, asked_path, mine[0])
            elif missing := _missing(clip, path):
                left_out[f"item without {missing} for the path {path!r}"] += len(mine)
                continue
            asked = [item for item in mine if item.options is not None]
            questions = [_question(item, rotations) for item in asked]
            prediction = predict(clip, asked_path, questions)
            _refuse_nonsense(prediction, questions, mine[0])
            answers += _answers(asked, asked_path, prediction)
            readings += _readings(mine, asked_path, prediction)
            left_out += _left_out(mine, prediction)
    if not answers and not readings:
        raise UserError(_nothing_to_measure(left_out))
    wall_s = time.monotonic() - start_s
    return make_report(answers, readings, left_out, path, Bootstrap(bootstrap, seed), wall_s)


def run_benchmark(
    manifest: Path,
    media_root: Path,
    models: Sequence[Path],
    load_predictor: Callable[[Path], AbstractContextManager[Predict]],
    out: Path,
    *,
    split: str | None = None,
    path: str | None = None,
    rotations: int = 2,
    bootstrap: int = 1000,
    seed: int = 0,
) -> None:
    """The command: read the manifest, load the model, evaluate, write the report to ``out`` and print its tables.

    Several models, one per training seed, are evaluated one after the other, each into a folder of its own below ``out``, and
    ``out/seeds.md`` and ``seeds.json`` give mean and standard deviation over them. Raises ManifestError, UsageError when no item
    is of ``split``, for an unknown path and for a model given twice, and whatever `evaluate` raises.
    """
    if path not in (None, *PATHS):
        raise UsageError(f"--path must be one of {', '.join(PATHS)}, got {path!r}")
    names = model_names(models)
    items = read_manifest(manifest, media_root)
    chosen = [item for item in items if split in (None, item.split)]
    if not chosen:
        raise UsageError(
            f"{manifest} has no item of split {split!r}, but {sorted({item.split for item in items})}"
        )
    reports: dict[str, Report] = {}
    for name, model in zip(names, models, strict=True):
        with load_predictor(model) as predict:
            reports[name] = evaluate(
                chosen,
                media_root,
                predict,
                path=path,
                rotations=rotations,
                bootstrap=bootstrap,
                seed=seed,
                progress=True,
            )
        write_report(reports[name], out if len(models) == 1 else out / name)
    if len(models) == 1:
        print(markdown(reports[names[0]]))
    else:
        spread = spread_over_models({name: summary(report) for name, report in reports.items()})
        write_seeds(spread, out)
        print(seeds_markdown(spread))
    print(f"\nwritten to {out}")


def _by_medium(items: Sequence[Item], path: str | None) -> dict[MediaKey, dict[str, list[Item]]]:
    """Items by medium (files and part), then by the path they are asked on; both in the order of the manifest and of `PATHS`."""
    grouped: dict[MediaKey, dict[str, list[Item]]] = {}
    for item in sorted(items, key=lambda item: PATHS.index(item.modality)):
        key = (item.video, item.image, item.audio, item.t0, item.t1)
        grouped.setdefault(key, {}).setdefault(path or item.modality, []).append(item)
    return grouped


def _question(item: Item, rotations: int) -> Question:
    assert item.question is not None, "the manifest's rules: options come with a question"
    assert item.options is not None, "only items with options are asked"
    return Question(item.question, item.options, item.task, min(rotations, len(item.options)))


def _answers(asked: Sequence[Item], path: str, prediction: Prediction) -> list[Answer]:
    written = prediction.written or ((),) * len(asked)
    return [
        Answer(item, path, tuple(map(float, scores)), texts)
        for item, scores, texts in zip(asked, prediction.answers, written, strict=True)
    ]


def _readings(mine: Sequence[Item], path: str, prediction: Prediction) -> list[Reading]:
    """One reading for each construct and each path that the medium's labels are about."""
    found: dict[tuple[str, str | None], Reading] = {}
    for item in filter(_is_labelled, mine):
        affect = _affect(prediction, item.construct)
        if affect is not None:
            found.setdefault((item.modality, item.construct), Reading(item, path, affect))
    return list(found.values())


def _affect(prediction: Prediction, construct: str | None) -> Affect | None:
    return prediction.affect if construct == "expressed" else prediction.induced


def _is_labelled(item: Item) -> bool:
    return not (item.valence is None and item.arousal is None and item.emotion_distribution is None)


def _left_out(mine: Sequence[Item], prediction: Prediction) -> Counter[str]:
    unread = [i for i in mine if _is_labelled(i) and _affect(prediction, i.construct) is None]
    return Counter(
        {
            "question without options": sum(i.question is not None and i.options is None for i in mine),
            "label of an induced emotion, which this model does not predict": len(unread),
        }
    )


def _nothing_to_measure(left_out: Counter[str]) -> str:
    listed = ", ".join(f"{count} × {reason}" for reason, count in left_out.items())
    return "there is nothing to measure: no item has options or labels" + (f" ({listed})" if listed else "")


def _missing(clip: Clip, path: str) -> str | None:
    """What the clip lacks for a path, in words."""
    if path != "visual" and clip.samples is None:
        return "sound"
    return "pictures" if path != "audio" and not clip.frames else None


def _refuse_lacking(clip: Clip, path: str, item: Item) -> None:
    if missing := _missing(clip, path):
        raise MediaError(
            f"item {item.id!r} is for path {path!r}, but {' and '.join(item.media)} has no {missing}"
        )


def _refuse_nonsense(prediction: Prediction, questions: Sequence[Question], item: Item) -> None:
    """A NaN would silently lose every comparison; say which item brought it."""
    numbers: list[object] = list(prediction.answers)
    for affect in (prediction.affect, prediction.induced):
        if affect is not None:
            numbers += [affect.valence, affect.arousal, affect.valence_sd, affect.arousal_sd, affect.emotions]
    if not all(np.isfinite(np.asarray(values, np.float64)).all() for values in numbers):
        raise UserError(f"the model answers item {item.id!r} with values that are not finite: is it damaged?")
    got, expected = [len(scores) for scores in prediction.answers], [len(q.options) for q in questions]
    assert got == expected, f"a predictor answers each option once: expected {expected}, got {got}"
    rotations = [q.rotations for q in questions]
    written = [len(texts) for texts in prediction.written] or [0] * len(questions)
    assert written == rotations, f"a predictor writes once per rotation: expected {rotations}, got {written}"
