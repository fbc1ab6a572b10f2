"""Writes the files of a bundle, one function each: ONNX in three precisions, GGUF, tables, golden vectors.

In: the model and the ``Workshop`` that the bundle is made in. Out: components with the notes that the manifest keeps.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from tokenizers import Tokenizer

from calibration.fp16 import half_precision, overflowing
from calibration.importance import collect_importance, write_importance
from calibration.samples import Sample
from export.budget import calibration_inputs
from export.gguf_quality import gguf_quality
from export.quantise_gguf import QUANTISED_TYPES, fallbacks, quantise_gguf, stored_tensors
from export.to_gguf import LlamaShape, SpecialTokens, write_llama_gguf
from export.to_onnx import Part, export_onnx, tensor_specs
from export.verify import golden_vectors, narrator_prompt
from export.workshop import Made, Workshop
from runtime.engines import OnnxRuntimeEngine
from runtime.language_model import LanguageModel
from runtime.predictor import CONTEXT_TOKENS, Constants, Predictor
from vaemotion.contract.bundle import ENGINE_ROLES, Component
from vaemotion.model.vaemotion_llm import VAEmotionLLM

FLOAT_TYPES = ("F16", "Q8_0")  # written directly; the others by llama.cpp's quantiser
FP16_SAMPLES = 32  # on which overflow is looked for
PROMPTS = 64  # that importance and quality are measured on


def write_fp32(workshop: Workshop, part: Part, role: str) -> Made:
    path = workshop.directory / f"{role}.fp32.onnx"
    return [workshop.component(role, "fp32", path, *export_onnx(part, path))], {}


def write_engine(workshop: Workshop, model: onnx.ModelProto, role: str, precision: str) -> Component:
    """A graph that is in memory."""
    path = workshop.directory / f"{role}.{precision}.onnx"
    onnx.save(model, str(path))
    return workshop.component(
        role, precision, path, tensor_specs(model.graph.input), tensor_specs(model.graph.output)
    )


def write_fp16(workshop: Workshop, role: str, samples: Sequence[Sample], reference: Predictor[Any]) -> Made:
    """The FP16 graph; the notes name the nodes that would overflow and stay in FP32."""
    model = load_fp32(workshop, role)
    stays = overflowing(
        model, calibration_inputs(role, samples[:: max(1, len(samples) // FP16_SAMPLES)], reference, {})
    )
    return [write_engine(workshop, half_precision(model, stays), role, "fp16")], {"stays_fp32": stays}


def load_fp32(workshop: Workshop, role: str) -> onnx.ModelProto:
    return onnx.load(str(workshop.directory / f"{role}.fp32.onnx"))


def language_model_tensors(model: VAEmotionLLM) -> dict[str, np.ndarray[Any, Any]]:
    """The decoder's weights under Llama's own names."""
    tensors = {name: tensor.numpy() for name, tensor in model.base.model.text_model.state_dict().items()}
    if not model.base.config.text_config.tie_word_embeddings:
        tensors["lm_head.weight"] = model.base.lm_head.weight.detach().numpy()
    return tensors


def write_gguf(
    workshop: Workshop, model: VAEmotionLLM, stored: Mapping[str, Any], checkpoint: Path, file_type: str
) -> Made:
    text_config = model.base.config.text_config
    path = workshop.directory / f"language_model.{file_type}.gguf"
    written = write_llama_gguf(
        path,
        language_model_tensors(model),
        LlamaShape.from_config(text_config),
        checkpoint / stored["components"]["tokenizer"]["file"],
        file_type=file_type,
        name=stored["lineage"]["name"],
        licence=workshop.licence,
        special=SpecialTokens(text_config.bos_token_id, model.stop_id, text_config.pad_token_id),
    )
    return [workshop.component("language_model", file_type, path)], {"tensor_types": written}


def write_importance_matrix(workshop: Workshop, prompts: Sequence[np.ndarray[Any, Any]]) -> Made:
    """Beside the components: it is not part of a bundle."""
    importance = collect_importance(workshop.directory / "language_model.F16.gguf", prompts)
    write_importance(
        workshop.folder / "importance.gguf", importance, f"{len(prompts)} prompts with sight and sound"
    )
    return [], {"prompts": len(prompts)}


def write_quantised(
    workshop: Workshop, file_type: str, prompts: Sequence[np.ndarray[Any, Any]], prefix_tokens: int
) -> Made:
    """A smaller GGUF and what it lost on prompts with real embeddings, behind their common prefix."""
    source, path = (workshop.directory / f"language_model.{t}.gguf" for t in ("F16", file_type))
    notes: dict[str, Any] = {}
    if file_type in QUANTISED_TYPES:
        notes["tensor_types"] = quantise_gguf(source, path, file_type, workshop.folder / "importance.gguf")
        notes["fallbacks"] = fallbacks(stored_tensors(path), file_type)
    embeddings = np.load(workshop.directory / "token_embeddings.npy", mmap_mode="r", allow_pickle=False)
    notes["quality"] = vars(gguf_quality(source, path, embeddings, prompts, uncounted_rows=prefix_tokens))
    return [workshop.component("language_model", file_type, path)], notes


def write_tables(workshop: Workshop, model: VAEmotionLLM, checkpoint: Path) -> Made:
    assert model.audio is not None
    directory = workshop.directory
    embeddings = model.base.model.get_input_embeddings().weight.detach().half().numpy()  # (vocab, D)
    np.save(directory / "token_embeddings.npy", embeddings)
    np.save(directory / "delimiters.npy", model.audio.delimiters.detach().numpy())
    shutil.copyfile(checkpoint / "tokenizer.json", directory / "tokenizer.json")
    files = {
        "token_embeddings": "token_embeddings.npy",
        "delimiters": "delimiters.npy",
        "tokenizer": "tokenizer.json",
    }
    return [workshop.component(role, "none", directory / name) for role, name in files.items()], {}


def write_golden(workshop: Workshop, model: VAEmotionLLM) -> Made:
    path = workshop.directory / "golden.npz"
    vectors: dict[str, Any] = golden_vectors(model)
    np.savez_compressed(path, **vectors)
    return [workshop.component("golden", "none", path)], {}


class Chain(AbstractContextManager["Chain"]):
    """The FP32 engines and the language models of an unfinished bundle, opened when asked for."""

    def __init__(self, workshop: Workshop, constants: Constants) -> None:
        self._workshop, self._constants = workshop, constants
        self._stack = ExitStack()
        self._opened: dict[str, Any] = {}

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def language_model(self, file_type: str) -> LanguageModel:
        directory = self._workshop.directory
        embeddings = np.load(directory / "token_embeddings.npy", mmap_mode="r", allow_pickle=False)
        return self._once(
            file_type,
            lambda: self._stack.enter_context(
                LanguageModel(
                    directory / f"language_model.{file_type}.gguf", embeddings, context_tokens=CONTEXT_TOKENS
                )
            ),
        )

    @property
    def reference(self) -> Predictor[Any]:
        """FP32 engines and the F16 language model."""
        return self._once("reference", self._open_reference)

    def _open_reference(self) -> Predictor[Any]:
        directory = self._workshop.directory
        listed = {(c.role, c.precision): c for c in self._workshop.components}
        engines = {
            role: OnnxRuntimeEngine(directory / f"{role}.fp32.onnx", listed[role, "fp32"])
            for role in ENGINE_ROLES
        }
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        delimiters = np.load(directory / "delimiters.npy", allow_pickle=False)
        return Predictor(self._constants, engines, self.language_model("F16"), tokenizer, delimiters)

    def prompts(self, samples: Sequence[Sample], *, held_out: bool) -> list[np.ndarray[Any, Any]]:
        """Narrator's prompts with their prefix and real embeddings, (n, D) each; ``held_out``: of other windows than without."""
        chosen = samples[int(held_out) :: 2][:PROMPTS]
        return self._once(
            f"prompts {held_out}", lambda: [narrator_prompt(self.reference, s.inputs) for s in chosen]
        )

    @property
    def prefix_tokens(self) -> int:
        return len(self.reference.token_ids(self._constants.prompt.prefix))

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self._opened:
            self._opened[name] = make()
        return self._opened[name]
