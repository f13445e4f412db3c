"""The three hot paths of the C core, each without a network: dispatch, sendfile, range copy. `make bench` runs them.

A row is one round of so many bytes or requests; `extra_info` in the JSON output has both. The client is Python, but
sends and reads whole batches, so that its part in a round is a few microseconds.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from pyerofs.core import GRANULE, Connection, Run, Store

KIB = 1024
MIB = 1024 * KIB
SIZE = 64 * MIB
REQUEST = struct.Struct(">IHHQQI")
HEADER = 16  # bytes of a simple reply


def memory(stack: ExitStack, size: int, content: bytes = b"") -> int:
    fd = os.memfd_create("bench")
    stack.callback(os.close, fd)
    os.truncate(fd, size)
    os.pwrite(fd, content, 0)
    return fd


def in_thread(stack: ExitStack, call: Callable[[], Any]) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    stack.callback(thread.join)


@contextmanager
def opened(present: int) -> Iterator[Store]:
    """A store of which the first so many bytes are present; there is no map when that is all."""
    with ExitStack() as stack:
        data = memory(stack, SIZE, os.urandom(MIB) * (present // MIB))
        bits = None
        if present < SIZE:
            bits = memory(stack, SIZE // GRANULE // 8, b"\xff" * (present // GRANULE // 8))
        store = Store(data, SIZE, map_fd=bits)
        stack.callback(store.close)
        stack.callback(store.stop)
        yield store


@pytest.fixture(scope="module")
def full() -> Iterator[Store]:
    with opened(SIZE) as store:
        yield store


@contextmanager
def connected(store: Store) -> Iterator[socket.socket]:
    with ExitStack() as stack:
        server, client = (stack.enter_context(each) for each in socket.socketpair())
        connection = Connection(store, server.fileno())
        stack.callback(connection.close)
        in_thread(stack, connection.serve)
        in_thread(stack, connection.send)
        stack.callback(connection.stop)
        yield client


def reads(depth: int, length: int) -> bytes:
    """So many of them, scattered over the first half of the blob."""
    places = (n * 7919 * GRANULE % (SIZE // 2) for n in range(depth))
    return b"".join(REQUEST.pack(0x25609513, 0, 0, n, offset, length) for n, offset in enumerate(places))


def exchange(client: socket.socket, requests: bytes, room: bytearray) -> None:
    client.sendall(requests)
    view = memoryview(room)
    while view:
        view = view[client.recv_into(view, len(view), socket.MSG_WAITALL) :]


def dispatch(benchmark: BenchmarkFixture, store: Store, depth: int, length: int, batches: int) -> None:
    requests, room = reads(depth, length), bytearray(depth * (HEADER + length))
    benchmark.extra_info.update(requests=depth * batches, bytes=depth * batches * length)
    with connected(store) as client:

        def go() -> None:
            for _ in range(batches):
                exchange(client, requests, room)

        benchmark(go)


@pytest.mark.parametrize("depth", [1, 16, 64])
def test_dispatch_of_4k_reads(benchmark: BenchmarkFixture, full: Store, depth: int) -> None:
    """Every byte is there, and the store knows it: 1024 requests a round."""
    dispatch(benchmark, full, depth, 4 * KIB, 1024 // depth)


@pytest.mark.parametrize("takers", [0, 4])
@pytest.mark.parametrize("depth", [16, 64])
def test_dispatch_of_4k_hits(benchmark: BenchmarkFixture, depth: int, takers: int) -> None:
    """The same while a part of the blob is still absent, with so many idle fetch threads: 1024 requests a round."""
    with ExitStack() as stack:
        store = stack.enter_context(opened(SIZE - MIB))
        for _ in range(takers):
            in_thread(stack, store.take)
        stack.callback(store.stop)
        dispatch(benchmark, store, depth, 4 * KIB, 1024 // depth)


@pytest.mark.parametrize("length", [64 * KIB, MIB])
def test_long_replies(benchmark: BenchmarkFixture, full: Store, length: int) -> None:
    """64 KiB go from the mapping, 1 MiB by sendfile: 64 MiB a round."""
    dispatch(benchmark, full, 8, length, 64 * MIB // 8 // length)


@pytest.mark.parametrize("target", ["null", "pipe", "socket"])
def test_sendfile(benchmark: BenchmarkFixture, full: Store, target: str) -> None:
    """The whole blob, 64 MiB a round, to somebody who takes it as fast as it comes."""
    with ExitStack() as stack:
        if target == "null":
            out = os.open("/dev/null", os.O_WRONLY)
        elif target == "pipe":
            reader, out = os.pipe()
            in_thread(stack, lambda: swallow(os.fdopen(reader, "rb", buffering=0)))
        else:
            ours, theirs = socket.socketpair()
            out = ours.detach()
            in_thread(stack, lambda: swallow(theirs.makefile("rb", buffering=0)))
            stack.callback(theirs.close)
        stack.callback(os.close, out)
        benchmark.extra_info.update(bytes=SIZE)
        assert benchmark(full.sendfile, out, 0, SIZE, 60) == SIZE


def swallow(stream: Any) -> None:
    room = bytearray(MIB)
    with stream:
        while stream.readinto(room):
            pass


@pytest.mark.parametrize("piece", [16 * KIB, 64 * KIB, MIB])
def test_landing(benchmark: BenchmarkFixture, piece: int) -> None:
    """The whole blob in one run, into a fresh data file and map: 64 MiB a round."""
    data = memoryview(os.urandom(MIB) * (SIZE // MIB))
    stack = ExitStack()

    def fresh() -> tuple[tuple[Store, Run], dict[str, Any]]:
        stack.close()
        store = stack.enter_context(opened(0))
        in_thread(stack, lambda: store.wait(0, 1, 60))
        stack.callback(store.stop)
        while not store.stats().parked:
            time.sleep(0.0001)
        run = store.take()
        assert run
        store.resume(run.id, whole=True)
        return (store, run), {}

    def land(store: Store, run: Run) -> None:
        for offset in range(0, SIZE, piece):
            store.land(run.id, offset, data[offset : offset + piece])
        store.finish(run.id)

    benchmark.extra_info.update(bytes=SIZE)
    with stack:
        benchmark.pedantic(land, setup=fresh, rounds=12)


@pytest.mark.parametrize("length", [4 * KIB, 64 * KIB, MIB])
def test_read_into(benchmark: BenchmarkFixture, full: Store, length: int) -> None:
    """16 MiB a round."""
    room = bytearray(length)

    def go() -> None:
        for offset in range(0, 16 * MIB, length):
            full.read_into(room, offset)

    benchmark.extra_info.update(bytes=16 * MIB)
    benchmark(go)
