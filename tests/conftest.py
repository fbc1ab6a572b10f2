"""What several test rooms share: OpenMP's manners, and one small checkpoint with its bundle, exported once."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line does, before anything loads OpenMP
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``tests.tiny``'s random model as a checkpoint folder. Tests do not change it."""
    from tests.tiny import save_tiny_checkpoint

    return save_tiny_checkpoint(tmp_path_factory.mktemp("small") / "checkpoint")


@pytest.fixture(scope="session")
def small_bundle(small_checkpoint: Path) -> Path:
    """The verified bundle of ``small_checkpoint``. Tests that change a bundle copy it first."""
    from export.pack import export_bundle

    bundle = small_checkpoint.with_name("bundle")
    export_bundle(small_checkpoint, bundle)
    return bundle


@pytest.fixture(scope="session")
def small_int8_bundle(small_checkpoint: Path) -> Path:
    """``small_checkpoint`` with every precision; its INT8 is not judged, because a random model has nothing to lose."""
    from export.pack import Options, export_bundle

    bundle = small_checkpoint.with_name("bundle-int8")
    export_bundle(small_checkpoint, bundle, Options("int8", max_drop=None, calibration_windows=24))
    return bundle
