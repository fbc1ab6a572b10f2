"""``vaemotion assemble``: make a verified bundle of parts that were trained elsewhere.

In: a recipe. Out: a bundle folder, made in the steps of an export. There is no checkpoint to compare with:
the golden vectors are what these parts give on this machine, and smaller precisions are compared with them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from export.assemble.engine_file import weight_files, write_engine_file
from export.assemble.language import token_embeddings
from export.assemble.parts import CheckedEngine, Parts, check_parts
from export.assemble.recipe import Recipe, read_recipe
from export.chain import DELIMITERS, EMBEDDINGS, TOKENIZER, Chain
from export.clips import CalibrationWindows, ComparedClips
from export.golden import golden_step
from export.half_engine import fp16_step
from export.publish import (
    announce,
    failures_as_errors,
    is_up_to_date,
    manifest_of,
    publish,
    refuse_other_folder,
    verified,
    with_usage,
)
from export.step_key import imported, source_hash, versions
from export.step_store import MadeFile
from export.verify import checks
from export.workshop import ExportFolder, Made, Step, gguf_name, onnx_name
from runtime.commands.verify import Edge
from runtime.engines.golden import component_key, logit_key, logit_tolerance
from vaemotion.contract import prompts
from vaemotion.contract.bundle import ENGINE_ROLES, Component, Manifest, sha256_of, write_manifest
from vaemotion.contract.errors import UsageError
from vaemotion.contract.prompt_tokens import PromptTokens
from vaemotion.contract.terminal import Terminal
from vaemotion.data.clips.held_out import open_held_out

CALIBRATION_WINDOWS = 64  # on which FP16's overflow is looked for


@dataclass(frozen=True)
class Options:
    """Options of an assembly.

    ``fp16``: make FP16 engines, too. ``calibration``: a manifest whose split ``train`` shows where FP16
    overflows; None for procedural art. ``clips``: how many the parts are run on. ``manifest``: held-out media
    that they are clips of; None for procedural art. All paths start from ``media_root``.
    """

    fp16: bool = False
    calibration: Path | None = None
    clips: int = 8
    manifest: Path | None = None
    media_root: Path = Path()


@dataclass(frozen=True)
class Material:
    """A recipe with the SHA-256 of its files, and the media that its parts are run on.

    ``windows``: of FP16, None without it.
    """

    recipe: Recipe
    hashes: Mapping[str, str]
    clips: ComparedClips
    windows: CalibrationWindows | None


def check_recipe(file: Path, options: Options) -> None:
    """Check a recipe with all its parts, and print what each reads and gives. Nothing is written.

    Raises UserError for the first kind of problem. A language model in a folder is not converted.
    """
    console = Terminal(stderr=True)
    parts = _checked_parts(_material(file, options), console)
    if files := parts.language.files:
        largest = max(files, key=lambda found: found.path.stat().st_size).path
        with console.status("language model"):
            token_embeddings(largest, _prompt_ids(parts), has_grid=parts.recipe.grid is not None)
    console.print(f"{file}: all parts fit", style="green")


def assemble(file: Path, out: Path, options: Options) -> None:
    """Make the bundle of a recipe, verify it and publish it as ``out``.

    A bundle that is up to date is left alone. Raises UserError and leaves ``out`` as it was when a part does
    not fit, a step fails or a comparison does not hold.
    """
    console = Terminal(stderr=True)
    began_s = time.monotonic()
    refuse_other_folder(out)
    material = _material(file, options)
    identity = _identity(material)
    if is_up_to_date(out, identity):
        console.print(f"verified bundle {out} is up to date; delete it to rebuild", style="green")
        return
    parts = _checked_parts(material, console)
    with (
        failures_as_errors(out, "these parts cannot be assembled"),
        ExportFolder(out, material.recipe.license, identity, console) as folder,
    ):
        manifest, edges = _made(folder, parts, material)
        manifest = with_usage(manifest, identity, began_s, folder.peak_bytes)
        publish(folder, out, manifest, edges, "the bundle differs from its parts")
    announce(out, manifest, console)


# --- before the first step ---------------------------------------------------------------------------------


def _material(file: Path, options: Options) -> Material:
    """Read the recipe and open the media.

    Raises ModuleNotFoundError for a package that only a later step loads.
    """
    if find_spec("llama_cpp") is None:
        raise ModuleNotFoundError(name="llama_cpp")
    if options.calibration is not None and not options.fp16:
        raise UsageError("--calibration shows where FP16 overflows; give --fp16 with it, or leave it out")
    recipe = read_recipe(file)
    front_end, root = recipe.front_end, options.media_root
    media = None if options.manifest is None else open_held_out(str(options.manifest), root, front_end)
    windows = None
    if options.fp16:
        windows = CalibrationWindows(front_end, CALIBRATION_WINDOWS, options.calibration, root)
    hashes = {name: sha256_of(path) for name, path in _files(recipe).items()}
    return Material(recipe, hashes, ComparedClips(front_end, options.clips, media), windows)


def _files(recipe: Recipe) -> dict[str, Path]:
    """List every file that the bundle is made of, by a name that begins with its part's."""
    beside = {
        f"{role} {path.name}": path for role in ENGINE_ROLES for path in weight_files(recipe.engine(role))
    }
    return {**recipe.files(), **beside}


