"""Plain text: texts from outside as every terminal, page and encoding can show them, without an effect.

A bundle's name, a file's name, a device's label, a library's message and what a language model said may hold
control characters, which command a terminal, or signs that turn the order of the letters around.
"""

from __future__ import annotations

import unicodedata
from typing import Any, cast

# Controls, halves of surrogate pairs, separators of lines and of paragraphs.
_COMMANDS = frozenset(("Cc", "Cs", "Zl", "Zp"))
# Embeddings, overrides and isolates of the bidirectional algorithm (UAX #9, table 4).
_TURNS = frozenset(("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"))


def plain(text: str, *, lines: bool = False) -> str:
    """Return a text in one line, with escapes such as \\x1b for each sign that is not one of text.

    A byte that was not UTF-8, which Python keeps as half of a surrogate pair, becomes its own escape: \\xe9.
    ``lines``: keep line breaks. What is plain already stays as it is.
    """
    if text.isprintable():  # holds none of these signs, nor others that may be kept
        return text
    return "".join(_escaped(sign) if _acts(sign) and not (lines and sign == "\n") else sign for sign in text)


def plain_values(value: Any) -> Any:
    """Return nested values of a JSON file with every text in them plain, names of fields included."""
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, list):
        return [plain_values(each) for each in cast(list[Any], value)]
    if isinstance(value, dict):
        return {plain(key): plain_values(each) for key, each in cast(dict[str, Any], value).items()}
    return value


def _acts(sign: str) -> bool:
    return unicodedata.category(sign) in _COMMANDS or unicodedata.bidirectional(sign) in _TURNS


def _escaped(sign: str) -> str:
    code = ord(sign)
    if 0xDC80 <= code <= 0xDCFF:  # PEP 383: a byte that was not UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
