"""CTranslate2 files: read whole, or refused."""

import struct

import numpy as np
import pytest

from vaemotion.contract.errors import UsageError
from vaemotion.model.towers.ctranslate2_file import read_ctranslate2

TENSORS = {"a/weight": np.arange(6, dtype="<f2").reshape(2, 3), "a/heads": np.array(6, "<i2")}
KIND = {"<f4": 0, "|i1": 1, "<i2": 2, "<i4": 3, "<f2": 4}


def text(value: str) -> bytes:
    data = value.encode() + b"\0"
    return struct.pack("<H", len(data)) + data


def written(
    tensors: list[tuple[str, np.ndarray]] | None = None,
    aliases: tuple[tuple[str, str], ...] = (("b", "a/weight"),),
    version: int = 6,
    kind: int | None = None,
) -> bytes:
    """Write a file as ``ctranslate2.specs.model_spec`` does."""
    tensors = list(TENSORS.items()) if tensors is None else tensors
    data = struct.pack("<I", version) + text("WhisperSpec") + struct.pack("<II", 3, len(tensors))
    for name, values in tensors:
        data += text(name) + struct.pack("<B", values.ndim) + struct.pack(f"<{values.ndim}I", *values.shape)
        data += struct.pack("<BI", KIND[values.dtype.str] if kind is None else kind, values.nbytes)
        data += values.tobytes()
    data += struct.pack("<I", len(aliases))
    return data + b"".join(text(name) + text(target) for name, target in aliases)


def test_tensors_and_aliases_come_back() -> None:
    read = read_ctranslate2(written())
    assert (read.specification, dict(read.aliases)) == ("WhisperSpec", {"b": "a/weight"})
    for name, values in TENSORS.items():
        assert np.array_equal(read.tensors[name], values)
        assert read.tensors[name].dtype == values.dtype


def test_a_file_that_ends_early_anywhere_is_refused() -> None:
    whole = written()
    for length in range(len(whole)):
        with pytest.raises(UsageError, match="download its wheel again"):
            read_ctranslate2(whole[:length])


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (written() + b"\0", "1 bytes follow"),
        (written(version=5), "version 5, expected 6"),
        (written(kind=9), "unknown type 9"),
        (written([*TENSORS.items(), ("a/heads", np.array(1, "<i2"))]), "a/heads is there twice"),
        (written(aliases=(("b", "nothing"),)), "b cannot stand for nothing"),
        (written(aliases=(("a/heads", "a/weight"),)), "a/heads cannot stand"),
        (written([("a", np.zeros(3, "<i4"))], kind=0)[:-30], "ends too early"),
        (written(kind=0), "cannot reshape"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(file: bytes, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_ctranslate2(file)
