"""Question bank: what the teacher of stage 1 is asked, from a TOML file.

In: a file of ``[[question]]`` tables, or the shipped one. Out: a `QuestionBank`, checked.
"""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import asdict, dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from vaemotion.contract.errors import UsageError
from vaemotion.contract.prompts import folded
from vaemotion.contract.records import strict_record
from vaemotion.data.manifest.item import QUESTION_TASKS


@dataclass(frozen=True)
class BankQuestion:
    """One question. Raises ValueError for values that no question has.

    ``task``: "content" or "emotion". ``audible``: True where sound alone can hold the answer. ``share``: how
    often it is asked, relative to the others.
    """

    text: str
    task: str
    audible: bool
    share: float

    def __post_init__(self) -> None:
        kinds: dict[str, type | tuple[type, ...]] = {
            "text": str,
            "task": str,
            "audible": bool,
            "share": (int, float),
        }
        for field in fields(self):
            if not isinstance(getattr(self, field.name), kinds[field.name]):
                raise ValueError(f"{field.name} has the wrong type")
        if not self.text.strip():
            raise ValueError("text is empty")
        if self.task not in QUESTION_TASKS:
            raise ValueError(f"task must be {' or '.join(QUESTION_TASKS)}, got {self.task!r}")
        if not 0 <= self.share < float("inf"):
            raise ValueError(f"share must be a number of at least 0, got {self.share}")


@dataclass(frozen=True)
class QuestionBank:
    """Questions with their shares."""

    name: str
    questions: tuple[BankQuestion, ...]

    @property
    def audible(self) -> tuple[BankQuestion, ...]:
        """The questions that are distilled, in the order of the file."""
        return tuple(q for q in self.questions if q.audible and q.share > 0)

    @property
    def content(self) -> BankQuestion:
        """The question that names a clip."""
        return next(q for q in self.audible if q.task == "content")

    @property
    def sha256(self) -> str:
        """Hash of everything that answers depend on."""
        return hashlib.sha256(repr([asdict(q) for q in self.questions]).encode()).hexdigest()


def read_question_bank(file: str = "", pretrained: bool = False) -> QuestionBank:
    """Read a bank; an empty name stands for the shipped one, that of a pretrained base or of our own.

    Raises UsageError that names the file and the question for anything that is not a bank, and for a bank
    without an audible question about content.
    """
    if file:
        name = Path(file).name
        try:
            text = Path(file).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"the question bank {file} cannot be read: {error}") from None
    else:
        name = "questions.pretrained.toml" if pretrained else "questions.toml"
        text = files("vaemotion.data").joinpath(name).read_text(encoding="utf-8")
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{name} is not TOML: {error}") from None
    if set(values) != {"question"} or not isinstance(values["question"], list):
        raise UsageError(f"{name} must hold [[question]] tables and nothing else")
    bank = QuestionBank(name, tuple(_question(name, k, q) for k, q in enumerate(values["question"], 1)))
    texts = [folded(question.text) for question in bank.questions]
    if twice := {text for text in texts if texts.count(text) > 1}:
        raise UsageError(f"{name} asks {sorted(twice)[0]!r} twice")
    if not any(question.task == "content" for question in bank.audible):
        raise UsageError(
            f"{name} needs an audible question about content with a share, by which clips are named"
        )
    return bank


def _question(name: str, number: int, values: Any) -> BankQuestion:
    try:
        return strict_record(BankQuestion, values, f"question {number}")
    except (ValueError, TypeError) as error:
        raise UsageError(f"{name}, question {number}: {error}") from None
