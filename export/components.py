"""Steps that make the files of a bundle: ONNX in two precisions, GGUF, tables, golden vectors.

In: the checkpoint, calibration windows, and the folder with the files of earlier steps. Out: a `Step` for
each, which names everything that its result depends on. INT8 engines are made in `export.int8.plan`.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from calibration.confidence import fit_confidence
from calibration.importance import collect_importance, write_importance
from calibration.rated import RatedMaterial
from calibration.samples import coverage
from export.chain import (
    DELIMITERS,
    EMBEDDINGS,
    REFERENCE_FILES,
    TOKENIZER,
    Chain,
)
from export.clips import CalibrationWindows
from export.gguf.quantise import fallbacks, quantize_gguf, stored_tensors
from export.gguf.write import write_decoder_gguf
from export.half_weights import store_exact_halves
from export.source import Source
from export.step_store import MadeFile
from export.to_onnx import export_onnx
from export.workshop import ExportFolder, Made, Step, gguf_name, onnx_name
from vaemotion.contract.errors import UserError

FLOAT_TYPES = ("F16", "Q8_0")  # written from the weights; the others by llama.cpp's quantizer
SMALL_TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M")  # of language models, besides F16; the largest first
IMPORTANCE = "importance.gguf"


# --- of the checkpoint ------------------------------------------------------------------------------------


def fp32_step(source: Source, role: str, exporter: str) -> Step:
    """Trace one engine in FP32 by an exporter of ``export.to_onnx.EXPORTERS``."""
    part, config = source.parts[role], source.config
    component, sizes = {
        "vision_encoder": ("base", config["vlm"]),
        "audio_encoder": ("audio", config["audio"]),
        "emo_adapter": ("adapter", config["adapter"]),
    }[role]

    def make(folder: Path) -> Made:
        name = onnx_name(role, "fp32")
        inputs, outputs = export_onnx(part, folder / name, exporter)
        store_exact_halves(folder / name)
        return [MadeFile(name, role, "fp32", inputs, outputs)], {}

    reads = {
        "weights": source.hashes(component),
        "sizes": sizes,
        "width": source.model.width,
        "inputs": {name: [list(tensor.shape), str(tensor.dtype)] for name, tensor in part.inputs.items()},
        "outputs": part.outputs,
        "exporter": exporter,
    }
    code = ("export.to_onnx", "export.half_weights", "vaemotion.model.checkpoint")
    return Step(f"{role} → ONNX FP32", make, code, reads)


def gguf_step(source: Source, file_type: str) -> Step:
    """Write the language model as GGUF, F16 or Q8_0."""

    def make(folder: Path) -> Made:
        name = gguf_name(file_type)
        written = write_decoder_gguf(
            folder / name,
            source.language_model_tensors(),
            source.decoder_shape,
            source.gguf_tokenizer,
            file_type=file_type,
            name=source.name,
            license=source.license,
        )
        return [MadeFile(name, "language_model", file_type)], {"tensor_types": written}

    reads = {
        "weights": source.hashes("base", "tokenizer"),
        "sizes": source.config["vlm"],
        "tokenizer": {**asdict(source.gguf_tokenizer), "json": None},  # its text is one of the weights
        "name": source.name,
        "license": source.license,
    }
    return Step(f"language_model → GGUF {file_type}", make, ("export.source", "export.gguf.write"), reads)


def tables_step(source: Source) -> Step:
    """Write the token embeddings, the delimiters of sound and the tokenizer."""

    def make(folder: Path) -> Made:
        model = source.model
        embeddings = model.backbone.embedding.weight.detach().half().numpy()  # (vocab, D)
        np.save(folder / EMBEDDINGS, embeddings)
        np.save(folder / DELIMITERS, model.audio_pathway.delimiters.detach().numpy())
        (folder / TOKENIZER).write_text(source.tokenizer, encoding="utf-8", newline="")
        files = {"token_embeddings": EMBEDDINGS, "delimiters": DELIMITERS, "tokenizer": TOKENIZER}
        return [MadeFile(name, role) for role, name in files.items()], {}

    reads = {
        "weights": source.hashes("base", "audio", "tokenizer"),
        "sizes": [source.config["vlm"], source.config["audio"]],
    }
    name = "token embeddings, delimiters, tokenizer"
    return Step(name, make, ("vaemotion.model.checkpoint",), reads)


# --- of the FP32 chain -------------------------------------------------------------------------------------


def confidence_step(folder: ExportFolder, chain: Chain, material: RatedMaterial) -> Step:
    """Fit the confidence of readings. Its notes are empty where the material or the time is too little."""

    def make(_: Path) -> Made:
        try:
            found = fit_confidence(chain.reference(), material)
            return [], {"confidence": found.as_json(), "confidence_source": material.name}
        except UserError as error:  # a bundle without confidence is complete, too
            folder.console.print(f"  {error}", style="yellow")
            return [], {}

    return Step(
        "confidence of readings",
        make,
        ("calibration.confidence", "export.chain"),
        {**chain.engine_reads, "material": material.reads},
        REFERENCE_FILES,
    )


# --- of the calibration windows ----------------------------------------------------------------------------


def coverage_step(windows: CalibrationWindows) -> Step:
    """Draw the calibration windows and describe them."""

    def make(_: Path) -> Made:
        samples = windows()
        scenes = [s.inputs for s in samples if s.kind == "scene"]
        counts = {
            "with_frames": sum(len(inputs.pixels) > 0 for inputs in scenes),
            "with_sound": sum(len(inputs.log_mel) > 0 for inputs in scenes),
            "with_both": sum(len(inputs.pixels) > 0 and len(inputs.log_mel) > 0 for inputs in scenes),
        }
        windows.free()  # memory that the next steps need
        return [], {"coverage": coverage(samples), **counts}

    return Step("calibration windows", make, ("export.clips",), windows.reads)


def importance_step(folder: ExportFolder, chain: Chain, windows: CalibrationWindows) -> Step:
    """Measure how much each channel of the language model carries. The file is no part of the bundle."""

    def make(made: Path) -> Made:
        prompts = chain.prompts(windows, held_out=False)
        rows = [prompt.rows for prompt in prompts]
        importance = collect_importance(folder.file(gguf_name("F16")), rows)
        write_importance(made / IMPORTANCE, importance, f"{len(prompts)} prompts with sight and sound")
        return [MadeFile(IMPORTANCE)], {"prompts": len(prompts)}

    reads = {"samples": windows.reads, "constants": chain.reads}
    code = ("calibration.importance", "export.chain")
    return Step("importance of the language model's channels", make, code, reads, REFERENCE_FILES)


def quantized_step(folder: ExportFolder, chain: Chain, windows: CalibrationWindows, file_type: str) -> Step:
    """Make a smaller GGUF, and measure its loss where answers to prompts with real embeddings are spoken."""
    is_written = file_type in FLOAT_TYPES  # by `gguf_step`

    def make(made: Path) -> Made:
        original = folder.file(gguf_name("F16"))
        small = folder.file(gguf_name(file_type)) if is_written else made / gguf_name(file_type)
        notes: dict[str, Any] = {}
        if not is_written:
            notes["tensor_types"] = quantize_gguf(original, small, file_type, folder.file(IMPORTANCE))
            notes["fallbacks"] = fallbacks(stored_tensors(small), file_type)
        quality = chain.judge(windows)(small)
        file = MadeFile(small.name, "language_model", file_type)
        return [] if is_written else [file], {**notes, "quality": vars(quality)}

    reads = {"samples": windows.reads, "constants": chain.reads}
    code = ("export.chain", "export.gguf.quality", "export.gguf.quantise")
    files = (*REFERENCE_FILES, gguf_name(file_type) if is_written else IMPORTANCE)
    return Step(f"language_model → {file_type}", make, code, reads, files)


def small_language_models(
    folder: ExportFolder, chain: Chain, windows: CalibrationWindows, max_kl_nats: float
) -> dict[str, dict[str, Any]]:
    """Make smaller GGUF files, the largest first, until one loses more than ``max_kl_nats`` a token.

    Returns the loss of each by type (`export.gguf.quality.KlReport`), the one that loses too much included.
    """
    quality: dict[str, dict[str, Any]] = {}
    for file_type in SMALL_TYPES:
        quality[file_type] = folder.step(quantized_step(folder, chain, windows, file_type))["quality"]
        if quality[file_type]["mean_kl_nats"] > max_kl_nats:
            break
    return quality
