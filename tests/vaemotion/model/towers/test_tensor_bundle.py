"""TensorFlow checkpoints: read with their checksums, or refused."""

import struct

import numpy as np
import pytest
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from vaemotion.contract.errors import UsageError
from vaemotion.model.towers.tensor_bundle import read_tensor_bundle

ARRAYS = {
    "conv2d/bias": np.arange(3, dtype="<f4"),
    "conv2d/kernel": np.arange(300, dtype="<f4").reshape(2, 150),
    "scalar": np.array(7, "<f4"),
}
HEADER = b"\x08\x01\x1a\x02\x08\x01"  # one shard, little-endian, version 1


def varint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def entry(values: np.ndarray, offset: int) -> bytes:
    """Write a ``BundleEntryProto``."""
    dims = [b"\x08" + varint(size) for size in values.shape]
    shape = b"".join(b"\x12" + varint(len(dim)) + dim for dim in dims)
    kind = 1 if values.dtype == np.float32 else 2
    data = b"\x08" + varint(kind) + b"\x12" + varint(len(shape)) + shape
    data += b"\x20" + varint(offset) + b"\x28" + varint(values.nbytes)
    return data + b"\x35" + struct.pack("<I", masked_crc32c(values.tobytes()))


def block(entries: list[tuple[bytes, bytes]], compression: int = 0) -> bytes:
    """Write a block whose keys share prefixes, with its trailer."""
    data, before = b"", b""
    for key, value in entries:
        shared = 0
        while shared < min(len(before), len(key)) and before[shared] == key[shared]:
            shared += 1
        data += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    data += struct.pack("<II", 0, 1) + bytes([compression])
    return data + struct.pack("<I", masked_crc32c(data))


def written(
    arrays: dict[str, np.ndarray], header: bytes = HEADER, compression: int = 0
) -> tuple[bytes, bytes]:
    """Write arrays as a checkpoint: its index and its shard."""
    shard, entries = b"", [(b"", header)]
    for name, values in sorted(arrays.items()):
        entries.append((name.encode(), entry(values, len(shard))))
        shard += values.tobytes()
    first = block(entries, compression)
    empty, listing = block([]), block([(b"z", varint(0) + varint(len(first) - 5))])
    handles = varint(len(first)) + varint(len(empty) - 5)
    handles += varint(len(first) + len(empty)) + varint(len(listing) - 5)
    footer = handles.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)
    return first + empty + listing + footer, shard


def everything(_: str) -> bool:
    return True


def test_wanted_arrays_come_back() -> None:
    read = read_tensor_bundle(*written(ARRAYS), everything)
    assert read.keys() == ARRAYS.keys()
    assert all(np.array_equal(read[name], values) for name, values in ARRAYS.items())
    kernels = read_tensor_bundle(*written(ARRAYS), lambda name: name.endswith("kernel"))
    assert list(kernels) == ["conv2d/kernel"]


def test_every_changed_byte_of_the_shard_is_noticed() -> None:
    index, shard = written(ARRAYS)
    for place in range(0, len(shard), 50):
        changed = shard[:place] + bytes([shard[place] ^ 1]) + shard[place + 1 :]
        with pytest.raises(UsageError, match="checksum of"):
            read_tensor_bundle(index, changed, everything)
    with pytest.raises(UsageError, match="checksum of"):
        read_tensor_bundle(index, shard[:-1], everything)


def test_every_changed_byte_and_every_cut_of_the_index_is_refused() -> None:
    """The 8 bytes of metadata's place and of padding in the footer decide nothing."""
    index, shard = written(ARRAYS)
    entries_end = len(written(ARRAYS)[0]) - 48
    for place in (*range(0, entries_end - len(block([])) - 30, 3), len(index) - 1):
        changed = index[:place] + bytes([index[place] ^ 1]) + index[place + 1 :]
        with pytest.raises(UsageError, match="download its wheel again"):
            read_tensor_bundle(changed, shard, everything)
    for length in range(0, len(index), 7):
        with pytest.raises(UsageError, match="download its wheel again"):
            read_tensor_bundle(index[:length], shard, everything)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (written(ARRAYS, header=b"\x08\x02"), "one little-endian shard"),
        (written(ARRAYS, header=b"\x08\x01\x10\x01"), "one little-endian shard"),
        (written(ARRAYS, compression=1), "compressed"),
        (written({"a": np.zeros(2, "<f8")}), "a is not float32"),
    ],
)
def test_other_checkpoints_are_refused_with_the_reason(files: tuple[bytes, bytes], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_tensor_bundle(*files, everything)
