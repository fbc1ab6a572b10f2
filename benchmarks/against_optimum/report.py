"""The comparison's result as tables, for the terminal and for the document.

In: the values of ``result.json``. Out: rows of text, and Markdown for the section between the document's
markers.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from vaemotion.contract.errors import UserError
from vaemotion.contract.words import markdown_table

Values = dict[str, Any]
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
AST = {
    "optimum": "optimum",
    "transformers": "transformers.exporters, batch free",
    "transformers-defaults": "transformers.exporters, its defaults",
    "transformers-dynamic": "transformers.exporters, dynamic=True",
    "ours": "ours",
    "ours-mean": "ours, mean over rows",
    "ours-mean-transformers": "the same by --exporter transformers",
}
EAGER = "torch eager"
VISION = {
    "optimum-smolvlm": "optimum: SmolVLM, whole",
    "optimum-vision": "optimum: its vision tower as a checkpoint of its own",
    "transformers-smolvlm": "transformers.exporters: SmolVLM, whole, its defaults",
    "transformers-smolvlm-batch": "transformers.exporters: SmolVLM, whole, batch free",
    "transformers-vision": "transformers.exporters: its vision tower, batch free",
    "ours-vision": "ours: vision tower and connector",
    "ours-vision-transformers": "the same by --exporter transformers",
}
NOTHING = "–"


def rows(result: Values) -> list[list[str]]:
    """Tabulate AST-base: a head, then one row per figure, whose first cell names it with its unit."""
    exports, files = result["exports"], result["files"]

    def row(name: str, of: Callable[[str], str], eager: str = NOTHING) -> list[str]:
        return [name, *(of(key) for key in AST), eager]

    def exported(field: str) -> Callable[[str], str]:
        return lambda key: spread([run[field] for run in exports[key]["runs"]])

    def fact(field: str) -> Callable[[str], str]:
        return lambda key: str(files.get(key, {}).get(field, NOTHING))

    batches = [
        row(f"largest / mean difference to eager, batch {batch}", lambda key, b=batch: parity(files, key, b))
        for batch in result["batches"]
    ]
    return [
        ["", *AST.values(), EAGER],
        row("export", lambda key: "failed (1)" if exports[key]["error"] else "done"),
        row("export: load the checkpoint, write the file, s", exported("export_s")),
        row("the same with interpreter and imports, s", exported("process_s")),
        row("CPU time of it, interpreter and imports included, s", exported("cpu_s")),
        row("export: peak memory, MiB", exported("peak_memory_mib")),
        row("file, MB", lambda key: megabytes(files, key)),
        row("opset", fact("opset")),
        row("nodes in the file", fact("nodes")),
        row("nodes after ONNX Runtime's optimisation", fact("nodes_in_onnx_runtime")),
        row("input and output", lambda key: shapes(files, key)),
        row("batch is free", lambda key: free_batch(files, key, result["batches"])),
        row("onnx.checker, full", fact("check")),
        *batches,
        row(
            "latency, batch 1, ms", lambda k: latency(files, k, "wall_ms"), latency(files, "eager", "wall_ms")
        ),
        row("CPU time of it, ms", lambda k: latency(files, k, "cpu_ms"), latency(files, "eager", "cpu_ms")),
        row("latency / optimum's", lambda k: ratio(files, k, "wall_ms"), ratio(files, "eager", "wall_ms")),
        row("CPU time / optimum's", lambda k: ratio(files, k, "cpu_ms"), ratio(files, "eager", "cpu_ms")),
    ]


def vision_rows(result: Values) -> list[list[str]]:
    """Tabulate the exports of a small SmolVLM with random weights."""
    lines = [["SmolVLM, small", "export", "largest difference to eager by batch"]]
    for key, title in VISION.items():
        error = result["exports"][key]["error"]
        gaps = result["files"].get(key, {}).get("parity", {})
        found = ", ".join(
            f"{batch}: {'refused (2)' if 'error' in gap else format(gap['max_abs'], '.1e')}"
            for batch, gap in gaps.items()
        )
        lines.append([title, "failed (1)" if error else "done", found or NOTHING])
    return lines


def spread(values: Sequence[float]) -> str:
    """Format values as median (smallest–largest), or as one figure if all are equal."""
    if not values:
        return NOTHING
    digits = 2 if max(values) < 10 else 1 if max(values) < 100 else 0
    low, middle, high = (f"{v:.{digits}f}" for v in (min(values), statistics.median(values), max(values)))
    return middle if low == high else f"{middle} ({low}–{high})"


def parity(files: Values, key: str, batch: int) -> str:
    """Format a file's largest and mean difference from eager at a batch size."""
    gap = files.get(key, {}).get("parity", {}).get(str(batch))
    if gap is None:
        return NOTHING
    return "refused (2)" if "error" in gap else f"{gap['max_abs']:.1e} / {gap['mean_abs']:.1e}"


