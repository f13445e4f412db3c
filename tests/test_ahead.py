"""Work beside the one that needs it: its order, its errors, its bounds and its end."""

from __future__ import annotations

import threading
from collections.abc import Generator
from functools import partial

import pytest

from pyerofs.ahead import Ahead, InTurn


class BrokenError(Exception):
    pass


def test_items_come_in_their_order_and_then_the_error() -> None:
    def items() -> Generator[int, None, None]:
        yield from range(100)
        raise BrokenError

    found = []
    with pytest.raises(BrokenError):
        for item in Ahead(items(), 3, "test"):
            found.append(item)
    assert found == list(range(100))


def test_no_more_items_are_taken_than_the_limit() -> None:
    taken = threading.Semaphore(0)
    count = 0

    def items() -> Generator[int, None, None]:
        nonlocal count
        while True:
            count += 1
            taken.release()
            yield count

    ahead = Ahead(items(), 4, "test")
    for _ in range(5):  # four that wait, and one in the hand
        taken.acquire()
    assert next(ahead) == 1
    taken.acquire()
    assert count == 6
    ahead.close()


def test_a_closed_iterator_ends_its_thread() -> None:
    ended = threading.Event()

    def items() -> Generator[int, None, None]:
        try:
            while True:
                yield 0
        finally:
            ended.set()

    ahead = Ahead(items(), 2, "test")
    next(ahead)
    ahead.close()
    assert ended.wait(60)


def test_calls_are_made_in_turn_and_none_after_one_that_failed() -> None:
    made: list[int] = []

    def fail() -> None:
        raise BrokenError

    calls = InTurn("test", 2)
    for number in range(10):
        calls.add(partial(made.append, number))
    calls.drain()
    calls.add(fail)
    with pytest.raises(BrokenError):
        calls.drain()
    calls.add(lambda: made.append(-1))
    calls.drain()
    calls.close()
    assert made == list(range(10))
