"""Writer and reader of ONNX files: weights that one message cannot hold lie in one file beside the graph.

In: a graph in memory. Out: a file, and where it is needed its ``.data``; and the graph again. The graph names
the SHA-256 of that file, so that its own hash covers it.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import ModelProto, TensorProto
from onnx.external_data_helper import set_external_data

from vaemotion.contract.bundle import sha256_of
from vaemotion.contract.onnx_weights import data_file

# Bytes of weights from which they are written outside: a message holds 2 GiB, with all that it says of them.
OUTSIDE_BYTES = 1900 * 2**20
OUTSIDE_LEAST_BYTES = 1024  # of a tensor that is written outside: shape inference reads small constants
_ALIGNMENT = 4096  # of a tensor in the file, so that it can be memory-mapped
_SHA256 = "data_sha256"


def save_graph(model: ModelProto, file: Path) -> None:
    """Write a graph as ``file``, with its weights inside or in ``file``.data. The graph stays as it was."""
    kept = [entry for entry in model.metadata_props if entry.key != _SHA256]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.DEFAULT:  # as `onnx.load` says it of weights that lay outside
            tensor.ClearField("data_location")
    data_file(file).unlink(missing_ok=True)
    outside = [tensor for tensor in model.graph.initializer if len(tensor.raw_data) >= OUTSIDE_LEAST_BYTES]
    if sum(len(tensor.raw_data) for tensor in outside) < OUTSIDE_BYTES:
        onnx.save(model, str(file))
        return
    places = _write_outside(outside, data_file(file))
    model.metadata_props.add(key=_SHA256, value=sha256_of(data_file(file)))
    try:
        onnx.save(model, str(file))
    finally:
        _read_back(outside, places, data_file(file))


def load_graph(file: Path) -> ModelProto:
    """Read what ``save_graph`` wrote, with all weights in memory.

    ``onnx.load`` refuses weights in a file that has a second name, as finished steps of an export have.
    Raises ValueError for weights in any other file.
    """
    model = onnx.load(str(file), load_external_data=False)
    outside = [t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL]
    places: list[tuple[int, int]] = []
    for tensor in outside:
        said = {entry.key: entry.value for entry in tensor.external_data}
        if said["location"] != data_file(file).name:
            raise ValueError(
                f"{file} reads weights from {said['location']!r}, not from {data_file(file).name}"
            )
        places.append((int(said["offset"]), int(said["length"])))
    if outside:
        _read_back(outside, places, data_file(file))
    return model


def _write_outside(tensors: list[TensorProto], file: Path) -> list[tuple[int, int]]:
    """Move the values of tensors to a file. Returns the position and the bytes of each there."""
    places: list[tuple[int, int]] = []
    with file.open("wb") as stream:
        for tensor in tensors:
            stream.write(b"\0" * (-stream.tell() % _ALIGNMENT))
            places.append((stream.tell(), len(tensor.raw_data)))
            stream.write(tensor.raw_data)
            set_external_data(tensor, file.name, *places[-1])
            tensor.ClearField("raw_data")
    return places


def _read_back(tensors: list[TensorProto], places: list[tuple[int, int]], file: Path) -> None:
    with file.open("rb") as stream:
        for tensor, (offset, length) in zip(tensors, places, strict=True):
            stream.seek(offset)
            tensor.raw_data = stream.read(length)
            tensor.ClearField("data_location")
            del tensor.external_data[:]
