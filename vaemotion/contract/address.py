"""Public form of a camera's address: a URL or a GStreamer pipeline without anything that may be secret.

A password stands before ``@``, in the path, in the query or in a property of a pipeline, and it may hold the
signs that separate these parts. So only what is known to be harmless is told: of a URL the scheme, host and
port, of a pipeline its first element.
"""

from __future__ import annotations

import contextlib
import re
import shlex
from urllib.parse import unquote

HIDDEN = "…"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w.-]+)(:\d{1,5})?")
_PIPELINE = re.compile(r"\s*gst:\s*(\w+(?=\s|$))?")
# What shows that a text which is neither URL nor pipeline holds a user's password: "user:password@", a
# query, or a name for a secret with a value.
_CREDENTIALS = re.compile(r":.*@|\?.*=|&.*=|(user|pass|pw|auth|token|key|secret|sign)[\w-]*=", re.I | re.S)
_SEPARATORS = re.compile(r"[\s/?#&=:@;,!\"']+")


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
    """Return a library's message about ``address`` without the parts of the address that may be secret."""
    public = without_secrets(address)
    if public == address:
        return message
    message = message.replace(address, public)
    message = re.sub(rf"{_URL.pattern}\S*", lambda url: without_secrets(url[0]), message)
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
    if "@" in tail or not _HOST.fullmatch(host):  # the sign may stand in a password
        return f"{scheme}://{HIDDEN}"
    return f"{scheme}://{host}{'' if tail in ('', '/') else f'/{HIDDEN}'}"


def _secret_parts(address: str) -> set[str]:
    """Return the parts of an address that a message may repeat: the values of a pipeline, or of a URL."""
    pipeline = _PIPELINE.match(address)
    if pipeline is None:
        values = [address, address.partition("://")[2]]
    else:
        properties = address[pipeline.end() :]
        words = properties.split()  # as written, and below without quotes
        with contextlib.suppress(ValueError):  # a quote is left open
            words += shlex.split(properties)
        values = [word.partition("=")[2] for word in words if "=" in word]
        values = [value for value in values if not value.startswith("/dev/")]
    pieces = [piece for value in values for piece in (value, *_SEPARATORS.split(value))]
    return {form for piece in pieces for form in (piece, unquote(piece)) if form}
