"""Attack on the command line: wrong, odd and hostile values for every argument and option of every command.

Every case is one command line in which one value, or the surroundings (a closed standard output, no home, a
removed working folder), is bad. It runs in a forked process and must end with exit code 0, 1 or 2, without a
traceback, without the last-resort message "unexpected ...", without telling a password, and without naming an
option that the command does not have. Run all of it with ``scripts/cli-attack``; the tests run a sample.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from typer.main import get_command

from tests.media import tone, write_wav, write_work
from tests.paths import ROOT
from vaemotion.cli.app import app
from vaemotion.cli.main import main as command_line
from vaemotion.data.published.build import ADAPTERS

SECRET = "s3cret"
NO_ACCOUNT = """
import pwd
def getpwuid(uid): raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = getpwuid
"""
LIMIT_S = 120.0
MEMORY_BYTES = 8 << 30
SLOW = ("doctor", "demo", "assemble", "gguf", "engines")  # commands that take seconds
BUNDLE = ROOT / "models/vaemotion-tiny-bundle"
CHECKPOINT = ROOT / "models/vaemotion-tiny"

WARM = (
    *("runtime.run", "runtime.commands.ask", "runtime.commands.verify", "runtime.commands.doctor.doctor"),
    *("runtime.commands.timeline.plot", "runtime.commands.timeline.report", "runtime.commands.bundle.diff"),
    *("runtime.commands.install_service", "vaemotion.data.manifest.manifest", "vaemotion.data.art.build"),
    *("onnxruntime", "matplotlib.pyplot"),
)
WARM_FOR_TRAINING = (
    *("runtime.commands.soak.soak", "runtime.commands.bench.bench", "export.pack", "export.verify"),
    *("vaemotion.training.vg_align", "vaemotion.training.base_vlm", "vaemotion.training.emotion"),
    *("vaemotion.training.ablations.run", "vaemotion.evaluation.benchmark.run"),
    *("vaemotion.evaluation.hearing.run", "export.predictors"),
)

Words = tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """One command line. ``surroundings``: changes the process before it runs."""

    words: Words
    name: str
    surroundings: Callable[[], None] = field(default=lambda: None, repr=False)
    # A value that may be accepted starts minutes of work, which are stopped, and that is right.
    long: bool = False
    # Nobody can read what it says.
    silent: bool = False


# -- the commands ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Baseline:
    """A command line that is right. ``long``: it takes minutes, so a value that is accepted is stopped."""

    arguments: tuple[str, ...] = ()
    options: dict[str, str] = field(default_factory=dict)
    long: bool = False


FAST = {"--config": "{config}", "--pace": "max", "--narrate-every": "0", "--out": "jsonl:{new}"}
BASELINES: dict[Words, Baseline] = {
    ("base", "small"): Baseline(options={"--out": "{new}", "--wheelhouse": "{folder}"}),
    ("demo",): Baseline(options={"--clip": "{image}", "--bundle": "{bundle}", "--out": "{new}"}),
    ("run",): Baseline(("{bundle}", "{image}"), FAST),
    ("record",): Baseline(
        ("{bundle}", "{image}"), {"--to": "{new}", "--pace": "max", "--out": "jsonl:{new}2"}
    ),
    ("ask",): Baseline(("{bundle}", "{image}", "What is this?")),
    ("plot",): Baseline(("{timeline}",), {"--out": "{new}.png"}),
    ("report",): Baseline(("{timeline}",), {"--out": "{new}.html"}),
    ("doctor",): Baseline(("{bundle}",)),
    ("install-service",): Baseline(("{bundle}",), {"--config": "{config}", "--user": "root", "--print": ""}),
    ("soak",): Baseline(("{bundle}",), {"--hours": "0.01", "--faults": "0", "--out": "{new}"}, long=True),
    ("verify",): Baseline(("{bundle}",)),
    ("bundle", "inspect"): Baseline(("{bundle}",)),
    ("bundle", "diff"): Baseline(("{bundle}", "{bundle}")),
    ("bench",): Baseline(("{bundle}",), {"--out": "{new}", "--rounds": "1"}, long=True),
    ("engines",): Baseline(("{bundle}",)),
    ("export",): Baseline(("{checkpoint}",), {"--out": "{new}"}, long=True),
    ("assemble",): Baseline(("{config}",), {"--out": "{new}"}),
    ("gguf",): Baseline(("{checkpoint}",), {"--out": "{new}"}),
    ("data", "validate"): Baseline(("{manifest}",), {"--media-root": "{media}"}),
    ("data", "stats"): Baseline(("{manifest}",)),
    ("data", "build", "procedural"): Baseline(
        options={"--out": "{new}", "--split": "test", "--count": "1"}, long=True
    ),
    ("data", "build", "music"): Baseline(options={"--out": "{new}", "--count": "1"}, long=True),
    ("data", "build", "soundscapes"): Baseline(options={"--out": "{new}", "--count": "1"}, long=True),
    ("data", "build", "artemo-open"): Baseline(options={"--out": "{new}", "--count": "1"}, long=True),
    ("data", "build", "medley"): Baseline(options={"--out": "{new}.mkv", "--count": "1"}, long=True),
    **{
        ("data", "build", name): Baseline(options={"--from": "{folder}", "--out": "{new}"})
        for name in ADAPTERS
    },
    ("data", "build", "clips"): Baseline(
        options={"--from": "{folder}", "--out": "{new}", "--license": "CC0-1.0"}
    ),
    ("data", "shard"): Baseline(("{manifest}",), {"--media-root": "{media}", "--to": "{new}"}),
    ("train", "base"): Baseline(options={"--config": "{tiny}", "--out": "{new}"}, long=True),
    ("train", "align"): Baseline(options={"--config": "{tiny}", "--out": "{new}"}, long=True),
    ("train", "emotion"): Baseline(options={"--config": "{tiny}", "--out": "{new}"}, long=True),
    ("train", "ablations"): Baseline(
        options={"--config": "{ablations}", "--base": "{checkpoint}", "--out": "{new}", "--doc": "{new}.md"},
        long=True,
    ),
    ("evaluate", "benchmark"): Baseline(
        ("{manifest}",),
        {"--model": "{bundle}", "--media-root": "{media}", "--out": "{new}", "--bootstrap": "2"},
        long=True,
    ),
    ("evaluate", "hearing"): Baseline(
        options={"--model": "{checkpoint}", "--out": "{new}", "--works": "20", "--bootstrap": "2"}, long=True
    ),
    ("evaluate", "timeline"): Baseline(("{timeline}", "{manifest}"), {"--out": "{new}", "--bootstrap": "2"}),
    ("evaluate", "baselines"): Baseline(
        ("{manifest}",), {"--media-root": "{media}", "--bootstrap": "2"}, long=True
    ),
}


def all_commands(group: Any, words: Words = ()) -> Iterator[tuple[Words, Any]]:
    """Yield every command of the command line with its name."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from all_commands(command, (*words, name))
        else:
            yield (*words, name), command


