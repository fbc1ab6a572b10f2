"""Tables and media of published sets in miniature, as tests write them."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path


def write_table(
    path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]], delimiter: str = ","
) -> Path:
    """Write a table with a row of column names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows([columns, *rows])
    return path


def write_media(folder: Path, *names: str) -> None:
    """Write files that differ in their bytes; adapters hash media and do not decode them."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(f"media {name}".encode())
