"""Every bad day that a registry has, as its reader sees it: right bytes, or an error within the stated time, after a
known number of requests. What one answer is worth is in test_blob.py; random sequences are in test_faults_random.py.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyerofs.errors import AuthError, NotFoundError, PyerofsError, RegistryError
from tests.support.blobs import Rig
from tests.support.fakeregistry import (
    Behaviour,
    Exchange,
    FakeRegistry,
    at_most,
    chunked,
    content_range,
    encoded,
    honest,
    just_the_range,
    raw,
    redirect,
    reset,
    short,
    silent,
    stall,
    status,
    tagged,
    whole,
)
from tests.support.scene import until

SIZE = 600_000
OFFSET, LENGTH = 200_000, 100_000
SLACK = 3.0  # seconds by which a loaded machine may be late
RELEASE = threading.Event()


@pytest.fixture(autouse=True)
def released() -> Iterator[None]:
    RELEASE.clear()
    yield
    RELEASE.set()


class Case:
    """One image, opened; `ask` is a read and says how long it took and which requests it made."""

    def __init__(self, fake: FakeRegistry, directory: Path, options: str = "oci.timeout=20") -> None:
        self.rig = Rig(fake, directory)
        self.reference, self.data = self.rig.publish(SIZE)
        self.blob = self.rig.open(self.reference, f"oci=0,{options}")
        self.seconds = 0.0
        self._before = len(self.rig.ranges)

    def read(self) -> None:
        started = time.monotonic()
        try:
            assert self.blob.pread(LENGTH, OFFSET) == self.data[OFFSET : OFFSET + LENGTH]
        finally:
            self.seconds = time.monotonic() - started

    def fails(self) -> PyerofsError:
        with pytest.raises(PyerofsError) as caught:
            self.read()
        assert "\n" not in str(caught.value)
        return caught.value

    @property
    def asked(self) -> list[tuple[int, int]]:
        return self.rig.ranges[self._before :]


@pytest.fixture
def make(fake: FakeRegistry, tmp_path: Path) -> Iterator[Callable[..., Case]]:
    made: list[Case] = []

    def make(*options: str) -> Case:
        made.append(Case(fake, tmp_path, *options))
        return made[-1]

    yield make
    RELEASE.set()
    for case in made:
        case.blob.close()


def longer(exchange: Exchange) -> None:
    """A 206 with more than the range, all of it declared."""
    first, end = exchange.range
    exchange.partial(exchange.blob[first : end + 4096])


def other_bytes(exchange: Exchange) -> None:
    first, end = exchange.range
    exchange.partial(bytes(end - first), stated=f"bytes {first - 4096}-{end - 4097}/{SIZE}")


# A fault that passes: how many requests it takes until the bytes are here.
PASSING: list[tuple[str, tuple[Behaviour, ...], int]] = [
    ("500", (status(500),), 2),
    ("502", (status(502),), 2),
    ("503", (status(503, body=b"<html>busy</html>"),), 2),
    ("504", (status(504),), 2),
    ("408", (status(408),), 2),
    ("429", (status(429),), 2),
    ("429 with Retry-After", (status(429, ("Retry-After", "1")),), 2),
    ("three in a row", (status(503), reset, status(500)), 4),
    ("reset", (reset,), 2),
    ("closed without an answer", (raw(b""),), 2),
    ("garbage", (raw(b"\x00\x01\x02 no HTTP at all\r\n\r\n"),), 2),
    ("half a head", (raw(b"HTTP/1.1 206 Partial Content\r\nContent-Ra"),), 2),
    ("no byte of the body", (short(0),), 2),
    ("a short body", (short(50_001),), 2),
    ("a short chunked body", (chunked(206, b"", 30_000),), 2),
    ("a body that is too long", (longer,), 2),
    ("a chunked body that is too long", (chunked(206, b"x" * 5000),), 1),  # the read has its bytes before it shows
    ("a stall before the head", (silent(RELEASE),), 2),
    ("a stall within the body", (stall(RELEASE, 40_000),), 2),
    ("compressed", (encoded("gzip"),), 2),
    ("without Content-Range", (content_range(""),), 2),
    ("Content-Range of another place", (other_bytes,), 2),
    ("broken Content-Range", (content_range("bytes 7-x/y"),), 2),
    ("the whole blob", (whole(),), 1),
    ("the whole blob, chunked", (chunked(200),), 1),
    ("the whole blob, cut short", (lambda e: e.reply(200, e.blob[:70_000], length=SIZE),), 2),
    ("a login page", (lambda e: e.reply(200, b"<html>log in</html>"),), 2),
    ("200 with the range alone, stated", (just_the_range(),), 1),
    ("200 with the range alone, stated, chunked", (just_the_range(length=False),), 1),
    ("200 with the range alone, unstated", (just_the_range(stated=False),), 2),
    ("200 with the range alone, unstated, chunked", (just_the_range(stated=False, length=False),), 1),
    ("200 with another range", (lambda e: e.reply(200, e.blob[:5000], ("Content-Range", f"bytes 0-4999/{SIZE}")),), 2),
    ("200 with a broken Content-Range", (whole(("Content-Range", "bytes x")),), 2),
    ("half of the range, stated", (at_most(65536),), 2),
    ("almost nothing of the range, stated", (at_most(100),), 2),
    ("another ETag", (tagged('"one"'), tagged('"two"')), 1),
]


@pytest.mark.parametrize(("behaviours", "requests"), [case[1:] for case in PASSING], ids=[case[0] for case in PASSING])
def test_a_fault_that_passes(
    make: Callable[..., Case], fake: FakeRegistry, behaviours: tuple[Behaviour, ...], requests: int
) -> None:
    case = make("oci.timeout=8")  # a stall is one of 2 s then
    fake.script(*behaviours)
    case.read()
    assert case.seconds < 8 + SLACK
    ours = [(first, last) for first, last in case.asked if first < OFFSET + LENGTH and last >= OFFSET]
    # The read is cut at granules, and what was right of a broken answer is not asked for again.
    assert ours[0][0] == OFFSET // 4096 * 4096
    assert len(ours) == requests
    before = len(case.asked)
    case.read()
    assert len(case.asked) == before


def test_a_broken_transfer_goes_on_where_it_stopped(make: Callable[..., Case], fake: FakeRegistry) -> None:
    case = make()
    fake.script(short(50_001), short(20_000))
    case.read()
    start = OFFSET // 4096 * 4096
    second = start + 50_001 // 4096 * 4096
    third = second + 20_000 // 4096 * 4096
    assert [first for first, _ in case.asked][:3] == [start, second, third]


def test_a_stalled_transfer_goes_on_where_it_stopped(make: Callable[..., Case], fake: FakeRegistry) -> None:
    case = make("oci.timeout=8")
    fake.script(stall(RELEASE, 40_960))
    case.read()
    start = OFFSET // 4096 * 4096
    assert [first for first, _ in case.asked][:2] == [start, start + 40_960]
    until(lambda: any("bytes/s" in line for line in case.rig.log), "a line of the stalled one")


def test_progress_starts_the_pauses_anew(make: Callable[..., Case], fake: FakeRegistry) -> None:
    """A registry that gives little at a time is slow, but not dead: waits do not grow as long as it gives something."""
    case = make()
    fake.default = short(8192)
    case.read()
    assert case.seconds < 14 * 0.1 + SLACK


# A fault that stays: the reader gets an error in time, and the next one may be luckier.
STAYING: list[tuple[str, Behaviour, str]] = [
    ("503", status(503), "503"),
    ("429 with a long Retry-After", status(429, ("Retry-After", "3600")), "429"),
    ("reset", reset, ""),
    ("garbage", raw(b"no HTTP at all\r\n\r\n"), ""),
    ("no byte of the body", short(0), ""),
    ("stall", silent(RELEASE), ""),
    ("compressed", encoded("br"), ""),
    ("without Content-Range", content_range(""), ""),
    ("a login page", lambda e: e.reply(200, b"<html>log in</html>"), ""),
]


@pytest.mark.parametrize(("behaviour"), [case[1] for case in STAYING], ids=[case[0] for case in STAYING])
def test_a_fault_that_stays(make: Callable[..., Case], fake: FakeRegistry, behaviour: Behaviour) -> None:
    case = make("oci.timeout=1.5")
    fake.default = behaviour
    for _ in range(2):
        error = case.fails()
        assert isinstance(error, RegistryError)
        assert 1.5 <= case.seconds < 1.5 + SLACK
    # Pauses of 0.05 s at the least, then of 0.09 s, since they are limited to an eighth of the time.
    assert len(case.asked) <= 36


def test_the_next_read_tries_afresh(make: Callable[..., Case], fake: FakeRegistry) -> None:
    case = make("oci.timeout=1")
    fake.default = status(503)
    case.fails()
    fake.default = honest
    case.read()
    assert case.seconds < 1 + SLACK


def test_retry_after_is_kept(make: Callable[..., Case], fake: FakeRegistry) -> None:
    case = make()
    fake.script(status(503, ("Retry-After", "2")))
    case.read()
    assert 2 <= case.seconds < 2 + SLACK
    assert len(case.asked) == 2


def refusing(code: int) -> Behaviour:
    return status(code, body=b'{"errors":[{"code":"DENIED","message":"no"}]}')


FINAL: list[tuple[str, Behaviour, type[PyerofsError], str, int]] = [
    ("404", refusing(404), NotFoundError, "404, DENIED: no", 1),
    ("400", refusing(400), RegistryError, "400, DENIED: no", 1),
    ("401 without a challenge", refusing(401), AuthError, "401, DENIED: no", 1),
    ("403 without a challenge", refusing(403), AuthError, "403, DENIED: no", 1),
    ("410", refusing(410), RegistryError, "410", 1),
    ("416", status(416), RegistryError, "416", 1),
    ("another size", content_range(f"bytes 196608-327679/{SIZE + 1}"), RegistryError, "600001 bytes long there", 1),
    ("another digest", tagged(f'"sha256:{"0" * 64}"'), RegistryError, "another digest", 1),
    ("a loop", redirect("{path}?x"), RegistryError, "more than 5 redirects", 6),
    ("a redirect to nowhere", redirect(""), RegistryError, "without saying where to", 1),
    ("a redirect to a file", redirect("file:///etc/passwd"), RegistryError, "not a plain http or https URL", 1),
    ("a redirect to metadata", redirect("http://169.254.169.254/"), RegistryError, "link-local", 1),
]


@pytest.mark.parametrize(
    ("behaviour", "kind", "words", "requests"), [case[1:] for case in FINAL], ids=[case[0] for case in FINAL]
)
def test_a_final_answer_fails_at_once(
    make: Callable[..., Case],
    fake: FakeRegistry,
    behaviour: Behaviour,
    kind: type[PyerofsError],
    words: str,
    requests: int,
) -> None:
    case = make("oci.timeout=60")
    fake.default = behaviour
    error = case.fails()
    assert type(error) is kind and words in str(error)
    assert case.seconds < SLACK
    assert len(case.asked) == requests
    fake.default = honest
    case.read()


def test_a_token_that_is_refused_for_good(make: Callable[..., Case], fake: FakeRegistry) -> None:
    case = make("oci.timeout=60")
    fake.token_uses = 0
    for code in (401, 403):
        fake.refusal_status = code
        assert type(case.fails()) is AuthError
        assert case.seconds < SLACK
    assert len(fake.requests("/token")) == 2


def test_a_token_server_that_fails_for_a_while(make: Callable[..., Case], fake: FakeRegistry) -> None:
    case = make()
    fake.token_uses = 100
    failures = [status(503), reset, raw(b""), status(429)]
    give = fake._token

    def token(exchange: Exchange) -> None:
        (failures.pop() if failures else give)(exchange)

    fake.token_behaviour = token
    case.read()
    assert len(fake.requests("/token")) >= 5
    assert failures == []


def test_links_that_are_over_all_the_time(make: Callable[..., Case], fake: FakeRegistry) -> None:
    """Each link is good for one request; every second one has run out before it is used."""
    case = make()
    served = 0

    def cdn(exchange: Exchange) -> None:
        nonlocal served
        if "link" not in exchange.path:
            redirect(f"{{path}}?link={len(fake.seen)}")(exchange)
            return
        served += 1
        (status(403) if served % 2 else honest)(exchange)

    fake.default = cdn
    case.read()
    assert served >= 2
