"""An open benchmark in the manner of ArtEmoBenchmark, from procedural art and from sets that people rated.

In: a number of works and, for the human-rated part, the folder that holds the published sets (``sievers/``, ``bass/``). Out:
``manifest.jsonl`` with the media that it needs, and ``human.jsonl``, whose media root is that folder: a manifest has one media
root, and nobody's files are copied. Labels stay per modality: a pair has a question and its answer, and no label of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from vaemotion.contract.errors import UsageError, UserError
from vaemotion.data.adapter import N_FOLDS, ItemsAndFolds, Source
from vaemotion.data.build import DURATION_S, FRAME_RATE_HZ, build_procedural
from vaemotion.data.human_labels import bass, sievers
from vaemotion.data.item import SPLITS, Item, content_sha256
from vaemotion.data.manifest import read_manifest, summary, write_manifest
from vaemotion.data.procedural_art import (
    CONTENT_CLASSES,
    FACTOR_NAMES,
    PATH_FACTORS,
    Work,
    draw_frame,
    factor_values,
    labels_from_factors,
    sample_work,
    synthesise,
    work_seed,
)
from vaemotion.data.relations import (
    AGREEMENT,
    CALMER,
    OneModality,
    Pair,
    Relation,
    Stimulus,
    agreement_pairs,
    calmer_pairs,
    one_modality,
)
from vaemotion.data.writer import write_clip

MOST_WORKS = 5000
# A seed's pairs are made of other works than its questions, which `build_procedural` takes from the start of its numbers.
_WORKS_PER_SEED, _FIRST_PAIR_WORK = 1 << 20, 1 << 19
_POOL_PER_WORK, _SMALLEST_POOL = 40, 2000
_RELATIONS: tuple[tuple[Relation, Callable[..., list[Pair]]], ...] = (
    (AGREEMENT, agreement_pairs),
    (CALMER, calmer_pairs),
)
_HUMAN_SETS: tuple[tuple[str, Callable[[Source], ItemsAndFolds]], ...] = (
    ("sievers", sievers),
    ("bass", bass),
)


@dataclass(frozen=True)
class _Related:
    """The pairs of one question."""

    relation: Relation
    pairs: tuple[Pair, ...]


def build_artemo_open(
    out: Path, data: Path | None, split: str, count: int, seed: int = 0, fold: int = 1
) -> None:
    """Write the benchmark, print how far one modality alone gets on its pairs, and the commands that run it.

    Procedural part: ``count`` works with content and emotion questions on the three paths (`build_procedural`), and about ``count``
    pairs for each of the two questions of `relations`. Human-rated part, where ``data`` holds the sets: the label
    items of their ``fold`` (see `adapter`), and the same two questions on pairs of its abstract shapes and sounds. Raises
    UsageError for an unknown split and a number out of range, UserError where ``out`` holds a benchmark already.
    """
    if split not in SPLITS:
        raise UsageError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if not 1 <= count <= MOST_WORKS or not 0 <= seed < _WORKS_PER_SEED:
        raise UsageError(
            f"count ({count}) must be in 1..{MOST_WORKS} and seed ({seed}) in 0..{_WORKS_PER_SEED - 1}"
        )
    if not 1 <= fold <= N_FOLDS:
        raise UsageError(f"fold must be in 1..{N_FOLDS}, got {fold}")
    manifest, human = out / "manifest.jsonl", out / "human.jsonl"
    for file in (manifest, human):
        if file.exists():
            raise UserError(f"{file} exists already, give another folder with --out or remove it")
    rated = _human_items(data, split, count, seed, fold)
    related = _procedural_pairs(split, count, seed)
    items = _procedural_items(related, out, split, seed)
    build_procedural(out, split, count, seed)
    write_manifest(manifest, [*read_manifest(manifest, out), *items])
    print(f"{manifest}: with {len(items)} items on pairs of a picture and a sound")
    if rated:
        write_manifest(human, rated)
        print(f"{human}: {summary(rated)}")
    _print_balance("procedural", related)
    _print_commands(manifest, out, human if rated else None, data)


# --- procedural part --------------------------------------------------------------------------------------------------


def perceptible_arousal(work: Work, path: str) -> float:
    """The arousal that follows from the factors perceptible on a path, the others being neutral."""
    perceptible = np.array([name in PATH_FACTORS[path] for name in FACTOR_NAMES])
    return float(labels_from_factors(np.array(factor_values(work)) * perceptible)[1])


def _procedural_pairs(split: str, count: int, seed: int) -> list[_Related]:
    """Pairs of works; a stimulus's name is its work's number."""
    first = seed * _WORKS_PER_SEED + _FIRST_PAIR_WORK
    numbers = range(first, first + max(_SMALLEST_POOL, _POOL_PER_WORK * count))
    works = {number: sample_work(work_seed(split, number)) for number in numbers}
    # A work is a picture or a sound, so that no pair holds a whole work, whose events would be in time with each other.
    pictures, sounds = (
        [Stimulus(str(n), perceptible_arousal(works[n], path)) for n in numbers if n % 2 == remainder]
        for remainder, path in enumerate(("visual", "audio"))
    )
    return [_Related(relation, tuple(make(pictures, sounds, count, seed))) for relation, make in _RELATIONS]


def _procedural_items(related: Sequence[_Related], out: Path, split: str, seed: int) -> list[Item]:
    """The items of all pairs, their clips written: the sound of a pair is the track of its second work's clip."""
    asked = [(some.relation, pair, k) for some in related for k, pair in enumerate(some.pairs)]
    items: list[Item] = []
    for relation, pair, k in track(asked, f"{split} pairs", console=Console(stderr=True)):
        # Picture and sound show one class of thing, so that content says nothing about the answer.
        content = CONTENT_CLASSES[np.random.default_rng([seed, pair.block]).integers(len(CONTENT_CLASSES))]
        video, audio = (
            _written_work(out, split, int(stimulus.name), content) for stimulus in (pair.picture, pair.sound)
        )
        name = f"procedural-{relation.name}-{split}-{seed}"
        item = _pair_item(relation, pair, f"{name}-{k:05d}", f"{name}-block-{pair.block:04d}", split)
        items.append(
            replace(
                item,
                video=video,
                audio=audio,
                pairing="matched",
                creator_id=f"procedural-{split}",  # as the works': one author a split
                source=f"procedural-{relation.name}",
                license="CC0-1.0",
                sha256=content_sha256([out / video, out / audio]),
            )
        )
    return items


