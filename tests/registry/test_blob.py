"""Ranges of a blob from a registry that misbehaves: right bytes or an error, and how many requests."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyerofs.errors import NotFoundError, RegistryError
from pyerofs.http.transport import Transport
from pyerofs.registry.blob import Blob
from pyerofs.registry.client import Registry
from tests.support.blobreader import DATA, SIZE, Sink, fails, ranges, read
from tests.support.fakeregistry import (
    Behaviour,
    FakeRegistry,
    chunked,
    content_range,
    encoded,
    honest,
    raw,
    reset,
    short,
    stall,
    status,
    tagged,
    whole,
)


@pytest.mark.parametrize(("first", "length"), [(0, 1), (0, SIZE), (SIZE - 1, 1), (4096, 131072)])
def test_range(blob: Blob, server: FakeRegistry, first: int, length: int) -> None:
    read(blob, first, length)
    assert ranges(server) == [f"bytes={first}-{first + length - 1}"]
    assert server.requests()[0].path == f"/v2/org/app/blobs/{blob.digest}"


@pytest.mark.parametrize(("first", "length"), [(-1, 2), (0, 0), (5, -1), (0, SIZE + 1), (SIZE, 1)])
def test_range_outside_the_blob_is_a_bug(blob: Blob, server: FakeRegistry, first: int, length: int) -> None:
    with pytest.raises(ValueError, match="within"):
        blob.read_range(first, length, Sink())
    assert server.seen == []


@pytest.mark.parametrize("behaviour", [whole(), chunked(200), whole(("Content-Encoding", "identity"))])
def test_whole_body_for_a_range_is_kept(blob: Blob, server: FakeRegistry, behaviour: Behaviour) -> None:
    server.default = behaviour
    assert read(blob).was_whole
    assert len(server.seen) == 1


@pytest.mark.parametrize("behaviour", [chunked(206), content_range(f"bytes 1000-50999/{SIZE}")])
def test_good_ranges(blob: Blob, server: FakeRegistry, behaviour: Behaviour) -> None:
    server.default = behaviour
    read(blob)


def test_total_may_be_unknown(blob: Blob, server: FakeRegistry) -> None:
    server.default = content_range("bytes 1000-50999/*")
    read(blob)


@pytest.mark.parametrize(
    ("behaviour", "temporary", "words"),
    [
        (content_range(""), True, "without a usable Content-Range"),
        (content_range("bytes 0-49999/300000"), True, "bytes 0-49999 came instead of 1000-50999"),
        (content_range("bytes 1000-50998/300000"), True, "'50000' bytes long instead of 49999"),
        (content_range("bytes 1000-51000/300000"), True, "came instead"),
        (content_range("bytes 1000-50999/299999"), False, "299999 bytes long there instead of 300000"),
        (content_range("bytes 1000-50999/300000\r\nContent-Range: bytes 0-9/10"), True, "Content-Range"),
        (content_range("multipart"), True, "Content-Range"),
        (lambda e: e.partial(None, ("Content-Type", "multipart/byteranges"), stated=""), True, "Content-Range"),
        (encoded("gzip"), True, "encoded ('gzip')"),
        (whole(("Content-Encoding", "br")), True, "encoded"),
        (lambda e: e.partial(DATA[:10]), True, "'10' bytes long instead of 50000"),
        (lambda e: e.partial(DATA), True, "'300000' bytes long instead of 50000"),
        (whole(length=SIZE - 1), True, "bytes long instead of 300000"),
        (lambda e: e.reply(200, DATA + b"x"), True, "'300001' bytes long instead of 300000"),
        (lambda e: e.reply(200, b"<html>log in</html>"), True, "bytes long instead of"),
        (status(204), False, "204"),
        (status(416), False, "is not 300000 bytes long"),
        (status(400), False, "400"),
        (status(500), True, "500"),
        (status(502), True, "502"),
        (status(408), True, "408"),
    ],
)
def test_wrong_answers_give_no_byte(
    blob: Blob, server: FakeRegistry, behaviour: Behaviour, temporary: bool, words: str
) -> None:
    server.default = behaviour
    error, count = fails(blob)
    assert (error.temporary, count) == (temporary, 0)
    assert words in str(error) and server.host in str(error)
    server.default = honest
    read(blob)


@pytest.mark.parametrize("behaviour", [chunked(206, b"x" * 10), chunked(200, b"x" * 10)])
def test_too_much(blob: Blob, server: FakeRegistry, behaviour: Behaviour) -> None:
    server.default = behaviour
    error, _ = fails(blob)
    assert error.temporary and "longer than it should be" in str(error)


@pytest.mark.parametrize("behaviour", [short(20_000), chunked(206, b"", 30_000)])
def test_too_little(blob: Blob, server: FakeRegistry, behaviour: Behaviour) -> None:
    server.default = behaviour
    error, count = fails(blob)
    assert error.temporary
    assert 0 < count <= 20_000


def test_whole_body_cut_short(blob: Blob, server: FakeRegistry) -> None:
    server.default = lambda exchange: exchange.reply(200, DATA[:70_000], length=SIZE)
    error, count = fails(blob)
    assert error.temporary and 0 < count <= 70_000


@pytest.mark.parametrize("behaviour", [reset, raw(b""), raw(b"junk\r\n\r\n")])
def test_broken_connections(blob: Blob, server: FakeRegistry, behaviour: Behaviour) -> None:
    read(blob)
    server.default = behaviour
    error, count = fails(blob)
    assert error.temporary and count == 0


def test_stall(blob: Blob, server: FakeRegistry) -> None:
    release = threading.Event()
    server.script(stall(release, after=100))
    error, count = fails(blob)
    release.set()
    assert error.temporary and "bytes/s" in str(error)
    assert count == 100
    read(blob)


def test_sink_that_has_enough(blob: Blob) -> None:
    sink = Sink(0, SIZE, stop_at=1)
    count = blob.read_range(0, SIZE, sink)
    assert 0 < count == sink.at < SIZE


def test_sink_that_raises(blob: Blob) -> None:
    def sink(offset: int, piece: bytes) -> bool:
        raise OSError(28, "full")

    with pytest.raises(OSError, match="full"):
        blob.read_range(0, SIZE, sink)
    read(blob)


def test_cancel(blob: Blob, server: FakeRegistry) -> None:
    release, reached = threading.Event(), threading.Event()
    server.script(stall(release, 10, reached))
    with pytest.raises(RegistryError, match="cancelled") as caught:
        blob.read_range(0, 1000, Sink(), cancel=reached.is_set)
    release.set()
    assert not caught.value.temporary


@pytest.mark.parametrize(
    ("value", "expected"),
    [("7", 7.0), ("Tue, 14 Nov 2023 22:13:20 GMT", 0.0), ("soon", None)],
)
def test_retry_after(blob: Blob, server: FakeRegistry, value: str, expected: float | None) -> None:
    server.script(status(429, ("Retry-After", value)))
    error, _ = fails(blob)
    assert error.temporary and error.retry_after == expected


def test_not_found(blob: Blob, server: FakeRegistry) -> None:
    server.script(status(404, body=b'{"errors":[{"code":"BLOB_UNKNOWN","message":"blob unknown to registry"}]}'))
    error, _ = fails(blob)
    assert type(error) is NotFoundError and not error.temporary
    assert str(error) == f"{server.host}: blob {blob.digest}: 404, BLOB_UNKNOWN: blob unknown to registry"


BAD = [short(100), short(0), status(503), whole(), chunked(206, b"x"), chunked(200, b"", 9), encoded("gzip"), reset]
BAD += [content_range("bytes 0-9/300000"), content_range(""), raw(b"HTTP/1.1 206 OK\r\n\r\n"), honest, raw(b"junk")]
BAD += [lambda e: e.partial(DATA[:5]), lambda e: e.reply(200, DATA[:99], length=SIZE), tagged('"a"'), tagged('"b"')]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(BAD), st.integers(0, SIZE - 1), st.integers(1, SIZE)), max_size=12))
def test_any_sequence_of_bad_days(steps: list[tuple[Behaviour, int, int]]) -> None:
    with FakeRegistry() as server:
        blob = Registry(server.host, "a", Transport()).blob(server.add_blob(DATA), SIZE)
        for behaviour, first, length in steps:
            server.default = behaviour
            sink = Sink(first, first + min(length, SIZE - first))
            try:
                blob.read_range(first, sink.end - first, sink, whole=sink.whole)
            except RegistryError as error:
                assert error.temporary
            else:
                assert sink.at == sink.end
        server.default = honest
        assert recovers(blob, attempts=3)


def recovers(blob: Blob, attempts: int) -> bool:
    """Tags may have changed once more, and a connection may still hold what was too much."""
    for _ in range(attempts):
        try:
            read(blob)
        except RegistryError as error:
            assert error.temporary
        else:
            return True
    return False


def test_more_than_was_declared(blob: Blob, server: FakeRegistry) -> None:
    """What follows the declared end is not part of this answer, and must not become a part of the next one."""
    server.script(lambda exchange: exchange.partial(DATA[1000:51_000] + DATA, length=50_000))
    read(blob)
    assert recovers(blob, attempts=2)


def test_broken_off_answer_is_not_asked_for_again_elsewhere(blob: Blob, server: FakeRegistry) -> None:
    """One attempt is one answer, also as long as the scheme is not settled."""
    server.script(short(20_000))
    error, count = fails(blob)
    assert "in the middle" in str(error) and count == 20_000
    assert len(server.seen) == 1
