"""Prompts with an answer behind them, for judging a language model where it speaks.

In: a predictor and prompts as the device feeds them, embeddings `(n, D)` float32. Out: the same prompts with
the predictor's own greedy answer. At picture and sound tokens the next-token distribution is never used, and
a quantized model's differ ten times as much there.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.perception.predictor import Predictor

ANSWER_TOKENS = 32  # of an answer, at most

Rows = npt.NDArray[np.float32]


@dataclass(frozen=True)
class AnsweredPrompt:
    """A prompt with an answer, without the answer's last token, which is predicted and never fed.

    ``rows`` (n, D). The model speaks at ``rows[spoken:]``: the last row of the prompt, then the answer's.
    """

    rows: Rows
    spoken: int


def with_answer(
    predictor: Predictor[Any], prompt: Rows, prefix_tokens: int, max_tokens: int = ANSWER_TOKENS
) -> AnsweredPrompt:
    """Continue a prompt (n, D), which begins with the prefix, by the predictor's own greedy answer."""
    ids = greedy_answer(predictor, prompt[prefix_tokens:], max_tokens)
    fed = predictor.language_model.embed(ids[:-1])
    return AnsweredPrompt(np.concatenate([prompt, fed]), len(prompt) - 1)


def greedy_answer(predictor: Predictor[Any], prompt: Rows, max_tokens: int = ANSWER_TOKENS) -> list[int]:
    """Answer a prompt (n, D) behind the prefix. A stop token is the answer's last where one comes."""
    stops = predictor.constants.stop_token_ids
    generated = predictor.language_model.generate(prompt, max_tokens=max_tokens, stop_ids=stops)
    return [*generated.token_ids, *(stops[:1] if generated.complete else ())]
