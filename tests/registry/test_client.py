"""Authorization, manifests, the choice of the origin, and the trace."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyerofs.errors import AuthError, NotFoundError, RegistryError, UsageError
from pyerofs.http.tls import TLS
from pyerofs.http.transport import Transport
from pyerofs.http.url import parse
from pyerofs.registry.blob import Blob
from pyerofs.registry.client import MANIFEST_CAP, Registry
from pyerofs.registry.endpoint import Endpoint, Origin, origins
from pyerofs.registry.mirror import Mirror
from pyerofs.secret import Secret
from tests.support.blobreader import DATA, SIZE, fails, in_parallel, read, to
from tests.support.fakeregistry import (
    OCI_MANIFEST,
    Certificate,
    FakeRegistry,
    redirect,
    status,
)

ACCEPT = (OCI_MANIFEST, "application/vnd.oci.image.index.v1+json")


def test_anonymous_registry_gets_no_credentials(blob: Blob, server: FakeRegistry) -> None:
    read(blob)
    assert "authorization" not in server.requests()[0].headers


@pytest.mark.parametrize("code", [401, 403])
def test_token_is_renewed_once(blob: Blob, server: FakeRegistry, code: int) -> None:
    server.token_uses, server.basic, server.refusal_status = 3, ("me", "hush"), code
    for _ in range(4):
        read(blob)
    tokens = [seen.headers.get("authorization") for seen in server.requests("/blobs/")]
    assert tokens == [None, *["Bearer token-1"] * 4, *["Bearer token-2"]]
    assert len(server.requests("/token")) == 2


@pytest.mark.parametrize("code", [401, 403])
def test_refused_for_good(blob: Blob, server: FakeRegistry, code: int) -> None:
    server.token_uses, server.refusal_status = 0, code
    error, _ = fails(blob)
    assert type(error) is AuthError and not error.temporary
    assert (len(server.requests("/blobs/")), len(server.requests("/token"))) == (2, 1)
    fails(blob)
    assert (len(server.requests("/blobs/")), len(server.requests("/token"))) == (4, 2)


def test_forbidden_without_a_challenge(blob: Blob, server: FakeRegistry) -> None:
    server.default = status(403, body=b'{"errors":[{"code":"DENIED","message":"not for you"}]}')
    error, _ = fails(blob)
    assert type(error) is AuthError and "403, DENIED: not for you" in str(error)
    assert len(server.seen) == 1


def test_basic_registry(blob: Blob, server: FakeRegistry) -> None:
    server.basic = ("me", "hush")
    read(blob)
    read(blob)
    assert [("authorization" in seen.headers) for seen in server.requests()] == [False, True, True]


def test_wrong_password(blob: Blob, server: FakeRegistry) -> None:
    server.basic = ("me", "other")
    error, _ = fails(blob)
    assert type(error) is AuthError and "401" in str(error)
    assert len(server.seen) == 2


def test_token_server_elsewhere(blob: Blob, server: FakeRegistry, cdn: FakeRegistry) -> None:
    server.token_uses, cdn.basic = 10, ("me", "hush")
    cdn.issue_tokens_for(server)
    read(blob)
    assert "authorization" in cdn.requests("/token")[0].headers
    assert not any("Basic" in seen.headers.get("authorization", "") for seen in server.seen)


def test_many_threads_one_renewal(blob: Blob, server: FakeRegistry) -> None:
    server.token_uses = 10_000
    read(blob)
    server.expire_tokens()
    in_parallel(16, lambda: read(blob))
    assert len(server.requests("/token")) == 2


def test_manifest(registry: Registry, server: FakeRegistry) -> None:
    server.add_manifest("1.0", b'{"layers":[]}', f"{OCI_MANIFEST}; charset=utf-8")
    answer = registry.get_manifest("1.0", ACCEPT)
    assert (answer.body, answer.media_type) == (b'{"layers":[]}', OCI_MANIFEST)
    (seen,) = server.seen
    assert seen.path == "/v2/org/app/manifests/1.0"
    assert seen.headers["accept"] == ", ".join(ACCEPT)


def test_manifest_is_not_there(registry: Registry, server: FakeRegistry) -> None:
    with pytest.raises(NotFoundError) as caught:
        registry.get_manifest("none", ACCEPT)
    assert str(caught.value) == f"{server.host}: manifest none of org/app: 404, MANIFEST_UNKNOWN: manifest unknown"


def test_manifest_too_large(registry: Registry, server: FakeRegistry) -> None:
    server.add_manifest("fits", b"x" * MANIFEST_CAP)
    server.add_manifest("large", b"x" * (MANIFEST_CAP + 1))
    assert len(registry.get_manifest("fits", ACCEPT).body) == MANIFEST_CAP
    with pytest.raises(RegistryError, match="larger than 4 MiB") as caught:
        registry.get_manifest("large", ACCEPT)
    assert not caught.value.temporary


def test_manifest_with_a_token(registry: Registry, server: FakeRegistry) -> None:
    server.token_uses = 2
    server.add_manifest("1", b"{}")
    for _ in range(3):
        registry.get_manifest("1", ACCEPT)
    assert len(server.requests("/token")) == 2


@pytest.mark.parametrize(
    ("host", "insecure", "expected"),
    [
        ("r.example", False, ["https://r.example/v2 True"]),
        ("r.example:5000", False, ["https://r.example:5000/v2 True"]),
        ("r.example:5000", True, ["https://r.example:5000/v2 False", "http://r.example:5000/v2 False"]),
        ("localhost:5000", False, ["http://localhost:5000/v2 True", "https://localhost:5000/v2 True"]),
        ("localhost", False, ["http://localhost/v2 True", "https://localhost/v2 True"]),
        ("127.0.0.1:443", False, ["https://127.0.0.1/v2 True"]),
        ("[::1]:5000", True, ["http://[::1]:5000/v2 False", "https://[::1]:5000/v2 False"]),
    ],
)
def test_origins(host: str, insecure: bool, expected: list[str]) -> None:
    assert [f"{origin.url} {origin.tls.verify}" for origin in origins(host, insecure)] == expected


@pytest.mark.parametrize("host", ["", "a b", "u@h", "h/x y", "h:99999"])
def test_no_host(host: str) -> None:
    with pytest.raises(UsageError, match="is not a registry's host"):
        origins(host, False)


def test_plain_http_is_never_tried_without_leave(server: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyerofs.registry.endpoint.is_loopback", lambda host: False)
    with pytest.raises(RegistryError, match="TLS handshake failed"):
        Registry(server.host, "a", Transport()).get_manifest("1", ACCEPT)
    assert server.seen == []
    server.add_manifest("1", b"{}")
    insecure = Registry(server.host, "a", Transport(), insecure=True)
    for _ in range(2):
        assert insecure.get_manifest("1", ACCEPT).body == b"{}"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate.make(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def secure(certificate: Certificate) -> Iterator[FakeRegistry]:
    with FakeRegistry(certificate=certificate) as fake:
        fake.add_blob(DATA)
        yield fake


def test_loopback_with_tls(secure: FakeRegistry) -> None:
    secure.add_manifest("1", b"{}")
    with pytest.raises(RegistryError, match="not trusted"):
        Registry(secure.host, "a", Transport()).get_manifest("1", ACCEPT)
    insecure = Registry(secure.host, "a", Transport(), insecure=True)
    assert insecure.get_manifest("1", ACCEPT).body == b"{}"


def test_https_never_leads_to_http(secure: FakeRegistry, cdn: FakeRegistry) -> None:
    secure.default = redirect(cdn.url + "{path}")
    blob = Registry(secure.host, "a", Transport(), insecure=True).blob(secure.add_blob(DATA), SIZE)
    error, _ = fails(blob)
    assert "redirects from https to http" in str(error) and not error.temporary
    assert cdn.seen == []


def test_nothing_listens() -> None:
    with FakeRegistry() as gone:
        host = gone.host
    with pytest.raises(RegistryError, match=f"connection to {host} refused") as caught:
        Registry(host, "a", Transport()).get_manifest("1", ACCEPT)
    assert caught.value.temporary


def test_a_400_of_a_plain_registry_is_its_answer(server: FakeRegistry) -> None:
    server.default = status(400)
    blob = Registry(server.host, "a", Transport()).blob(next(iter(server.blobs)), SIZE)
    error, _ = fails(blob)
    assert "400" in str(error)


def test_origin_headers_go_to_the_origin_only(registry: Registry, server: FakeRegistry, cdn: FakeRegistry) -> None:
    origin = Origin(parse(f"{server.url}/v2"), TLS(), (("X-Mine", Secret("1")),))
    registry.mirrors = [Mirror([Endpoint(origin, "org/app", Transport(), lambda: None)], frozenset(["pull"]))]
    server.default = to(cdn)
    read(registry.blob(next(iter(server.blobs)), SIZE))
    assert server.seen[0].headers["x-mine"] == "1"
    assert "x-mine" not in cdn.seen[0].headers


def test_trace(blob: Blob, server: FakeRegistry, cdn: FakeRegistry, trace: list[str]) -> None:
    server.token_uses, server.basic = 1, ("me", "hush")
    server.default = to(cdn)
    cdn.script(status(403))
    read(blob)
    path = f"/v2/org/app/blobs/{blob.digest}"
    steps = [line.partition(" -> ")[0::2] for line in trace]
    assert [step[0] for step in steps] == [
        f"GET {server.url}{path} bytes=1000-50999",
        f"GET {server.url}/token",
        f"GET {server.url}{path} bytes=1000-50999",
        f"GET {cdn.url}{path} bytes=1000-50999",
        f"GET {server.url}{path} bytes=1000-50999",
        f"GET {server.url}/token",
        f"GET {server.url}{path} bytes=1000-50999",
        f"GET {cdn.url}{path} bytes=1000-50999",
    ]
    assert [step[1].partition(",")[0] for step in steps] == ["401", "200", "307", "403", "401", "200", "307", "206"]
    assert "(after 401, with another authorization)" in steps[2][1]
    assert "(the link was refused, 403)" in steps[4][1]


REFERRERS = b'{"schemaVersion":2,"manifests":[]}'
IMAGE = "sha256:" + "ab" * 32
OCI_INDEX = "application/vnd.oci.image.index.v1+json"


def test_what_refers_to_an_image_is_asked_of_the_api(registry: Registry, server: FakeRegistry) -> None:
    server.script(status(200, ("Content-Type", OCI_INDEX), body=REFERRERS))
    answer = registry.get_referrers(IMAGE)
    assert answer is not None and (answer.body, answer.media_type) == (REFERRERS, OCI_INDEX)
    assert [seen.path for seen in server.seen] == [f"/v2/org/app/referrers/{IMAGE}"]


@pytest.mark.parametrize("code", [400, 404, 405])
def test_what_refers_to_an_image_lies_under_a_tag_where_there_is_no_api(
    registry: Registry, server: FakeRegistry, code: int
) -> None:
    server.default = status(code)
    assert registry.get_referrers(IMAGE) is None
    server.add_manifest(IMAGE.replace(":", "-"), REFERRERS, OCI_INDEX)
    answer = registry.get_referrers(IMAGE)
    assert answer is not None and answer.body == REFERRERS


@pytest.mark.parametrize(("code", "kind"), [(403, AuthError), (503, RegistryError)])
def test_what_refers_to_an_image_is_not_known_after_a_refusal(
    registry: Registry, server: FakeRegistry, code: int, kind: type[RegistryError]
) -> None:
    server.default = status(code)
    server.add_manifest(IMAGE.replace(":", "-"), REFERRERS, OCI_INDEX)
    with pytest.raises(kind):
        registry.get_referrers(IMAGE)
