"""Open benchmark after ArtEmoBenchmark, from procedural art and from human-rated data sets.

In: a number of works and, for the human-rated part, the folder of the published sets (``sievers/``,
``bass/``). Out: ``manifest.jsonl`` with its media, and ``human.jsonl``, whose media root is that folder, so
that the sets' files are not copied. Labels stay per modality: a pair has a question and its answer, but no
label of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.progress import track
from rich.table import Table

from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.terminal import Terminal, tell
from vaemotion.data.art.art import (
    FACTOR_NAMES,
    PATH_FACTORS,
    Work,
    factor_values,
    labels_from_factors,
    sample_work,
    work_seed,
)
from vaemotion.data.art.build import build_procedural, write_work
from vaemotion.data.art.contents import CONTENT_CLASSES
from vaemotion.data.manifest.item import SPLITS, Item, content_sha256
from vaemotion.data.manifest.manifest import read_manifest, summary, write_manifest
from vaemotion.data.published.adapter import N_FOLDS, ItemsAndFolds, Source
from vaemotion.data.published.human_labels import bass, sievers
from vaemotion.data.relations import (
    AGREEMENT,
    CALMER,
    MODALITIES,
    ModalityBaseline,
    Pair,
    Relation,
    Stimulus,
    agreement_pairs,
    calmer_pairs,
    modality_baseline,
)

MOST_WORKS = 5000
# The pairs of a seed use other works than its questions, which `build_procedural` takes from the seed's
# first numbers.
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
class _RelationPairs:
    """The pairs of one question."""

    relation: Relation
    pairs: tuple[Pair, ...]


def build_artemo_open(
    out: Path, data: Path | None, split: str, count: int, seed: int = 0, fold: int = 1
) -> None:
    """Write the benchmark, and print the accuracy of one modality alone and the commands that run it.

    Procedural part: ``count`` works with content and emotion questions on the three paths
    (`build_procedural`), and about ``count`` pairs for each of the two questions of `relations`.
    Human-rated part, when ``data`` holds the sets: the label items of their ``fold`` (see `adapter`), and
    the same two questions on pairs of abstract shapes and sounds. Raises UsageError for an unknown split
    and a number out of range, UserError when ``out`` already holds a benchmark.
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
            raise UserError(f"{file} exists already; give another folder with --out or delete it")
    rated = _human_items(data, split, count, seed, fold)
    related = _procedural_pairs(split, count, seed)
    items = _procedural_items(related, out, split, seed)
    build_procedural(out, split, count, seed)
    write_manifest(manifest, [*read_manifest(manifest, out), *items])
    tell(f"{manifest}: with {len(items)} items on pairs of a visual stimulus and a sound")
    if rated:
        write_manifest(human, rated)
        tell(f"{human}: {summary(rated)}")
    _print_balance("procedural", related)
    _print_commands(manifest, out, human if rated else None, data)


# --- procedural part ----------------------------------------------------------------------------------------


def perceptible_arousal(work: Work, path: str) -> float:
    """Compute the arousal from the factors perceptible on a path, with the others at neutral."""
    perceptible = np.array([name in PATH_FACTORS[path] for name in FACTOR_NAMES])
    return float(labels_from_factors(np.array(factor_values(work)) * perceptible)[1])


def _procedural_pairs(split: str, count: int, seed: int) -> list[_RelationPairs]:
    """Make the pairs of works for both questions; a stimulus is named by its work's number."""
    first = seed * _WORKS_PER_SEED + _FIRST_PAIR_WORK
    numbers = range(first, first + max(_SMALLEST_POOL, _POOL_PER_WORK * count))
    works = {number: sample_work(work_seed(split, number)) for number in numbers}
    # A work serves as a visual stimulus or as a sound. A pair of both from one work would have synchronous
    # events.
    visuals, sounds = (
        [Stimulus(str(n), perceptible_arousal(works[n], path)) for n in numbers if n % 2 == remainder]
        for remainder, path in enumerate(("visual", "audio"))
    )
    return _related(visuals, sounds, count, seed)


def _related(
    visuals: Sequence[Stimulus], sounds: Sequence[Stimulus], count: int, seed: int
) -> list[_RelationPairs]:
    return [
        _RelationPairs(relation, tuple(make(visuals, sounds, count, seed))) for relation, make in _RELATIONS
    ]


