"""Report of the INT8 search and judgement for a terminal: the losses, and the blocks taken back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from vaemotion.contract.terminal import Terminal


def print_report(verification: Mapping[str, Any], console: Terminal) -> None:
    """Print tables of the manifest's ``verification``; nothing for a bundle without INT8."""
    budget = verification.get("budget")
    if not budget:
        return
    for scheme, losses in budget.get("losses", {}).items():
        title = f"{scheme} against FP32, {budget['windows']} windows of {budget['material']}"
        console.print(_losses_table(title, losses))
    console.print(_engines_table(budget["engines"]))
    for name, quality in verification["language_models"].items():
        chosen = ", chosen" if name == budget["language_model"] else ""
        console.print(
            f"  language model {name}{chosen}: KL {quality['mean_kl_nats']:.2g} nats a token, same likeliest "
            f"token {quality['same_top1_share']:.1%}",
        )
    for text in verification["not_judged"]:
        console.print(f"  not judged: {text}", style="yellow")
    if "int8_share" in budget:
        share = budget["int8_share"]["int8"]
        console.print(f"  {share:.0%} of the matrix weights are INT8; {budget['speed']}")
    else:
        console.print(
            "  no budget was judged (--max-drop none): the end-to-end loss of INT8 is not known",
            style="yellow",
        )


def _losses_table(title: str, losses: Mapping[str, Mapping[str, float]]) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left")
    for column in ("metric", "loss", "at most (95 %)", "allowed", ""):
        table.add_column(column)
    for metric, loss in losses.items():
        mark = Text("ok", "green") if loss["bound"] <= loss["allowed"] else Text("over", "red")
        table.add_row(metric, *(f"{loss[name]:.4f}" for name in ("delta", "bound", "allowed")), mark)
    return table


def _engines_table(engines: list[dict[str, Any]]) -> Table:
    table = Table(title="blocks", box=SIMPLE_HEAD, title_justify="left", collapse_padding=True)
    for column in ("engine", "ranges", "INT8", "worst block, damage alone", "taken back"):
        table.add_column(column, overflow="fold")
    for engine in engines:
        worst = max(engine["blocks"], key=lambda block: block["damage"] or 0.0)
        damage = (
            "not measured" if worst["damage"] is None else f"{_short(worst['name'])} {worst['damage']:.0e}"
        )
        share = f"{engine['int8_weight_bytes'] / engine['matmul_weight_bytes']:.0%}"
        name = f"{engine['role'].removesuffix('_encoder')} {engine['scheme']}"
        table.add_row(
            name,
            engine["method"],
            share,
            damage,
            _taken_back(engine["blocks"]),
        )
    return table


def _taken_back(blocks: list[dict[str, Any]]) -> str:
    """List the blocks that cost accuracy, and count those that were not faster."""
    reverted = [block for block in blocks if block["state"] != "INT8"]
    slow = sum(block["state"].endswith("not faster") for block in reverted)
    costly = [_short(block["name"]) for block in reverted if not block["state"].endswith("not faster")]
    return "; ".join([*costly, *([f"{slow} of {len(blocks)} not faster"] if slow else [])]) or "–"


def _short(block: str) -> str:
    return (
        block.replace("encoder.", "")
        .replace("vision_model.", "")
        .replace("transformer.", "")
        .replace("adapter.", "")
    )
