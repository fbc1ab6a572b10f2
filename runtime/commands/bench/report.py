"""The report of ``vaemotion bench``: records, a table for the terminal, sentences, Markdown.

In: figures that ``runtime.commands.bench.bench`` measured. Out: text.
"""

from __future__ import annotations

from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from vaemotion.contract.words import markdown_table

WHOLE = "in all"  # the role of the row for all files that a run opens
NONE = "–"


@dataclass(frozen=True)
class Delta:
    """The change of one metric against full precision, as the export measured it."""

    metric: str
    delta: float
    bound: float | None  # as in the manifest, such as the worse end of a 95 % interval


@dataclass(frozen=True)
class BenchRow:
    """The figures of one file, or of all files that a run opens.

    Times are those of one inference, of one generated token (language model), or of one reading (all files).
    Figures are None where ``failure`` gives the reason.
    """

    role: str
    precision: str
    size_bytes: int
    taken: bool  # a run on this machine opens this file
    foreign: bool = False  # made for another machine's engine; measured on the CPU all the same
    runs_on: str = ""
    load_s: float | None = None
    peak_bytes: int | None = None  # resident memory of the process
    added_bytes: int | None = None  # of the peak, the part since before the file was opened
    p50_ms: float | None = None
    p95_ms: float | None = None
    runs: int = 0
    round_p50_ms: tuple[float, ...] = ()  # each round's median
    prompt_tokens_per_s: float | None = None
    accuracy: tuple[Delta, ...] = ()
    failure: str = ""

    @property
    def key(self) -> str:
        return f"{self.role}/{self.precision}"


@dataclass(frozen=True)
class Bench:
    """All figures of one bundle on one machine."""

    bundle: str
    machine: str
    cpus: int
    threads: int
    load_average: tuple[float, float]  # of the machine over one minute, before and after
    rows: tuple[BenchRow, ...]
    whole: BenchRow  # all files that a run opens, in one process
    asked_hz: float  # readings per second that the bundle's windows ask for

    @property
    def readings_per_s(self) -> float:
        assert self.whole.p50_ms
        return 1000 / self.whole.p50_ms


def reference_of(measured: Bench, role: str) -> BenchRow:
    """Return the row that a role's other precisions are compared with: full precision, or the first one."""
    rows = [row for row in measured.rows if row.role == role]
    return next((row for row in rows if row.precision in ("fp32", "F16")), rows[0])


def worst_delta(row: BenchRow) -> Delta | None:
    """Return the metric with the largest change: of the scores, which share a scale, else of all."""
    scores = [delta for delta in row.accuracy if not delta.metric.endswith(("_nats", "_ratio"))]
    return max(scores or row.accuracy, key=lambda delta: abs(delta.delta), default=None)


def comparison(measured: Bench, row: BenchRow) -> str:
    """Return "slower" or "not clearly faster" where a row does not beat its role's reference, else "".

    "slower": in every round; "not clearly faster": in some rounds. "" also for the reference itself, for a
    precision that is foreign here, and for one that could not be opened.
    """
    reference = reference_of(measured, row.role)
    if row is reference or row.foreign or row.failure or reference.failure:
        return ""
    slower = [ours > theirs for ours, theirs in zip(row.round_p50_ms, reference.round_p50_ms, strict=True)]
    if not any(slower):
        return ""
    return "slower" if all(slower) else "not clearly faster"


def sentences(measured: Bench) -> list[str]:
    """Return the findings as sentences: smaller precisions without gain first."""
    without_gain = [line for row in measured.rows if (line := _without_gain(measured, row))]
    failures = [f"{row.key} cannot be opened here: {row.failure}" for row in measured.rows if row.failure]
    foreign = [row.key for row in measured.rows if row.foreign and not row.failure]
    lines = [*without_gain, *failures]
    if foreign:
        lines.append(f"for TensorRT or CUDA; measured here on the CPU: {', '.join(foreign)}")
    whole = measured.whole
    lines.append(
        f"{measured.readings_per_s:.0f} readings/s possible (target {measured.asked_hz:.0f}) "
        f"while the language model is idle; {_megabytes(whole.peak_bytes)} MB of memory, "
        f"{_megabytes(whole.added_bytes)} MB of it for the bundle"
    )
    if not any(row.accuracy for row in measured.rows):
        lines.append("no deltas: the manifest holds no accuracy per component")
    before, after = measured.load_average
    if before > 0.5 * measured.cpus:
        lines.append(
            f"this machine was busy (load {before:.1f} before, {after:.1f} after, {measured.cpus} CPUs): "
            "times are too long; compare them within this table only"
        )
    return lines


