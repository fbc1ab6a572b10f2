"""An engine of a recipe: its ONNX file, checked against the inputs and outputs that its role has.

In: a file and the expected inputs. Out: the file's tensors, or sentences on what does not fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from calibration.onnx_file import save_graph
from export.tensors import (
    EXPRESSED_OUTPUTS,
    INDUCED_OUTPUTS,
    OPSET,
    TOKEN_OUTPUTS,
    tensor_specs,
)
from vaemotion.contract.bundle import TensorSpec
from vaemotion.contract.errors import UsageError
from vaemotion.model.tensor_files import refuse_lfs_pointer

BATCH = "batch"
_REQUIRED_OUTPUTS = {"emo_adapter": (*EXPRESSED_OUTPUTS, *TOKEN_OUTPUTS)}
_OPTIONAL_OUTPUTS = {"emo_adapter": INDUCED_OUTPUTS}  # all of them or none
_STANDARD_DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True)
class EngineFile:
    """An ONNX file as it was given.

    ``domains``: those of operators that are not ONNX's own.
    """

    role: str
    path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opset: int
    domains: tuple[str, ...]

    @property
    def label(self) -> str:
        """The role with the file's name, for messages."""
        return f"{self.role} ({self.path.name})"


def read_engine_file(role: str, path: Path) -> EngineFile:
    """Read what an ONNX file says of itself. Raises UsageError for one that cannot be read."""
    model = _load(path)
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    stored = {tensor.name for tensor in model.graph.initializer}  # old files list weights as inputs, too
    return EngineFile(
        role,
        path,
        tensor_specs(value for value in model.graph.input if value.name not in stored),
        tensor_specs(model.graph.output),
        next((opsets[domain] for domain in _STANDARD_DOMAINS if domain in opsets), 0),
        tuple(sorted({node.domain for node in model.graph.node} - set(_STANDARD_DOMAINS))),
    )


def _load(path: Path) -> onnx.ModelProto:
    refuse_lfs_pointer(path)
    try:
        model = onnx.load(str(path), load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise UsageError(f"{path} is not an ONNX file, or damaged ({error}); copy it again") from error
    if not model.graph.node:
        raise UsageError(f"{path} is not an ONNX file (it holds no graph); export the model again")
    return model


def weight_files(path: Path) -> list[Path]:
    """List the files beside an ONNX file that hold weights of it. Raises UsageError where one is missing."""
    names = {
        entry.value
        for tensor in _load(path).graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    if missing := sorted(name for name in names if not (path.parent / name).is_file()):
        raise UsageError(f"{path} keeps weights in {missing[0]}, which is not beside it; copy both files")
    return [path.parent / name for name in sorted(names)]


def write_engine_file(found: EngineFile, target: Path) -> None:
    """Write the file as one that other steps read: with a name for every node."""
    model = onnx.load(str(found.path))
    names = [node.name for node in model.graph.node]
    if "" in names or len(set(names)) < len(names):  # FP16 leaves single nodes out, by name
        for index, node in enumerate(model.graph.node):
            node.name = f"{index}/{node.op_type}"
    save_graph(model, target)


def contract_problems(found: EngineFile, expected: Sequence[TensorSpec]) -> Iterator[str]:
    """Say what of a file's inputs and outputs is not as the role has it. ``expected``: the inputs."""
    if not 0 < found.opset <= OPSET:
        yield (
            f"{found.label} has opset {found.opset}, and at most {OPSET} runs on every engine; export it "
            f"with opset_version={OPSET}"
        )
    names = [spec.name for spec in expected]
    given = {spec.name: spec for spec in found.inputs}
    yield from _name_problems(found.label, "input", list(given), names)
    for spec in expected:
        if spec.name in given:
            yield from _input_problems(found.label, spec, given[spec.name])
    required = _REQUIRED_OUTPUTS.get(found.role, ("tokens",))
    optional = _OPTIONAL_OUTPUTS.get(found.role, ())
    outputs = [spec.name for spec in found.outputs]
    wanted = (*required, *optional) if set(outputs) & set(optional) else required
    yield from _name_problems(found.label, "output", outputs, wanted)
    for spec in found.outputs:
        if spec.name in wanted and spec.dtype != "float32":
            yield f"{found.label}: output {spec.name!r} must be float32, the file has {spec.dtype}"


def _name_problems(label: str, kind: str, given: Sequence[str], wanted: Sequence[str]) -> Iterator[str]:
    if missing := [name for name in wanted if name not in given]:
        yield f"{label} lacks the {kind} {missing[0]!r}; it has {', '.join(given) or 'none'}"
    if unknown := [name for name in given if name not in wanted]:
        yield f"{label} has the {kind} {unknown[0]!r}, which is not one of {', '.join(wanted)}"


def _input_problems(label: str, expected: TensorSpec, given: TensorSpec) -> Iterator[str]:
    name, shape = expected.name, given.shape
    if given.dtype != expected.dtype:
        yield f"{label}: input {name!r} must be {expected.dtype}, the file has {given.dtype}"
    if len(shape) != len(expected.shape):
        yield _other_shape(label, expected, given)
        return
    if isinstance(shape[0], int) and shape[0] > 0:
        yield (
            f"{label}: the batch of input {name!r} is fixed to {shape[0]}; export it with a free first "
            f"dimension, as torch.onnx.export(…, dynamic_shapes={{{name!r}: {{0: 'batch'}}, …}}) does"
        )
    for size, wanted in zip(shape[1:], expected.shape[1:], strict=True):
        if isinstance(size, str):
            yield (
                f"{label}: input {name!r} has the free dimension {size!r}, and only the batch may be free; "
                f"fix it with `python -m onnxruntime.tools.make_dynamic_shape_fixed --dim_param {size} "
                f"--dim_value {wanted}`"
            )
        elif size != wanted:
            yield _other_shape(label, expected, given)
            return


def _other_shape(label: str, expected: TensorSpec, given: TensorSpec) -> str:
    return (
        f"{label}: input {expected.name!r} must have the shape {_shown(expected.shape)}, which follows from "
        f"the recipe and the other parts; the file has {_shown(given.shape)}"
    )


def _shown(shape: Sequence[int | str]) -> str:
    """Show a shape; a size that the file leaves out is 0 there."""
    return f"({', '.join(str(size or '?') for size in shape)})"
