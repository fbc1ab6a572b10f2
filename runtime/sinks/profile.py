"""``--profile``: a table of the time that each stage of a run took, on standard error at its end."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.table import Table

from runtime.messages import End, Message
from runtime.sinks.console import error_console
from vaemotion.contract.terminal import Terminal


class ProfileTable:
    """A table with one row per stage, then the queues' depths, dropped items and withheld narrations.

    Columns: count, p50, p95 and max in milliseconds, total and processor seconds, share of the run's wall
    time. Stages run on several threads, so that the shares may add up to more than one.
    """

    def __init__(self, console: Terminal | None = None) -> None:
        self._console = console or error_console()

    def publish(self, message: Message) -> None:
        if not isinstance(message, End):
            return
        title = f"{message.wall_s:.1f} s, {message.readings} readings"
        table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        # On a narrow terminal the stage's name is folded, and no number is cut off.
        table.add_column("stage", overflow="fold")
        for column in ("count", "p50 ms", "p95 ms", "max ms", "total s", "CPU s", "of run"):
            table.add_column(column, justify="right", no_wrap=True)
        for stage, took in message.stages_ms.items():
            share = took["total_s"] / message.wall_s if message.wall_s else 0.0
            numbers = (
                f"{took['count']:.0f}",
                *(f"{took[name]:.2f}" for name in ("p50", "p95", "max", "total_s", "cpu_s")),
                f"{share:.1%}",
            )
            table.add_row(stage, *numbers)
        self._console.print(table)
        for title, counts in (
            ("waited at most", message.deepest),
            ("dropped", message.dropped),
            ("narrations withheld", message.narrations_withheld),
        ):
            listed = ", ".join(f"{count} {what}" for what, count in counts.items()) or "nothing"
            self._console.print(f"{title}: {listed}")

    def close(self) -> None:
        """Nothing to close."""
