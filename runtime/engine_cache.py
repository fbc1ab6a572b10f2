"""The cache of built engines on a device: a file and a sidecar with its full key and hash, or nothing.

In: a key (everything that an engine depends on) and the engine's bytes. Out: the bytes again, if and only if the sidecar holds the
very same key and the hash of the very same bytes. Whatever does not fit is built anew; it never reaches the deserialiser.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

RECIPE = 1  # of runtime.tensorrt_build: count up when it builds something else from the same key


@dataclass(frozen=True)
class BatchProfile:
    """Sizes of the free batch dimension: an engine takes ``minimum`` to ``maximum`` and is tuned for ``optimum``."""

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
        """Hexadecimal sha256 of all of it: the engine's name in the cache."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """``$VAEMOTION_CACHE``, else ``$XDG_CACHE_HOME/vaemotion``, else ``~/.cache/vaemotion``."""
    if own := environment.get("VAEMOTION_CACHE"):
        return Path(own)
    if shared := environment.get("XDG_CACHE_HOME"):
        return Path(shared) / "vaemotion"
    return Path.home() / ".cache" / "vaemotion"


def engine_file(folder: Path, role: str, key: EngineKey) -> Path:
    """Where the engine of a role lies, or would."""
    return folder / f"{role}-{key.precision}-{key.digest[:32]}.engine"


def load(file: Path, key: Mapping[str, Any]) -> tuple[bytes | None, str]:
    """The bytes of a file and "", or None and the reason that they cannot be used."""
    try:
        stored: Any = json.loads(sidecar_of(file).read_text())
        content = file.read_bytes()
    except FileNotFoundError:
        return None, "nothing is cached"
    except (OSError, ValueError) as error:
        return None, f"what is cached cannot be read ({error})"
    expected = _sidecar(key, content)
    if not isinstance(stored, dict) or stored.keys() != expected.keys():  # pyright: ignore[reportUnknownMemberType]
        return None, "the cached engine's sidecar is damaged"
    if stored["key"] != expected["key"]:
        return None, "the cached engine was built for something else"
    if stored != expected:
        return None, "the cached engine is damaged (sha256 differs)"
    return content, ""


def store(file: Path, key: Mapping[str, Any], content: bytes) -> None:
    """Write a file and then its sidecar, each complete before it gets its name."""
    file.parent.mkdir(parents=True, exist_ok=True)
    _write(file, content)
    _write(sidecar_of(file), (json.dumps(_sidecar(key, content), indent=1) + "\n").encode())


def sidecar_of(file: Path) -> Path:
    return file.with_name(file.name + ".json")


def _sidecar(key: Mapping[str, Any], content: bytes) -> dict[str, Any]:
    return {"key": json.loads(json.dumps(key)), "sha256": hashlib.sha256(content).hexdigest()}


def _write(file: Path, content: bytes) -> None:
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
