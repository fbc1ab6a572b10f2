"""The FP32 chain of an unfinished bundle, which calibration and judgement compare with.

In: the folder with the files of the first steps. Out: a predictor of FP32 engines, language models, prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from export.clips import CalibrationWindows, narrator_prompt
from export.workshop import ExportFolder, gguf_name, onnx_name
from runtime.engines.language_model import LanguageModel, load_language_model
from runtime.engines.open import OnnxRuntimeEngine
from runtime.perception.predictor import Constants, Predictor
from vaemotion.contract.bundle import ENGINE_ROLES

EMBEDDINGS, DELIMITERS, TOKENIZER = "token_embeddings.npy", "delimiters.npy", "tokenizer.json"
PROMPTS = 64  # on which importance and quality are measured
FP32_FILES = tuple(onnx_name(role, "fp32") for role in ENGINE_ROLES)
# Everything that `Chain.reference` opens.
REFERENCE_FILES = (*FP32_FILES, gguf_name("F16"), EMBEDDINGS, DELIMITERS, TOKENIZER)


class Chain(AbstractContextManager["Chain"]):
    """The FP32 engines and the language models of an unfinished bundle, opened when a step needs them.

    ``reads``: the constants of the chain, for the keys of steps that open ``REFERENCE_FILES``.
    """

    def __init__(self, folder: ExportFolder, constants: Constants) -> None:
        self.reads = asdict(constants)
        self._folder, self._constants = folder, constants
        self._stack = ExitStack()
        self._opened: dict[str, Any] = {}

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def language_model(self, file_type: str) -> LanguageModel:
        """Open one of the GGUF files."""
        file, table = self._folder.file(gguf_name(file_type)), self._folder.file(EMBEDDINGS)
        return self._once(file_type, lambda: self._stack.enter_context(load_language_model(file, table)))

    def reference(self) -> Predictor[Any]:
        """Open the FP32 engines with the F16 language model."""
        return self._once("reference", self._open_reference)

    def _open_reference(self) -> Predictor[Any]:
        listed = {(c.role, c.precision): c for c in self._folder.components}
        engines = {
            role: OnnxRuntimeEngine(self._folder.file(onnx_name(role, "fp32")), listed[role, "fp32"])
            for role in ENGINE_ROLES
        }
        tokenizer = Tokenizer.from_file(str(self._folder.file(TOKENIZER)))
        delimiters = np.load(self._folder.file(DELIMITERS), allow_pickle=False)
        return Predictor(self._constants, engines, self.language_model("F16"), tokenizer, delimiters)

    def prompts(self, windows: CalibrationWindows, *, held_out: bool) -> Sequence[np.ndarray[Any, Any]]:
        """Build narrator's prompts with prefix and real embeddings, (n, D) each.

        ``held_out``: of other windows than those without.
        """

        def build() -> list[np.ndarray[Any, Any]]:
            samples = windows()[int(held_out) :: 2][:PROMPTS]
            return [narrator_prompt(self.reference(), sample.inputs) for sample in samples]

        return self._once(f"prompts {held_out}", build)

    def prefix_tokens(self) -> int:
        """Count the tokens of the prefix that stands before every prompt."""
        return len(self.reference().token_ids(self._constants.prompt.prefix))

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self._opened:
            self._opened[name] = make()
        return self._opened[name]
