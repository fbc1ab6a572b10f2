"""Rated works for stage 2: films, sounds and images of manifests and shards, with their labels.

In: sources of items. Out: a `RatedSet` for each source, construct and combination of paths, and the counts of
what was left out. A rating of a film is the label of the film, so it counts on all three paths; a rating of
what was only seen or only heard counts on that path alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from vaemotion.contract.errors import UsageError
from vaemotion.contract.front_end import PATHS, FrontEnd
from vaemotion.contract.words import markdown_table
from vaemotion.data.clips.open import open_clips
from vaemotion.data.clips.source import ClipSource, ClipStream
from vaemotion.data.instructions import emotions_of
from vaemotion.data.manifest.item import Item
from vaemotion.data.manifest.manifest import read_manifest
from vaemotion.model.emo_adapter import CONSTRUCTS
from vaemotion.model.vaemotion_llm import VAEmotionLLM
from vaemotion.training.config import TrainingConfig
from vaemotion.training.encoded import own_share, refuse_damaged
from vaemotion.training.loop import process_state, weights_digest
from vaemotion.training.rated_sets import RatedSet, labeled_set
from vaemotion.training.rated_tokens import RatedTokens
from vaemotion.training.rated_windows import RatedWork

MOST_NAMED = 20  # damaged works that are named
GroupKey = tuple[str, str, tuple[str, ...], str, bool]  # source, construct, paths, kind, machine-made


@dataclass
class Ratings:
    """The rated works of a split, and what was left out.

    ``unlabeled``, ``machine_made``: items that were left out, by source, path and construct.
    """

    groups: dict[GroupKey, list[RatedWork]] = field(default_factory=dict[GroupKey, list[RatedWork]])
    unlabeled: Counter[tuple[str, str, str]] = field(default_factory=Counter[tuple[str, str, str]])
    machine_made: Counter[tuple[str, str, str]] = field(default_factory=Counter[tuple[str, str, str]])


def read_ratings(config: TrainingConfig, front_end: FrontEnd, split: str = "train") -> Ratings:
    """Find the rated works of a split in all sources of the configuration.

    Raises UsageError when sources are given and none of them holds a rated work of the split.
    """
    stage, media_root = config.emotion, Path(config.media_root)
    ratings = Ratings()
    works = [
        work
        for source in stage.ratings
        for work in _works(source, media_root, front_end, split)
        if _is_used(work.item, config, ratings)
    ]
    alone = {_about(work.item, work.item.modality) for work in works if work.item.modality != "audio-visual"}
    for work in works:
        item = work.item
        paths = (item.modality,)
        if item.modality == "audio-visual":
            # Where the same part of a work was rated alone on a path, that rating is the path's label.
            paths = tuple(path for path in PATHS if _about(item, path) not in alone)
        key = (item.source, item.construct or "expressed", paths, work.kind, bool(item.machine_made))
        ratings.groups.setdefault(key, []).append(work)
    if ratings.machine_made and not ratings.groups:
        raise UsageError(
            f"{', '.join(stage.ratings)}: all labels of split {split!r} are machine-made; "
            "to learn from them set emotion.machine_made_weight above 0"
        )
    if stage.ratings and not ratings.groups:
        raise UsageError(
            f"{', '.join(stage.ratings)}: no item of split {split!r} with valence, arousal, emotions or the "
            f"words of raters; see `vaemotion data stats`"
        )
    return ratings


def _works(source: str, media_root: Path, front_end: FrontEnd, split: str) -> Iterator[RatedWork]:
    """Yield the items of a split in a manifest, in shards or in any other source that can be counted."""
    is_manifest = not (source.startswith(("art:", "pipe:")) or ".tar" in source or Path(source).is_dir())
    if is_manifest:
        yield from (
            RatedWork(item) for item in read_manifest(Path(source), media_root) if item.split == split
        )
        return
    clips = open_clips(source, media_root, front_end, split)
    if isinstance(clips, ClipStream):
        raise UsageError(f"{source} is a stream; emotion.ratings takes manifests and shards in a folder")
    counted: ClipSource = clips
    yield from (RatedWork(counted.item(index), counted, index) for index in range(len(counted)))


def _is_used(item: Item, config: TrainingConfig, ratings: Ratings) -> bool:
    """Return True for an item that is trained on; the others are counted."""
    key = (item.source, item.modality, item.construct or "–")
    if not is_rated(item, config.emotion.emotions):
        ratings.unlabeled[key] += 1
        return False
    if item.machine_made and config.emotion.machine_made_weight == 0:
        ratings.machine_made[key] += 1
        return False
    return True


def is_rated(item: Item, emotions: Sequence[str]) -> bool:
    """Return True for an item with any label that stage 2 learns from."""
    labels = (
        item.valence,
        item.arousal,
        item.valence_series,
        item.arousal_series,
        item.valence_sign,
        item.arousal_sign,
        item.utterances,
    )
    return any(label is not None for label in labels) or emotions_of(item, emotions) is not None


def _about(item: Item, path: str) -> tuple[object, ...]:
    return (item.source, item.construct, item.work_id, item.t0, item.t1, path)


def encoded_ratings(ratings: Ratings, model: VAEmotionLLM, config: TrainingConfig) -> list[RatedSet]:
    """Encode the rated works, once, this process's share of the blocks, and label their windows.

    Raises UserError when more than one in twenty works of a source is damaged.
    """
    processes = process_state()
    weights = weights_digest(model.base) + weights_digest(model.audio_pathway)
    tokens = [
        RatedTokens(works, model, weights, config.data_seed, Path(config.runs))
        for works in ratings.groups.values()
    ]
    for each in tokens:
        workers = config.emotion.optimisation.workers
        each.encode(model, Path(config.media_root), own_share(each.numbers), workers)
    processes.wait_for_everyone()
    sets: list[RatedSet] = []
    for (_, _, paths, _, _), each in zip(ratings.groups, tokens, strict=True):
        works, ends_s, damaged, unlabeled = each.open()
        refuse_damaged(len(each.works), len(damaged), damaged)
        if not works:
            continue
        made = labeled_set(works, ends_s, each, config.emotion.emotions, paths)
        sets.append(replace(made, damaged=tuple(damaged), unlabeled=tuple(unlabeled), digest=each.digest))
    return sets


def counts_table(works: RatedSet | None, sets: Sequence[RatedSet], ratings: Ratings) -> str:
    """Return a table of what is trained on and what was left out, by source, paths and construct.

    Paths that nothing teaches are named below it.
    """
    rows: list[list[str]] = []
    unlabeled, unused = Counter(ratings.unlabeled), Counter(ratings.machine_made)
    for each in (*([] if works is None else [works]), *sets):
        key = (each.source, each.paths[-1], CONSTRUCTS[each.construct])  # as items are counted
        made = _made(len(each) if each.machine_made else 0, unused.pop(key, 0))
        counts = [len(each), each.windows, len(each.unlabeled) + unlabeled.pop(key, 0), len(each.damaged)]
        rows.append([each.source, " + ".join(each.paths), key[2], *map(str, counts), made])
    for key in dict.fromkeys([*unlabeled, *unused]):
        rows.append([*key, "0", "0", str(unlabeled[key]), "0", _made(0, unused[key])])
    head = ["source", "paths", "construct", "items", "windows", "without label", "damaged", "machine-made"]
    taught = {path for each in (*([] if works is None else [works]), *sets) for path in each.paths}
    lines = [markdown_table(head, rows)]
    damaged = [clip for each in sets for clip in each.damaged]
    lines += [f"{clip.name} was left out: {clip.reason}" for clip in damaged[:MOST_NAMED]]
    lines += [f"and {len(damaged) - MOST_NAMED} more were left out"] if len(damaged) > MOST_NAMED else []
    lines += [
        f"no work on the {path} path: its readings mean nothing" for path in PATHS if path not in taught
    ]
    return "\n".join(lines)


def _made(used: int, unused: int) -> str:
    return f"{used} ({unused} left out)" if unused else str(used)
