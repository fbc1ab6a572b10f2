"""The grammar of ``--out``: text such as "osc:10.0.0.5:9000" becomes a sink target."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from runtime.endpoints import LOOPBACK, parse_endpoint
from vaemotion.contract.errors import UsageError

GRAMMAR = '"console", "osc:HOST:PORT", "web:PORT", "web:HOST:PORT", "jsonl:FILE" or "jsonl:-"'


@dataclass(frozen=True)
class SinkTarget:
    """The kind of a sink, and where it publishes. ``name``: the text that it was parsed from."""

    name: str
    kind: Literal["console", "jsonl", "osc", "web"]
    # Of "jsonl": a path, or "-" for standard output.
    file: str = ""
    # Of "osc" and "web".
    host: str = ""
    port: int = 0


def parse_sink(text: str) -> SinkTarget:
    """Return the target that ``text`` names. Raises UsageError with the grammar or the endpoint's form."""
    kind, colon, rest = text.partition(":")
    match kind:
        case "console" if not colon:
            return SinkTarget(text, kind)
        case "jsonl" if rest:
            # The shell leaves a tilde behind a colon as it is.
            return SinkTarget(text, kind, file=os.path.expanduser(rest))
        case "osc":
            host, port = parse_endpoint(rest, "--out osc:")
            return SinkTarget(text, kind, host=host, port=port)
        case "web":
            host, port = parse_endpoint(rest, "--out web:", LOOPBACK)
            return SinkTarget(text, kind, host=host, port=port)
        case _:
            raise UsageError(f"--out must be a list of {GRAMMAR}, got {text!r}")


def is_sink(text: str) -> bool:
    """Return True when ``text`` names a sink."""
    try:
        parse_sink(text)
    except UsageError:
        return False
    return True
