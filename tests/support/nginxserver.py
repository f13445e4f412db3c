"""nginx on loopback ports with a configuration of the test's own, and a private certificate authority for it.

with Nginx(tmp_path, "server { listen 127.0.0.1:{port}; ... }") as nginx:
    nginx.host
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
import uuid
from pathlib import Path

from tests.support.needs import need

_LIMIT = 20.0  # seconds

_FRAME = """
daemon off;
worker_processes 1;
error_log {directory}/error.log warn;
pid {directory}/nginx.pid;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    keepalive_timeout 60s;
    keepalive_requests 100000;
    {servers}
}}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Nginx:
    """`servers`: what stands in the http block, {port} being this one's port. `host` is 127.0.0.1:port.

    Owns its process until stop(); configure() changes a running one without losing a request.
    """

    def __init__(self, directory: Path, servers: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._program = need("nginx", "nginx-light")
        self._directory = directory
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._write(servers)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Nginx:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        command = [self._program, "-c", str(self._directory / "nginx.conf"), "-p", str(self._directory)]
        log = self._directory / "error.log"
        with log.open("ab") as errors:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors)
        self._until_it_answers()

    def stop(self) -> None:
        process, self._process = self._process, None
        if process and process.poll() is None:
            process.terminate()
            process.wait(_LIMIT)

    def configure(self, servers: str) -> None:
        """From the return on, every new request is answered by the new configuration."""
        assert self._process
        old = self._workers()
        self._write(servers)
        self._process.send_signal(1)  # SIGHUP
        end = time.monotonic() + _LIMIT
        while not (new := self._workers()) or new & old:
            assert time.monotonic() < end, "nginx did not take the new configuration"
            time.sleep(0.01)
        self._until_it_answers()

    def _workers(self) -> set[int]:
        """Those that take connections: one that is being shut down says so in its name."""
        assert self._process
        found = set()
        for pid in Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split():
            try:
                if b"shutting down" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.add(int(pid))
            except FileNotFoundError:
                continue
        return found

    def _write(self, servers: str) -> None:
        text = _FRAME.format(directory=self._directory, servers=servers.replace("{port}", str(self.port)))
        user = "" if os.geteuid() else "user root;\n"  # the directory is for its owner alone
        (self._directory / "nginx.conf").write_text(user + text)

    def _until_it_answers(self) -> None:
        end = time.monotonic() + _LIMIT
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 5).close()
                return
            except OSError:
                assert self._process and self._process.poll() is None, self.errors()
                assert time.monotonic() < end, self.errors()
                time.sleep(0.01)

    def errors(self) -> str:
        return (self._directory / "error.log").read_text()[-2000:]


class Authority:
    """A private CA; `ca` is its certificate (PEM)."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        need("openssl", "openssl")
        self._directory = directory
        self.ca, self._key = directory / "ca.crt", directory / "ca.key"
        extensions = ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign"]
        _openssl(
            "req",
            "-x509",
            *_new_key(self._key),
            "-days",
            "2",
            "-subj",
            f"/CN=tests {uuid.uuid4()}",
            *extensions,
            "-out",
            self.ca,
        )

    def issue(self, name: str, alternatives: str = "DNS:localhost,IP:127.0.0.1") -> tuple[Path, Path]:
        """Certificate and key."""
        certificate, key = self._directory / f"{name}.cert", self._directory / f"{name}.key"
        request, extensions = self._directory / f"{name}.csr", self._directory / f"{name}.ext"
        extensions.write_text(f"subjectAltName={alternatives}\n")
        _openssl("req", "-new", *_new_key(key), "-subj", f"/CN={name}", "-out", request)
        signer = ("-CA", self.ca, "-CAkey", self._key, "-CAcreateserial", "-days", "2", "-extfile", extensions)
        _openssl("x509", "-req", "-in", request, *signer, "-out", certificate)
        return certificate, key


def _new_key(path: Path) -> tuple[str | Path, ...]:
    return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", path)


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