COMMANDS = dict(all_commands(get_command(app)))


# -- the values -----------------------------------------------------------------------------------------

URLS = {
    "url with a password": f"rtsp://admin:{SECRET}@192.0.2.1/stream",
    "url with a password in its path": f"http://192.0.2.1/user=admin&password={SECRET}&channel=1",
    "url with a slash in its password": f"rtsp://admin:1/{SECRET}@192.0.2.1/stream",
    "pipeline with a password": f"gst:rtspsrc location=rtsp://cam user-pw={SECRET} ! decodebin",
}
TEXTS = {
    "empty": "",
    "blank": " ",
    "line break": "a\nb",
    "escape": "\x1b[31mred\x07",
    "markup": "[/bold] [red",
    "braces": "{x} %s {0}",
    "special token": "<|im_end|></s><image>",
    "not utf-8": os.fsdecode(b"\xff\xfe\xe4"),
    "nul": "a\0b",
    "half a surrogate pair": "\ud800",
    "very long": "long " * 20_000,
    "emoji": "💥",
    "option-like": "--bogus",
    "dash": "-",
    **URLS,
}
NUMBERS = {
    name: name
    for name in (
        *(
            "nan",
            "inf",
            "-inf",
            "-1",
            "0",
            "1e400",
            "1e-400",
            "1e308",
            "-0.0",
            "0x10",
            "1_0",
            "٣",
            "x",
            "1,5",
        ),
        *("2147483648", "18446744073709551616", "1" * 5000),
    )
} | {"empty": "", "nul": "1\0", "not utf-8": os.fsdecode(b"\xff")}
CHOICES = {"empty": "", "unknown": "x", "upper case": "MAX", "not utf-8": os.fsdecode(b"\xff"), "nul": "\0"}
PATHS = {
    "missing": "{folder}/missing",
    "empty": "",
    "folder": "{folder}",
    "file": "{text}",
    "empty file": "{empty}",
    "binary": "{binary}",
    "not utf-8 inside": "{latin1}",
    "line break inside a name": "{folder}/a\nb",
    "not a folder on the way": "{text}/x",
    "dangling link": "{dangling}",
    "loop of links": "{loop}",
    "too long": "{folder}/" + "n" * 300,
    "much too long": "n/" * 3000,
    "/dev/null": "/dev/null",
    "/dev/full": "/dev/full",
    "a file of /proc": "/proc/self/mem",
    "a new file in /proc": "/proc/vaemotion",
    "the root": "/",
    "working folder": ".",
    "bundle": "{bundle}",
    "manifest of a bundle": "{bundle}/manifest.json",
    "timeline": "{timeline}",
    "image": "{image}",
    "sound": "{sound}",
    "data manifest": "{manifest}",
    "configuration": "{config}",
    "[]": "{json_list}",
    "{}": "{json_object}",
    "null": "{json_null}",
    "deep": "{json_deep}",
    "huge number": "{json_huge}",
    "nan": "{json_nan}",
    "strings": "{json_strings}",
    "home of nobody": "~nobody-here/x",
    "damaged bundle": "{no_component}",
    "bundle with a folder for a file": "{folder_component}",
    "bundle with an empty file": "{empty_component}",
    "bundle with a null manifest": "{null_bundle}",
    "bundle with a list for a manifest": "{list_bundle}",
    "bundle with a manifest folder": "{folder_bundle}",
    **{f"name: {name}": text for name, text in TEXTS.items() if name not in ("empty", "very long", "dash")},
}
# Texts with a grammar of their own.
GRAMMARS: dict[str, dict[str, str]] = {
    "--set": {
        "no equals sign": "camera.device",
        "no key": "=1",
        "unknown key": "camera.devise=1",
        "value is no section": "camera=1",
        "section in a value": "camera.device.x=1",
        "huge number": "narrator.every_s=1e400",
        "nan": "narrator.every_s=nan",
        "thousands of digits": f"log.keep={'9' * 5000}",
        "nul": 'web.token_file="a\\u0000b"',
        "deep": f"out.sinks={'[' * 2000}",
        "token in a folder": "web.token_file=/",
        **{f"device: {name}": f"camera.device={url}" for name, url in URLS.items()},
        **{f"unknown device: {name}": f"camera.device=x{url}" for name, url in URLS.items()},
        **{f"no equals sign: {name}": f"camera.device {url}" for name, url in URLS.items()},
    },
    "--out of run": {
        name: name
        for name in (
            *(
                "osc:",
                "osc:x",
                "osc:h:0",
                "osc:h:99999",
                "osc:h:٣",
                "osc::9000",
                "osc:[::1:9000",
                "web:",
                "web:x",
            ),
            *(
                "osc:no-such-host.invalid:9000",
                "osc:a..b:1",
                f"osc:{'h' * 300}:9000",
                "osc:\udcff:1",
                "web:1",
            ),
            *("web:70000", "web:0.0.0.0:8080", "web:192.0.2.1:8080", "jsonl:", "jsonl:/", "jsonl:/dev/full"),
            *(
                "jsonl:/proc/x",
                "jsonl:{folder}",
                "jsonl:{text}/x",
                "jsonl:{loop}",
                "jsonl:-",
                "console:x",
                "x:y",
            ),
            *("jsonl:{folder}/" + "n" * 300, "jsonl:a\0b", "jsonl:~nobody-here/x", "osc:ü\ud800:1"),
        )
    },
    "--osc-in": {
        name: name
        for name in (
            "x",
            "0",
            "-1",
            "65536",
            "h:",
            ":1",
            "a..b:1",
            "192.0.2.1:9000",
            "[::1",
            "٣",
            "1",
            "٣" * 99,
        )
    },
    "--options": {
        name: name
        for name in (
            "a",
            ",",
            "a,",
            "a,,b",
            "a,a",
            "a,A",
            "a, a ",
            "sea  waves,sea waves",
            "é,e\u0301",
            "</s>,<s>",
        )
    }
    | {"very many": ",".join(f"answer {k}" for k in range(3000)), "very long": f"a,{'b ' * 5000}"},
    "--max-drop": {name: name for name in ("pp", "nanpp", "infpp", "-1pp", "1e400pp", "1", "NONE", "٣pp")},
    "--speed": {name: name for name in ("0", "-1", "nan", "inf", "1e400", "1e-300", "REAL")},
    "--allow-licenses": {name: name for name in (",", "x", "MIT,,", "\x1b[31m")},
    "--only": {"unknown": "x"},
    "--license": {"unknown": "x"},
}


