"""The store: threads that wait for bytes, reads whose time is up, stopping, files shared by two stores."""

from __future__ import annotations

import os
import time
from errno import EINVAL, EIO, ESHUTDOWN

import pytest

from pyerofs.core import GRANULE, REQUEST_MAX
from tests.support import nbdclient as nbd
from tests.support.coreharness import MIB, Rig, until

SIZE = 2 * MIB
SHORT = 0.02  # seconds: time that is meant to pass


# Waiting threads


def test_wait_for_what_is_present() -> None:
    with Rig(SIZE) as rig:
        rig.preset(0, 2)
        assert rig.store.wait(10, 2 * GRANULE - 10, 0)
        assert rig.stats().hits == 1


def test_wait_ends_when_the_last_byte_has_landed() -> None:
    with Rig(SIZE) as rig:
        waiting = rig.task(rig.store.wait, GRANULE, 3 * GRANULE, 20)
        rig.parked(1)
        run = rig.take()
        rig.land(run, GRANULE, 3 * GRANULE - 1)
        assert rig.stats().parked == 1
        rig.land(run, 4 * GRANULE - 1, 1)
        assert waiting.result() is True
        assert rig.stats().parked == 0
        rig.store.finish(run.id)


def test_wait_gives_up() -> None:
    with Rig(SIZE) as rig:
        began = time.monotonic()
        assert not rig.store.wait(0, 1, SHORT)
        assert time.monotonic() - began >= SHORT - 0.001
        stats = rig.stats()
        assert (stats.parked, stats.failed, stats.misses) == (0, 0, 1)
        assert not rig.store.wait(0, 1, 0)


def test_wait_fails_with_the_run() -> None:
    with Rig(SIZE) as rig:
        waiting = rig.task(rig.store.wait, 0, 1, 20)
        rig.parked(1)
        rig.store.finish(rig.take().id, EIO)
        with pytest.raises(OSError) as caught:
            waiting.result()
        assert caught.value.errno == EIO


def test_many_threads_wait_for_the_same_bytes() -> None:
    with Rig(SIZE) as rig:
        waiting = [rig.task(rig.store.wait, i, 100, 20) for i in range(20)]
        rig.parked(20)
        rig.fetch(rig.take())
        assert all(task.result() for task in waiting)
        assert rig.stats().runs == 1


@pytest.mark.parametrize("offset, length", [(0, 0), (SIZE, 1), (1, SIZE), (0, 2**32 + 1), (2**63, 1), (1, 2**64 - 1)])
def test_wait_and_read_want_a_range_of_the_blob(offset: int, length: int) -> None:
    with Rig(SIZE) as rig:
        with pytest.raises(OSError) as caught:
            rig.store.wait(offset, length, 0)
        assert caught.value.errno == EINVAL
        assert rig.stats().parked == 0


def test_wait_is_bounded_as_requests_are() -> None:
    with Rig(REQUEST_MAX + 1, data=b"", full=True) as rig:
        assert rig.store.wait(0, REQUEST_MAX, 0)
        with pytest.raises(OSError) as caught:
            rig.store.wait(0, REQUEST_MAX + 1, 0)
        assert caught.value.errno == EINVAL


# read_into


def test_read_into() -> None:
    with Rig(SIZE) as rig:
        rig.preset(1, 3)
        buffer = bytearray(2 * GRANULE - 7)
        assert rig.store.read_into(buffer, GRANULE + 5) == len(buffer)
        assert buffer == rig.slice(GRANULE + 5, len(buffer))
        assert rig.stats().served == len(buffer)


@pytest.mark.parametrize("offset, length", [(0, 1), (2 * GRANULE, GRANULE + 1)])
def test_read_into_waits_for_every_byte(offset: int, length: int) -> None:
    with Rig(SIZE) as rig:
        rig.preset(1, 3)
        buffer = bytearray(length)
        assert rig.store.read_into(buffer, offset) == 0
        assert buffer == bytes(length), "the buffer was touched"
        reading = rig.task(rig.store.read_into, buffer, offset, 20)
        rig.parked(1)
        rig.fetch(rig.take())
        assert reading.result() == length
        assert buffer == rig.slice(offset, length)


