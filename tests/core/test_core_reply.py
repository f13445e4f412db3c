"""Replies to reads that had to wait: when, in which order, to whom; slow and dying clients; drain and stop."""

from __future__ import annotations

import os
from errno import ECONNRESET, EIO, EPIPE

import pytest

from pyerofs.core import DRAINED, GRANULE, HARD_DISCONNECT, SOFT_DISCONNECT
from tests.support import nbdclient as nbd
from tests.support.coreharness import KIB, MIB, Rig, Served, until

SIZE = 8 * MIB
TINY = 4 * KIB  # a socket buffer that a long reply does not fit into
LONG = MIB  # far more than the buffers of a socket with TINY ones hold
CONN_DEPTH = 4096
PER_RECV = 64 * KIB // 28


def broken(served: Served) -> bool:
    """Has the connection ended as one whose client is gone?"""
    try:
        return served.end() == HARD_DISCONNECT
    except OSError as error:
        return error.errno in (EPIPE, ECONNRESET)


# Streaming release


@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_a_hit_overtakes_a_miss(transport: str) -> None:
    with Rig(SIZE) as rig:
        rig.preset(100, 101)
        client = rig.connect(tcp=transport == "tcp").client
        missed = client.read(0, 5)
        hit = client.read(100 * GRANULE, 7)
        assert client.reply() == (hit, 0, rig.slice(100 * GRANULE, 7))
        rig.fetch(rig.take())
        assert client.reply() == (missed, 0, rig.slice(0, 5))


def test_nothing_is_sent_before_its_bytes_have_landed() -> None:
    """Around the edge of a granule: the reply to each read comes with the last byte of its last granule."""
    with Rig(SIZE) as rig:
        client = rig.client()
        first, second, across = client.reads([(10, 100), (GRANULE, 1), (GRANULE - 1, 2)])
        rig.parked(3)
        run = rig.take()
        rig.land(run, 0, GRANULE - 1)
        client.barrier()
        assert rig.stats().parked == 3
        rig.land(run, GRANULE - 1, 1)
        assert client.reply() == (first, 0, rig.slice(10, 100))
        client.barrier()
        rig.land(run, GRANULE, GRANULE - 1)
        client.barrier()
        assert rig.stats().parked == 2
        rig.land(run, 2 * GRANULE - 1, 1)
        assert client.replies(2) == {
            second: (second, 0, rig.slice(GRANULE, 1)),
            across: (across, 0, rig.slice(GRANULE - 1, 2)),
        }
        client.barrier()
        assert rig.stats().flights == 1, "the run has not ended"


def test_every_read_is_answered_by_the_piece_that_completes_it() -> None:
    with Rig(SIZE) as rig:
        client = rig.client()
        cookies = client.reads((n * GRANULE, GRANULE) for n in range(32))
        run = rig.take()
        for n in range(32):
            rig.land(run, n * GRANULE, GRANULE)
            assert client.reply() == (cookies[n], 0, rig.slice(n * GRANULE, GRANULE))
        rig.store.finish(run.id)


@pytest.mark.parametrize("tail", [1, 100, GRANULE - 1])
def test_the_short_last_granule(tail: int) -> None:
    size = 3 * GRANULE + tail
    with Rig(size) as rig:
        client = rig.client()
        client.reads([(size - 1, 1), (0, size)])
        run = rig.take()
        assert run.offset == 3 * GRANULE
        if tail > 1:
            rig.land(run, 3 * GRANULE, tail - 1)
            client.barrier()
        rig.land(run, size - 1, 1)
        assert client.reply().data == rig.slice(size - 1, 1)
        rig.store.finish(run.id)
        rig.fetch(rig.take())
        assert client.reply().data == rig.data
        assert rig.stats().present == size


def test_the_same_read_on_two_connections() -> None:
    with Rig(SIZE) as rig:
        clients = [rig.client(), rig.client()]
        for client in clients:
            client.reads([(0, GRANULE), (0, 2 * GRANULE)])
        rig.parked(4)
        run = rig.take()
        rig.land(run, 0, GRANULE)
        for client in clients:
            assert client.reply() == (1, 0, rig.slice(0, GRANULE))
            client.barrier()
        rig.land(run, GRANULE, GRANULE)
        for client in clients:
            assert client.reply() == (2, 0, rig.slice(0, 2 * GRANULE))
        assert rig.stats().runs == 1


@pytest.mark.parametrize("sources", [1, 8])
def test_64_connections_at_once(sources: int) -> None:
    with Rig(SIZE) as rig:
        clients = [rig.client() for _ in range(64)]
        ranges = [[((n * 131 + k * 37) * 1001 % (SIZE - 70_000), 1 + k * 3001) for k in range(20)] for n in range(64)]
        for client, wanted in zip(clients, ranges, strict=True):
            client.reads(wanted)
        for _ in range(sources):
            rig.source()
        for client, wanted in zip(clients, ranges, strict=True):
            replies = client.replies(20)
            assert [replies[k + 1].data for k in range(20)] == [rig.slice(*place) for place in wanted]
        for client in clients:
            client.barrier()
        stats = rig.stats()
        assert (stats.hits + stats.misses, stats.failed, stats.parked) == (64 * 20, 0, 0)
        assert stats.landed <= SIZE + 64 * KIB * stats.runs, "something was fetched twice"


