"""Writer of WebDataset shards from a data manifest.

In: a manifest and its media. Out: ``SPLIT-000000.tar``, … with one sample a clip: its medium, cut to the
item's part without encoding it again, and the item as ``.json``. The clips of a split lie in a shuffled
order, the same in every run, so that a stream of them is mixed. A shard is whole under its name or absent; a
run that was killed goes on behind the last whole shard, and equal inputs give equal bytes.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from rich.progress import track

from vaemotion.contract.bundle import sha256_of
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.files import whole_file, write_whole
from vaemotion.contract.media.files import MediaError
from vaemotion.contract.terminal import Terminal, tell
from vaemotion.contract.words import counted
from vaemotion.data.clips.held_out import report_left_out
from vaemotion.data.clips.of_manifest import ManifestClips
from vaemotion.data.clips.source import DamagedClip
from vaemotion.data.manifest.cutter import Cut, cut
from vaemotion.data.manifest.item import SPLITS, Item, PlacedItem
from vaemotion.data.manifest.loader import load_clip
from vaemotion.data.manifest.rules import check_media
from vaemotion.data.manifest.writer import clip_bytes

FORMAT = 1
PLAN = "shards.json"


@dataclass(frozen=True)
class ShardOptions:
    """A shard is closed at the first of two limits. ``re_encode``: H.264 and FLAC (16 kHz) in Matroska."""

    samples_per_shard: int = 1000
    max_mb: float = 1000.0
    re_encode: bool = False

    def __post_init__(self) -> None:
        if self.samples_per_shard < 1 or not self.max_mb > 0:
            raise UsageError(
                f"--samples-per-shard ({self.samples_per_shard}) must be at least 1 and --max-mb "
                f"({self.max_mb:g}) above 0"
            )


def write_shards(manifest: Path, out: Path, media_root: Path, options: ShardOptions) -> None:
    """Write the audio-visual clips of a manifest as shards below ``out``, and print a line for each split.

    Of several items about one part of a medium the first counts. A clip that cannot be read is left out and
    named. Raises ManifestError for an invalid manifest, UserError for a folder that holds other shards and
    for more damaged clips than a few.
    """
    if not manifest.is_file():
        raise UserError(f"{manifest} is not a file; give the path of a manifest (JSON lines)")
    _same_plan(out / PLAN, {"format": FORMAT, "manifest": sha256_of(manifest), **asdict(options)})
    written = 0
    for split in SPLITS:
        try:
            clips = ManifestClips(manifest, media_root, split, 0.0)
        except UsageError:  # no clips of this split
            continue
        written += _write_split(clips, out, split, media_root, options)
    if not written:
        raise UserError(f"{manifest} has no clip with pictures and sound; nothing was written")


def _same_plan(file: Path, plan: dict[str, Any]) -> None:
    """Store what the shards are made of. Raises UserError where others were begun in the folder."""
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        write_whole(file, json.dumps(plan, indent=1) + "\n")
        return
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}; choose another folder with --to") from None
    if stored != plan:
        raise UserError(
            f"{file.parent} holds shards of another manifest or with other options; choose another folder "
            "with --to or delete it"
        )


def _write_split(clips: ManifestClips, out: Path, split: str, media_root: Path, options: ShardOptions) -> int:
    """Write the shards of a split that are missing; return the number of all its shards."""
    order = np.random.default_rng(0).permutation(len(clips))
    number, first = _written(out, split)
    damaged: list[DamagedClip] = []
    positions: Iterator[int] = iter(
        track(
            range(first, len(order)),
            f"{split} clips",
            console=Terminal(stderr=True),
            total=len(order) - first,
        )
    )
    samples = _samples(clips, order, positions, split, media_root, options.re_encode, damaged)
    begun = next(samples, None)
    while begun is not None:
        with whole_file(_shard(out, split, number)) as temporary:
            begun = _write_shard(temporary, begun, samples, options)
        number += 1
    kept = counted(len(order) - len(damaged), "clip")
    tell(f"{out}: {counted(number, 'shard')} of split {split} with {kept}")
    report_left_out(damaged, len(order), clips.name)
    return number


def _shard(out: Path, split: str, number: int) -> Path:
    return out / f"{split}-{number:06d}.tar"


def _written(out: Path, split: str) -> tuple[int, int]:
    """Return the number of whole shards that are there, and the position of the clip behind them."""
    number = 0
    while _shard(out, split, number).exists():
        number += 1
    if not number:
        return 0, 0
    with tarfile.open(_shard(out, split, number - 1), "r:") as tar:
        newest = tar.getnames()[-1]
    return number, int(newest.partition(".")[0].rpartition("-")[2]) + 1


def _write_shard(
    file: Path, begun: dict[str, Any], samples: Iterator[dict[str, Any]], options: ShardOptions
) -> dict[str, Any] | None:
    """Write a shard that begins with a sample; return the sample that did not fit, None at the end."""
    from webdataset.writer import TarWriter

    held, size = 0, 0
    following: dict[str, Any] | None = begun
    with file.open("wb") as opened:
        writer = TarWriter(opened, user="", group="", mode=0o644, mtime=0, encoder=False)
        while following is not None:
            size += sum(len(data) for name, data in following.items() if not name.startswith("__"))
            if held and (held >= options.samples_per_shard or size > options.max_mb * 1e6):
                break
            writer.write(following)
            held += 1
            following = next(samples, None)
        writer.close()
    return following


def _samples(
    clips: ManifestClips,
    order: Any,
    positions: Iterator[int],
    split: str,
    media_root: Path,
    re_encode: bool,
    damaged: list[DamagedClip],
) -> Iterator[dict[str, Any]]:
    """Yield the samples at the positions, as webdataset writes them, and collect the damaged ones."""
    for position in positions:
        item = clips.item(int(order[position]))
        key = f"{split}-{position:08d}"
        try:
            if wrong := check_media([PlacedItem(clips.manifest, 0, item)], media_root, check_hashes=False):
                raise MediaError(wrong[0].message)
            media, item = _re_encoded(item, media_root) if re_encode else _cut(item, media_root)
        except (MediaError, OSError) as error:
            damaged.append(DamagedClip(item.id, str(error)))
            continue
        names = {field: f"{key}.{suffix}" for field, (suffix, _) in media.items()}
        digest = hashlib.sha256(b"".join(media[f][1] for f in ("video", "image", "audio") if f in media))
        item = replace(
            item, **{"video": None, "image": None, "audio": None, **names}, sha256=digest.hexdigest()
        )
        members = {suffix: data for suffix, data in media.values()}
        yield {"__key__": key, **members, "json": item.to_json().encode()}


Media = dict[str, tuple[str, bytes]]  # field of an item → suffix and bytes of its medium


def _cut(item: Item, media_root: Path) -> tuple[Media, Item]:
    """Return an item's media, a film cut to its part, and the item with the part's times in the cut."""
    if item.video is not None and item.audio is None and item.t1 is not None:
        found: Cut | None = cut(media_root / item.video, item.t0 or 0.0, item.t1)
        if found is not None:
            return {"video": (found.suffix, found.data)}, replace(item, t0=found.t0_s, t1=found.t1_s)
    media: Media = {}
    for field in ("video", "image", "audio"):
        name = getattr(item, field)
        if name is not None:
            suffix = PurePosixPath(name).suffix.removeprefix(".").lower() or "bin"
            taken = any(suffix == other for other, _ in media.values())
            media[field] = f"{field}.{suffix}" if taken else suffix, (media_root / name).read_bytes()
    return media, item


def _re_encoded(item: Item, media_root: Path) -> tuple[Media, Item]:
    """Return an item's part, decoded and encoded again as one film, and the item from 0 s on."""
    clip = load_clip(item, media_root)
    data = clip_bytes(clip)
    return {"video": ("mkv", data)}, replace(item, t0=0.0, t1=clip.duration_s)
