"""The FP32 chain of an unfinished bundle, which calibration and judgement compare with.

In: the folder with the files of the first steps. Out: a predictor of FP32 engines, language models, prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from export.answers import AnsweredPrompt, with_answer
from export.clips import CalibrationWindows, narrator_prompt
from export.gguf.quality import GgufJudge
from export.workshop import ExportFolder, gguf_name, onnx_name
from runtime.engines.language_model import LanguageModel, load_language_model
from runtime.engines.open import OnnxRuntimeEngine
from runtime.perception.predictor import Constants, Predictor
from vaemotion.contract.bundle import ENGINE_ROLES
from vaemotion.contract.speech import UNSET

EMBEDDINGS, DELIMITERS, TOKENIZER = "token_embeddings.npy", "delimiters.npy", "tokenizer.json"
# Importance of channels and loss of small types are measured on as many prompts at most, and on no more when
# their answers have this many tokens.
PROMPTS, SPOKEN_TOKENS = 64, 1024
FP32_FILES = tuple(onnx_name(role, "fp32") for role in ENGINE_ROLES)
# Everything that `Chain.reference` opens.
REFERENCE_FILES = (*FP32_FILES, gguf_name("F16"), EMBEDDINGS, DELIMITERS, TOKENIZER)


class Chain(AbstractContextManager["Chain"]):
    """The FP32 engines and the language models of an unfinished bundle, opened when a step needs them.

    For the keys of steps that open ``files``, as `reference` does: ``reads``, the constants of the chain, and
    ``engine_reads``, those without the question of narrations, of steps that build no `prompts`.
    ``reference_type``: the GGUF type of the language model that others are compared with. ``f32_kv``: see
    ``LanguageModel``.
    """

    def __init__(
        self,
        folder: ExportFolder,
        constants: Constants,
        context_tokens: int,
        reference_type: str = "F16",
        *,
        f32_kv: bool = False,
    ) -> None:
        self.engine_reads = asdict(replace(constants, speech=UNSET))
        self.reads = {**self.engine_reads, "question": constants.narrator_question}
        self.files = (*FP32_FILES, gguf_name(reference_type), EMBEDDINGS, DELIMITERS, TOKENIZER)
        self._folder, self._constants, self._context_tokens = folder, constants, context_tokens
        self._reference_type, self._f32_kv = reference_type, f32_kv
        self._stack = ExitStack()
        self._opened: dict[str, Any] = {}

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def language_model(self, file_type: str) -> LanguageModel:
        """Open one of the GGUF files."""
        file, table = self._folder.file(gguf_name(file_type)), self._folder.file(EMBEDDINGS)
        opened = partial(load_language_model, file, table, self._context_tokens, f32_kv=self._f32_kv)
        return self._once(file_type, lambda: self._stack.enter_context(opened()))

    def reference(self) -> Predictor[Any]:
        """Open the FP32 engines with the language model of ``reference_type``."""
        return self._once("reference", self._open_reference)

    def _open_reference(self) -> Predictor[Any]:
        listed = {(c.role, c.precision): c for c in self._folder.components}
        engines = {
            role: OnnxRuntimeEngine(self._folder.file(onnx_name(role, "fp32")), listed[role, "fp32"])
            for role in ENGINE_ROLES
        }
        tokenizer = Tokenizer.from_file(str(self._folder.file(TOKENIZER)))
        delimiters = np.load(self._folder.file(DELIMITERS), allow_pickle=False)
        language_model = self.language_model(self._reference_type)
        return Predictor(self._constants, engines, language_model, tokenizer, delimiters)

    def prompts(self, windows: CalibrationWindows, *, held_out: bool) -> Sequence[AnsweredPrompt]:
        """Build narrator's prompts with prefix, real embeddings and the answer of F16.

        ``held_out``: of other windows than those without.
        """

        def build() -> list[AnsweredPrompt]:
            reference = self.reference()
            prefix_tokens = len(reference.token_ids(self._constants.prompt.prefix))
            answered: list[AnsweredPrompt] = []
            for sample in windows()[int(held_out) :: 2][:PROMPTS]:
                prompt = narrator_prompt(reference, sample.inputs)
                answered.append(with_answer(reference, prompt, prefix_tokens))
                if sum(len(prompt.rows) - prompt.spoken for prompt in answered) >= SPOKEN_TOKENS:
                    break
            return answered

        return self._once(f"prompts {held_out}", build)

    def judge(self, windows: CalibrationWindows) -> GgufJudge:
        """Measure the loss of GGUF files to F16 where F16's answers to the held-out prompts are spoken."""

        def open_judge() -> GgufJudge:
            prompts = self.prompts(windows, held_out=True)
            embeddings = np.load(self._folder.file(EMBEDDINGS), mmap_mode="r", allow_pickle=False)
            return GgufJudge(
                self._folder.file(gguf_name("F16")),
                embeddings,
                [prompt.rows for prompt in prompts],
                uncounted_rows=[prompt.spoken for prompt in prompts],
            )

        return self._once("judge", open_judge)

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self._opened:
            self._opened[name] = make()
        return self._opened[name]
