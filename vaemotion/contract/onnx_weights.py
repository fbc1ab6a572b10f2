"""Weights of an ONNX file outside of it: one file beside it, for a graph that one message cannot hold.

In: an ONNX file. Out: the names of the files that it reads weights from, without the package `onnx`, which no
device has. Only the fields that lead to a tensor are read; weights are skipped.

Format: onnx.proto (``ModelProto``), and the wire format of protocol buffers.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

DATA_SUFFIX = ".data"
# The fields of each message that lead to a tensor, with the message behind them.
_FIELDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute"},
    "attribute": {
        5: "tensor",
        6: "graph",
        10: "tensor",
        11: "graph",
        22: "sparse tensor",
        23: "sparse tensor",
    },
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external data"},
    "external data": {},
}
_DEEPEST = 100  # as protocol buffers have it
_KEY, _VALUE = 1, 2  # fields of an entry of external data
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5  # wire types


def data_file(onnx: Path) -> Path:
    """Return the path at which a graph's weights lie, where they are outside."""
    return onnx.with_name(onnx.name + DATA_SUFFIX)


def graph_bytes(onnx: Path) -> int:
    """Return the bytes of a graph with its weights, inside and beside it."""
    return sum(file.stat().st_size for file in (onnx, data_file(onnx)) if file.is_file())


def external_files(onnx: Path) -> set[str]:
    """Return the names of the files that an ONNX file reads weights from, as it has them.

    Raises ValueError for a file that is no ONNX file.
    """
    with onnx.open("rb") as stream:
        try:
            content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise ValueError("it is empty") from error
        with content:
            return set(_locations(content, "model", 0, len(content)))


def _locations(content: mmap.mmap, message: str, start: int, end: int, depth: int = 0) -> Iterator[str]:
    if depth > _DEEPEST:
        raise ValueError("its parts are nested too deeply")
    inner, entry = _FIELDS[message], dict[int, str]()
    for number, first, last in _fields(content, start, end):
        if number in inner:
            yield from _locations(content, inner[number], first, last, depth + 1)
        elif message == "external data":
            entry[number] = content[first:last].decode("utf-8", "replace")
    if entry.get(_KEY) == "location":
        yield entry.get(_VALUE, "")


def _fields(content: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, start and end of each field of a message that has a length."""
    at = start
    while at < end:
        tag, at = _varint(content, at, end)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            _, at = _varint(content, at, end)
        elif wire_type in (_EIGHT_BYTES, _FOUR_BYTES):
            at += 8 if wire_type == _EIGHT_BYTES else 4
        elif wire_type == _LENGTH:
            length, at = _varint(content, at, end)
            if at + length > end:
                raise ValueError("a field of it is longer than the file")
            yield number, at, at + length
            at += length
        else:
            raise ValueError(f"it has the wire type {wire_type}")


def _varint(content: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    """Return a number and the position behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of it does not end")
