"""Names that are no text: they are printed and encoded everywhere."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.messages import End, Narration, Notice, Start, source_name, to_json
from vaemotion.contract.plain_text import plain


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"latin\xe9.mp4", "latin\\xe9.mp4"),
        ("höhle 洞窟 🗻.mp4".encode(), "höhle 洞窟 🗻.mp4"),
        (b"two\nlines\x1b[2J\x7f.mp4", "two\\x0alines\\x1b[2J\\x7f.mp4"),
        (b"/films/\xff/\xfe.mp4", "\\xfe.mp4"),
    ],
)
def test_a_name_shows_what_is_no_text_as_escapes(name: bytes, shown: str) -> None:
    assert source_name(os.fsdecode(name)) == shown
    assert source_name(shown) == shown


@given(st.text(st.characters(codec=None), max_size=20))
def test_every_text_of_a_message_is_a_line_that_can_be_shown_and_encoded(text: str) -> None:
    messages = (
        Start(text, "0", text, "real", (text,), {}, text),
        Narration(1.0, 1.0, text),
        Notice(1.0, text),
        End(1.0, text, "2026-01-01", 1.0, 0, 0, {}),
    )
    for message in messages:
        line = to_json(message)
        line.encode()
        for told in _texts(json.loads(line)):
            assert told == plain(told)


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for each in value if isinstance(value, list) else value.values() if isinstance(value, dict) else ():
        yield from _texts(each)


def test_a_notice_of_several_lines_is_one_line() -> None:
    assert Notice(1.0, "2 problems:\n  a\n  b").text == "2 problems: a b"
