"""A registry (and CDN, and token server) on loopback that misbehaves on command and remembers every request.

    with FakeRegistry() as registry:
        digest = registry.add_blob(data)
        registry.script(status(503), short(100))    # the next two requests for a blob; then it behaves again

A behaviour is a function of (exchange) that answers one request. Nothing here sleeps: what stalls waits for an event.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import socket
import ssl
import subprocess
import threading
from collections import deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

Behaviour = Callable[["Exchange"], None]
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
LIMIT = 20.0  # seconds after which anything that waits gives up, so that a broken test ends


class Seen(NamedTuple):
    """One request as it came; header names in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    peer: tuple[str, int]


class Certificate(NamedTuple):
    """PEM files; signed by itself, for localhost and 127.0.0.1."""

    cert: Path
    key: Path

    @classmethod
    def make(cls, directory: Path) -> Certificate:
        made = cls(directory / "cert.pem", directory / "key.pem")
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
        subprocess.run([*command, "-keyout", made.key, "-out", made.cert], check=True, capture_output=True)
        return made


class Exchange(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.fake.remember(Seen(self.command, self.path, headers, body, self.client_address))
        self.body = body
        try:
            self.fake.answer(self)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    @property
    def fake(self) -> FakeRegistry:
        return self.server.fake

    @property
    def blob(self) -> bytes:
        return self.fake.blobs.get(urlsplit(self.path).path.rpartition("/")[2], b"")

    @property
    def range(self) -> tuple[int, int]:
        """First byte and the one behind the last."""
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        return (int(found[1]), int(found[2]) + 1) if found else (0, len(self.blob))

    def reply(self, status: int, body: bytes = b"", *headers: tuple[str, str], length: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if not any(name.lower() == "transfer-encoding" for name, _ in headers):
            self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)
        if length is not None and length != len(body):
            self.close_connection = True

    def partial(
        self, data: bytes | None = None, *headers: tuple[str, str], stated: str | None = None, length: int | None = None
    ) -> None:
        """The right 206, but for what is given."""
        first, end = self.range
        blob = self.blob
        content_range = ("Content-Range", stated or f"bytes {first}-{end - 1}/{len(blob)}")
        fields = headers if stated == "" else (content_range, *headers)
        self.reply(206, blob[first:end] if data is None else data, *fields, length=length)

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    fake: FakeRegistry

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that goes away is half of what is tested here


def honest(exchange: Exchange) -> None:
    first, _end = exchange.range
    if first >= len(exchange.blob):
        exchange.reply(416, b"", ("Content-Range", f"bytes */{len(exchange.blob)}"))
    elif exchange.headers.get("Range"):
        exchange.partial()
    else:
        exchange.reply(200, exchange.blob)


def status(code: int, *headers: tuple[str, str], body: bytes = b"") -> Behaviour:
    return lambda exchange: exchange.reply(code, body, *headers)


def whole(*headers: tuple[str, str], length: int | None = None) -> Behaviour:
    """200 with the whole blob, whatever range was asked for."""
    return lambda exchange: exchange.reply(200, exchange.blob, *headers, length=length)


def short(count: int) -> Behaviour:
    """`count` bytes of the range, then the connection ends."""

    def behave(exchange: Exchange) -> None:
        first, end = exchange.range
        exchange.partial(exchange.blob[first : first + count], length=end - first)

    return behave


def chunked(code: int, extra: bytes = b"", cut: int = 0, *headers: tuple[str, str]) -> Behaviour:
    """The body without a Content-Length: `extra` bytes too many, or `cut` too few, properly ended."""

    def behave(exchange: Exchange) -> None:
        first, end = exchange.range if code == 206 else (0, len(exchange.blob))
        data = exchange.blob[first : end - cut] + extra
        stated = ("Content-Range", f"bytes {first}-{end - 1}/{len(exchange.blob)}")
        fields = (*headers, ("Transfer-Encoding", "chunked"))
        exchange.reply(code, b"", *((stated, *fields) if code == 206 else fields))
        exchange.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n0\r\n\r\n")

    return behave


def just_the_range(*headers: tuple[str, str], stated: bool = True, length: bool = True) -> Behaviour:
    """200 with nothing but the range, as some proxies have it; with or without a Content-Range, and a length."""

    def behave(exchange: Exchange) -> None:
        if not exchange.headers.get("Range"):
            return honest(exchange)
        first, end = exchange.range
        fields = [("Content-Range", f"bytes {first}-{end - 1}/{len(exchange.blob)}")] if stated else []
        data = exchange.blob[first:end]
        if length:
            return exchange.reply(200, data, *fields, *headers)
        exchange.reply(200, b"", *fields, *headers, ("Transfer-Encoding", "chunked"))
        exchange.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n0\r\n\r\n")
        return None

    return behave


def at_most(count: int) -> Behaviour:
    """A right 206 for the first `count` bytes of the range (RFC 9110, 15.3.7)."""

    def behave(exchange: Exchange) -> None:
        first, end = exchange.range
        end = min(end, first + count)
        exchange.partial(exchange.blob[first:end], stated=f"bytes {first}-{end - 1}/{len(exchange.blob)}")

    return behave


def content_range(text: str) -> Behaviour:
    """206 with the right bytes and this Content-Range; "" leaves it out."""
    return lambda exchange: exchange.partial(stated=text)


def encoded(encoding: str) -> Behaviour:
    return lambda exchange: exchange.partial(None, ("Content-Encoding", encoding))


def tagged(etag: str) -> Behaviour:
    return lambda exchange: exchange.partial(None, ("ETag", etag))


def redirect(target: str | Callable[[Exchange], str], code: int = 307, *headers: tuple[str, str]) -> Behaviour:
    """To a URL, or to what a function of the exchange says; "{path}" stands for the path that was asked for."""

    def behave(exchange: Exchange) -> None:
        url = target if isinstance(target, str) else target(exchange)
        exchange.reply(code, b"see there", ("Location", url.replace("{path}", exchange.path)), *headers)

    return behave


def stall(release: threading.Event, after: int = 0, reached: threading.Event | None = None) -> Behaviour:
    """Sends the head and `after` bytes, then nothing until `release` is set."""

    def behave(exchange: Exchange) -> None:
        first, end = exchange.range
        exchange.partial(exchange.blob[first : first + after], length=end - first)
        exchange.wfile.flush()
        if reached:
            reached.set()
        release.wait(LIMIT)

    return behave


def silent(release: threading.Event) -> Behaviour:
    """No answer at all until `release` is set."""

    def behave(exchange: Exchange) -> None:
        release.wait(LIMIT)
        exchange.close_connection = True

    return behave


def reset(exchange: Exchange) -> None:
    """The connection is torn down without an answer."""
    exchange.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    exchange.close_connection = True
    os.close(exchange.connection.detach())


def raw(data: bytes) -> Behaviour:
    def behave(exchange: Exchange) -> None:
        exchange.wfile.write(data)
        exchange.close_connection = True

    return behave


class FakeRegistry:
    """`host` is host:port; with a certificate it speaks TLS. `default` answers requests for blobs beyond the script.

    `token_uses`: makes it want Bearer tokens, of which each is good for so many requests; `realm`: where they are to be
    had (default: here, under /token). `basic`: (user, password) for the token server or, without tokens, the registry.
    """

    def __init__(self, default: Behaviour = honest, certificate: Certificate | None = None) -> None:
        self.default = default
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, tuple[str, bytes]] = {}
        self.seen: list[Seen] = []
        self.token_uses: int | None = None
        self.basic: tuple[str, str] | None = None
        self.realm: str | None = None
        self.challenge_extra = ""
        self.token_answer: Callable[[str], dict[str, object]] = lambda token: {"token": token}
        self.token_behaviour: Behaviour | None = None
        self.refresh_token: str | None = None
        self.refusal_status = 401
        self._script: deque[Behaviour] = deque()
        self._tokens: dict[str, int] = {}
        self._issued = 0
        self._certificate = certificate
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), Exchange)
        self._server.fake = self
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate.cert, certificate.key)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> FakeRegistry:
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(LIMIT)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    @property
    def url(self) -> str:
        return f"{'https' if self._certificate else 'http'}://{self.host}"

    def add_blob(self, data: bytes) -> str:
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        self.blobs[digest] = data
        return digest

    def add_manifest(self, reference: str, body: bytes, media_type: str = OCI_MANIFEST) -> None:
        self.manifests[reference] = (media_type, body)

    def script(self, *behaviours: Behaviour) -> None:
        self._script.extend(behaviours)

    def requests(self, part: str = "/v2/") -> list[Seen]:
        with self._lock:
            return [seen for seen in self.seen if part in seen.path]

    def expire_tokens(self) -> None:
        with self._lock:
            self._tokens.clear()

    def issue_tokens_for(self, other: FakeRegistry) -> None:
        """This one's /token makes tokens that are good at `other`."""
        self._tokens, self.token_uses, other.realm = other._tokens, other.token_uses, f"{self.url}/token"

    def remember(self, seen: Seen) -> None:
        with self._lock:
            self.seen.append(seen)

    def answer(self, exchange: Exchange) -> None:
        path = urlsplit(exchange.path).path
        if path == "/token":
            (self.token_behaviour or self._token)(exchange)
        elif not self._admitted(exchange):
            self._challenge(exchange)
        elif "/manifests/" in path:
            self._manifest(exchange, path.rpartition("/")[2])
        else:
            with self._lock:
                behaviour = self._script.popleft() if self._script else self.default
            behaviour(exchange)

    def _manifest(self, exchange: Exchange, reference: str) -> None:
        if reference in self.manifests:
            media_type, body = self.manifests[reference]
            exchange.reply(200, body, ("Content-Type", media_type))
        else:
            body = json.dumps({"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}).encode()
            exchange.reply(404, body)

    def _basic_ok(self, exchange: Exchange) -> bool:
        wanted = base64.b64encode(":".join(self.basic or ()).encode()).decode()
        return exchange.headers.get("Authorization") == f"Basic {wanted}"

    def _admitted(self, exchange: Exchange) -> bool:
        if self.token_uses is None:
            return self.basic is None or self._basic_ok(exchange)
        token = (exchange.headers.get("Authorization") or "").removeprefix("Bearer ")
        with self._lock:
            left = self._tokens.get(token, 0)
            self._tokens[token] = left - 1
        return left > 0

    def _challenge(self, exchange: Exchange) -> None:
        if self.token_uses is None:
            challenge = 'Basic realm="fake"'
        else:
            repository = exchange.path.removeprefix("/v2/").partition("/blobs/")[0].partition("/manifests/")[0]
            realm = self.realm or f"{self.url}/token"
            challenge = (
                f'Bearer realm="{realm}",service="fake",scope="repository:{repository}:pull"{self.challenge_extra}'
            )
        exchange.reply(self.refusal_status, b"", ("WWW-Authenticate", challenge))

    def _token(self, exchange: Exchange) -> None:
        fields = parse_qs(exchange.body.decode())
        if exchange.command == "POST":
            if self.refresh_token is None or fields.get("refresh_token") != [self.refresh_token]:
                return exchange.reply(401, b"")
        elif self.basic and not self._basic_ok(exchange):
            return exchange.reply(401, json.dumps({"details": "incorrect username or password"}).encode())
        with self._lock:
            self._issued += 1
            token = f"token-{self._issued}"
            self._tokens[token] = self.token_uses or 0
        return exchange.reply(200, json.dumps(self.token_answer(token)).encode())
