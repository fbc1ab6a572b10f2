"""Printing of texts from anywhere: a terminal shows them, and never obeys them.

Tables, colors and progress bars are Rich's. What a text itself holds, markup and control characters, is
printed as signs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from vaemotion.contract.plain_text import plain


class Terminal(Console):
    """A console whose texts are plain, wherever they came from: in a table, a title, a progress bar."""

    def __init__(self, *, stderr: bool = False, file: TextIO | None = None, width: int | None = None) -> None:
        """Print to standard output, to standard error, or to ``file``. ``width``: None for the terminal's."""
        super().__init__(stderr=stderr, file=file, width=width, markup=False, emoji=False, highlight=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield a renderable's segments; only Rich's own control segments command the terminal."""
        for segment in super().render(renderable, options):
            shown = segment.text if segment.control else plain(segment.text, lines=True)
            # A link is written as a command, and markup in a progress bar's title may hold one.
            style = segment.style.update_link(None) if segment.style and segment.style.link else segment.style
            yield Segment(shown, style, segment.control)


def tell(text: str, *, stderr: bool = False) -> None:
    """Print a text that may hold names from outside, on standard output or standard error."""
    print(plain(text, lines=True), file=sys.stderr if stderr else sys.stdout)
