"""Debian's docker-registry, open and with each kind of authentication."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyerofs.errors import AuthError, NotFoundError, RegistryError
from pyerofs.http.transport import Transport
from pyerofs.registry.blob import Blob
from pyerofs.registry.client import Registry
from pyerofs.registry.credentials import Credentials, Lookup
from pyerofs.secret import Secret
from tests.support.dockerregistry import DockerRegistry
from tests.support.fakeregistry import LIMIT, FakeRegistry, redirect
from tests.support.needs import need
from tests.support.tokenserver import LEEWAY, TokenServer

DATA = bytes(index * 11 % 253 for index in range(1 << 20))
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
ME = Credentials("the options", "me", Secret("hush"))


@pytest.fixture(autouse=True)
def programs() -> None:
    need("docker-registry", "docker-registry")
    need("openssl", "openssl")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with DockerRegistry(tmp_path_factory.mktemp("open")) as server:
        server.put_blob("org/app", DATA)
        yield server


def connect(server: DockerRegistry, look_up: Lookup = lambda: None) -> tuple[Registry, Blob]:
    registry = Registry(server.host, "org/app", Transport(), credentials=look_up)
    return registry, registry.blob(f"sha256:{hashlib.sha256(DATA).hexdigest()}", len(DATA))


def read(blob: Blob, first: int = 4096, length: int = 300_000) -> None:
    got = bytearray()

    def sink(offset: int, piece: bytes) -> bool:
        assert offset == first + len(got)
        got.extend(piece)
        return True

    assert blob.read_range(first, length, sink) == length
    assert got == DATA[first : first + length]


def push_manifest(server: DockerRegistry) -> bytes:
    config = server.put_blob("org/app", b"{}")
    layer = server.put_blob("org/app", DATA)
    body = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": 2},
            "layers": [{"mediaType": "application/vnd.erofs", "digest": layer, "size": len(DATA)}],
        }
    ).encode()
    server.put_manifest("org/app", "1.0", body, MANIFEST)
    return body


def test_manifest(shared: DockerRegistry) -> None:
    body = push_manifest(shared)
    registry, _ = connect(shared)
    for reference in ("1.0", f"sha256:{hashlib.sha256(body).hexdigest()}"):
        answer = registry.get_manifest(reference, [MANIFEST])
        assert (answer.body, answer.media_type) == (body, MANIFEST)
    with pytest.raises(NotFoundError, match="404, MANIFEST_UNKNOWN"):
        registry.get_manifest("none", [MANIFEST])
    with pytest.raises(NotFoundError):
        Registry(shared.host, "org/none", Transport(), credentials=lambda: None).get_manifest("1", [MANIFEST])


@pytest.mark.parametrize(("first", "length"), [(0, 1), (0, len(DATA)), (len(DATA) - 1, 1), (4095, 500_001)])
def test_ranges(shared: DockerRegistry, first: int, length: int) -> None:
    read(connect(shared)[1], first, length)


def test_size_that_is_not_the_blobs(shared: DockerRegistry) -> None:
    registry, blob = connect(shared)
    wrong = registry.blob(blob.digest, len(DATA) + 4096)
    with pytest.raises(RegistryError, match="1048576 bytes long there instead of 1052672") as caught:
        wrong.read_range(0, 4096, lambda *_: True)
    assert not caught.value.temporary
    with pytest.raises(RegistryError, match=r"is not \d+ bytes long") as caught:
        wrong.read_range(len(DATA), 4096, lambda *_: True)
    assert not caught.value.temporary


def test_no_such_blob(shared: DockerRegistry) -> None:
    missing = connect(shared)[0].blob(f"sha256:{'0' * 64}", 10)
    with pytest.raises(NotFoundError, match="BLOB_UNKNOWN"):
        missing.read_range(0, 10, lambda *_: True)


def test_threads(shared: DockerRegistry) -> None:
    _, blob = connect(shared)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(10):
                read(blob, (number * 7919 + turn * 65_537) % (len(DATA) - 100_000), 100_000)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert failures == []


def test_restart(tmp_path: Path) -> None:
    with DockerRegistry(tmp_path) as server:
        server.put_blob("org/app", DATA)
        _, blob = connect(server)
        read(blob)
        server.stop()
        with pytest.raises(RegistryError, match=f"connection to {server.host} refused") as caught:
            read(blob)
        assert caught.value.temporary
        server.start()
        read(blob)
        server.restart()
        read(blob)


def test_redirected_to(shared: DockerRegistry) -> None:
    """The real registry as the target of another's redirects."""
    with FakeRegistry(redirect(f"http://{shared.host}{{path}}?signature=x")) as front:
        registry = Registry(front.host, "org/app", Transport(), credentials=lambda: None)
        blob = registry.blob(connect(shared)[1].digest, len(DATA))
        for first in range(0, 100_000, 10_000):
            read(blob, first, 10_000)
        assert len(front.seen) == 1


