"""Debian's docker-registry on a loopback port, with one of its kinds of authentication, for one test or a session.

with DockerRegistry(tmp_path, htpasswd=("me", "pw")) as registry:
    digest = registry.put_blob("org/app", data)
"""

from __future__ import annotations

import base64
import ctypes
import hashlib
import http.client
import json
import os
import secrets
import socket
import subprocess
import time
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from tests.support.tokenserver import ISSUER, SERVICE, TokenServer

PROGRAM = "docker-registry"
_START_LIMIT = 30.0  # seconds
_STOP_LIMIT = 10.0  # seconds


class DockerRegistry:
    """`host` is host:port. Owns its process until stop(); the data stays in `directory`, where restart() finds it."""

    def __init__(
        self,
        directory: Path,
        htpasswd: tuple[str, str] | None = None,
        token: TokenServer | None = None,
        environ: dict[str, str] | None = None,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._htpasswd = htpasswd
        self._token = token
        self._environ = environ or {}
        self._port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.log = directory / "registry.log"

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Returns when it answers."""
        config = self._directory / "config.json"  # JSON is YAML
        config.write_text(json.dumps(self._config()))
        environ = {"PATH": os.environ.get("PATH", os.defpath), "OTEL_TRACES_EXPORTER": "none", **self._environ}
        with self.log.open("ab") as log:
            command = [PROGRAM, "serve", str(config)]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environ)
        deadline = time.monotonic() + _START_LIMIT
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"docker-registry did not start: {self.log.read_text()[-2000:]}")
            time.sleep(0.01)

    def stop(self) -> None:
        """Ends the process. May be called again."""
        process, self._process = self._process, None
        if process and process.poll() is None:
            process.terminate()
            try:
                process.wait(_STOP_LIMIT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def restart(self) -> None:
        """The same data at the same port; all connections are lost."""
        self.stop()
        self.start()

    def put_blob(self, repository: str, data: bytes) -> str:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        location = self._call("POST", f"/v2/{repository}/blobs/uploads/", repository, b"", 202)
        parts = urlsplit(location)
        query = f"{parts.query}&digest={digest}" if parts.query else f"digest={digest}"
        self._call("PUT", f"{parts.path}?{query}", repository, data, 201, "application/octet-stream")
        return digest

    def put_manifest(self, repository: str, reference: str | None, body: bytes, media_type: str) -> str:
        """`reference`: a tag, or None for the digest alone."""
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        self._call("PUT", f"/v2/{repository}/manifests/{reference or digest}", repository, body, 201, media_type)
        return digest

    def _call(self, method: str, path: str, repository: str, body: bytes, status: int, media_type: str = "") -> str:
        """The answer's Location."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        headers = {"Content-Type": media_type} if media_type else {}
        if self._htpasswd:
            headers["Authorization"] = "Basic " + base64.b64encode(":".join(self._htpasswd).encode()).decode()
        if self._token:
            headers["Authorization"] = f"Bearer {self._token.token('test', repository, ['pull', 'push'])}"
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            text = response.read().decode(errors="replace")
            if response.status != status:
                raise RuntimeError(f"{method} {path}: {response.status} {text}")
            return response.getheader("Location") or ""
        finally:
            connection.close()

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
        try:
            connection.request("GET", "/v2/")
            return connection.getresponse().status in (200, 401)
        except OSError:
            return False
        finally:
            connection.close()

    def _config(self) -> dict[str, object]:
        auth: dict[str, object] = {}
        if self._htpasswd:
            path = self._directory / "htpasswd"
            path.write_text(f"{self._htpasswd[0]}:{_bcrypt(self._htpasswd[1])}\n")
            auth = {"htpasswd": {"realm": "tests", "path": str(path)}}
        if self._token:
            bundle = str(self._token.certificate)
            fields = {"realm": self._token.realm, "service": SERVICE, "issuer": ISSUER, "rootcertbundle": bundle}
            auth = {"token": fields}
        return {
            "version": "0.1",
            "log": {"level": "warn", "accesslog": {"disabled": True}},
            "storage": {
                "filesystem": {"rootdirectory": str(self._directory / "data")},
                "cache": {"blobdescriptor": "inmemory"},
                "delete": {"enabled": True},
            },
            "http": {"addr": self.host, "secret": secrets.token_hex(8)},
            **({"auth": auth} if auth else {}),
        }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _bcrypt(password: str) -> str:
    """What `htpasswd -B` would write, by the C library's crypt: the only hash that docker-registry takes."""
    crypt = ctypes.CDLL("libcrypt.so.1").crypt
    crypt.restype = ctypes.c_char_p
    hashed: bytes | None = crypt(password.encode(), b"$2b$05$" + secrets.token_hex(11).encode())
    if not hashed or not hashed.startswith(b"$2b$"):
        raise RuntimeError("libcrypt has no bcrypt")
    return hashed.decode()