@pytest.mark.parametrize("length", [100, 256 * KIB])
def test_more_reads_than_a_batch_become_ready_at_once(length: int) -> None:
    with Rig(SIZE) as rig:
        client = rig.client()
        cookies = client.reads((n, length) for n in range(150))
        rig.parked(150)
        run = rig.take()
        while rig.stats().parked:
            rig.fetch(run)
            if rig.stats().parked:
                run = rig.take()
        for cookie, reply in client.replies(150).items():
            assert reply == (cookie, 0, rig.slice(cookie - cookies[0], length))


def test_a_client_with_too_many_reads_is_not_read_from() -> None:
    count = 10_000
    with Rig(SIZE) as rig:
        client = rig.client()
        sending = rig.task(client.reads, [(n % GRANULE, 1) for n in range(count)])
        until(lambda: rig.stats().parked > CONN_DEPTH)
        run = rig.take()
        assert rig.stats().parked <= CONN_DEPTH + PER_RECV + 1
        rig.fetch(run)
        for _ in range(count):
            cookie, error, data = client.reply()
            assert (error, data) == (0, rig.slice((cookie - 1) % GRANULE, 1))
        sending.result()
        assert rig.stats().runs == 1


# Clients that do not read


def test_a_client_that_does_not_read_holds_nobody_up() -> None:
    """Both of its threads are stuck: one in a hit's reply, the other in a miss's."""
    with Rig(SIZE) as rig:
        rig.preset(0, LONG // GRANULE)
        slow = rig.connect(buffers=TINY).client
        cookies = [slow.read(4 * MIB, LONG), slow.read(4 * MIB, 10)]
        rig.parked(2)
        cookies += [slow.read(0, LONG), slow.read(0, LONG)]
        quick = rig.client()
        quick.read(6 * MIB, GRANULE)
        rig.parked(3)
        first, second = rig.take(), rig.take()
        rig.fetch(first)
        rig.fetch(second)
        assert quick.reply().data == rig.slice(6 * MIB, GRANULE)
        quick.read(7 * MIB, LONG)
        rig.fetch(rig.take())
        assert quick.reply().data == rig.slice(7 * MIB, LONG)
        replies = slow.replies(4)
        places = [(4 * MIB, LONG), (4 * MIB, 10), (0, LONG), (0, LONG)]
        assert [replies[c].data for c in cookies] == [rig.slice(*place) for place in places]


@pytest.mark.parametrize("length", [200 * KIB, LONG])
@pytest.mark.parametrize("seen", [0, 1, 16, 1000])
def test_client_dies_in_the_middle_of_a_hit(length: int, seen: int) -> None:
    with Rig(SIZE, full=True) as rig:
        served = rig.connect(buffers=TINY)
        served.client.reads([(0, length)] * 8)
        served.client.receive(seen)
        served.client.close()
        assert broken(served)
        assert rig.client().call(nbd.CMD_READ, 1, 2).data == rig.slice(1, 2)


@pytest.mark.parametrize("length", [200 * KIB, LONG])
@pytest.mark.parametrize("seen", [1, 16, 1000])
def test_client_dies_in_the_middle_of_the_reply_to_a_miss(length: int, seen: int) -> None:
    with Rig(SIZE) as rig:
        served = rig.connect(buffers=TINY)
        served.client.reads([(0, length)] * 8)
        rig.parked(8)
        rig.fetch(rig.take())
        while rig.stats().parked:
            rig.fetch(rig.take())
        served.client.receive(seen)
        served.client.close()
        assert broken(served)
        assert served.sending
        with pytest.raises(OSError) as caught:
            served.sending.result()
        assert caught.value.errno in (EPIPE, ECONNRESET)
        assert rig.client().call(nbd.CMD_READ, 0, length).data == rig.slice(0, length)


def test_client_dies_while_its_reads_are_parked() -> None:
    with Rig(SIZE) as rig:
        dying, living = rig.connect(), rig.client()
        dying.client.reads((n * 100, 100) for n in range(50))
        living.read(0, GRANULE)
        rig.parked(51)
        run = rig.take()
        rig.land(run, 0, 100)
        dying.client.close()
        assert dying.end() == HARD_DISCONNECT
        assert dying.sending
        dying.sending.result()
        assert rig.stats().parked == 1
        assert rig.store.waiters(run.id) == 1
        rig.fetch_rest(run, 100)
        assert living.reply().data == rig.slice(0, GRANULE)


def test_a_disconnect_forgets_what_is_parked() -> None:
    with Rig(SIZE) as rig:
        served = rig.connect()
        served.client.read(0, 1)
        rig.parked(1)
        run = rig.take()
        served.client.ask(nbd.CMD_DISC)
        assert served.end() == SOFT_DISCONNECT
        assert rig.stats().parked == 0
        rig.fetch(run)
        assert served.client.at_end()


# Drain and stop


def test_drain_answers_what_is_parked() -> None:
    with Rig(SIZE) as rig:
        served = rig.connect()
        client = served.client
        client.reads([(0, GRANULE), (4 * MIB - 5, 10)])
        rig.parked(2)
        served.connection.drain()
        assert served.serving.is_alive()
        rig.fetch(rig.take())
        assert client.reply().data == rig.slice(0, GRANULE)
        assert served.serving.is_alive()
        rig.fetch(rig.take())
        assert client.reply().data == rig.slice(4 * MIB - 5, 10)
        assert client.at_end()
        assert served.end() == DRAINED


def test_drain_refuses_what_it_finds_in_the_socket() -> None:
    with Rig(SIZE, full=True) as rig:
        served = rig.connect(buffers=TINY)
        client = served.client
        client.read(0, LONG)
        assert client.receive(4) == b"\x67\x44\x66\x98"  # and now the serving thread is stuck in the rest
        cookies = [*client.reads([(0, 1)] * 10), client.ask(nbd.CMD_TRIM)]
        served.connection.drain()
        assert client.receive(12) == bytes(4) + (1).to_bytes(8, "big")
        assert client.receive(LONG) == rig.slice(0, LONG)
        replies = client.replies(11)
        assert [replies[cookie].error for cookie in cookies] == [nbd.ESHUTDOWN] * 10 + [nbd.EPERM]
        assert client.at_end()
        assert served.end() == DRAINED


def test_drain_of_an_idle_connection() -> None:
    with Rig(SIZE) as rig:
        served = rig.connect()
        served.client.barrier()
        served.connection.drain()
        assert served.client.at_end()
        assert served.end() == DRAINED


def test_drain_ends_when_the_parked_reads_fail() -> None:
    with Rig(SIZE) as rig:
        served = rig.connect()
        served.client.read(0, 1)
        rig.parked(1)
        served.connection.drain()
        rig.store.finish(rig.take().id, EIO)
        assert served.client.reply().error == nbd.EIO
        assert served.end() == DRAINED


def test_stop_while_draining() -> None:
    with Rig(SIZE) as rig:
        served = rig.connect()
        served.client.read(0, 1)
        rig.parked(1)
        served.connection.drain()
        served.connection.stop()
        assert served.end() == DRAINED
        assert rig.stats().parked == 0
        assert served.client.at_end()


def test_stop_of_a_connection() -> None:
    with Rig(SIZE) as rig:
        served, other = rig.connect(), rig.client()
        served.client.read(0, 1)
        other.read(0, 1)
        rig.parked(2)
        served.connection.stop()
        assert served.end() == HARD_DISCONNECT
        assert served.client.at_end()
        rig.parked(1)
        rig.fetch(rig.take())
        assert other.reply().data == rig.slice(0, 1)


def test_stop_frees_threads_that_are_stuck_in_replies() -> None:
    with Rig(SIZE) as rig:
        rig.preset(0, LONG // GRANULE)
        served = rig.connect(buffers=TINY)
        served.client.read(4 * MIB, LONG)
        rig.parked(1)
        rig.fetch(rig.take())
        served.client.receive(1)
        served.client.reads([(0, LONG)] * 2)
        served.connection.stop()
        assert broken(served)


# A data file that somebody cuts short: the kernel, not we, runs into its end


@pytest.mark.parametrize("length", [GRANULE, 100 * KIB, 256 * KIB, LONG])
@pytest.mark.parametrize("left", [0, 2 * GRANULE])
@pytest.mark.parametrize("parked", [False, True])
@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_a_cut_data_file_ends_the_connection(length: int, left: int, parked: bool, transport: str) -> None:
    """A store without sums has no better way; EIO tells it from a client's hang-up."""
    with Rig(SIZE, sums=False) as rig:
        served = rig.connect(tcp=transport == "tcp")
        client = served.client
        if parked:
            client.reads([(left, length), (GRANULE, LONG + GRANULE)])
            rig.parked(2)
            run = rig.take()
            os.truncate(rig.data_fd, left)
            rig.preset(0, rig.granules, b"")
            rig.store.finish(run.id)
        else:
            rig.preset(0, rig.granules)
            os.truncate(rig.data_fd, left)
            client.read(left, length)
        with pytest.raises(ConnectionError):
            client.replies(2)
        if parked and served.sending:
            with pytest.raises(OSError) as caught:
                served.sending.result()
            assert caught.value.errno == EIO
            assert served.end() == HARD_DISCONNECT
        else:
            with pytest.raises(OSError) as caught:
                served.end()
            assert caught.value.errno == EIO
