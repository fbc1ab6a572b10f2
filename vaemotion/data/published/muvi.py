"""Adapter of MuVi: music videos that were rated as music, as muted video, and as both, over time.

In: the set's folder. Out: its items and their folds, from which `build` makes a manifest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from vaemotion.contract.errors import UserError
from vaemotion.data.emotion_vocabularies import vocabularies
from vaemotion.data.manifest.item import Item
from vaemotion.data.published.adapter import ItemsAndFolds, Source, assign_folds, by_stem, track_reading
from vaemotion.data.published.course import NEVER_MOVED, VIDEO_SUFFIXES, Course, rounded, with_course
from vaemotion.data.published.label_table import read_table, refuse_other_columns

_LAYOUT = (
    "the folder of github.com/AMAAI-Lab/MuVi with av_data.csv, media_data.csv and video_urls.csv, and below "
    "it the excerpts that were rated, named after their videos (VIDEO.mp4 or YT_VIDEO.mp4)"
)
_COLUMNS = ("participant_id", "media_id", "media_modality", "seq", "arousal", "valence")
_ABOUT_ANSWERS = ("participant_id", "media_id", "media_modality", "seen_previously", "overlay_type")
# Condition of the experiment -> path.
PATHS_OF = {"music": "audio", "muted_video": "visual", "video": "audio-visual"}
RATE_HZ = 2.0
START_S = 0.5
VALUES = 118  # of about 120; the authors use as many


def muvi(source: Source) -> ItemsAndFolds:
    """Read MuVi: music videos rated as music alone, as muted video, and as video with its music.

    Source: Chua, Makris, Herremans, Roig & Agres 2022, "Predicting emotion from music videos",
    arXiv:2202.10453. Each video gives up to three items, one for each path, with its valence and arousal over
    time and the votes for the terms of GEMS. Ratings that stand still in valence or in arousal, or that end
    early, are left out and counted, as its authors do. Raises UserError for a folder in another layout.
    """
    videos = _videos(source)
    ratings = _ratings(source, videos)
    votes = _votes(source)
    media = by_stem(source.folder, VIDEO_SUFFIXES)
    items: list[Item] = []
    for video in track_reading(sorted(videos.values()), "muvi"):
        path, sha256 = source.medium(_file(video, media, source), f"{source.folder / 'video_urls.csv'}")
        key = video.partition("_")[0]
        items += [
            _item(video, condition, ratings[key, condition], votes.get((key, condition), {}), (path, sha256))
            for condition in PATHS_OF
            if (key, condition) in ratings
        ]
    return items, assign_folds([item.work_id for item in items])


def _videos(source: Source) -> dict[str, str]:
    """Return the videos' ids under the names of the other tables, which cut an id at its underscore."""
    rows = read_table(source.folder / "video_urls.csv", ("video_id",), _LAYOUT)
    videos: dict[str, str] = {}
    for row in rows:
        video = row.text("video_id")
        if videos.setdefault(video.partition("_")[0], video) != video:
            raise UserError(
                f"{row.where}: {video} is cut to the same name as {videos[video.partition('_')[0]]}"
            )
    return videos


def _ratings(
    source: Source, videos: Mapping[str, str]
) -> dict[tuple[str, str], list[npt.NDArray[np.float64]]]:
    """Return the usable ratings, each (118, 2) with valence and arousal, of a video in a condition."""
    rows = read_table(source.folder / "av_data.csv", _COLUMNS, _LAYOUT)
    values: dict[tuple[str, str, str], list[tuple[int, float, float]]] = defaultdict(list)
    for row in rows:
        key = row.one_of("media_modality", tuple(PATHS_OF))
        if (video := row.text("media_id")) not in videos:
            raise UserError(f"{row.where}: media_id {video!r} is not in video_urls.csv")
        point = row.count("seq"), row.number("valence", -1, 1), row.number("arousal", -1, 1)
        values[video, key, row.text("participant_id")].append(point)
    ratings: dict[tuple[str, str], list[npt.NDArray[np.float64]]] = defaultdict(list)
    for (video, condition, _), points in values.items():
        rating = np.array(sorted(points), np.float64)[:VALUES, 1:]
        if len(rating) < VALUES:
            source.left_out["ratings over time that end early"] += 1
        elif (np.ptp(rating, axis=0) == 0).any():
            source.left_out[NEVER_MOVED] += 1
        else:
            ratings[video, condition].append(rating)
    return ratings


def _votes(source: Source) -> dict[tuple[str, str], dict[str, int]]:
    """Count the votes for each term of a video in a condition; terms without one are there, with 0."""
    terms = vocabularies()["gems-27"].names
    rows = read_table(source.folder / "media_data.csv", (*_ABOUT_ANSWERS, *terms), _LAYOUT)
    refuse_other_columns(rows[0], (*_ABOUT_ANSWERS, *terms))
    votes: dict[tuple[str, str], dict[str, int]] = {}
    for row in rows:
        key = row.text("media_id"), row.one_of("media_modality", tuple(PATHS_OF))
        counts = votes.setdefault(key, dict.fromkeys(terms, 0))
        for term in terms:
            counts[term] += row.one_of(term, ("0", "1")) == "1"
    return votes


def _file(video: str, media: Mapping[str, Sequence[str]], source: Source) -> str:
    files = [name for stem in (video, f"YT_{video}") for name in media.get(stem, ())]
    if len(files) != 1:
        found = f"{len(files)} of them ({', '.join(files)})" if files else "none"
        raise UserError(f"{source.folder} must hold one video named {video}, with its sound; found {found}")
    return files[0]


def _item(
    video: str,
    condition: str,
    ratings: Sequence[npt.NDArray[np.float64]],
    votes: Mapping[str, int],
    medium: tuple[str, str],
) -> Item:
    total = sum(votes.values())
    valence, arousal = np.mean(ratings, axis=0).T
    item = Item(
        id=f"muvi-{video}-{condition}",
        video=medium[0],
        pairing="synchronised",
        task="emotion",
        audible={"audio": True, "visual": False}.get(PATHS_OF[condition]),
        modality=PATHS_OF[condition],
        construct="expressed",  # "the overall emotion conveyed"
        emotion_names=tuple(votes) if total else None,
        emotion_distribution=tuple(round(n / total, 6) for n in votes.values()) if total else None,
        split="train",
        work_id=f"muvi-{video}",
        creator_id=f"muvi:{video}",  # the set does not name the musicians
        source="muvi",
        license="NOASSERTION",  # the repository names no license; the videos belong to their publishers
        sha256=medium[1],
    )
    return with_course(item, Course(rounded(valence), rounded(arousal), RATE_HZ, START_S, len(ratings)))