def refusals(files: Values) -> Iterator[tuple[str, str]]:
    """Yield each file that ONNX Runtime did not load, or not run at a batch size, with its error."""
    for key, title in {**AST, **VISION}.items():
        found = files.get(key, {})
        if "error" in found:
            yield title, found["error"]
        for batch, gap in found.get("parity", {}).items():
            if "error" in gap:
                yield f"{title}, batch {batch}", gap["error"]


def shapes(files: Values, key: str) -> str:
    """Format a file's inputs and outputs with their shapes."""
    found = files.get(key, {}).get("shapes", {})
    return " → ".join(f"{name} ({', '.join(map(str, sizes))})" for name, sizes in found.items()) or NOTHING


def free_batch(files: Values, key: str, batches: Sequence[int]) -> str:
    """State whether the batch dimension is symbolic in every shape, and every batch size ran."""
    found = files.get(key, {})
    if "shapes" not in found:
        return NOTHING
    named = all(sizes and isinstance(sizes[0], str) for sizes in found["shapes"].values())
    ran = all("max_abs" in found.get("parity", {}).get(str(batch), {}) for batch in batches)
    return "yes" if named and ran else "no" if not named else "named, but refused"


def megabytes(files: Values, key: str) -> str:
    """Format a file's size in MB."""
    return f"{files[key]['bytes'] / 1e6:.1f}" if "bytes" in files.get(key, {}) else NOTHING


def latency(files: Values, key: str, clock: str) -> str:
    """Format a file's times by wall or CPU clock, in ms."""
    return spread(files.get(key, {}).get("latency", {}).get(clock, {}).get("all", []))


def ratio(files: Values, key: str, clock: str) -> str:
    """Format the ratios to optimum's times in the same repetitions."""
    mine, theirs = (
        files.get(k, {}).get("latency", {}).get(clock, {}).get("all", []) for k in (key, "optimum")
    )
    return spread([a / b for a, b in zip(mine, theirs, strict=False)])


def markdown(result: Values) -> str:
    """Return the generated section of the document."""
    machine, floor = result["machine"], result["float32_against_float64"]
    versions = {
        name: ", ".join(f"{package} {number}" for package, number in found.items())
        for name, found in result["versions"].items()
    }
    before, after = (f"{machine[when]:.1f}" for when in ("load_before", "load_after"))
    paragraphs = [
        f"Made by `{result['command']}`: {machine['cpu']}, {machine['cores']} cores, load {before} before "
        f"and {after} after; {result['threads']} thread for each tool; {result['rounds']} exports of the "
        "columns optimum, transformers.exporters with a free batch, and ours (one of the others) and "
        f"{result['repetitions']} timed repetitions, interleaved. "
        "Median (smallest–largest); a ratio is taken within each repetition.",
        _table(rows(result)),
        f"For scale: eager torch in float32 differs from itself in float64 by {floor['max_abs']:.1e} at most "
        f"({floor['mean_abs']:.1e} on average, batch 1).",
        _table(vision_rows(result)),
    ]
    if failures := [(key, e["error"]) for key, e in result["exports"].items() if e["error"]]:
        paragraphs.append("(1) What the tool said:")
        paragraphs += [f"- {({**AST, **VISION})[key]}: `` {error} ``" for key, error in failures]
    if refused := list(refusals(result["files"])):
        paragraphs.append("(2) What ONNX Runtime said:")
        paragraphs += [f"- {title}: `` {error} ``" for title, error in refused]
    paragraphs += [f"Versions, {name}: {found}." for name, found in versions.items()]
    return "\n\n".join(paragraphs)


def _table(lines: list[list[str]]) -> str:
    """Return a Markdown table; the first line is its head."""
    return markdown_table(lines[0], lines[1:])


def replace_measured(document: str, section: str) -> str:
    """Replace the section between the document's markers and keep everything else.

    Raises UserError if the markers are missing or stand more than once.
    """
    pattern = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
    if len(pattern.findall(document)) != 1:
        raise UserError(
            f"the document needs one line '{BEGIN}' and after it one line '{END}'; add them around the "
            "section"
        )
    return pattern.sub(lambda _: f"{BEGIN}\n\n{section}\n\n{END}", document)
