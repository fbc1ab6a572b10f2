"""Plain text: no sign of it commands a terminal or turns letters around, and every language stays."""

from __future__ import annotations

import os
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaemotion.contract.plain_text import plain, plain_values

TEXTS = st.text(st.characters(codec=None), max_size=30)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", r"\x1b[2J"),  # clears a screen
        ("\x1b]52;c;ZXZpbA==\x07", r"\x1b]52;c;ZXZpbA==\x07"),  # writes the clipboard
        ("\x9b31m", r"\x9b31m"),  # CSI as one sign
        ("a\rb\nc", r"a\x0db\x0ac"),
        ("gpj\u202egpj.exe", r"gpj\u202egpj.exe"),  # turns around what follows
        ("\u2066x\u2069", r"\u2066x\u2069"),
        ("a\u2028b", r"a\u2028b"),
        (os.fsdecode(b"caf\xe9"), r"caf\xe9"),
        ("\ud83d", r"\ud83d"),
        ("Grüße, 洞窟 🗻 नमस्ते می\u200cخواهم 👩\u200d🎨", "Grüße, 洞窟 🗻 नमस्ते می\u200cخواهم 👩\u200d🎨"),
        (r"C:\x1b", r"C:\x1b"),
    ],
)
def test_signs_that_act_become_escapes(text: str, shown: str) -> None:
    assert plain(text) == shown


@given(TEXTS)
def test_a_plain_text_holds_no_control_and_is_plain_already(text: str) -> None:
    shown = plain(text)
    shown.encode()
    assert not [sign for sign in shown if unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp")]
    assert not set(map(unicodedata.bidirectional, shown)) & {"LRE", "RLE", "LRO", "RLO", "LRI", "RLI", "FSI"}
    assert plain(shown) == shown
    assert plain(text, lines=True).split("\n") == [plain(line) for line in text.split("\n")]


def test_texts_within_lists_and_objects_are_plain_too() -> None:
    assert plain_values({"a\x1b": ["\x07", 1, None, {"b": "ok"}]}) == {
        r"a\x1b": [r"\x07", 1, None, {"b": "ok"}]
    }