def _of_part(hashes: Mapping[str, str], part: str) -> dict[str, str]:
    """Return the hashes of a part's files."""
    return {name: sha256 for name, sha256 in hashes.items() if name.partition(" ")[0] == part}


def _identity(material: Material) -> str:
    """Hash everything that the bundle depends on. Paths do not count."""
    code = imported(("export.assemble.make",))
    depends = {
        "recipe": asdict(material.recipe.without_paths()),
        "parts": material.hashes,
        "clips": [material.clips.count, material.clips.reads],
        "windows": None if material.windows is None else material.windows.reads,
        "source": source_hash(code.modules),
        "packages": versions(code.packages),
    }
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()


def _checked_parts(material: Material, console: Terminal) -> Parts:
    with console.status("running the parts on clips"):
        parts = check_parts(material.recipe, material.clips)
    for line in parts.lines():
        console.print(f"  {line}", soft_wrap=True)
    return parts


# --- the steps ---------------------------------------------------------------------------------------------


def _made(folder: ExportFolder, parts: Parts, material: Material) -> tuple[Manifest, list[Edge]]:
    """Run every step. Returns the manifest with its comparisons."""
    hashes, clips = material.hashes, material.clips
    for role, engine in parts.engines.items():
        folder.step(_engine_step(engine, _of_part(hashes, role)))
    for step in _language_steps(parts, hashes):
        folder.step(step)
    reference_type = _reference_type(parts)
    folder.step(_tables_step(folder, parts, reference_type, hashes))
    with Chain(folder, parts.constants, parts.context_tokens, reference_type, f32_kv=True) as chain:
        reads = {"constants": chain.reads}
        lineage = folder.step(golden_step(chain.reference, clips, reads, chain.files))
        if material.windows is not None:
            for role in ENGINE_ROLES:
                folder.step(fp16_step(folder, chain, material.windows, role))
        folder.finish()
        origin = {"text": parts.recipe.lineage, "sha256": dict(hashes)}
        folder.components = _licensed(parts.recipe, folder.components)
        manifest = manifest_of(
            folder,
            parts.recipe.name,
            parts.constants,
            parts.context_tokens,
            {"assembled": origin, **lineage},
            {"not_judged": list(_not_judged(material))},
        )
        write_manifest(folder.folder, manifest)
        compared = [
            check
            for check in checks(folder.folder, manifest, chain.reference, clips)
            # One that opens no other weights than the reference compares nothing.
            if not {Path(c.path).name for c in check.components if c.precision != "none"} <= set(chain.files)
            and check.clips > 0  # nor does llama.cpp's tokenizer, which no device runs
        ]
        manifest, edges = verified(folder, manifest, compared, reads, clips)
        return _with_logit_tolerances(manifest), edges


def _with_logit_tolerances(manifest: Manifest) -> Manifest:
    """Allow the reference, which is its own golden vector, what other processors round differently."""
    tolerances = dict(manifest.tolerances)
    for component in manifest.components:
        if component.role == "language_model":
            key = logit_key(component_key(component))
            tolerances[key] = max(tolerances[key], logit_tolerance(component.precision))
    return replace(manifest, tolerances=tolerances)


