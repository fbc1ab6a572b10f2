"""Reader of a CTranslate2 model, the file ``model.bin``, without CTranslate2.

In: the bytes of the file. Out: its tensors by name, and the names that are aliases of others. The format is
that of ``ctranslate2.specs.model_spec``, version 6: a header, then for each tensor its name, shape, type and
data; all little-endian. Every byte of the file must belong to it.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vaemotion.contract.errors import UsageError

VERSION = 6
_TYPES = {0: np.dtype("<f4"), 1: np.dtype("i1"), 2: np.dtype("<i2"), 3: np.dtype("<i4"), 4: np.dtype("<f2")}
_OTHER_FILE = "this is not a CTranslate2 model, or it is damaged ({}); download its wheel again"


@dataclass(frozen=True)
class CTranslate2File:
    """Content of the file.

    ``specification``: the kind of model, such as "WhisperSpec". ``tensors``: read-only views of the file.
    ``aliases``: name → the name of the tensor that it stands for.
    """

    specification: str
    tensors: Mapping[str, np.ndarray]
    aliases: Mapping[str, str]


def read_ctranslate2(file: bytes) -> CTranslate2File:
    """Read the bytes of a ``model.bin``. Raises UsageError for another file, version or type of tensor."""
    try:
        return _read(_Cursor(file))
    except (struct.error, UnicodeDecodeError, ValueError, MemoryError) as error:
        raise UsageError(_OTHER_FILE.format(error)) from error


def _read(cursor: _Cursor) -> CTranslate2File:
    version = cursor.number("I")
    if version != VERSION:
        raise ValueError(f"its format has version {version}, expected {VERSION}")
    specification = cursor.text()
    cursor.number("I")  # the specification's revision
    tensors: dict[str, np.ndarray] = {}
    for _ in range(cursor.number("I")):
        name = cursor.text()
        shape = [cursor.number("I") for _ in range(cursor.number("B"))]
        kind = cursor.number("B")
        if kind not in _TYPES:
            raise ValueError(f"{name} has the unknown type {kind}")
        if name in tensors:
            raise ValueError(f"{name} is there twice")
        data = cursor.take(cursor.number("I"))
        tensors[name] = np.frombuffer(data, _TYPES[kind]).reshape(shape)
    aliases: dict[str, str] = {}
    for _ in range(cursor.number("I")):
        name, target = cursor.text(), cursor.text()
        if name in tensors or target not in tensors:
            raise ValueError(f"{name} cannot stand for {target}")
        aliases[name] = target
    if cursor.left:
        raise ValueError(f"{cursor.left} bytes follow its last entry")
    return CTranslate2File(specification, tensors, aliases)


class _Cursor:
    """A place in the file that moves with what is read. Raises ValueError where the file ends too early."""

    def __init__(self, file: bytes) -> None:
        self._file, self._at = memoryview(file), 0

    @property
    def left(self) -> int:
        return len(self._file) - self._at

    def take(self, size_bytes: int) -> memoryview:
        if size_bytes > self.left:
            raise ValueError("it ends too early")
        self._at += size_bytes
        return self._file[self._at - size_bytes : self._at]

    def number(self, kind: str) -> int:
        return struct.unpack(f"<{kind}", self.take(struct.calcsize(f"<{kind}")))[0]

    def text(self) -> str:
        """Read a text: its length with the zero byte behind it, the bytes, the zero byte."""
        data = bytes(self.take(self.number("H")))
        if not data.endswith(b"\0"):
            raise ValueError("a name does not end")
        return data[:-1].decode()
