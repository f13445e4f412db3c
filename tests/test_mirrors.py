"""Several hosts for one registry: who is asked for what, in which order, and what follows from a failure."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from blobreader import DATA, SIZE, Sink, fails, in_parallel, read
from fakeregistry import (
    LIMIT,
    OCI_MANIFEST,
    Behaviour,
    FakeRegistry,
    content_range,
    encoded,
    redirect,
    reset,
    short,
    stall,
    status,
    tagged,
)

from pyerofs.blob import Blob
from pyerofs.credentials import Credentials
from pyerofs.errors import AuthError, ImageError, NotFoundError, RegistryError, UsageError
from pyerofs.hosts import Host, HostConfig, parse_api_url
from pyerofs.mirror import HOLD_MAX, Health, Mirror
from pyerofs.options import OCIOptions
from pyerofs.registry import Registry
from pyerofs.secret import Secret
from pyerofs.source import get_document, host_config
from pyerofs.transport import Transport

ACCEPT = (OCI_MANIFEST,)
DIGEST = "sha256:" + hashlib.sha256(DATA).hexdigest()
ME = Credentials("the options", "me", Secret("hush"))
PULL = frozenset(["pull"])
BOTH = frozenset(["pull", "resolve"])


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Stage:
    """Two mirrors and the registry itself, and what was asked of each."""

    def __init__(self, first: FakeRegistry, second: FakeRegistry, server: FakeRegistry) -> None:
        self.first, self.second, self.server = first, second, server
        self.clock = Clock()
        self.trace: list[str] = []
        self.transport = Transport(stall_seconds=1, trace=self.trace.append)

    def registry(self, *capabilities: frozenset[str], **more: object) -> Registry:
        places = [
            Host(parse_api_url(fake.url), capabilities[number] if capabilities else BOTH)
            for number, fake in enumerate((self.first, self.second))
        ]
        server = Host(None, capabilities[2]) if len(capabilities) > 2 else Host()
        config = HostConfig(tuple(places), server)
        registry = Registry(
            self.server.host, "org/app", self.transport, credentials=lambda: ME, config=config, environ={}, **more
        )  # type: ignore[arg-type]
        for mirror in registry.mirrors:
            mirror.health = Health(self.clock)
        return registry

    def blob(self) -> Blob:
        return Blob(self.registry().mirrors, DIGEST, SIZE, clock=self.clock)

    @property
    def counts(self) -> tuple[int, int, int]:
        return len(self.first.requests()), len(self.second.requests()), len(self.server.requests())

    def forget(self) -> None:
        for fake in (self.first, self.second, self.server):
            fake.seen.clear()


@pytest.fixture
def stage() -> Iterator[Stage]:
    with FakeRegistry() as first, FakeRegistry() as second, FakeRegistry() as server:
        for fake in (first, second, server):
            fake.add_blob(DATA)
        stage = Stage(first, second, server)
        yield stage
        stage.transport.close()
        assert "hush" not in "".join(stage.trace)


def test_the_first_mirror_does_it_all(stage: Stage) -> None:
    blob = stage.blob()
    for _ in range(3):
        read(blob)
    assert stage.counts == (3, 0, 0)
    assert stage.first.seen[0].path == f"/v2/org/app/blobs/{DIGEST}?ns=127.0.0.1%3A{stage.server.host.split(':')[1]}"


BAD_DAYS = [
    status(500),
    status(502),
    status(503),
    status(504),
    status(408),
    status(429),
    reset,
    encoded("gzip"),
    content_range("bytes 0-9/300000"),
    content_range(f"bytes 1000-50999/{SIZE + 1}"),
    status(400),
    status(401),
    status(403),
    status(404),
    status(410),
    status(416),
    status(204),
    redirect("ftp://x"),
    tagged('"sha256:' + "0" * 64 + '"'),
]


@pytest.mark.parametrize("behaviour", BAD_DAYS, ids=map(str, range(len(BAD_DAYS))))
def test_a_mirrors_failure_is_nobodys(stage: Stage, behaviour: Behaviour) -> None:
    stage.first.default = behaviour
    read(stage.blob())
    assert stage.counts == (1, 1, 0)


def test_a_mirror_that_is_not_there(stage: Stage) -> None:
    with FakeRegistry() as gone:
        stage.first = gone
    blob = stage.blob()
    read(blob)
    read(blob)
    assert stage.counts[1:] == (2, 0)
    assert sum("refused" in line for line in stage.trace) == 1


def test_a_failed_mirror_is_asked_last_for_a_while(stage: Stage) -> None:
    blob = stage.blob()
    stage.first.default = status(503)
    read(blob)
    stage.first.default = stage.second.default
    for _ in range(3):
        read(blob)
    assert stage.counts == (1, 4, 0)
    stage.clock.now += 1.1
    read(blob)
    read(blob)
    assert stage.counts == (3, 4, 0)


def test_the_pause_grows(stage: Stage) -> None:
    blob = stage.blob()
    stage.first.default = status(503)
    read(blob)
    for count, seconds in enumerate([1, 2, 4, 8, 16, 32, 60, 60], 1):
        stage.clock.now += seconds - 0.1
        read(blob)
        assert stage.counts[0] == count
        stage.clock.now += 0.2
        read(blob)
        assert stage.counts[0] == count + 1


def test_one_thread_finds_out_for_all(stage: Stage) -> None:
    blob = stage.blob()
    stage.first.default = reset
    read(blob)
    stage.forget()
    stage.clock.now += 1.1
    in_parallel(16, lambda: read(blob))
    assert stage.counts[0] <= 2  # a reset connection is tried once more by libcurl
    assert stage.counts[1] == 16


def test_many_threads_failing_at_once_are_one_failure(stage: Stage) -> None:
    blob = stage.blob()
    barrier = threading.Barrier(8)

    def fail(exchange: object) -> None:
        barrier.wait(LIMIT)
        status(503)(exchange)  # type: ignore[arg-type]

    stage.first.default = fail
    in_parallel(8, lambda: read(blob))
    assert stage.counts == (8, 8, 0)
    stage.first.default = stage.second.default
    stage.clock.now += 1.1
    read(blob)
    assert stage.counts[0] == 9


def test_when_all_are_bad_all_are_asked(stage: Stage) -> None:
    blob = stage.blob()
    for fake in (stage.first, stage.second, stage.server):
        fake.default = status(503)
    for count in (1, 2):
        error, _ = fails(blob)
        assert error.temporary and stage.server.host in str(error)
        assert stage.counts == (count, count, count)


def test_a_mirror_without_the_blob(stage: Stage) -> None:
    blob = stage.blob()
    stage.first.default = status(404)
    for _ in range(3):
        read(blob)
    assert stage.counts == (1, 3, 0)
    stage.clock.now += 61  # it may have fetched it by now
    read(blob)
    assert stage.counts[0] == 2


def test_nobody_has_the_blob(stage: Stage) -> None:
    for fake in (stage.first, stage.second, stage.server):
        fake.default = status(404)
    error, _ = fails(stage.blob())
    assert type(error) is NotFoundError and not error.temporary
    assert stage.counts == (1, 1, 1)


@pytest.mark.parametrize(
    ("behaviours", "kind", "temporary", "which"),
    [
        ((404, 503, 404), RegistryError, True, 1),
        ((503, 404, 404), RegistryError, True, 0),
        ((403, 404, 404), AuthError, False, 0),
        ((404, 403, 400), RegistryError, False, 2),
        ((503, 503, 403), RegistryError, True, 1),
    ],
)
def test_what_is_said_of_several_failures(
    stage: Stage, behaviours: tuple[int, int, int], kind: type, temporary: bool, which: int
) -> None:
    fakes = (stage.first, stage.second, stage.server)
    for fake, code in zip(fakes, behaviours, strict=True):
        fake.default = status(code)
    error, _ = fails(stage.blob())
    assert (type(error), error.temporary) == (kind, temporary)
    assert str(error).startswith(fakes[which].host)


def test_a_transfer_that_breaks_is_for_the_caller_to_resume(stage: Stage) -> None:
    blob = stage.blob()
    stage.first.default = short(20_000)
    error, count = fails(blob)
    assert error.temporary and count == 20_000
    read(blob, 21_000, 10_000)
    assert stage.counts == (1, 1, 0)


def test_a_stalled_mirror(stage: Stage) -> None:
    blob = stage.blob()
    release = threading.Event()
    stage.first.default = stall(release)
    read(blob)
    read(blob)
    release.set()
    assert stage.counts == (1, 2, 0)


def test_another_connection_after_a_failure(stage: Stage) -> None:
    registry = Registry(stage.server.host, "org/app", stage.transport, environ={})
    blob = registry.blob(DIGEST, SIZE)
    read(blob)
    read(blob)
    stage.server.script(status(503))
    fails(blob)
    read(blob)
    read(blob)
    peers = [seen.peer for seen in stage.server.requests()]
    assert len(set(peers[:3])) == 1
    assert peers[3] not in peers[:3]
    assert stage.trace[3].endswith("new connection (try 2, after: 503)")
    assert stage.trace[4].endswith("same connection")


# Retry-After


def test_a_host_that_wants_to_be_left_alone(stage: Stage) -> None:
    registry = Registry(stage.server.host, "org/app", stage.transport, environ={})
    registry.mirrors[0].health = Health(stage.clock)
    blob = registry.blob(DIGEST, SIZE)
    stage.server.script(status(429, ("Retry-After", "7")))
    assert fails(blob)[0].retry_after == 7
    stage.clock.now += 2
    error, _ = fails(blob)
    assert error.temporary and error.retry_after == 5
    assert str(error) == f"{stage.server.host} wants to be left alone for 5.0 s: 429"
    assert len(stage.server.seen) == 1
    stage.clock.now += 5
    read(blob)


def test_others_are_asked_meanwhile(stage: Stage) -> None:
    blob = stage.blob()
    stage.first.default = status(503, ("Retry-After", "30"))
    read(blob)
    stage.clock.now += 20
    for fake in (stage.second, stage.server):
        fake.default = status(503)
    error, _ = fails(blob)
    assert stage.counts == (1, 2, 1)
    assert error.retry_after is None  # the others asked for nothing
    stage.second.default = stage.server.default = status(503, ("Retry-After", "20"))
    error, _ = fails(blob)
    assert error.retry_after == 10


def test_no_host_is_left_alone_for_ever(stage: Stage) -> None:
    health = Health(stage.clock)
    health.failed(RegistryError("x: 503", temporary=True, retry_after=86400), health.claim())
    assert health.held() == HOLD_MAX


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
    with pytest.raises(ImageError, match="other content"):
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
        fake.answer = lambda exchange: release.wait(LIMIT)  # type: ignore[method-assign,assignment]
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
    from pyerofs.hosts import Roots

    roots = Roots((str(tmp_path / "containerd"),), (str(tmp_path / "docker"),))
    hosts = tmp_path / "containerd" / "r.example"
    hosts.mkdir(parents=True)
    (hosts / "hosts.toml").write_text('[host."https://c.example"]')
    (tmp_path / "docker" / "a.example:8443").mkdir(parents=True)
    (tmp_path / "docker" / "a.example:8443" / "own.crt").write_text("PEM")
    options = OCIOptions(mirrors=("https://a.example:8443", "http://b.example/x"), ca=str(ca))
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
        host_config("r.example", OCIOptions(ca=str(tmp_path / "none.pem")), roots)


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
