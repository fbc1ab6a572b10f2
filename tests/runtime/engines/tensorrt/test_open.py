"""From a bundle to a running engine: built once, checked, cached, and rebuilt after damage to the cache.

Parsing and building are TensorRT-RTX's own; ``tests.fake_gpu`` takes the GPU's place.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from export.to_tensorrt import build_all, report
from runtime.engines.cache import BatchProfile
from runtime.engines.gpu import Gpu, tensorrt_is_installed
from runtime.engines.io import EngineError, EngineUnavailable
from runtime.engines.open import OnnxRuntimeEngine
from runtime.engines.tensorrt.engine import TensorRtEngine
from runtime.engines.tensorrt.open import TensorRt, open_tensorrt
from tests.fake_gpu import FakeCuda, FakeTensorRt
from tests.rtx import rtx_module
from tests.runtime.engines.test_open import doubling
from vaemotion.cli.main import main
from vaemotion.contract.bundle import Component, Manifest, TensorSpec
from vaemotion.contract.front_end import FrontEnd
from vaemotion.contract.prompts import PromptTemplate

pytestmark = pytest.mark.filterwarnings("ignore:.*TensorRT-RTX:DeprecationWarning")
GPU = Gpu("Orin", "8.7", 13020, 13040)


@dataclass(frozen=True)
class Bundle:
    folder: Path
    manifest: Manifest
    component: Component


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """One engine with golden vectors of 3 rows."""
    folder = tmp_path_factory.mktemp("bundle")
    adapter = doubling(folder)
    file = folder / adapter.path
    golden = {f"emo_adapter/in/{name}": array for name, array in batch(adapter, 3).items()}
    computed = OnnxRuntimeEngine(file, adapter, threads=1).run(batch(adapter, 3))
    golden |= {f"emo_adapter/out/{name}": array for name, array in computed.items()}
    np.savez(folder / "golden.npz", **golden)
    others = Component("golden", "none", "golden.npz", "", 0, "")
    manifest = Manifest("m", 64, 4, 5, (4,), FrontEnd(), PromptTemplate(), (adapter, others), {}, {}, {})
    return Bundle(folder, manifest, adapter)


def batch(component: Component, size: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(size)
    return {
        spec.name: rng.random((size, *spec.shape[1:])).astype(np.float32)
        if spec.dtype == "float32"
        else rng.random((size, *spec.shape[1:])) > 0.3
        for spec in component.inputs
    }


@pytest.fixture
def machine(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TensorRt:
    monkeypatch.setenv("VAEMOTION_CACHE", str(tmp_path / "cache"))
    cuda = FakeCuda()
    return TensorRt(FakeTensorRt(rtx_module(), cuda, bundle.folder / bundle.component.path), cuda, GPU)


def opened(machine: TensorRt, bundle: Bundle) -> TensorRtEngine:
    return open_tensorrt(machine, bundle.folder, bundle.manifest, bundle.component)


def cached(suffix: str) -> list[Path]:
    from runtime.engines.cache import cache_folder

    return sorted((cache_folder() / "tensorrt").glob(f"*{suffix}"))


def test_the_first_start_builds_and_the_second_takes_the_same_engine_from_the_cache(
    machine: TensorRt, bundle: Bundle
) -> None:
    first, second = opened(machine, bundle), opened(machine, bundle)
    assert machine.module.built == 1
    assert machine.module.deserialized[0] == machine.module.deserialized[1]
    assert "on Orin; built in " in first.announcement
    assert "nothing is cached" in first.announcement
    assert second.announcement.endswith("on Orin; from the cache")
    names = [file.name for file in cached("")]
    assert len(names) == 4, names  # engine and timings, each with its sidecar


def test_without_a_folder_for_a_cache_each_start_builds_and_says_why(
    machine: TensorRt, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.engines.cache.cache_folder", lambda: None)
    first, second = opened(machine, bundle), opened(machine, bundle)
    assert machine.module.built == 2
    for engine in (first, second):
        assert "this user has no home folder for a cache; set VAEMOTION_CACHE" in engine.announcement


@pytest.mark.parametrize("size", [1, 2, 8, 9, 20])
def test_any_batch_gives_what_the_graph_gives(machine: TensorRt, bundle: Bundle, size: int) -> None:
    engine = opened(machine, bundle)
    reference = OnnxRuntimeEngine(bundle.folder / bundle.component.path, bundle.component, threads=1)
    for given in (batch(bundle.component, size), batch(bundle.component, 1), batch(bundle.component, size)):
        out, expected = engine.run(given), reference.run(given)
        assert list(out) == list(expected)
        for name in out:
            np.testing.assert_allclose(out[name], expected[name], atol=1e-5)


def test_only_a_batch_of_one_is_a_graph(machine: TensorRt, bundle: Bundle) -> None:
    engine = opened(machine, bundle)
    before = machine.cudart.launches
    engine.run(batch(bundle.component, 1))
    engine.run(batch(bundle.component, 2))
    assert machine.cudart.launches == before + 1


def test_without_a_graph_it_runs_and_says_why(machine: TensorRt, bundle: Bundle) -> None:
    machine.cudart.captures = False
    engine = opened(machine, bundle)
    assert "without a CUDA graph (cudaStreamEndCapture failed: " in engine.announcement
    assert engine.run(batch(bundle.component, 1))["y"].shape == (1, 3)
    assert machine.cudart.launches == 0


def test_a_result_is_not_overwritten_by_the_next_one(machine: TensorRt, bundle: Bundle) -> None:
    engine = opened(machine, bundle)
    first = engine.run(batch(bundle.component, 1))["y"]
    kept = first.copy()
    engine.run({name: array[-1:] for name, array in batch(bundle.component, 5).items()})
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("change", ["plan", "sidecar", "driver", "profile", "precision"])
def test_an_engine_that_does_not_fit_is_built_anew_and_never_loaded(
    machine: TensorRt, bundle: Bundle, change: str
) -> None:
    opened(machine, bundle)
    component, profile = bundle.component, BatchProfile()
    if change == "plan":
        cached(".engine")[0].write_bytes(b"torn")
    elif change == "sidecar":
        cached(".engine.json")[0].write_text("{")
    elif change == "driver":
        machine = replace(machine, gpu=replace(GPU, driver_version=13050))
    elif change == "profile":
        profile = BatchProfile(maximum=4)
    else:
        component = replace(component, precision="fp16")
    manifest = replace(bundle.manifest, tolerances={"emo_adapter/fp16": 1e-3})
    engine = open_tensorrt(machine, bundle.folder, manifest, component, profile)
    assert machine.module.built == 2
    assert b"torn" not in machine.module.deserialized
    assert "built in " in engine.announcement
    if change in ("plan", "sidecar"):
        assert ("damaged (sha256" if change == "plan" else "cannot be read") in engine.announcement


def with_golden_off_by(bundle: Bundle, folder: Path, relative: float, precision: str) -> Bundle:
    """Copy the bundle with its golden outputs off by a share of their largest value.

    Its tolerance is as measured on a processor.
    """
    copied = Path(shutil.copytree(bundle.folder, folder / "off"))
    golden = dict(np.load(copied / "golden.npz"))
    for name in (name for name in golden if "/out/" in name):
        golden[name] = golden[name] + np.float32(relative) * np.abs(golden[name]).max()
    np.savez(copied / "golden.npz", **golden)
    component = replace(bundle.component, precision=precision)
    return Bundle(copied, replace(bundle.manifest, tolerances={f"emo_adapter/{precision}": 3e-4}), component)


def test_an_engine_with_wrong_results_is_an_error_and_is_not_cached(
    machine: TensorRt, bundle: Bundle, tmp_path: Path
) -> None:
    other = with_golden_off_by(bundle, tmp_path, 0.02, "fp16")
    with pytest.raises(EngineError, match=r"differs by .* from the golden vector .* --engine cpu") as raised:
        opened(machine, other)
    assert not isinstance(raised.value, EngineUnavailable)  # so that no other engine is tried
    assert cached(".engine") == []


def test_fp16_may_round_differently_on_a_gpu_than_on_a_processor(
    machine: TensorRt, bundle: Bundle, tmp_path: Path
) -> None:
    assert opened(machine, with_golden_off_by(bundle, tmp_path, 3e-3, "fp16")).runs_on == "tensorrt"
    with pytest.raises(EngineError, match="differs by"):
        opened(machine, with_golden_off_by(bundle, tmp_path / "fp32", 3e-3, "fp32"))


def test_an_interrupted_build_leaves_nothing_under_the_final_name(machine: TensorRt, bundle: Bundle) -> None:
    def interrupt(log: object) -> None:
        raise KeyboardInterrupt

    machine.module.Builder = interrupt
    with pytest.raises(KeyboardInterrupt):
        opened(machine, bundle)
    assert cached("") == []


def test_too_little_memory_is_an_error_before_anything_is_built(machine: TensorRt, bundle: Bundle) -> None:
    machine.cudart.free_bytes = 2**20
    with pytest.raises(EngineUnavailable, match=r"needs about 6\d MiB of GPU memory and 1 MiB are free"):
        opened(machine, bundle)
    assert cached(".engine") == []


def test_an_engine_with_other_tensors_than_the_manifests_is_refused(
    machine: TensorRt, bundle: Bundle
) -> None:
    specs = (replace(bundle.component.inputs[0], dtype="float16"), *bundle.component.inputs[1:])
    other = replace(
        bundle.component, inputs=specs, outputs=(*bundle.component.outputs, TensorSpec("more", (1,), "bool"))
    )
    with pytest.raises(EngineUnavailable, match=r"tensors are not the manifest's: more, x"):
        open_tensorrt(machine, bundle.folder, bundle.manifest, other)


def test_an_input_that_does_not_fit_is_named(machine: TensorRt, bundle: Bundle) -> None:
    engine, given = opened(machine, bundle), batch(bundle.component, 2)
    with pytest.raises(EngineError, match=r"'keep' must be bool .*, got float32"):
        engine.run({**given, "keep": given["keep"].astype(np.float32)})
    with pytest.raises(EngineError, match=r"must have one batch size of at least 1, got .*keep: 1"):
        engine.run({**given, "keep": given["keep"][:1]})


def test_an_int8_engine_announces_what_really_runs_in_int8(machine: TensorRt, bundle: Bundle) -> None:
    manifest = replace(bundle.manifest, tolerances={"emo_adapter/int8": 1e-3})
    engine = open_tensorrt(machine, bundle.folder, manifest, replace(bundle.component, precision="int8"))
    assert engine.announcement.endswith("; 1 of 2 matrix products run in INT8")


def test_without_a_writable_cache_the_engine_runs(
    machine: TensorRt, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VAEMOTION_CACHE", "/proc/none")
    assert "it cannot be cached" in opened(machine, bundle).announcement


def test_memory_is_given_back(machine: TensorRt, bundle: Bundle) -> None:
    engine = opened(machine, bundle)
    assert machine.cudart._memory
    del engine
    assert machine.cudart._memory == {}


def test_engines_are_built_ahead_and_a_run_finds_them(
    machine: TensorRt, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    int8 = replace(bundle.component, precision="int8")
    components = (*bundle.manifest.components, int8, replace(bundle.component, precision="int8-cpu"))
    manifest = replace(bundle.manifest, components=components, tolerances={"emo_adapter/int8": 1e-3})
    rows = build_all(machine, bundle.folder, manifest, None)
    report(rows)
    printed = " ".join(capsys.readouterr().out.split())
    assert [row.component.precision for row in rows] == ["int8", "fp32"]  # int8-cpu is not TensorRT's
    assert "emo_adapter (int8): 1 of 2 matrix products run in INT8: product" in printed
    assert "50%" in printed
    assert open_tensorrt(machine, bundle.folder, manifest, int8).announcement.count("from the cache") == 1


def test_an_engine_that_cannot_be_built_ahead_fails_with_its_reason(
    machine: TensorRt, bundle: Bundle
) -> None:
    machine.cudart.free_bytes = 0
    with pytest.raises(
        EngineError, match=r"no TensorRT engine of emo_adapter \(fp32\): building adapter.onnx needs"
    ):
        report(build_all(machine, bundle.folder, bundle.manifest, "fp32"))


def test_the_command_says_what_this_machine_lacks(
    small_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if tensorrt_is_installed():
        pytest.skip("this machine has TensorRT")
    assert main(["engines", str(small_bundle)]) == 1
    sentence = (
        "vaemotion: error: tensorrt is not installed; a run takes the next engine, see vaemotion doctor\n"
    )
    assert capsys.readouterr().err == sentence
    assert main(["engines", str(small_bundle), "--precision", "int8-cpu"]) == 2
