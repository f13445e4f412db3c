"""What is in a cache directory, and how entries leave it: nobody who uses one, or is about to, loses a byte."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pyerofs.cache import directory as cache_directory
from pyerofs.cache import entry as module
from pyerofs.cache import entry_format
from pyerofs.cache.directory import Contents, EntryInfo, describe, drop, evict, find_entry, scan
from pyerofs.cache.entry import Entry
from pyerofs.cache.entry_format import MAP_OFFSET
from pyerofs.core import GRANULE, Store
from pyerofs.errors import UnavailableError, UsageError
from pyerofs.quantity import Limit

SIZE = 10 * GRANULE + 7
DIGESTS = ["sha256:" + f"{number:02x}" * 32 for number in range(1, 9)]
WHO = "@" + "ee" * 16  # has given it


@pytest.fixture
def directory(tmp_path: Path) -> str:
    return str(tmp_path / "cache")


def open_given(directory: str, digest: str) -> Entry:
    return Entry(directory, digest + WHO, SIZE, earns=digest)


def fill(directory: str, digest: str, granules: int = 11, *, used: float | None = None, durable: bool = True) -> Path:
    """An entry with its first granules present, closed."""
    entry = open_given(directory, digest)
    os.pwrite(entry.data_fd, b"x" * min(granules * GRANULE, SIZE), 0)
    os.pwrite(entry.map_fd, ((1 << granules) - 1).to_bytes(8, "little"), MAP_OFFSET)
    if durable:
        store = Store(entry.data_fd, SIZE, map_fd=entry.map_fd, map_offset=MAP_OFFSET)
        entry.sync(store)
        store.close()
    entry.close()
    if used is not None:
        os.utime(Path(entry.path) / "lock", (used, used))
    return Path(entry.path)


def the_place(directory: str, digest: str = DIGESTS[0]) -> EntryInfo:
    return next(place for place in scan(directory) if place.digest == digest)


def contents(directory: str, digest: str = DIGESTS[0]) -> Contents:
    found = describe(the_place(directory, digest))
    assert found is not None
    return found


# What is there


def test_a_directory_that_is_not_there_is_empty(directory: str) -> None:
    assert scan(directory) == []


def test_places(directory: str) -> None:
    paths = [fill(directory, digest, used=1000.5 - number) for number, digest in enumerate(DIGESTS[:3])]
    (Path(directory) / "sha256" / "no digest").mkdir()
    (Path(directory) / "manifests").mkdir()
    found = scan(directory)
    assert [place.digest for place in found] == DIGESTS[2::-1]
    assert [place.used for place in found] == [998.5, 999.5, 1000.5]
    assert [place.path for place in found] == [str(path) for path in reversed(paths)]
    for place in found:
        assert place.disk == sum(file.stat().st_blocks * 512 for file in Path(place.path).iterdir()) > SIZE


@pytest.mark.parametrize(("granules", "present"), [(0, 0), (3, 3 * GRANULE), (10, 10 * GRANULE), (11, SIZE)])
@pytest.mark.parametrize("reboot", [False, True])
def test_what_is_present(
    directory: str, monkeypatch: pytest.MonkeyPatch, granules: int, present: int, reboot: bool
) -> None:
    """By the live map, and after a reboot by the durable one."""
    fill(directory, DIGESTS[0], granules)
    if reboot:
        monkeypatch.setattr(entry_format, "boot_id", lambda: bytes(16))
    assert contents(directory) == Contents(SIZE, present)
    assert contents(directory).complete == (present == SIZE)


def test_after_a_reboot_only_the_durable_map_counts(directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(directory, DIGESTS[0], durable=False)
    assert contents(directory).complete
    monkeypatch.setattr(entry_format, "boot_id", lambda: bytes(16))
    assert contents(directory) == Contents(SIZE, 0)


def test_a_look_changes_nothing(directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fill(directory, DIGESTS[0], used=77)
    monkeypatch.setattr(entry_format, "boot_id", lambda: bytes(16))
    before = {file.name: (file.stat().st_ino, file.stat().st_mtime_ns, file.read_bytes()) for file in path.iterdir()}
    contents(directory)
    assert before == {
        file.name: (file.stat().st_ino, file.stat().st_mtime_ns, file.read_bytes()) for file in path.iterdir()
    }


def gone(path: Path) -> None:
    (path / "data").unlink()


def cut(path: Path) -> None:
    os.truncate(path / "data", GRANULE)


def empty(path: Path) -> None:
    os.truncate(path / "data", 0)


def another_size(path: Path) -> None:
    with (path / "data").open("r+b") as file:
        file.seek(-entry_format.SEAL.size, os.SEEK_END)
        file.write(entry_format.SEAL.pack(entry_format.SEAL_MAGIC, bytes(16), 2**64 - 1))


def a_directory(path: Path) -> None:
    (path / "data").unlink()
    (path / "data").mkdir()


@pytest.mark.parametrize("damage", [gone, cut, empty, another_size, a_directory])
def test_broken_entries(directory: str, damage: Callable[[Path], None]) -> None:
    damage(fill(directory, DIGESTS[0]))
    assert contents(directory) == Contents(broken=True)
    assert not contents(directory).complete


def test_in_use_by_this_process_and_by_another(directory: str) -> None:
    fill(directory, DIGESTS[0])
    entry = open_given(directory, DIGESTS[0])
    assert contents(directory).in_use
    assert not drop(the_place(directory))
    entry.close()
    assert not contents(directory).in_use
    code = (
        "import sys; from pyerofs.cache.entry import Entry\n"
        f"entry = Entry({directory!r}, {DIGESTS[0] + WHO!r}, {SIZE}); print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        assert contents(directory).in_use
        assert not drop(the_place(directory))
        process.kill()
    assert not contents(directory).in_use
    assert drop(the_place(directory))


def test_verified_counts_only_with_its_data_and_all_of_it(directory: str) -> None:
    path = fill(directory, DIGESTS[0])
    assert not contents(directory).verified
    entry = open_given(directory, DIGESTS[0])
    entry.mark_verified()
    assert contents(directory).verified and entry.is_marked_verified()
    entry.close()
    (path / "verified").write_bytes((path / "verified").read_bytes()[:-1])
    assert not contents(directory).verified
    entry = open_given(directory, DIGESTS[0])
    entry.mark_verified()
    os.pwrite(entry.map_fd, b"\1", MAP_OFFSET)
    assert not contents(directory).verified
    entry.unmark_verified()
    assert not entry.is_marked_verified()
    entry.mark_verified()
    entry.close()
    mark = (path / "verified").read_bytes()
    gone(path)
    fill(directory, DIGESTS[0])  # another data file
    assert not (path / "verified").exists()
    (path / "verified").write_bytes(mark)
    assert not contents(directory).verified


def test_hold(directory: str) -> None:
    path = fill(directory, DIGESTS[0])
    place = the_place(directory)
    entry = cache_directory.hold(place)
    assert entry is not None and entry.present() == entry.size == SIZE
    assert contents(directory).in_use
    assert not drop(place)
    entry.close()
    empty(path)
    assert cache_directory.hold(place) is None
    assert drop(place)
    assert cache_directory.hold(place) is None
    assert not path.exists()


# How entries leave


def test_drop(directory: str) -> None:
    path = fill(directory, DIGESTS[0])
    place = the_place(directory)
    (path / "map.77").write_bytes(b"left behind")
    assert drop(place)
    assert not path.exists()
    assert drop(place)  # somebody else was faster
    assert describe(place) is None
    assert scan(directory) == []


def test_those_who_use_what_is_dropped_by_force_keep_it(directory: str) -> None:
    fill(directory, DIGESTS[0], 3)
    entry = open_given(directory, DIGESTS[0])
    assert drop(the_place(directory), force=True)
    assert os.pread(entry.data_fd, 5, 0) == b"xxxxx"
    fill(directory, DIGESTS[0], 5)
    path = Path(directory) / "sha256" / (DIGESTS[0] + WHO)[7:]
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    store = Store(entry.data_fd, SIZE, map_fd=entry.map_fd, map_offset=MAP_OFFSET)
    entry.sync(store)  # it does not write what it has into the entry of others
    entry.mark_verified()
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    store.close()
    entry.close()


def test_sync_after_a_forced_drop_writes_nothing(directory: str) -> None:
    entry = open_given(directory, DIGESTS[0])
    store = Store(entry.data_fd, SIZE, map_fd=entry.map_fd, map_offset=MAP_OFFSET)
    assert drop(the_place(directory), force=True)
    entry.sync(store)
    assert scan(directory) == []
    store.close()
    entry.close()


@pytest.mark.parametrize("name", ["lock_entry", "flock"])
def test_an_entry_that_is_evicted_while_it_is_opened(
    directory: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Between the making of its directory and the opening of its lock, or between that and the locking."""
    fill(directory, DIGESTS[0])
    place = the_place(directory)
    where = fcntl if name == "flock" else module
    real = getattr(where, name)
    dropped: list[bool] = []

    def meanwhile(*arguments: object) -> object:
        if not dropped:
            dropped.append(True)
            monkeypatch.setattr(where, name, real)
            assert drop(place)
        return real(*arguments)

    monkeypatch.setattr(where, name, meanwhile)
    entry = open_given(directory, DIGESTS[0])
    assert dropped
    assert contents(directory) == Contents(SIZE, 0, in_use=True)
    assert os.stat(Path(place.path) / "data").st_ino == os.fstat(entry.data_fd).st_ino
    entry.close()