def _without_gain(measured: Bench, row: BenchRow) -> str:
    """Return a sentence where a smaller precision is not faster than the reference, else ""."""
    verdict, reference = comparison(measured, row), reference_of(measured, row.role)
    times = f"{_number(row.p50_ms)} ms against {_number(reference.p50_ms)} ms"
    how_sure = "" if verdict == "slower" else ", and the rounds disagree"
    sentence = (
        f"{row.precision} of {row.role} is {verdict} than {reference.precision} here: {times}{how_sure}"
    )
    return sentence if verdict else ""


HEADS = ("component", "MB", "load s", "peak MB", "p50 ms", "p95 ms", "largest delta")


def _cells(row: BenchRow, metrics: bool = True) -> list[str]:
    """Return a row's cells. ``metrics``: with the metric's name, too long for a narrow terminal."""
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
    """Return the legend of the table's marks and times."""
    star = "; * made for a GPU, timed on the CPU" if any(row.foreign for row in measured.rows) else ""
    return f"● opened by a run{star}; ms per inference, per generated token, or (in all) per reading"


def bench_table(measured: Bench, width: int = 80) -> Table:
    """Return the figures as a table for a terminal of ``width`` columns."""
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
    """Return bench.md: table, sentences, language models, accuracy by metric, and the method."""
    rows = [*measured.rows, measured.whole]
    cells = [["●" if row.taken else "", *_cells(row)] for row in rows]
    lines = [f"# {measured.bundle} on {measured.machine}", ""]
    lines.append(markdown_table(["", *HEADS], cells, right=range(2, 7)))
    lines += ["", f"{legend(measured)}.", "", *(f"- {line}" for line in sentences(measured))]
    language_models = [row for row in rows if row.prompt_tokens_per_s is not None and row.role != WHOLE]
    if language_models:
        heads = ["precision", "prompt tokens/s", "ms/token"]
        cells = [[r.precision, f"{r.prompt_tokens_per_s:.0f}", _number(r.p50_ms)] for r in language_models]
        lines += ["", "## Language models", "", markdown_table(heads, cells, right=[1, 2])]
    lines += _accuracy_lines(measured)
    before, after = measured.load_average
    lines += ["", "## How", ""]
    lines.append(
        "Each file in processes of its own, batch 1, on the bundle's golden inputs, "
        f"{measured.threads} threads; up to {max(row.runs for row in rows)} runs, "
        "in rounds that measure every file once. "
        "Load: from a file in the system's page cache until it can run. "
        "Memory: the process's peak, with Python and its libraries. "
        "In all: the files that a run opens, in one process; one reading runs every engine once. "
        f"Load average {before:.1f} before and {after:.1f} after, {measured.cpus} CPUs."
    )
    engines = dict.fromkeys(row.runs_on for row in measured.rows if row.runs_on)
    lines += ["", f"Measured on: {'; '.join(engines)}. A run uses: {measured.whole.runs_on}."]
    return "\n".join(lines) + "\n"


def _accuracy_lines(measured: Bench) -> list[str]:
    """Return the section with every metric's delta and bound; empty where nothing was measured."""
    deltas = [(row, delta) for row in measured.rows for delta in row.accuracy]
    if not deltas:
        return []
    rows: list[list[str]] = []
    for row, delta in deltas:
        bound = NONE if delta.bound is None else f"{delta.bound:+.4f}"
        cells = [row.key, delta.metric, f"{delta.delta:+.4f}", bound]
        rows.append([cell.replace("-0", "−0") for cell in cells])
    table = markdown_table(["component", "metric", "delta", "bound"], rows, right=[2, 3])
    return ["", "## Accuracy against full precision, as measured at export", "", table]