VALUES = {"int": NUMBERS, "float": NUMBERS, "Path": PATHS, "str": TEXTS}


def values_of(words: Words, parameter: Any) -> dict[str, str]:
    """Return the bad values for a parameter, by name."""
    option = parameter.opts[0]
    special = GRAMMARS.get(f"{option} of run" if words[0] in ("run", "record") else option, {})
    special = special or GRAMMARS.get(option, {})
    kind = parameter.bare_type().removeprefix("list[").removesuffix("]")  # its name
    return {**VALUES.get(kind, CHOICES), **special}


# -- the surroundings -----------------------------------------------------------------------------------


def _redirect(descriptor: int, path: str) -> Callable[[], None]:
    def apply() -> None:
        opened = os.open(path, os.O_WRONLY)
        os.dup2(opened, descriptor)
        os.close(opened)

    return apply


def _closed(*descriptors: int) -> Callable[[], None]:
    def apply() -> None:
        for descriptor in descriptors:
            os.close(descriptor)
            setattr(sys, ("stdin", "stdout", "stderr")[descriptor], None)

    return apply


def _broken_pipe() -> None:
    read, write = os.pipe()
    os.dup2(write, 1)
    os.close(read)
    os.close(write)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115


def _ascii_only() -> None:
    sys.stdout = open(1, "w", encoding="ascii", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, encoding="ascii", errors="backslashreplace", closefd=False)  # noqa: SIM115


