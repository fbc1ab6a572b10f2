"""Evaluate a model, checkpoint or bundle, on the questions and labels of a manifest.

In: items, their media and a `Predict` callable. Out: a `Report`. Each clip is decoded once, and encoded once
per path, whatever the number of questions about it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from rich.progress import track

from vaemotion.contract.emotions import EMOTIONS
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.front_end import PATHS, Clip, reads_frames, reads_sound
from vaemotion.contract.media.files import MediaError
from vaemotion.contract.prediction import Affect, Predict, Prediction, Question
from vaemotion.contract.terminal import Terminal, tell
from vaemotion.data.manifest.item import Item
from vaemotion.data.manifest.loader import load_clip
from vaemotion.data.manifest.manifest import read_manifest
from vaemotion.evaluation.benchmark.report import markdown, summary, write_report
from vaemotion.evaluation.benchmark.results import Report, make_report
from vaemotion.evaluation.benchmark.rows import AffectRow, AnswerRow, Bootstrap, MediumKey, medium_key
from vaemotion.evaluation.benchmark.seeds import model_names, seeds_markdown, spread_over_models, write_seeds
from vaemotion.evaluation.benchmark.series import (
    ReadsWindows,
    WindowRow,
    decoded_parts,
    rated_ends_s,
    window_rows,
)

__all__ = ["evaluate", "run_benchmark", "write_report"]

INDUCED = "label of an induced emotion, which this model does not predict"


@dataclass(frozen=True)
class BenchmarkSettings:
    """Settings of a benchmark.

    ``path``: in a control run, the path that every item is asked on; None asks each item on its own path.
    ``rotations``: number of greedy answers per question, each with the options listed in another rotation; at
    most one per option, 0 for none.
    """

    path: str | None = None
    rotations: int = 2
    bootstrap: Bootstrap = field(default_factory=Bootstrap)


def evaluate(
    items: Sequence[Item],
    media_root: Path,
    predict: Predict,
    settings: BenchmarkSettings,
    *,
    progress: bool = False,
) -> Report:
    """Measure ``predict`` on items.

    Multiple choice is scored by the mean token log-probability of options that the prompt does not list and,
    in every rotation, by a greedy answer to a prompt that lists them. Valence, arousal and emotions are
    compared once per medium, path and construct. Where labels change over time, a window each second is
    compared. ``left_out`` of the report counts questions without options, labels that the model does not
    predict (of induced emotions, of other emotions than its own) and, in a control run, items whose medium
    lacks the path.

    Raises MediaError for media that cannot be decoded or lack what their own path needs. Raises UserError
    when there is nothing to measure or the model answers with values that are not finite.
    """
    start_s, path = time.monotonic(), settings.path
    answers: list[AnswerRow] = []
    readings: list[AffectRow] = []
    windows: list[WindowRow] = []
    left_out = _unasked(items)
    items = [_with_emotions_of(predict, item, left_out) for item in items]
    media = list(_by_medium(items, path).values())
    for by_path in track(media, "media", console=Terminal(stderr=True), disable=not progress):
        whole = [item for path_items in by_path.values() for item in path_items if _is_about_whole(item)]
        clip = load_clip(whole[0], media_root) if whole else None
        for asked_path, path_items in by_path.items():
            for item in path_items:
                if item.series_rate_hz is not None:
                    windows += _windows(
                        item, asked_path, media_root, predict, left_out, control=path is not None
                    )
            path_items = [item for item in path_items if _is_about_whole(item)]
            if clip is None or not path_items:
                continue
            if missing := _missing(clip, asked_path):
                _leave_out(missing, asked_path, path_items, left_out, control=path is not None)
                continue
            asked = [item for item in path_items if item.options is not None]
            questions = [_question(item, settings.rotations) for item in asked]
            prediction = predict(clip, asked_path, questions)
            _check_prediction(prediction, questions, path_items[0])
            answers += _answers(asked, asked_path, prediction)
            readings += _readings(path_items, asked_path, prediction)
            unpredicted = [i for i in path_items if _is_labeled(i) and not _affect(prediction, i.construct)]
            left_out[INDUCED] += len(unpredicted)
    if not answers and not readings and not windows:
        raise UserError(_nothing_to_measure(left_out))
    wall_s = time.monotonic() - start_s
    return make_report(answers, readings, windows, left_out, path, settings.bootstrap, wall_s)


def _unasked(items: Sequence[Item]) -> Counter[str]:
    """Count the items that have nothing to measure."""
    bare = [item for item in items if not _is_about_whole(item) and item.series_rate_hz is None]
    without_options = [item for item in items if item.question is not None and item.options is None]
    return Counter(
        {
            "question without options": len(without_options),
            "clip without a question or labels": sum(item.question is None for item in bare),
        }
    )


def _with_emotions_of(predict: Predict, item: Item, left_out: Counter[str]) -> Item:
    """Return an item whose distribution is in the order of the model's emotions, or without it."""
    emotions = predict.constants.emotions if isinstance(predict, ReadsWindows) else EMOTIONS
    names = item.emotion_names or EMOTIONS
    if item.emotion_distribution is None or names == emotions:
        return item
    if set(names) != set(emotions):
        left_out["distribution of other emotions than the model's"] += 1
        return replace(item, emotion_distribution=None, emotion_names=None)
    shares = dict(zip(names, item.emotion_distribution, strict=True))
    ordered = tuple(shares[name] for name in emotions)
    return replace(item, emotion_distribution=ordered, emotion_names=emotions)


