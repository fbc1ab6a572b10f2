"""The bundle: a folder with ``manifest.json`` and ``components/`` that holds all that a device needs.

In: a folder. Out: a checked ``Manifest``. It lists every file with role, precision, sha256, size, license,
and input and output tensors, and it holds every constant of the front end. The golden vectors are inputs with
the outputs that every machine must compute.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from vaemotion.contract.audio import log_mel
from vaemotion.contract.context import OLDER_CONTEXT_TOKENS
from vaemotion.contract.emotions import EMOTIONS, emotion_names_problem
from vaemotion.contract.errors import UserError
from vaemotion.contract.files import write_whole
from vaemotion.contract.front_end import FrontEnd
from vaemotion.contract.image import ImageConfig, prepare_frame
from vaemotion.contract.onnx_weights import DATA_SUFFIX, external_files
from vaemotion.contract.plain_text import plain_values
from vaemotion.contract.positions import PictureGrid
from vaemotion.contract.prompts import PromptTemplate
from vaemotion.contract.records import strict_record
from vaemotion.contract.settings import shown
from vaemotion.contract.speech import UNSET, Speech

SCHEMA_VERSION = 1
MANIFEST_FILE = "manifest.json"
ENGINE_ROLES = ("vision_encoder", "audio_encoder", "emo_adapter")
ROLES = (*ENGINE_ROLES, "language_model", "token_embeddings", "delimiters", "tokenizer", "golden")
LOG_MEL_TOLERANCE = 1e-3
_WAY_OUT = "copy or export the bundle again"


class BundleError(UserError):
    """A bundle that is missing, damaged, or not for this version. The message names the component."""


@dataclass(frozen=True)
class TensorSpec:
    """An engine's input or output. A dimension is a size, or a name for a free one."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str


@dataclass(frozen=True)
class Component:
    """One file of the bundle.

    ``path`` is relative to the bundle. ``precision``: such as "fp32", "F16" (GGUF), or "none". ``licence``:
    an SPDX identifier. ``weights_bytes``, ``activation_bytes``: memory of an engine's weights, and the most
    that a batch of one needs besides them; 0 where it is not known. ``data_sha256``: of the file
    ``path``.data, which holds the weights of an engine that one file cannot hold; "" where there is none.
    ``data_bytes``: its size, which ``bytes`` includes.
    """

    role: str
    precision: str
    path: str
    sha256: str
    bytes: int
    licence: str
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    weights_bytes: int = 0
    activation_bytes: int = 0
    data_sha256: str = ""
    data_bytes: int = 0

    @property
    def label(self) -> str:
        """The role with its precision, for messages."""
        return self.role if self.precision == "none" else f"{self.role} ({self.precision})"

    @property
    def files(self) -> dict[str, tuple[int, str]]:
        """Size and SHA-256 of each of its files, by path."""
        files = {self.path: (self.bytes - self.data_bytes, self.sha256)}
        if self.data_sha256:
            files[self.path + DATA_SUFFIX] = (self.data_bytes, self.data_sha256)
        return files


@dataclass(frozen=True)
class Manifest:
    """The content of ``manifest.json``.

    ``tolerances``: largest allowed difference from the golden vectors, by "role/precision"; of a language
    model by "role/precision/spread", in shares of the logits' standard deviation, or as older manifests have
    it, by "role/precision" in logits. ``lineage``: the checkpoint, tools and data that the bundle was made
    from. ``verification``: the comparisons with the checkpoint at export. ``emotions``: the names of the
    EmoAdapter's emotions, in its order. ``speech``: how narrations are spoken, as far as the bundle sets it.
    ``context_tokens``: of the language model. ``picture_grid``: of a frame's tokens, where the language model
    places them in two dimensions.
    """

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
    emotions: tuple[str, ...] = EMOTIONS
    speech: Speech = UNSET
    context_tokens: int = OLDER_CONTEXT_TOKENS
    picture_grid: PictureGrid | None = None

    @property
    def verified(self) -> bool:
        """True where every comparison at export held."""
        return self.verification.get("verified") is True

    def component(self, role: str, precision: str | None = None) -> Component:
        """Return the component of a role in a precision (None: the first listed). Raises BundleError."""
        for component in self.components:
            if component.role == role and precision in (None, component.precision):
                return component
        wanted = role if precision is None else f"{role} in {precision}"
        raise BundleError(f"the bundle has no {wanted}; it has {', '.join(c.label for c in self.components)}")


