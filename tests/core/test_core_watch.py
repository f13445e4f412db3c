"""Bytes that have just landed are sent straight from the data file while the kernel says that nobody else writes to it,
and not once somebody has: in the middle of landing, when the file's ctime moves all the time anyway."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from pyerofs.core import GRANULE
from tests.support import nbdclient as nbd
from tests.support.coredamage import Damage, elsewhere, flip, spoil_sums, zero
from tests.support.coreharness import MIB, Rig, until

SIZE = 8 * MIB
GRANULES = SIZE // GRANULE


def cut_and_lengthen(rig: Rig, granule: int, _end: int) -> None:
    os.truncate(rig.data_fd, granule * GRANULE)
    os.truncate(rig.data_fd, rig.size)


def open_and_zero(rig: Rig, granule: int, _end: int) -> None:
    fd = rig.reopen(rig.data_fd)
    os.pwrite(fd, bytes(GRANULE), granule * GRANULE)


def test_what_has_landed_is_not_compared_while_more_lands(tmp_path: Path) -> None:
    with Rig(SIZE, data_path=tmp_path / "data") as rig:
        client = rig.client()
        client.read(0, GRANULE)
        run = rig.take()
        for granule in range(run.length // GRANULE):
            rig.land(run, granule * GRANULE, GRANULE)
            spoil_sums(rig, 0, GRANULES)
            reply = client.call(nbd.CMD_READ, granule * GRANULE, GRANULE) if granule else client.reply()
            assert (reply.error, reply.data) == (0, rig.slice(granule * GRANULE, GRANULE))
        rig.store.finish(run.id)
        assert rig.store.health()[1] == 0


@pytest.mark.parametrize("damage", [flip, zero, cut_and_lengthen, open_and_zero])
def test_what_somebody_else_writes_while_bytes_land_is_seen(damage: Damage, tmp_path: Path) -> None:
    """Each time right between two pieces, so that the ctime may be the same before and after."""
    with Rig(SIZE, data_path=tmp_path / "data") as rig:
        client = rig.client()
        rig.source()
        for granule in range(0, GRANULES, GRANULES // 32):
            place = granule * GRANULE
            assert client.call(nbd.CMD_READ, place, GRANULE).data == rig.slice(place, GRANULE)
            elsewhere(partial(damage, rig, granule, granule + 1))
            absent = (place + SIZE // 2 + MIB) % SIZE
            assert client.call(nbd.CMD_READ, absent, GRANULE).data == rig.slice(absent, GRANULE)
            assert client.call(nbd.CMD_READ, place, GRANULE).data == rig.slice(place, GRANULE)
        assert rig.store.health()[1] >= 32
        assert rig.stats().failed == 0


def test_once_somebody_else_has_opened_the_file_all_is_compared(tmp_path: Path) -> None:
    """Of a write the watch tells only when it is over, and he may be about to begin a long one."""
    with Rig(SIZE, data_path=tmp_path / "data") as rig:
        client = rig.client()
        rig.source()
        assert client.call(nbd.CMD_READ, 0, GRANULE).data == rig.slice(0, GRANULE)
        elsewhere(lambda: rig.reopen(rig.data_fd, os.O_RDONLY))
        assert client.call(nbd.CMD_READ, MIB, GRANULE).data == rig.slice(MIB, GRANULE)
        spoil_sums(rig, 0, GRANULES)
        for place in (0, MIB):
            assert client.call(nbd.CMD_READ, place, GRANULE).data == rig.slice(place, GRANULE)
        assert rig.store.health()[1] == 2


def test_a_file_is_watched_for_as_long_as_a_store_has_it(tmp_path: Path) -> None:
    """Another store of this process on the same file comes and goes."""
    with Rig(SIZE, data_path=tmp_path / "data") as rig:
        client = rig.client()
        rig.source()
        for place, length in ((0, MIB), (7 * MIB, MIB)):
            assert client.call(nbd.CMD_READ, place, length).data == rig.slice(place, length)
            with Rig(SIZE, data_path=tmp_path / "data") as other:
                other.source()
                assert other.client().call(nbd.CMD_READ, place, length).data == rig.slice(place, length)
        for granule in range(16):
            elsewhere(partial(flip, rig, granule, granule + 1))
            absent, place = 2 * MIB + granule * MIB // 4, granule * GRANULE
            assert client.call(nbd.CMD_READ, absent, GRANULE).data == rig.slice(absent, GRANULE)
            assert client.call(nbd.CMD_READ, place, GRANULE).data == rig.slice(place, GRANULE)
        assert rig.store.health()[1] >= 16


def test_what_somebody_wrote_before_the_first_landing_is_seen(tmp_path: Path) -> None:
    with Rig(SIZE, data_path=tmp_path / "data") as rig:
        rig.preset(0, 64)
        client = rig.client()
        rig.source()
        assert client.call(nbd.CMD_READ, 0, 64 * GRANULE).data == rig.slice(0, 64 * GRANULE)
        flip(rig, 5, 6)
        assert client.call(nbd.CMD_READ, 100 * GRANULE, 1).error == 0
        assert client.call(nbd.CMD_READ, 5 * GRANULE, GRANULE).data == rig.slice(5 * GRANULE, GRANULE)
        assert rig.store.health()[1] == 1


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR])
def test_somebody_who_had_the_file_open_before_the_first_landing_is_noticed(flags: int, tmp_path: Path) -> None:
    """Of his write, which may be a long one, the watch would tell when it is over."""
    with Rig(SIZE, data_path=tmp_path / "data") as rig:
        client = rig.client()
        rig.source()
        other = rig.reopen(rig.data_fd, flags)
        for place in (0, MIB):
            assert client.call(nbd.CMD_READ, place, GRANULE).data == rig.slice(place, GRANULE)
        spoil_sums(rig, 0, GRANULES)
        for place in (0, MIB):
            assert client.call(nbd.CMD_READ, place, GRANULE).data == rig.slice(place, GRANULE)
        assert rig.store.health()[1] == 2
        assert os.fstat(other).st_size == SIZE


def test_file_is_watched_again_when_nobody_else_has_it_open(tmp_path: Path) -> None:
    before = groups()
    with Rig(SIZE, data_path=tmp_path / "data") as rig:
        client = rig.client()
        rig.source()
        other = os.open(tmp_path / "data", os.O_RDONLY)
        assert client.call(nbd.CMD_READ, 0, GRANULE).data == rig.slice(0, GRANULE)
        assert groups() == before
        os.close(other)

        def watched() -> bool:
            rig.store.forget_all()
            assert client.call(nbd.CMD_READ, 0, GRANULE).data == rig.slice(0, GRANULE)
            return groups() == before + 1

        until(watched, "a group")


def test_while_somebody_else_has_the_file_open_its_ctime_alone_is_not_believed(tmp_path: Path) -> None:
    """One write(2) moves it once, at its beginning."""
    with Rig(SIZE, data_path=tmp_path / "data") as rig:
        rig.preset(0, GRANULES)
        client = rig.client()
        rig.source()
        rig.reopen(rig.data_fd)
        for _ in range(300):
            assert client.call(nbd.CMD_READ, 0, GRANULE).data == rig.slice(0, GRANULE)
            time.sleep(0.001)  # so long that it would be believed
        spoil_sums(rig, 0, 1)
        assert client.call(nbd.CMD_READ, 0, GRANULE).data == rig.slice(0, GRANULE)
        assert rig.store.health()[1] == 1


def groups() -> int:
    links = [Path("/proc/self/fd", fd) for fd in os.listdir("/proc/self/fd")]
    return sum("[fanotify]" in os.readlink(link) for link in links if link.is_symlink())


def read_until(rig: Rig, wanted: int) -> None:
    """Reads again and again, until the process has so many fanotify groups."""
    client = rig.client()

    def there() -> bool:
        assert client.call(nbd.CMD_READ, 0, GRANULE).data == rig.slice(0, GRANULE)
        return groups() == wanted

    until(there, f"{wanted} groups")


def test_the_watch_ends_when_all_is_present_and_begins_again_when_not(tmp_path: Path) -> None:
    before = groups()
    with Rig(SIZE, data_path=tmp_path / "data") as rig:
        with Rig(SIZE, data_path=tmp_path / "other") as other:
            for each in (rig, other):
                each.source()
                assert each.client().call(nbd.CMD_READ, 0, MIB).error == 0
                assert groups() == before + 1
        client = rig.client()
        for place in range(0, SIZE, MIB):
            assert client.call(nbd.CMD_READ, place, MIB).data == rig.slice(place, MIB)
        read_until(rig, before)
        elsewhere(partial(flip, rig, 5, 6))
        assert client.call(nbd.CMD_READ, 5 * GRANULE, GRANULE).data == rig.slice(5 * GRANULE, GRANULE)
        assert rig.store.health()[1] == 1
        assert groups() == before + 1
        read_until(rig, before)
        elsewhere(partial(zero, rig, 6, 7))
        assert client.call(nbd.CMD_READ, 6 * GRANULE, GRANULE).data == rig.slice(6 * GRANULE, GRANULE)
        assert rig.store.health()[1] == 2
    assert groups() == before


def test_where_the_kernel_does_not_say_who_writes_all_is_compared(tmp_path: Path) -> None:
    """A user namespace in which nobody may have a fanotify group."""
    script = tmp_path / "script.py"
    script.write_text(
        "from tests.core import test_core_watch as t\n"
        "from tests.support.coreharness import Rig\n"
        "from tests.support import nbdclient as nbd\n"
        f"with Rig(t.SIZE, data_path=t.Path({str(tmp_path / 'data')!r})) as rig:\n"
        "    client = rig.client()\n"
        "    rig.source()\n"
        "    assert client.call(nbd.CMD_READ, 0, t.GRANULE).data == rig.slice(0, t.GRANULE)\n"
        "    t.spoil_sums(rig, 0, t.GRANULES)\n"
        "    assert client.call(nbd.CMD_READ, 0, t.GRANULE).data == rig.slice(0, t.GRANULE)\n"
        "    assert rig.store.health()[1] == 1, rig.store.health()\n"
    )
    root = Path(__file__).parents[2]
    command = f"echo 0 > /proc/sys/user/max_fanotify_groups && exec {sys.executable} {script}"
    subprocess.run(
        ["unshare", "--user", "--map-root-user", "sh", "-c", command],
        check=True,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(root)},  # no sanitizer is preloaded
        timeout=60,
    )
