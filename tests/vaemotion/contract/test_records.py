"""Strict records: exactly a dataclass's fields."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from vaemotion.contract.records import strict_record


@dataclass(frozen=True)
class Point:
    x: int
    y: int = 0


def test_all_fields_make_the_record() -> None:
    assert strict_record(Point, {"x": 1, "y": 2}, "a point") == Point(1, 2)


def test_unknown_and_missing_fields_are_named_even_where_there_is_a_default() -> None:
    with pytest.raises(ValueError, match="a point has unknown fields: a, z"):
        strict_record(Point, {"x": 1, "y": 2, "z": 3, "a": 4}, "a point")
    with pytest.raises(ValueError, match="a point lacks y"):
        strict_record(Point, {"x": 1}, "a point")