@pytest.mark.parametrize("offset, length", [(0, 0), (SIZE, 1), (SIZE - 1, 2), (2**64 - 1, 2)])
def test_read_into_beyond_the_end(offset: int, length: int) -> None:
    with Rig(SIZE, full=True) as rig, pytest.raises(OSError) as caught:
        rig.store.read_into(bytearray(length), offset)
    assert caught.value.errno == EINVAL


def test_read_into_wants_a_writable_buffer() -> None:
    with Rig(SIZE, full=True) as rig, pytest.raises((TypeError, BufferError)):
        rig.store.read_into(b"1234", 0)


def test_read_into_of_a_data_file_that_was_cut() -> None:
    with Rig(SIZE, full=True) as rig:
        os.truncate(rig.data_fd, GRANULE + 1)
        with pytest.raises(OSError) as caught:
            rig.store.read_into(bytearray(GRANULE), GRANULE)
        assert caught.value.errno == EIO


# Time

OUTAGE = 4.0  # seconds


def test_a_read_whose_time_is_up_fails_and_later_ones_do_not() -> None:
    with Rig(SIZE, timeout=SHORT) as rig:
        client = rig.client()
        began = time.monotonic()
        assert client.call(nbd.CMD_READ, 0, 1).error == nbd.EIO
        assert time.monotonic() - began >= SHORT - 0.001
        assert rig.stats().failed == 1
        assert rig.stats().flights == 0
        rig.preset(0, 1)
        assert client.call(nbd.CMD_READ, 0, 1).data == rig.slice(0, 1)


def test_a_run_outlives_the_reads_that_gave_up() -> None:
    with Rig(SIZE, timeout=SHORT) as rig:
        client = rig.client()
        waiting = rig.task(rig.store.wait, 0, 1, 20)  # it does not expire: there is a run to take however slow we are
        cookies = client.reads([(0, 1), (5, 9), (GRANULE, 1)])
        run = rig.take()
        assert {reply.error for reply in client.replies(3).values()} == {nbd.EIO}
        rig.fetch(run)
        assert waiting.result()
        assert [client.call(nbd.CMD_READ, 5, 9).data for _ in cookies] == [rig.slice(5, 9)] * 3
        assert rig.stats().runs == 1


def test_reads_expire_one_after_the_other() -> None:
    with Rig(SIZE, timeout=SHORT) as rig:
        client = rig.client()
        for _ in range(3):
            assert client.call(nbd.CMD_READ, 0, GRANULE).error == nbd.EIO
        assert rig.stats().failed == 3
        rig.parked(0)


def test_an_outage_is_waited_for_once() -> None:
    """The kernel asks again for the parts of a read that failed; each of them waits a second, until something lands."""
    with Rig(SIZE, timeout=OUTAGE) as rig:
        client = rig.client()

        def waited(offset: int) -> float:
            began = time.monotonic()
            assert client.call(nbd.CMD_READ, offset, 1).error == nbd.EIO
            return time.monotonic() - began

        assert waited(0) >= OUTAGE - 0.001
        again = waited(0)
        assert 1 - 0.001 <= again < OUTAGE
        waiting = rig.task(rig.store.wait, 0, 1, 20)
        rig.fetch(rig.take())
        assert waiting.result()
        assert waited(SIZE - 1) >= OUTAGE - 0.001


def test_a_thread_that_waits_does_not_keep_reads_from_expiring() -> None:
    """The waiter without a deadline is parked first, and the expiring thread has gone to sleep without one."""
    with Rig(SIZE, timeout=SHORT) as rig:
        waiting = rig.task(rig.store.wait, SIZE - 1, 1, 20)
        rig.parked(1)
        # Whether the expiring thread has seen that waiter yet cannot be observed; many turns make it near certain.
        for _ in range(3):
            assert rig.client().call(nbd.CMD_READ, 0, 1).error == nbd.EIO
        rig.store.stop()
        with pytest.raises(OSError):
            waiting.result()


