"""Adapters of sets whose raters voted for emotions or quadrants: WikiArt Emotions, Emotify, EMOPIA.

In: the set's folder. Out: its items and their folds, from which `build` makes a manifest. Distributions stand
over the set's own names; `vaemotion.data.emotion_vocabularies` maps them to others.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from vaemotion.contract.errors import UserError
from vaemotion.data.emotion_vocabularies import vocabularies
from vaemotion.data.manifest.item import Item
from vaemotion.data.published.adapter import ItemsAndFolds, Source, assign_folds, by_stem, track_reading
from vaemotion.data.published.art_sets import rendered
from vaemotion.data.published.label_table import LabelRow, read_table, refuse_other_columns

WIKIART_TABLE = "WikiArt-Emotions-All.tsv"
_WIKIART_LAYOUT = (
    f"a folder with {WIKIART_TABLE} and, anywhere below it, WikiArt's images named artist_title.jpg, as "
    "ArtEmis names them"
)
_IMAGE_ONLY = "ImageOnly: "
# The groups of the set's README; its third group, "other or mixed", counts neither way.
_PLEASANT = frozenset(("gratitude", "happiness", "humility", "love", "optimism", "trust"))
_UNPLEASANT = frozenset(("anger", "arrogance", "disgust", "fear", "pessimism", "regret", "sadness", "shame"))
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")

_EMOTIFY_LAYOUT = "the folder of Emotify with data.csv and emotifymusic/genre/number.mp3"
_EMOTIFY_ABOUT_RATERS = ("mood", "liked", "disliked", "age", "gender", "mother tongue")
_EMOTIFY_SONGS_A_GENRE = 100

_EMOPIA_LAYOUT = "the folder of EMOPIA with midis/ and a sound file beside each of its .mid files"
# Quadrant -> signs of valence and arousal.
_QUADRANTS = {"Q1": (1, 1), "Q2": (-1, 1), "Q3": (-1, -1), "Q4": (1, -1)}


def wikiart_emotions(source: Source) -> ItemsAndFolds:
    """Read WikiArt Emotions: art with the emotions and the valence that the picture alone evoked.

    Source: Mohammad & Kiritchenko 2018, "WikiArt Emotions: An Annotated Dataset of Emotions Evoked by Art",
    LREC. Only the answers to the picture without its title count. The valence is computed: the share of the
    votes that name a positive emotion minus the share that name a negative one, in the groups of the set's
    README. The set has no images; pieces without one in the folder are left out and counted. Works and
    artists are named as in `artemis`, which has some of the same paintings. Raises UserError for a folder in
    another layout and for one without a single image of the set.
    """
    names = vocabularies()["wikiart"].names
    columns = [f"{_IMAGE_ONLY}{name}" for name in names]
    rows = read_table(source.folder / WIKIART_TABLE, ("ID", "Image URL", *columns), _WIKIART_LAYOUT)
    others = [column for column in rows[0].cells if not column.startswith(_IMAGE_ONLY)]
    refuse_other_columns(rows[0], [*columns, *others])
    images = by_stem(source.folder, _IMAGE_SUFFIXES)
    items: list[Item] = []
    for row in track_reading(rows, "wikiart-emotions"):
        votes = {name: row.number(f"{_IMAGE_ONLY}{name}", 0, 1) for name in names}
        if _painting(row) not in images:
            source.left_out["pieces of art without an image in the folder"] += 1
        elif not sum(votes.values()):
            source.left_out["pieces of art without a vote"] += 1
        else:
            items.append(_wikiart_item(row, votes, images[_painting(row)][0], source))
    if not items:
        raise UserError(f"{source.folder} has no image of {WIKIART_TABLE}; --from takes {_WIKIART_LAYOUT}")
    return items, assign_folds([item.creator_id for item in items])


def _wikiart_item(row: LabelRow, votes: Mapping[str, float], image: str, source: Source) -> Item:
    path, sha256 = source.medium(image, row.where)
    total = sum(votes.values())
    positive = sum(votes[name] for name in _PLEASANT)
    negative = sum(votes[name] for name in _UNPLEASANT)
    painting = _painting(row)
    return Item(
        id=f"wikiart-emotions-{row.text('ID')}",
        image=path,
        pairing="none",
        task="emotion",
        audible=False,
        modality="visual",
        valence=round((positive - negative) / total, 6),
        construct="induced",
        emotion_names=tuple(votes),
        emotion_distribution=tuple(round(share / total, 6) for share in votes.values()),
        # No n_raters: at least ten people judged each piece, some pieces many more.
        split="train",
        work_id=f"wikiart-{painting}",
        creator_id=f"wikiart:{painting.partition('_')[0]}",
        source="wikiart-emotions",
        # The annotations may not be passed on; the images have WikiArt's terms.
        license="LicenseRef-WikiArt-Emotions-Terms-of-Use",
        sha256=sha256,
    )


def _painting(row: LabelRow) -> str:
    """Return the name artist_title that ArtEmis gives an image, from its address on WikiArt."""
    parts = PurePosixPath(unquote(urlsplit(row.text("Image URL")).path).partition("!")[0]).parts
    if len(parts) < 2:
        raise UserError(f"{row.where}: Image URL must end in artist/title.jpg, got {row.text('Image URL')!r}")
    return f"{parts[-2]}_{PurePosixPath(parts[-1]).stem}"


def emotify(source: Source) -> ItemsAndFolds:
    """Read Emotify: excerpts of music with the votes of its listeners for nine felt emotions.

    Source: Aljanaki, Wiering & Veltkamp 2016, "Studying emotion induced by music through a crowdsourcing
    game", Inf. Process. Manag. 52:115. A listener may name several emotions, which share the vote; answers
    without any are left out and counted. Raises UserError for a folder in another layout.
    """
    names = vocabularies()["gems-9"].names
    columns = ("track id", "genre", *names)
    rows = read_table(source.folder / "data.csv", columns, _EMOTIFY_LAYOUT)
    refuse_other_columns(rows[0], [*columns, *_EMOTIFY_ABOUT_RATERS])
    answers: dict[int, list[LabelRow]] = {}
    for row in rows:
        if any(row.one_of(name, ("0", "1")) == "1" for name in names):
            answers.setdefault(row.count("track id"), []).append(row)
        else:
            source.left_out["answers without an emotion"] += 1
    items = [
        _emotify_item(song, answers[song], names, source)
        for song in track_reading(sorted(answers), "emotify")
    ]
    return items, assign_folds([item.work_id for item in items])


def _emotify_item(song: int, answers: Sequence[LabelRow], names: Sequence[str], source: Source) -> Item:
    number = (song - 1) % _EMOTIFY_SONGS_A_GENRE + 1
    path, sha256 = source.medium(f"emotifymusic/{answers[0].text('genre')}/{number}.mp3", answers[0].where)
    votes = Counter[str]()
    for answer in answers:
        chosen = [name for name in names if answer.one_of(name, ("0", "1")) == "1"]
        votes.update({name: 1 / len(chosen) for name in chosen})
    return Item(
        id=f"emotify-{song}",
        audio=path,
        pairing="none",
        task="emotion",
        audible=True,
        modality="audio",
        construct="induced",
        emotion_names=tuple(names),
        emotion_distribution=tuple(round(votes[name] / len(answers), 6) for name in names),
        n_raters=len(answers),
        split="train",
        work_id=f"emotify-{song}",
        creator_id=f"emotify:{song}",  # the set names no artists
        source="emotify",
        license="NOASSERTION",  # the authors ask to be cited; the songs are those of a record company
        sha256=sha256,
    )


def emopia(source: Source) -> ItemsAndFolds:
    """Read EMOPIA: clips of piano music with the quadrant of valence and arousal that they express.

    Source: Hung et al. 2021, "EMOPIA: A Multi-Modal Pop Piano Dataset For Emotion Recognition and
    Emotion-based Music Generation", ISMIR. A quadrant gives signs and no sizes. The set holds MIDI; the user
    renders it to sound files beside the .mid files. Clips of one song are in one fold. Raises UserError for
    a folder in another layout.
    """
    folder = source.folder / "midis"
    midis = sorted(path.name for path in folder.glob("*.mid"))
    if not midis:
        raise UserError(f"{folder} has no .mid files; --from takes {_EMOPIA_LAYOUT}")
    items = [_emopia_item(name, source) for name in track_reading(midis, "emopia")]
    return items, assign_folds([item.creator_id for item in items])


def _emopia_item(name: str, source: Source) -> Item:
    where = f"{source.folder / 'midis'}"
    named = re.fullmatch(r"(Q[1-4])_(.{11})_(\d+)\.mid", name)
    if named is None:
        raise UserError(
            f"{where}: {name} must be named quadrant_song_number.mid, such as Q1_0vLPYiPN7qY_0.mid"
        )
    quadrant, song = named[1], named[2]
    path, sha256 = source.medium(rendered(where, PurePosixPath("midis") / name, source.folder), where)
    valence_sign, arousal_sign = _QUADRANTS[quadrant]
    return Item(
        id=f"emopia-{PurePosixPath(name).stem}",
        audio=path,
        pairing="none",
        task="emotion",
        audible=True,
        modality="audio",
        valence_sign=valence_sign,
        arousal_sign=arousal_sign,
        construct="expressed",
        n_raters=1,  # one of the four annotators judged each song
        split="train",
        work_id=f"emopia-{PurePosixPath(name).stem}",
        creator_id=f"emopia:{song}",  # a video on YouTube: one player, one song
        source="emopia",
        license="CC-BY-NC-SA-4.0",
        sha256=sha256,
    )
