"""What ``vaemotion bench`` found, and how it reads: records, a table for the terminal, sentences, Markdown.

In: figures that ``runtime.bench`` measured. Out: text. Nothing is measured here.
"""

from __future__ import annotations

from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

WHOLE = "in all"
NONE = "–"


@dataclass(frozen=True)
class Delta:
    """One metric of the export's verification against full precision, and the bound that stands beside it there."""

    metric: str
    delta: float
    bound: float | None


@dataclass(frozen=True)
class Row:
    """``taken``: a run opens this file. ``foreign``: no engine of this machine is made for this precision, and the CPU ran it all
    the same. Times are of one inference, of one generated token, or (in all) of one reading. ``added_bytes``: of the peak, what was
    not there before the file was opened. ``round_p50_ms``: each round's median. Figures are None where ``failure`` says why."""

    role: str
    precision: str
    size_bytes: int
    taken: bool
    foreign: bool
    runs_on: str
    load_s: float | None
    peak_bytes: int | None
    added_bytes: int | None
    p50_ms: float | None
    p95_ms: float | None
    runs: int
    round_p50_ms: tuple[float, ...]
    prompt_tokens_per_s: float | None
    accuracy: tuple[Delta, ...]
    failure: str = ""

    @property
    def key(self) -> str:
        return f"{self.role}/{self.precision}"


@dataclass(frozen=True)
class Bench:
    """``load_average``: of this machine over the last minute, before and after."""

    bundle: str
    machine: str
    cpus: int
    threads: int
    load_average: tuple[float, float]
    rows: tuple[Row, ...]
    whole: Row
    asked_hz: float

    @property
    def readings_per_s(self) -> float:
        assert self.whole.p50_ms
        return 1000 / self.whole.p50_ms


def reference_of(measured: Bench, role: str) -> Row:
    """The row that a role's other precisions are compared with: full precision, or the first one listed."""
    rows = [row for row in measured.rows if row.role == role]
    return next((row for row in rows if row.precision in ("fp32", "F16")), rows[0])


def worst_delta(row: Row) -> Delta | None:
    """The metric that moved most: of the scores, which share a scale, where there are any; else of nats and ratios."""
    scores = [delta for delta in row.accuracy if not delta.metric.endswith(("_nats", "_ratio"))]
    return max(scores or row.accuracy, key=lambda delta: abs(delta.delta), default=None)


def comparison(measured: Bench, row: Row) -> str:
    """ "slower" or "not clearly faster" than the role's reference, where every round, or not every round, says so; "" where every round
    says faster, or where there is nothing to compare: the reference itself, and what is foreign here."""
    reference = reference_of(measured, row.role)
    if row is reference or row.foreign or row.failure or reference.failure:
        return ""
    slower = [ours > theirs for ours, theirs in zip(row.round_p50_ms, reference.round_p50_ms, strict=True)]
    if not any(slower):
        return ""
    return "slower" if all(slower) else "not clearly faster"


def sentences(measured: Bench) -> list[str]:
    """What a reader should not have to find in the figures, admissions first."""
    admissions = [line for row in measured.rows if (line := _admission(measured, row))]
    failures = [f"{row.key} cannot be opened here: {row.failure}" for row in measured.rows if row.failure]
    foreign = [row.key for row in measured.rows if row.foreign and not row.failure]
    lines = [*admissions, *failures]
    if foreign:
        lines.append(f"for TensorRT or CUDA; measured here on the CPU: {', '.join(foreign)}")
    whole = measured.whole
    lines.append(
        f"{measured.readings_per_s:.0f} readings a second possible, {measured.asked_hz:.0f} asked for; language model "
        f"idle; {_megabytes(whole.peak_bytes)} MB of memory, {_megabytes(whole.added_bytes)} of them the bundle's"
    )
    if not any(row.accuracy for row in measured.rows):
        lines.append("the manifest holds no accuracy per component, so there is no delta to show")
    before, after = measured.load_average
    if before > 0.5 * measured.cpus:
        lines.append(
            f"this machine was busy (load {before:.1f} before, {after:.1f} after, {measured.cpus} CPUs): "
            "times are worse than they need be; compare within this table only"
        )
    return lines


def _admission(measured: Bench, row: Row) -> str:
    """A sentence where a smaller precision does not win, else ""."""
    verdict, reference = comparison(measured, row), reference_of(measured, row.role)
    times = f"{_number(row.p50_ms)} ms against {_number(reference.p50_ms)} ms"
    how_sure = "" if verdict == "slower" else ", and the rounds disagree"
    sentence = (
        f"{row.precision} of {row.role} is {verdict} than {reference.precision} here: {times}{how_sure}"
    )
    return sentence if verdict else ""


