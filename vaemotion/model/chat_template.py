"""The prompt of a pretrained base, from the chat template that its authors published with it.

In: a model's folder and its tokenizer. Out: a ``PromptTemplate``. The folder's Jinja template is rendered as
``transformers`` renders it, for one user message of pictures and a question. The text is cut at the picture
tokens, the question and the answer. A template whose prompt the parts do not give token for token is refused.

Of a template that can turn thinking off, the prompt without thinking is taken.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from vaemotion.contract.errors import UsageError
from vaemotion.contract.prompt_tokens import PromptTokens
from vaemotion.contract.prompts import PromptTemplate
from vaemotion.model.tensor_files import read_json

# Texts that processors put around the tokens of a whole picture, by the model's type (``replace_image_token``
# in transformers). Other types put nothing there beside what their chat template says.
PROCESSOR_TEXTS = {
    model_type: ("<fake_token_around_image><global-img>", "<fake_token_around_image>")
    for model_type in ("smolvlm", "idefics3")
}
# The day that a template which asks for today's date is given: a prompt is the same in training and on the
# device. It is the one that Llama 3.1's template writes where no clock is given.
PROMPT_DAY = datetime(2024, 7, 26)
_WAY_OUT = "copy chat_template.jinja from the model's repository, or write one for it"
# They stand for a question and an answer; no template writes them itself.
_QUESTION, _ANSWER = "Vaemotion-question", "Vaemotion-answer"
_PROBES = ("What is this?", "describe it, in 2 words", "Être calme ? 音")


def prompt_template(folder: Path, tokenizer: Tokenizer) -> PromptTemplate:
    """Return the prompt of the model in a folder, as its own chat template writes it.

    The folder's ``config.json`` names the picture token; without one the model reads text, and media stand
    directly before the question. Raises UsageError where the folder has no template, where the template
    cannot be rendered for one question, and where its prompt cannot be cut into parts with the same tokens.
    """
    config = read_json(folder / "config.json")
    chat = read_chat(folder)
    picture = _picture_token(config, tokenizer, chat.source)
    found = _Cut(chat, tokenizer, picture).template(
        PROCESSOR_TEXTS.get(config.get("model_type", ""), ("", ""))
    )
    stops = [token for token in _stop_tokens(folder, config, chat, tokenizer) if token != found.stop]
    return replace(found, stops=tuple(stops))


# -- the folder's template --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chat:
    """A chat template. ``tokens``: the special tokens that it is given, by name, such as ``bos_token``."""

    source: Path
    template: str
    tokens: dict[str, str]

    def rendered(
        self, question: str, answer: str | None = None, pictures: int | None = None, *, thinking: bool = False
    ) -> str:
        """Render a user's message, and with ``answer`` the assistant's; else up to where its answer begins.

        ``pictures``: their number before the question, None for a model that reads text. Raises UsageError.
        """

        def content(text: str, count: int) -> Any:
            if pictures is None:
                return text
            return [*[{"type": "image"}] * count, {"type": "text", "text": text}]

        messages = [{"role": "user", "content": content(question, pictures or 0)}]
        if answer is not None:
            messages.append({"role": "assistant", "content": content(answer, 0)})
        try:
            return _compiled(self.template).render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=answer is None,
                # The two names by which templates turn thinking off.
                enable_thinking=thinking,
                thinking=thinking,
                **self.tokens,
            )
        except Exception as error:  # a template is a program of others: it can raise anything
            reason = " ".join(str(error).split())
            raise self.refusal(f"cannot be rendered for a plain question ({reason})") from error

    def refusal(self, why: str) -> UsageError:
        """Return the error for a template that cannot be used."""
        return UsageError(f"the chat template in {self.source} {why}; {_WAY_OUT}")


def read_chat(folder: Path) -> Chat:
    """Read a folder's chat template and special tokens. Raises UsageError as `find_chat`, and for none."""
    chat = find_chat(folder)
    if chat is None:
        raise UsageError(f"{folder} has no chat template, so how to ask the model is not known; {_WAY_OUT}")
    return chat


