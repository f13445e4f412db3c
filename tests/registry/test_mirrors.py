"""Several hosts for one registry: who is asked for what, in which order, and what follows from a failure."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from pyerofs.errors import AuthError, CorruptError, NotFoundError, RegistryError
from pyerofs.registry.blob import Blob
from pyerofs.registry.client import Registry
from pyerofs.registry.mirror import HOLD_MAX, Health
from pyerofs.retry import ASKED_MAX, delay
from tests.support.blobreader import SIZE, Sink, fails, in_parallel, read
from tests.support.fakeregistry import (
    LIMIT,
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
from tests.support.mirrorstage import DIGEST, Stage, staged


@pytest.fixture
def stage() -> Iterator[Stage]:
    with staged() as stage:
        yield stage


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
        status(503)(exchange)  # type: ignore[arg-type]  # a fake

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
    assert str(error) == f"{stage.server.host} asks not to be contacted for 5.0 s: 429"
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


# Bytes that the reader finds wrong


class Judge(Sink):
    """Keeps pieces back until all are there; `wrong` tells how many answers it does not like."""

    def __init__(self, wrong: int) -> None:
        super().__init__(1000, 51_000)
        self.wrong = wrong
        self.used = False

    def __call__(self, offset: int, piece: bytes) -> bool:
        if offset == self.first:
            self.at = self.first
        super().__call__(offset, piece)
        if self.at == self.end:
            if self.wrong:
                self.wrong -= 1
                raise CorruptError("these are no good")
            self.used = True
        return True


def judged(blob: Blob, wrong: int) -> Judge:
    judge = Judge(wrong)
    blob.read_range(1000, 50_000, judge, whole=judge.whole, begun=lambda: judge.used)
    return judge


def test_a_mirror_whose_bytes_are_wrong_is_followed_by_the_next_and_avoided(stage: Stage) -> None:
    lines: list[str] = []
    blob = Blob(stage.registry().mirrors, DIGEST, SIZE, clock=stage.clock, log=lines.append)
    assert judged(blob, 1).used
    assert stage.counts == (1, 1, 0)
    assert lines == [f"{stage.first.host}: these are no good"]
    assert judged(blob, 0).used
    assert stage.counts == (1, 2, 0)
    stage.clock.now += 61
    assert judged(blob, 0).used
    assert stage.counts == (2, 2, 0)


def test_all_of_them_are_wrong(stage: Stage) -> None:
    blob = stage.blob()
    with pytest.raises(CorruptError, match=f"{stage.server.host}: these are no good") as caught:
        judged(blob, 3)
    assert not caught.value.temporary
    assert stage.counts == (1, 1, 1)


def test_one_that_is_wrong_and_others_that_cannot_be_had(stage: Stage) -> None:
    stage.second.default = stage.server.default = status(503)
    with pytest.raises(RegistryError, match="503") as caught:
        judged(stage.blob(), 1)
    assert caught.value.temporary


def test_a_transfer_that_breaks_before_anything_was_used(stage: Stage) -> None:
    stage.first.script(short(10_000))
    assert judged(stage.blob(), 0).used
    assert stage.counts == (1, 1, 0)


def test_a_mirror_that_lacks_a_range_is_asked_for_the_next(stage: Stage) -> None:
    """A neighbour's cache says so: 404 with the digest of a blob of which it has something."""
    blob = stage.blob()
    stage.first.default = status(404, ("Docker-Content-Digest", DIGEST))
    stage.second.default = status(404)
    read(blob)
    read(blob)
    assert stage.counts == (2, 1, 2)


def test_those_who_were_told_the_same_do_not_come_at_once() -> None:
    waits = {delay(0, 8.0) for _ in range(50)}
    assert len(waits) > 25
    assert min(waits) >= 8.0 and max(waits) <= 12.0
    assert max(delay(0, 86400.0) for _ in range(50)) <= ASKED_MAX * 1.5


def test_what_a_mirror_has_only_the_beginning_of_is_gone_on_with(stage: Stage) -> None:
    blob = stage.blob()
    beginning = f"bytes 1000-20999/{SIZE}"
    stage.first.script(
        lambda exchange: exchange.partial(exchange.blob[1000:21_000], stated=beginning),
        status(404, ("Docker-Content-Digest", DIGEST)),
    )
    stage.second.default = status(404)
    read(blob)
    assert stage.counts == (2, 1, 1)
    assert stage.server.seen[-1].headers["range"] == "bytes=21000-50999"
