"""Audio-visual emotion understanding of art: model, data, training, evaluation, and the command line.

``vaemotion.open_predictor`` opens a bundle as a predictor, without torch. It lives in ``runtime`` and is
imported when it is first used (PEP 562).
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime.perception.predictor import open_predictor as open_predictor

__version__ = metadata.version("vaemotion")
__all__ = ["__version__", "open_predictor"]

_MODULE_OF = {"open_predictor": "runtime.perception.predictor"}


def __getattr__(name: str) -> Any:
    """Import a name of the public API from its module."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'vaemotion' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)
