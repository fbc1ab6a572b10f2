"""Texts for people: durations, counts, times, tables."""

from __future__ import annotations

from vaemotion.contract.words import counted, duration_words, markdown_table, time_words


def test_times_are_written_as_on_a_clock() -> None:
    assert [time_words(2.44, 30), time_words(65.9, 200), time_words(3725, 7200)] == [
        "2.4 s",
        "1:05",
        "1:02:05",
    ]


def test_durations_are_written_in_the_two_largest_units() -> None:
    words = [duration_words(s) for s in (3, 59.96, 125, 3599.7, 7380)]
    assert words == ["3.0 s", "1 min 00 s", "2 min 05 s", "1 h 00 min", "2 h 03 min"]


def test_a_count_agrees_with_its_noun() -> None:
    assert [counted(n, "reading") for n in (0, 1, 70_561)] == ["0 readings", "1 reading", "70,561 readings"]


def test_a_table_has_a_rule_aligned_columns_and_no_broken_cells() -> None:
    table = markdown_table(["name", "count"], [("a|b", 1), ("", None)], right=[1])
    assert table.split("\n") == [
        "| name | count |",
        "|---|---:|",
        "| a\\|b | 1 |",
        "|  | None |",
    ]


def test_a_table_without_rows_is_its_head() -> None:
    assert markdown_table(("a",), ()) == "| a |\n|---|"
