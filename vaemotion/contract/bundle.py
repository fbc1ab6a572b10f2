"""The bundle: a folder with ``manifest.json`` and ``components/``, everything a device needs.

In: a folder. Out: a checked ``Manifest``. Every file is listed with role, precision, sha256, size, tensors in and out, and
licence; every constant of the front end is there, with golden vectors (an input and the output it must give).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from vaemotion.contract.audio import log_mel
from vaemotion.contract.errors import UserError
from vaemotion.contract.front_end import FrontEnd
from vaemotion.contract.image import prepare_frame
from vaemotion.contract.prompts import PromptTemplate

SCHEMA_VERSION = 1
MANIFEST_FILE = "manifest.json"
ENGINE_ROLES = ("vision_encoder", "audio_encoder", "emo_adapter")
ROLES = (*ENGINE_ROLES, "language_model", "token_embeddings", "delimiters", "tokenizer", "golden")
LOG_MEL_TOLERANCE = 1e-3
PIXEL_TOLERANCE = (
    2 / 255 / 0.5
)  # two steps of 8 bits, in normalised units: ARM's resizing may differ in the last bit

_Record = TypeVar("_Record")


class BundleError(UserError):
    """A bundle that is missing, damaged, or not for this version. The message names the component."""


@dataclass(frozen=True)
class TensorSpec:
    """An engine's input or output. A dimension is a size, or a name where it is free."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str


@dataclass(frozen=True)
class Component:
    """One file of the bundle. ``path`` is relative to the bundle; ``precision`` e.g. "fp32", "F16" (GGUF), "none"."""

    role: str
    precision: str
    path: str
    sha256: str
    bytes: int
    licence: str
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()

    @property
    def label(self) -> str:
        return self.role if self.precision == "none" else f"{self.role} ({self.precision})"


@dataclass(frozen=True)
class Manifest:
    """``tolerances``: largest difference to the golden vectors allowed per engine, keyed "role/precision".
    ``lineage``: where the bundle comes from; ``verification``: what was measured when it was made."""

    name: str
    token_width: int
    tokens_per_frame: int
    audio_tokens: int
    stop_token_ids: tuple[int, ...]
    front_end: FrontEnd
    prompt: PromptTemplate
    components: tuple[Component, ...]
    tolerances: dict[str, float]
    lineage: dict[str, Any]
    verification: dict[str, Any]
    schema_version: int = SCHEMA_VERSION

    @property
    def verified(self) -> bool:
        """Whether every comparison held when it was exported."""
        return self.verification.get("verified") is True

    def component(self, role: str, precision: str | None = None) -> Component:
        """The component of a role (and precision; the first listed when None)."""
        for component in self.components:
            if component.role == role and precision in (None, component.precision):
                return component
        wanted = role if precision is None else f"{role} in {precision}"
        raise BundleError(f"the bundle has no {wanted}; it has {', '.join(c.label for c in self.components)}")


def sha256_of(file: Path) -> str:
    """Hexadecimal sha256 of a file's content."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def publish_folder(temporary: Path, final: Path) -> None:
    """Move a complete folder to its final name; what stood there before is removed only afterwards."""
    old = final.with_name(final.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        os.replace(final, old)
    os.replace(temporary, final)
    shutil.rmtree(old, ignore_errors=True)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` atomically."""
    file = folder / MANIFEST_FILE
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(asdict(manifest), indent=1) + "\n")
    os.replace(temporary, file)


