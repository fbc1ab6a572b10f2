"""Rules for the items of a manifest; every function returns all problems that it finds.

In: the values of one line, or all items with their line numbers. Out: problems as plain sentences; a valid
manifest has none.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from vaemotion.contract.emotions import EMOTIONS
from vaemotion.contract.front_end import PATHS
from vaemotion.contract.prompts import folded
from vaemotion.data.manifest.item import (
    CONSTRUCTS,
    PAIRINGS,
    SPLITS,
    TASKS,
    Item,
    PlacedItem,
    Problem,
    content_sha256,
)

MEDIA_FIELDS = ("video", "image", "audio")
_FIELDS = frozenset(f.name for f in fields(Item))
_REQUIRED = tuple(f.name for f in fields(Item) if f.default is MISSING)
_HEX = frozenset("0123456789abcdef")

Check = tuple[str, Callable[[Any], bool]]


def _is_number(value: Any) -> bool:
    # A comparison, because math.isfinite() raises for integers beyond a float's range.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e300 < value < 1e300


def _number(low: float, high: float, expected: str) -> Check:
    return expected, lambda value: _is_number(value) and low <= value <= high


def _whole(low: int, expected: str) -> Check:
    return expected, lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= low


def _one_of(names: tuple[str, ...]) -> Check:
    return f"one of {', '.join(names)}", lambda value: isinstance(value, str) and value in names


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_text, value))


def _are_different_texts(value: Any) -> bool:
    return _are_texts(value) and len(value) >= 2 and len({folded(text) for text in value}) == len(value)


def _is_distribution(value: Any) -> bool:
    numbers = isinstance(value, list) and bool(value) and all(map(_is_number, value))
    return numbers and min(value) >= 0 and abs(sum(value) - 1) <= 1e-3


def _is_series(value: Any) -> bool:
    return isinstance(value, list) and len(value) >= 2 and all(_is_number(x) and abs(x) <= 1 for x in value)


def _is_sign(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value in (-1, 1)


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= _HEX


def stays_inside(value: Any) -> bool:
    """Return true for a relative path with forward slashes that does not leave the media root."""
    if not isinstance(value, str) or not value or "\0" in value or "\\" in value:
        return False
    path = PurePosixPath(value)
    anchored = path.is_absolute() or bool(PureWindowsPath(value).anchor)
    return not anchored and ".." not in path.parts and path != PurePosixPath(".")


_TEXT: Check = ("a text that is not empty", _is_text)
_PATH: Check = ("a path relative to the media root that does not leave it", stays_inside)
_SECONDS = _number(0, math.inf, "seconds, at least 0")
_AFFECT = _number(-1, 1, "a number in [-1, 1]")
_SPREAD = _number(0, math.inf, "a number, at least 0")
_DIFFERENT_TEXTS: Check = ("a list of two or more different texts", _are_different_texts)
_TRUTH: Check = ("true or false", lambda value: isinstance(value, bool))
_AFFECT_LABELS = tuple(
    f"{name}{form}" for form in ("", "_series", "_sign") for name in ("valence", "arousal")
)
_LABELS = (*_AFFECT_LABELS, "emotion_distribution", "utterances")
_CHECKS: dict[str, Check] = {
    **dict.fromkeys(MEDIA_FIELDS, _PATH),
    **dict.fromkeys(
        ("id", "question", "answer", "label", "work_id", "creator_id", "source", "license"), _TEXT
    ),
    **dict.fromkeys(("t0", "t1"), _SECONDS),
    **dict.fromkeys(("valence", "arousal"), _AFFECT),
    **dict.fromkeys(("valence_sd", "arousal_sd"), _SPREAD),
    "pairing": _one_of(PAIRINGS),
    "task": _one_of(TASKS),
    "modality": _one_of(PATHS),
    "construct": _one_of(CONSTRUCTS),
    "split": _one_of(SPLITS),
    "options": _DIFFERENT_TEXTS,
    "answer_index": _whole(0, "a whole number, at least 0"),
    "audible": _TRUTH,
    **dict.fromkeys(("valence_sign", "arousal_sign"), ("-1 or 1", _is_sign)),
    **dict.fromkeys(("valence_series", "arousal_series"), ("two or more numbers in [-1, 1]", _is_series)),
    "series_rate_hz": ("a number above 0", lambda value: _is_number(value) and value > 0),
    "series_start_s": _number(-math.inf, math.inf, "seconds"),
    "reaction_lag_s": _SECONDS,
    "emotion_names": _DIFFERENT_TEXTS,
    "emotion_distribution": ("numbers, at least 0, that sum to 1", _is_distribution),
    "utterances": ("a list of texts", _are_texts),
    "machine_made": _TRUTH,
    "n_raters": _whole(1, "a whole number, at least 1"),
    "sha256": ("64 hexadecimal digits in lower case", _is_sha256),
}


def item_problems(values: dict[str, Any]) -> list[str]:
    """Find all problems of one line's values by themselves; a field that is null counts as absent."""
    problems = [f"unknown field {name!r}" for name in sorted(set(values) - _FIELDS)]
    problems += [f"field {name!r} is missing" for name in _REQUIRED if values.get(name) is None]
    invalid = set()
    for name, (expected, is_valid) in _CHECKS.items():
        value = values.get(name)
        if value is not None and not is_valid(value):
            invalid.add(name)
            problems.append(f"{name} must be {expected}, got {_excerpt(value)}")
    valid = {name: value for name, value in values.items() if value is not None and name not in invalid}
    return problems + _answer_problems(valid) + _media_problems(valid) + _label_problems(valid)


