"""The attack on the command line: a sample of it, that it covers every command, and what it notices."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

import pytest

from tests.cli_attack import BASELINES, COMMANDS, Case, Outcome, cases, options_of, problems, unknown_options
from tests.paths import ROOT

SAMPLE = 30


def test_a_sample_of_wrong_command_lines_is_refused_in_a_sentence() -> None:
    command = [sys.executable, "-m", "tests.cli_attack", "--sample", str(SAMPLE), "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{SAMPLE} command lines, 0 failed" in done.stdout


def test_numbers_paths_and_texts_are_attacked_as_what_they_are() -> None:
    names = {case.name for case in cases()}
    assert {"ask: --at = 1e400", "run: source = loop of links", "ask: question = special token"} <= names
    assert {"run: --pace = upper case", "run: --set = no equals sign", "soak: --seed = -1"} <= names


def test_the_attack_has_cases_for_every_argument_and_option_of_every_command() -> None:
    assert set(BASELINES) == set(COMMANDS)
    attacked = {case.name.rpartition(" = ")[0] for case in cases() if " = " in case.name}
    for words, command in COMMANDS.items():
        for parameter in command.params:
            if not getattr(parameter, "is_flag", False):
                assert any(name.startswith(f"{' '.join(words)}: {parameter.opts[0]}") for name in attacked), (
                    words,
                    parameter.opts,
                )


@pytest.mark.parametrize(
    ("outcome", "problem"),
    [
        (Outcome(0, "", "", 1.0), []),
        (Outcome(1, "", "vaemotion: error: no such file; give another --at\n", 1.0), []),
        (Outcome(1, "", "unexpected KeyError: 'x'; see --debug\n", 1.0), ["the last-resort message"]),
        (Outcome(1, "", "Traceback (most recent call last)\n", 1.0), ["a traceback"]),
        (Outcome(-11, "", "", 1.0), ["exit code -11"]),
        (Outcome(2, "", "", 1.0), ["no word"]),
        (Outcome(2, "camera rtsp://admin:s3cret@cam", "", 1.0), ["a password"]),
        (Outcome(2, "", "choose another --speed\n", 1.0), ["--speed does not exist"]),
        (Outcome(None, "", "", 1.0), ["it did not end"]),
    ],
)  # fmt: skip
def test_the_attack_notices(outcome: Outcome, problem: list[str]) -> None:
    assert problems(Case(("ask",), "a case"), ("ask", "bundle"), outcome) == problem


def test_an_option_of_another_command_is_a_way_out_only_with_that_command() -> None:
    words = ("ask", "bundle")
    assert unknown_options(words, "run `vaemotion export CHECKPOINT --precision int8` first") == []
    assert unknown_options(words, "run `vaemotion export CHECKPOINT --speed max` first") == ["--speed"]
    assert unknown_options(words, "install it with `pip install --force-reinstall numpy`") == []
    assert unknown_options(("run", "--bogus"), "No such option: --bogus") == []


OF_OTHER_PROGRAMS = {
    "--force-reinstall",
    "--no-deps",
    "--only-binary",
    "--ignore-requires-python",
    "--disable-pip-version-check",
    "--no-input",
    "--progress-bar",
    "--dest",
    "--requirement",
    "--hash",
    "--dim_param",
    "--dim_value",
    "--local-dir",
    "--namespace",
    "--now",
    "--system",
    "--use_fsdp",
    "--fsdp_version",
}  # pip, journalctl, systemctl, useradd, accelerate, hf, onnxruntime


def test_every_option_that_the_code_names_exists() -> None:
    known = {option for words in COMMANDS for option in options_of(words)} | OF_OTHER_PROGRAMS
    for package in ("vaemotion", "runtime", "calibration", "export"):
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                text = node.value if isinstance(node, ast.Constant) else None
                for option in re.findall(
                    r"(?<![\w-])--[a-z][a-z0-9_-]+", text if isinstance(text, str) else ""
                ):
                    assert option in known, f"{file}:{node.lineno} names {option}"
