"""Any model as a ``predict`` callable: a bundle, without torch, or a checkpoint."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from runtime.predictor import Predictor, open_predictor
from vaemotion.contract.bundle import MANIFEST_FILE
from vaemotion.contract.errors import UsageError


@contextmanager
def load_predictor(model: Path) -> Generator[Predictor]:
    """The predictor of a bundle (a folder with ``manifest.json``) or of a checkpoint (``config.json``)."""
    if (model / MANIFEST_FILE).is_file():
        with open_predictor(model) as predictor:
            yield predictor
    elif (model / "config.json").is_file():
        from export.predictors import checkpoint_predictor
        from vaemotion.model.checkpoint import load_checkpoint

        yield checkpoint_predictor(load_checkpoint(model))
    else:
        raise UsageError(f"{model} is neither a bundle ({MANIFEST_FILE}) nor a checkpoint (config.json)")
