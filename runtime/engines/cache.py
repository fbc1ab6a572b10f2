"""The cache of built engines on a device: a file, and a sidecar with its full key and its hash.

In: a key (everything that an engine depends on) and the engine's bytes. Out: the bytes again, if and only
if the sidecar holds the same key and the hash of the same bytes. Anything else is built anew and never
reaches TensorRT's deserializer.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vaemotion.contract.files import write_whole

NO_FOLDER = "this user has no home folder for a cache; set VAEMOTION_CACHE to a folder"
RECIPE = 1  # of runtime.engines.tensorrt.build: increase it when the same key gives another engine


@dataclass(frozen=True)
class BatchProfile:
    """Range of an engine's batch sizes, ``minimum`` to ``maximum``, and the size that it is tuned for."""

    minimum: int = 1
    optimum: int = 1
    maximum: int = 8


@dataclass(frozen=True)
class EngineKey:
    """Everything that a built engine depends on."""

    onnx_sha256: str
    precision: str
    profile: BatchProfile
    tensorrt_version: str
    cuda_runtime_version: int
    driver_version: int
    gpu_name: str
    compute_capability: str
    recipe: int = RECIPE

    @property
    def digest(self) -> str:
        """Hexadecimal sha256 of all fields, for the engine's name in the cache."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Return ``$VAEMOTION_CACHE``, else ``$XDG_CACHE_HOME/vaemotion``, else ``~/.cache/vaemotion``.

    None for a user without a home folder: ``HOME`` is not set, and the user has no account. A relative
    ``XDG_CACHE_HOME`` does not count (XDG Base Directory Specification).
    """
    if own := environment.get("VAEMOTION_CACHE"):
        return Path(own)
    shared = environment.get("XDG_CACHE_HOME", "")
    if os.path.isabs(shared):
        return Path(shared) / "vaemotion"
    try:
        return Path.home() / ".cache" / "vaemotion"
    except RuntimeError:
        return None


def engine_file(folder: Path, role: str, key: EngineKey) -> Path:
    """Return the path of a role's engine in the cache, existing or not."""
    return folder / f"{role}-{key.precision}-{key.digest[:32]}.engine"


def load(file: Path, key: Mapping[str, Any]) -> tuple[bytes | None, str]:
    """Load a file's bytes; return them and "", or None and the reason that they cannot be used."""
    try:
        stored: Any = json.loads(sidecar_of(file).read_text())
        content = file.read_bytes()
    except FileNotFoundError:
        return None, "nothing is cached"
    except (OSError, ValueError) as error:
        return None, f"the cached engine cannot be read ({error})"
    expected = _sidecar(key, content)
    if not isinstance(stored, dict) or stored.keys() != expected.keys():  # pyright: ignore
        return None, "the cached engine's sidecar is damaged"
    if stored["key"] != expected["key"]:
        return None, "the cached engine was built for something else"
    if stored != expected:
        return None, "the cached engine is damaged (sha256 differs)"
    return content, ""


def store(file: Path, key: Mapping[str, Any], content: bytes) -> None:
    """Write a file and then its sidecar, each of them atomically."""
    write_whole(file, content)
    write_whole(sidecar_of(file), json.dumps(_sidecar(key, content), indent=1) + "\n")


def sidecar_of(file: Path) -> Path:
    """Return the path of a file's sidecar."""
    return file.with_name(file.name + ".json")


def _sidecar(key: Mapping[str, Any], content: bytes) -> dict[str, Any]:
    return {"key": json.loads(json.dumps(key)), "sha256": hashlib.sha256(content).hexdigest()}
