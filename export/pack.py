"""``vaemotion export``: a checkpoint becomes a verified bundle, or nothing.

Everything is written to a temporary folder beside the target, verified there on real inputs, and moved to its name only when
every edge holds.
"""

from __future__ import annotations

import importlib.metadata
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from export.to_gguf import LlamaShape, SpecialTokens, write_llama_gguf
from export.to_onnx import ExportError, device_parts, export_onnx
from export.verify import golden_vectors, verify_against
from runtime.self_test import Edge, VerificationError, edges_table
from vaemotion.contract.bundle import (
    ENGINE_ROLES,
    Component,
    Manifest,
    TensorSpec,
    publish_folder,
    sha256_of,
    write_manifest,
)
from vaemotion.model.checkpoint import load_checkpoint, read_config
from vaemotion.model.vaemotion_llm import VAEmotionLLM

LANGUAGE_MODEL_TYPES = ("F16", "Q8_0")  # the first is the one that the runtime takes unless asked
TOOLS = (
    "vaemotion",
    "torch",
    "transformers",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "gguf",
    "llama-cpp-python",
    "numpy",
)
# A device may differ from the golden vectors by twice what was measured here, and by this much in any case: other
# processors sum in another order, and nobody shall be called to a gallery for that. Relative (engines); in logits.
SMALLEST_TOLERANCE, SMALLEST_LOGIT_TOLERANCE = 1e-4, 0.03


@dataclass
class Writer:
    """Collects the components written below ``folder``."""

    folder: Path
    licence: str
    components: list[Component]

    def add(
        self, role: str, precision: str, path: Path, inputs: tuple[TensorSpec, ...] = (), outputs: tuple[TensorSpec, ...] = ()
    ) -> None:  # fmt: skip
        """List a file that lies in the folder."""
        relative = path.relative_to(self.folder).as_posix()
        size = path.stat().st_size
        self.components.append(
            Component(role, precision, relative, sha256_of(path), size, self.licence, inputs, outputs)
        )


