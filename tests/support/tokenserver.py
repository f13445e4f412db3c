"""A token server that signs for docker-registry (RS256 with the certificate in x5c), by way of the openssl program.

    with TokenServer(tmp_path, users={"me": "pw"}) as tokens, DockerRegistry(tmp_path, token=tokens) as registry: ...

`offset` moves the server's clock, so that a test can have tokens that are long over, without waiting for anything.
Protocol: distribution's docs/spec/auth/{token,jwt}.md.
"""

from __future__ import annotations

import base64
import json
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

ISSUER = "pyerofs-tests"
SERVICE = "docker-registry"
LEEWAY = 60  # seconds that docker-registry still takes a token after its end


class Asked(NamedTuple):
    """One request for a token: the user ("" for nobody), the scopes, and whether it was granted."""

    user: str
    scopes: list[str]
    granted: bool


class TokenServer:
    """`users`: names and passwords; without any, everybody may pull. `lifetime` and `offset` in seconds."""

    def __init__(self, directory: Path, users: dict[str, str] | None = None, lifetime: int = 300) -> None:
        self.users = users or {}
        self.lifetime = lifetime
        self.offset = 0
        self.asked: list[Asked] = []
        self._key = directory / "token-key.pem"
        self.certificate = directory / "token-cert.pem"
        self._make_certificate()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> TokenServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def realm(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/token"

    def token(self, user: str, repository: str, actions: list[str]) -> str:
        return self.token_for(user, {repository: actions})

    def token_for(self, user: str, access: dict[str, list[str]]) -> str:
        """A signed token, good from now (by this server's clock) for `lifetime`; `access`: actions by repository."""
        now = int(time.time()) + self.offset
        der = base64.b64encode(_pem_to_der(self.certificate.read_text())).decode()
        header = {"typ": "JWT", "alg": "RS256", "x5c": [der]}
        claims = {
            "iss": ISSUER,
            "sub": user,
            "aud": SERVICE,
            "exp": now + self.lifetime,
            "nbf": now - 10,
            "iat": now,
            "jti": f"{time.time_ns()}",
            "access": [{"type": "repository", "name": name, "actions": actions} for name, actions in access.items()],
        }
        signed = f"{_part(json.dumps(header).encode())}.{_part(json.dumps(claims).encode())}"
        command = ["openssl", "dgst", "-sha256", "-sign", str(self._key)]
        signature = subprocess.run(command, input=signed.encode(), capture_output=True, check=True).stdout
        return f"{signed}.{_part(signature)}"

    def _make_certificate(self) -> None:
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={ISSUER}"]
        files = ["-keyout", str(self._key), "-out", str(self.certificate)]
        subprocess.run([*command, *files], check=True, capture_output=True)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        tokens = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                fields = parse_qs(urlsplit(self.path).query)
                scopes = fields.get("scope", [])
                user, password = _basic(self.headers.get("Authorization"))
                granted = tokens.users.get(user) == password if user else not tokens.users
                tokens.asked.append(Asked(user, scopes, granted))
                if not granted:
                    self._reply(401, {"details": "incorrect username or password"})
                    return
                # Nobody in particular may only pull.
                access = {
                    repository: [action for action in actions.split(",") if user or action == "pull"]
                    for _, repository, actions in (scope.split(":") for scope in scopes)
                }
                answer = {"token": tokens.token_for(user, access), "expires_in": tokens.lifetime}
                self._reply(200, answer)

            def _reply(self, status: int, answer: dict[str, object]) -> None:
                body = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler


def _basic(header: str | None) -> tuple[str, str]:
    if not header or not header.startswith("Basic "):
        return "", ""
    user, _, password = base64.b64decode(header.removeprefix("Basic ")).decode().partition(":")
    return user, password


def _part(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _pem_to_der(text: str) -> bytes:
    return base64.b64decode("".join(line for line in text.splitlines() if not line.startswith("-")))
