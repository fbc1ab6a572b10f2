"""A tower exported as ONNX and compared with itself in torch."""

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from export.half_weights import store_exact_halves
from export.to_onnx import Part, export_onnx


def assert_onnx_computes_the_same(tower: nn.Module, given: Tensor, file: Path) -> None:
    """Export a tower, store its weights as float16 and compare every output by its largest value.

    given: a batch of one, for its only input.
    """
    (name,), outputs = tower.inputs, tower.outputs
    example = torch.zeros(2, *tower.inputs[name])
    with torch.inference_mode():
        expected = tower(given)
    _, specs = export_onnx(Part(tower, {name: example}, tuple(outputs)), file)
    assert {spec.name: spec.shape[1:] for spec in specs} == dict(outputs)
    whole = file.stat().st_size
    store_exact_halves(file)
    assert file.stat().st_size < 0.6 * whole
    got = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).run(
        None, {name: given.numpy()}
    )
    for output, ours, theirs in zip(outputs, expected, got, strict=True):
        difference = np.abs(ours.numpy() - theirs)
        scale = max(1.0, float(ours.abs().max()))
        print(
            f"\n{output}: max {difference.max():.2e}, mean {difference.mean():.2e}, largest value {scale:.3g}"
        )
        assert difference.max() <= 1e-4 * scale
