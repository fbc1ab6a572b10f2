"""Strict conversion of stored values to dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar, cast

_Record = TypeVar("_Record")


def strict_record(kind: type[_Record], values: Mapping[str, Any], where: str) -> _Record:
    """Return a dataclass from values that have exactly its fields.

    An unknown or missing field is refused, because ignoring a constant would change results. Raises
    ValueError that names ``where`` and the fields.
    """
    names = {f.name for f in fields(cast(Any, kind))}
    if unknown := set(values) - names:
        raise ValueError(f"{where} has unknown fields: {', '.join(sorted(unknown))}")
    if missing := names - set(values):
        raise ValueError(f"{where} lacks {', '.join(sorted(missing))}")
    return kind(**values)
