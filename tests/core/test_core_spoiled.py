"""A data file that somebody cuts short, zeroes or flips bits in: no wrong byte goes out, no read fails, and only what
was spoiled is fetched anew."""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from errno import EIO
from pathlib import Path

import pytest

from pyerofs.core import GRANULE
from tests.support import nbdclient as nbd
from tests.support.coredamage import Damage, exchange, flip, spoil_sums, zero
from tests.support.coreharness import HEADER, KIB, MIB, Rig, Task, bits_of, until

SIZE = 2 * MIB + 777
GRANULES = -(-SIZE // GRANULE)
SETTLED = 0.12  # seconds: more than a ctime needs to be old enough for trust

DAMAGES: list[Damage] = [flip, zero, exchange]


def settle(rig: Rig, client: nbd.Client) -> None:
    """All is read until the store trusts all of it."""
    end = time.monotonic() + SETTLED
    rounds = 0
    while time.monotonic() < end or rounds < 2:
        for offset in range(0, SIZE, 200 * KIB):
            length = min(200 * KIB, SIZE - offset)
            assert client.call(nbd.CMD_READ, offset, length).data == rig.slice(offset, length)
        rounds += time.monotonic() > end


def read_all(rig: Rig, client: nbd.Client, step: int) -> None:
    for offset in range(0, SIZE, step):
        length = min(step, SIZE - offset)
        reply = client.call(nbd.CMD_READ, offset, length)
        assert (reply.error, reply.data == rig.slice(offset, length)) == (0, True), offset


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize("step", [GRANULE - 1, 100 * KIB, MIB])
@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_spoiled_is_fetched_anew(damage: Damage, step: int, trusted: bool) -> None:
    with Rig(SIZE) as rig:
        rig.preset(0, GRANULES)
        client = rig.client()
        rig.source()
        if trusted:
            settle(rig, client)
        damage(rig, 100, 103)
        damage(rig, GRANULES - 1, GRANULES)
        read_all(rig, client, step)
        stats = rig.stats()
        last = SIZE - (GRANULES - 1) * GRANULE
        assert (stats.healed, stats.landed, stats.failed) == (4, 3 * GRANULE + last, 0)
        assert os.pread(rig.data_fd, SIZE, 0) == rig.data
        assert bits_of(rig.store.copy_map()) == set(range(GRANULES))
        read_all(rig, client, step)
        assert rig.stats().healed == 4


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize("left", [0, 1, 50 * GRANULE, 50 * GRANULE + 1, SIZE - 1])
def test_a_file_that_was_cut_short(left: int, trusted: bool) -> None:
    with Rig(SIZE) as rig:
        rig.preset(0, GRANULES)
        client = rig.client()
        rig.source()
        if trusted:
            settle(rig, client)
        os.truncate(rig.data_fd, left)
        read_all(rig, client, 100 * KIB)
        stats = rig.stats()
        assert (stats.healed, stats.failed) == (GRANULES - left // GRANULE, 0)
        assert stats.landed == SIZE - left // GRANULE * GRANULE
        assert os.pread(rig.data_fd, SIZE, 0) == rig.data


@pytest.mark.parametrize("left", [0, 50 * GRANULE])
def test_a_file_that_was_cut_short_and_made_long_again(left: int) -> None:
    """With its old size, and nothing but zeros behind the cut."""
    with Rig(SIZE) as rig:
        rig.preset(0, GRANULES)
        client = rig.client()
        rig.source()
        settle(rig, client)
        os.truncate(rig.data_fd, left)
        os.truncate(rig.data_fd, SIZE)
        read_all(rig, client, 100 * KIB)
        assert rig.stats().landed == SIZE - left


def test_spoiled_sums() -> None:
    with Rig(SIZE) as rig:
        rig.preset(0, GRANULES)
        spoil_sums(rig, 7, 9)
        client = rig.client()
        rig.source()
        read_all(rig, client, 100 * KIB)
        assert rig.stats().healed == 2


@pytest.mark.parametrize("left", [0, HEADER, HEADER + 4 * 10 + 3])
def test_sums_that_were_cut_short(left: int) -> None:
    with Rig(SIZE) as rig:
        rig.preset(0, GRANULES)
        assert rig.sums_fd is not None
        os.truncate(rig.sums_fd, left)
        client = rig.client()
        rig.source()
        read_all(rig, client, 100 * KIB)
        assert rig.stats().healed == GRANULES - max(0, left - HEADER) // 4


@pytest.mark.parametrize("length", [GRANULE, MIB])
def test_a_parked_read_whose_bytes_are_spoiled_before_they_are_sent(length: int) -> None:
    """They were there when it was parked, or came from another process; it is parked again, and has its answer."""
    with Rig(SIZE) as rig:
        rig.preset(0, 10)
        flip(rig, 3, 5)
        client = rig.client()
        client.read(2 * GRANULE, length + 8 * GRANULE)
        run = rig.take()
        assert run.offset == 10 * GRANULE
        rig.fetch(run)
        again = rig.take()
        assert (again.offset, again.length) == (3 * GRANULE, 2 * GRANULE)
        rig.fetch(again)
        assert client.reply().data == rig.slice(2 * GRANULE, length + 8 * GRANULE)


def test_a_disk_that_forgets_whatever_is_written() -> None:
    """A read has its answer from memory then: it does not go round in circles."""
    with Rig(SIZE) as rig:
        rig.preset(0, GRANULES)
        client = rig.client()
        for _ in range(3):
            zero(rig, 5, 6)
            cookie = client.read(5 * GRANULE, GRANULE)
            rig.fetch(rig.take())
            assert client.reply() == (cookie, 0, rig.slice(5 * GRANULE, GRANULE))
        assert (rig.stats().runs, rig.stats().uncached) == (3, 3)


def test_a_spoiled_granule_that_cannot_be_fetched() -> None:
    with Rig(SIZE) as rig:
        rig.preset(0, GRANULES)
        flip(rig, 3, 4)
        client = rig.client()
        client.read(2 * GRANULE, 4 * GRANULE)
        rig.store.finish(rig.take().id, EIO)
        assert client.reply().error == nbd.EIO
        assert client.call(nbd.CMD_READ, 4 * GRANULE, GRANULE).data == rig.slice(4 * GRANULE, GRANULE)


def test_a_connection_that_goes_while_its_read_is_parked_again() -> None:
    with Rig(SIZE) as rig:
        rig.preset(0, GRANULES - 1)
        flip(rig, 3, 4)
        served = rig.connect()
        served.client.read(0, SIZE)
        rig.fetch(rig.take())
        until(lambda: rig.stats().healed == 1)
        served.client.close()
        served.serving.join(nbd.TIMEOUT)
        rig.parked(0)


def test_stop_while_a_read_is_parked_again() -> None:
    with Rig(SIZE) as rig:
        rig.preset(0, GRANULES - 1)
        flip(rig, 3, 4)
        client = rig.client()
        client.read(0, SIZE)
        rig.fetch(rig.take())
        rig.take()
        rig.store.stop()
        assert client.reply().error == nbd.ESHUTDOWN


def test_deadlines_hold_for_reads_that_are_parked_again() -> None:
    with Rig(SIZE, timeout=0.3) as rig:
        rig.preset(0, GRANULES - 1)
        flip(rig, 3, 4)
        client = rig.client()
        client.reads([(0, SIZE), (3 * GRANULE, 1), (SIZE - 1, 1)])
        assert {reply.error for reply in client.replies(3).values()} == {nbd.EIO}


# Threads


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize("damage", [*DAMAGES, lambda rig, first, end: os.truncate(rig.data_fd, first * GRANULE)])
def test_a_thread_reads(damage: Damage, trusted: bool) -> None:
    with Rig(SIZE) as rig:
        rig.preset(0, GRANULES)
        rig.source()
        if trusted:
            settle(rig, rig.client())
        damage(rig, 40, 42)
        buffer = bytearray(SIZE - 11)
        assert rig.store.read_into(buffer, 11, 20) == SIZE - 11
        assert buffer == rig.data[11:]
        assert rig.stats().healed >= 2


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize("damage", [*DAMAGES, lambda rig, first, end: os.truncate(rig.data_fd, first * GRANULE)])
def test_sendfile(damage: Damage, trusted: bool) -> None:
    with Rig(SIZE) as rig:
        rig.preset(0, GRANULES)
        rig.source()
        if trusted:
            settle(rig, rig.client())
        damage(rig, 40, 42)
        out = os.memfd_create("out")
        assert rig.store.sendfile(out, 11, SIZE - 11, 20) == SIZE - 11
        assert os.pread(out, SIZE, 0) == rig.data[11:]
        os.close(out)


# Several stores, and load


def test_two_stores_heal_one_file_once() -> None:
    with Rig(SIZE) as rig:
        rig.preset(0, GRANULES)
        other = rig.open()
        clients = [rig.client(), rig.client(other)]
        for store in (rig.store, other):
            rig.source(store)
        for client in clients:
            settle(rig, client)
        flip(rig, 10, 20)
        tasks = [Task(read_all, rig, client, 30_000) for client in clients]
        for task in tasks:
            task.result()
        assert rig.stats().landed + other.stats().landed == 10 * GRANULE
        assert rig.stats().healed + other.stats().healed == 10


class Places:
    """Ranges in use, so that no damage is done to one while it is being read: what is then on its way is gone."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._used: list[tuple[int, int]] = []

    def take(self, first: int, end: int) -> tuple[int, int]:
        with self._changed:
            self._changed.wait_for(lambda: all(end <= a or b <= first for a, b in self._used))
            self._used.append((first, end))
        return first, end

    def give(self, place: tuple[int, int]) -> None:
        with self._changed:
            self._used.remove(place)
            self._changed.notify_all()


@pytest.mark.parametrize("stores", [1, 3])
@pytest.mark.parametrize("seed", [1, 2])
def test_damage_at_random_under_load(seed: int, stores: int) -> None:
    """Readers of each store, and somebody who spoils what none of them is reading at that moment."""
    with Rig(SIZE) as rig:
        rig.preset(0, GRANULES, rig.data)
        opened = [rig.store, *(rig.open() for _ in range(stores - 1))]
        places = Places()

        def read_much(client: nbd.Client, chance: random.Random) -> None:
            for _ in range(150):
                offset = chance.randrange(SIZE)
                length = min(chance.choice([1, 512, GRANULE, 60_000, 400_000]), SIZE - offset)
                place = places.take(offset // GRANULE, -(-(offset + length) // GRANULE))
                reply = client.call(nbd.CMD_READ, offset, length)
                places.give(place)
                assert (reply.error, reply.data == rig.slice(offset, length)) == (0, True)

        def spoil(chance: random.Random) -> None:
            for _ in range(150):
                first = chance.randrange(GRANULES)
                place = places.take(first, min(first + chance.randrange(1, 4), GRANULES))
                chance.choice(DAMAGES)(rig, *place)
                places.give(place)

        for store in opened:
            rig.source(store)
        clients = [rig.client(store) for store in opened for _ in range(2)]
        tasks = [Task(read_much, client, random.Random(seed * 10 + n)) for n, client in enumerate(clients)]
        tasks.append(Task(spoil, random.Random(seed)))
        for task in tasks:
            task.result()
        for client in clients:
            read_all(rig, client, 200 * KIB)
        assert os.pread(rig.data_fd, SIZE, 0) == rig.data
        assert sum(store.stats().failed for store in opened) == 0


def settled_epoch(rig: Rig) -> int:
    until(lambda: rig.store.epoch() != 0)
    return rig.store.epoch()


def test_what_somebody_has_found_right_is_not_compared() -> None:
    with Rig(SIZE) as rig:
        rig.preset(0, GRANULES)
        client = rig.client()
        rig.store.trust(settled_epoch(rig))
        spoil_sums(rig, 0, GRANULES)
        read_all(rig, client, 100 * KIB)
        assert rig.store.health()[1] == 0


@pytest.mark.parametrize("said_first", [True, False])
@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_spoiled_after_somebody_has_found_it_right(damage: Damage, said_first: bool) -> None:
    """Also between his reading and his saying so."""
    with Rig(SIZE) as rig:
        rig.preset(0, GRANULES)
        client = rig.client()
        rig.source()
        epoch = settled_epoch(rig)
        if said_first:
            rig.store.trust(epoch)
        damage(rig, 7, 100)
        if not said_first:
            rig.store.trust(epoch)
        read_all(rig, client, 100 * KIB)
        assert rig.store.health()[1] == 93


def test_a_look_at_the_file_serves_one_batch_only() -> None:
    """Also where no reply came of it, since what it was for had to be fetched anew."""
    with Rig(SIZE) as rig:
        rig.preset(0, GRANULES)
        client = rig.client()
        rig.source()
        flip(rig, 3, 4)
        settled_epoch(rig)
        for granule in (50, 3):
            place = granule * GRANULE
            assert client.call(nbd.CMD_READ, place, GRANULE).data == rig.slice(place, GRANULE)
        flip(rig, 50, 51)
        assert client.call(nbd.CMD_READ, 50 * GRANULE, GRANULE).data == rig.slice(50 * GRANULE, GRANULE)


def test_an_epoch_that_is_none_is_no_reason_for_trust() -> None:
    with Rig(SIZE) as rig:
        rig.preset(0, GRANULES)
        client = rig.client()
        rig.source()
        rig.store.trust(0)
        spoil_sums(rig, 0, GRANULES)
        read_all(rig, client, 100 * KIB)
        assert rig.store.health()[1] == GRANULES


# Replies that wait for their client


@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize("length", [128 * KIB, 256 * KIB, MIB])
@pytest.mark.parametrize("damage", [flip, zero])
def test_replies_that_wait_do_not_wait_on_the_file(damage: Damage, length: int, tcp: bool, tmp_path: Path) -> None:
    """It is changed when they have been looked at, and before the client takes them."""
    size = 16 * MIB
    with Rig(size, data_path=tmp_path / "data") as rig:
        rig.preset(0, rig.granules)
        client = rig.connect(tcp=tcp).client
        rig.source()
        until_trusted(rig, client)
        wanted = ask_all(client, size, length)
        rest = client.receive(1)  # the first one is on its way
        damage(rig, 0, rig.granules)
        first = rest + client.receive(15)
        assert first[4:8] == bytes(4)
        assert client.receive(length) == rig.slice(wanted.pop(int.from_bytes(first[8:], "big")), length)
        while wanted:
            reply = client.reply()
            offset = wanted.pop(reply.cookie)
            assert (reply.error, reply.data == rig.slice(offset, length)) == (0, True), offset


def ask_all(client: nbd.Client, size: int, length: int) -> dict[int, int]:
    """Asks for everything at once; the offsets by cookie."""
    ranges = [(offset, length) for offset in range(0, size, length)]
    return dict(zip(client.reads(ranges), [offset for offset, _ in ranges], strict=True))


def until_trusted(rig: Rig, client: nbd.Client) -> None:
    """Reads all until it is sent without being compared."""

    def trusted() -> bool:
        for offset in range(0, rig.size, MIB):
            assert client.call(nbd.CMD_READ, offset, MIB).error == 0
        return rig.store.epoch() > 0

    until(trusted, "an epoch")
    assert trusted()


@pytest.mark.parametrize("length", [128 * KIB, MIB])
def test_data_file_cut_short_while_replies_wait_costs_no_connection(length: int, tmp_path: Path) -> None:
    size = 16 * MIB
    with Rig(size, data_path=tmp_path / "data") as rig:
        rig.preset(0, rig.granules)
        client = rig.client()
        rig.source()
        until_trusted(rig, client)
        wanted = ask_all(client, size, length)
        head = client.receive(16)
        os.truncate(rig.data_fd, 0)
        assert client.receive(length) == rig.slice(wanted.pop(int.from_bytes(head[8:], "big")), length)
        while wanted:
            reply = client.reply()
            offset = wanted.pop(reply.cookie)
            assert (reply.error, reply.data == rig.slice(offset, length)) == (0, True), offset


def test_sendfile_to_a_socket_passes_no_page_of_the_file(tmp_path: Path) -> None:
    size = 128 * KIB
    ours, theirs = socket.socketpair()
    with ours, theirs, Rig(size, data_path=tmp_path / "data") as rig:
        rig.preset(0, rig.granules)
        client = rig.client()
        until(lambda: client.call(nbd.CMD_READ, 0, size).error == 0 and rig.store.epoch() > 0, "an epoch")
        assert client.call(nbd.CMD_READ, 0, size).error == 0
        assert rig.store.sendfile(ours.fileno(), 0, size, 20) == size
        flip(rig, 0, rig.granules)
        assert theirs.recv(size, socket.MSG_WAITALL) == rig.data


# The map


@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.parametrize("left", [0, HEADER])
def test_map_that_is_cut_short_kills_nobody(left: int, complete: bool) -> None:
    """What it said is forgotten; the reads that wait have their answers."""
    with Rig(SIZE) as rig:
        rig.preset(0, GRANULES if complete else 100)
        store = rig.open()
        client = rig.client(store)
        rig.source(store)
        if complete:
            read_all(rig, client, 100 * KIB)
        os.truncate(rig.map_fd, left)
        read_all(rig, client, 100 * KIB)
        assert store.stats().failed == 0
        assert store.has(0, SIZE) or complete
        assert len(store.copy_map()) == (GRANULES + 63) // 64 * 8


def test_map_that_is_cut_short_while_a_run_lands() -> None:
    with Rig(SIZE) as rig:
        client = rig.client()
        client.read(0, 40 * GRANULE)
        client.read(30 * GRANULE, 2)
        run = rig.take()
        rig.land(run, 0, 8 * GRANULE)
        os.truncate(rig.map_fd, 0)
        rig.fetch_rest(run, 8 * GRANULE)
        rig.source()
        replies = sorted((reply.error, len(reply.data)) for reply in client.replies(2).values())
        assert replies == [(0, 2), (0, 40 * GRANULE)]
