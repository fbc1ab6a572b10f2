"""The console sink: a live view on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Generator
from typing import TextIO, cast

from rich.console import Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from runtime.messages import DeviceStatus, End, Message, Narration, Notice, Reading, Start, Status
from runtime.sinks.stream import ReaderGone
from vaemotion.contract.prompts import AROUSAL_WORDS, VALENCE_WORDS, level_word
from vaemotion.contract.terminal import Terminal

LINES_PER_S = 1.0  # readings as plain lines, per second of the run's clock
PLANE_COLUMNS, PLANE_ROWS = 33, 13
_PATH_STYLE = {"audio": "dark_orange3", "visual": "dodger_blue2", "audio-visual": "green3"}


class ErrorStream(io.TextIOBase):
    """Standard error for a run that outlives it: a closed terminal or a full disk loses text, no more.

    Raises ReaderGone when a pipe's reader has gone.
    """

    encoding = "utf-8"

    def __init__(self, stream: TextIO) -> None:
        """Write to ``stream``."""
        self._stream = stream
        self.encoding = stream.encoding

    def write(self, text: str) -> int:
        with _enduring():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with _enduring():
            self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()


@contextlib.contextmanager
def _enduring() -> Generator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise ReaderGone("nobody reads standard error any more") from error
    except OSError:
        pass


def error_console() -> Terminal:
    """Return a terminal on standard error that survives it; see ``ErrorStream``."""
    return Terminal(file=cast(TextIO, ErrorStream(sys.stderr)))


def open_console() -> PlainConsole | LiveConsole:
    """Return the live view where standard error is a terminal, else the plain lines."""
    return LiveConsole(error_console()) if sys.stderr.isatty() else PlainConsole(error_console())


def words(reading: Reading) -> str:
    """Describe a reading in words, for example "stirring, pleasant"."""
    return f"{level_word(reading.arousal, AROUSAL_WORDS)}, {level_word(reading.valence, VALENCE_WORDS)}"


def device_words(status: Status) -> str:
    """Describe the devices and their skew, for example "camera live, microphone lost".

    Returns "" for a file.
    """
    devices: dict[str, DeviceStatus] = {"camera": status.camera, "microphone": status.microphone}
    parts = [f"{name} {device.state}" for name, device in devices.items() if device.state != "none"]
    parts += [] if status.skew_ms is None else [f"sound {status.skew_ms:+.0f} ms from the frame"]
    return ", ".join(parts)


def summary(end: End) -> str:
    """Summarize a run in one line."""
    encoded = ", ".join(f"{count} × {encoder}" for encoder, count in end.encodes.items())
    dropped = ", ".join(f"{count} {what}" for what, count in end.dropped.items() if count) or "nothing"
    withheld = ", ".join(f"{count} {reason}" for reason, count in end.narrations_withheld.items())
    narrations = f"{end.narrations} narrations" + (f" ({withheld}: not published)" if withheld else "")
    return (
        f"{end.reason}: {end.time_s:.1f} s of media in {end.wall_s:.1f} s, {end.readings} readings, "
        f"{narrations}; encoded {encoded}; dropped {dropped}"
    )


class PlainConsole:
    """One reading a second, every narration and every notice, as plain lines."""

    def __init__(self, console: Terminal) -> None:
        self._console = console
        self._next_s = 0.0

    def publish(self, message: Message) -> None:
        match message:
            case Start():
                self._line(f"{message.bundle} on {message.source}, pace {message.pace}")
                for engine in message.engines:
                    self._line(f"  {engine}")
            case Reading() if message.time_s >= self._next_s:
                self._next_s = message.time_s + 1 / LINES_PER_S
                self._line(
                    f"{message.time_s:8.1f} s  valence {message.valence:+.2f} ± {message.valence_sd:.2f}  "
                    f"arousal {message.arousal:+.2f} ± {message.arousal_sd:.2f}  {message.path}"
                )
            case Narration():
                self._line(f"{message.about_s:8.1f} s  “{message.text}”")
            case Notice():
                self._line(f"{message.time_s:8.1f} s  note: {message.text}")
            case End():
                self._line(summary(message))
            case _:
                pass

    def close(self) -> None:
        """Nothing to close."""

    def _line(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)


class LiveConsole:
    """A live view: valence/arousal plane with a trail, emotion bars, narrations, devices and latency."""

    def __init__(self, console: Terminal) -> None:
        self._console = console
        self._start: Start | None = None
        self._trail: list[Reading] = []
        self._narrations: list[Narration] = []
        self._notices: list[Notice] = []
        self._status: Status | None = None
        self._live = Live(self._view(), console=console, refresh_per_second=10, transient=False)
        self._live.start()

    def publish(self, message: Message) -> None:
        match message:
            case Start():
                self._start = message
            case Reading():
                self._trail = [*self._trail[-19:], message]
            case Narration():
                self._narrations = [*self._narrations[-2:], message]
            case Notice():
                self._notices = [*self._notices[-1:], message]
            case Status():
                self._status = message
            case End():
                self._live.update(self._view())
                self._live.stop()
                self._console.print(summary(message))
                return
        self._live.update(self._view())

    def close(self) -> None:
        self._live.stop()

    def _view(self) -> RenderableType:
        devices = device_words(self._status) if self._status else ""
        if not self._trail:
            return Text(f"waiting for the first reading … {devices}", style="dim")
        reading = self._trail[-1]
        top = Table.grid(padding=(0, 2))
        top.add_row(
            Panel(plane(self._trail), title="arousal ↑  valence →", border_style="dim"), self._bars(reading)
        )
        lines: list[RenderableType] = [self._headline(reading), top]
        lines += [Text(devices, style="dim")] if devices else []
        for narration in self._narrations:
            newest = narration is self._narrations[-1]
            line = Text(f"{narration.about_s:7.1f} s  ", style="dim")
            lines.append(line.append(narration.text, style="bold" if newest else "dim"))
        lines += [Text(f"{n.time_s:7.1f} s  note: {n.text}", style="yellow") for n in self._notices]
        return Group(*lines)

    def _headline(self, reading: Reading) -> Text:
        source = self._start.source if self._start else ""
        latency = "simulated clock" if reading.latency_ms is None else f"latency {reading.latency_ms:.0f} ms"
        text = Text(f"{source}  {reading.time_s:.1f} s  ", style="bold")
        text.append(reading.path, style=_PATH_STYLE.get(reading.path, ""))
        return text.append(f"  {words(reading)}  {latency}", style="dim")

    def _bars(self, reading: Reading) -> Table:
        table = Table.grid(padding=(0, 1))
        for name, value, sd in (
            ("valence", reading.valence, reading.valence_sd),
            ("arousal", reading.arousal, reading.arousal_sd),
        ):
            table.add_row(name, Text(f"{value:+.2f} ± {sd:.2f}", style="bold"))
        for name, share in sorted(reading.emotions.items(), key=lambda item: -item[1])[:7]:
            table.add_row(
                name, Text("█" * round(share * 24), style="cyan").append(f" {share:.0%}", style="dim")
            )
        return table


def plane(trail: list[Reading]) -> Text:
    """Draw the square [-1, 1]² of valence and arousal with the trail of readings, newest last."""
    grid = [[" "] * PLANE_COLUMNS for _ in range(PLANE_ROWS)]
    for row in range(PLANE_ROWS):
        grid[row][PLANE_COLUMNS // 2] = "│"
    grid[PLANE_ROWS // 2] = ["─"] * PLANE_COLUMNS
    grid[PLANE_ROWS // 2][PLANE_COLUMNS // 2] = "┼"
    for reading in trail:
        column = round((reading.valence + 1) / 2 * (PLANE_COLUMNS - 1))
        row = round((1 - reading.arousal) / 2 * (PLANE_ROWS - 1))
        grid[row][column] = "●" if reading is trail[-1] else "·"
    text = Text("\n".join("".join(row) for row in grid), style="dim")
    text.highlight_regex("●", "bold red")
    text.highlight_regex("·", "red")
    return text
