"""``vaemotion gguf``: write the decoder of a local checkpoint, alone or in a vision-language model, as GGUF.

In: a folder as `transformers` writes it (`config.json`, safetensors, `tokenizer.json`), and a text. Out: one
`.gguf` file, a table of the type that each tensor received, and what the file loses on held-out windows of
the text. Nothing is downloaded or unpickled; one tensor is in memory at a time.
"""

import os
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from export.gguf.decoder_folder import read_decoder_folder
from export.gguf.quality import KlReport
from export.gguf.quantise import (
    QUANTIZED_TYPES,
    StoredTensor,
    channel_means,
    fallbacks,
    quantize_by_plan,
    quantize_gguf,
    stored_tensors,
)
from export.gguf.search import Search, SearchResult, search_types
from export.gguf.text import SHIPPED_TEXT, TextJudge, text_importance, text_windows
from export.gguf.write import GGUF_TYPES, write_decoder_gguf
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.files import whole_file
from vaemotion.contract.terminal import Terminal

_PROBE_WINDOWS = 2  # of those that weigh the rounding errors; they measure single groups of matrices


@dataclass(frozen=True)
class Material:
    """Material that weighs the rounding errors and judges the result, of all types but F32 and F16."""

    text: Path | None = SHIPPED_TEXT
    """None: nothing judges, and without `importance` nothing weighs."""
    importance: Path | None = None
    """A file of `calibration.importance`, in place of the text's."""


@dataclass(frozen=True)
class WrittenGguf:
    """Result of `write_folder_gguf`."""

    types: dict[str, str]
    """The type of each tensor."""
    quality: KlReport | None
    """The loss on held-out windows of the text; None for F32, F16, and without a text."""
    search: SearchResult | None
    remarks: tuple[str, ...] = ()
    """Remarks for the user of the file, one sentence each."""


def folder_to_gguf(
    folder: Path,
    out: Path,
    wanted: str | Search,
    material: Material,
    *,
    adapter: Path | None = None,
    license: str = "NOASSERTION",
) -> None:
    """Write the folder's decoder as `out`, and print the type of each tensor and the loss.

    Arguments as of `write_folder_gguf`. Raises UserError.
    """
    progress, console = Terminal(stderr=True), Terminal()
    try:
        with progress.status(Text(f"{folder.name} → GGUF")) as status:
            written = write_folder_gguf(
                folder,
                out,
                wanted,
                material,
                adapter=adapter,
                license=license,
                say=lambda what: status.update(Text(f"{folder.name} → GGUF: {what}")),
            )
        stored = stored_tensors(out)
    except ValueError as error:
        raise UserError(f"{folder}: {error}") from error
    _print_tensors(console, out, stored, wanted)
    if written.search is not None:
        _print_candidates(console, written.search)
    if written.quality is not None:
        console.print(f"held-out text: {written.quality.sentence()}")
    for remark in written.remarks:
        console.print(remark)


def write_folder_gguf(
    folder: Path,
    target: Path,
    wanted: str | Search,
    material: Material = Material(),
    *,
    adapter: Path | None = None,
    license: str = "NOASSERTION",
    say: Callable[[str], None] = lambda _: None,
) -> WrittenGguf:
    """Write the folder's decoder as GGUF.

    `wanted`: a type of `GGUF_TYPES` or `QUANTIZED_TYPES`, or a search for the type of each matrix. `adapter`:
    the folder of a LoRA adapter to merge. `license`: an SPDX id or expression. `say` is told what is being
    done. Raises UsageError for a folder that is something else, ValueError naming the tensor or token at
    fault; `target` is then left as it was.
    """
    _check(wanted, material)
    decoder = read_decoder_folder(folder, adapter)

    def write(path: Path, file_type: str) -> dict[str, str]:
        return write_decoder_gguf(
            path,
            decoder.tensors,
            decoder.shape,
            decoder.tokenizer,
            file_type=file_type,
            name=folder.resolve().name,
            license=license,
        )

    if wanted in ("F32", "F16") or (wanted in GGUF_TYPES and material.text is None):
        return WrittenGguf(write(target, str(wanted)), None, None, decoder.remarks)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as work:
        say("writing F32")
        unrounded = Path(work) / "f32.gguf"
        write(unrounded, "F32")
        written = _quantized(unrounded, target, wanted, material, decoder.shape.context_length, say)
        return replace(written, remarks=decoder.remarks)


def _check(wanted: str | Search, material: Material) -> None:
    """Raise UsageError for a type that there is not, or for material that it cannot use."""
    if isinstance(wanted, Search):
        if material.text is None:
            raise UsageError("--text none: a search needs a text that judges; leave the option out")
    elif wanted not in (types := (*GGUF_TYPES, *QUANTIZED_TYPES)):
        raise UsageError(f"--type: expected one of {', '.join(types)}, got {wanted!r}")
    elif material.importance is not None and wanted in GGUF_TYPES:
        raise UsageError(
            f"--importance: {wanted} takes none; it is for auto, {', '.join(QUANTIZED_TYPES[:-1])} and "
            f"{QUANTIZED_TYPES[-1]}"
        )
    elif wanted in ("F32", "F16") and material.text not in (None, SHIPPED_TEXT):
        raise UsageError(f"--text: {wanted} takes none, it is not rounded to anything that a text judges")


