"""Mailboxes between the runtime's threads: bounded, with a stated policy for when they are full, and nothing lost in silence.

In: items from any number of threads. Out: the same items in order, to any number of threads. Between live stages stands a
``LatestSlot`` or a ``Ring`` that drops its oldest item and counts it; behind a file a ``Ring`` that makes the producer wait.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, Literal, TypeVar

T = TypeVar("T")


class Closed(Exception):
    """Nothing more can be put into this mailbox, or will come out of it."""


class Ring(Generic[T]):
    """A queue of at most ``capacity`` items, none of them None, that is safe to share between threads.

    ``when_full``: "wait" makes ``put`` wait for room, "drop-oldest" makes room at once, and ``dropped`` counts what was lost.
    """

    def __init__(self, capacity: int, when_full: Literal["wait", "drop-oldest"]) -> None:
        """Raises ValueError unless ``capacity`` is at least 1."""
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {capacity}")
        self.capacity = capacity
        self.when_full = when_full
        self._items: deque[T] = deque()
        self._dropped = self._deepest = 0
        self._closed = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    @property
    def dropped(self) -> int:
        """How many items were dropped untaken to make room."""
        return self._dropped

    @property
    def deepest(self) -> int:
        """The most items that were ever inside."""
        return self._deepest

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T, timeout_s: float = 0.0) -> bool:
        """Append an item. False when there was no room within ``timeout_s``: the item is then still the caller's, who may try
        again. With "drop-oldest" always True, and at once. Raises Closed after ``close`` or ``fail``, also while it waits."""
        assert item is not None, "None is what take returns when nothing came"
        with self._changed:
            if self.when_full == "wait":
                self._changed.wait_for(lambda: self._ended or len(self._items) < self.capacity, timeout_s)
            if self._ended:
                raise Closed
            if len(self._items) == self.capacity:
                if self.when_full == "wait":
                    return False
                self._items.popleft()
                self._dropped += 1
            self._items.append(item)
            self._deepest = max(self._deepest, len(self._items))
            self._changed.notify_all()
            return True

    def take(self, timeout_s: float) -> T | None:
        """The oldest item, or None when none came within ``timeout_s``. Raises what ``fail`` was given as soon as it is, whatever
        is still inside, and Closed when the mailbox is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or len(self._items) > 0, timeout_s)
            self._check_open()
            if not self._items:
                return None
            self._changed.notify_all()
            return self._items.popleft()

    def take_all(self) -> list[T]:
        """Everything inside, oldest first, without waiting. Raises as ``take`` does."""
        with self._changed:
            self._check_open()
            items = list(self._items)
            self._items.clear()
            self._changed.notify_all()
            return items

    def close(self) -> None:
        """The end: whoever waits is woken, takers get what is still inside and then Closed."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """A worker has failed: whoever waits is woken, and every taker gets this very error. The first one stays."""
        with self._changed:
            if self._error is None:
                self._error = error
            self._changed.notify_all()

    @property
    def _ended(self) -> bool:
        return self._closed or self._error is not None

    def _check_open(self) -> None:
        """For takers, with the lock held."""
        if self._error is not None:
            raise self._error
        if self._closed and not self._items:
            raise Closed


class LatestSlot(Ring[T]):
    """Room for one item: ``put`` replaces what is there, and ``dropped`` counts what was replaced unseen."""

    def __init__(self) -> None:
        super().__init__(1, "drop-oldest")