def test_openers_and_evictors_at_once(directory: str) -> None:
    """Whoever has opened an entry has the one that is listed, until he lets go of it."""
    done = threading.Event()
    place = EntryInfo(str(Path(directory) / "sha256" / (DIGESTS[0] + WHO)[7:]), DIGESTS[0], 0, 0)

    def opener() -> None:
        for _ in range(150):
            entry = open_given(directory, DIGESTS[0])
            assert os.stat(Path(entry.path) / "data").st_ino == os.fstat(entry.data_fd).st_ino
            found = describe(place)
            assert found is not None and found.in_use and not found.broken
            assert not drop(place)
            entry.close()

    def evictor() -> None:
        while not done.is_set():
            drop(place)

    with ThreadPoolExecutor(5) as pool:
        evictors = [pool.submit(evictor) for _ in range(2)]
        openers = [pool.submit(opener) for _ in range(3)]
        try:
            for future in openers:
                future.result()
        finally:
            done.set()
        for future in evictors:
            future.result()


def test_eviction_begins_with_what_was_used_longest_ago(directory: str) -> None:
    for number, digest in enumerate(DIGESTS[:5]):
        fill(directory, digest, used=1000 + number)
    used = open_given(directory, DIGESTS[1])
    os.utime(Path(used.path) / "lock", (1, 1))  # used longest ago, but in use
    disk = {place.digest: place.disk for place in scan(directory)}
    total = sum(disk.values())
    assert evict(directory, total) == ([], total)
    freed, left = evict(directory, total - disk[DIGESTS[0]] - 1)
    assert [place.digest for place in freed] == [DIGESTS[0], DIGESTS[2]]
    assert left == total - disk[DIGESTS[0]] - disk[DIGESTS[2]]
    freed, left = evict(directory, 1)
    assert [place.digest for place in freed] == DIGESTS[3:5]
    assert left == disk[DIGESTS[1]] > 1
    assert [place.digest for place in scan(directory)] == [DIGESTS[1]]
    used.close()


