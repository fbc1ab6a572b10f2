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

AUDIO_DELIMITERS = 2  # learned embeddings before and behind the audio tokens


class PromptTokens:
    """The token ids of a template's parts, with a user's texts in them."""

    def __init__(self, tokenizer: Tokenizer, template: PromptTemplate) -> None:
        """Take the tokenizer with its special tokens; the template's special tokens must be among them."""
        self._template = template
        self._tokenizer = tokenizer
        self._text_only = _without_added_tokens(tokenizer)
        known = tokenizer.get_added_tokens_decoder()
        self._added: dict[str, int] = {token.content: number for number, token in known.items()}
        # Added tokens that take the white space after them, and before them.
        self._takes_after: set[str] = {token.content for token in known.values() if token.rstrip}
        self._takes_before: set[str] = {token.content for token in known.values() if token.lstrip}
        contents = sorted(self._added, key=len, reverse=True)  # the longest match wins, as in the tokenizer
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

    def of_window(self, frames: int, tokens_per_frame: int, audio_tokens: int) -> int:
        """Return the number of tokens before a question: prefix, frames with their texts, and audio."""
        template = self._template
        texts = (template.before_picture, template.after_picture)
        per_frame = tokens_per_frame + sum(len(self.of_template(text)) for text in texts)
        audio = audio_tokens + AUDIO_DELIMITERS if audio_tokens else 0
        return len(self.of_template(template.prefix)) + frames * per_frame + audio

    def _filled(self, pattern: str, **texts: str) -> list[int]:
        parts = self._split.split(pattern)
        ids: list[int] = []
        for before, part, after in zip(["", *parts[:-1]], parts, [*parts[1:], ""], strict=True):
            if part in self._added:
                ids.append(self._added[part])
            elif part:
                text = part.format(**texts)
                text = text.lstrip() if before in self._takes_after else text
                text = text.rstrip() if after in self._takes_before else text
                ids += self._text_only.encode(text, add_special_tokens=False).ids
        return ids


def _without_added_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """Return a copy that knows no added tokens: every text is split and merged as ordinary text.

    A text of it is never the first of a prompt, so none gets the space that some tokenizers put there.
    """
    parts: dict[str, Any] = json.loads(tokenizer.to_str())
    outermost: dict[str, Any] = parts["pre_tokenizer"] or {}
    steps: list[dict[str, Any]] = outermost.get("pretokenizers", [outermost])
    for step in steps:
        if step.get("prepend_scheme") == "first":
            step["prepend_scheme"] = "never"
    return Tokenizer.from_str(json.dumps({**parts, "added_tokens": [], "post_processor": None}))
