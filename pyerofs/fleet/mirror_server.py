"""The mirror: as much of the OCI distribution specification as reading blobs takes, with ranges.

404 for all that is not here: then a reader asks its next mirror, and the registry in the end.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from urllib.parse import unquote

from ..errors import PyerofsError
from ..registry.range_response import VERIFIES
from ..webserver import WebHandler, serve_http
from .neighbours import BlobReaderHere, CachedBlobs

_BLOB = re.compile(r"/v2/[a-z0-9._/-]{1,255}/blobs/([^/]+)")
_RANGE = re.compile(r"bytes=([0-9]{1,19})-([0-9]{0,19})")
_IDLE = 60.0  # seconds for which a reader's connection is kept


def serve_mirror(
    listener: socket.socket, blobs: CachedBlobs, report: Callable[[str], None], ready: Callable[[], None]
) -> None:
    """Serve on a listening socket, which stays the caller's, until a signal. For the main thread."""

    class MirrorHandler(WebHandler):
        protocol_version = "HTTP/1.1"
        timeout = _IDLE

        def do_GET(self) -> None:
            path = unquote(self.path.partition("?")[0])
            if path in ("/v2", "/v2/"):
                self.send_body(200, "application/json", b"{}")
                return
            found = _BLOB.fullmatch(path)
            if not found:
                self._refuse("UNSUPPORTED", "blobs alone are here")
                return
            try:
                self._give(found[1])
            except PyerofsError as e:
                report(f"{found[1]}: {e}")
                self._refuse("BLOB_UNKNOWN", "it cannot be read here")

        do_HEAD = do_GET

        def _give(self, digest: str) -> None:
            text = self.headers.get("Range")
            wanted = _RANGE.fullmatch(text) if text else None
            if text and not wanted:
                self._refuse("BLOB_UNKNOWN", "one range, from a first byte on, is understood", digest)
                return
            offset = int(wanted[1]) if wanted else None
            length = int(wanted[2]) - int(wanted[1]) + 1 if wanted and wanted[2] else 0
            verifies = self.headers.get(VERIFIES[0]) == VERIFIES[1]
            if length < 0 or (wanted and wanted[2] and length == 0):
                self._refuse("BLOB_UNKNOWN", "the range is malformed", digest)
                return
            with blobs.open(digest, offset, length, verifies=verifies) as reader:
                if reader is None or not reader.begin():
                    self._refuse("BLOB_UNKNOWN", "it is not here", digest)
                else:
                    self._send(digest, reader, partial=wanted is not None)

        def _send(self, digest: str, reader: BlobReaderHere, *, partial: bool) -> None:
            self.send_response(206 if partial else 200)
            if partial:
                last = reader.offset + reader.length - 1
                self.send_header("Content-Range", f"bytes {reader.offset}-{last}/{reader.size}")
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(reader.length))
            self.send_header("Docker-Content-Digest", digest)
            self.send_header("Accept-Ranges", "bytes")
            self.end_headers()
            if self.command == "HEAD":
                return
            sent = 0
            for piece in reader.pieces():
                self.wfile.write(piece)
                sent += len(piece)
            if sent < reader.length:  # a piece was spoiled: an answer that breaks off is asked for elsewhere
                self.close_connection = True

        def _refuse(self, code: str, why: str, digest: str = "") -> None:
            """With the blob's digest where something of it is here: then its next range is worth a question."""
            body = json.dumps({"errors": [{"code": code, "message": why}]}).encode()
            self.send_response(404)
            if digest and blobs.knows(digest):
                self.send_header("Docker-Content-Digest", digest)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    serve_http(listener, MirrorHandler, ready)
