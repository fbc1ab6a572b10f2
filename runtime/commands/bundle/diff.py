"""``vaemotion bundle diff``: list the differences of two bundles, and those that change results.

In: two bundles' manifests; the files themselves are not read. Out: ``Difference`` records, a sentence, a
table.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from vaemotion.contract.bundle import Component, Manifest, read_manifest
from vaemotion.contract.terminal import Terminal

LONGEST_LIST = 8  # longer ones, such as hashes of calibration samples, are compared as sets and counted
ABSENT = "–"
_OWN_KINDS = ("calibration", "tools")  # parts of the lineage that are kinds of their own
# A difference of these kinds changes results; the other kinds are provenance and measurements.
COUNTS = ("weights", "precision", "front end", "prompt and tokens")


@dataclass(frozen=True)
class Difference:
    """One difference of two bundles, with both values as text, ABSENT where a bundle has none."""

    kind: str
    what: str
    a: str
    b: str

    @property
    def counts(self) -> bool:
        """True where the difference changes results."""
        return self.kind in COUNTS


def diff(a: Path, b: Path, as_json: bool) -> int:
    """Print the differences of two bundles. Returns 1 where one of them changes results, else 0.

    Raises BundleError where a folder is not a bundle.
    """
    found = differences(read_manifest(a), read_manifest(b))
    equal = not any(difference.counts for difference in found)
    if as_json:
        entries = [{**asdict(difference), "counts": difference.counts} for difference in found]
        report = {"schema": 1, "a": str(a), "b": str(b), "equal": equal, "differences": entries}
        print(json.dumps({**report, "sentence": sentence(found)}, indent=1))
        return 0 if equal else 1
    console = Terminal()
    console.print(sentence(found), style="green" if equal else "yellow")
    if found:
        console.print(f"A: {a}\nB: {b}", style="dim")
        console.print(diff_table(found))
    return 0 if equal else 1


def sentence(found: Sequence[Difference]) -> str:
    """Return a summary of the differences, those that change results first."""
    serious = _kinds(found, counts=True)
    others = _kinds(found, counts=False)
    if not found:
        return "no difference: the manifests are equal"
    if not serious:
        return f"equal in what counts for results ({', '.join(COUNTS)}); they differ in {others}"
    return f"they differ in what counts for results: {serious}" + (f"; also in {others}" if others else "")


def _kinds(found: Sequence[Difference], counts: bool) -> str:
    """Return the kinds that differ, each with its entries, or their number beyond three."""
    parts: list[str] = []
    for kind in dict.fromkeys(d.kind for d in found if d.counts == counts):
        names = [d.what for d in found if d.kind == kind]
        many = f"{len(names)} entries" if len(names) > 3 else ", ".join(names)
        parts.append(f"{kind} ({many})")
    return ", ".join(parts)


def differences(a: Manifest, b: Manifest) -> list[Difference]:
    """Return the differences of two manifests, those that change results first."""
    found = [*_weights(a, b), *_precisions(a, b)]
    ours, theirs = _nested_kinds(a), _nested_kinds(b)
    for kind in ours:
        found += _nested(kind, ours[kind], theirs[kind])
    in_one = set(_files(a)) ^ set(_files(b))  # the license is part of their weights' text
    return [d for d in found if not (d.kind == "licenses" and d.what in in_one)]


def _weights(a: Manifest, b: Manifest) -> Iterator[Difference]:
    """Yield files that were added, removed or changed.

    Golden vectors are a kind of their own: they are expected outputs and change no result.
    """
    ours, theirs = _files(a), _files(b)
    for key in dict.fromkeys([*ours, *theirs]):
        left, right = ours.get(key), theirs.get(key)
        if left is None or right is None or left.sha256 != right.sha256:
            kind = "golden vectors" if key == "golden" else "weights"
            alone = left is None or right is None
            yield Difference(kind, key, _file_text(left, alone), _file_text(right, alone))


def _files(manifest: Manifest) -> dict[str, Component]:
    return {_key(component): component for component in manifest.components}


def _key(component: Component) -> str:
    return component.role if component.precision == "none" else f"{component.role}/{component.precision}"


def _file_text(component: Component | None, with_license: bool) -> str:
    if component is None:
        return ABSENT
    license_text = f", {component.licence}" if with_license else ""
    return f"{component.sha256[:12]}, {component.bytes / 1e6:.2f} MB{license_text}"


def _precisions(a: Manifest, b: Manifest) -> Iterator[Difference]:
    """Yield roles with other precisions, or another order: a run opens a language model's first precision."""
    ours, theirs = _by_role(a), _by_role(b)
    for role in dict.fromkeys([*ours, *theirs]):
        left, right = ours.get(role, ABSENT), theirs.get(role, ABSENT)
        if left != right:
            yield Difference("precision", role, left, right)


