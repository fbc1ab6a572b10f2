"""The context of a bundle's language model: tokens of prefix and media, room for question and answer."""

from __future__ import annotations

from vaemotion.contract.errors import UsageError

# Room behind the media for a question with its listed options, and for the answer.
QUESTION_TOKENS = 320
# A question of a sentence and an answer of a sentence; with less room a model is of no use.
LEAST_QUESTION_TOKENS = 64
# llama.cpp allocates its cache in steps of so many tokens.
STEP_TOKENS = 256
# The context of bundles whose manifest does not say it.
OLDER_CONTEXT_TOKENS = 512


def context_tokens(window_tokens: int, trained_tokens: int) -> int:
    """Return the context that a bundle's prompts need, as far as the model was trained for it.

    ``window_tokens``: of prefix, frames and audio (``PromptTokens.of_window``); ``trained_tokens``: the
    length that the model was trained for. Raises UsageError where no question fits behind the media.
    """
    least = window_tokens + LEAST_QUESTION_TOKENS
    if least > trained_tokens:
        raise UsageError(
            f"the language model was trained for {trained_tokens} tokens, but prefix, frames and sound take "
            f"{window_tokens}, and a question with its answer at least {LEAST_QUESTION_TOKENS}; let it read "
            "fewer frames: --set windows.language_frames=N"
        )
    steps = -(-(window_tokens + QUESTION_TOKENS) // STEP_TOKENS)
    return min(steps * STEP_TOKENS, trained_tokens)
