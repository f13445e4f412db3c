"""Dispatch: every command and every error of it, and requests that arrive in any portions."""

from __future__ import annotations

import random
import signal
import socket
import struct
from collections.abc import Iterator
from errno import EPROTO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyerofs.core import GRANULE, HARD_DISCONNECT, PAUSED, REQUEST_MAX, SOFT_DISCONNECT
from tests.support import nbdclient as nbd
from tests.support.coreharness import KIB, MIB, Rig, Served, Task, pattern

SIZE = 2 * MIB + 1234
REPLY_BATCH = 64
BUFFER = 64 * KIB  # CONN_BUFFER
UNSUPPORTED = [nbd.CMD_FLUSH, nbd.CMD_CACHE, nbd.CMD_BLOCK_STATUS, 8, 100, 0xFFFF]
quick = settings(deadline=None, print_blob=True, max_examples=100)


@pytest.fixture(scope="module")
def full() -> Iterator[Rig]:
    """A store with every byte present."""
    with Rig(SIZE, full=True) as rig:
        yield rig


@pytest.fixture
def served(full: Rig) -> Iterator[Served]:
    """One connection to that store, in step and open to the end unless the test has ended it."""
    served = Served(full.store)
    yield served
    served.close()


# Reads


@pytest.mark.parametrize("length", [1, 2, 4096, 100_000, 256 * KIB - 1, 256 * KIB, 256 * KIB + 1, SIZE - 4097])
@pytest.mark.parametrize("offset", [0, 1, 4095, 4096])
def test_read(full: Rig, served: Served, offset: int, length: int) -> None:
    assert served.client.call(nbd.CMD_READ, offset, length) == (1, 0, full.slice(offset, length))


def test_read_to_the_last_byte(full: Rig, served: Served) -> None:
    assert served.client.call(nbd.CMD_READ, 0, SIZE).data == full.data
    assert served.client.call(nbd.CMD_READ, SIZE - 1, 1).data == full.slice(SIZE - 1, 1)


@pytest.mark.parametrize(
    "offset, length",
    [
        (0, 0),
        (SIZE, 0),
        (SIZE, 1),
        (SIZE - 1, 2),
        (0, SIZE + 1),
        (2**64 - 1, 1),
        (2**64 - 1, 2),
        (2**64 - 4096, 4096),
        (2**64 - 4096, 8192),
        (2**63, 4096),
        (0, 2**32 - 1),
    ],
)
def test_read_of_a_bad_range(served: Served, offset: int, length: int) -> None:
    assert served.client.call(nbd.CMD_READ, offset, length).error == nbd.EINVAL
    assert served.client.call(nbd.CMD_READ, 0, 1).error == 0


def test_the_longest_read() -> None:
    data = pattern(MIB) * 33
    with Rig(len(data), data=data, full=True) as rig:
        client = rig.client()
        assert client.call(nbd.CMD_READ, 7, REQUEST_MAX).data == rig.slice(7, REQUEST_MAX)
        assert client.call(nbd.CMD_READ, 7, REQUEST_MAX + 1).error == nbd.EINVAL
        client.barrier()


@pytest.mark.parametrize("flags", [1 << bit for bit in range(16)] + [0xFFFF])
def test_read_with_flags(served: Served, flags: int) -> None:
    assert served.client.call(nbd.CMD_READ, 0, 1, flags=flags).error == nbd.EINVAL
    served.client.barrier()


def test_cookies_are_returned_as_they_are(served: Served) -> None:
    for cookie in (0, 1, 2**64 - 1, 0x0123456789ABCDEF):
        served.client.send(nbd.request(nbd.CMD_READ, cookie, 0, 1))
        served.client.lengths[cookie] = 1
        assert served.client.reply().cookie == cookie


