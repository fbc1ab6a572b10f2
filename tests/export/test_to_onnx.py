"""The exported engines, compared with the checkpoint's own modules on real inputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from calibration.qdq import SCOPES
from export.predictors import TorchEngine, checkpoint_constants, checkpoint_predictor
from export.to_onnx import EXPORTERS, ExportError, Part, device_parts, export_onnx, tensor_specs
from runtime.engines.open import EngineError, OnnxRuntimeEngine
from runtime.perception.predictor import adapter_inputs
from tests.rtx import builds_in_tensorrt_rtx
from tests.tiny import tiny_clip, tiny_model
from vaemotion.contract.bundle import ENGINE_ROLES, component_path, read_manifest
from vaemotion.contract.front_end import PATHS, window_at
from vaemotion.model.checkpoint import load_checkpoint
from vaemotion.model.vaemotion_llm import MissingPartError, VAEmotionLLM

Arrays = Mapping[str, np.ndarray]


@pytest.fixture(scope="module")
def model(small_checkpoint: Path) -> VAEmotionLLM:
    return load_checkpoint(small_checkpoint)


@pytest.fixture(scope="module")
def engines(small_bundle: Path) -> dict[str, OnnxRuntimeEngine]:
    """Open the engines that `export_onnx` wrote for ``small_bundle``."""
    manifest = read_manifest(small_bundle)
    made: dict[str, OnnxRuntimeEngine] = {}
    for role in ENGINE_ROLES:
        component = manifest.component(role, "fp32")
        made[role] = OnnxRuntimeEngine(component_path(small_bundle, component), component, threads=1)
    return made


@pytest.fixture(scope="module")
def transformers_files(model: VAEmotionLLM, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write the engines by ``transformers.exporters``."""
    folder = tmp_path_factory.mktemp("by-transformers")
    files = {role: folder / f"{role}.onnx" for role in ENGINE_ROLES}
    for role, part in device_parts(model).items():
        export_onnx(part, files[role], "transformers")
    return files


def realistic(model: VAEmotionLLM, role: str, batch: int) -> Arrays:
    """Encode ``batch`` windows of procedural works, the paths in turn; the first ones have just begun."""
    rows: list[Arrays] = []
    predictor = checkpoint_predictor(model)
    for index in range(batch):
        inputs = window_at(tiny_clip(index), 0.5 + 0.75 * index, "audio-visual", model.config.front_end)
        if role == "vision_encoder":
            rows.append({"pixels": inputs.pixels[-1:]})
        elif role == "audio_encoder":
            rows.append({"log_mel": inputs.log_mel})
        else:
            one_path = window_at(tiny_clip(index), inputs.now_s, PATHS[index], model.config.front_end)
            rows.append(adapter_inputs(predictor.encode(one_path), checkpoint_constants(model)))
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.parametrize("role", ENGINE_ROLES)
def test_the_contract_has_a_free_batch_and_nothing_else_free(
    engines: dict[str, OnnxRuntimeEngine], role: str
) -> None:
    component = engines[role].component
    for spec in (*component.inputs, *component.outputs):
        assert spec.shape[0] == "batch"
        assert all(isinstance(size, int) and size > 0 for size in spec.shape[1:])
    shapes = {spec.name: spec.shape[1:] for spec in (*component.inputs, *component.outputs)}
    assert (
        shapes
        == {
            "vision_encoder": {"pixels": (3, 24, 24), "tokens": (4, 64)},
            "audio_encoder": {"log_mel": (50, 32), "tokens": (5, 64)},
            "emo_adapter": {
                "audio_tokens": (5, 64),
                "audio_mask": (5,),
                "audio_age_s": (5,),
                "visual_tokens": (16, 64),
                "visual_mask": (16,),
                "visual_age_s": (16,),
                "valence_arousal": (2,),
                "spread": (2,),
                "emotions": (9,),
                "enhanced_audio_tokens": (5, 64),
                "enhanced_visual_tokens": (16, 64),
                "induced_valence_arousal": (2,),
                "induced_spread": (2,),
                "induced_emotions": (9,),
            },
        }[role]
    )
    types = {spec.name: spec.dtype for spec in component.inputs}
    assert all(dtype == ("bool" if name.endswith("_mask") else "float32") for name, dtype in types.items())


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("role", ENGINE_ROLES)
def test_onnx_runtime_computes_what_torch_does(
    model: VAEmotionLLM, engines: dict[str, OnnxRuntimeEngine], role: str, batch: int
) -> None:
    assert_computes_what_torch_does(model, engines[role], role, batch)