def _quantized(
    unrounded: Path,
    target: Path,
    wanted: str | Search,
    material: Material,
    context_tokens: int,
    say: Callable[[str], None],
) -> WrittenGguf:
    """Quantize an F32 file as wanted, and judge the result."""
    threads = len(os.sched_getaffinity(0))
    windows = None if material.text is None else text_windows(unrounded, material.text, context_tokens)
    importance = channel_means(material.importance)
    if importance is None and windows is not None and wanted != "Q8_0":
        say("importance of the channels")
        found = text_importance(unrounded, windows.calibration, threads=threads)
        importance = {name: channels.mean_squares for name, channels in found.items()}
    judge: TextJudge | None = None
    if windows is not None:
        say("the reference's distributions")
        judge = TextJudge(unrounded, windows.held_out, threads=threads)
    if not isinstance(wanted, Search):
        with whole_file(target) as made:  # gets its name when it is judged
            say(f"rounding to {wanted}")
            types = quantize_gguf(unrounded, made, wanted, importance, threads=threads)
            say("judging the result")
            quality = None if judge is None else judge(made)
        return WrittenGguf(types, quality, None)
    assert windows is not None
    assert judge is not None
    probe = TextJudge(unrounded, windows.calibration[:_PROBE_WINDOWS], threads=threads)
    result = search_types(wanted, unrounded, importance, judge, probe=probe, say=say, threads=threads)
    say("writing the chosen file")
    types = quantize_by_plan(unrounded, target, result.chosen.plan, importance, threads=threads)
    return WrittenGguf(types, result.chosen.quality, result)


# -- the tables -----------------------------------------------------------------------------------------


def _print_tensors(console: Terminal, path: Path, stored: list[StoredTensor], wanted: str | Search) -> None:
    table = _table("type", "tensors", "MB", "share")
    total = sum(tensor.bytes for tensor in stored)
    for kind in sorted({tensor.type for tensor in stored}):
        sizes = [tensor.bytes for tensor in stored if tensor.type == kind]
        table.add_row(kind, str(len(sizes)), f"{sum(sizes) / 1e6:.2f}", f"{sum(sizes) / total:.1%}")
    console.print(table)
    size = f"{path}: {path.stat().st_size / 1e6:.1f} MB"
    if isinstance(wanted, Search):
        console.print(f"{size}, types by search")
        return
    fell_back = fallbacks(stored, wanted)
    for line in _fallback_lines([tensor for tensor in stored if tensor.name in fell_back]):
        console.print(f"  {line}")
    result = f"{len(fell_back)} matrices fell back" if fell_back else "every matrix fits"
    console.print(f"{size}, {wanted}, {result}")


def _fallback_lines(fell_back: list[StoredTensor]) -> list[str]:
    """Say which matrices fell back to which type, and why; one line for layers with the same type."""
    alike: dict[tuple[str, str, int], list[str]] = {}
    for tensor in fell_back:
        role = re.sub(r"^blk\.\d+", "blk.*", tensor.name)
        alike.setdefault((role, tensor.type, tensor.shape[-1]), []).append(tensor.name)
    lines: list[str] = []
    for (role, kind, width), names in sorted(alike.items()):
        block = 32 if kind == "F16" else 256
        layers = " ".join(name.split(".")[1] for name in names)
        lines.append(
            f"{role}: {kind}, as llama.cpp's first choice has blocks of {block}, which do not divide rows "
            f"of {width}" + (f", layers {layers}" if role.startswith("blk") else "")
        )
    return lines


def _print_candidates(console: Terminal, result: SearchResult) -> None:
    """Print every file that was measured, and mark the Pareto front and the chosen one."""
    table = _table("file", "MB", "KL mean", "KL p99", "same top-1", "types", "")
    front = result.front()
    for candidate in result.candidates:
        quality = candidate.quality
        table.add_row(
            candidate.name,
            f"{candidate.bytes / 1e6:.1f}",
            f"{quality.mean_kl_nats:.4f}",
            f"{quality.p99_kl_nats:.3f}",
            f"{quality.same_top1_share:.1%}",
            _common_types(candidate.plan),
            "chosen" if candidate is result.chosen else "Pareto" if candidate in front else "",
        )
    console.print(table)


def _common_types(plan: Mapping[str, str]) -> str:
    """Count the types of a plan, the most frequent first: "Q5_0 180, Q8_0 1"."""
    kinds = list(plan.values())
    counted = sorted(set(kinds), key=lambda kind: (-kinds.count(kind), kind))
    return ", ".join(f"{kind} {kinds.count(kind)}" for kind in counted)


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, collapse_padding=True)
    for column in columns:
        table.add_column(column, justify="left" if column in ("type", "file", "types", "") else "right")
    return table
