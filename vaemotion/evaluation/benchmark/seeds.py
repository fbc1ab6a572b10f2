"""The spread of a benchmark's figures over models of several training seeds.

In: one summary per model. Out: mean and standard deviation of each figure. In a row of a summary, the texts
(source, task, path, ...) identify the row, integers are counts, and all other numbers are figures.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vaemotion.contract.errors import UsageError
from vaemotion.contract.files import write_whole
from vaemotion.contract.words import markdown_table

SECTIONS = {
    "choices": "Multiple choice (mean token log-probability, unlisted options)",
    "listed": "Multiple choice (listed and rotated options, greedy answer)",
    "affects": "Valence and arousal",
    "gains": "Both modalities against the better one (CCC)",
    "distributions": "Emotion distributions (Jensen-Shannon divergence, bits)",
    "series": "Valence and arousal over time",
}
# Texts that are a result and do not identify a row.
_FINDINGS = ("best_single",)


@dataclass(frozen=True)
class Spread:
    """One figure over models. ``values``: the figure by model's name, in the order of the models."""

    values: dict[str, float]

    @property
    def mean(self) -> float:
        """Mean over the models."""
        return float(np.mean(list(self.values.values())))

    @property
    def deviation(self) -> float:
        """Standard deviation over the models, with n − 1."""
        return float(np.std(list(self.values.values()), ddof=1))


@dataclass(frozen=True)
class SpreadRow:
    """One row of a table: the texts that identify it, its counts, and its figures by name."""

    section: str
    name: dict[str, str]
    counts: dict[str, int]
    figures: dict[str, Spread]


def model_names(models: Sequence[Path]) -> list[str]:
    """Name each model by its folder, with as many parent folders as make the names different.

    Raises UsageError for a model given twice.
    """
    parts = [model.resolve().parts[1:] for model in models]
    if len(set(parts)) < len(parts):
        raise UsageError(f"every --model must be different, got {', '.join(map(str, models))}")
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["-".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("different paths have different names")


def spread_over_models(summaries: Mapping[str, Mapping[str, Any]]) -> list[SpreadRow]:
    """Compute the spread of every figure of every table, over at least two models.

    Rows that a model lacks are left out; for example, an older bundle does not predict induced emotions.
    """
    rows: list[SpreadRow] = []
    for section in SECTIONS:
        found = [
            {
                tuple(name.items()): (counts, figures)
                for name, counts, figures in map(_split, summary[section])
            }
            for summary in summaries.values()
        ]
        for name, (counts, first) in found[0].items():
            if all(name in rows_of for rows_of in found):
                figures = {
                    figure: Spread({m: r[name][1][figure] for m, r in zip(summaries, found, strict=True)})
                    for figure in first
                }
                rows.append(SpreadRow(section, dict(name), counts, figures))
    return rows


def _split(row: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, int], dict[str, float]]:
    """Split a summary's row into name, counts and figures."""
    name = {key: v for key, v in row.items() if isinstance(v, str) and key not in _FINDINGS}
    counts = {key: v for key, v in row.items() if isinstance(v, int)}
    figures = {
        key: float(v["value"] if isinstance(v, dict) else v)
        for key, v in row.items()
        if isinstance(v, dict | float)
    }
    return name, counts, figures


def write_seeds(rows: Sequence[SpreadRow], out: Path) -> None:
    """Write ``seeds.json`` and ``seeds.md`` into ``out``."""
    values: dict[str, list[dict[str, Any]]] = {section: [] for section in SECTIONS}
    for row in rows:
        figures = {
            figure: {"mean": s.mean, "sd": s.deviation, "values": s.values}
            for figure, s in row.figures.items()
        }
        values[row.section].append({**row.name, **row.counts, **figures})
    text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)
    write_whole(out / "seeds.json", text + "\n")
    write_whole(out / "seeds.md", seeds_markdown(rows) + "\n")


def seeds_markdown(rows: Sequence[SpreadRow]) -> str:
    """Return one Markdown table per section: mean ± standard deviation over the models."""
    parts: list[str] = []
    for section, title in SECTIONS.items():
        if section_rows := [row for row in rows if row.section == section]:
            head = (*section_rows[0].name, *section_rows[0].counts, *section_rows[0].figures)
            body = [
                (
                    *row.name.values(),
                    *row.counts.values(),
                    *(f"{s.mean:.3f} ± {s.deviation:.3f}" for s in row.figures.values()),
                )
                for row in section_rows
            ]
            parts.append(f"## {title}\n\n" + markdown_table([name.replace("_", " ") for name in head], body))
    models = list(next(iter(rows[0].figures.values())).values) if rows else []
    parts.append(f"Mean ± standard deviation (n − 1) over {len(models)} models: {', '.join(models)}.")
    return "\n\n".join(parts)