def assert_computes_what_torch_does(
    model: VAEmotionLLM, engine: OnnxRuntimeEngine, role: str, batch: int
) -> None:
    arrays = realistic(model, role, batch)
    expected, got = TorchEngine(device_parts(model)[role]).run(arrays), engine.run(arrays)
    assert list(got) == list(expected)
    for name, reference in expected.items():
        scale = max(1.0, float(np.abs(reference).max()))
        difference = np.abs(got[name] - reference)
        print(
            f"\n{role}/{name} at batch {batch}: max {difference.max():.2e}, mean {difference.mean():.2e}, "
            f"scale {scale:.1f}"
        )
        assert got[name].shape == reference.shape
        assert difference.max() <= 1e-4 * scale
        assert (
            batch == 1 or np.abs(np.diff(reference, axis=0)).max() > 1e-3
        )  # the rows differ: nothing constant was exported


@pytest.mark.parametrize("role", ENGINE_ROLES)
def test_the_exporter_of_transformers_writes_the_same_contract(
    model: VAEmotionLLM,
    engines: dict[str, OnnxRuntimeEngine],
    transformers_files: dict[str, Path],
    role: str,
) -> None:
    graph, component = onnx.load(str(transformers_files[role])).graph, engines[role].component
    assert tensor_specs(graph.input) == component.inputs
    assert tensor_specs(graph.output) == component.outputs
    assert {node.domain for node in graph.node} == {""}
    assert {entry.key for node in graph.node for entry in node.metadata_props} == {SCOPES}
    engine = OnnxRuntimeEngine(transformers_files[role], component, threads=1)
    for batch in (1, 3):
        assert_computes_what_torch_does(model, engine, role, batch)


@pytest.mark.parametrize("role", ENGINE_ROLES)
def test_tensorrt_takes_what_the_exporter_of_transformers_writes(
    transformers_files: dict[str, Path], role: str
) -> None:
    assert builds_in_tensorrt_rtx(transformers_files[role]).plan


def test_a_masked_modality_changes_nothing_on_the_device_either(
    model: VAEmotionLLM, engines: dict[str, OnnxRuntimeEngine]
) -> None:
    clean = {k: v.copy() for k, v in realistic(model, "emo_adapter", 2).items()}  # audio, then visual
    dirty = {k: v.copy() for k, v in clean.items()}
    dirty["visual_tokens"][0], dirty["audio_tokens"][1] = 1e30, np.nan
    expected, got = engines["emo_adapter"].run(clean), engines["emo_adapter"].run(dirty)
    for name in ("valence_arousal", "spread", "emotions"):
        assert np.array_equal(got[name], expected[name])
        assert np.array_equal(got[f"induced_{name}"], expected[f"induced_{name}"])


def test_with_nothing_to_see_or_hear_the_device_stays_finite(
    model: VAEmotionLLM, engines: dict[str, OnnxRuntimeEngine]
) -> None:
    arrays = {k: v.copy() for k, v in realistic(model, "emo_adapter", 1).items()}
    arrays["audio_mask"][:] = arrays["visual_mask"][:] = False
    assert all(np.isfinite(value).all() for value in engines["emo_adapter"].run(arrays).values())


def test_the_exported_contract_is_what_the_engine_enforces(engines: dict[str, OnnxRuntimeEngine]) -> None:
    with pytest.raises(EngineError, match=r"vision_encoder \(fp32\): input 'pixels' must be float32"):
        engines["vision_encoder"].run({"pixels": np.zeros((1, 3, 32, 32), np.float32)})


@pytest.mark.parametrize(("audio", "missing"), [(False, "audio pathway"), (True, "EmoAdapter")])
def test_an_incomplete_checkpoint_is_refused_with_the_way_out(audio: bool, missing: str) -> None:
    with pytest.raises(MissingPartError, match=f"no {missing}; run `vaemotion train"):
        device_parts(tiny_model(audio=audio, adapter=False))


def test_tokens_per_frame_is_what_the_vision_encoder_gives(model: VAEmotionLLM) -> None:
    with torch.no_grad():
        assert model.vision(torch.zeros(1, 3, 24, 24)).shape[1] == model.tokens_per_frame == 4


class BatchSum(nn.Module):
    """A module whose output has no batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sum(0, keepdim=True)


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_batch_that_did_not_stay_free_is_refused(tmp_path: Path, exporter: str) -> None:
    with pytest.raises(ExportError, match=r"'y' came out with shape \(1, 3\), expected a free batch only"):
        export_onnx(Part(BatchSum(), {"x": torch.zeros(2, 3)}, ("y",)), tmp_path / "sum.onnx", exporter)


class Unspeakable(torch.nn.Module):
    """A module with an operator that ONNX does not have."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.qr(x)[0]


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_an_operator_that_onnx_does_not_have_is_one_sentence(tmp_path: Path, exporter: str) -> None:
    part = Part(Unspeakable(), {"x": torch.rand(2, 3, 3)}, ("y",))
    with pytest.raises(
        ExportError, match=r"part\.onnx: ONNX has no form for a part of this model: .*qr"
    ) as caught:
        export_onnx(part, tmp_path / "part.onnx", exporter)
    assert "\n" not in str(caught.value)
