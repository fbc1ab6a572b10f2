"""Reader of a TensorFlow 1 checkpoint, a tensor bundle, without TensorFlow.

In: the bytes of its index and of its one data shard. Out: float32 arrays by name. The index is a sorted
string table, a LevelDB table: blocks of entries whose keys share prefixes, a block that lists them, a footer.
Each value is a ``BundleEntryProto``: type, shape, place in the shard, checksum. Every block and every array
that is read is checked by its CRC-32C.

Source: ``tensorflow/core/lib/io/format.cc``, ``tensorflow/core/util/tensor_bundle`` and
``tensorflow/core/protobuf/tensor_bundle.proto``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from vaemotion.contract.errors import UsageError

_FOOTER_BYTES, _MAGIC = 48, 0xDB4775248B80FB57
_TRAILER = struct.Struct("<BI")  # behind a block: kind of compression, masked CRC-32C
_DT_FLOAT = 1
# Fields of BundleHeaderProto, BundleEntryProto, TensorShapeProto and its Dim.
_NUM_SHARDS, _ENDIANNESS = 1, 2
_DTYPE, _SHAPE, _SHARD, _OFFSET, _SIZE, _CRC32C = 1, 2, 3, 4, 5, 6
_DIM, _DIM_SIZE = 2, 1


def read_tensor_bundle(index: bytes, shard: bytes, wanted: Callable[[str], bool]) -> dict[str, np.ndarray]:
    """Read the arrays whose names are wanted, as read-only views of the shard.

    index: ``….index``; shard: ``….data-00000-of-00001``. Raises UsageError for files that are no such
    checkpoint, are damaged, have several shards, or hold a wanted array of another type than float32.
    """
    try:
        return dict(_read(index, shard, wanted))
    except (struct.error, ValueError, KeyError, IndexError, DecodeError) as error:
        raise UsageError(
            f"this is not a TensorFlow checkpoint of one shard, or it is damaged ({error}); download its "
            f"wheel again"
        ) from error


def _read(index: bytes, shard: bytes, wanted: Callable[[str], bool]) -> Iterator[tuple[str, np.ndarray]]:
    entries = _table(index)
    key, value = next(entries)
    header = dict(_fields(value))
    if key or header[_NUM_SHARDS] != 1 or header.get(_ENDIANNESS):
        raise ValueError("its header is not that of one little-endian shard")
    for key, value in entries:
        if wanted(name := key.decode()):
            yield name, _array(name, dict(_fields(value)), shard)


def _array(name: str, entry: dict[int, Any], shard: bytes) -> np.ndarray:
    if entry[_DTYPE] != _DT_FLOAT or entry.get(_SHARD):
        raise ValueError(f"{name} is not float32 in the first shard")
    dims = [dim for number, dim in _fields(entry.get(_SHAPE, b"")) if number == _DIM]
    shape = [dict(_fields(dim)).get(_DIM_SIZE, 0) for dim in dims]
    start = entry.get(_OFFSET, 0)
    data = shard[start : start + entry[_SIZE]]
    if len(data) != entry[_SIZE] or masked_crc32c(data) != entry[_CRC32C]:
        raise ValueError(f"the checksum of {name} differs")
    return np.frombuffer(data, "<f4").reshape(shape)


def _fields(message: bytes) -> list[tuple[int, Any]]:
    """List the numbers and values of a message's fields. Their names are in no library that we have."""
    return [(field.field_number, field.data) for field in UnknownFieldSet(Empty.FromString(message))]


# -- the sorted string table ----------------------------------------------------------------------------


def _table(file: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a table in their order."""
    footer = file[-_FOOTER_BYTES:]
    if len(footer) < _FOOTER_BYTES or int.from_bytes(footer[-8:], "little") != _MAGIC:
        raise ValueError("the footer of its index is missing")
    _, at = _handle(footer, 0)  # of an index of metadata, which checkpoints do not use
    blocks, _ = _handle(footer, at)
    for _, place in _block(file, *blocks):
        yield from _block(file, *_handle(place, 0)[0])


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    """Read the offset and the size of a block; return them, and the place behind them."""
    offset, at = _varint(data, at)
    size, at = _varint(data, at)
    return (offset, size), at


def _block(file: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the entries of a block, each: bytes shared with the key before, bytes of its own, value."""
    end = offset + size
    compression, checksum = _TRAILER.unpack(file[end : end + _TRAILER.size])
    if compression or masked_crc32c(file[offset : end + 1]) != checksum:
        raise ValueError("a block of its index is compressed, or its checksum differs")
    block = file[offset:end]
    (restarts,) = struct.unpack("<I", block[-4:])
    entries, at, key = block[: len(block) - 4 - 4 * restarts], 0, b""
    while at < len(entries):
        shared, at = _varint(entries, at)
        unshared, at = _varint(entries, at)
        length, at = _varint(entries, at)
        key = key[:shared] + entries[at : at + unshared]
        at += unshared
        yield key, entries[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Read a number of 7 bits a byte, the lowest first; return it, and the place behind it."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