def _no_home() -> None:
    """Become a user without an account, as in a container that is started with a number as its user."""
    os.environ.pop("HOME", None)
    folder = Path(tempfile.mkdtemp())
    (folder / "sitecustomize.py").write_text(NO_ACCOUNT)
    os.environ["PYTHONPATH"] = str(folder)  # for the processes that it starts
    exec(NO_ACCOUNT)


def _removed_folder() -> None:
    folder = tempfile.mkdtemp()
    os.chdir(folder)
    os.rmdir(folder)


def _environment(**values: str) -> Callable[[], None]:
    return lambda: os.environ.update(values)


SURROUNDINGS: dict[str, Callable[[], None]] = {
    "full standard output": _redirect(1, "/dev/full"),
    "full standard error": _redirect(2, "/dev/full"),
    "closed standard output": _closed(1),
    "closed standard error": _closed(2),
    "closed standard streams": _closed(0, 1, 2),
    "broken pipe": _broken_pipe,
    "ASCII terminal": _ascii_only,
    "removed working folder": _removed_folder,
    "narrow terminal": _environment(COLUMNS="1", LINES="1"),
    "odd terminal": _environment(COLUMNS="x", TERM="", NO_COLOR="1"),
    "odd cache": _environment(
        VAEMOTION_CACHE="/dev/null/x", XDG_CACHE_HOME="relative", MPLCONFIGDIR="/proc/x"
    ),
    "odd steps": _environment(VAEMOTION_EXPORT_STEPS="/dev/null/x"),
    "no temporary folder": _environment(TMPDIR="/dev/null/x"),
    "no home": _no_home,
    "home that cannot be used": _environment(HOME="/dev/null/x"),
}


