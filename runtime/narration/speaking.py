"""Let a bundle's language model speak: greedily, without loops, and no longer than is wanted.

In: a prompt's embeddings. Out: the text as the language model said it, which may be cut;
``runtime.narration.sentences`` makes it fit to be shown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from runtime.narration.sentences import count_whole
from runtime.perception.predictor import DevicePredictor, Float32
from vaemotion.contract.speech import Speech


@dataclass(frozen=True)
class Utterance:
    """Words of the language model, as decoded."""

    text: str
    # It ends with a stop token.
    ended: bool
    # ``should_abort`` cut it.
    aborted: bool


def speak(
    predictor: DevicePredictor,
    prompt: Float32,
    speech: Speech,
    is_enough: Callable[[str, int], bool] = lambda text, tokens: False,
    should_abort: Callable[[], bool] | None = None,
) -> Utterance | None:
    """Continue a prompt (n, D) by at most ``speech.max_tokens``; None where the context has no room for any.

    ``is_enough``: called with the text so far and its number of tokens after each token, to end it.
    ``should_abort``: called before each token.
    """
    model, tokenizer = predictor.language_model, predictor.tokenizer
    max_tokens = min(speech.max_tokens, model.room_tokens(len(prompt)))
    if max_tokens == 0:
        return None

    def decoded(token_ids: Sequence[int]) -> str:
        return tokenizer.decode(list(token_ids))

    said = model.generate(
        prompt,
        max_tokens=max_tokens,
        stop_ids=predictor.constants.stop_token_ids,
        repetition_tokens=speech.repetition_tokens,
        is_enough=lambda token_ids: is_enough(decoded(token_ids), len(token_ids)),
        should_abort=should_abort,
    )
    return Utterance(decoded(said.token_ids).strip(), said.complete, said.aborted)


def says_enough(speech: Speech, text: str, tokens: int) -> bool:
    """Return True where a narration has the sentences that ``speech`` allows, or one after enough tokens."""
    sentences = count_whole(text)
    return sentences >= speech.sentences or (sentences > 0 and tokens >= speech.enough_tokens)
