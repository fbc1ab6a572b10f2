"""Questions about procedural works as items, with their options and the labels of the work."""

from __future__ import annotations

import hashlib

import numpy as np

from vaemotion.contract.prompts import CONTENT
from vaemotion.data.art.contents import CONTENT_CLASSES
from vaemotion.data.art.works import Work
from vaemotion.data.manifest.item import Item


def content_options(work: Work) -> tuple[str, ...]:
    """Return what a work may show, in an order of the work's own."""
    shuffled = np.random.default_rng([work.seed, 1]).permutation(len(CONTENT_CLASSES))
    return tuple(CONTENT_CLASSES[position] for position in shuffled)


def content_item(work: Work, split: str, path: str = "audio-visual") -> Item:
    """Return the question what a work shows, for one path, as an item without a medium on disk."""
    name, options = f"procedural-{work.seed:012x}", content_options(work)
    return Item(
        id=f"{name}-{path}-{CONTENT.task}",
        pairing="synchronised",
        question=CONTENT.text,
        answer=work.content,
        options=options,
        answer_index=options.index(work.content),
        task=CONTENT.task,
        label=work.content,
        audible=CONTENT.audible,
        modality=path,
        valence=work.valence,
        arousal=work.arousal,
        construct="expressed",
        emotion_distribution=work.emotion_distribution,
        split=split,
        work_id=name,
        creator_id=f"procedural-{split}",
        source="procedural-art",
        license="CC0-1.0",
        sha256=hashlib.sha256(name.encode()).hexdigest(),
    )
