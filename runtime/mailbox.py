"""Bounded mailboxes between the runtime's threads, each with a stated policy for when it is full.

In: items from any number of threads. Out: the same items in order, to any number of threads. Between
live stages stands a ``LatestSlot`` or a ``BoundedQueue`` that drops its oldest item and counts it.
Behind a file stands a ``BoundedQueue`` that makes the producer wait, so that nothing is lost.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

T = TypeVar("T")


class Closed(Exception):
    """The mailbox is closed: nothing more can be put in, or nothing more will come out."""


@dataclass(frozen=True)
class ByteLimit(Generic[T]):
    """A limit on the memory that the items of a queue hold; one item is always let in."""

    capacity_bytes: int
    size_bytes: Callable[[T], int]


class BoundedQueue(Generic[T]):
    """A thread-safe queue of at most ``capacity`` items, none of them None, within ``limit``.

    ``when_full``: "wait" makes ``put`` wait for room; "drop-oldest" makes room at once and counts the
    lost items in ``dropped``.
    """

    def __init__(
        self,
        capacity: int,
        when_full: Literal["wait", "drop-oldest"],
        limit: ByteLimit[T] | None = None,
    ) -> None:
        """Make an empty queue. Raises ValueError unless ``capacity`` is at least 1."""
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {capacity}")
        self.capacity = capacity
        self.when_full = when_full
        self._limit = limit
        self._held_bytes = 0
        self._items: deque[T] = deque()
        self._dropped = self._deepest = 0
        self._closed = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    @property
    def dropped(self) -> int:
        """Number of items that were dropped untaken to make room."""
        return self._dropped

    @property
    def deepest(self) -> int:
        """Largest number of items that were ever inside."""
        return self._deepest

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T, timeout_s: float = 0.0) -> bool:
        """Append an item and return True, or False when there was no room within ``timeout_s``.

        After False the item is still the caller's, who may try again. With "drop-oldest" the result is
        always True, and at once. Raises Closed after ``close`` or ``fail``, also while it waits.
        """
        assert item is not None, "None is what take returns when nothing came"
        with self._changed:
            if self.when_full == "wait":
                self._changed.wait_for(lambda: self._ended or self._has_room(item), timeout_s)
            if self._ended:
                raise Closed
            while not self._has_room(item):
                if self.when_full == "wait":
                    return False
                self._pop()
                self._dropped += 1
            self._items.append(item)
            self._held_bytes += self._size(item)
            self._deepest = max(self._deepest, len(self._items))
            self._changed.notify_all()
            return True

    def take(self, timeout_s: float) -> T | None:
        """Remove and return the oldest item, or None when none came within ``timeout_s``.

        Raises the error given to ``fail`` at once, whatever is still inside, and Closed when the
        mailbox is closed and empty.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ended or len(self._items) > 0, timeout_s)
            self._check_open()
            if not self._items:
                return None
            self._changed.notify_all()
            return self._pop()

    def take_all(self) -> list[T]:
        """Remove and return all items, oldest first, without waiting. Raises as ``take`` does."""
        with self._changed:
            self._check_open()
            items = list(self._items)
            self._items.clear()
            self._held_bytes = 0
            self._changed.notify_all()
            return items

    def close(self) -> None:
        """Close the mailbox and wake all waiting threads; takers get what is inside, then Closed."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """Close the mailbox with a worker's error, which every taker raises. The first error stays."""
        with self._changed:
            if self._error is None:
                self._error = error
            self._changed.notify_all()

    def _has_room(self, item: T) -> bool:
        if self._limit is None or not self._items:
            return len(self._items) < self.capacity
        fits = self._held_bytes + self._size(item) <= self._limit.capacity_bytes
        return fits and len(self._items) < self.capacity

    def _size(self, item: T) -> int:
        return 0 if self._limit is None else self._limit.size_bytes(item)

    def _pop(self) -> T:
        item = self._items.popleft()
        self._held_bytes -= self._size(item)
        return item

    @property
    def _ended(self) -> bool:
        return self._closed or self._error is not None

    def _check_open(self) -> None:
        """Raise the error or Closed, for takers that hold the lock."""
        if self._error is not None:
            raise self._error
        if self._closed and not self._items:
            raise Closed


class LatestSlot(BoundedQueue[T]):
    """A mailbox for one item: ``put`` replaces what is inside and counts it in ``dropped``."""

    def __init__(self) -> None:
        super().__init__(1, "drop-oldest")
