"""Random bad days, in sequence: every byte that is served is right, and every read ends within its time.

A machine of a registry with two mirrors, a CDN behind each, tokens, and readers; between the reads things break and
heal. PYEROFS_SEQUENCES=2000 runs so many sequences instead of the few of `make test`; PYEROFS_SEED repeats a run.
"""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from pyerofs import retry
from pyerofs.config.options import ReadOptions
from pyerofs.errors import PyerofsError
from pyerofs.export.base import Export
from pyerofs.export.file import BlobFile
from pyerofs.http.transport import Transport
from pyerofs.registry import mirror, range_response
from pyerofs.registry.client import Registry
from pyerofs.registry.hosts import Host, HostConfig, parse_api_url
from pyerofs.source.raw import RawSource
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
    stall,
    status,
    tagged,
    whole,
)

SEQUENCES = int(os.environ.get("PYEROFS_SEQUENCES", "50"))
SEED = int(os.environ.get("PYEROFS_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
STEPS = 10
SIZE = 6_000_001
DATA = random.Random(4).randbytes(SIZE)
TIMEOUT = 0.5  # seconds for a read
SLACK = 4.0  # seconds by which a loaded machine may be late
RELEASE = threading.Event()  # set: what stalls is let go at once


def wrong_bytes_elsewhere(exchange: Exchange) -> None:
    """Right in itself, but not what was asked for."""
    first, end = exchange.range
    at = max(0, first - 4096)
    exchange.partial(exchange.blob[at : at + end - first], stated=f"bytes {at}-{at + end - first - 1}/{SIZE}")


def zeros_too_long(exchange: Exchange) -> None:
    exchange.partial(bytes(exchange.range[1] - exchange.range[0] + 1))


def broken_off(exchange: Exchange) -> None:
    """The beginning of the whole blob, without a length, and then nothing."""
    exchange.reply(200, b"", ("Transfer-Encoding", "chunked"))
    exchange.wfile.write(f"{SIZE:x}\r\n".encode() + exchange.blob[: SIZE // 2])
    exchange.close_connection = True


# Everything that a server can do wrong without it being undetectable: a lie in all fields at once is not here.
FAULTS: dict[str, Behaviour] = {
    **{
        f"status {code}": status(code)
        for code in (400, 401, 403, 404, 408, 410, 416, 429, 500, 502, 503, 504, 204, 304)
    },
    "reset": reset,
    "closed": raw(b""),
    "garbage": raw(b"\x16\x03\x01 what is this?\r\n\r\n"),
    "half a head": raw(b"HTTP/1.1 206 Partial Content\r\nContent-Length: 4"),
    "nothing of the body": short(0),
    "a byte": short(1),
    "a part": short(30_000),
    "a chunked part": chunked(206, b"", 1),
    "chunked and too long": chunked(206, b"x"),
    "whole": whole(),
    "whole, chunked": chunked(200),
    "whole, short": lambda e: e.reply(200, e.blob[:50_000], length=SIZE),
    "whole and more": chunked(200, b"x"),
    "whole, chunked, short": chunked(200, b"", 3_000_000),
    "whole, chunked, broken off": broken_off,
    "200, the range, stated": just_the_range(),
    "200, the range, stated, chunked": just_the_range(length=False),
    "200, the range, unstated": just_the_range(stated=False),
    "200, the range, unstated, chunked": just_the_range(stated=False, length=False),
    "a part, stated": at_most(30_000),
    "almost nothing, stated": at_most(10),
    "login page": lambda e: e.reply(200, b"<html>log in</html>"),
    "gzip": encoded("gzip"),
    "no range stated": content_range(""),
    "odd range stated": content_range("bytes 0-9/10"),
    "elsewhere": wrong_bytes_elsewhere,
    "too long": zeros_too_long,
    "other file": tagged(f'"sha256:{"0" * 64}"'),
    "tag a": tagged('"a"'),
    "tag b": tagged('"b"'),
    "redirected to nowhere": redirect("http://127.0.0.1:9/{path}"),
    "redirected to itself": redirect("{path}?again"),
    "redirected to metadata": redirect("http://169.254.169.254/"),
    "Retry-After": status(503, ("Retry-After", "1")),
}
OF_TOKEN_SERVERS = ("status 503", "status 401", "reset", "garbage", "redirected to itself", "redirected to metadata")
# The answers of registries and caches that are well, each in its way.
MIXTURE: dict[str, Behaviour] = {
    "honest": honest,
    **{
        name: FAULTS[name]
        for name in (
            "200, the range, stated",
            "200, the range, stated, chunked",
            "200, the range, unstated",
            "200, the range, unstated, chunked",
            "a part, stated",
            "almost nothing, stated",
            "a part",
            "a byte",
            "whole",
            "whole, chunked",
            "whole, short",
            "whole, chunked, short",
            "whole, chunked, broken off",
            "status 503",
            "reset",
        )
    },
}
REQUESTS_PER_MIB = 240  # the parts have 30,000 bytes, and of six kinds of answer one brings something
REQUESTS_PER_READ = 60  # in its time 15 attempts have room, each at two places, with a range and without
STALLS: dict[str, Behaviour] = {"stall": stall(RELEASE, 0), "stall within": stall(RELEASE, 10_000)}


class Cluster:
    """Servers that all sequences share: starting them anew for each would be most of the work."""

    def __init__(self) -> None:
        self.cdn = FakeRegistry()
        self.hosts = [FakeRegistry() for _ in range(3)]  # two mirrors, and the registry
        self.digest = ""

    def __enter__(self) -> Cluster:
        for fake in (self.cdn, *self.hosts):
            self.digest = fake.add_blob(DATA)
            fake.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        RELEASE.set()
        for fake in (self.cdn, *self.hosts):
            fake.__exit__()

    def calm(self) -> None:
        for fake in (self.cdn, *self.hosts):
            fake.default, fake.token_uses, fake.token_behaviour, fake.refusal_status = honest, None, None, 401
            fake._script.clear()
            fake.seen.clear()


def make_machine(cluster: Cluster, directory: Path, statistics: list[int]) -> type[RuleBasedStateMachine]:
    hosts = st.integers(0, 11)

    class Days(RuleBasedStateMachine):
        @initialize(mirrors=st.integers(0, 2))
        def open(self, mirrors: int) -> None:
            RELEASE.clear()
            cluster.calm()
            statistics[0] += 1
            self.mirrors = mirrors
            *places, registry = cluster.hosts
            config = HostConfig(tuple(Host(parse_api_url(fake.url)) for fake in places[:mirrors]))
            transport = Transport(stall_seconds=TIMEOUT / 4, connect_timeout=TIMEOUT / 3)
            self.registry = Registry(registry.host, "app", transport, config=config, environ={})
            source = RawSource("app:1", 0, self.registry.blob(cluster.digest, SIZE), transport)
            cache = directory / f"{statistics[0]}"
            self.blob = BlobFile(Export(source, ReadOptions(cache=str(cache), timeout=TIMEOUT)))

        def _host(self, number: int) -> FakeRegistry:
            """One of those that this sequence uses: a mirror, the registry, or the CDN."""
            used = [*cluster.hosts[: self.mirrors], cluster.hosts[2], cluster.cdn]
            return used[number % len(used)]

        @rule(
            bad=st.lists(
                st.tuples(hosts, st.lists(st.sampled_from(sorted(FAULTS)), min_size=1, max_size=4)), max_size=3
            ),
            offset=st.integers(0, SIZE - 1),
            length=st.sampled_from([1, 4096, 70_000, 300_000]),
        )
        def read_on_a_bad_day(self, bad: list[tuple[int, list[str]]], offset: int, length: int) -> None:
            for host, faults in bad:
                self._host(host).script(*(FAULTS[name] for name in faults))
            self._read(offset, length)

        @rule(host=hosts, name=st.sampled_from(sorted(STALLS)), offset=st.integers(0, SIZE - 1))
        def read_with_a_stall(self, host: int, name: str, offset: int) -> None:
            self._host(host).script(STALLS[name])
            self._read(offset, 50_000)

        @rule(host=hosts, fault=st.sampled_from(sorted(FAULTS)), offset=st.integers(0, SIZE - 1))
        def break_one(self, host: int, fault: str, offset: int) -> None:
            self._host(host).default = FAULTS[fault]
            self._read(offset, 20_000)

        @rule(host=hosts)
        def heal_one(self, host: int) -> None:
            self._host(host).default = honest

        @rule(host=hosts)
        def redirect_from_one(self, host: int) -> None:
            fake = self._host(host)
            if fake is not cluster.cdn:
                fake.default = redirect(f"{cluster.cdn.url}{{path}}")

        @rule(uses=st.sampled_from([None, 1, 2, 5]), host=hosts)
        def want_tokens(self, uses: int | None, host: int) -> None:
            self._host(host).token_uses = uses
            self._host(host).expire_tokens()

        @rule(code=st.sampled_from([400, 401]), host=hosts)
        def refuse_tokens_with(self, code: int, host: int) -> None:
            self._host(host).refusal_status = code

        @rule(host=hosts, fault=st.sampled_from([None, *OF_TOKEN_SERVERS]))
        def break_token_server(self, host: int, fault: str | None) -> None:
            self._host(host).token_behaviour = FAULTS[fault] if fault else None

        @rule(offsets=st.lists(st.integers(0, SIZE - 1), min_size=2, max_size=6))
        def read_at_once(self, offsets: list[int]) -> None:
            wrong: list[BaseException] = []

            def work(offset: int) -> None:
                try:
                    self._read(offset, 50_000)
                except BaseException as error:
                    wrong.append(error)

            threads = [threading.Thread(target=work, args=(offset,)) for offset in offsets]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert not wrong, wrong

        def _read(self, offset: int, length: int) -> bool:
            started = time.monotonic()
            end = min(SIZE, offset + length)
            try:
                assert self.blob.pread(length, offset) == DATA[offset:end], "wrong bytes"
                statistics[1] += 1
                return True
            except PyerofsError as error:
                assert "\n" not in str(error)
                statistics[2] += 1
                return False
            finally:
                assert time.monotonic() - started < TIMEOUT + SLACK, "a read that did not end in time"

        def teardown(self) -> None:
            if not hasattr(self, "blob"):
                return
            try:
                # When all is well again, all can be read: nothing that happened is remembered for ever.
                cluster.calm()
                RELEASE.set()
                for host in self.registry.mirrors:
                    host.health._hold_until = 0.0  # which is kept for a minute at the most
                deadline = time.monotonic() + 20
                for offset in range(0, SIZE, 1 << 20):
                    while not self._read(offset, 1 << 20):
                        assert time.monotonic() < deadline, "it does not come back"
            finally:
                self.blob.close()

    return Days


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same policy with shorter pauses."""
    monkeypatch.setattr(retry, "FIRST", 0.004)
    monkeypatch.setattr(mirror, "PENALTY_FIRST", 0.02)
    yield


def test_any_sequence_of_bad_days(tmp_path: Path, fast: Callable[[], None]) -> None:
    print(f"PYEROFS_SEED={SEED} PYEROFS_SEQUENCES={SEQUENCES}")
    statistics = [0, 0, 0]  # sequences, reads that were right, reads that failed

    with Cluster() as cluster:
        machine = seed(SEED)(make_machine(cluster, tmp_path, statistics))
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=SEQUENCES,
                stateful_step_count=STEPS,
                deadline=None,
                database=None,
                phases=[Phase.generate, Phase.shrink],
                suppress_health_check=list(HealthCheck),
                print_blob=True,
            ),
        )
    print(f"{statistics[0]} sequences, {statistics[1]} reads right, {statistics[2]} reads failed in time, none wrong")
    assert statistics[0] >= SEQUENCES
    assert statistics[1] > statistics[0]


def test_any_mixture_of_answers_gives_no_wrong_byte_in_time_and_with_few_requests(
    tmp_path: Path, fast: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request gets one of a few kinds of answer by chance, from a registry and perhaps a mirror."""
    print(f"PYEROFS_SEED={SEED} PYEROFS_SEQUENCES={SEQUENCES}")
    right = failed = most = 0
    with Cluster() as cluster:
        for number in range(SEQUENCES):
            chance = random.Random(f"{SEED}/{number}")
            cluster.calm()
            hosts = cluster.hosts[chance.randrange(1, 3) :]
            for place, fake in enumerate(hosts):
                kinds = [MIXTURE[name] for name in chance.sample(sorted(MIXTURE), chance.randint(1, 6))]
                fake.default = partial(answer_by_chance, kinds, random.Random(f"{SEED}/{number}/{place}"))
                fake.token_uses = chance.choice([None, None, 5])
                fake.refusal_status = chance.choice([400, 401])
            # Which of the ways is taken that a small and a large blob go.
            monkeypatch.setattr(range_response, "HELD_MAX", chance.choice([SIZE, SIZE - 1]))
            monkeypatch.setattr(range_response, "FAR", chance.choice([1 << 20, 4 << 20]))
            config = HostConfig(tuple(Host(parse_api_url(fake.url)) for fake in hosts[:-1]))
            transport = Transport(stall_seconds=TIMEOUT / 4, connect_timeout=TIMEOUT / 3)
            registry = Registry(hosts[-1].host, "app", transport, config=config, environ={})
            source = RawSource("app:1", 0, registry.blob(cluster.digest, SIZE), transport)
            options = ReadOptions(cache=str(tmp_path / f"{number}"), timeout=TIMEOUT)
            reads = wanted = 0
            with BlobFile(Export(source, options)) as blob:
                for _ in range(chance.randint(1, 8)):
                    offset = chance.randrange(SIZE)
                    length = min(chance.choice([1, 4096, 300_000, 2_000_000]), SIZE - offset)
                    reads, wanted = reads + 1, wanted + length
                    good = read_in_time(blob, offset, length, f"sequence {number}")
                    right, failed = right + good, failed + (not good)
                asked = sum(len(fake.requests("/blobs/")) for fake in hosts)
                cluster.calm()  # and what is in the cache by now is right
                for host in registry.mirrors:
                    host.health._hold_until = 0.0
                deadline = time.monotonic() + 20
                for at in range(0, SIZE, 1 << 20):
                    while not read_in_time(blob, at, min(1 << 20, SIZE - at), f"sequence {number}"):
                        assert time.monotonic() < deadline, f"sequence {number}: it does not come back"
            shutil.rmtree(tmp_path / f"{number}")
            bound = REQUESTS_PER_READ * reads + REQUESTS_PER_MIB * wanted / (1 << 20)
            most = max(most, round(100 * asked / bound))
            assert asked <= bound, f"sequence {number}: {asked} requests for {wanted} bytes in {reads} reads"
    print(f"{right} reads right, {failed} failed in time, none wrong; {most} % of the requests allowed at the most")
    assert right > failed


def answer_by_chance(kinds: list[Behaviour], chance: random.Random, exchange: Exchange) -> None:
    chance.choice(kinds)(exchange)


def read_in_time(blob: BlobFile, offset: int, length: int, what: str) -> bool:
    """Whether it could be read; what is read is right, and it ends in its time."""
    started = time.monotonic()
    try:
        assert blob.pread(length, offset) == DATA[offset : offset + length], f"{what}: wrong bytes at {offset}"
        return True
    except PyerofsError:
        return False
    finally:
        assert time.monotonic() - started < TIMEOUT + SLACK, f"{what}: a read that did not end in time"
