"""Tokens and their renewal, against a token server that counts."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from email.utils import formatdate

import pytest

from pyerofs.errors import AuthError, RegistryError, UsageError
from pyerofs.http.transport import Transport
from pyerofs.http.url import parse
from pyerofs.registry.auth import Authorization, Authorizer, Challenge
from pyerofs.registry.credentials import Credentials
from pyerofs.secret import Secret
from tests.support.fakeregistry import LIMIT, Exchange, FakeRegistry, raw, status

ME = Credentials("the options", "me", Secret("hush"))


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as fake:
        fake.token_uses = 1000
        yield fake


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(registry: FakeRegistry, clock: Clock) -> Callable[..., Authorizer]:
    def make(credentials: Credentials | None = None, url: str = "") -> Authorizer:
        target = parse(url or f"{registry.url}/v2")
        return Authorizer(Transport(), target, "org/app", lambda: credentials, clock=clock)

    return make


def bearer(registry: FakeRegistry, **parameters: str) -> list[Challenge]:
    return [Challenge("bearer", {"realm": f"{registry.url}/token", **parameters})]


def test_nothing_before_the_first_challenge(make: Callable[..., Authorizer]) -> None:
    assert make(ME).current() is None


def test_anonymous_token(registry: FakeRegistry, make: Callable[..., Authorizer]) -> None:
    authorizer = make()
    challenges = bearer(registry, service="my service", scope="repository:org/app:pull repository:org/base:pull")
    assert authorizer.renew(challenges, None).value.reveal() == "Bearer token-1"
    (seen,) = registry.requests("/token")
    assert seen.path.partition("?")[2].split("&") == [
        "service=my%20service",
        "scope=repository%3Aorg%2Fapp%3Apull",
        "scope=repository%3Aorg%2Fbase%3Apull",
    ]
    assert "authorization" not in seen.headers
    current = authorizer.current()
    assert current and current.value.reveal() == "Bearer token-1"


def test_scope_where_the_challenge_has_none(registry: FakeRegistry, make: Callable[..., Authorizer]) -> None:
    make().renew(bearer(registry), None)
    assert registry.requests("/token")[0].path == "/token?scope=repository%3Aorg%2Fapp%3Apull"


def test_realm_with_a_query(registry: FakeRegistry, make: Callable[..., Authorizer]) -> None:
    make().renew([Challenge("bearer", {"realm": f"{registry.url}/token?a=b"})], None)
    assert registry.requests("/token")[0].path.startswith("/token?a=b&scope=")


def test_credentials_go_to_the_realm(registry: FakeRegistry, make: Callable[..., Authorizer]) -> None:
    registry.basic = ("me", "hush")
    make(ME).renew(bearer(registry), None)
    (seen,) = registry.requests("/token")
    assert seen.headers["authorization"] == "Basic " + base64.b64encode(b"me:hush").decode()
    assert seen.path.endswith("&account=me")


def test_access_token(registry: FakeRegistry, make: Callable[..., Authorizer]) -> None:
    registry.token_answer = lambda token: {"access_token": token}
    assert make().renew(bearer(registry), None).value.reveal() == "Bearer token-1"


def test_identity_token_is_posted(registry: FakeRegistry, make: Callable[..., Authorizer]) -> None:
    registry.refresh_token = "id token"
    authorizer = make(Credentials("file", identity_token=Secret("id token")))
    assert authorizer.renew(bearer(registry, service="s"), None).value.reveal() == "Bearer token-1"
    (seen,) = registry.requests("/token")
    assert (seen.method, seen.path) == ("POST", "/token")
    assert b"grant_type=refresh_token" in seen.body and b"refresh_token=id%20token" in seen.body
    assert b"service=s" in seen.body and b"client_id=pyerofs" in seen.body


def test_registry_token_is_used_as_it_is(registry: FakeRegistry, make: Callable[..., Authorizer]) -> None:
    authorizer = make(Credentials("file", registry_token=Secret("hush")))
    used = authorizer.renew(bearer(registry), None)
    assert used.value.reveal() == "Bearer hush"
    with pytest.raises(AuthError, match="refuses the credentials of file for org/app"):
        authorizer.renew(bearer(registry), used)
    assert registry.seen == []


def test_basic(make: Callable[..., Authorizer], registry: FakeRegistry) -> None:
    authorizer = make(ME)
    used = authorizer.renew([Challenge("basic", {})], None)
    assert used.value.reveal() == "Basic " + base64.b64encode(b"me:hush").decode()
    with pytest.raises(AuthError, match="refuses the credentials of the options"):
        authorizer.renew([Challenge("basic", {})], used)


def test_basic_follows_changed_credentials(registry: FakeRegistry) -> None:
    known = [ME, ME._replace(password=Secret("new"))]
    authorizer = Authorizer(Transport(), parse(f"{registry.url}/v2"), "a", lambda: known.pop(0))
    used = authorizer.renew([Challenge("basic", {})], None)
    assert authorizer.renew([Challenge("basic", {})], used).value != used.value


def test_basic_without_credentials(make: Callable[..., Authorizer]) -> None:
    with pytest.raises(AuthError, match=r"needs a user name and a password: give oci\.username"):
        make().renew([Challenge("basic", {})], None)
    with pytest.raises(AuthError, match="docker-credential-x"):
        make(Credentials("file", helper="docker-credential-x")).renew([Challenge("basic", {})], None)


def test_colon_in_a_user_name(make: Callable[..., Authorizer]) -> None:
    with pytest.raises(UsageError, match="colon"):
        make(ME._replace(username="a:b")).renew([Challenge("basic", {})], None)


def test_bearer_is_preferred_and_unknown_schemes_are_named(
    registry: FakeRegistry, make: Callable[..., Authorizer]
) -> None:
    both = [Challenge("basic", {}), *bearer(registry)]
    assert make(ME).renew(both, None).value.reveal().startswith("Bearer ")
    with pytest.raises(AuthError, match="asks for digest, negotiate authentication"):
        make(ME).renew([Challenge("negotiate", {}), Challenge("digest", {})], None)
    with pytest.raises(AuthError, match="names no way to authenticate"):
        make(ME).renew([], None)


def test_a_refusal_without_a_challenge_uses_the_last_one(
    registry: FakeRegistry, make: Callable[..., Authorizer]
) -> None:
    authorizer = make()
    used = authorizer.renew(bearer(registry), None)
    assert authorizer.renew([], used).value.reveal() == "Bearer token-2"


@pytest.mark.parametrize(
    ("own", "realm", "words"),
    [
        ("http://r.example/v2", "http://169.254.169.254/token", "link-local or metadata"),
        ("http://r.example/v2", "http://2852039166/token", "link-local or metadata"),
        ("http://r.example/v2", "http://metadata.google.internal/token", "link-local or metadata"),
        ("http://r.example/v2", "http://[fe80::1]/token", "link-local or metadata"),
        ("http://r.example/v2", "ftp://auth.example/token", "not a plain http or https URL"),
        ("http://r.example/v2", "http://u:p@auth.example/token", "not a plain http or https URL"),
        ("http://r.example/v2", "", "not a plain http or https URL"),
    ],
)
def test_realms_that_are_not_trusted(make: Callable[..., Authorizer], own: str, realm: str, words: str) -> None:
    with pytest.raises(AuthError, match=words):
        make(ME, own).renew([Challenge("bearer", {"realm": realm})], None)


@pytest.mark.parametrize(
    ("behaviour", "kind", "temporary"),
    [
        (status(401, body=b'{"details":"no hush for you"}'), AuthError, False),
        (status(404), AuthError, False),
        (status(200, body=b"{}"), AuthError, False),
        (status(200, body=b'{"token":7}'), AuthError, False),
        (status(200, body=b"<html>"), AuthError, False),
        (status(503, ("Retry-After", "3")), RegistryError, True),
        (status(429), RegistryError, True),
        (raw(b""), RegistryError, True),
    ],
)
def test_token_server_failures(
    registry: FakeRegistry, make: Callable[..., Authorizer], behaviour: object, kind: type, temporary: bool
) -> None:
    registry.token_behaviour = behaviour  # type: ignore[assignment]  # a fake
    with pytest.raises(kind) as caught:
        make(ME).renew(bearer(registry), None)
    error = caught.value
    assert isinstance(error, RegistryError) and error.temporary is temporary
    assert "hush" not in str(error) and base64.b64encode(b"me:hush").decode() not in str(error)
    assert len(registry.requests("/token")) in (1, 2)  # libcurl itself repeats what a dead connection swallowed


def answering(lifetime: object, issued: float | None = None) -> Callable[[Exchange], None]:
    """A token server whose own clock says 1,000,000."""

    def behave(exchange: Exchange) -> None:
        from datetime import UTC, datetime

        answer = {"token": f"t{len(exchange.fake.seen)}", "expires_in": lifetime}
        if issued is not None:
            answer["issued_at"] = datetime.fromtimestamp(issued, UTC).isoformat()
        exchange.date_time_string = lambda timestamp=None: formatdate(1_000_000, usegmt=True)  # type: ignore[method-assign]  # a fake
        exchange.reply(200, json.dumps(answer).encode())

    return behave


@pytest.mark.parametrize(
    ("lifetime", "issued", "renew_after", "ends_after"),
    [
        (None, None, 45, 60),
        (300, None, 240, 300),
        (2, None, 1.5, 2),
        (300, 1_000_000, 240, 300),
        (300, 1_000_000 - 100, 150, 200),
        (300, 1_000_000 - 301, 240, 300),  # over as it comes: nonsense, its refusal will tell
        (300, 1_000_000 + 50, 240, 300),
        ("300", None, 45, 60),
        (0, None, 45, 60),
        (-5, None, 45, 60),
        (1e300, None, 45, 60),
    ],
)
def test_lifetime(
    registry: FakeRegistry,
    make: Callable[..., Authorizer],
    lifetime: object,
    issued: float | None,
    renew_after: float,
    ends_after: float,
) -> None:
    registry.token_behaviour = answering(lifetime, issued)
    got = make().renew(bearer(registry), None)
    assert (got.renew_at - 1000, got.ends_at - 1000) == (renew_after, ends_after)


def value(authorization: Authorization | None) -> str:
    return authorization.value.reveal() if authorization else ""


def test_renewed_ahead_of_its_end(registry: FakeRegistry, make: Callable[..., Authorizer], clock: Clock) -> None:
    authorizer = make()
    authorizer.renew(bearer(registry), None)
    clock.now += 44
    assert value(authorizer.current()) == "Bearer token-1"
    clock.now += 1
    assert value(authorizer.current()) == "Bearer token-2"
    clock.now += 61
    assert value(authorizer.current()) == "Bearer token-3"


def test_a_failed_early_renewal_is_no_failure(
    registry: FakeRegistry, make: Callable[..., Authorizer], clock: Clock
) -> None:
    authorizer = make()
    authorizer.renew(bearer(registry), None)
    registry.token_behaviour = status(503)
    clock.now += 50
    for _ in range(3):
        assert value(authorizer.current()) == "Bearer token-1"
    assert len(registry.requests("/token")) == 2
    clock.now += 10
    with pytest.raises(RegistryError, match="503"):
        authorizer.current()


def run(count: int, work: Callable[[], object]) -> list[object]:
    results: list[object] = []

    def call() -> None:
        try:
            results.append(work())
        except Exception as error:
            results.append(error)

    threads = [threading.Thread(target=call) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert len(results) == count
    return results


def test_one_thread_renews_for_all(registry: FakeRegistry, make: Callable[..., Authorizer]) -> None:
    authorizer = make()
    first = authorizer.renew(bearer(registry), None)
    results = run(16, lambda: value(authorizer.renew(bearer(registry), first)))
    assert set(results) == {"Bearer token-2"}
    assert len(registry.requests("/token")) == 2


def test_while_one_renews_early_the_others_go_on(
    registry: FakeRegistry, make: Callable[..., Authorizer], clock: Clock
) -> None:
    authorizer = make()
    authorizer.renew(bearer(registry), None)
    asked, release = threading.Event(), threading.Event()

    def slowly(exchange: Exchange) -> None:
        asked.set()
        release.wait(LIMIT)
        exchange.reply(200, b'{"token":"new"}')

    registry.token_behaviour = slowly
    clock.now += 46
    renewer = threading.Thread(target=authorizer.current)
    renewer.start()
    assert asked.wait(LIMIT)
    assert {value(authorizer.current()) for _ in range(5)} == {"Bearer token-1"}
    release.set()
    renewer.join(LIMIT)
    assert value(authorizer.current()) == "Bearer new"
    assert len(registry.requests("/token")) == 2


def test_who_waited_for_a_failed_renewal_gets_its_failure(
    registry: FakeRegistry, make: Callable[..., Authorizer]
) -> None:
    authorizer = make()
    asked, release = threading.Event(), threading.Event()
    waiting = threading.Barrier(6)

    def fail(exchange: Exchange) -> None:
        asked.set()
        release.wait(LIMIT)
        exchange.reply(503, b"", ("Retry-After", "9"))

    registry.token_behaviour = fail
    results: list[BaseException] = []

    def renew(barrier: bool) -> None:
        if barrier:
            waiting.wait(LIMIT)
        try:
            authorizer.renew(bearer(registry), None)
        except RegistryError as error:
            results.append(error)

    threads = [threading.Thread(target=renew, args=(number > 0,)) for number in range(6)]
    for thread in threads:
        thread.start()
    assert asked.wait(LIMIT)
    attempts = threading.Event()
    # The five read the number of attempts before they wait for the lock, which the first one still holds.
    authorizer._lock = Watched(authorizer._lock, 5, attempts)  # type: ignore[assignment]  # a fake
    waiting.wait(LIMIT)
    assert attempts.wait(LIMIT)
    release.set()
    for thread in threads:
        thread.join(LIMIT)
    assert len(registry.requests("/token")) == 1
    assert len(results) == 6 and len(set(map(id, results))) == 6
    assert {getattr(error, "retry_after", None) for error in results} == {9.0}


class Watched:
    """A lock that says when so many have come to take it."""

    def __init__(self, lock: threading.Lock, count: int, arrived: threading.Event) -> None:
        self._lock = lock
        self._left = count
        self._arrived = arrived
        self._guard = threading.Lock()

    def __enter__(self) -> None:
        with self._guard:
            self._left -= 1
            if not self._left:
                self._arrived.set()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_no_repr_shows_a_token() -> None:
    assert "hush" not in repr(Authorization("Bearer hush")) + repr(Authorization("Bearer hush").value)
