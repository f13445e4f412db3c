"""The smallest registry that pyerofs can mount from: one image in memory, range requests, a log of what was asked."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Registry

    def do_GET(self) -> None:
        if self.path == f"/v2/demo/manifests/{self.server.tag}":
            self._answer(200, self.server.manifest, {"Content-Type": MANIFEST})
        elif data := self.server.blobs.get(self.path.removeprefix("/v2/demo/blobs/")):
            self._answer_blob(data)
        else:
            self._answer(404 if self.path != "/v2/" else 200, b"")

    def _answer_blob(self, data: bytes) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not asked:
            self._answer(200, data)
            return
        first, last = int(asked[1]), min(int(asked[2]), len(data) - 1)
        self._answer(206, data[first : last + 1], {"Content-Range": f"bytes {first}-{last}/{len(data)}"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.server.note(self.path, len(body))
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Registry(ThreadingHTTPServer):
    """Serves demo:TAG on a free port of the loopback address, in a thread of its own until close()."""

    daemon_threads = True

    def __init__(self, layer: bytes, tag: str = "1.0", media_type: str = "application/vnd.erofs"):
        super().__init__(("127.0.0.1", 0), Handler)
        self.tag = tag
        config = b"{}"
        self.blobs = {digest_of(data): data for data in (config, layer)}
        descriptor = {"mediaType": media_type, "digest": digest_of(layer), "size": len(layer)}
        document = {"schemaVersion": 2, "mediaType": MANIFEST, "layers": [descriptor]}
        document["config"] = {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": digest_of(config),
            "size": 2,
        }
        self.manifest = json.dumps(document).encode()
        self._lock = threading.Lock()
        self._asked: list[tuple[str, int]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def reference(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}/demo:{self.tag}"

    def note(self, path: str, length: int) -> None:
        with self._lock:
            self._asked.append((path, length))

    def fetched(self) -> tuple[int, int]:
        """Requests for blobs so far, and the bytes that they brought."""
        with self._lock:
            lengths = [length for path, length in self._asked if "/blobs/" in path]
        return len(lengths), sum(lengths)

    def close(self) -> None:
        self.shutdown()
        self.server_close()
