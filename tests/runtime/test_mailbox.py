import sys
import threading
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.mailbox import BoundedQueue, ByteLimit, Closed, LatestSlot

PATIENCE_S = 60  # of a call that must be woken; a test that waits it out has failed

steps = st.lists(st.sampled_from(["put", "put", "take", "take all"]), max_size=60)


def start(target, *arguments):
    """Start a thread; return it, and a list that will hold its result or error."""
    outcome = []

    def body():
        try:
            outcome.append(target(*arguments))
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    return thread, outcome


def until_it_waits(thread):
    """Return once the thread is in a condition's wait; until then it holds the lock."""
    for _ in range(20_000):
        frame = sys._current_frames().get(thread.ident)
        if frame is not None and frame.f_code.co_name == "wait":
            return
        time.sleep(0.001)
    pytest.fail("the thread does not wait")


def result(thread, outcome):
    thread.join(PATIENCE_S / 2)
    assert not thread.is_alive(), "the thread was not woken"
    return outcome[0]


@settings(deadline=None)
@given(steps, st.integers(1, 4), st.sampled_from(["wait", "drop-oldest"]))
def test_every_item_is_delivered_in_order_or_dropped_and_counted_or_still_inside(steps, capacity, when_full):
    queue, inside, dropped = BoundedQueue(capacity, when_full), [], 0
    for number, step in enumerate(steps):
        if step == "put":
            full = len(inside) == capacity
            assert queue.put(number) is not (full and when_full == "wait")
            if full and when_full == "drop-oldest":
                inside, dropped = inside[1:], dropped + 1
            if len(inside) < capacity:
                inside = [*inside, number]
        elif step == "take":
            assert queue.take(0) == (inside[0] if inside else None)
            inside = inside[1:]
        else:
            assert queue.take_all() == inside
            inside = []
        assert (len(queue), queue.dropped) == (len(inside), dropped)
    queue.close()
    assert [queue.take(0) for _ in inside] == inside
    with pytest.raises(Closed):
        queue.take(0)


@settings(deadline=None)
@given(st.lists(st.booleans()))
def test_the_slot_holds_the_latest_item_and_counts_what_nobody_saw(puts):
    slot, latest, unseen = LatestSlot(), None, 0
    for number, is_put in enumerate(puts):
        if is_put:
            assert slot.put(number)
            unseen, latest = unseen + (latest is not None), number
        else:
            assert slot.take(0) == latest
            latest = None
        assert slot.dropped == unseen


@pytest.mark.parametrize(
    ("make", "loses"),
    [
        (lambda: BoundedQueue(3, "wait"), False),
        (lambda: BoundedQueue(3, "drop-oldest"), True),
        (LatestSlot, True),
    ],
    ids=["waits", "drops", "slot"],
)
def test_threads_lose_and_invent_nothing(make, loses):
    box, producers, consumers, items = make(), 4, 3, 500
    offered = [(name, number) for name in range(producers) for number in range(items)]

    def produce(name):
        for number in range(items):
            assert box.put((name, number), PATIENCE_S)

    def consume():
        taken = []
        while True:
            try:
                taken.append(box.take(PATIENCE_S))
            except Closed:
                return taken

    takers = [start(consume) for _ in range(consumers)]
    for thread, outcome in [start(produce, name) for name in range(producers)]:
        assert result(thread, outcome) is None
    box.close()
    takings = [result(*taker) for taker in takers]
    assert sum(map(len, takings)) + box.dropped == len(offered)
    assert max(Counter(item for taken in takings for item in taken).values()) == 1
    for taken in takings:  # each producer's items come in the order in which it put them
        for name in range(producers):
            numbers = [number for producer, number in taken if producer == name]
            assert numbers == sorted(numbers)
    if not loses:
        assert sorted(item for taken in takings for item in taken) == offered
        assert box.dropped == 0


def test_never_more_than_the_capacity_is_inside_while_producers_race():
    queue = BoundedQueue(2, "wait")
    producers = [start(lambda: [queue.put(number, PATIENCE_S) for number in range(200)]) for _ in range(4)]
    sizes, taken = set(), 0
    while taken < 800:
        sizes.add(len(queue))
        if queue.take(PATIENCE_S) is not None:
            taken += 1
    assert max(sizes) <= 2
    assert all(result(*producer) == [True] * 200 for producer in producers)