def test_no_timeout_means_for_ever() -> None:
    with Rig(SIZE) as rig:
        client = rig.client()
        client.read(0, 1)
        rig.parked(1)
        assert not rig.store.wait(SIZE - 1, 1, SHORT)  # lets time pass
        assert rig.stats().parked == 1
        rig.fetch(rig.take())
        assert client.reply().data == rig.slice(0, 1)


# Stopping


def test_stop_ends_all_that_blocks() -> None:
    with Rig(SIZE) as rig:
        client = rig.client()
        client.read(0, 1)
        waiting = rig.task(rig.store.wait, 0, 1, 20)
        sending = rig.task(rig.store.sendfile, rig.map_fd, 0, 1, 20)
        rig.parked(3)
        run = rig.take()
        taking = rig.task(rig.store.take)
        rig.store.stop()
        assert taking.result() is None
        for task in (waiting, sending):
            with pytest.raises(OSError) as caught:
                task.result()
            assert caught.value.errno == ESHUTDOWN
        assert client.reply().error == nbd.ESHUTDOWN
        assert rig.stats().parked == 0
        with pytest.raises(OSError) as caught:
            rig.land(run, run.offset, GRANULE)
        assert caught.value.errno == ESHUTDOWN
        assert not rig.store.has(0, 1)
        rig.store.finish(run.id)


def test_after_stop() -> None:
    with Rig(SIZE) as rig:
        rig.store.stop()
        rig.store.stop()
        assert rig.store.take() is None
        rig.store.expire()
        with pytest.raises(OSError) as caught:
            rig.store.wait(0, 1, 20)
        assert caught.value.errno == ESHUTDOWN
        assert rig.client().call(nbd.CMD_READ, 0, 1).error == nbd.ESHUTDOWN


def test_an_object_left_open_warns() -> None:
    with Rig(SIZE) as rig:
        other = rig.open()
        with pytest.warns(ResourceWarning, match="unclosed Store"):
            other.__del__()
        other.stop()
        until(lambda: other.take() is None)


# Two stores over the same files: what one lands, the other must not wait for


def test_a_parked_read_whose_bytes_another_store_landed_before_it_was_taken() -> None:
    with Rig(SIZE) as rig:
        client = rig.client()
        client.read(0, GRANULE)
        rig.parked(1)
        rig.preset(0, 1)
        taking = rig.task(rig.store.take)
        assert client.reply().data == rig.slice(0, GRANULE)
        assert rig.stats().runs == 0
        rig.store.stop()
        assert taking.result() is None


def test_a_parked_read_whose_bytes_another_store_landed_after_it_was_taken() -> None:
    with Rig(SIZE) as rig:
        client = rig.client()
        cookies = client.reads([(0, GRANULE), (2 * GRANULE, GRANULE), (GRANULE, 3 * GRANULE)])
        rig.parked(3)
        run = rig.take()
        rig.preset(1, run.length // GRANULE)
        assert not rig.land(run, run.offset, GRANULE), "the rest is there"
        rig.store.finish(run.id)
        replies = client.replies(3)
        assert [len(replies[cookie].data) for cookie in cookies] == [GRANULE, GRANULE, 3 * GRANULE]
        assert replies[cookies[2]].data == rig.slice(GRANULE, 3 * GRANULE)


def test_a_failed_run_does_not_fail_reads_whose_bytes_another_store_landed() -> None:
    with Rig(SIZE) as rig:
        client = rig.client()
        client.read(0, GRANULE)
        rig.parked(1)
        run = rig.take()
        rig.preset(0, 1)
        rig.store.finish(run.id, EIO)
        assert client.reply() == (1, 0, rig.slice(0, GRANULE))
