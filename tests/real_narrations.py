"""Narrations of a real language model about works in words, and an independent judge of a narration.

SmolLM2-135M-Instruct hears of a work what its question says: it has no eyes and ears here.
"""

import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from safetensors import safe_open
from tokenizers import Tokenizer

from runtime.engines.language_model import LanguageModel
from runtime.messages import Narration, Reading
from runtime.narration.narrator import Withheld, narrate
from runtime.perception.perception import Evidence
from runtime.perception.predictor import Constants, DevicePredictor, Predictor, Tokens
from tests.real_language_model import real_gguf, real_language_model
from vaemotion.contract.audio import LogMelConfig
from vaemotion.contract.front_end import FrontEnd
from vaemotion.contract.image import ImageConfig
from vaemotion.contract.prompts import PromptTemplate
from vaemotion.contract.speech import Speech
from vaemotion.contract.windows import WindowConfig

# Its own template, and that of SmolVLM, which it never learned: there it rambles, loops and says nothing.
TEMPLATES = {
    "its own": PromptTemplate(
        prefix="<|im_start|>user\n",
        question="{question}<|im_end|>\n<|im_start|>assistant\n",
        answer="{answer}",
        stop="<|im_end|>",
    ),
    "SmolVLM's": PromptTemplate(stop="<|im_end|>", question=" {question}\nAssistant:"),
}
SIGHTS = (
    "a dark sea under a red sky",
    "a dancer in a white dress on an empty stage",
    "yellow circles that drift over a blue ground",
    "an old man asleep beside a window",
    "a crowd with torches in the rain",
    "a forest of thin black lines",
    "a table with lemons and a silver jug",
    "two horses that run along a beach",
    "a gray city seen from far above",
    "hands that knead bread in slow motion",
)
SOUNDS = ("a slow cello", "distant thunder", "children who laugh", "a ticking clock", "silence", "loud drums")
QUESTIONS = (
    "Describe it.",
    "Describe it in one sentence.",
    "What does it feel like?",
    "Tell a visitor what is going on.",
    "List its colors and shapes.",
    "Write a short poem about it.",
)
NO_TOKENS = Tokens(
    np.zeros((0, 1, 1), np.float32), np.zeros(0, np.float32), np.zeros((0, 1), np.float32), 0.0
)


@dataclass(frozen=True)
class Told:
    """A narration about a question in words, or the reason why there is none."""

    question: str
    said: Narration | Withheld


@contextmanager
def real_narrator(template: str) -> Iterator[DevicePredictor]:
    """Open the model as a predictor without encoders. Skips the test where the model cannot be had."""
    folder = real_language_model()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    with safe_open(folder / "model.safetensors", "np") as weights:
        embeddings = weights.get_tensor("model.embed_tokens.weight")
    prompt = TEMPLATES[template]
    front_end = FrontEnd(LogMelConfig(), ImageConfig(), WindowConfig())
    stop = tokenizer.token_to_id(prompt.stop)
    constants = Constants(front_end, prompt, 1, 1, embeddings.shape[1], (stop,))
    with LanguageModel(real_gguf("F16"), embeddings, context_tokens=512, threads=1) as model:
        yield Predictor(constants, {}, model, tokenizer, np.zeros((2, embeddings.shape[1]), np.float32))


def narrations(predictor: DevicePredictor, count: int, seed: int) -> Iterator[Told]:
    """Yield ``count`` narrations about different works and questions, as a run makes them."""
    drawn = random.Random(seed)
    works = [(sight, sound, question) for sight in SIGHTS for sound in SOUNDS for question in QUESTIONS]
    reading = Reading(1.0, 0.0, 0.0, 0.1, 0.1, {}, "visual", 0.0, None)
    evidence = Evidence(reading, NO_TOKENS, NO_TOKENS)
    for sight, sound, question in drawn.sample(works, count):
        text = f"A work of art shows {sight}, with {sound}. {question}"
        yield Told(text, narrate(predictor, evidence, Speech(text), lambda: 1.5, lambda: False))


def fault(text: str) -> str:
    """Return what makes a narration unfit for a wall: "empty", "several lines", "cut", "looped"; or ""."""
    if not re.search(r"[^\W\d_]", text):
        return "empty"
    if not text.isprintable() or text != " ".join(text.split()) or re.search(r"\*\*|^[#>*-]|`", text):
        return "several lines"
    if not re.search(r"[.!?…][\"'”’)\]]*$", text):
        return "cut"
    words = re.findall(r"\w+", text.casefold())
    fours = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    at_once = re.search(r"\b(\w+(?:\W+\w+){2,})\W+\1\b", text.casefold())
    return "looped" if at_once or any(fours.count(four) > 2 for four in fours) else ""