def test_counters_of_hits() -> None:
    with Rig(SIZE) as rig:
        rig.preset(0, 4)
        client = rig.client()
        client.call(nbd.CMD_READ, 0, GRANULE)
        client.call(nbd.CMD_READ, 0, 0)
        client.call(nbd.CMD_READ, GRANULE, 3 * GRANULE)
        client.barrier()
        stats = rig.stats()
        assert (stats.hits, stats.misses, stats.served, stats.failed) == (2, 0, 4 * GRANULE, 0)


# The other commands


@pytest.mark.parametrize("kind", [nbd.CMD_TRIM, nbd.CMD_WRITE_ZEROES])
@pytest.mark.parametrize("offset, length", [(0, 4096), (2**64 - 1, 2**32 - 1), (0, 0)])
def test_what_would_change_the_export(served: Served, kind: int, offset: int, length: int) -> None:
    assert served.client.call(kind, offset, length).error == nbd.EPERM
    assert served.client.call(nbd.CMD_READ, 0, 1).error == 0


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_what_is_not_supported(served: Served, kind: int) -> None:
    assert served.client.call(kind, 0, 4096).error == nbd.EINVAL
    assert served.client.call(nbd.CMD_READ, 0, 1).error == 0


def test_disconnect(served: Served) -> None:
    served.client.ask(nbd.CMD_DISC)
    assert served.end() == SOFT_DISCONNECT
    assert served.client.at_end()


def test_disconnect_after_reads_answers_them_first(full: Rig, served: Served) -> None:
    client = served.client
    client.send(b"".join(client.pack(nbd.CMD_READ, n, 10) for n in range(100)) + client.pack(nbd.CMD_DISC))
    assert client.replies(100)[100].data == full.slice(99, 10)
    assert client.at_end()
    assert served.end() == SOFT_DISCONNECT


def test_nothing_after_a_disconnect_is_answered(served: Served) -> None:
    client = served.client
    client.send(client.pack(nbd.CMD_DISC) + client.pack(nbd.CMD_READ, 0, 1))
    assert client.at_end()


def test_hang_up(served: Served) -> None:
    served.client.close()
    assert served.end() == HARD_DISCONNECT


@pytest.mark.parametrize("count", range(1, nbd.REQUEST.size))
def test_hang_up_within_a_request(served: Served, count: int) -> None:
    served.client.send(nbd.request(nbd.CMD_READ, 1, 0, 1)[:count])
    served.client.sock.shutdown(socket.SHUT_WR)
    assert served.end() == HARD_DISCONNECT
    assert served.client.at_end()


@pytest.mark.parametrize("magic", [0, 0x25609512, 0x13956025, 0x67446698, 0xFFFFFFFF])
def test_bad_magic_is_the_end(full: Rig, served: Served, magic: int) -> None:
    client = served.client
    bad = nbd.request(nbd.CMD_READ, 9, 0, 1, magic=magic)
    client.send(client.pack(nbd.CMD_READ, 3, 4) + bad + client.pack(nbd.CMD_READ, 0, 1))
    assert client.reply().data == full.slice(3, 4), "what came before it is answered"
    assert client.at_end()
    with pytest.raises(OSError) as caught:
        served.end()
    assert caught.value.errno == EPROTO


# Writes: refused, and their payload must not be taken for requests


