"""Settings: the defaults of a frozen dataclass with a TOML file and ``section.key=value`` overrides applied.

In: the file, the overrides, the defaults; a field that is a dataclass is a section. Out: the same dataclass,
whole and valid, or ``SettingsError`` with all problems. Settings are never applied in part.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from vaemotion.contract.address import HIDDEN, Address, without_secrets
from vaemotion.contract.errors import UsageError

_Config = TypeVar("_Config")
_NAME = re.compile(r"[\w.-]+")
_UNITS = {"px": "pixels", "hz": "Hz", "s": "seconds", "ms": "milliseconds", "dbfs": "dBFS", "mb": "megabytes"}
_KINDS: dict[type[Any], str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text in quotes",
    tuple: "a list in brackets",
}


class SettingsError(UsageError):
    """Settings that cannot be used. ``problems`` holds all reasons, one sentence each."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        listed = "".join(f"\n  {problem}" for problem in problems)
        super().__init__(problems[0] if len(problems) == 1 else f"{len(problems)} problems:{listed}")


class Impossible(ValueError):
    """Several fields of a dataclass are wrong. ``fields``: the field and its condition, as a predicate."""

    def __init__(self, fields: dict[str, str]) -> None:
        super().__init__("; ".join(f"{name} {what}" for name, what in fields.items()))
        self.fields = fields


def shown(value: object) -> str:
    """Return any value of a TOML or JSON file as part of a sentence: at most 80 characters, no password."""
    try:
        if isinstance(value, str):
            return f"{without_secrets(value)!r:.80}"
        if isinstance(value, bool | list | tuple | dict):
            return f"{without_secrets(json.dumps(value, ensure_ascii=False, default=str)):.80}"
        return f"{value!r:.80}"
    except ValueError:
        return "a number of thousands of digits"


Condition = tuple[str, bool, str]  # a field, True where it is right, and the condition in words


def demand(config: object, *conditions: Condition) -> None:
    """Raise Impossible for all fields that break their condition. For a dataclass's ``__post_init__``."""
    wrong = {
        name: f"must be {what}, got {shown(getattr(config, name))}"
        for name, right, what in conditions
        if not right
    }
    if wrong:
        raise Impossible(wrong)


def within(config: object, **ranges: tuple[float, float]) -> list[Condition]:
    """Return conditions on numbers, both ends allowed. The end of a field's name is the unit."""
    return [
        (
            name,
            low <= getattr(config, name) <= high,  # False for NaN
            f"from {low:g} to {high:g} {_UNITS.get(name.rpartition('_')[2], '')}".rstrip(),
        )
        for name, (low, high) in ranges.items()
    ]


def read_settings(
    file: Path,
    defaults: _Config,
    overrides: Sequence[str] = (),
    check: Callable[[_Config], Iterable[tuple[str, str]]] = lambda _: (),
    numbers_too: Sequence[str] = (),
) -> _Config:
    """Return ``defaults`` with the file and then the overrides applied.

    ``check``: returns a key and a predicate for each problem of the whole. ``numbers_too``: keys of texts
    that may also be written as a whole number. Raises SettingsError. For an unknown key it names the most
    similar one.
    """
    reader = _Reader(str(file), numbers_too)
    values = _load(file, reader)
    for override in overrides:
        reader.override(values, override)
    config = reader.apply(defaults, values, "")
    for key, sentence in check(config):
        reader.complain(key, f"{key} {sentence}")
    if reader.problems:
        raise SettingsError(reader.problems)
    return config


def _load(file: Path, reader: _Reader) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError([f"cannot read the configuration {file}: {error.strerror}"]) from error
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, or built to break a parser
        raise SettingsError([f"cannot read the configuration {file}: {error}"]) from error


@dataclass
class _Reader:
    """Collects problems. The default replaces a wrong value, so that the rest can be checked, too."""

    file: str
    numbers_too: Sequence[str]
    overridden: list[str] = field(default_factory=list[str])
    problems: list[str] = field(default_factory=list[str])

    def complain(self, key: str, sentence: str) -> None:
        """Add a problem. ``sentence`` names ``key``; the source of the key is put before it."""
        overridden = any(key == name or key.startswith(f"{name}.") for name in self.overridden)
        self.problems.append(f"{'--set' if overridden else self.file}: {sentence}")

    def override(self, values: dict[str, Any], override: str) -> None:
        """Apply ``section.key=value`` to the file's values."""
        key, separator, text = (part.strip() for part in override.partition("="))
        if not separator or not key:
            self.problems.append(f"--set takes key=value, got {shown(override)}")
            return
        self.overridden.append(key)
        *sections, name = key.split(".")
        for section in sections:
            inside: Any = values.setdefault(section, {})
            if not isinstance(inside, dict):
                self.complain(key, f"{_name(key)}: {_name(section)} is a value, not a section")
                return
            values = cast(dict[str, Any], inside)
        values[name] = _parse(text)

    def apply(self, config: _Config, values: dict[str, Any], where: str) -> _Config:
        """Return ``config`` with ``values`` applied. ``where``: the section's key and a dot, or ""."""
        known = [f.name for f in fields(cast(Any, config))]
        changes: dict[str, Any] = {}
        for key, value in values.items():
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {where}{near[0]}?" if near else f"known: {', '.join(sorted(known))}"
                self.complain(f"{where}{key}", f"there is no key {where}{_name(key)}; {hint}")
            else:
                changes[key] = self.converted(getattr(config, key), value, f"{where}{key}")
        try:
            return cast(_Config, replace(cast(Any, config), **changes))
        except Impossible as error:
            for name, what in error.fields.items():
                self.complain(f"{where}{name}", f"{where}{name} {what}")
        except ValueError as error:
            section = where.rstrip(".")
            self.complain(section, f"[{section}] is not possible: {error}")
        return config

    def converted(self, current: Any, value: Any, where: str) -> Any:
        """Return ``value`` if it has the type of ``current``; otherwise complain and return ``current``."""
        if is_dataclass(current):
            if isinstance(value, dict):
                return self.apply(current, cast(dict[str, Any], value), f"{where}.")
            self.complain(where, f"{where} is a section, got {shown(value)}")
            return current
        if isinstance(current, tuple) and isinstance(value, list):
            kind = cast(Any, current[0] if current else "")  # an empty default: texts
            return tuple(self.converted(kind, element, where) for element in cast(list[Any], value))
        if isinstance(current, Address):
            return Address(self.converted(current.reveal(), value, where))
        kind = cast(type[Any], type(cast(Any, current)))
        if kind is float and type(value) is int and abs(value) < 1e300:
            return float(value)
        if kind is str and type(value) is int and where in self.numbers_too:
            return shown(value)
        if kind is type(value):
            return value
        self.complain(where, f"{where} must be {_KINDS.get(kind, kind.__name__)}, got {shown(value)}")
        return cast(Any, current)


def _name(key: str) -> str:
    """Return a key as it may be told; one with other signs is a misplaced value, perhaps a secret."""
    return key if _NAME.fullmatch(key) else HIDDEN


def _parse(text: str) -> Any:
    """Parse a TOML value; any other text stands for itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text