def _engine_step(engine: CheckedEngine, hashes: Mapping[str, str]) -> Step:
    """Take an engine's file over."""
    role = engine.file.role

    def make(folder: Path) -> Made:
        name = onnx_name(role, "fp32")
        write_engine_file(engine.file, folder / name)
        return [MadeFile(name, role, "fp32", engine.inputs, engine.outputs)], {}

    tensors = [asdict(spec) for spec in (*engine.inputs, *engine.outputs)]
    reads = {"files": dict(hashes), "tensors": tensors}
    return Step(f"{role} → ONNX FP32", make, ("export.assemble.engine_file",), reads)


def _language_steps(parts: Parts, hashes: Mapping[str, str]) -> Iterator[Step]:
    """Take the GGUF files over, or convert the folder: first what a device runs, F16 in any case."""
    folder, recipe = parts.recipe.language_model_folder, parts.recipe
    reads = _of_part(hashes, "language_model")
    license = recipe.language_model.license or recipe.license
    sources = {file.type: file.path for file in parts.language.files}
    for file_type in sources or dict.fromkeys((*recipe.language_model.types, "F16")):

        def make(made: Path, file_type: str = file_type) -> Made:
            target = made / gguf_name(file_type)
            if folder is None:
                shutil.copyfile(sources[file_type], target)
            else:
                from export.gguf.folder import write_folder_gguf

                adapter = recipe.language_model_adapter
                write_folder_gguf(folder, target, file_type, adapter=adapter, license=license)
            return [MadeFile(target.name, "language_model", file_type)], {}

        code = () if folder is None else ("export.gguf.folder",)
        yield Step(f"language_model → GGUF {file_type}", make, code, {**reads, "license": license})


def _reference_type(parts: Parts) -> str:
    """Return the GGUF type that others are compared with, the largest."""
    files = parts.language.files
    return max(files, key=lambda file: file.path.stat().st_size).type if files else "F16"


def _tables_step(folder: ExportFolder, parts: Parts, reference_type: str, hashes: Mapping[str, str]) -> Step:
    """Write the language model's token embeddings, the delimiters of sound and the tokenizer."""
    ids, has_grid = _prompt_ids(parts), parts.recipe.grid is not None

    def make(made: Path) -> Made:
        table = token_embeddings(folder.file(gguf_name(reference_type)), ids, has_grid=has_grid)
        np.save(made / EMBEDDINGS, table)
        np.save(made / DELIMITERS, parts.delimiters(table))
        shutil.copyfile(parts.recipe.tokenizer_file, made / TOKENIZER)
        files = {"token_embeddings": EMBEDDINGS, "delimiters": DELIMITERS, "tokenizer": TOKENIZER}
        return [MadeFile(name, role) for role, name in files.items()], {}

    reads = {
        "tokenizer": hashes["tokenizer"],
        "delimiters": [hashes.get("delimiters"), parts.recipe.delimiters.tokens],
        "ids": ids,
        "grid": has_grid,
    }
    code = ("export.assemble.language", "export.assemble.parts")
    name = "token embeddings, delimiters, tokenizer"
    return Step(name, make, code, reads, (gguf_name(reference_type),))


def _prompt_ids(parts: Parts) -> list[int]:
    """Return the ids of a question without media."""
    tokens = PromptTokens(parts.tokenizer, parts.constants.prompt)
    return [*tokens.of_template(parts.constants.prompt.prefix), *tokens.of_question(prompts.CONTENT.text)]


def _licensed(recipe: Recipe, components: list[Component]) -> list[Component]:
    """Give each component the license of its part."""
    part = {"token_embeddings": "language_model"}
    own = {
        c.role: getattr(getattr(recipe, part.get(c.role, c.role), None), "license", "") for c in components
    }
    return [replace(c, licence=own[c.role] or recipe.license) for c in components]


def _not_judged(material: Material) -> Iterator[str]:
    """Say what is not known of the bundle, in one sentence each."""
    yield (
        "whether the readings are right: the golden vectors are what these parts gave when they were "
        "assembled; `vaemotion evaluate` measures accuracy"
    )
    yield "how far readings can be trusted: no confidence and no intervals"
    if material.windows is not None and material.windows.reads["items"] == []:
        yield (
            "where FP16 overflows on media like the training data: it was looked for on procedural art; give "
            "--calibration MANIFEST"
        )
