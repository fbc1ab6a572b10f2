"""Calls of one function in child processes, so that a native crash or a hang costs one call and is named.

A child makes many calls. A call that crashes is made once more in a new child: if that goes well, an earlier
call of the same child did the damage, and their arguments are named too.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import resource
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from queue import Empty, Queue
from typing import Any, Generic, TypeVar

A, R = TypeVar("A"), TypeVar("R")
START_S = 60.0
MEMORY_BYTES = 8 << 30  # of address space, for one child


@dataclass(frozen=True)
class Outcome(Generic[A, R]):
    """One call: its argument, and its value or its failure in words."""

    argument: A
    value: R | None = None
    failure: str = ""
    # Arguments of the calls before it in the child that crashed, where the call alone does not crash.
    after: tuple[A, ...] = ()


class _Child(Generic[A, R]):
    def __init__(self, function: Callable[[A], R]) -> None:
        context = mp.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, function), daemon=True)
        self._process.start()
        other.close()
        self.done: list[A] = []
        self.alive = self._pipe.poll(START_S) and self._pipe.recv() == "ready"

    def call(self, argument: A, limit_s: float) -> tuple[R | None, str]:
        """Return the value or a failure; after "crash" and "hang" the child is gone."""
        try:
            self._pipe.send(argument)
            if not self._pipe.poll(limit_s):
                self.close()
                return None, f"hang: nothing after {limit_s:.0f} s"
            value, failure = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(10)
            code = self._process.exitcode or 0
            self.alive = False
            name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            return None, f"crash: {name}"
        self.done.append(argument)
        return value, failure

    def close(self) -> None:
        self.alive = False
        self._pipe.close()
        if self._process.is_alive():
            self._process.kill()
        self._process.join(10)


def _serve(pipe: Connection, function: Callable[[Any], Any]) -> None:
    # What libraries say of damaged files goes nowhere; a file that takes all memory fails alone.
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    pipe.send("ready")
    while True:
        try:
            argument = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            answer = (function(argument), "")
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            answer = (
                None,
                f"{type(error).__name__}: {error} ({where.filename.rpartition('/')[2]}:{where.lineno})",
            )
        pipe.send(answer)


def each(
    function: Callable[[A], R], arguments: Sequence[A], limit_s: float, workers: int = 2
) -> Iterator[Outcome[A, R]]:
    """Call a module's function with each argument, and yield the outcomes as they come.

    ``limit_s``: seconds that one call may take. ``workers``: number of child processes.
    """
    waiting: Queue[A] = Queue()
    for argument in arguments:
        waiting.put(argument)
    outcomes: Queue[Outcome[A, R]] = Queue()

    def work() -> None:
        child: _Child[A, R] | None = None
        while True:
            try:
                argument = waiting.get_nowait()
            except Empty:
                break
            if child is None or not child.alive:
                child = _Child(function)
            earlier = tuple(child.done)
            value, failure = child.call(argument, limit_s)
            after: tuple[A, ...] = ()
            if failure.startswith("crash") and earlier:
                child = _Child(function)
                value, again = child.call(argument, limit_s)
                after = () if again.startswith("crash") else earlier
            outcomes.put(Outcome(argument, value, failure, after))
        if child is not None:
            child.close()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for _ in arguments:
        yield outcomes.get()
    for thread in threads:
        thread.join()
