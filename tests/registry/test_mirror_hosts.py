"""Several hosts for one registry: manifests, credentials, headers, paths, and what the options add."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyerofs.config.options import ReadOptions
from pyerofs.errors import AuthError, ImageError, NotFoundError, RegistryError, UsageError
from pyerofs.http.transport import Transport
from pyerofs.registry.client import Registry
from pyerofs.registry.hosts import Host, HostConfig, parse_api_url
from pyerofs.registry.mirror import Mirror
from pyerofs.secret import Secret
from pyerofs.source.connect import host_config
from pyerofs.source.resolve import get_document
from tests.support.blobreader import SIZE, Sink, fails, read
from tests.support.fakeregistry import (
    LIMIT,
    redirect,
    reset,
    stall,
)
from tests.support.mirrorstage import ACCEPT, BOTH, DIGEST, ME, PULL, Stage, staged


@pytest.fixture
def stage() -> Iterator[Stage]:
    with staged() as stage:
        yield stage


# Manifests


def test_tags_are_resolved_where_that_is_trusted(stage: Stage) -> None:
    registry = stage.registry(PULL, BOTH)
    for number, fake in enumerate((stage.first, stage.second, stage.server)):
        fake.add_manifest("1.0", b"{%d}" % number)
    assert registry.get_manifest("1.0", ACCEPT).body == b"{1}"
    assert stage.counts == (0, 1, 0)
    body = b'{"layers":[]}'
    digest = "sha256:" + hashlib.sha256(body).hexdigest()
    stage.first.add_manifest(digest, body)
    assert registry.get_manifest(digest, ACCEPT).body == body
    assert stage.counts == (1, 1, 0)


def test_a_mirror_without_the_tag(stage: Stage) -> None:
    stage.server.add_manifest("1.0", b"{}")
    assert stage.registry().get_manifest("1.0", ACCEPT).body == b"{}"
    with pytest.raises(NotFoundError, match=stage.server.host):
        stage.registry().get_manifest("2.0", ACCEPT)


def test_a_mirror_with_another_manifest(stage: Stage) -> None:
    body = b'{"layers":[]}'
    digest = "sha256:" + hashlib.sha256(body).hexdigest()
    stage.first.add_manifest(digest, b'{"layers":[{}]}')
    stage.second.add_manifest(digest, body)
    registry = stage.registry()
    assert registry.get_manifest(digest, ACCEPT).body == body
    for fake in (stage.second, stage.server):
        fake.add_manifest(digest, b"other")
    with pytest.raises(ImageError, match="different content than was asked for"):
        registry.get_manifest(digest, ACCEPT)


def test_capabilities_that_nobody_has(stage: Stage) -> None:
    registry = stage.registry(PULL, PULL, PULL)
    with pytest.raises(UsageError, match="no host has the capability 'resolve'"):
        registry.get_manifest("1.0", ACCEPT)
    with pytest.raises(UsageError, match="no host has the capability 'pull'"):
        stage.registry(*[frozenset(["resolve"])] * 3).blob(DIGEST, SIZE)


def test_resolving_ends_in_time(stage: Stage) -> None:
    release = threading.Event()
    for fake in (stage.first, stage.second, stage.server):
        fake.manifests["1"] = ("x", b"")
        fake.answer = lambda exchange: release.wait(LIMIT)  # type: ignore[method-assign,assignment]  # a fake
    transport = Transport()
    registry = Registry(stage.server.host, "a", transport, environ={})
    with pytest.raises(RegistryError, match="took too long"):
        get_document(registry, "1", timeout=0.5)
    release.set()


# Secrets


def test_no_mirror_gets_the_users_password(stage: Stage) -> None:
    for fake in (stage.first, stage.second, stage.server):
        fake.basic = ("me", "hush")
    read(stage.blob())
    assert stage.counts == (1, 1, 2)
    for fake in (stage.first, stage.second):
        assert not any("authorization" in seen.headers for seen in fake.seen)


def test_a_mirrors_own_credentials(stage: Stage, tmp_path: Path) -> None:
    import base64
    import json

    for fake in (stage.first, stage.second, stage.server):
        fake.basic = ("mirror", "hush")
    entry = {"auth": base64.b64encode(b"mirror:hush").decode()}
    (tmp_path / "config.json").write_text(json.dumps({"auths": {stage.second.host: entry}}))
    registry = stage.registry()
    config = HostConfig((Host(parse_api_url(stage.second.url)),))
    registry = Registry(
        stage.server.host, "a", stage.transport, config=config, environ={"DOCKER_CONFIG": str(tmp_path)}
    )
    read(registry.blob(DIGEST, SIZE))
    assert stage.counts == (0, 2, 0)


def test_headers_of_hosts_toml_go_to_that_host_only(stage: Stage) -> None:
    first = Host(
        parse_api_url(stage.first.url), headers=(("X-Key", Secret("hush")), ("Authorization", Secret("A hush")))
    )
    config = HostConfig((first, Host(parse_api_url(stage.second.url))))
    blob = Registry(stage.server.host, "a", stage.transport, config=config, environ={}).blob(DIGEST, SIZE)
    stage.first.script(redirect(stage.second.url + "{path}"))
    read(blob)
    (asked,), (followed,) = stage.first.seen, stage.second.seen
    assert (asked.headers["x-key"], asked.headers["authorization"]) == ("hush", "A hush")
    assert "x-key" not in followed.headers and "authorization" not in followed.headers


def test_a_path_of_its_own(stage: Stage) -> None:
    config = HostConfig((Host(parse_api_url(f"{stage.first.url}/prefix/x", override_path=True)),))
    blob = Registry(stage.server.host, "a/b", stage.transport, config=config, environ={}).blob(DIGEST, SIZE)
    read(blob)
    assert stage.first.seen[0].path.startswith(f"/prefix/x/a/b/blobs/{DIGEST}?ns=")


def test_the_server_may_be_another_host(stage: Stage) -> None:
    """containerd's way to say "only this one": it is told whose images are wanted, too."""
    config = HostConfig(server=Host(parse_api_url(stage.first.url)))
    blob = Registry("quay.example", "a", stage.transport, config=config, environ={}, credentials=lambda: ME).blob(
        DIGEST, SIZE
    )
    stage.first.basic = ("me", "hush")
    error, _ = fails(blob)
    assert type(error) is AuthError
    assert stage.first.seen[0].path.endswith("?ns=quay.example")
    assert not any("authorization" in seen.headers for seen in stage.first.seen)