def _windows(
    item: Item, path: str, media_root: Path, predict: Predict, left_out: Counter[str], *, control: bool
) -> list[WindowRow]:
    """Read the windows of an item with a series; count it where there are none."""
    if not isinstance(predict, ReadsWindows):
        left_out["series of labels, of which this predictor reads no windows"] += 1
        return []
    rows: list[WindowRow] = []
    for clip, start_s, ends_s in decoded_parts(
        item, media_root, rated_ends_s(item), predict.constants.front_end
    ):
        if missing := _missing(clip, path):
            _leave_out(missing, path, [item], left_out, control=control)
            return []
        rows += window_rows(item, path, predict, clip, start_s, ends_s)
        if not rows:
            left_out[INDUCED] += 1
            return []
    for row in rows:
        _check_finite([row.affect], item)
    left_out["series that rates no whole second of its medium"] += not rows
    return rows


def run_benchmark(
    manifest: Path,
    media_root: Path,
    models: Sequence[Path],
    load_predictor: Callable[[Path], AbstractContextManager[Predict]],
    out: Path,
    settings: BenchmarkSettings,
    *,
    split: str | None = None,
) -> None:
    """Evaluate models on a manifest, write the report to ``out`` and print its tables.

    Several models, one per training seed, are evaluated one after the other. Each gets a folder of its own in
    ``out``; ``out/seeds.md`` and ``seeds.json`` give mean and standard deviation over them. ``split``: only
    the items of this split; None for all.

    Raises ManifestError, and UsageError for a split without items, an unknown path or a model given twice;
    also whatever `evaluate` raises.
    """
    if settings.path not in (None, *PATHS):
        raise UsageError(f"--path must be one of {', '.join(PATHS)}, got '{settings.path}'")
    names = model_names(models)
    items = read_manifest(manifest, media_root)
    chosen = [item for item in items if split in (None, item.split)]
    if not chosen:
        present = ", ".join(sorted({item.split for item in items})) or "none"
        raise UsageError(f"{manifest} has no item of split '{split}'; its splits: {present}")
    reports: dict[str, Report] = {}
    for name, model in zip(names, models, strict=True):
        with load_predictor(model) as predict:
            reports[name] = evaluate(chosen, media_root, predict, settings, progress=True)
        write_report(reports[name], out if len(models) == 1 else out / name)
    if len(models) == 1:
        tell(markdown(reports[names[0]]))
    else:
        spread = spread_over_models({name: summary(report) for name, report in reports.items()})
        write_seeds(spread, out)
        tell(seeds_markdown(spread))
    tell(f"\nwritten to {out}")