def test_basic(tmp_path: Path) -> None:
    with DockerRegistry(tmp_path, htpasswd=("me", "hush")) as server:
        server.put_blob("org/app", DATA)
        _, blob = connect(server, lambda: ME)
        read(blob)
        read(blob)
        with pytest.raises(AuthError, match="needs a user name and a password"):
            read(connect(server)[1])
        with pytest.raises(AuthError, match="401") as caught:
            read(connect(server, lambda: ME._replace(password=Secret("wrong-hush")))[1])
        assert "hush" not in str(caught.value)


def test_basic_from_docker_config(tmp_path: Path) -> None:
    with DockerRegistry(tmp_path / "server", htpasswd=("me", "hush")) as server:
        server.put_blob("org/app", DATA)
        entry = {"auth": base64.b64encode(b"me:hush").decode()}
        (tmp_path / "config.json").write_text(json.dumps({"auths": {server.host: entry}}))
        environ = {"DOCKER_CONFIG": str(tmp_path), "HOME": str(tmp_path)}
        registry = Registry(server.host, "org/app", Transport(), environ=environ)
        read(registry.blob(f"sha256:{hashlib.sha256(DATA).hexdigest()}", len(DATA)))


def test_anonymous_token(tmp_path: Path) -> None:
    with TokenServer(tmp_path) as tokens, DockerRegistry(tmp_path / "server", token=tokens) as server:
        body = push_manifest(server)
        registry, blob = connect(server)
        assert registry.get_manifest("1.0", [MANIFEST]).body == body
        read(blob)
        assert [(asked.user, asked.scopes) for asked in tokens.asked] == [("", ["repository:org/app:pull"])]


def test_token_with_credentials(tmp_path: Path) -> None:
    with (
        TokenServer(tmp_path, users={"me": "hush"}) as tokens,
        DockerRegistry(tmp_path / "server", token=tokens) as server,
    ):
        server.put_blob("org/app", DATA)
        read(connect(server, lambda: ME)[1])
        with pytest.raises(AuthError, match="401, incorrect username or password"):
            read(connect(server)[1])
        with pytest.raises(AuthError, match="incorrect"):
            read(connect(server, lambda: ME._replace(password=Secret("wrong")))[1])
        assert [(asked.user, asked.granted) for asked in tokens.asked] == [("me", True), ("", False), ("me", False)]


def test_token_that_is_over(tmp_path: Path) -> None:
    with TokenServer(tmp_path) as tokens, DockerRegistry(tmp_path / "server", token=tokens) as server:
        server.put_blob("org/app", DATA)
        _, blob = connect(server)
        tokens.offset = -(tokens.lifetime + LEEWAY + 10)
        with pytest.raises(AuthError, match="401") as caught:  # it was renewed once, and is still over
            read(blob)
        assert not caught.value.temporary
        assert len(tokens.asked) == 1
        tokens.offset = 0
        read(blob)  # the token that is over is sent, refused, and renewed
        read(blob)
        assert len(tokens.asked) == 2
