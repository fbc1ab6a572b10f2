"""A terminal is never commanded by a text: in a line, a table, a title, a panel or a live view."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.live import Live
from rich.panel import Panel
from rich.table import Table

from vaemotion.contract.terminal import Terminal, tell

HOSTILE = "\x1b]52;c;ZXZpbA==\x07\x1b[2J\x1b]0;owned\x07\x9b31m[red]x[/] :smile: \u202e"
# What Rich itself writes: colors, movement of the cursor, erased lines, a cursor that is hidden.
OF_RICH = re.compile(r"\x1b\[[0-9;]*[mKAGHJ]|\x1b\[\?25[hl]|\r")


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def written(screen: Screen) -> str:
    return OF_RICH.sub("", screen.getvalue())


@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_what_a_terminal_gets_beside_rich_s_own_commands_is_text(text: str) -> None:
    screen = Screen()
    Terminal(file=screen).print(text, style="bold")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", written(screen))


def test_no_part_of_a_view_obeys_a_hostile_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "200")
    screen = Screen()
    terminal = Terminal(file=screen)
    table = Table(HOSTILE, title=HOSTILE, caption=HOSTILE)
    table.add_row(HOSTILE)
    with Live(Panel(table, title=HOSTILE), console=terminal) as live:
        live.update(Panel(table, title=HOSTILE), refresh=True)
    terminal.print(HOSTILE)
    shown = written(screen)
    assert "\x1b" not in shown
    assert not re.search(r"[\x07\x9b\u202e]", shown)
    assert r"\x1b]52;c;ZXZpbA==" in shown
    assert "[red]x[/] :smile:" in shown  # no markup of it is obeyed


def test_a_line_that_is_told_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    tell(f"first\n{HOSTILE}", stderr=True)
    error = capsys.readouterr().err
    assert error.startswith("first\n\\x1b]52;")
    assert "\x1b" not in error