def test_use_is_opening_and_syncing(directory: str) -> None:
    path = fill(directory, DIGESTS[0], used=5)
    entry = open_given(directory, DIGESTS[0])
    assert the_place(directory).used > 5
    os.utime(path / "lock", (5, 5))
    store = Store(entry.data_fd, SIZE, map_fd=entry.map_fd, map_offset=MAP_OFFSET)
    entry.sync(store)
    assert the_place(directory).used > 5
    store.close()
    entry.close()


def test_what_another_has_evicted_counts_as_freed(directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, digest in enumerate(DIGESTS[:3]):
        fill(directory, digest, used=1000 + number)
    places = scan(directory)
    monkeypatch.setattr(cache_directory, "scan", lambda _: places)
    drop(places[0])
    freed, _ = evict(directory, sum(place.disk for place in places) - 1)
    assert freed == places[:1]
    monkeypatch.undo()
    assert scan(directory) == places[1:]


def test_a_limit_in_per_cent_is_of_the_filesystem(tmp_path: Path) -> None:
    found = os.statvfs(tmp_path)
    assert (
        cache_directory.limit_in(str(tmp_path), Limit(10, percent=True)) == found.f_blocks * found.f_frsize * 10 // 100
    )
    assert cache_directory.limit_in(str(tmp_path), Limit(10)) == 10


# Digests


def test_find(directory: str) -> None:
    for digest in DIGESTS[:2]:
        fill(directory, digest)
    other = "sha512:" + "01" * 64
    fill(directory, other)
    places = scan(directory)
    for text, digest in (
        (DIGESTS[0], DIGESTS[0]), (DIGESTS[0][:13], DIGESTS[0]), (DIGESTS[1][7:13], DIGESTS[1]), ("01" * 40, other),
    ):  # fmt: skip
        assert [place.digest for place in find_entry(places, text)] == [digest]
    again = Entry(directory, DIGESTS[0] + WHO[:-1] + "0", SIZE)
    again.close()
    assert len(find_entry(scan(directory), DIGESTS[0])) == 2
    for text, words in (
        ("01" * 5, "stands for 2 blobs"), ("abcdef", "has no blob abcdef"), ("abcde", "not a digest"),
        ("", "not a digest"), ("md5:abcdef", "not a digest"), ("ABCDEF", "not a digest"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=words):
            find_entry(places, text)


def test_a_directory_that_others_may_write_to(tmp_path: Path) -> None:
    """What is removed there may be anything."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    with pytest.raises(UsageError, match="writable only by you"):
        scan(str(tmp_path / "cache"))


def test_places_that_are_no_cache(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises((UsageError, UnavailableError), match=f"cache directory {tmp_path}/file"):
        scan(str(tmp_path / "file"))