def sha256_of(file: Path) -> str:
    """Return the hexadecimal sha256 of a file's content."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` atomically."""
    write_whole(folder / MANIFEST_FILE, json.dumps(asdict(manifest), indent=1) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest and check its structure and paths; no other file is read. Raises BundleError."""
    file = folder / MANIFEST_FILE
    try:
        values: Any = json.loads(file.read_text())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(f"no bundle at '{folder}' ({MANIFEST_FILE} not found)") from error
    except OSError as error:
        raise BundleError(f"{file} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{file} is not JSON ({error}); {_WAY_OUT}") from error
    version: Any = values.get("schema_version") if hasattr(values, "get") else None
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{file} has schema version {version}, this runtime implements {SCHEMA_VERSION}; "
            f"export the checkpoint again with this version"
        )
    try:
        manifest = _manifest_from(_plain(values))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise BundleError(f"{file} is not a manifest that this version implements: {error}") from error
    for component in manifest.components:
        component_path(folder, component)
    for role in ROLES:
        manifest.component(role)
    return manifest


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest's values with plain text, except what the language model is told."""
    told = ("prompt", "speech")
    return {key: value if key in told else plain_values(value) for key, value in values.items()}


def _manifest_from(values: dict[str, Any]) -> Manifest:
    components = tuple(
        strict_record(
            Component,
            {
                **_OLDER_COMPONENT,
                **entry,
                "inputs": _specs(entry["inputs"]),
                "outputs": _specs(entry["outputs"]),
            },
            "a component",
        )
        for entry in values["components"]
    )
    converted = {
        **values,
        "components": components,
        "stop_token_ids": tuple(int(i) for i in values["stop_token_ids"]),
        "front_end": FrontEnd.from_dict(values["front_end"]),
        "prompt": strict_record(PromptTemplate, {**_NO_PICTURE_TEXTS, **values["prompt"]}, "prompt"),
        # Manifests that are older than the field have the nine.
        "emotions": _emotions(values.get("emotions", list(EMOTIONS)), components),
        "speech": _speech(values.get("speech", {})),
        "context_tokens": int(values.get("context_tokens", OLDER_CONTEXT_TOKENS)),
        "picture_grid": _picture_grid(values.get("picture_grid"), values["tokens_per_frame"]),
    }
    return strict_record(Manifest, converted, "the manifest")


def _emotions(names: Any, components: tuple[Component, ...]) -> tuple[str, ...]:
    """Return the names of the emotions. Raises ValueError where the EmoAdapter gives another number."""
    if not isinstance(names, list):
        raise ValueError(f"emotions must be a list of names, got {shown(names)}")
    emotions = tuple(cast(list[Any], names))
    if problem := emotion_names_problem(emotions):
        raise ValueError(f"emotions {problem}")
    for component in components:
        shapes = {output.name: output.shape for output in component.outputs}
        given = shapes.get("emotions", ())[-1:]
        if component.role == "emo_adapter" and given and given[0] != len(emotions):
            raise ValueError(f"{component.label} gives {given[0]} emotions, but {len(emotions)} are named")
    return emotions


def _speech(values: Any) -> Speech:
    """Return the speech of a manifest, which may leave any of its fields out."""
    defaults = asdict(UNSET)
    for name, value in values.items():
        if name in defaults and type(value) is not type(defaults[name]):
            raise ValueError(f"speech.{name} must be like {defaults[name]!r}, got {shown(value)}")
    return strict_record(Speech, {**defaults, **values}, "speech")


def _picture_grid(values: Any, tokens_per_frame: Any) -> PictureGrid | None:
    if values is None:
        return None
    grid = strict_record(PictureGrid, values, "picture_grid")
    if grid.tokens != tokens_per_frame:
        raise ValueError(
            f"picture_grid has {grid.tokens} tokens, and tokens_per_frame is {shown(tokens_per_frame)}"
        )
    return grid


def _specs(entries: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(
        strict_record(TensorSpec, {**entry, "shape": tuple(entry["shape"])}, "a tensor") for entry in entries
    )


# Of manifests that are older than these fields.
_NO_PICTURE_TEXTS = {"before_picture": "", "after_picture": "", "stops": ()}
_OLDER_COMPONENT = {"weights_bytes": 0, "activation_bytes": 0, "data_sha256": "", "data_bytes": 0}


def component_path(folder: Path, component: Component) -> Path:
    """Return the component's file. Raises BundleError for a path that leaves the bundle."""
    return _file_path(folder, component, component.path)


def _file_path(folder: Path, component: Component, name: str) -> Path:
    root = folder.resolve()
    if component.role not in ROLES:
        raise BundleError(
            f"the manifest lists the role {component.role!r}; this runtime knows {', '.join(ROLES)}"
        )
    try:
        path = (root / name).resolve()
        path.is_file()  # fails on a name that no file can have
    except (TypeError, ValueError, OSError, RuntimeError) as error:
        raise BundleError(f"{component.label}: {name!r} cannot be the path of a file ({error})") from error
    if Path(name).is_absolute() or not path.is_relative_to(root):
        raise BundleError(f"{component.label}: its path {name!r} leaves the bundle's folder")
    return path


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Check size and sha256 of every component's files, and that an engine reads no other files.

    Raises BundleError that names the first wrong one.
    """
    for component in manifest.components:
        for name, (bytes_, sha256) in component.files.items():
            path = _file_path(folder, component, name)
            if not path.is_file():
                raise BundleError(f"{component.label}: {name} is missing; {_WAY_OUT}")
            size = path.stat().st_size
            if size != bytes_:
                raise BundleError(f"{component.label}: {name} has {size} bytes, not {bytes_}; {_WAY_OUT}")
            if sha256_of(path) != sha256:
                raise BundleError(f"{component.label}: {name} is damaged (sha256 differs); {_WAY_OUT}")
        if component.role in ENGINE_ROLES:
            _refuse_unlisted_weights(component, component_path(folder, component))


def _refuse_unlisted_weights(component: Component, path: Path) -> None:
    """Raise BundleError for a graph that reads weights from a file whose hash the manifest does not have."""
    try:
        reads = external_files(path)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{component.label}: {component.path} is not an ONNX file ({error})") from error
    listed = {Path(name).name for name in component.files} - {path.name}
    if unlisted := sorted(reads - listed):
        raise BundleError(
            f"{component.label}: {component.path} reads weights from {shown(unlisted[0])}, which the "
            f"manifest does not list; {_WAY_OUT}"
        )


def read_golden(folder: Path, manifest: Manifest) -> dict[str, npt.NDArray[Any]]:
    """Read the golden vectors by name, ``<component>/<input or output name>``. Pickled data is refused."""
    with np.load(component_path(folder, manifest.component("golden")), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def pixel_tolerance(image: ImageConfig) -> float:
    """Return two steps of 8 bits in normalized units: resizing on ARM may differ in the last bit."""
    return 2 / 255 / image.std


def check_front_end(manifest: Manifest, golden: dict[str, npt.NDArray[Any]]) -> dict[str, float]:
    """Compare this machine's log-mel and pixels with the golden vectors.

    Returns the largest difference of each. Raises BundleError where one exceeds its tolerance, because the
    device then computes other inputs than those of the training.
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
    compared = (
        ("log_mel", mel, LOG_MEL_TOLERANCE),
        ("pixels", pixels, pixel_tolerance(front_end.image)),
    )
    for name, ours, tolerance in compared:
        expected = golden[f"{name}/output"]
        difference = float(np.abs(ours - expected).max()) if ours.shape == expected.shape else float("inf")
        if not difference <= tolerance:
            raise BundleError(
                f"{name}: this machine's front end differs by {difference:.3g} from the bundle's golden "
                f"vector (allowed {tolerance:.3g}); install the NumPy and OpenCV of its export"
            )
        measured[name] = difference
    return measured