def export_bundle(checkpoint: Path, out: Path) -> None:
    """Export, verify, publish. Raises UserError and leaves ``out`` as it was when anything does not hold."""
    console = Console(stderr=True)
    began = time.monotonic()
    if out.exists() and not (out / "manifest.json").is_file():
        raise ExportError(f"{out} exists and is not a bundle; give --out a folder that does not exist yet")
    model = load_checkpoint(checkpoint)
    stored = read_config(checkpoint)
    temporary = out.with_name(out.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with _failures_as_errors():
            (temporary / "components").mkdir(parents=True)
            manifest = _write_components(model, stored, checkpoint, temporary, console)
            manifest, edges = _verified(model, temporary, manifest, console)
        usage = {
            "export_s": round(time.monotonic() - began, 1),
            "export_peak_memory_mb": round(peak_memory_mb()),
        }
        with _failures_as_errors():
            write_manifest(temporary, replace(manifest, lineage={**manifest.lineage, **usage}))
            publish_folder(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    console.print(edges_table(edges))
    console.print(
        f"[green]verified bundle[/] {out}: {sum(c.bytes for c in manifest.components) / 1e6:.1f} MB, "
        f"made in {usage['export_s']:.0f} s, peak memory {usage['export_peak_memory_mb']} MB"
    )


@contextmanager
def _failures_as_errors() -> Iterator[None]:
    """A full disk and an impossible checkpoint are the user's to mend."""
    try:
        yield
    except OSError as error:
        raise ExportError(
            f"writing the bundle failed: {error}; nothing was left under the final name"
        ) from error
    except ValueError as error:
        raise ExportError(f"this checkpoint cannot be exported: {error}") from error


def peak_memory_mb() -> float:
    """The process's largest resident set so far."""
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _write_components(
    model: VAEmotionLLM, stored: dict[str, Any], checkpoint: Path, folder: Path, console: Console
) -> Manifest:
    assert model.config is not None
    parts = device_parts(model)
    writer = Writer(folder, stored["licence"], [])
    directory = folder / "components"

    def step(what: str, work: Callable[[], None]) -> None:
        with console.status(what):
            work()
        console.print(f"  {what}: {writer.components[-1].bytes / 1e6:.1f} MB", highlight=False)

    def onnx_part(role: str) -> None:
        path = directory / f"{role}.fp32.onnx"
        writer.add(role, "fp32", path, *export_onnx(parts[role], path))

    for role in ENGINE_ROLES:
        step(f"{role} → ONNX FP32", lambda role=role: onnx_part(role))
    for file_type in LANGUAGE_MODEL_TYPES:
        step(
            f"language_model → GGUF {file_type}",
            lambda kind=file_type: _write_gguf(model, stored, checkpoint, writer, kind),
        )
    step("token embeddings, delimiters, tokenizer", lambda: _write_tables(model, checkpoint, writer))
    step("golden vectors", lambda: _write_golden(model, writer))
    assert model.audio is not None
    return Manifest(
        name=stored["lineage"]["name"],
        token_width=model.width,
        tokens_per_frame=model.tokens_per_picture,
        audio_tokens=model.audio.n_tokens,
        stop_token_ids=(model.stop_id,),
        front_end=model.config.front_end,
        prompt=model.config.prompt,
        components=tuple(writer.components),
        tolerances={},
        lineage={
            "checkpoint_config_sha256": sha256_of(checkpoint / "config.json"),
            "checkpoint_components": stored["components"],
            "tools": {name: _version(name) for name in TOOLS},
        },
        verification={},
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def language_model_tensors(model: VAEmotionLLM) -> dict[str, np.ndarray[Any, Any]]:
    """The decoder's weights under Llama's own names."""
    tensors = {name: tensor.numpy() for name, tensor in model.base.model.text_model.state_dict().items()}
    if not model.base.config.text_config.tie_word_embeddings:
        tensors["lm_head.weight"] = model.base.lm_head.weight.detach().numpy()
    return tensors


def _write_gguf(
    model: VAEmotionLLM, stored: dict[str, Any], checkpoint: Path, writer: Writer, file_type: str
) -> None:
    text_config = model.base.config.text_config
    path = writer.folder / "components" / f"language_model.{file_type}.gguf"
    write_llama_gguf(
        path,
        language_model_tensors(model),
        LlamaShape.from_config(text_config),
        checkpoint / stored["components"]["tokenizer"]["file"],
        file_type=file_type,
        name=stored["lineage"]["name"],
        licence=writer.licence,
        special=SpecialTokens(text_config.bos_token_id, model.stop_id, text_config.pad_token_id),
    )
    writer.add("language_model", file_type, path)


def _write_tables(model: VAEmotionLLM, checkpoint: Path, writer: Writer) -> None:
    directory = writer.folder / "components"
    assert model.audio is not None
    embeddings = model.base.model.get_input_embeddings().weight.detach().half().numpy()  # (vocab, D)
    np.save(directory / "token_embeddings.npy", embeddings)
    np.save(directory / "delimiters.npy", model.audio.delimiters.detach().numpy())
    shutil.copyfile(checkpoint / "tokenizer.json", directory / "tokenizer.json")
    writer.add("token_embeddings", "none", directory / "token_embeddings.npy")
    writer.add("delimiters", "none", directory / "delimiters.npy")
    writer.add("tokenizer", "none", directory / "tokenizer.json")


def _write_golden(model: VAEmotionLLM, writer: Writer) -> None:
    path = writer.folder / "components" / "golden.npz"
    vectors: dict[str, Any] = golden_vectors(model)
    np.savez_compressed(path, **vectors)
    writer.add("golden", "none", path)


def _verified(
    model: VAEmotionLLM, folder: Path, manifest: Manifest, console: Console
) -> tuple[Manifest, list[Edge]]:
    """The manifest with what was measured; a breach raises VerificationError after its table was printed."""
    with console.status("verifying every edge on real inputs"):
        write_manifest(folder, manifest)
        edges = verify_against(folder, model)
    broken = [edge for edge in edges if not edge.holds]
    if broken:
        console.print(edges_table(edges))
        raise VerificationError(
            f"the export differs from its checkpoint: {broken[0].sentence()}; no bundle was written"
        )
    golden = {edge.component: edge.measured for edge in edges if edge.kind == "golden"}
    tolerances = {
        key: max(
            SMALLEST_LOGIT_TOLERANCE if key.startswith("language_model/") else SMALLEST_TOLERANCE, 2 * value
        )
        for key, value in golden.items()
    }
    return replace(
        manifest, tolerances=tolerances, verification={"edges": [vars(edge) for edge in edges]}
    ), edges