# What the options add


def test_options(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text("PEM")
    from pyerofs.registry.hosts import Roots

    roots = Roots((str(tmp_path / "containerd"),), (str(tmp_path / "docker"),))
    hosts = tmp_path / "containerd" / "r.example"
    hosts.mkdir(parents=True)
    (hosts / "hosts.toml").write_text('[host."https://c.example"]')
    (tmp_path / "docker" / "a.example:8443").mkdir(parents=True)
    (tmp_path / "docker" / "a.example:8443" / "own.crt").write_text("PEM")
    options = ReadOptions(mirrors=("https://a.example:8443", "http://b.example/x"), ca=str(ca))
    config = host_config("r.example", options, roots)
    assert [str(place.url) for place in config.mirrors] == [
        "https://a.example:8443/v2",
        "http://b.example/x/v2",
        "https://c.example/v2",
    ]
    assert config.mirrors[0].ca == (str(tmp_path / "docker/a.example:8443/own.crt"), str(ca))
    assert config.mirrors[0].capabilities == BOTH
    assert config.server == Host(ca=(str(ca),))
    with pytest.raises(UsageError, match=r"oci\.ca: cannot read .*none\.pem: No such file"):
        host_config("r.example", ReadOptions(ca=str(tmp_path / "none.pem")), roots)


def test_cancel_is_not_a_failure(stage: Stage) -> None:
    blob = stage.blob()
    release, reached = threading.Event(), threading.Event()
    stage.first.script(stall(release, 0, reached))
    with pytest.raises(RegistryError, match="cancelled"):
        blob.read_range(0, 1000, Sink(), cancel=reached.is_set)
    release.set()
    assert stage.counts == (1, 0, 0)
    with contextlib.suppress(RegistryError):
        read(blob)
    assert stage.counts[0] == 2


def test_health_is_shared_by_blobs_and_manifests(stage: Stage) -> None:
    registry = stage.registry()
    stage.first.default = reset
    read(registry.blob(DIGEST, SIZE))
    stage.second.add_manifest("1.0", b"{}")
    registry.get_manifest("1.0", ACCEPT)
    assert not stage.first.requests("/manifests/")


def test_names_and_notes() -> None:
    registry = Registry("localhost:5000", "a", Transport(), environ={})
    (mirror,) = registry.mirrors
    assert isinstance(mirror, Mirror) and mirror.name == "localhost:5000" and mirror.note == ""
