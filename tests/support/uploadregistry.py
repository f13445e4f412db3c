"""A registry on loopback to push to, which breaks uploads on command and remembers every request.

    with UploadRegistry() as registry:
        registry.script(Cut(1000))       # of the next PATCH or PUT only so many bytes are read, and no answer is given

It keeps what it has read of a piece, as the specification allows: so an upload can be resumed in its middle.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections import deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

LIMIT = 20.0  # seconds


class Cut(NamedTuple):
    """`kept`: bytes of the body that are read and kept before the connection ends; None: all of it."""

    kept: int | None


class Refuse(NamedTuple):
    status: int


class Asked(NamedTuple):
    method: str
    path: str
    query: dict[str, str]
    length: int
    range: str


class UploadRegistry:
    """`forgets`: a broken upload is gone. `pieces`: the registry takes PATCH. `least`: its OCI-Chunk-Min-Length.

    `ranges`: what it says that it has, of what it has and the first piece's end; `keeps`: what it keeps of a piece of
    so many bytes; `patched`, `put`: the statuses of good answers; `head`: of every answer to HEAD. `status_known`: it
    answers a GET of an upload. `drops`: so many PUTs get a good answer and are forgotten.
    """

    def __init__(
        self,
        *,
        forgets: bool = False,
        pieces: bool = True,
        least: int = 0,
        ranges: Callable[[int, int], int] = lambda has, first: has,
        keeps: Callable[[int], int] = lambda length: length,
        patched: int = 202,
        put: int = 201,
        head: int = 0,
        status_known: bool = True,
        drops: int = 0,
    ) -> None:
        self.forgets, self.pieces, self.least = forgets, pieces, least
        self.ranges, self.keeps, self.patched, self.put, self.head = ranges, keeps, patched, put, head
        self.status_known = status_known
        self.drops = drops
        self._first: dict[str, int] = {}
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, tuple[str, bytes]] = {}
        self.asked: list[Asked] = []
        self._uploads: dict[str, bytearray] = {}
        self._script: deque[Cut | Refuse] = deque()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> UploadRegistry:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(LIMIT)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    def script(self, *steps: Cut | Refuse) -> None:
        """What happens to the next requests with a body."""
        self._script.extend(steps)

    def sent(self, method: str) -> list[Asked]:
        return [asked for asked in self.asked if asked.method == method]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        registry = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self._note()
                there = self._name in {**registry.blobs, **registry.manifests}
                self._answer(registry.head or (200 if there else 404))

            def do_GET(self) -> None:
                self._note()
                upload = registry._uploads.get(self._name)
                if not registry.status_known:
                    self._answer(405)
                elif upload is None:
                    self._answer(404)
                else:
                    self._where(204, upload)

            def do_POST(self) -> None:
                self._note()
                number = f"upload-{len(registry.asked)}"
                registry._uploads[number] = bytearray()
                least = [("OCI-Chunk-Min-Length", str(registry.least))] if registry.least else []
                self._answer(202, ("Location", f"/v2/x/blobs/uploads/{number}?state=0"), *least)

            def do_PATCH(self) -> None:
                self._note()
                step = registry._script.popleft() if registry._script else Cut(None)
                upload = registry._uploads.get(self._name)
                found = re.fullmatch(r"(\d+)-(\d+)", self.headers.get("Content-Range", ""))
                whole = int(self.headers["Content-Length"])
                if not registry.pieces:
                    self.rfile.read(whole)
                    self._answer(405)
                elif isinstance(step, Refuse):
                    self.rfile.read(whole)
                    self._answer(step.status)
                elif upload is None:
                    self.rfile.read(whole)
                    self._answer(404)
                elif not found or int(found[1]) != len(upload) or int(found[2]) + 1 - int(found[1]) != whole:
                    self.rfile.read(whole)
                    self._answer(416)
                else:
                    piece = self.rfile.read(whole if step.kept is None else min(step.kept, whole))
                    upload += piece[: registry.keeps(len(piece))]
                    registry._first.setdefault(self._name, len(upload))
                    if step.kept is not None:
                        self._break()
                    else:
                        self._where(registry.patched, upload)

            def do_PUT(self) -> None:
                self._note()
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if "/manifests/" in self.path:
                    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
                    for name in (self._name, digest):
                        registry.manifests[name] = (self.headers["Content-Type"], body)
                    self._done(registry.manifests, (self._name, digest))
                    return
                step = registry._script.popleft() if registry._script else None
                if isinstance(step, Cut) and step.kept is not None:
                    self._break()
                    return
                if isinstance(step, Refuse):
                    self._answer(step.status)
                    return
                upload = registry._uploads.pop(self._name, None)
                if upload is None:
                    self._answer(404)
                    return
                data = bytes(upload) + body
                digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
                if digest != registry.asked[-1].query["digest"]:
                    self._answer(400)
                    return
                registry.blobs[digest] = data
                if isinstance(step, Cut):  # it is done, but nobody hears of it
                    self.close_connection = True
                else:
                    self._done(registry.blobs, (digest,))

            def _done(self, where: dict[str, Any], names: tuple[str, ...]) -> None:
                if registry.drops:
                    registry.drops -= 1
                    for name in names:
                        where.pop(name, None)
                self._answer(registry.put)

            @property
            def _name(self) -> str:
                return urlsplit(self.path).path.rpartition("/")[2]

            def _note(self) -> None:
                parts = urlsplit(self.path)
                query = {name: values[0] for name, values in parse_qs(parts.query).items()}
                length = int(self.headers.get("Content-Length") or 0)
                registry.asked.append(
                    Asked(self.command, parts.path, query, length, self.headers.get("Content-Range", ""))
                )

            def _break(self) -> None:
                if registry.forgets:
                    registry._uploads.pop(self._name, None)
                self.close_connection = True

            def _where(self, status: int, upload: bytearray) -> None:
                location = ("Location", f"/v2/x/blobs/uploads/{self._name}?state={len(upload)}")
                has = registry.ranges(len(upload), registry._first.get(self._name, 0))
                self._answer(status, location, ("Range", f"0-{max(has - 1, 0)}"))

            def _answer(self, status: int, *headers: tuple[str, str]) -> None:
                self.send_response(status)
                for name, value in headers:
                    self.send_header(name, value)
                if status != 204:
                    self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler
