"""Losses that a run survives, of a writer or of an engine: counted, and told once a minute."""

from __future__ import annotations

from collections.abc import Callable

from vaemotion.contract.plain_text import plain

TOLD_EVERY_S = 60.0  # between two sentences about the same losses
LONGEST_REASON = 300  # characters of an error that are told


def reason_of(error: BaseException, hide: Callable[[str], str], *, with_type: bool = True) -> str:
    """Return an error's first line for a technician, behind its type; the type alone where it says nothing.

    ``hide``: takes the secrets out of a text.
    """
    kind = type(error).__name__
    try:
        told = plain(hide(str(error).partition("\n")[0]))[:LONGEST_REASON]
    except BaseException:  # an error that cannot say what it is
        told = ""
    if not told:
        return kind
    return f"{kind}: {told}" if with_type else told


class Losses:
    """A count of what was lost. One thread may add to it while another one tells it."""

    def __init__(self, what: str) -> None:
        """Count from 0. ``what``: what is lost, such as "messages to jsonl:timeline"."""
        self._what = what
        self.count = 0
        self._reason = ""
        self._is_over = True
        self._told = 0, True  # count and ``_is_over``, when a sentence was last made
        self._next_s = 0.0

    def add(self, reason: str, count: int = 1) -> None:
        """Count losses. ``reason``: a clause for a technician."""
        self._reason, self._is_over = reason, False
        self.count += count

    def end(self) -> None:
        """Note that nothing is lost any more."""
        self._is_over = True

    def sentence(self, now_s: float) -> str | None:
        """Return what is due to be told at ``now_s``, or None.

        The first losses are told at once. While they go on they are told every ``TOLD_EVERY_S``, and so is
        their end.
        """
        news = self.count, self._is_over
        if news == self._told or now_s < self._next_s:
            return None
        self._told, self._next_s = news, now_s + TOLD_EVERY_S
        return (
            f"{self._what} lost so far: {self.count} ({self._reason}){'; none now' if self._is_over else ''}"
        )
