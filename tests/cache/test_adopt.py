"""Files that are there whole become entries of the cache, without a copy."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from pyerofs.cache.adopt import adopt
from pyerofs.cache.entry import Entry
from pyerofs.cache.entry_format import MAP_OFFSET
from pyerofs.core import Store
from pyerofs.erofs.device_file import DeviceFile

KEY = "sha256+chunks:" + "ab" * 32
DATA = random.Random(1).randbytes(50 * 4096)


@pytest.fixture
def cache(tmp_path: Path) -> str:
    return str(tmp_path / "cache")


def device(cache: str, data: bytes = DATA) -> DeviceFile:
    os.makedirs(cache, mode=0o700, exist_ok=True)
    made = DeviceFile(cache)
    made.land(0, data)
    made.settle(len(data))
    made.finish()
    return made


def content(entry: Entry) -> bytes:
    """What a store on the entry serves, each granule compared with its sum."""
    store = Store(entry.data_fd, entry.size, map_fd=entry.map_fd, sums_fd=entry.sums_fd, map_offset=MAP_OFFSET)
    try:
        buffer = bytearray(entry.size)
        done = 0
        while done < len(buffer):
            done += store.read_into(memoryview(buffer)[done:], done, 5)
        return bytes(buffer)
    finally:
        store.stop()
        store.close()


def test_the_file_itself_becomes_the_entry(cache: str) -> None:
    with device(cache) as made:
        inode = os.fstat(made.fileno()).st_ino
        assert adopt(cache, KEY, made)
    entry = Entry(cache, KEY, len(DATA))
    assert os.fstat(entry.data_fd).st_ino == inode
    assert entry.present() == len(DATA)
    assert content(entry) == DATA
    entry.close()
    assert sorted(os.listdir(cache)) == ["sha256+chunks"]


def test_one_that_is_whole_stays(cache: str) -> None:
    with device(cache) as made:
        adopt(cache, KEY, made)
    entry = Entry(cache, KEY, len(DATA))
    inode = os.fstat(entry.data_fd).st_ino
    with device(cache) as made:
        assert adopt(cache, KEY, made)
    entry.close()
    entry = Entry(cache, KEY, len(DATA))
    assert os.fstat(entry.data_fd).st_ino == inode
    entry.close()


def test_one_that_lacks_something_is_replaced_unless_it_is_in_use(cache: str) -> None:
    empty = Entry(cache, KEY, len(DATA))
    with device(cache) as made:
        assert not adopt(cache, KEY, made)
        empty.close()
        assert adopt(cache, KEY, made)
    entry = Entry(cache, KEY, len(DATA))
    assert content(entry) == DATA
    entry.close()


def test_what_was_spoiled_on_the_disk_is_noticed(cache: str) -> None:
    with device(cache) as made:
        adopt(cache, KEY, made)
    entry = Entry(cache, KEY, len(DATA))
    os.pwrite(entry.data_fd, b"spoiled", 3 * 4096)
    store = Store(entry.data_fd, entry.size, map_fd=entry.map_fd, sums_fd=entry.sums_fd, map_offset=MAP_OFFSET)
    buffer = bytearray(4096)
    assert store.read_into(buffer, 3 * 4096, 0.01) == 0  # it is absent, and waits to be fetched
    assert not store.has(3 * 4096, 4096)
    store.stop()
    store.close()
    entry.close()