SILENT = ("full standard error", "closed standard error", "closed standard streams", "broken pipe")

# -- cases ----------------------------------------------------------------------------------------------


def command_words(words: Words, baseline: Baseline, replaced: str, value: str, argument: int | None) -> Words:
    """Return the baseline's command line with one value replaced, or added."""
    arguments = list(baseline.arguments)
    if argument is not None:
        arguments[argument:] = [value, *arguments[argument + 1 :]]
    options = [
        part
        for option, given in baseline.options.items()
        if option != replaced
        for part in ((option, given) if given else (option,))
    ]
    added = [] if argument is not None else [replaced, value]
    return (*words, *options, *added, "--", *arguments) if arguments else (*words, *options, *added)


def cases() -> list[Case]:
    """Return every case, in a fixed order."""
    found: list[Case] = []
    for words, command in COMMANDS.items():
        baseline = BASELINES[words]
        places = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
        for parameter in command.params:
            if getattr(parameter, "is_flag", False):
                continue
            place = places.index(parameter) if parameter in places else None
            for name, value in values_of(words, parameter).items():
                line = command_words(words, baseline, parameter.opts[0], value, place)
                found.append(
                    Case(line, f"{' '.join(words)}: {parameter.opts[0]} = {name}", long=baseline.long)
                )
        line = (*words, *_options(baseline), *baseline.arguments)
        for name, change in SURROUNDINGS.items():
            if not baseline.long:
                found.append(Case(line, f"{' '.join(words)}: {name}", change, silent=name in SILENT))
        found.append(Case(words, f"{' '.join(words)}: nothing"))
        found.append(Case((*line, "extra", URLS["url with a password"]), f"{' '.join(words)}: extra"))
        found.append(Case((*line, "--no-such-option"), f"{' '.join(words)}: no such option"))
    return found


def _options(baseline: Baseline) -> list[str]:
    return [
        part
        for option, given in baseline.options.items()
        for part in ((option, given) if given else (option,))
    ]


# -- materials ------------------------------------------------------------------------------------------


def make_materials(folder: Path) -> dict[str, str]:
    """Make the files that the cases name, and return their paths by name."""
    made: dict[str, Path] = {"folder": folder / "folder", "media": folder / "media"}
    made["folder"].mkdir()

    def text(name: str, content: bytes, suffix: str = "") -> None:
        made[name] = folder / f"{name}{suffix}"
        made[name].write_bytes(content)

    text("text", b"text\n")
    text("empty", b"")
    text("binary", np.random.default_rng(0).bytes(50_000))
    text("latin1", "größer = 1\n".encode("latin-1"))
    text("config", b'[camera]\ndevice = "none"\n', ".toml")
    text("json_list", b"[]\n")
    text("json_object", b"{}\n")
    text("json_null", b"null\n")
    text("json_deep", b"[" * 100_000)
    text("json_huge", b'{"type": "start", "schema": 1e400, "x": ' + b"9" * 5000 + b"}\n")
    text("json_nan", b'{"type": "reading", "time_s": NaN}\n')
    text("json_strings", b'{"type": "reading", "time_s": "x", "schema": "y"}\n')
    made["dangling"], made["loop"] = folder / "dangling", folder / "loop"
    made["dangling"].symlink_to(folder / "nowhere" / "x")
    made["loop"].symlink_to(made["loop"])
    made["image"] = ROOT / "models/vaemotion-tiny-bundle/none"
    import cv2

    made["image"] = folder / "image.png"
    cv2.imwrite(str(made["image"]), np.full((48, 64, 3), 90, np.uint8))
    made["sound"] = write_wav(folder / "sound.wav", tone(0.5), 16_000)
    made |= {"bundle": BUNDLE, "checkpoint": CHECKPOINT, "tiny": ROOT / "configs/tiny.toml"}
    made["ablations"] = ROOT / "configs/ablations.toml"
    clip = write_work(folder / "clip.mkv", 0.4)
    made["timeline"] = folder / "timeline.jsonl"
    _quietly("run", str(BUNDLE), str(clip), "--pace", "max", "--out", f"jsonl:{made['timeline']}")
    _quietly("data", "build", "procedural", "--out", str(made["media"]), "--split", "test", "--count", "1")
    made["manifest"] = made["media"] / "manifest.jsonl"
    _damaged_bundles(folder, made)
    for path in folder.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o777 if path.is_dir() else 0o666)
    folder.chmod(0o777)
    return {name: str(path) for name, path in made.items()}


