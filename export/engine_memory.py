"""Memory of an engine, from its graph: its weights as they are computed with, and its intermediate results.

In: an ONNX file whose only free dimension is the batch. Out: bytes, for the manifest. `vaemotion doctor`
foresees memory from them, and a run bounds its batches by them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
from onnx import ModelProto, ValueInfoProto, helper

from vaemotion.contract.bundle import ENGINE_ROLES, Component, component_path

# Nodes that ONNX Runtime fuses into the next one, or whose result is the same memory in another shape.
_VIEWS = {"DequantizeLinear", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"}
# Nodes whose result overwrites what they read, where nothing else reads it.
_IN_PLACE = {"Add", "Div", "Mul", "Relu", "Softmax", "Sub"}


@dataclass(frozen=True)
class _Tensor:
    """Shape and bytes of a tensor at a batch of one."""

    shape: tuple[int, ...]
    bytes: int


@dataclass(frozen=True)
class _Node:
    """A node that is computed in every run: what it reads besides weights, and what it makes."""

    kind: str
    reads: tuple[str, ...]
    makes: tuple[str, ...]


def with_memory(folder: Path, components: Iterable[Component]) -> tuple[Component, ...]:
    """Return a bundle's components, engines with their memory."""
    found: list[Component] = []
    for component in components:
        if component.role in ENGINE_ROLES:
            weights, activation = engine_memory(component_path(folder, component))
            component = replace(component, weights_bytes=weights, activation_bytes=activation)
        found.append(component)
    return tuple(found)


def engine_memory(file: Path) -> tuple[int, int]:
    """Return the bytes of an engine's weights, and those of a batch of one while it runs.

    A weight that is stored in float16 behind a Cast counts as what the Cast gives. Buffers count as ONNX
    Runtime's CPU provider plans them: one that is free again waits for the next result of the same shape, so
    the sum over the shapes is needed, each as often as tensors of it are alive at once. Measured on encoders
    of 512 to 1,024 patches: 1.0 to 1.06 times as much.
    """
    model = onnx.load(str(file), load_external_data=False)
    tensors = _tensors(model)
    weights = {tensor.name for tensor in model.graph.initializer}
    views: dict[str, str] = {}
    nodes = list(_computed(model, weights, views))
    read = {name for node in nodes for name in node.reads}
    used = {name for node in model.graph.node for name in node.input} & weights
    folded = {name for node in model.graph.node if set(node.output) & weights for name in node.input}
    outputs = [views.get(output.name, output.name) for output in model.graph.output]
    inputs = [value.name for value in model.graph.input if value.name in read]
    buffers = _buffers(nodes, inputs, outputs, tensors)
    weights_bytes = sum(tensors[name].bytes for name in used - folded if name in tensors)
    return weights_bytes, sum(tensor.bytes * count for tensor, count in buffers.items())


def _computed(model: ModelProto, weights: set[str], views: dict[str, str]) -> Iterator[_Node]:
    """Yield the nodes that are computed in every run.

    Results that are computed once, when the file is loaded, are added to ``weights``; those that are other
    views of a tensor's memory to ``views``.
    """
    for node in model.graph.node:
        reads = [views.get(name, name) for name in node.input if name]
        if node.op_type in _VIEWS:
            views[node.output[0]] = reads[0]
        elif all(name in weights for name in reads):
            weights |= set(node.output)
        else:
            inner = tuple(dict.fromkeys(name for name in reads if name not in weights))
            yield _Node(node.op_type, inner, tuple(name for name in node.output if name))


def _buffers(
    nodes: list[_Node], inputs: list[str], outputs: list[str], tensors: dict[str, _Tensor]
) -> Counter[_Tensor]:
    """Return the most tensors of each shape that are alive at once."""
    last = {name: k for k, node in enumerate(nodes) for name in node.reads}
    last |= dict.fromkeys(outputs, len(nodes))
    nothing = _Tensor((), 0)  # a size that is not known
    alive = Counter(tensors.get(name, nothing) for name in inputs)
    most = Counter(alive)
    for k, node in enumerate(nodes):
        freed = Counter(tensors.get(name, nothing) for name in node.reads if last[name] == k)
        for made in (tensors.get(name, nothing) for name in node.makes):
            if node.kind in _IN_PLACE and freed[made]:
                freed[made] -= 1
            else:
                alive[made] += 1
                most[made] = max(most[made], alive[made])
        alive -= freed
        alive -= Counter(tensors.get(name, nothing) for name in node.makes if name not in last)
    return most


def _tensors(model: ModelProto) -> dict[str, _Tensor]:
    """Return shape and bytes of every tensor that is known."""
    known = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    named = {value.name for value in known} | {tensor.name for tensor in model.graph.initializer}
    if any(name not in named for node in model.graph.node for name in node.output if name):
        known = [*onnx.shape_inference.infer_shapes(model, data_prop=True).graph.value_info, *known]
    tensors = {value.name: _tensor(value) for value in known}
    for tensor in model.graph.initializer:
        items = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        tensors[tensor.name] = _Tensor(tuple(tensor.dims), math.prod(tensor.dims) * items)
    return tensors


def _tensor(value: ValueInfoProto) -> _Tensor:
    tensor = value.type.tensor_type
    shape = tuple(size.dim_value if size.HasField("dim_value") else 1 for size in tensor.shape.dim)
    return _Tensor(shape, math.prod(shape) * helper.tensor_dtype_to_np_dtype(tensor.elem_type).itemsize)