HEADS = ("component", "MB", "load s", "peak MB", "p50 ms", "p95 ms", "largest delta")


def _cells(row: Row, metrics: bool = True) -> list[str]:
    """A row of either table. ``metrics``: with the name of the metric that moved most, too long for a narrow terminal."""
    worst = worst_delta(row)
    delta = f"{worst.delta:+.4f}{f' {worst.metric}' if metrics else ''}" if worst else NONE
    return [
        f"{row.role} {row.precision}{'*' if row.foreign else ''}".strip(),
        f"{row.size_bytes / 1e6:.2f}",
        _number(row.load_s),
        _megabytes(row.peak_bytes),
        _number(row.p50_ms),
        _number(row.p95_ms),
        delta.replace("-", "−").replace("_", " "),
    ]


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


def _megabytes(value_bytes: int | None) -> str:
    return NONE if value_bytes is None else f"{value_bytes / 1e6:.0f}"


def legend(measured: Bench) -> str:
    """What marks mean."""
    star = "; * made for a GPU, timed on the CPU" if any(row.foreign for row in measured.rows) else ""
    return f"● what a run opens{star}; ms of one inference, one generated token, or (in all) one reading"


def bench_table(measured: Bench, width: int = 80) -> Table:
    """The figures, for a terminal of so many columns."""
    metrics = width >= 100
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        title=f"{measured.bundle} on {measured.machine}",
    )
    table.caption = legend(measured)
    table.title_justify = table.caption_justify = "left"
    table.add_column("", width=1)
    for head in HEADS:
        text = head in ("component", "largest delta")
        table.add_column(head, justify="left" if text else "right", no_wrap=head != "largest delta")
    for row in measured.rows:
        style = "" if row.taken else "dim"
        table.add_row("●" if row.taken else "", *(Text(cell) for cell in _cells(row, metrics)), style=style)
    table.add_section()
    table.add_row("", *(Text(cell) for cell in _cells(measured.whole)), style="bold")
    return table


def markdown(measured: Bench) -> str:
    """bench.md: table, sentences, speech of the language models, accuracy metric by metric, and how it was measured."""
    rows = [*measured.rows, measured.whole]
    lines = [f"# {measured.bundle} on {measured.machine}", "", _markdown_row(["", *HEADS])]
    lines.append(_markdown_row(["-", "-", *["-:"] * 5, "-"]))
    lines += [_markdown_row(["●" if row.taken else "", *_cells(row)]) for row in rows]
    lines += ["", f"{legend(measured)}.", "", *(f"- {line}" for line in sentences(measured))]
    speech = [row for row in rows if row.prompt_tokens_per_s is not None and row.role != WHOLE]
    if speech:
        lines += ["", "## Language models", "", _markdown_row(["precision", "prompt tokens/s", "ms a token"])]
        lines.append(_markdown_row(["-", "-:", "-:"]))
    for row in speech:
        lines.append(_markdown_row([row.precision, f"{row.prompt_tokens_per_s:.0f}", _number(row.p50_ms)]))
    lines += _accuracy_lines(measured)
    before, after = measured.load_average
    lines += ["", "## How", ""]
    lines.append(
        f"Each file in processes of its own, batch 1, on the bundle's golden inputs, {measured.threads} threads; up to "
        f"{max(row.runs for row in rows)} runs in rounds in which every file has its turn. Load: from a file that the system "
        "has cached to the first run. Memory: the process's peak, Python and its libraries included. In all: what a run opens, "
        "together in one process; one reading is every engine once. "
        f"Load average {before:.1f} before and {after:.1f} after, {measured.cpus} CPUs."
    )
    engines = dict.fromkeys(row.runs_on for row in measured.rows if row.runs_on)
    lines += ["", f"Measured on: {'; '.join(engines)}. A run uses: {measured.whole.runs_on}."]
    return "\n".join(lines) + "\n"


def _accuracy_lines(measured: Bench) -> list[str]:
    """Every metric's delta, and the bound beside it."""
    deltas = [(row, delta) for row in measured.rows for delta in row.accuracy]
    if not deltas:
        return []
    lines = ["", "## Accuracy against full precision, as measured at export", ""]
    lines += [_markdown_row(["component", "metric", "delta", "bound"]), _markdown_row(["-", "-", "-:", "-:"])]
    for row, delta in deltas:
        bound = NONE if delta.bound is None else f"{delta.bound:+.4f}"
        cells = [row.key, delta.metric, f"{delta.delta:+.4f}", bound]
        lines.append(_markdown_row([cell.replace("-0", "−0") for cell in cells]))
    return lines


def _markdown_row(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