def _excerpt(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _answer_problems(values: dict[str, Any]) -> list[str]:
    problems: list[str] = []
    options, index, answer = (values.get(name) for name in ("options", "answer_index", "answer"))
    if (options is None) != (index is None):
        problems.append("options and answer_index must both be given, and one is missing or invalid")
    elif options is not None and index is not None and index >= len(options):
        problems.append(f"answer_index {index} is outside the {len(options)} options")
    elif options is not None and answer is not None and answer != options[index]:
        problems.append(f"answer {answer!r} is not option {index}, {options[index]!r}")
    if values.get("question") is None and (options is not None or answer is not None):
        problems.append("an answer or options without a question")
    if values.get("question") is not None and options is None and answer is None:
        problems.append("a question without an answer or options")
    return problems


def _media_problems(values: dict[str, Any]) -> list[str]:
    problems: list[str] = []
    if not any(name in values for name in MEDIA_FIELDS):
        problems.append("no medium; give video, image or audio")
    if "video" in values and "image" in values:
        problems.append("video and image exclude each other")
    modality = values.get("modality")
    # A video may have a sound track, which is known only when it is decoded.
    if modality in ("audio", "audio-visual") and not ("audio" in values or "video" in values):
        problems.append(f"modality {modality!r} needs sound; give audio or video")
    if modality in ("visual", "audio-visual") and not ("video" in values or "image" in values):
        problems.append(f"modality {modality!r} needs frames; give video or image")
    if "t1" in values and values["t1"] <= values.get("t0", 0):
        problems.append(f"t1 ({values['t1']}) must come after t0 ({values.get('t0', 0)})")
    return problems


def _label_problems(values: dict[str, Any]) -> list[str]:
    labels = [name for name in _LABELS if name in values]
    problems = [
        f"{name}_sd without {name}"
        for name in ("valence", "arousal")
        if f"{name}_sd" in values and name not in values
    ]
    problems += _series_problems(values) + _sign_problems(values) + _emotion_problems(values)
    if labels and "construct" not in values:
        problems.append(f"{labels[0]} needs a construct: {' or '.join(CONSTRUCTS)}")
    if values.get("machine_made") and "n_raters" in values:
        problems.append("n_raters counts people; leave it out of labels that are machine_made")
    if not labels and "question" not in values and values.get("task") != "clip":
        problems.append("neither a question nor labels; give one of them, or the task clip")
    return problems


def _series_problems(values: dict[str, Any]) -> list[str]:
    names = [name for name in ("valence_series", "arousal_series") if name in values]
    lengths = [len(values[name]) for name in names]
    if names and "series_rate_hz" not in values:
        return [f"{names[0]} needs series_rate_hz"]
    if not names:
        timing = ("series_rate_hz", "series_start_s", "reaction_lag_s")
        return [f"{name} without a series" for name in timing if values.get(name)]
    if len(set(lengths)) > 1:
        return [f"valence_series has {lengths[0]} values and arousal_series {lengths[1]}"]
    return []


def _sign_problems(values: dict[str, Any]) -> list[str]:
    return [
        f"{name}_sign {values[f'{name}_sign']} contradicts {name} {values[name]}"
        for name in ("valence", "arousal")
        if name in values and values[name] * values.get(f"{name}_sign", 0) < 0
    ]


def _emotion_problems(values: dict[str, Any]) -> list[str]:
    shares = values.get("emotion_distribution")
    if shares is None:
        return ["emotion_names without emotion_distribution"] if "emotion_names" in values else []
    wanted = len(values.get("emotion_names", EMOTIONS))
    if len(shares) != wanted:
        names = (
            "the emotion_names"
            if "emotion_names" in values
            else "ArtEmis's emotions (no emotion_names given)"
        )
        return [f"emotion_distribution must be {wanted} numbers, one for each of {names}, got {len(shares)}"]
    return []


def check_splits(items: Sequence[PlacedItem]) -> list[Problem]:
    """Check that ids are distinct and that no work and no creator is in two splits."""
    problems: list[Problem] = []
    first_of_id: dict[str, PlacedItem] = {}
    for here in items:
        if (first := first_of_id.setdefault(here.item.id, here)) is not here:
            problems.append(_problem(here, f"id {here.item.id!r} was used in {_place(first, here)}"))
    for name in ("work_id", "creator_id"):
        home: dict[str, PlacedItem] = {}
        for here in items:
            owner = getattr(here.item, name)
            first = home.setdefault(owner, here)
            if first.item.split != here.item.split:
                problems.append(_problem(here, f"{name} {owner!r} is in {_splits(first, here)}"))
    return problems


def check_leaks(items: Sequence[PlacedItem], media_root: Path | None) -> list[Problem]:
    """Check that no medium is in two splits under any name, because a model could memorize its bytes.

    Compares the items' SHA-256. With a media root it also compares each file of items that have several.
    """
    problems: list[Problem] = []
    home: dict[str, PlacedItem] = {}
    hash_of: dict[Path, str] = {}
    for here in items:
        for sha256 in _contents(here.item, media_root, hash_of):
            first = home.setdefault(sha256, here)
            # A work in two splits has been reported already, and its media with it.
            if first.item.split != here.item.split and first.item.work_id != here.item.work_id:
                leak = f"the same media bytes (sha256 {sha256[:12]}…) are in {_splits(first, here)}"
                problems.append(_problem(here, leak))
    return problems


def _contents(item: Item, media_root: Path | None, hash_of: dict[Path, str]) -> list[str]:
    contents = [item.sha256]
    if media_root is not None and len(item.media) > 1:
        for file in (media_root / path for path in item.media):
            if file not in hash_of:
                hash_of[file] = content_sha256([file])
            contents.append(hash_of[file])
    return contents


def check_licenses(items: Sequence[PlacedItem], allowed: Sequence[str]) -> list[Problem]:
    """Check that every item's license is one of ``allowed``."""
    return [
        _problem(here, f"license {here.item.license!r} is not one of those allowed: {', '.join(allowed)}")
        for here in items
        if here.item.license not in allowed
    ]


def _problem(here: PlacedItem, message: str) -> Problem:
    return Problem(here.manifest, here.line, message)


def _place(there: PlacedItem, here: PlacedItem) -> str:
    return f"line {there.line}" + ("" if there.manifest == here.manifest else f" of {there.manifest}")


def _splits(first: PlacedItem, here: PlacedItem) -> str:
    return f"split {here.item.split!r} here and in {first.item.split!r} in {_place(first, here)}"


def check_media(items: Sequence[PlacedItem], media_root: Path, *, check_hashes: bool) -> list[Problem]:
    """Check that every file exists below the media root, links followed, and has the item's SHA-256.

    Without ``check_hashes`` the SHA-256 is not compared.
    """
    root = Path(os.path.realpath(media_root))
    problems: list[Problem] = []
    states: dict[str, str | None] = {}
    hashes: dict[tuple[str, ...], str] = {}
    for here in items:
        media = here.item.media
        wrong = [message for path in media if (message := _state(path, root, states))]
        problems += [_problem(here, message) for message in wrong]
        if not check_hashes or wrong:
            continue
        if media not in hashes:
            hashes[media] = content_sha256(root / path for path in media)
        if hashes[media] != here.item.sha256:
            names = " and ".join(media)
            problems.append(
                _problem(here, f"sha256 differs: {names} is not the file that the item was made from")
            )
    return problems


def _state(path: str, root: Path, states: dict[str, str | None]) -> str | None:
    """Return the problem of a file, or None; ``states`` keeps the result for the next item."""
    if path not in states:
        target = Path(os.path.realpath(root / path))
        if not target.is_relative_to(root):
            states[path] = f"{path} leaves the media root through a link"
        elif not os.path.isfile(target):  # pathlib's raises for names too long
            states[path] = f"{path} does not exist below the media root {root}"
        else:
            states[path] = None
    return states[path]
