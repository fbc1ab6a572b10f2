"""The contents of procedural art. Outside of ``vaemotion.data`` nothing may know them: material is open."""

from __future__ import annotations

CONTENT_CLASSES: tuple[str, ...] = (
    "baby cry",
    "chainsaw",
    "clock tick",
    "dog bark",
    "fire crackling",
    "helicopter",
    "rain",
    "rooster",
    "sea waves",
    "sneeze",
    "bell",
    "drum",
    "piano",
    "strings",
    "abstract shape",
)
