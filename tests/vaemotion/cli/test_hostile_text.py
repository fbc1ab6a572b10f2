"""Commands on a real terminal, with names, labels and sentences that try to command it."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from runtime.messages import Narration, Notice, Reading, Start, to_json
from tests.paths import ROOT

READY = ROOT / "models" / "vaemotion-tiny-bundle"
# Clipboard, clear, title, color by one sign, text that runs backwards; markup and an emoji of Rich.
HOSTILE = "\x1b]52;c;ZXZpbA==\x07\x1b[2J\x1b]0;owned\x07\x9b31m\u202eevil[red]x[/red][link=https://e.vil]y[/link]:skull:"
# What Rich itself writes: colors, the cursor, erased lines.
OF_RICH = re.compile(rb"\x1b\[[0-9;]*[mKAGHJ]|\x1b\[\?25[hl]")
CLEAR = b"\x1b[2J"


COMMANDS = """
import json, sys
from vaemotion.cli.main import main
codes = []
for words in json.loads(sys.argv[1]):
    print("\\n$", words[:2], flush=True)
    codes.append(main(words))
print("codes", *codes)
"""


def on_terminal(*commands: Sequence[str], code: str = COMMANDS) -> tuple[list[int], bytes]:
    """Run commands in a process whose streams are a terminal; return their exit codes and what came."""
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "300", "LINES": "60"}
    words = [sys.executable, "-c", code, json.dumps(commands)]
    process = subprocess.Popen(words, stdin=slave, stdout=slave, stderr=slave, env=environment, cwd=ROOT)
    os.close(slave)
    came = b""
    with contextlib.suppress(OSError):  # when the last writer has closed it
        while chunk := os.read(master, 65536):
            came += chunk
    os.close(master)
    assert process.wait() == 0, came
    codes = re.findall(rb"codes ([\d ]+)", came)
    return [int(number) for number in codes[-1].split()] if codes else [], came


def assert_not_obeyed(came: bytes) -> None:
    text = OF_RICH.sub(b"", came).decode()
    assert CLEAR not in came
    assert not re.findall("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text), text
    assert "💀" not in text


def spoil(value: object) -> object:
    """Return a part of a manifest whose every text is hostile, too."""
    if isinstance(value, str):
        return f"{value}{HOSTILE}"
    if isinstance(value, dict):
        return {key: spoil(each) for key, each in value.items()}
    return [spoil(each) for each in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle that is whole, and hostile in every text that no code has a meaning for."""
    folder = tmp_path_factory.mktemp("a") / f"bundle[red]{HOSTILE.replace('/', '|')}"
    shutil.copytree(READY, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["name"], manifest["lineage"]["tools"] = HOSTILE, spoil(manifest["lineage"]["tools"])
    manifest["lineage"][HOSTILE] = HOSTILE
    for component in manifest["components"]:
        component["licence"] = HOSTILE
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a picture with a hostile name."""
    file = tmp_path_factory.mktemp("b") / f"film{HOSTILE.replace('/', '|')}.png"
    file.write_bytes(cv2.imencode(".png", np.full((48, 64, 3), 90, np.uint8))[1].tobytes())
    return file


DOCTOR = """
from runtime.commands.doctor import checks, doctor
from vaemotion.contract.bundle import read_manifest
def examine(bundle):
    name = read_manifest(bundle).name
    fault = checks.failed(name, False, OSError(name))
    return [checks.bundle_files(bundle), checks.Check(name, None, name, name), fault]
doctor.examine = examine
"""


def test_a_bundle_and_a_film_are_shown_and_not_obeyed(bundle: Path, film: Path) -> None:
    commands = [
        ["run", str(bundle), str(film), "--pace", "max", "--profile"],
        ["verify", str(bundle)],
        ["bundle", "inspect", str(bundle)],
        ["bundle", "inspect", str(bundle), "--json"],
        ["bundle", "diff", str(READY), str(bundle)],
        ["doctor", str(bundle)],
    ]
    codes, came = on_terminal(*commands, code=DOCTOR + COMMANDS)
    assert codes == [0, 0, 0, 0, 0, 1], came
    assert_not_obeyed(came)
    for part in came.split(b"\n$ ")[1:]:
        assert b"evil[red]x[" in part.replace(b"\r\n", b""), part


def test_what_is_wrong_is_refused_and_not_obeyed(tmp_path: Path) -> None:
    manifest = json.loads((READY / "manifest.json").read_text())
    manifest["emotions"] = [HOSTILE, CLEAR.decode()]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    timeline, folder = tmp_path / "run.jsonl", str(tmp_path)
    timeline.write_text(json.dumps({"type": "reading", "path": HOSTILE}))
    commands = [
        *(["run", folder], ["verify", folder], ["bundle", "inspect", folder], ["report", str(timeline)]),
        *(
            ["run", str(READY), HOSTILE],
            ["plot", HOSTILE],
            ["verify", HOSTILE],
            ["verify", HOSTILE, "--debug"],
        ),
    ]
    codes, came = on_terminal(*commands)
    assert codes[:4] == [1] * 4, came
    assert set(codes) <= {1, 2}
    assert_not_obeyed(came)


def test_a_timeline_is_drawn_and_not_obeyed(tmp_path: Path) -> None:
    timeline = tmp_path / f"run{HOSTILE.replace('/', '|')}.jsonl"
    start = Start("b", "0" * 64, "s", "real", ("CPU",), {HOSTILE: HOSTILE}, "1")
    reading = Reading(1.0, 0.1, 0.1, 0.1, 0.1, {HOSTILE: 1.0}, "visual", 0.1, None, label=HOSTILE)
    lines = [json.loads(to_json(m)) for m in (start, reading, Narration(1.0, 1.0, ""), Notice(1.0, ""))]
    for line in lines:
        line |= dict.fromkeys(line.keys() & {"bundle", "source", "text"}, HOSTILE)
    timeline.write_text("".join(json.dumps({"complete": True, **line}) + "\n" for line in lines))
    page = tmp_path / "page.html"
    codes, came = on_terminal(
        ["plot", str(timeline)], ["report", str(timeline)], ["report", str(timeline), "--out", str(page)]
    )
    assert codes == [0, 0, 0], came
    assert_not_obeyed(came)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", page.read_text())
    assert "evil[red]x[/red][link" in page.read_text()


VIEW = """
import json, sys
from runtime.messages import End, Narration, Notice, Reading, Start
from runtime.sinks.console import PlainConsole, error_console, open_console
[evil] = json.loads(sys.argv[1])
for console in (open_console(), PlainConsole(error_console())):
    console.publish(Start(evil, "0", evil, "real", (evil,), {}, "1"))
    console.publish(Reading(1.0, 0.1, 0.1, 0.1, 0.1, {evil: 1.0}, "visual", 0.1, None))
    console.publish(Notice(1.0, evil))
    console.publish(Narration(1.0, 1.0, evil))
    console.publish(End(1.0, evil, "", 1.0, 1, 1, {evil: 1}, {evil: 1}))
"""


def test_a_live_view_shows_what_a_model_said_and_obeys_none_of_it() -> None:
    _, came = on_terminal(HOSTILE, code=VIEW)
    assert_not_obeyed(came)
    assert came.count(b"evil[red]x[/red]") > 8