def _by_medium(items: Sequence[Item], path: str | None) -> dict[MediumKey, dict[str, list[Item]]]:
    """Group items by medium, and within it by the path that they are asked on, in the order of `PATHS`."""
    grouped: dict[MediumKey, dict[str, list[Item]]] = {}
    for item in sorted(items, key=lambda item: PATHS.index(item.modality)):
        grouped.setdefault(medium_key(item), {}).setdefault(path or item.modality, []).append(item)
    return grouped


def _question(item: Item, rotations: int) -> Question:
    assert item.question is not None, "the manifest's rules: options come with a question"
    assert item.options is not None, "only items with options are asked"
    return Question(item.question, item.options, item.task, min(rotations, len(item.options)))


def _answers(asked: Sequence[Item], path: str, prediction: Prediction) -> list[AnswerRow]:
    written = prediction.written or ((),) * len(asked)
    return [
        AnswerRow(item, path, tuple(map(float, scores)), texts)
        for item, scores, texts in zip(asked, prediction.answers, written, strict=True)
    ]


def _readings(path_items: Sequence[Item], path: str, prediction: Prediction) -> list[AffectRow]:
    """Return one row for each construct and each path that the medium's labels are about."""
    found: dict[tuple[str, str | None], AffectRow] = {}
    for item in filter(_is_labeled, path_items):
        affect = _affect(prediction, item.construct)
        if affect is not None:
            found.setdefault((item.modality, item.construct), AffectRow(item, path, affect))
    return list(found.values())


def _affect(prediction: Prediction, construct: str | None) -> Affect | None:
    return prediction.affect if construct == "expressed" else prediction.induced


def _is_about_whole(item: Item) -> bool:
    """Return True where an item asks about the whole medium, or labels it."""
    return item.options is not None or _is_labeled(item)


def _is_labeled(item: Item) -> bool:
    return not (item.valence is None and item.arousal is None and item.emotion_distribution is None)


def _nothing_to_measure(left_out: Counter[str]) -> str:
    listed = ", ".join(f"{count} × {reason}" for reason, count in left_out.items() if count)
    return "there is nothing to measure: no item has options or labels" + (f" ({listed})" if listed else "")


def _missing(clip: Clip, path: str) -> str | None:
    """Name what a clip lacks for a path, None for nothing. The name is part of a key of ``results.json``."""
    if reads_sound(path) and clip.samples is None:
        return "sound"
    return "pictures" if reads_frames(path) and not clip.frames else None


def _leave_out(
    missing: str, path: str, items: Sequence[Item], left_out: Counter[str], *, control: bool
) -> None:
    """Count items whose medium lacks what ``path`` reads. Raises MediaError where it is their own path."""
    if not control:
        item = items[0]
        raise MediaError(
            f"item '{item.id}' is for the path '{path}', but {' and '.join(item.media)} has no {missing}"
        )
    left_out[f"item without {missing} for the path '{path}'"] += len(items)


def _check_prediction(prediction: Prediction, questions: Sequence[Question], item: Item) -> None:
    """Refuse values that are not finite, and name the item: a NaN would lose every comparison in silence."""
    _check_finite([prediction.affect, prediction.induced], item, prediction.answers)
    got, expected = [len(scores) for scores in prediction.answers], [len(q.options) for q in questions]
    assert got == expected, f"a predictor answers each option once: expected {expected}, got {got}"
    rotations = [q.rotations for q in questions]
    written = [len(texts) for texts in prediction.written] or [0] * len(questions)
    assert written == rotations, f"a predictor writes once per rotation: expected {rotations}, got {written}"


def _check_finite(affects: Sequence[Affect | None], item: Item, answers: Sequence[object] = ()) -> None:
    numbers: list[object] = list(answers)
    for affect in affects:
        if affect is not None:
            numbers += [affect.valence, affect.arousal, affect.valence_sd, affect.arousal_sd, affect.emotions]
    if not all(np.isfinite(np.asarray(values, np.float64)).all() for values in numbers):
        raise UserError(
            f"the model answers item '{item.id}' with values that are not finite; "
            "its files may be damaged, make them again"
        )
