"""Names that are no text: they are printed and encoded everywhere."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.messages import Notice, printable, source_name, to_json


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
def test_every_text_can_be_shown_and_encoded(text: str) -> None:
    printable(text).encode()
    line = to_json(Notice(1.0, text)).encode()
    assert b"\n" not in line
    read = json.loads(line)["text"]
    assert len(read) == len(text)
    assert all(
        got == put or (got == "\ufffd" and "\ud800" <= put <= "\udfff")
        for got, put in zip(read, text, strict=True)
    )
