"""Token ids of prompts, the same in training, in evaluation and on the device.

Special tokens count in the template only. A question or an answer is text, also where it holds "<|im_end|>"
or the content of any other token that was added to the tokenizer.
"""

from __future__ import annotations

import json
import re
from typing import Any

from tokenizers import Tokenizer  # pyright: ignore[reportMissingTypeStubs]

from vaemotion.contract.prompts import PromptTemplate


class PromptTokens:
    """The token ids of a template's parts, with a user's texts in them."""

    def __init__(self, tokenizer: Tokenizer, template: PromptTemplate) -> None:
        """Take the tokenizer with its special tokens; the template's special tokens must be among them."""
        self._template = template
        self._tokenizer = tokenizer
        self._text_only = _without_added_tokens(tokenizer)
        added = {token.content: number for number, token in tokenizer.get_added_tokens_decoder().items()}
        self._added: dict[str, int] = added
        contents = sorted(added, key=len, reverse=True)  # the longest match wins, as in the tokenizer
        self._split = re.compile(f"({'|'.join(map(re.escape, contents))})" if contents else r"(?!)")

    def of_template(self, text: str) -> list[int]:
        """Return the ids of a part of the template, in which a special token is one id. None is added."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def of_question(self, question: str) -> list[int]:
        """Return the ids from the media to the answer."""
        return self._filled(self._template.question, question=question)

    def of_answer(self, answer: str) -> list[int]:
        """Return the ids of an answer behind the question, without the stop token."""
        return self._filled(self._template.answer, answer=answer)

    def _filled(self, pattern: str, **texts: str) -> list[int]:
        ids: list[int] = []
        for part in self._split.split(pattern):
            if part in self._added:
                ids.append(self._added[part])
            elif part:
                ids += self._text_only.encode(part.format(**texts), add_special_tokens=False).ids
        return ids


def _without_added_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """Return a copy that knows no added tokens: every text is split and merged as ordinary text."""
    parts: dict[str, Any] = json.loads(tokenizer.to_str())
    return Tokenizer.from_str(json.dumps({**parts, "added_tokens": [], "post_processor": None}))
