"""SIGHUP ends a process whose terminal was closed, and asks any other to read its configuration again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.live_peers import until

# Says what it sees, and ends by itself only after minutes.
_PROCESS = """
import os, sys, time
from runtime.machine.stop import signals
with signals() as stop:
    os.write(int(sys.argv[1]), b"ready\\n")
    for _ in range(3000):
        if stop.wait(0.05):
            os.write(int(sys.argv[1]), b"stopped by %d\\n" % stop.signal)
            sys.exit(128 + stop.signal)
        if stop.reload.is_set():
            stop.reload.clear()
            os.write(int(sys.argv[1]), b"reload\\n")
"""


class Process:
    """A process with a terminal of its own, or with none."""

    def __init__(self, *, terminal: bool, ignores_hangup: bool = False) -> None:
        self.terminal, end = os.openpty()
        self._said, said = os.pipe()
        # The leader of a new session gets the first terminal that it opens.
        ignore = "trap '' HUP; " if ignores_hangup else ""
        shell = f'{ignore}{"exec <>$0; " if terminal else ""}exec "$@"'
        self.process = subprocess.Popen(
            ["sh", "-c", shell, os.ttyname(end), sys.executable, "-c", _PROCESS, str(said)],
            start_new_session=True,
            pass_fds=(said,),
        )
        os.close(said)
        os.close(end)

    def says(self) -> str:
        return os.read(self._said, 100).decode().strip()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._said)


@contextmanager
def process(*, terminal: bool, ignores_hangup: bool = False) -> Iterator[Process]:
    started = Process(terminal=terminal, ignores_hangup=ignores_hangup)
    try:
        assert started.says() == "ready"
        yield started
    finally:
        started.close()


def test_a_process_whose_terminal_is_closed_is_asked_to_end() -> None:
    with process(terminal=True) as started:
        started.process.send_signal(signal.SIGHUP)
        assert started.says() == "reload"
        os.close(started.terminal)
        assert started.says() == "stopped by 1"
        started.process.send_signal(signal.SIGHUP)  # the shell's, after the kernel's
        until(lambda: started.process.poll() is not None, "the end")
        assert started.process.returncode == 128 + signal.SIGHUP


@pytest.mark.parametrize(("terminal", "ignores_hangup"), [(False, False), (True, True)])
def test_a_service_and_what_nohup_started_read_their_configuration(
    terminal: bool, ignores_hangup: bool
) -> None:
    with process(terminal=terminal, ignores_hangup=ignores_hangup) as started:
        os.close(started.terminal)
        for _ in range(2):
            started.process.send_signal(signal.SIGHUP)
            assert started.says().startswith("reload")
        started.process.send_signal(signal.SIGTERM)
        assert "stopped by 15" in started.says()


_WITHIN_A_WAIT = """
import signal
from runtime.machine.stop import signals
with signals() as stop:
    with stop._cond, stop.reload._cond:  # a handler runs between any two steps of a wait: here, too
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGTERM)
    print(stop.reload.wait(60), stop.wait(60), stop.signal)
"""


def test_a_signal_within_a_wait_for_one_asks_the_run_to_end() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _WITHIN_A_WAIT], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout == "True True 15\n", done.stderr