def _by_role(manifest: Manifest) -> dict[str, str]:
    roles = dict.fromkeys(component.role for component in manifest.components)
    return {role: ", ".join(c.precision for c in manifest.components if c.role == role) for role in roles}


def _nested_kinds(manifest: Manifest) -> dict[str, dict[str, Any]]:
    """Return the kinds that are compared as nested dictionaries."""
    lineage = manifest.lineage
    names = (
        "token_width",
        "tokens_per_frame",
        "audio_tokens",
        "stop_token_ids",
        "context_tokens",
        "emotions",
    )
    return {
        "front end": manifest.front_end.to_dict(),
        "prompt and tokens": {**asdict(manifest.prompt), **{name: getattr(manifest, name) for name in names}},
        "calibration": lineage.get("calibration", {}),
        "accuracy": _accuracy(manifest),
        "licenses": {_key(component): component.licence for component in manifest.components},
        "tools": lineage.get("tools", {}),
        "tolerances": manifest.tolerances,
        "provenance": {"name": manifest.name} | {k: v for k, v in lineage.items() if k not in _OWN_KINDS},
    }


def _accuracy(manifest: Manifest) -> dict[str, str]:
    """Return the delta and the bound of each component's metrics as text."""
    measured: dict[str, dict[str, Any]] = manifest.verification.get("components", {})
    return {
        f"{key} {metric}": f"{value['delta']:+.4g} (bound {value.get('bound', ABSENT)})"
        for key, metrics in measured.items()
        for metric, value in metrics.items()
    }


def _nested(kind: str, a: Any, b: Any) -> Iterator[Difference]:
    """Yield the leaves that differ, each under its path."""
    ours, theirs = dict(_leaves(a)), dict(_leaves(b))
    for path in dict.fromkeys([*ours, *theirs]):
        left, right = ours.get(path, ABSENT), theirs.get(path, ABSENT)
        if left != right:
            yield Difference(kind, path, *_pair_text(left, right))


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (path, value) of all leaves of nested values; a list of plain values is one leaf."""
    if isinstance(value, Mapping):
        entries = [(str(k), v) for k, v in cast(Mapping[Any, Any], value).items()]
    elif isinstance(value, list | tuple) and not _is_plain(cast(Sequence[Any], value)):
        entries = [(str(i), v) for i, v in enumerate(cast(Sequence[Any], value))]
    else:
        yield path, list(cast(Sequence[Any], value)) if isinstance(value, list | tuple) else value
        return
    for name, inner in entries:
        yield from _leaves(inner, f"{path}.{name}" if path else name)


def _is_plain(values: Sequence[Any]) -> bool:
    return not any(isinstance(value, Mapping | list | tuple) for value in values)


def _pair_text(a: Any, b: Any) -> tuple[str, str]:
    """Return two values as text; of long lists the number of entries, and of those that the other lacks."""
    ours, theirs = _entries(a), _entries(b)
    if ours is None or theirs is None or max(len(ours), len(theirs)) <= LONGEST_LIST:
        return _text(a), _text(b)
    alone, their_own = set(ours) - set(theirs), set(theirs) - set(ours)
    return (
        f"{len(ours)} entries, {len(alone)} not in the other",
        f"{len(theirs)} entries, {len(their_own)} not in the other",
    )


def _entries(value: Any) -> list[str] | None:
    return list(map(str, cast(list[Any], value))) if isinstance(value, list) else None


def _text(value: Any) -> str:
    entries = _entries(value)
    if entries is not None and len(entries) > LONGEST_LIST:
        return f"{len(entries)} entries"
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def diff_table(found: Sequence[Difference]) -> Table:
    """Return a table with a row per difference, by kind; kinds that change results are bold."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for head in ("", "", "A", "B"):
        table.add_column(head, overflow="fold")
    shown = ""
    for difference in found:
        first, shown = difference.kind != shown, difference.kind
        if first:
            table.add_section()
        kind = Text(shown if first else "", "bold" if difference.counts else "dim")
        table.add_row(kind, *(Text(text) for text in (difference.what, difference.a, difference.b)))
    return table
