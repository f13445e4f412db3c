"""One exchange at a time: what comes back, what failed and in which words, and what must never be sent or shown."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from pyerofs import __version__
from pyerofs.errors import RegistryError, UsageError
from pyerofs.http.answer import Response
from pyerofs.http.curlerror import TransportError
from pyerofs.http.request import BODY_CAP, Request
from pyerofs.http.tls import TLS, Authorities, find_authorities
from pyerofs.http.transport import Transport
from pyerofs.http.url import Url, parse
from pyerofs.secret import Secret
from tests.support.fakeregistry import (
    Certificate,
    FakeRegistry,
    chunked,
    encoded,
    honest,
    raw,
    redirect,
    reset,
    short,
    silent,
    stall,
    status,
)
from tests.support.sinks import into

DATA = bytes(range(256)) * 4096


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as fake:
        fake.digest = fake.add_blob(DATA)  # type: ignore[attr-defined]  # the test's own
        yield fake


@pytest.fixture
def transport() -> Iterator[Transport]:
    with_trace = Transport(stall_seconds=1)
    yield with_trace
    with_trace.close()


def blob_url(registry: FakeRegistry, query: str = "") -> Url:
    return parse(f"{registry.url}/v2/a/b/blobs/{next(iter(registry.blobs))}{query}")


def take_all(pieces: bytearray) -> object:
    def sink(piece: bytes) -> bool:
        pieces.extend(piece)
        return True

    return sink


def test_body_is_streamed(registry: FakeRegistry, transport: Transport) -> None:
    got = bytearray()
    response = transport.request(
        Request(blob_url(registry), sink=take_all(got), usable=lambda head: head.status == 200)  # type: ignore[arg-type]  # a fake
    )
    assert (response.status, bytes(got), response.received, response.body) == (200, DATA, len(DATA), b"")


def test_what_is_sent(registry: FakeRegistry, transport: Transport) -> None:
    transport.request(Request(blob_url(registry), (("Range", "bytes=0-1"),), authorization=Secret("Bearer x"), cap=9))
    (seen,) = registry.requests()
    assert seen.method == "GET"
    assert seen.headers["accept-encoding"] == "identity"
    assert seen.headers["authorization"] == "Bearer x"
    assert seen.headers["range"] == "bytes=0-1"
    assert seen.headers["user-agent"] == f"pyerofs/{__version__}"
    registry.script(status(200))
    transport.request(Request(blob_url(registry)))
    assert "authorization" not in registry.requests()[1].headers


def test_connection_is_kept(registry: FakeRegistry, transport: Transport) -> None:
    for _ in range(3):
        transport.request(Request(blob_url(registry), (("Range", "bytes=0-1"),)))
    assert len({seen.peer for seen in registry.requests()}) == 1


def test_an_error_page_never_reaches_the_sink(registry: FakeRegistry, transport: Transport) -> None:
    registry.script(status(503, body=b"sorry"))
    response = transport.request(
        Request(blob_url(registry), sink=lambda _: pytest.fail("seen"), usable=lambda head: head.status == 206)
    )
    assert (response.status, response.body) == (503, b"sorry")


def test_usable_is_asked_once_also_without_a_body(registry: FakeRegistry, transport: Transport) -> None:
    registry.script(status(200), honest)
    heads = []

    def usable(head: Response) -> bool:
        heads.append(head.status)
        return True

    for _ in range(2):
        transport.request(Request(blob_url(registry), sink=lambda _: True, usable=usable))
    assert heads == [200, 200]


def test_interim_answers_are_not_the_head(registry: FakeRegistry, transport: Transport) -> None:
    registry.script(raw(b"HTTP/1.1 103 Early\r\nX: 1\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))
    response = transport.request(Request(blob_url(registry)))
    assert (response.status, response.body, response.headers.get("x")) == (200, b"ok", None)


def test_trailers_are_ignored(registry: FakeRegistry, transport: Transport) -> None:
    registry.script(
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nContent-Range: bytes 0-1/2\r\n\r\n")
    )
    response = transport.request(Request(blob_url(registry)))
    assert (response.body, response.headers.get("content-range")) == (b"ok", None)


def test_body_is_capped(registry: FakeRegistry, transport: Transport) -> None:
    response = transport.request(Request(blob_url(registry)))
    assert response.truncated and len(response.body) == BODY_CAP
    exact = transport.request(Request(blob_url(registry), cap=len(DATA)))
    assert not exact.truncated and exact.body == DATA


def test_the_sink_ends_the_transfer(registry: FakeRegistry, transport: Transport) -> None:
    response = transport.request(Request(blob_url(registry), sink=lambda _: False, usable=lambda _: True))
    assert response.stopped and 0 < response.received < len(DATA)


def test_the_sink_gets_what_has_arrived_before_a_pause(transport: Transport) -> None:
    """Pieces are gathered only while more is there: a server that pauses just where libcurl's pieces end waits here for
    the sink."""
    seen, got = threading.Semaphore(0), bytearray()

    def sink(piece: bytes) -> bool:
        got.extend(piece)
        for _ in range(len(piece) >> 14):
            seen.release()
        return True

    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            client, _ = server.accept()
            with client:
                client.recv(1 << 16)
                client.sendall(b"HTTP/1.1 206 Partial Content\r\nContent-Length: 1048576\r\n\r\n")
                for _ in range(4):
                    client.sendall(bytes(16 << 10))
                    if not seen.acquire(timeout=30):
                        return
                client.sendall(bytes((1 << 20) - (64 << 10)))

        thread = threading.Thread(target=serve)
        thread.start()
        response = transport.request(
            Request(parse(f"http://127.0.0.1:{server.getsockname()[1]}/"), sink=sink, usable=lambda _: True)
        )
        thread.join()
    assert response.received == len(got) == 1 << 20


def test_the_sink_gets_what_came_before_a_failure(transport: Transport) -> None:
    got = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            client, _ = server.accept()
            with client:
                client.recv(1 << 16)
                client.sendall(b"HTTP/1.1 206 Partial Content\r\nContent-Length: 1048576\r\n\r\n" + bytes(50_000))

        thread = threading.Thread(target=serve)
        thread.start()
        url = parse(f"http://127.0.0.1:{server.getsockname()[1]}/")
        with pytest.raises(TransportError):
            transport.request(Request(url, sink=partial(into(got), 0), usable=lambda _: True))
        thread.join()
    assert len(got) == 50_000


def test_exceptions_of_callbacks_come_out(registry: FakeRegistry, transport: Transport) -> None:
    def fail(*_: object) -> bool:
        raise KeyboardInterrupt

    url = blob_url(registry)
    for request in (
        Request(url, sink=fail, usable=lambda _: True),
        Request(url, sink=lambda _: True, usable=fail),
        Request(url, cancel=fail),
        Request(url, admit=fail),
    ):
        with pytest.raises(KeyboardInterrupt):
            transport.request(request)


def test_redirects_are_not_followed(registry: FakeRegistry, transport: Transport) -> None:
    registry.script(redirect("http://127.0.0.1:1/x"))
    response = transport.request(Request(blob_url(registry)))
    assert (response.status, response.headers.get("location")) == (307, "http://127.0.0.1:1/x")


def test_encoded_bodies_stay_encoded(registry: FakeRegistry, transport: Transport) -> None:
    registry.script(encoded("gzip"))
    response = transport.request(Request(blob_url(registry), (("Range", "bytes=0-9"),)))
    assert response.body == DATA[:10]


def test_post(registry: FakeRegistry, transport: Transport) -> None:
    transport.request(Request(parse(f"{registry.url}/token"), body=Secret("a=b")))
    (seen,) = registry.requests("/token")
    assert (seen.method, seen.body) == ("POST", b"a=b")
    assert seen.headers["content-type"] == "application/x-www-form-urlencoded"


def failing(transport: Transport, request: Request) -> TransportError:
    with pytest.raises(TransportError) as caught:
        transport.request(request)
    assert "\n" not in str(caught.value)
    return caught.value


def test_refused(transport: Transport) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        error = failing(transport, Request(parse(f"http://127.0.0.1:{port}/v2/?signature=secret")))
    assert str(error) == f"connection to 127.0.0.1:{port} refused"
    assert (error.kind, error.temporary) == ("connect", True)


def test_unresolvable(transport: Transport) -> None:
    error = failing(transport, Request(parse("http://registry.invalid/v2/")))
    assert str(error) == "cannot resolve registry.invalid"
    assert (error.kind, error.temporary) == ("resolve", True)


@pytest.mark.parametrize(
    ("behaviour", "kind", "words"),
    [
        (short(10), "transfer", "in the middle"),
        (reset, "transfer", "connection was lost"),
        (raw(b""), "transfer", "without an answer"),
        (raw(b"SSH-2.0-x\r\n"), "protocol", "not HTTP"),
        (raw(b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 70_000 + b"\r\n\r\n"), "protocol", "64 KiB of headers"),
        (raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\nx"), "transfer", ""),
    ],
)
def test_broken_answers(registry: FakeRegistry, transport: Transport, behaviour: object, kind: str, words: str) -> None:
    registry.default = behaviour  # type: ignore[assignment]  # a fake
    error = failing(transport, Request(blob_url(registry, "?signature=secret"), (("Range", "bytes=0-99"),)))
    assert (error.kind, error.temporary) == (kind, True)
    assert registry.host in str(error) and words in str(error) and "secret" not in str(error)


@pytest.mark.parametrize("body", [b"", b"no"])
def test_refusal_with_a_broken_text_is_a_refusal(registry: FakeRegistry, transport: Transport, body: bytes) -> None:
    registry.script(raw(b"HTTP/1.1 416 No\r\nX: 1\r\nContent-Length: 99\r\n\r\n" + body))
    response = transport.request(Request(blob_url(registry)))
    assert (response.status, response.body, response.headers.get("x")) == (416, body, "1")


def test_broken_head_is_no_answer(registry: FakeRegistry, transport: Transport) -> None:
    registry.script(raw(b"HTTP/1.1 416 No\r\nX: 1\r\n"), raw(b"HTTP/1.1 103 Wait\r\n\r\n"))
    assert failing(transport, Request(blob_url(registry))).temporary
    assert failing(transport, Request(blob_url(registry))).temporary


def test_chunked_bodies_are_whole(registry: FakeRegistry, transport: Transport) -> None:
    registry.script(chunked(206))
    response = transport.request(Request(blob_url(registry), (("Range", "bytes=5-9"),)))
    assert response.body == DATA[5:10]


def test_stalled_transfer_is_cut(registry: FakeRegistry, transport: Transport) -> None:
    release = threading.Event()
    registry.script(stall(release, after=10))
    error = failing(transport, Request(blob_url(registry), (("Range", "bytes=0-99"),)))
    release.set()
    assert (error.kind, error.temporary) == ("stall", True)
    assert str(error) == f"{registry.host}: less than 1024 bytes/s for 1 s"


def test_time_limit(registry: FakeRegistry) -> None:
    transport = Transport()
    release = threading.Event()
    registry.script(silent(release))
    error = failing(transport, Request(blob_url(registry), timeout=0.2))
    release.set()
    assert (error.kind, str(error)) == ("stall", f"{registry.host}: the answer took too long")


def test_cancel(registry: FakeRegistry) -> None:
    transport = Transport()
    release, reached = threading.Event(), threading.Event()
    registry.script(stall(release, 10, reached))
    error = failing(transport, Request(blob_url(registry), (("Range", "bytes=0-99"),), cancel=reached.is_set))
    release.set()
    assert (error.kind, error.temporary) == ("cancelled", False)


def test_peer_is_refused_before_anything_is_sent(registry: FakeRegistry, transport: Transport) -> None:
    error = failing(transport, Request(blob_url(registry), admit=lambda peer: peer != "127.0.0.1"))
    assert (error.kind, error.temporary) == ("refused", False)
    assert registry.seen == []
    assert transport.request(Request(blob_url(registry), admit=lambda peer: peer == "127.0.0.1")).status == 200


def test_header_values_cannot_add_lines(registry: FakeRegistry, transport: Transport) -> None:
    with pytest.raises(RegistryError) as caught:
        transport.request(Request(blob_url(registry), authorization=Secret("Bearer x\r\nX-Evil: hush")))
    assert "hush" not in str(caught.value)
    assert registry.seen == []


def test_trace(registry: FakeRegistry) -> None:
    lines: list[str] = []
    transport = Transport(trace=lines.append)
    url = blob_url(registry, "?signature=hush")
    for _ in range(2):
        transport.request(Request(url, (("Range", "bytes=0-9"),), authorization=Secret("Bearer hush"), note="why"))
    transport.request(Request(url, timeout=5))
    registry.script(reset)
    with pytest.raises(TransportError):
        Transport(trace=lines.append).request(Request(url))
    assert f"GET http://{url.shown} bytes=0-9 -> 206, 10 bytes, " in lines[0]
    assert lines[0].endswith(" ms, new connection (why)") and lines[1].endswith(" ms, same connection (why)")
    assert "connection was lost" in lines[3]
    assert "hush" not in "".join(lines)


def test_many_threads(registry: FakeRegistry) -> None:
    transport = Transport()
    url = blob_url(registry)
    wrong: list[int] = []

    def work(number: int) -> None:
        for turn in range(20):
            first = (number * 4099 + turn * 131) % (len(DATA) - 1000)
            body = transport.request(Request(url, (("Range", f"bytes={first}-{first + 999}"),))).body
            if body != DATA[first : first + 1000]:
                wrong.append(first)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    transport.close()
    assert wrong == []
    assert len(registry.requests()) == 640
    assert len({seen.peer for seen in registry.requests()}) <= 32


def test_closed_transport_keeps_no_connection(registry: FakeRegistry, transport: Transport) -> None:
    transport.request(Request(blob_url(registry), (("Range", "bytes=0-1"),)))
    transport.close()
    transport.close()
    transport.request(Request(blob_url(registry), (("Range", "bytes=0-1"),)))
    assert len({seen.peer for seen in registry.requests()}) == 2


def test_authorities() -> None:
    assert find_authorities({"SSL_CERT_FILE": "/a", "CURL_CA_BUNDLE": "/b"}) == Authorities("/a", None)
    assert find_authorities({"CURL_CA_BUNDLE": "/b", "SSL_CERT_DIR": "/d"}) == Authorities("/b", None)
    assert find_authorities({"SSL_CERT_DIR": "/d"}) == Authorities(None, "/d")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate.make(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def secure(certificate: Certificate) -> Iterator[FakeRegistry]:
    with FakeRegistry(certificate=certificate) as fake:
        fake.add_blob(DATA)
        yield fake


def test_tls(secure: FakeRegistry, transport: Transport, certificate: Certificate, tmp_path: Path) -> None:
    url = blob_url(secure)
    assert url.scheme == "https"
    error = failing(transport, Request(url))
    assert (error.kind, error.temporary) == ("tls", False)
    assert str(error).startswith(f"TLS certificate of {secure.host} not trusted (self")
    assert transport.request(Request(url, tls=TLS(ca=(str(certificate.cert),)), cap=len(DATA))).body == DATA
    assert transport.request(Request(url, tls=TLS(verify=False), cap=len(DATA))).body == DATA
    # A connection that was made without verification is not good enough for a request that wants it.
    assert failing(transport, Request(url)).kind == "tls"
    with pytest.raises(UsageError, match=r"cannot read the CA certificates in .*none: No such file"):
        transport.request(Request(url, tls=TLS(ca=(str(tmp_path / "none"),))))


def test_system_without_authorities(secure: FakeRegistry) -> None:
    transport = Transport(authorities=Authorities(None, None))
    error = failing(transport, Request(blob_url(secure)))
    assert error.kind == "tls"
    assert "CA certificates" in str(error)


def test_plain_http_is_not_tls(registry: FakeRegistry, transport: Transport) -> None:
    error = failing(transport, Request(blob_url(registry)._replace(scheme="https")))
    assert (error.kind, error.temporary) == ("tls", True)
