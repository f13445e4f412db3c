"""Debian's docker-registry behind nginx, as sites have it: TLS of a private authority with client certificates, a
redirector to another origin whose links expire; and docker-registry as a pull-through mirror of another one."""

from __future__ import annotations

import base64
import hashlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyerofs.errors import NotFoundError, RegistryError
from pyerofs.http.transport import Transport
from pyerofs.registry.blob import Blob
from pyerofs.registry.client import Registry
from pyerofs.registry.hosts import Host, HostConfig, Roots, load, parse_api_url
from tests.support.dockerregistry import DockerRegistry
from tests.support.needs import need
from tests.support.nginxserver import Authority, Nginx
from tests.support.realregistry import LoggingRegistry
from tests.support.tokenserver import LEEWAY, TokenServer
from tests.system.test_registry_real import DATA, MANIFEST, push_manifest, read

DIGEST = f"sha256:{hashlib.sha256(DATA).hexdigest()}"


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoggingRegistry]:
    need("docker-registry", "docker-registry")
    with LoggingRegistry(tmp_path_factory.mktemp("upstream")) as server:
        push_manifest(server)
        yield server


def connect(
    host: str, config: HostConfig | None = None, trace: list[str] | None = None, **more: Any
) -> tuple[Registry, Blob]:
    transport = Transport(trace=None if trace is None else trace.append)
    registry = Registry(host, "org/app", transport, credentials=lambda: None, config=config, environ={}, **more)
    return registry, registry.blob(DIGEST, len(DATA))


# TLS


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def terminator(
    tmp_path_factory: pytest.TempPathFactory, authority: Authority, upstream: LoggingRegistry
) -> Iterator[Nginx]:
    certificate, key = authority.issue("server")
    servers = f"""
        server {{
            listen 127.0.0.1:{{port}} ssl;
            ssl_certificate {certificate};
            ssl_certificate_key {key};
            ssl_client_certificate {authority.ca};
            ssl_verify_client on;
            location / {{
                proxy_pass http://{upstream.host};
                proxy_set_header Host $http_host;
            }}
        }}"""
    with Nginx(tmp_path_factory.mktemp("terminator"), servers) as nginx:
        yield nginx


def test_private_authority_and_client_certificate(terminator: Nginx, authority: Authority, tmp_path: Path) -> None:
    """As docker has it: ca.crt, client.cert and client.key in certs.d/HOST:PORT."""
    directory = tmp_path / "docker" / terminator.host
    directory.mkdir(parents=True)
    roots = Roots((), (str(tmp_path / "docker"),))
    with pytest.raises(RegistryError, match="not trusted"):
        read(connect(terminator.host, load(terminator.host, roots))[1])
    shutil.copy(authority.ca, directory / "ca.crt")
    with pytest.raises(RegistryError, match="400") as caught:
        read(connect(terminator.host, load(terminator.host, roots))[1])
    assert not caught.value.temporary
    certificate, key = authority.issue("client")
    shutil.copy(certificate, directory / "client.cert")
    shutil.copy(key, directory / "client.key")
    trace: list[str] = []
    registry, blob = connect(terminator.host, load(terminator.host, roots), trace)
    assert registry.get_manifest("1.0", [MANIFEST]).media_type == MANIFEST
    read(blob)
    assert ", TLS " in trace[1] and trace[-1].endswith("same connection")


def test_hosts_toml(terminator: Nginx, authority: Authority, tmp_path: Path, upstream: LoggingRegistry) -> None:
    """The registry's name leads to the terminator; two authorities, of which the second is the right one."""
    other = Authority(tmp_path / "other")
    certificate, key = authority.issue("client")
    directory = tmp_path / "certs.d" / "registry.example"
    directory.mkdir(parents=True)
    shutil.copy(authority.ca, directory / "ca.pem")
    (directory / "hosts.toml").write_text(
        f"""
        server = "https://{terminator.host}"
        ca = ["{other.ca}", "ca.pem"]
        client = [["{certificate}", "{key}"]]
        """
    )
    registry, blob = connect("registry.example", load("registry.example", Roots((str(tmp_path / "certs.d"),), ())))
    read(blob)
    assert registry.get_manifest("1.0", [MANIFEST]).media_type == MANIFEST
    assert f"/v2/org/app/blobs/{DIGEST}?ns=registry.example" in upstream.requests(DIGEST)[-1]


def test_a_key_that_does_not_fit(terminator: Nginx, authority: Authority, tmp_path: Path) -> None:
    certificate, _ = authority.issue("client")
    _, key = authority.issue("server")
    place = Host(ca=(str(authority.ca),), client=((str(certificate), str(key)),))
    with pytest.raises(RegistryError, match="client certificate's key cannot be used") as caught:
        read(connect(terminator.host, HostConfig(server=place))[1])
    assert not caught.value.temporary


# Redirects


def signed(path: str, expires: int) -> str:
    """As nginx's secure_link module wants it."""
    digest = hashlib.md5(f"{expires} {path} key".encode()).digest()
    return f"{path}?md5={base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}&expires={expires}"