def _damaged_bundles(folder: Path, made: dict[str, Path]) -> None:
    for name in (
        "no_component",
        "folder_component",
        "empty_component",
        "null_bundle",
        "list_bundle",
        "folder_bundle",
    ):
        made[name] = folder / name
        (made[name] / "components").mkdir(parents=True)
        for file in BUNDLE.rglob("*"):
            if file.is_file():
                (made[name] / file.relative_to(BUNDLE)).symlink_to(file)
    component = Path("components/vision_encoder.fp32.onnx")
    for name in ("no_component", "folder_component", "empty_component"):
        (made[name] / component).unlink()
    (made["folder_component"] / component).mkdir()
    (made["empty_component"] / component).touch()
    for name, content in (("null_bundle", "null"), ("list_bundle", "[1e400]")):
        (made[name] / "manifest.json").unlink()
        (made[name] / "manifest.json").write_text(content)
    (made["folder_bundle"] / "manifest.json").unlink()
    (made["folder_bundle"] / "manifest.json").mkdir()


def _quietly(*words: str) -> None:
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
        code = _in_child(Case(words, "materials"), words)
    assert code.code == 0, code


# -- a case's run and its judgement ---------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """End of a command line. ``code``: None when it was stopped at its limit."""

    code: int | None
    out: str
    err: str
    seconds: float