def _procedural_items(related: Sequence[_RelationPairs], out: Path, split: str, seed: int) -> list[Item]:
    """Write the clips of all pairs and return their items; a pair's sound is the track of its second clip."""
    asked = [(some.relation, pair, k) for some in related for k, pair in enumerate(some.pairs)]
    items: list[Item] = []
    for relation, pair, k in track(asked, f"{split} pairs", console=Terminal(stderr=True)):
        # Both works of a pair have the same class, so that the content carries no information about the
        # answer.
        content = CONTENT_CLASSES[np.random.default_rng([seed, pair.block]).integers(len(CONTENT_CLASSES))]
        video, audio = (
            _written_work(out, split, int(stimulus.name), content) for stimulus in (pair.visual, pair.sound)
        )
        name = f"procedural-{relation.name}-{split}-{seed}"
        item = _pair_item(relation, pair, f"{name}-{k:05d}", f"{name}-block-{pair.block:04d}", split)
        items.append(
            replace(
                item,
                video=video,
                audio=audio,
                pairing="matched",
                creator_id=f"procedural-{split}",  # the creator of all works of the split
                source=f"procedural-{relation.name}",
                license="CC0-1.0",
                sha256=content_sha256([out / video, out / audio]),
            )
        )
    return items


def _written_work(out: Path, split: str, number: int, content: str) -> str:
    """Return the path of a work's clip below ``out``, and write the clip unless it exists."""
    path = f"pairs/{split}-{number}-{content.replace(' ', '-')}.mkv"
    if not (out / path).is_file():
        write_work(out / path, sample_work(work_seed(split, number), content))
    return path


def _pair_item(relation: Relation, pair: Pair, identifier: str, block: str, split: str) -> Item:
    """Make the item of a pair with the fields that all sets have in common; the caller adds the media.

    Pairs that share stimuli count as one work, so that bootstrap intervals over works resample them together.
    """
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


# --- human-rated part ---------------------------------------------------------------------------------------


def _human_items(data: Path | None, split: str, count: int, seed: int, fold: int) -> list[Item]:
    """Make the label items and the pairs of the sets in ``data``, and print a line for each missing set."""
    items: list[Item] = []
    for name, read in _HUMAN_SETS:
        if data is None or not (data / name).is_dir():
            reason = "give its parent folder with --from" if data is None else f"there is no {data / name}"
            tell(f"without the human-rated set {name!r}: {reason}")
            continue
        everything, folds = read(Source.below(data, data / name))
        dealt = zip(everything, folds, strict=True)
        found = [replace(item, split=split) for item, its_fold in dealt if its_fold == fold]
        items += found
        if name == "sievers":
            items += _human_pairs(found, data, split, count, seed)
    return items


def _human_pairs(rated: Sequence[Item], data: Path, split: str, count: int, seed: int) -> list[Item]:
    """Make the items of both questions on abstract shapes and sounds, each rated by itself."""
    by_id = {item.id: item for item in rated if item.arousal is not None}
    visuals, sounds = (
        [Stimulus(item.id, item.arousal or 0.0) for item in by_id.values() if item.modality == modality]
        for modality in ("visual", "audio")
    )
    related = _related(visuals, sounds, count, seed)
    items: list[Item] = []
    for some in related:
        for k, pair in enumerate(some.pairs):
            visual, sound = by_id[pair.visual.name], by_id[pair.sound.name]
            name = f"sievers-{some.relation.name}-{split}-{seed}"
            item = _pair_item(some.relation, pair, f"{name}-{k:05d}", f"{name}-block-{pair.block:04d}", split)
            assert visual.image is not None
            assert sound.audio is not None
            items.append(
                replace(
                    item,
                    image=visual.image,
                    audio=sound.audio,
                    source=f"sievers-{some.relation.name}",
                    license=visual.license,
                    sha256=content_sha256([data / visual.image, data / sound.audio]),
                )
            )
    _print_balance("sievers", related)
    return items


# --- printed output -----------------------------------------------------------------------------------------


def _print_balance(name: str, related: Sequence[_RelationPairs]) -> None:
    """Print the accuracy that exact knowledge of one modality's arousal reaches on the pairs."""
    title = f"{name}: accuracy with one modality's true arousal alone"
    caption = "memorized: the upper bound; above 0.5 due to the ends of chains"
    heads = ("question", "known", "pairs", "learned", "95 % of guessing", "memorized")
    table = Table(*heads, title=title, caption=caption)
    for some in related:
        if not some.pairs:
            table.add_row(some.relation.name, "", "0", "", "", "too few stimuli")
            continue
        for known in MODALITIES:
            table.add_row(*_balance_row(modality_baseline(some.relation, some.pairs, known)))
    Terminal().print(table)


def _balance_row(found: ModalityBaseline) -> tuple[str, ...]:
    interval = f"{found.chance_low:.3f} to {found.chance_high:.3f}"
    return (
        found.relation,
        found.known,
        str(found.pairs),
        f"{found.learned:.3f}",
        interval,
        f"{found.memorized:.3f}",
    )


def _print_commands(manifest: Path, out: Path, human: Path | None, data: Path | None) -> None:
    tell("\nmeasure a model; add --path audio or --path visual to measure one modality alone:")
    command = "  vaemotion evaluate benchmark {} --media-root {} --model MODEL --out RESULTS/{}"
    tell(command.format(manifest, out, "procedural"))
    if human is not None:
        tell(command.format(human, data, "human"))
