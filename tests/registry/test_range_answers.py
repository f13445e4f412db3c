"""Answers whose place or end is not what was asked for: what is believed of them, and how little is read in vain."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from pyerofs.errors import RegistryError
from pyerofs.registry.range_response import FAR, HELD_MAX
from tests.support.blobs import Rig
from tests.support.fakeregistry import Exchange, FakeRegistry, at_most, honest, just_the_range, status, whole

LARGE = HELD_MAX + (1 << 20)
UNSTATED = just_the_range(stated=False, length=False)


@pytest.fixture
def rig(fake: FakeRegistry, tmp_path: Path) -> Rig:
    return Rig(fake, tmp_path)


@pytest.mark.parametrize("size", [600_000, LARGE])
@pytest.mark.parametrize("stated", [True, False])
def test_a_range_that_comes_as_200_without_a_length_is_never_put_at_the_start(
    rig: Rig, size: int, stated: bool
) -> None:
    reference, data = rig.publish(size)
    rig.fake.default = just_the_range(stated=stated, length=False)
    with rig.open(reference) as blob:
        assert blob.pread(65536, 400_000) == data[400_000:465_536]
        assert blob.pread(65536, 0) == data[:65536]
    with rig.open(reference) as blob:
        assert blob.read() == data


def test_a_large_blob_is_asked_for_without_a_range_where_the_answer_does_not_say_what_it_is(rig: Rig) -> None:
    reference, data = rig.publish(LARGE)
    rig.fake.default = UNSTATED
    with rig.open(reference) as blob:
        assert blob.pread(4096, LARGE - 4096) == data[-4096:]
    assert [bool(seen.headers.get("range")) for seen in rig.fake.requests("/blobs/")] == [True, False]


@pytest.mark.parametrize("end", [b"\r\n0\r\n\r\n", b""], ids=["ended", "broken off"])
@pytest.mark.parametrize("at", [4 << 20, 0])
def test_an_answer_that_never_says_what_it_is_gives_nothing_unless_it_is_the_whole(
    rig: Rig, at: int, end: bytes
) -> None:
    reference, data = rig.publish(LARGE)

    def liar(exchange: Exchange) -> None:
        part = exchange.blob[1 << 20 : 3 << 20]
        exchange.reply(200, b"", ("Transfer-Encoding", "chunked"))
        exchange.wfile.write(f"{len(part):x}\r\n".encode() + part + end)
        exchange.close_connection = True

    rig.fake.default = liar
    with rig.open(reference, "oci=0,oci.timeout=1") as blob, pytest.raises(RegistryError):
        blob.pread(4096, at)
    rig.fake.default = honest
    with rig.open(reference) as blob:
        assert blob.pread(3 << 20, 0) == data[: 3 << 20]


@pytest.mark.parametrize("most", [4096, 50_000, 1 << 20])
def test_whoever_sends_less_than_the_range_is_asked_for_the_rest_at_once(rig: Rig, most: int) -> None:
    reference, data = rig.publish(600_000)
    rig.fake.default = at_most(most)
    assert rig.read(reference) == data
    assert not rig.log
    assert len(rig.ranges) <= 600_000 / most + 10


def test_the_whole_of_a_large_blob_is_left_when_the_range_is_there(rig: Rig) -> None:
    """As a pull-through cache answers that does not have the blob yet."""
    size = 48 << 20
    reference, data = rig.publish(size)
    sent = [0]

    def all_of_it(exchange: Exchange) -> None:
        exchange.reply(200, b"", length=size)
        for at in range(0, size, 1 << 20):
            exchange.wfile.write(exchange.blob[at : at + (1 << 20)])
            sent[0] += 1 << 20

    rig.fake.script(all_of_it)
    with rig.open(reference) as blob:
        assert blob.pread(23_000, 5000) == data[5000:28_000]
        assert blob.pread(4096, size - 4096) == data[-4096:]
    assert sent[0] < size - FAR  # what the buffers of a socket hold is sent without anybody reading it


def test_a_registry_that_knows_no_ranges_is_read_to_its_end(rig: Rig) -> None:
    size = 12 << 20
    reference, data = rig.publish(size)
    rig.fake.default = whole()
    with rig.open(reference) as blob:
        for at in (0, 5 << 20, size - 4096):
            assert blob.pread(4096, at) == data[at : at + 4096]
        for at in range(0, size, 1 << 20):
            assert blob.pread(1 << 20, at) == data[at : at + (1 << 20)]
    assert len(rig.fake.requests("/blobs/")) <= 4


def test_mixed_answers_never_give_a_wrong_byte_and_bound_the_requests(rig: Rig) -> None:
    size = 10 << 20
    reference, data = rig.publish(size)
    chance = random.Random(5)
    kinds = [
        just_the_range(),
        just_the_range(length=False),
        just_the_range(stated=False),
        UNSTATED,
        at_most(60_000),
        at_most(4096),
        whole(),
        status(503),
    ]
    rig.fake.default = lambda exchange: chance.choice(kinds)(exchange)
    with rig.open(reference, "oci=0,oci.timeout=60") as blob:
        for _ in range(40):
            at = chance.randrange(size)
            assert blob.pread(100_000, at) == data[at : at + 100_000]
        assert blob.pread(size, 0) == data
    assert len(rig.fake.requests("/blobs/")) < 40 * (size >> 20)