def find_chat(folder: Path) -> Chat | None:
    """Read a folder's chat template and special tokens, in the order of ``transformers``.

    None where the folder has no template. Raises UsageError for a file that cannot be read.
    """
    tokens = special_tokens(folder)
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return Chat(file, file.read_text("utf-8"), tokens)
        except (OSError, ValueError) as error:
            raise UsageError(f"{file} cannot be read ({error}); copy it again") from error
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        template = _json_of(folder / name).get("chat_template")
        if isinstance(template, list):  # several by name, such as one for tools
            template = {entry["name"]: entry["template"] for entry in template}.get("default")
        if isinstance(template, str):
            return Chat(folder / name, template, tokens)
    return None


def special_tokens(folder: Path) -> dict[str, str]:
    """Read the special tokens that a folder's tokenizer names, such as ``bos_token``."""
    settings = _json_of(folder / "tokenizer_config.json")
    return {
        name: text
        for name, value in {**_json_of(folder / "special_tokens_map.json"), **settings}.items()
        if name.endswith("_token") and (text := _token_text(value)) is not None
    }


def _json_of(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def _token_text(value: Any) -> str | None:
    """Return a special token's text: stored as a string, or as an added token with flags."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _picture_token(config: dict[str, Any], tokenizer: Tokenizer, source: Path) -> str | None:
    """Return the token that stands for a picture, None for a model that reads text."""
    if "vision_config" not in config:
        return None
    number = config.get("image_token_id", config.get("image_token_index"))
    token = tokenizer.id_to_token(number) if isinstance(number, int) else None
    if token is None:
        raise UsageError(
            f"{source.parent}: config.json has image_token_id {number}, which is no token of tokenizer.json; "
            "copy both files from one model"
        )
    return token


def _stop_tokens(folder: Path, config: dict[str, Any], chat: Chat, tokenizer: Tokenizer) -> Iterator[str]:
    """Yield the tokens at which the model's own generation stops, each once."""
    generation = _json_of(folder / "generation_config.json")
    stored = (generation, config.get("text_config") or {}, config)
    ids = next((values["eos_token_id"] for values in stored if values.get("eos_token_id") is not None), None)
    named = [
        tokenizer.id_to_token(i) for i in (ids if isinstance(ids, list) else [ids]) if isinstance(i, int)
    ]
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    yield from dict.fromkeys(t for t in (*named, chat.tokens.get("eos_token")) if t in added)


# -- rendering --------------------------------------------------------------------------------------------


class _Generation(Extension):
    """``{% generation %}``, with which templates mark an assistant's text for training: its content."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@functools.cache
def _compiled(template: str) -> jinja2.Template:
    """Compile a template in such a sandbox as ``transformers`` renders it in, but with a fixed date."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = PROMPT_DAY.strftime
    return environment.from_string(template)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


# -- cutting ----------------------------------------------------------------------------------------------


class _Cut:
    """The parts of one chat template."""

    def __init__(self, chat: Chat, tokenizer: Tokenizer, picture: str | None) -> None:
        """Cut the text behind the question. ``picture``: the picture token, None for a model of text."""
        self._chat, self._tokenizer, self._picture = chat, tokenizer, picture
        self._added = sorted(
            (token.content for token in tokenizer.get_added_tokens_decoder().values()), key=len, reverse=True
        )
        few = None if picture is None else 1
        asked = self._around(chat.rendered(_QUESTION, pictures=few), _QUESTION)[1]
        told = self._around(chat.rendered(_QUESTION, _ANSWER, few), _QUESTION)[1]
        before, ending = self._around(told, _ANSWER)
        lead, self._begun = "", ""
        if before.startswith(asked):
            lead = before[len(asked) :]
            # More than white space begins an answer's text, such as a channel, or thinking that is left out.
            self._begun = lead.rstrip(" ") if lead.strip() else ""
            lead = lead[len(self._begun) :]
        elif self._around(chat.rendered(_QUESTION, pictures=few, thinking=True), _QUESTION)[1] == asked:
            # Otherwise the prompt turns thinking off, and only conversations leave it out.
            raise chat.refusal("begins every answer with thinking, for which narrations have no time")
        self._stop, trail = self._stop_in(ending)
        self._behind = _escaped(asked + self._begun)
        self._answer = f"{_escaped(lead)}{{answer}}{_escaped(trail)}"

    def template(self, around: tuple[str, str]) -> PromptTemplate:
        """Return the template. ``around``: texts that the model's processor puts around a picture."""
        if self._picture is not None:
            prefix, before, after, middle = self._picture_parts()
            candidates = [self._made(prefix, middle, before + around[0], around[1] + after)]
        else:
            head = self._around(self._chat.rendered(_QUESTION), _QUESTION)[0]
            bare = head.rstrip(" ")
            # Where a space and the question are one token, it belongs to the question; some tokenizers put it
            # there themselves.
            starts = [(head, ""), (bare, head[len(bare) :]), (bare, "")]
            candidates = [self._made(*start) for start in starts]
        for candidate in candidates:
            if self._is_equal(candidate, around):
                return candidate
        raise self._chat.refusal(
            "cannot be cut at media and question: other tokens come out than of the whole"
        )

    def _made(self, prefix: str, middle: str, before: str = "", after: str = "") -> PromptTemplate:
        question = f"{_escaped(middle)}{{question}}{self._behind}"
        return PromptTemplate(prefix, before, after, question, self._answer, self._stop)

    def _around(self, text: str, part: str) -> tuple[str, str]:
        """Return the texts before and behind ``part``, which must stand there once."""
        before, *behind = text.split(part)
        if len(behind) != 1:
            what = "the question" if part == _QUESTION else "the answer"
            raise self._chat.refusal(f"writes {what} {len(behind)} times")
        return before, behind[0]

    def _stop_in(self, ending: str) -> tuple[str, str]:
        """Return the token that ends an answer, and the white space before it."""
        text = ending.lstrip()
        found = next((token for token in self._added if text.startswith(token)), None)
        if found is not None:
            return found, ending[: len(ending) - len(text)]
        named = self._chat.tokens.get("eos_token")
        if named not in self._added:
            raise self._chat.refusal("ends an answer with no token, and the tokenizer names no eos_token")
        return named, ""

    def _picture_parts(self) -> tuple[str, str, str, str]:
        """Return the prefix, the texts before and after each picture, and the text up to the question."""
        heads = [self._around(self._chat.rendered(_QUESTION, pictures=n), _QUESTION)[0] for n in (1, 2, 3)]
        one, two, three = (head.split(str(self._picture)) for head in heads)
        if len(one) != 2:
            raise self._chat.refusal(f"writes {self._picture} {len(one) - 1} times for one picture")
        (begin, end), between = one, two[1]  # after one picture and before the next
        if two != [begin, between, end] or three != [begin, between, between, end]:
            raise self._chat.refusal("writes other texts around each of several pictures")
        for cut in range(len(between), -1, -1):
            after, before = between[:cut], between[cut:]
            if end.startswith(after) and begin.endswith(before):
                return begin.removesuffix(before), before, after, end.removeprefix(after)
        raise self._chat.refusal("writes other texts between two pictures than around one")

    def _is_equal(self, template: PromptTemplate, around: tuple[str, str]) -> bool:
        """Check that the parts give the tokens of the whole, for several questions and pictures."""
        tokens = PromptTokens(self._tokenizer, template)
        prefix, before, after = (
            tokens.of_template(text)
            for text in (template.prefix, template.before_picture, template.after_picture)
        )
        for question in _PROBES:
            for pictures in (None,) if self._picture is None else (1, 2):
                whole = self._chat.rendered(question, pictures=pictures) + self._begun
                frames: list[int | None] = []
                if self._picture is not None:
                    whole = whole.replace(self._picture, self._picture.join(around))
                    frames = [*before, self._tokenizer.token_to_id(self._picture), *after] * (pictures or 0)
                parts = [*prefix, *frames, *tokens.of_question(question)]
                if parts != self._tokenizer.encode(whole, add_special_tokens=False).ids:
                    return False
        return True


def _escaped(text: str) -> str:
    """Return the text as ``str.format`` keeps it."""
    return text.replace("{", "{{").replace("}", "}}")