def hostile(length: int) -> bytes:
    """A payload that is full of valid requests."""
    return (nbd.request(nbd.CMD_READ, 666, 0, 1) * (length // nbd.REQUEST.size + 1))[:length]


@pytest.mark.parametrize("length", [0, 1, 27, 28, 4096, BUFFER - 28, BUFFER - 27, BUFFER, BUFFER + 1, 300_000])
def test_write_is_refused_and_the_stream_stays_in_step(full: Rig, served: Served, length: int) -> None:
    client = served.client
    write = client.ask(nbd.CMD_WRITE, 0, length, payload=hostile(length) + client.pack(nbd.CMD_READ, 5, 6))
    assert write == 2
    replies = client.replies(2)
    assert replies[1].error == nbd.EPERM or replies[2].error == nbd.EPERM
    assert full.slice(5, 6) in [reply.data for reply in replies.values()]
    assert client.call(nbd.CMD_READ, 0, 1).error == 0


@pytest.mark.parametrize("piece", [1, 7, 28, 1000])
def test_write_whose_payload_arrives_in_pieces(full: Rig, served: Served, piece: int) -> None:
    client = served.client
    stream = client.pack(nbd.CMD_WRITE, 0, 5000) + hostile(5000) + client.pack(nbd.CMD_READ, 1, 2)
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    for at in range(0, len(stream), piece):
        client.send(stream[at : at + piece])
    replies = client.replies(2)
    assert (replies[1].error, replies[2].data) == (nbd.EPERM, full.slice(1, 2))


def test_the_longest_write(served: Served) -> None:
    served.client.ask(nbd.CMD_WRITE, 0, REQUEST_MAX)
    sending = Task(served.client.send, hostile(REQUEST_MAX))
    assert served.client.reply().error == nbd.EPERM
    sending.result()
    served.client.barrier()


@pytest.mark.parametrize("length", [REQUEST_MAX + 1, 2**32 - 1])
def test_a_write_too_long_is_the_end(served: Served, length: int) -> None:
    served.client.ask(nbd.CMD_WRITE, 0, length)
    assert served.client.at_end()
    with pytest.raises(OSError) as caught:
        served.end()
    assert caught.value.errno == EPROTO


def test_hang_up_within_a_payload(served: Served) -> None:
    served.client.ask(nbd.CMD_WRITE, 0, 1000, payload=bytes(999))
    assert served.client.reply().error == nbd.EPERM
    served.client.close()
    assert served.end() == HARD_DISCONNECT


# Portions


def test_byte_by_byte(full: Rig, served: Served) -> None:
    client = served.client
    for n in range(5):
        for byte in client.pack(nbd.CMD_READ, n, 10):
            client.send(bytes([byte]))
        assert client.reply().data == full.slice(n, 10)


@pytest.mark.parametrize("count", [REPLY_BATCH - 1, REPLY_BATCH, REPLY_BATCH + 1, 1000, 5000])
def test_many_requests_at_once(full: Rig, served: Served, count: int) -> None:
    """5000 requests are more than the buffer holds, and their number does not end with it."""
    client = served.client
    sending = Task(client.reads, [(n % 5000, n % 7 + 1) for n in range(count)])
    seen = {}
    for _ in range(count):
        reply = client.reply()
        seen[reply.cookie] = reply.data
    sending.result()
    assert seen == {n + 1: full.slice(n % 5000, n % 7 + 1) for n in range(count)}


@pytest.mark.parametrize("seed", range(4))
def test_requests_split_anywhere(full: Rig, served: Served, seed: int) -> None:
    chance = random.Random(seed)
    client = served.client
    expected = {}
    stream = b""
    for n in range(1, 301):
        if chance.random() < 0.2:
            length = chance.choice([0, 1, 28, 500])
            stream += client.pack(nbd.CMD_WRITE, 0, length) + hostile(length)
            expected[n] = (n, nbd.EPERM, b"")
        else:
            offset, length = chance.randrange(SIZE - 5000), chance.randrange(1, 5000)
            stream += client.pack(nbd.CMD_READ, offset, length)
            expected[n] = (n, 0, full.slice(offset, length))

    def send() -> None:
        at = 0
        while at < len(stream):
            step = chance.choice([1, 5, 27, 28, 29, 300])
            client.send(stream[at : at + step])
            at += step

    sending = Task(send)
    assert client.replies(300) == expected
    sending.result()


def test_batches_with_long_and_short_and_refused_ones(full: Rig, served: Served) -> None:
    client = served.client
    ranges = [(n * 13, 300 * KIB if n % 10 == 3 else 0 if n % 10 == 5 else 50) for n in range(200)]
    sending = Task(client.reads, ranges)
    replies: dict[int, nbd.Reply] = {}
    while len(replies) < 200:
        reply = client.reply()
        replies[reply.cookie] = reply
    for cookie, (offset, length) in zip(sending.result(), ranges, strict=True):
        assert replies[cookie] == (cookie, 0 if length else nbd.EINVAL, full.slice(offset, length))


# Any bytes


requests = st.builds(
    nbd.request,
    st.sampled_from([*range(8), 77]),
    st.integers(0, 2**64 - 1),
    st.sampled_from([0, 1, 4096, SIZE - 1, SIZE, 2**63, 2**64 - 1]),
    st.sampled_from([0, 1, 100, 4096, 300_000, SIZE, 2**25, 2**25 + 1, 2**32 - 1]),
    flags=st.sampled_from([0, 0, 0, 1, 0x8000]),
)


@quick
@given(st.lists(st.one_of(requests, requests, st.binary(max_size=40)), max_size=20), st.booleans())
def test_any_bytes_are_answered_in_step_or_are_the_end(full: Rig, parts: list[bytes], reset: bool) -> None:
    served = Served(full.store)
    try:
        Task(exchange, served, b"".join(parts), reset).result()
        served.serving.join(nbd.TIMEOUT)
        assert not served.serving.is_alive()
    finally:
        served.close()


def exchange(served: Served, stream: bytes, reset: bool) -> None:
    """Sends it all and hangs up. Whatever comes back starts as replies do."""
    sending = Task(send_and_finish, served.client.sock, stream, reset)
    if not reset:
        try:
            while start := served.client.sock.recv(4):
                assert struct.unpack(">I", start.ljust(4, b"\0"))[0] == nbd.SIMPLE_REPLY_MAGIC
                while served.client.sock.recv(MIB):
                    pass
        except ConnectionError:
            pass
    sending.result()


def send_and_finish(sock: socket.socket, stream: bytes, reset: bool) -> None:
    try:
        sock.sendall(stream)
        if not reset:
            sock.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the server has ended it
    if reset:
        sock.close()


# Pausing


def pause(served: Served) -> int:
    """What serve() returns once it is paused, its thread being woken as the server does it."""
    served.connection.pause()
    while served.serving.is_alive():
        assert served.serving.ident is not None
        signal.pthread_kill(served.serving.ident, signal.SIGUSR1)
        served.serving.join(0.01)
    return served.end()


@pytest.fixture
def waker() -> Iterator[None]:
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    yield
    signal.signal(signal.SIGUSR1, before)


def test_a_paused_connection_goes_on_with_another_server(full: Rig, served: Served, waker: None) -> None:
    """Every request gets its one reply, whichever of the two has read it."""
    for _ in range(5):
        assert served.client.call(nbd.CMD_READ, 4096, 100)[2] == full.slice(4096, 100)
        assert pause(served) == PAUSED
        cookie = served.client.read(8192, 10)  # while nobody serves
        second = Served(full.store, (served.sock, served.client.sock))
        assert served.client.reply() == (cookie, 0, full.slice(8192, 10))
        served.connection.close()
        served.connection, served.serving, served.sending = second.connection, second.serving, second.sending


def test_a_pause_waits_for_the_end_of_a_request(full: Rig, served: Served, waker: None) -> None:
    half = nbd.request(nbd.CMD_READ, 7, 0, 4096)
    served.client.send(half[:10])
    served.connection.pause()
    served.client.send(half[10:])
    assert pause(served) == PAUSED


def test_a_pause_with_a_read_that_waits_ends_the_connection(waker: None) -> None:
    """Its client has to ask again: the read could not be answered, and nobody else knows of it."""
    with Rig(SIZE) as rig:
        served = rig.connect()
        served.client.read(0, 4096)
        run = rig.store.take()
        assert run is not None
        assert pause(served) == HARD_DISCONNECT
        rig.store.finish(run.id, 0)
