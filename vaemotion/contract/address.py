"""Addresses of devices: a URL or a GStreamer pipeline, of which nothing is told that may be secret.

A password stands before ``@``, in the path, in the query or in a property of a pipeline, and it may hold the
signs that separate these parts. So only what is known to be harmless is told: of a URL the scheme, host and
port, of a pipeline its first element, of any other device its name.
"""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from urllib.parse import unquote

from vaemotion.contract.plain_text import plain

HIDDEN = "…"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w.-]+)(:\d{1,5})?")
_PIPELINE = re.compile(r"\s*gst:\s*(\w+(?=\s|$))?")
# What shows that a text which is neither URL nor pipeline holds a user's password: "user:password@", a
# query, or a name for a secret with a value.
_SECRET_NAME = r"(pass|pw|auth|token|key|secret|sign)[\w-]*="
_CREDENTIALS = re.compile(rf":.*@|\?.*=|&.*=|user[\w-]*=|{_SECRET_NAME}", re.I | re.S)
_PASSWORD = re.compile(rf"://[^@]*?:[^@]+@|{_SECRET_NAME}[^\s&_!\"']", re.I)
_SEPARATORS = re.compile(r"[\s/?#&=:@;,!\"']+")


class Address:
    """A device's address. Its text is what anybody may read; ``reveal`` is for those who open the device."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the whole address, with its secrets."""
        return self._text

    def __str__(self) -> str:
        return plain(without_secrets(self._text))

    def __repr__(self) -> str:
        return repr(str(self))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Address) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)

    def hide_in(self, message: str) -> str:
        """Return a library's message about the device without the address's secrets."""
        return message_without_secrets(message, self._text)

    def holds_password(self) -> bool:
        """Return True where a user's password, or a named secret with its value, stands in the address."""
        return _PASSWORD.search(self._text) is not None


def without_secrets(text: str) -> str:
    """Return an address, or a text that ends with one, as anybody may read it.

    "rtsp://anna:secret@10.0.0.2:554/live?key=1" becomes "rtsp://10.0.0.2:554/…", and "gst:rtspsrc
    user-pw=secret ! decodebin" becomes "gst:rtspsrc …". A text without an address is returned as it is.
    """
    if pipeline := _PIPELINE.match(text):
        return f"gst:{pipeline[1]} {HIDDEN}" if pipeline[1] else f"gst:{HIDDEN}"
    if url := _URL.search(text):
        return _first_word(text[: url.start()]) + _public_url(text[url.start() :])
    return HIDDEN if _CREDENTIALS.search(text) else text


def message_without_secrets(message: str, address: str) -> str:
    """Return a library's message about ``address`` without the parts of any address that may be secret."""
    public = without_secrets(address)
    if public != address:
        message = message.replace(address, public)
    message = re.sub(rf"{_URL.pattern}\S*", lambda url: without_secrets(url[0]), message)
    if public == address:
        return message
    for part in sorted(_secret_parts(address), key=len, reverse=True):
        if part not in public:
            message = re.sub(rf"(?<!\w){re.escape(part)}(?!\w)", HIDDEN, message)
    return message


def _first_word(text: str) -> str:
    """Return the first word of the text before an address; what follows it may be secret."""
    words = text.split(maxsplit=1)
    return "" if not words else f"{words[0]} " if re.fullmatch(r"[\w.-]+", words[0]) else f"{HIDDEN} "


def _public_url(url: str) -> str:
    """Return the scheme, host and port of a URL; only the scheme where they cannot be told apart."""
    scheme, _, rest = url.partition("://")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    tail = rest[len(authority) :]
    host = authority.rpartition("@")[2]
    # The sign may stand in a password, and a space may end the address.
    if "@" in tail or not _HOST.fullmatch(host) or re.search(r"\s", authority):
        return f"{scheme}://{HIDDEN}"
    return f"{scheme}://{host}{'' if tail in ('', '/') else f'/{HIDDEN}'}"


def _secret_parts(address: str) -> set[str]:
    """Return the parts of an address that a message may repeat: the values of a pipeline, or of a URL."""
    pipeline = _PIPELINE.match(address)
    if pipeline is None:
        values = [address, address.partition("://")[2]]
    else:
        properties = address[pipeline.start(1) if pipeline[1] else pipeline.end() :]
        readings = [properties.split()]  # as written, and below without quotes
        with contextlib.suppress(ValueError):  # a quote is left open
            readings.append(shlex.split(properties))
        values = [value for words in readings for value in _values(words)]
    words = [word for value in values for word in (value, *_SEPARATORS.split(value))]
    pieces = [piece for word in words for piece in (word, *word.split("_"))]
    return {form for piece in pieces for form in (piece, unquote(piece)) if form}


def _values(words: list[str]) -> Iterator[str]:
    """Yield the values in a pipeline: of properties, and words that stand where no element does."""
    for before, word in pairwise(["!", *words]):
        value = word.partition("=")[2] if "=" in word else "" if "!" in (before, word) else word
        if not value.startswith("/dev/"):
            yield value