def read_manifest(folder: Path) -> Manifest:
    """The manifest, its structure checked; the files are not read. Raises BundleError."""
    file = folder / MANIFEST_FILE
    try:
        values: Any = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise BundleError(
            f"{folder} is not a bundle: {MANIFEST_FILE} is missing or unreadable ({error})"
        ) from error
    version: Any = values.get("schema_version") if hasattr(values, "get") else None
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{file} has schema version {version}, this runtime implements {SCHEMA_VERSION}; "
            f"export the checkpoint again with this version"
        )
    try:
        manifest = _manifest_from(values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{file} is not a manifest this runtime implements: {error}") from error
    for component in manifest.components:
        component_path(folder, component)
    for role in ROLES:
        manifest.component(role)
    return manifest


def _manifest_from(values: dict[str, Any]) -> Manifest:
    components = tuple(
        _record(
            Component,
            {**entry, "inputs": _specs(entry["inputs"]), "outputs": _specs(entry["outputs"])},
        )
        for entry in values["components"]
    )
    converted = {
        **values,
        "components": components,
        "stop_token_ids": tuple(int(i) for i in values["stop_token_ids"]),
        "front_end": FrontEnd.from_dict(values["front_end"]),
        "prompt": _record(PromptTemplate, {**_NO_PICTURE_TEXTS, **values["prompt"]}),
    }
    return _record(Manifest, converted)


def _specs(entries: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(_record(TensorSpec, {**entry, "shape": tuple(entry["shape"])}) for entry in entries)


_NO_PICTURE_TEXTS = {"before_picture": "", "after_picture": ""}  # what a bundle meant before it could say so


def _record(kind: type[_Record], values: dict[str, Any]) -> _Record:
    """A dataclass from a dictionary; unknown and missing keys are named."""
    names = {f.name for f in fields(kind)}  # pyright: ignore[reportArgumentType]
    if unknown := set(values) - names:
        raise ValueError(f"{kind.__name__} does not know {sorted(unknown)}")
    if missing := names - set(values):
        raise ValueError(f"{kind.__name__} lacks {sorted(missing)}")
    return kind(**values)


def component_path(folder: Path, component: Component) -> Path:
    """The component's file; a path that leaves the bundle is refused."""
    root = folder.resolve()
    if component.role not in ROLES:
        raise BundleError(
            f"the manifest lists the role {component.role!r}; this runtime knows {', '.join(ROLES)}"
        )
    try:
        path = (root / component.path).resolve()
        path.is_file()  # fails on a name that no file can have
    except (TypeError, ValueError, OSError, RuntimeError) as error:
        raise BundleError(
            f"{component.label}: {component.path!r} cannot be the path of a file ({error})"
        ) from error
    if Path(component.path).is_absolute() or not path.is_relative_to(root):
        raise BundleError(f"{component.label}: its path {component.path!r} leaves the bundle's folder")
    return path


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Size and sha256 of every component. Raises BundleError that names the first one that differs."""
    for component in manifest.components:
        path = component_path(folder, component)
        way_out = "copy or export the bundle again"
        if not path.is_file():
            raise BundleError(f"{component.label}: {component.path} is missing; {way_out}")
        size = path.stat().st_size
        if size != component.bytes:
            raise BundleError(
                f"{component.label}: {component.path} has {size} bytes, not {component.bytes}; {way_out}"
            )
        if sha256_of(path) != component.sha256:
            raise BundleError(f"{component.label}: {component.path} is damaged (sha256 differs); {way_out}")


def read_golden(folder: Path, manifest: Manifest) -> dict[str, npt.NDArray[Any]]:
    """The golden vectors by name, ``<what>/<input or output name>``; nothing pickled is ever loaded."""
    with np.load(component_path(folder, manifest.component("golden")), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def check_front_end(manifest: Manifest, golden: dict[str, npt.NDArray[Any]]) -> dict[str, float]:
    """This machine's log-mel and pixels against the golden vectors. Returns the largest differences.

    Raises BundleError where one exceeds its tolerance: what the device computes is then not what was trained on.
    """
    names = ("log_mel/samples", "log_mel/output", "pixels/picture", "pixels/output")
    if missing := [name for name in names if name not in golden]:
        raise BundleError(
            f"golden: the bundle's golden vectors lack {', '.join(missing)}; export the checkpoint again"
        )
    front_end = manifest.front_end
    mel = log_mel(golden["log_mel/samples"], front_end.log_mel)
    pixels = prepare_frame(golden["pixels/picture"], front_end.image)
    measured: dict[str, float] = {}
    for name, ours, tolerance in (("log_mel", mel, LOG_MEL_TOLERANCE), ("pixels", pixels, PIXEL_TOLERANCE)):
        expected = golden[f"{name}/output"]
        difference = float(np.abs(ours - expected).max()) if ours.shape == expected.shape else float("inf")
        if not difference <= tolerance:
            raise BundleError(
                f"{name}: this machine's front end differs by {difference:.3g} from the bundle's golden vector "
                f"(allowed {tolerance:.3g}); the versions of NumPy or OpenCV may differ too much"
            )
        measured[name] = difference
    return measured