def _in_child(case: Case, words: Words, limit_s: float = LIMIT_S) -> Outcome:
    """Run the command line in a forked process of its own session."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        began_s = time.monotonic()
        child = os.fork()
        if child == 0:
            code = 99
            try:
                os.setsid()
                signal.signal(signal.SIGINT, signal.default_int_handler)
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
                sys.stderr = open(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
                work = tempfile.mkdtemp()
                os.chmod(work, 0o777)
                os.chdir(work)
                resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
                case.surroundings()
                code = command_line(words)
                if sys.stdout is not None:  # as Python does at its end, which fails with exit code 120
                    sys.stdout.flush()
            except SystemExit as error:
                code = error.code if isinstance(error.code, int) else 1
            except BaseException as error:
                code = 120
                with contextlib.suppress(BaseException):
                    import traceback

                    os.write(2, f"Traceback of the attack: {traceback.format_exc()} {error!r}".encode())
            finally:
                os._exit(code)
        code = _wait(child, began_s + limit_s)
        seconds = time.monotonic() - began_s
        out.seek(0)
        err.seek(0)
        return Outcome(
            code, out.read().decode(errors="replace"), err.read().decode(errors="replace"), seconds
        )


def _wait(child: int, deadline_s: float) -> int | None:
    while time.monotonic() < deadline_s:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def fill(words: Words, materials: dict[str, str], new: Path) -> Words:
    """Return the command line with the names of materials replaced by their paths."""
    names = {**materials, "new": str(new)}
    return tuple(re.sub(r"\{(\w+)\}", lambda found: names.get(found[1], found[0]), word) for word in words)


def problems(case: Case, words: Words, outcome: Outcome) -> list[str]:
    """Return what is wrong with the way a command line ended."""
    said = outcome.out + outcome.err
    wrong: list[str] = []
    if outcome.code is None and not case.long:
        wrong.append("it did not end")
    if outcome.code not in (0, 1, 2, 3, None):
        wrong.append(f"exit code {outcome.code}")
    if re.search(r"unexpected [A-Z]\w+: ", said):
        wrong.append("the last-resort message")
    if "Traceback" in said or "Exception ignored" in said:
        wrong.append("a traceback")
    if SECRET in said:
        wrong.append("a password")
    if outcome.code in (1, 2) and not case.silent and not said.strip():
        wrong.append("no word")
    wrong += [f"{option} does not exist" for option in unknown_options(words, outcome.err)]
    return wrong


def unknown_options(words: Words, message: str) -> list[str]:
    """Return the options in a message that no command has that the message is about.

    A command in backquotes is another one: of ``vaemotion``'s its own options count, others are not judged.
    """
    typed = {part for word in words for part in re.findall(r"--[a-z][a-z-]+", word)}
    found: list[str] = []
    for quoted in re.findall(r"`([^`]*)`", message):
        if quoted.startswith("vaemotion "):
            target = next((w for w in COMMANDS if tuple(quoted.split()[1 : 1 + len(w)]) == w), None)
            found += [
                o for o in re.findall(r"--[a-z][a-z-]+", quoted) if target and o not in options_of(target)
            ]
    rest = re.sub(r"`[^`]*`", "", message)
    rest = re.sub(r"(pip|apt|apt-get|useradd|usermod|journalctl|systemctl) [^\n]*", "", rest)
    own = max((w for w in COMMANDS if words[: len(w)] == w), key=len, default=())
    known = options_of(own) if own else {o for w in COMMANDS for o in options_of(w)}
    return found + [o for o in re.findall(r"(?<![\w-])--[a-z][a-z-]+", rest) if o not in known | typed]


def options_of(words: Words) -> set[str]:
    """Return the options of a command, with those of every command."""
    listed = {o for p in COMMANDS[words].params for o in (*p.opts, *p.secondary_opts) if o.startswith("--")}
    return listed | {"--help", "--debug", "--version"}


def attack(chosen: list[Case], limit_s: float, long_s: float, verbose: bool) -> int:
    """Run the cases and print those that failed. Returns their number."""
    failed = 0
    _warm_up(any(case.long for case in chosen))
    with tempfile.TemporaryDirectory(prefix="cli-attack-") as made:
        folder = Path(made)
        tempfile.tempdir = str(folder / "temporary")
        os.mkdir(tempfile.tempdir)
        os.chmod(tempfile.tempdir, 0o777)
        materials = make_materials(folder)
        for number, case in enumerate(chosen):
            new = folder / "new"
            words = fill(case.words, materials, new)
            outcome = _in_child(case, words, long_s if case.long else limit_s)
            wrong = problems(case, words, outcome)
            if new.is_dir():
                shutil.rmtree(new)
            for left in folder.glob("new*"):
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            if wrong or verbose:
                said = (outcome.err.strip() or outcome.out.strip())[-400:]
                print(
                    f"{'FAILED' if wrong else 'ok'} {case.name:.120}: {', '.join(wrong)} "
                    f"(exit code {outcome.code}, {outcome.seconds:.1f} s)\n    {said!r}",
                    flush=True,
                )
            failed += bool(wrong)
            if number % 100 == 99:
                print(f"… {number + 1} of {len(chosen)} cases, {failed} failed", flush=True)
    print(f"{len(chosen)} command lines, {failed} failed")
    return failed


def _warm_up(training: bool) -> None:
    """Import what commands import, so that each forked process has it already. Nothing is computed."""
    for name in WARM + (WARM_FOR_TRAINING if training else ()):
        importlib.import_module(name)


def main() -> int:
    """Run the attack, or a sample of it, and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sample", type=int, help="number of cases, drawn with the seed; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--match", default="", help="regular expression of the cases' names")
    parser.add_argument("--quick", action="store_true", help="without commands that take seconds or minutes")
    parser.add_argument("--long-s", type=float, default=15.0, help="seconds after which these are stopped")
    parser.add_argument("--verbose", action="store_true", help="print every case")
    arguments = parser.parse_args()
    chosen = [case for case in cases() if re.search(arguments.match, case.name)]
    if arguments.quick:
        chosen = [case for case in chosen if not case.long and case.words[0] not in SLOW]
    if arguments.sample is not None:
        chosen = random.Random(arguments.seed).sample(chosen, min(arguments.sample, len(chosen)))
    return int(attack(chosen, LIMIT_S, arguments.long_s, arguments.verbose) > 0)


if __name__ == "__main__":
    sys.exit(main())
