"""SmolLM2-135M-Instruct through llama.cpp, compared with transformers where words are spoken."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from export.int8.judge import Budget
from export.verify import TOKENIZER_CORPUS, logit_edges
from runtime.commands.verify import Edge
from runtime.engines.language_model import LanguageModel
from runtime.engines.llama import tokenize
from tests.real_language_model import LICENSE, real_gguf, real_language_model
from vaemotion.contract.bundle import Component

pytest.importorskip("llama_cpp", reason="needs the extra `llm`")

QUESTIONS = (
    "What is the capital of France?",
    "Describe a painting of the sea at night in one sentence.",
    "What does a violin sound like?",
)
TOKENS = 12  # of each answer, at most


@dataclass(frozen=True)
class Spoken:
    """Prompts and answers of transformers as token ids, and the logits (n, vocab) of the answers."""

    prompts: list[list[int]]
    answers: list[list[int]]
    logits: list[np.ndarray]
    texts: list[str]
    token_embeddings: np.ndarray
    eos_id: int

    @property
    def prompts_with_answers(self) -> list[np.ndarray]:
        """Embeddings (n, D) of each prompt and its answer, without the answer's last token."""
        sequences = [[*p, *a[:-1]] for p, a in zip(self.prompts, self.answers, strict=True)]
        return [self.token_embeddings[sequence] for sequence in sequences]

    @property
    def unspoken_rows(self) -> list[int]:
        """Rows of each before the first that speaks."""
        return [len(prompt) - 1 for prompt in self.prompts]


@pytest.fixture(scope="module")
def spoken() -> Spoken:
    """Let transformers answer greedily in float32."""
    folder = real_language_model()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompts: list[list[int]] = []
    answers: list[list[int]] = []
    logits: list[np.ndarray] = []
    for question in QUESTIONS:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
        )
        prompts.append(tokenizer(text, add_special_tokens=False)["input_ids"])
        out = model.generate(
            torch.tensor([prompts[-1]]),
            attention_mask=torch.ones(1, len(prompts[-1]), dtype=torch.long),
            max_new_tokens=TOKENS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        answers.append(out.sequences[0, len(prompts[-1]) :].tolist())
        logits.append(torch.cat(out.logits).numpy())
    return Spoken(
        prompts,
        answers,
        logits,
        [tokenizer.decode(answer, skip_special_tokens=True) for answer in answers],
        model.get_input_embeddings().weight.detach().numpy(),
        tokenizer.eos_token_id,
    )


def test_f16_says_token_for_token_what_transformers_says(spoken: Spoken) -> None:
    assert spoken.texts[0] == "The capital of France is Paris."
    with LanguageModel(real_gguf("F16"), spoken.token_embeddings, context_tokens=128) as model:
        for prompt, answer in zip(spoken.prompts, spoken.answers, strict=True):
            rows = model.embed(prompt)
            said = model.generate(rows, max_tokens=TOKENS, stop_ids=[spoken.eos_id])
            assert [*said.token_ids, *([spoken.eos_id] if said.complete else [])] == answer


def test_llama_cpp_tokenizes_like_the_folder(spoken: Spoken) -> None:
    tokenizer = AutoTokenizer.from_pretrained(real_language_model())
    ours = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TOKENIZER_CORPUS]
    assert tokenize(real_gguf("F16"), list(TOKENIZER_CORPUS)) == ours


def test_f16_and_q8_0_are_accepted_and_a_file_that_says_something_else_is_not(spoken: Spoken) -> None:
    edges: dict[str, list[Edge]] = {}
    for file_type in ("F16", "Q8_0", "Q4_0"):
        path = real_gguf(file_type)
        rows: list[np.ndarray] = []
        with LanguageModel(path, spoken.token_embeddings, context_tokens=128, f32_kv=True) as model:
            for prompt, first in zip(spoken.prompts_with_answers, spoken.unspoken_rows, strict=True):
                rows.append(model.logits(prompt, all_positions=True)[first:])
        component = Component("language_model", file_type, path.name, "", 0, LICENSE)
        edges[file_type] = logit_edges(component, np.concatenate(spoken.logits), np.concatenate(rows))
        print(*(edge.sentence() for edge in edges[file_type]), sep="\n")
    assert {file_type: [edge.holds for edge in found] for file_type, found in edges.items()} == {
        "F16": [True, True, True],
        "Q8_0": [True, True, True],
        "Q4_0": [True, True, False],  # its divergence
    }
    # INT8 keeps the smallest type that loses half of its budget at most.
    assert edges["Q8_0"][-1].measured <= Budget().max_kl_nats / 2 < edges["Q4_0"][-1].measured
