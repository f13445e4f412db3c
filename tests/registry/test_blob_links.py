"""Redirects: links that are kept, run out, lead astray; and where Authorization must not go."""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest

from pyerofs.registry.blob import Blob
from pyerofs.registry.client import Registry
from tests.support.blobreader import SIZE, fails, in_parallel, read, to
from tests.support.fakeregistry import (
    Behaviour,
    Exchange,
    FakeRegistry,
    honest,
    redirect,
    short,
    status,
    tagged,
)


def test_redirect_is_resolved_once(blob: Blob, server: FakeRegistry, cdn: FakeRegistry) -> None:
    server.token_uses = 100
    server.default = to(cdn)
    for first in range(0, 50_000, 10_000):
        read(blob, first, 10_000)
    assert len(server.requests("/blobs/")) == 2  # one of them without a token
    assert len(cdn.seen) == 5
    assert not any("authorization" in seen.headers for seen in cdn.seen)


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_kinds_of_redirects(blob: Blob, server: FakeRegistry, cdn: FakeRegistry, code: int) -> None:
    server.default = redirect(cdn.url + "{path}", code)
    read(blob)


def test_authorization_stays_at_its_origin(
    blob: Blob, server: FakeRegistry, cdn: FakeRegistry, trace: list[str]
) -> None:
    """Also when the way leads back, by another name, and through the other host."""
    server.basic = ("me", "hush")
    cdn.script(redirect(server.url + "{path}&2"))
    server.script(to(cdn), redirect(f"{server.url.replace('127.0.0.1', 'localhost')}{{path}}"))
    read(blob)
    names = [("localhost" in seen.headers["host"], "authorization" in seen.headers) for seen in server.seen]
    # Without and with; back from the CDN; "localhost" is another host, and refuses; resolved again.
    assert names == [(False, False), (False, True), (False, True), (True, False), (False, True)]
    assert not any("authorization" in seen.headers for seen in cdn.seen)


def test_redirect_within_the_origin_keeps_the_authorization(blob: Blob, server: FakeRegistry) -> None:
    server.basic = ("me", "hush")
    server.script(redirect("{path}"))
    read(blob)
    assert [("authorization" in seen.headers) for seen in server.seen] == [False, True, True]


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410])
def test_link_that_ran_out_is_resolved_again(blob: Blob, server: FakeRegistry, cdn: FakeRegistry, code: int) -> None:
    server.default = to(cdn)
    read(blob)
    cdn.script(status(code, ("WWW-Authenticate", f'Bearer realm="{cdn.url}/token"')))
    read(blob)
    assert len(server.seen) == 2
    assert len(cdn.requests("/token")) == 0  # only the registry's own challenge is answered
    cdn.default = status(code)
    error, _ = fails(blob)
    assert not error.temporary
    assert (len(server.seen), len(cdn.seen)) == (3, 5)


def test_link_and_token_ran_out(blob: Blob, server: FakeRegistry, cdn: FakeRegistry) -> None:
    server.token_uses, server.default = 100, to(cdn)
    read(blob)
    server.expire_tokens()
    cdn.script(status(403))
    read(blob)
    assert len(server.requests("/token")) == 2


@pytest.mark.parametrize("behaviour", [status(503), short(10), status(416)])
def test_link_survives_other_failures(
    blob: Blob, server: FakeRegistry, cdn: FakeRegistry, behaviour: Behaviour
) -> None:
    server.default = to(cdn)
    cdn.script(behaviour)
    fails(blob)
    read(blob)
    assert len(server.seen) == 1


def test_dead_link_host_is_forgotten(blob: Blob, server: FakeRegistry) -> None:
    server.script(redirect("http://127.0.0.1:9/{path}"))
    error, _ = fails(blob)
    assert error.temporary and "127.0.0.1:9" in str(error)
    read(blob)
    assert len(server.seen) == 2


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_link_is_renewed_before_it_ends(registry: Registry, server: FakeRegistry, cdn: FakeRegistry) -> None:
    clock = Clock()
    signed = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(1_000_000))

    def behave(exchange: Exchange) -> None:
        exchange.date_time_string = lambda timestamp=None: formatdate(1_000_100, usegmt=True)  # type: ignore[method-assign]  # a fake
        to(cdn, f"?X-Amz-Date={signed}&X-Amz-Expires=400")(exchange)

    server.default = behave
    blob = Blob(registry.mirrors, next(iter(server.blobs)), SIZE, clock=clock)
    read(blob)
    clock.now = 269
    read(blob)
    assert len(server.seen) == 1
    clock.now = 271  # 300 s were left, less the margin of 30
    read(blob)
    assert len(server.seen) == 2


def test_many_threads_one_resolution(blob: Blob, server: FakeRegistry, cdn: FakeRegistry) -> None:
    server.default = to(cdn)
    read(blob)
    next(iter(blob._copies.values()))._link = None
    in_parallel(16, lambda: read(blob))
    assert len(server.seen) == 2


def test_registry_that_stops_to_redirect(blob: Blob, server: FakeRegistry, cdn: FakeRegistry) -> None:
    server.script(to(cdn))
    cdn.script(status(403))
    read(blob)
    read(blob)
    assert (len(server.seen), len(cdn.seen)) == (3, 1)


def test_loops_end(blob: Blob, server: FakeRegistry, cdn: FakeRegistry) -> None:
    server.default = to(cdn)
    cdn.default = redirect(f"{cdn.url}/loop")
    error, count = fails(blob)
    assert "more than 5 redirects" in str(error) and not error.temporary and count == 0
    assert (len(server.seen), len(cdn.seen)) == (1, 5)


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("http://169.254.169.254/latest/meta-data", "link-local or metadata"),
        ("http://metadata.google.internal/", "link-local or metadata"),
        ("file:///etc/passwd", "not a plain http or https URL"),
        ("http://me:hush@127.0.0.1/", "not a plain http or https URL"),
        ("", "without saying where to"),
    ],
)
def test_redirects_that_are_not_followed(blob: Blob, server: FakeRegistry, location: str, words: str) -> None:
    server.default = redirect(location)
    error, _ = fails(blob)
    assert words in str(error) and not error.temporary
    assert len(server.seen) == 1


def test_etag_that_changes(blob: Blob, server: FakeRegistry, cdn: FakeRegistry) -> None:
    server.default = to(cdn)
    cdn.script(tagged('"one"'), tagged('W/"weak"'), honest, tagged('"one"'), tagged('"two"'), tagged('"two"'))
    for _ in range(4):
        read(blob)
    error, count = fails(blob)
    assert error.temporary and "ETag" in str(error) and count == 0
    read(blob)
    assert len(server.seen) == 2  # the link was resolved again, and what it says then counts
