"""Standard streams that are closed, full or broken, as a shell leaves them; each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Opens the streams, opens a file as any command does, prints to both streams, and ends as `main` does.
PROGRAM = """
import os, sys
from vaemotion.cli.streams import complain, flush_streams, open_streams
open_streams()
own = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT, 0o644)
assert own > 2, own
for word in sys.argv[2:]:
    print(word)
complain("a sentence")
os.write(own, b"whole")
sys.exit(flush_streams())
"""
# Standard output is written when it is flushed, not by every print.
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


def shell(folder: Path, redirections: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the program with the redirections of a shell; its file is FOLDER/own."""
    line = f'"$0" -c "$1" "${{@:2}}" {redirections}'
    command = ["bash", "-c", line, sys.executable, PROGRAM, str(folder / "own"), *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=120, env=BUFFERED)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert (folder / "own").read_bytes() == b"whole"  # and nothing that was meant for a terminal
    return done


@pytest.mark.parametrize(
    ("redirections", "exit_code", "error"),
    [
        ("", 0, "a sentence"),
        ("<&-", 0, "a sentence"),
        ("2>&-", 0, None),
        ("<&- 2>&-", 0, None),
        ("2>/dev/full", 0, None),
        (">&-", 1, "cannot write to standard output: Bad file descriptor"),
        ("<&- >&- 2>&-", 1, None),
        (">/dev/full", 1, "cannot write to standard output: No space left on device"),
    ],
)
def test_a_stream_that_is_missing_costs_what_was_meant_for_it(
    tmp_path: Path, redirections: str, exit_code: int, error: str | None
) -> None:
    done = shell(tmp_path, redirections, "printed")
    assert done.returncode == exit_code
    assert (f"vaemotion: error: {error}" in done.stderr) if error else (done.stderr == "")
    assert done.stdout == ("printed\n" if exit_code == 0 else "")


def test_a_command_that_prints_nothing_needs_no_standard_output(tmp_path: Path) -> None:
    assert shell(tmp_path, ">&-").returncode == 0


@pytest.mark.parametrize("error_too", [False, True])
def test_a_reader_that_has_gone_is_not_spoken_about(tmp_path: Path, error_too: bool) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "own"), "printed"]
    done = subprocess.run(
        command,
        stdout=theirs,
        stderr=theirs if error_too else subprocess.PIPE,
        text=True,
        timeout=120,
        env=BUFFERED,
    )
    os.close(theirs)
    assert done.returncode == 1
    assert error_too or done.stderr == "vaemotion: error: a sentence\n"
    assert (tmp_path / "own").read_bytes() == b"whole"


def test_every_name_can_be_printed(tmp_path: Path) -> None:
    done = shell(tmp_path, "", json.dumps(os.fsdecode(b"latin\xe9"), ensure_ascii=False))
    assert (done.returncode, done.stdout) == (0, '"latin\\udce9"\n')
