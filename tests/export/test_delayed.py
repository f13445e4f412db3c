"""Chores that are done once for many reasons."""

from __future__ import annotations

import threading

import pytest

from pyerofs.export.delayed import Delayed

LIMIT = 20.0


def test_many_reasons_are_one_run() -> None:
    runs: list[int] = []
    begun, go = threading.Event(), threading.Event()

    def chore() -> None:
        runs.append(1)
        begun.set()
        assert go.wait(LIMIT)

    delayed = Delayed(0.001, chore)
    delayed.soon()
    assert begun.wait(LIMIT)
    before = threading.active_count()
    for _ in range(100):
        delayed.soon()
    assert threading.active_count() <= before + 1
    begun.clear()
    go.set()
    assert begun.wait(LIMIT)  # the reasons that came meanwhile
    delayed.close()
    assert runs == [1, 1]


def test_close_waits_for_a_run_and_prevents_others() -> None:
    begun, go = threading.Event(), threading.Event()
    ended: list[int] = []

    def chore() -> None:
        begun.set()
        assert go.wait(LIMIT)
        ended.append(1)

    delayed = Delayed(0.001, chore)
    delayed.soon()
    assert begun.wait(LIMIT)
    delayed.soon()
    closing = threading.Thread(target=delayed.close)
    closing.start()
    go.set()
    closing.join(LIMIT)
    assert not closing.is_alive()
    assert ended in ([1], [1, 1])  # whether the second one had begun is a matter of chance
    delayed.soon()
    delayed.close()
    assert threading.active_count() < 20


def test_close_does_not_wait_for_what_is_far_away() -> None:
    delayed = Delayed(3600, lambda: None)
    delayed.soon()
    delayed.close()
    delayed.close()


def test_a_thread_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next reason tries again."""

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    done = threading.Event()
    delayed = Delayed(0.001, done.set)
    with monkeypatch.context() as little:
        little.setattr(threading.Thread, "start", start)
        delayed.soon()
    assert not done.is_set()
    delayed.soon()
    assert done.wait(LIMIT)
    delayed.close()
