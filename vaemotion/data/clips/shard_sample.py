"""A sample of a WebDataset shard as an `Item`: our own, or one of a published shard.

In: the sample's key, the names of its members behind the key, and the bytes of its small text members. Out:
the item, whose media are named by these members. Published shards (img2dataset, video2dataset, FineVideo)
hold a caption in ``.json`` or ``.txt`` or a class in ``.cls``, and none of a license per clip, a content hash
and a split: their items have split train, the license that their JSON names or "LicenseRef-unknown", and a
hash of the sample's name in place of the content's.
"""

from __future__ import annotations

import hashlib
import json
import mimetypes
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vaemotion.data.manifest.item import Item
from vaemotion.data.manifest.manifest import item_of_line

UNKNOWN_LICENSE = "LicenseRef-unknown"
TEXTS = ("json", "txt", "cls")  # members that describe a sample
# Fields of published JSON members that say what a clip shows, the best first.
_NAMING = ("label", "caption", "title", "youtube_title")
# As webdataset splits a member's name: the key ends at the first dot of the last part.
_NAME = re.compile(r"((?:.*/|)[^./][^./]*)[.]([^/]*)", re.S)


@dataclass(frozen=True)
class Sample:
    """A sample's item, and the members (the part of their names behind the key) that hold its media."""

    item: Item
    video: str | None = None
    image: str | None = None
    audio: str | None = None


def key_and_suffix(name: str) -> tuple[str, str] | None:
    """Split a member's name as webdataset does; None for a name that belongs to no sample."""
    found = _NAME.fullmatch(name)
    if found is None or re.match(r"__[^/]*__($|/)", name):
        return None
    return found[1], found[2].lower()


def sample_of(key: str, suffixes: Sequence[str], texts: Mapping[str, bytes], source: str) -> Sample:
    """Read what a sample says about itself.

    ``texts``: the members of ``TEXTS`` that it has. ``source``: name of its data set. Raises ValueError for a
    damaged JSON member, and for a sample without pictures and sound.
    """
    values = _json(texts["json"]) if "json" in texts else {}
    if "work_id" in values and "pairing" in values:
        sample = _own(key, suffixes, values)
    else:
        sample = _published(key, suffixes, values, texts, source)
    if sample.video is None and (sample.image is None or sample.audio is None):
        raise ValueError("it has no medium with pictures and sound")
    return sample


def _json(data: bytes) -> dict[str, Any]:
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise ValueError(f"its JSON cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"its JSON holds no object but a {type(values).__name__}")
    return values


def _own(key: str, suffixes: Sequence[str], values: dict[str, Any]) -> Sample:
    item = item_of_line(json.dumps(values, ensure_ascii=False))
    if not isinstance(item, Item):
        raise ValueError(f"its JSON is no valid item: {item[0]}")
    members: dict[str, str] = {}
    for field in ("video", "image", "audio"):
        name = getattr(item, field)
        if name is None:
            continue
        parts = key_and_suffix(name)
        if parts is None or parts[1] not in suffixes:
            raise ValueError(f"its member {name} is missing")
        members[field] = parts[1]
    return Sample(item, **members)


def _published(
    key: str, suffixes: Sequence[str], values: dict[str, Any], texts: Mapping[str, bytes], source: str
) -> Sample:
    by_kind: dict[str, str] = {}
    for suffix in suffixes:
        by_kind.setdefault(_kind(suffix), suffix)
    video = by_kind.get("video", by_kind.get("unknown"))
    image = None if video is not None else by_kind.get("image")
    audio = by_kind.get("audio")
    named = _utf8(key)
    license_name = values.get("license")
    item = Item(
        id=named,
        video=video and f"{named}.{video}",
        image=image and f"{named}.{image}",
        audio=audio and f"{named}.{audio}",
        pairing="none" if video is None else "synchronised",
        task="clip",
        label=_label(values, texts),
        modality="audio-visual",
        split="train",
        work_id=named,
        creator_id=named,
        source=source,
        license=license_name if isinstance(license_name, str) and license_name.strip() else UNKNOWN_LICENSE,
        sha256=hashlib.sha256(f"{source}/{named}".encode()).hexdigest(),
    )
    return Sample(item, video, image, audio)


def _kind(suffix: str) -> str:
    """Return video, audio or image, "unknown" for a name that says nothing, "none" for other data."""
    extension = suffix.rpartition(".")[2]
    kind = mimetypes.guess_type(f"a.{extension}")[0]
    if kind is None:
        return "none" if extension in TEXTS else "unknown"
    return kind.partition("/")[0] if kind.startswith(("video/", "audio/", "image/")) else "none"


def _label(values: dict[str, Any], texts: Mapping[str, bytes]) -> str | None:
    """Return the first text that names what the clip shows. The number of a class names nothing."""
    told = [values.get(name) for name in _NAMING]
    told += [texts[name].decode(errors="replace") for name in ("txt", "cls") if name in texts]
    for text in told:
        if isinstance(text, str) and (label := " ".join(_utf8(text).split())) and not label.isdigit():
            return label
    return None


def _utf8(text: str) -> str:
    """Return a text that can be encoded: bytes of a name that are not UTF-8 become escapes."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