def test_redirector_with_links_that_expire(tmp_path: Path, upstream: LoggingRegistry) -> None:
    """The front redirects to links that are good for 2 s, by the clock and the judgement of another nginx."""
    path = f"/v2/org/app/blobs/{DIGEST}"
    origin = f"""
        server {{
            listen 127.0.0.1:{{port}};
            location / {{
                secure_link $arg_md5,$arg_expires;
                secure_link_md5 "$secure_link_expires $uri key";
                if ($secure_link = "") {{ return 403; }}
                if ($secure_link = "0") {{ return 410; }}
                proxy_pass http://{upstream.host};
            }}
        }}"""

    def front(origin: str) -> str:
        link = signed(path, int(time.time()) + 2)
        return f"""
            server {{
                listen 127.0.0.1:{{port}};
                location /v2/org/app/blobs/ {{ return 307 http://{origin}{link}; }}
                location / {{ proxy_pass http://{upstream.host}; }}
            }}"""

    with Nginx(tmp_path / "origin", origin) as links, Nginx(tmp_path / "front", front(links.host)) as redirector:
        trace: list[str] = []
        registry, blob = connect(redirector.host, trace=trace)
        assert registry.get_manifest("1.0", [MANIFEST]).media_type == MANIFEST
        for _ in range(2):
            redirector.configure(front(links.host))
            end = time.monotonic() + 20
            before = len(trace)
            while not any(" -> 410," in line for line in trace[before:]):
                assert time.monotonic() < end
                try:
                    read(blob, 4096, 8192)
                except RegistryError as error:  # the front still has the link that is over
                    assert "410" in str(error) and not error.temporary
        redirector.configure(front(links.host))
        read(blob)
        # The link is what is asked again and again, the front only when a link was over.
        asked = sum(redirector.host in line for line in trace), sum(links.host in line for line in trace)
        assert asked[1] > 10 * (asked[0] - sum(" -> 410," in line for line in trace))
        assert "md5" not in "".join(trace)


def test_redirector_with_a_wrong_signature(tmp_path: Path, upstream: LoggingRegistry) -> None:
    origin = """
        server { listen 127.0.0.1:{port}; return 403; }"""
    with Nginx(tmp_path / "origin", origin) as links:
        front = f"""
            server {{ listen 127.0.0.1:{{port}}; return 307 http://{links.host}$request_uri?md5=hush; }}"""
        with Nginx(tmp_path / "front", front) as redirector:
            trace: list[str] = []
            with pytest.raises(RegistryError, match="403") as caught:
                read(connect(redirector.host, trace=trace)[1])
            assert not caught.value.temporary and "hush" not in str(caught.value)
            assert [line.partition("http://")[2].partition("/")[0] for line in trace] == [
                redirector.host,
                links.host,
                redirector.host,
                links.host,
            ]


# Mirrors


class PullThrough(DockerRegistry):
    """A mirror that gets from `upstream` what it is asked for."""

    def __init__(self, directory: Path, upstream: str) -> None:
        self._upstream = upstream
        super().__init__(directory)

    def _config(self) -> dict[str, Any]:
        config: dict[str, Any] = super()._config()
        config["proxy"] = {"remoteurl": f"http://{self._upstream}"}
        return config


def test_pull_through_mirror(tmp_path: Path, upstream: LoggingRegistry) -> None:
    with PullThrough(tmp_path, upstream.host) as mirror:
        config = HostConfig((Host(parse_api_url(f"http://{mirror.host}")),))
        trace: list[str] = []
        registry, blob = connect(upstream.host, config, trace)
        assert registry.get_manifest("1.0", [MANIFEST]).media_type == MANIFEST
        got = bytearray(len(DATA))
        wholes: list[int] = []

        def sink(offset: int, piece: bytes) -> bool:
            got[offset : offset + len(piece)] = piece
            return True

        # What the mirror has not yet it sends as a whole, whatever range was asked for.
        for first in range(0, len(DATA), 1 << 18):
            blob.read_range(first, 1 << 18, sink, whole=lambda: wholes.append(1))
        assert got == DATA
        assert all(mirror.host in line for line in trace)
        mirror.stop()
        read(blob)
        assert upstream.host in trace[-1] and mirror.host in trace[-2]
        with pytest.raises(NotFoundError):
            registry.get_manifest("none", [MANIFEST])


# Tokens


def test_tokens_that_expire(tmp_path: Path) -> None:
    """Tokens are good for 2 s; the reader goes on for four of them, and never sees one end."""
    with TokenServer(tmp_path, lifetime=2) as tokens, DockerRegistry(tmp_path / "server", token=tokens) as server:
        server.put_blob("org/app", DATA)
        tokens.offset = -LEEWAY  # the registry takes a token for so long after its end
        registry = Registry(server.host, "org/app", Transport(), credentials=lambda: None, environ={})
        blob = registry.blob(DIGEST, len(DATA))
        end = time.monotonic() + 30
        while len(tokens.asked) < 5:
            assert time.monotonic() < end
            read(blob, 4096, 65536)
        assert len(tokens.asked) == 5
