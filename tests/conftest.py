"""Fixtures that many tests share, one small checkpoint and its bundles; tests spread over workers."""

import os
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line does, before anything loads OpenMP
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

settings.register_profile("suite", deadline=None)  # time never decides a test
settings.load_profile("suite")

TESTS = Path(__file__).parent
# The longest files first, so that no worker begins one of them when the other is nearly done.
LONGEST = (
    "export/test_pack.py",
    "export/test_assemble.py",
    "vaemotion/training/test_processes.py",
    "test_open_world.py",
    "runtime/commands/doctor/test_doctor.py",
    "vaemotion/training/ablations/test_run.py",
    "export/test_own_media.py",
    "test_large_engines.py",
    "runtime/test_run.py",
    "export/int8/test_search.py",
    "vaemotion/training/test_stages.py",
    "runtime/test_live_run.py",
)
# On a device there is no torch: tests of what needs it are not collected there.
_NEEDS_TORCH = re.compile(
    r"^\s*(?:from|import) (?:torch|transformers|safetensors|onnx|export|calibration\.(?!venue)"
    r"|vaemotion\.(?:model|training|evaluation)|tests\.(?:tiny|quick_export|llama_fixture|real_language_model|rtx|tokenizer_fixture))",
    re.M,
)
collect_ignore = [
    str(file)
    for file in TESTS.rglob("test_*.py")
    if not find_spec("torch") and _NEEDS_TORCH.search(file.read_text())
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first. Workers share by file (``--dist loadfile``), so fixtures are made once."""

    def rank(item: pytest.Item) -> int:
        name = item.path.relative_to(TESTS).as_posix()
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=rank)  # stable


@pytest.fixture(scope="session", autouse=True)
def _one_store_of_export_steps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let all exports of a test run, on all workers, share the steps that read the same."""
    temporary = tmp_path_factory.getbasetemp()
    shared = temporary.parent if "PYTEST_XDIST_WORKER" in os.environ else temporary
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VAEMOTION_EXPORT_STEPS", str(shared / "export-steps"))
        yield


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return ``tests.tiny``'s random model as a checkpoint folder. Tests do not change it."""
    tiny = pytest.importorskip("tests.tiny", reason="needs torch", exc_type=ImportError)
    return tiny.save_tiny_checkpoint(tmp_path_factory.mktemp("small") / "checkpoint")


@pytest.fixture(scope="session")
def small_bundle(small_checkpoint: Path) -> Path:
    """Return the verified bundle of ``small_checkpoint``. Tests that change a bundle copy it first."""
    from export.pack import Options, export_bundle
    from tests.quick_export import fit_confidence_on_few_works

    bundle = small_checkpoint.with_name("bundle")
    with pytest.MonkeyPatch.context() as patch:
        fit_confidence_on_few_works(patch)
        export_bundle(small_checkpoint, bundle, Options(clips=4))
    return bundle


@pytest.fixture(scope="session")
def small_int8_bundle(small_checkpoint: Path) -> Path:
    """Return the bundle of ``small_checkpoint`` in every precision; INT8 of a random model is not judged."""
    from export.pack import Options, export_bundle
    from tests.quick_export import fit_confidence_on_few_works

    bundle = small_checkpoint.with_name("bundle-int8")
    with pytest.MonkeyPatch.context() as patch:
        fit_confidence_on_few_works(patch)
        export_bundle(
            small_checkpoint, bundle, Options("int8", max_drop=None, calibration_windows=24, clips=4)
        )
    return bundle