def test_a_put_that_waits_goes_on_when_there_is_room():
    queue = BoundedQueue(1, "wait")
    queue.put("first")
    waiting = start(queue.put, "second", PATIENCE_S)
    until_it_waits(waiting[0])
    assert queue.take(PATIENCE_S) == "first"
    assert result(*waiting) is True
    assert queue.take_all() == ["second"]


def test_taking_all_lets_every_waiting_put_go_on():
    queue = BoundedQueue(2, "wait")
    queue.put(1)
    queue.put(2)
    waiting = [start(queue.put, number, PATIENCE_S) for number in (3, 4)]
    for thread, _ in waiting:
        until_it_waits(thread)
    assert queue.take_all() == [1, 2]
    assert [result(*put) for put in waiting] == [True, True]
    assert sorted(queue.take_all()) == [3, 4]


def test_a_put_that_finds_no_room_in_time_leaves_the_item_with_the_caller():
    queue = BoundedQueue(1, "wait")
    assert queue.put("kept")
    assert queue.put("refused", 0.01) is False
    assert (queue.take_all(), queue.dropped) == (["kept"], 0)


@pytest.mark.parametrize(
    "end", [BoundedQueue.close, lambda queue: queue.fail(OSError("failed"))], ids=["closed", "failed"]
)
def test_a_put_that_waits_is_released_by_the_end_and_its_item_stays_out(end):
    queue = BoundedQueue(1, "wait")
    queue.put("inside")
    waiting = start(queue.put, "outside", PATIENCE_S)
    until_it_waits(waiting[0])
    end(queue)
    assert isinstance(result(*waiting), Closed)
    assert len(queue) == 1


@pytest.mark.parametrize("make", [lambda: BoundedQueue(2, "wait"), LatestSlot], ids=["queue", "slot"])
def test_closing_wakes_every_taker_and_refuses_every_put(make):
    box = make()
    takers = [start(box.take, PATIENCE_S) for _ in range(3)]
    for thread, _ in takers:
        until_it_waits(thread)
    box.close()
    assert all(isinstance(result(*taker), Closed) for taker in takers)
    with pytest.raises(Closed):
        box.put("late")
    with pytest.raises(Closed):
        box.take_all()


@pytest.mark.parametrize("make", [lambda: BoundedQueue(2, "wait"), LatestSlot], ids=["queue", "slot"])
def test_a_failure_wakes_the_takers_and_each_gets_that_very_error(make):
    box, error = make(), RuntimeError("the decoder died")
    takers = [start(box.take, PATIENCE_S) for _ in range(2)]
    for thread, _ in takers:
        until_it_waits(thread)
    box.fail(error)
    assert [result(*taker) for taker in takers] == [error, error]


def test_a_failure_comes_before_what_is_inside_and_the_first_one_stays():
    queue, error = BoundedQueue(2, "drop-oldest"), RuntimeError("the first")
    queue.put("inside")
    queue.close()
    queue.fail(error)
    queue.fail(RuntimeError("a consequence"))
    for take in (lambda: queue.take(0), queue.take_all):
        with pytest.raises(RuntimeError) as raised:
            take()
        assert raised.value is error


def test_a_queue_without_capacity_is_refused():
    with pytest.raises(ValueError, match="capacity must be at least 1, got 0"):
        BoundedQueue(0, "wait")


def test_a_queue_holds_bytes_and_lets_one_item_in_whatever_its_size() -> None:
    waiting: BoundedQueue[bytes] = BoundedQueue(10, "wait", ByteLimit(100, len))
    assert waiting.put(b"x" * 1000)
    assert not waiting.put(b"y")
    assert waiting.take(0) == b"x" * 1000
    assert waiting.put(b"a" * 60)
    assert waiting.put(b"b" * 40)
    assert not waiting.put(b"c")
    assert waiting.take_all() == [b"a" * 60, b"b" * 40]
    assert waiting.put(b"d" * 100)

    dropping: BoundedQueue[bytes] = BoundedQueue(10, "drop-oldest", ByteLimit(100, len))
    for item in (b"a" * 50, b"b" * 50, b"c" * 90):
        assert dropping.put(item)
    assert dropping.take_all() == [b"c" * 90]
    assert dropping.dropped == 2
