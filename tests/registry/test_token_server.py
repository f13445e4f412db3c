"""The way to a token server: redirects of it, a realm in plain http, and a registry that calls an old token a 400."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyerofs.errors import AuthError, RegistryError
from pyerofs.http.tls import TLS
from pyerofs.http.transport import Transport
from pyerofs.http.url import parse
from pyerofs.registry.auth import Authorizer, Challenge
from pyerofs.registry.client import Registry
from pyerofs.registry.credentials import Credentials
from pyerofs.registry.redirect import HOPS_MAX
from pyerofs.secret import Secret
from tests.support.fakeregistry import Certificate, FakeRegistry, raw, redirect, status
from tests.support.needs import need
from tests.support.sinks import into

ME = Credentials("the options", "me", Secret("hush"))
BASIC = "Basic " + base64.b64encode(b"me:hush").decode()


@pytest.fixture
def fake() -> Iterator[FakeRegistry]:
    with FakeRegistry() as fake:
        fake.token_uses = 1000
        yield fake


@pytest.fixture
def other() -> Iterator[FakeRegistry]:
    with FakeRegistry() as other:
        other.token_uses = 1000
        yield other


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[FakeRegistry]:
    need("openssl", "openssl")
    with FakeRegistry(certificate=Certificate.make(tmp_path)) as secure:
        secure.token_uses = 1000
        yield secure


def token(
    realm: str, registry: str = "", *, credentials: Credentials | None = ME, verify: bool = True, ca: Path | None = None
) -> str:
    tls = TLS(ca=(str(ca / "cert.pem"),) if ca else (), verify=verify)
    own = parse(registry or realm)
    authorizer = Authorizer(Transport(connect_timeout=5), own, "org/app", lambda: credentials, tls=tls)
    return authorizer.renew([Challenge("bearer", {"realm": realm})], None).value.reveal()


def elsewhere(to: FakeRegistry) -> Callable[..., str]:
    return lambda exchange: f"{to.url}/token?{exchange.path.partition('?')[2]}"


# Redirects


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirects_within_a_host(fake: FakeRegistry, code: int) -> None:
    """The credentials go along."""
    fake.basic = ("me", "hush")
    fake.script(redirect("/token?from={path}", code))
    fake._admitted = lambda exchange: True  # type: ignore[method-assign]  # /moved is no blob that wants a token
    assert token(f"{fake.url}/moved") == "Bearer token-1"
    (seen,) = fake.requests("/token")
    assert (seen.method, seen.headers["authorization"]) == ("GET", BASIC)


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirects_to_another_host_get_no_credentials(fake: FakeRegistry, other: FakeRegistry, code: int) -> None:
    fake.token_behaviour = redirect(elsewhere(other), code)
    assert token(f"{fake.url}/token") == "Bearer token-1"
    assert fake.requests("/token")[0].headers["authorization"] == BASIC
    (seen,) = other.requests("/token")
    assert "authorization" not in seen.headers
    assert "scope=repository%3Aorg%2Fapp%3Apull" in seen.path


def test_credentials_do_not_come_back(fake: FakeRegistry, other: FakeRegistry) -> None:
    """Whoever was given none cannot let them be sent anywhere."""
    fake.token_behaviour = redirect(elsewhere(other))
    other.token_behaviour = redirect(f"{fake.url}/elsewhere")
    with pytest.raises(RegistryError):
        token(f"{fake.url}/token")
    assert all("authorization" not in seen.headers for seen in fake.requests("/elsewhere"))


@pytest.mark.parametrize("code", [301, 302, 307, 308])
def test_an_identity_token_stays_a_post_on_its_host(fake: FakeRegistry, code: int) -> None:
    fake.refresh_token = "id token"
    fake._admitted = lambda exchange: True  # type: ignore[method-assign]  # a fake
    fake.script(redirect("/token", code))
    assert token(f"{fake.url}/moved", credentials=Credentials("file", identity_token=Secret("id token")))
    assert b"refresh_token=id%20token" in fake.requests("/token")[0].body


@pytest.mark.parametrize("code", [301, 303, 307])
def test_an_identity_token_goes_to_no_other_host(fake: FakeRegistry, other: FakeRegistry, code: int) -> None:
    fake.token_behaviour = redirect(elsewhere(other), code)
    with pytest.raises(AuthError, match="gets no identity token"):
        token(f"{fake.url}/token", credentials=Credentials("file", identity_token=Secret("id token")))
    assert other.seen == []


def test_so_many_redirects_and_no_more(fake: FakeRegistry) -> None:
    fake.token_behaviour = redirect("/token")
    with pytest.raises(AuthError, match=f"more than {HOPS_MAX} redirects"):
        token(f"{fake.url}/token")
    assert len(fake.requests("/token")) == 1 + HOPS_MAX


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("http://169.254.169.254/token", "link-local or metadata"),
        ("ftp://h/", "not a plain http or https URL"),
        ("", "without saying where"),
    ],
)
def test_redirects_that_are_not_followed(fake: FakeRegistry, where: str, words: str) -> None:
    fake.token_behaviour = redirect(where)
    with pytest.raises(RegistryError, match=words):
        token(f"{fake.url}/token")


def test_no_redirect_leaves_https(secure: FakeRegistry, fake: FakeRegistry, tmp_path: Path) -> None:
    secure.token_behaviour = redirect(elsewhere(fake))
    with pytest.raises(RegistryError, match="redirects from https to http"):
        token(f"{secure.url}/token", ca=tmp_path)
    assert fake.seen == []


# A realm in plain http


def test_an_http_realm_of_an_https_registry_is_asked_by_https(secure: FakeRegistry, tmp_path: Path) -> None:
    assert token(f"http://{secure.host}/token", "https://r.example/v2", ca=tmp_path) == "Bearer token-1"
    assert len(secure.requests("/token")) == 1


def test_an_http_realm_that_speaks_no_https(fake: FakeRegistry) -> None:
    """What is to be changed is said, and nothing is sent in the clear."""
    with pytest.raises(RegistryError, match=rf"http://{fake.host}/token cannot be reached by https .*oci\.insecure"):
        token(f"{fake.url}/token", "https://r.example/v2")
    assert fake.seen == []
    assert token(f"{fake.url}/token", "https://r.example/v2", verify=False) == "Bearer token-1"


# A token that has run out, called a 400


def test_a_400_to_a_token_is_renewed_once(fake: FakeRegistry) -> None:
    data = b"bytes" * 100
    digest = fake.add_blob(data)
    blob = Registry(fake.host, "org/app", Transport(), credentials=lambda: None).blob(digest, len(data))

    def read() -> bytes:
        got = bytearray()
        blob.read_range(0, len(data), into(got))
        return bytes(got)

    expired = status(400, body=b'{"errors":[{"code":"DENIED","message":"Your Authorization Token is invalid."}]}')
    assert read() == data
    fake.script(expired)
    assert read() == data
    assert len(fake.requests("/token")) == 2
    fake.script(expired, expired)
    with pytest.raises(RegistryError, match="400, DENIED: Your Authorization Token is invalid"):
        read()
    assert len(fake.requests("/token")) == 3


@pytest.mark.parametrize("behaviour", [status(401), status(404)])
def test_a_400_stays_one_where_there_is_no_other_token(fake: FakeRegistry, behaviour: Callable[..., None]) -> None:
    fake.add_manifest("1.0", b"{}")
    registry = Registry(fake.host, "org/app", Transport(), credentials=lambda: None)
    registry.get_manifest("1.0", ["*/*"])
    fake.token_behaviour = behaviour
    fake._manifest = lambda exchange, reference: exchange.reply(400, b"")  # type: ignore[method-assign]  # a fake
    with pytest.raises(RegistryError, match=r"manifest 1\.0 of org/app: 400"):
        registry.get_manifest("1.0", ["*/*"])


@pytest.mark.parametrize(("code", "tokens"), [("DIGEST_INVALID", 1), ("MANIFEST_INVALID", 1), ("DENIED", 2)])
def test_a_400_that_says_what_is_wrong_with_what_was_sent(fake: FakeRegistry, code: str, tokens: int) -> None:
    registry = Registry(fake.host, "org/app", Transport(), credentials=lambda: None)
    fake.add_manifest("1.0", b"{}")
    registry.get_manifest("1.0", ["*/*"])
    body = f'{{"errors":[{{"code":"{code}"}}]}}'.encode()
    fake._manifest = lambda exchange, reference: exchange.reply(400, body)  # type: ignore[method-assign]  # a fake
    with pytest.raises(RegistryError, match=f"400, {code}"):
        registry.get_manifest("1.0", ["*/*"])
    assert len(fake.requests("/token")) == tokens


def test_a_400_without_a_token_is_one(fake: FakeRegistry) -> None:
    fake.token_uses = None
    fake._manifest = lambda exchange, reference: exchange.reply(400, b"")  # type: ignore[method-assign]  # a fake
    with pytest.raises(RegistryError, match="400"):
        Registry(fake.host, "org/app", Transport(), credentials=lambda: None).get_manifest("1.0", ["*/*"])


def test_a_dead_token_server_is_a_bad_time(fake: FakeRegistry) -> None:
    fake.token_behaviour = raw(b"")
    with pytest.raises(RegistryError) as caught:
        token(f"{fake.url}/token")
    assert caught.value.temporary


# Suspended machines


def test_ends_are_counted_while_the_machine_is_suspended(fake: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of tokens and of links: CLOCK_BOOTTIME goes on where CLOCK_MONOTONIC stands still."""
    asleep = 0.0
    really = time.clock_gettime

    def clock_gettime(clock: int) -> float:
        return really(clock) + (asleep if clock == time.CLOCK_BOOTTIME else 0.0)

    monkeypatch.setattr(time, "clock_gettime", clock_gettime)
    authorizer = Authorizer(Transport(), parse(f"{fake.url}/v2"), "org/app", lambda: None)
    fake.token_answer = lambda text: {"token": text, "expires_in": 300}
    authorizer.renew([Challenge("bearer", {"realm": f"{fake.url}/token"})], None)
    asleep = 301.0
    current = authorizer.current()
    assert current and current.value.reveal() == "Bearer token-2"

    with FakeRegistry() as store:
        digest = store.add_blob(b"x" * 100)
        fake.token_uses = None
        fake.default = redirect(lambda exchange: f"{store.url}{exchange.path}?Expires={int(time.time()) + 300}")
        blob = Registry(fake.host, "org/app", Transport(), credentials=lambda: None).blob(digest, 100)
        for seconds, asked in ((301.0, 1), (301.0, 1), (700.0, 2)):
            asleep = seconds
            blob.read_range(0, 100, lambda _offset, _piece: True)
            assert len(fake.requests("/blobs/")) == asked