def _written_work(out: Path, split: str, number: int, content: str) -> str:
    """The path of a work's clip below ``out``; it is written if it is not there."""
    path = f"pairs/{split}-{number}-{content.replace(' ', '-')}.mkv"
    if not (out / path).is_file():
        work = sample_work(work_seed(split, number), content)
        times_s = np.arange(round(DURATION_S * FRAME_RATE_HZ)) / FRAME_RATE_HZ
        frames = np.stack([draw_frame(work, float(time_s)) for time_s in times_s])
        write_clip(out / path, frames, FRAME_RATE_HZ, synthesise(work, DURATION_S))
    return path


def _pair_item(relation: Relation, pair: Pair, identifier: str, block: str, split: str) -> Item:
    """What the items of all sets have in common; the media are filled in by the caller. Pairs that share stimuli are one
    work, so that intervals over works resample them together."""
    return Item(
        id=identifier,
        pairing="none",
        question=relation.question,
        answer=pair.answer,
        options=relation.options,
        answer_index=relation.options.index(pair.answer),
        task="emotion",
        audible=False,
        modality="audio-visual",
        split=split,
        work_id=block,
        creator_id=block,
        source="",
        license="",
        sha256="",
    )


# --- human-rated part -------------------------------------------------------------------------------------------------


def _human_items(data: Path | None, split: str, count: int, seed: int, fold: int) -> list[Item]:
    """Label items and pairs of the sets that are there; each set that is not is said in a line."""
    items: list[Item] = []
    for name, read in _HUMAN_SETS:
        if data is None or not (data / name).is_dir():
            where = (
                "give the folder that holds it with --from" if data is None else f"there is no {data / name}"
            )
            print(f"without the human-rated set {name!r}: {where}")
            continue
        everything, folds = read(Source.below(data, data / name))
        dealt = zip(everything, folds, strict=True)
        found = [replace(item, split=split) for item, its_fold in dealt if its_fold == fold]
        items += found
        if name == "sievers":
            items += _human_pairs(found, data, split, count, seed)
    return items


def _human_pairs(rated: Sequence[Item], data: Path, split: str, count: int, seed: int) -> list[Item]:
    """The two questions on abstract shapes and sounds, each rated by itself."""
    by_id = {item.id: item for item in rated if item.arousal is not None}
    pictures, sounds = (
        [Stimulus(item.id, item.arousal or 0.0) for item in by_id.values() if item.modality == modality]
        for modality in ("visual", "audio")
    )
    related = [
        _Related(relation, tuple(make(pictures, sounds, count, seed))) for relation, make in _RELATIONS
    ]
    items: list[Item] = []
    for some in related:
        for k, pair in enumerate(some.pairs):
            picture, sound = by_id[pair.picture.name], by_id[pair.sound.name]
            name = f"sievers-{some.relation.name}-{split}-{seed}"
            item = _pair_item(some.relation, pair, f"{name}-{k:05d}", f"{name}-block-{pair.block:04d}", split)
            assert picture.image is not None
            assert sound.audio is not None
            items.append(
                replace(
                    item,
                    image=picture.image,
                    audio=sound.audio,
                    source=f"sievers-{some.relation.name}",
                    license=picture.license,
                    sha256=content_sha256([data / picture.image, data / sound.audio]),
                )
            )
    _print_balance("sievers", related)
    return items


# --- what is printed --------------------------------------------------------------------------------------------------


def _print_balance(name: str, related: Sequence[_Related]) -> None:
    """How far a reader gets on the pairs who knows one modality's arousal exactly."""
    title = f"{name}: right with one modality's true arousal alone"
    caption = "by heart: no rule exceeds it; above 0.5: the ladders' ends"
    heads = ("question", "known", "pairs", "learnt", "95 % of guessing", "by heart")
    table = Table(*heads, title=title, caption=caption)
    for some in related:
        if not some.pairs:
            table.add_row(some.relation.name, "", "0", "", "", "too few stimuli")
            continue
        for known in ("picture", "sound"):
            table.add_row(*_balance_row(one_modality(some.relation, some.pairs, known)))
    Console().print(table)


def _balance_row(found: OneModality) -> tuple[str, ...]:
    interval = f"{found.chance_low:.3f} to {found.chance_high:.3f}"
    return (
        found.relation,
        found.known,
        str(found.pairs),
        f"{found.learnt:.3f}",
        interval,
        f"{found.best:.3f}",
    )


def _print_commands(manifest: Path, out: Path, human: Path | None, data: Path | None) -> None:
    print("\nmeasure a model, and with --path audio and --path visual what one modality alone is worth:")
    command = "  vaemotion evaluate benchmark {} --media-root {} --model MODEL --out RESULTS/{}"
    print(command.format(manifest, out, "procedural"))
    if human is not None:
        print(command.format(human, data, "human"))
