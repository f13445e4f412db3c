"""The machine stops at any moment, and the disk has any part of what was not synced: what the map then claims is there.

What an Entry and its store do to the disk is recorded: the pages of data and sums that each landing has written, and
the system calls of Entry.sync in their order. A crash keeps what a sync has covered, and of everything else any subset.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from pyerofs.cache import entry_format
from pyerofs.cache.entry import Entry
from pyerofs.cache.entry_format import MAP_OFFSET
from pyerofs.core import GRANULE, Store, crc32c
from tests.support.coreharness import bits_of

DIGEST = "sha256:" + "cd" * 32
SIZE = 60 * GRANULE + 123
DATA = random.Random(5).randbytes(SIZE)
PAGE = 4096


class Write(NamedTuple):
    file: str
    offset: int
    data: bytes


class Sync(NamedTuple):
    """Of a file's content, or of the directory ("")."""

    file: str


class Rename(NamedTuple):
    old: str
    new: str


Operation = Write | Sync | Rename


class Recorder:
    """Compares files with what they were, page by page, and stands between cache/entry.py and the calls that order
    them."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch):
        self.directory = directory
        self.operations: list[Operation] = []
        self._known: dict[str, bytes] = {}
        for name in ("fdatasync", "fsync", "rename"):
            monkeypatch.setattr(os, name, self._wrapped(name, getattr(os, name)))
        self.landing: Iterator[None] = iter(())

    def look(self) -> None:
        """Notes what was written since the last time. The live map does not matter: no other boot believes it."""
        for path in sorted(self.directory.iterdir()):
            if path.name in ("live", "lock"):
                continue
            now, before = path.read_bytes(), self._known.get(path.name, b"")
            for start in range(0, len(now), PAGE):
                if (page := now[start : start + PAGE]) != before[start : start + PAGE]:
                    self.operations.append(Write(path.name, start, page))
            self._known[path.name] = now

    def _wrapped(self, name: str, real: object) -> object:
        def call(*arguments: int | str) -> None:
            self.look()
            if name != "rename":
                next(self.landing, None)  # more comes in at this very moment
            real(*arguments)  # type: ignore[operator]  # a fake
            if name == "rename":
                old, new = (os.path.basename(str(path)) for path in arguments)
                self._known[new] = self._known.pop(old)
                self.operations.append(Rename(old, new))
                return
            path = os.readlink(f"/proc/self/fd/{arguments[0]}")
            self.operations.append(Sync("" if os.path.isdir(path) else os.path.basename(path)))
            self.look()

        return call


def after_a_crash(operations: list[Operation], chance: random.Random, keep: float) -> dict[str, bytearray]:
    """The files that a crash behind these operations may leave. `keep`: how likely each unsynced thing is to survive.

    Names that were not synced may be there or not; one that is may be of a file whose pages are not.
    """
    inodes: dict[str, list[Write]] = {}  # by the name that it has now
    synced: dict[str, int] = {}  # how many of its writes
    lasting: dict[str, str] = {}  # what the directory on disk certainly has: name -> name now
    undone: list[Rename] = []
    for operation in operations:
        if isinstance(operation, Write):
            inodes.setdefault(operation.file, []).append(operation)
        elif isinstance(operation, Rename):
            old, old_synced = inodes.get(operation.new), synced.get(operation.new, 0)
            inodes[operation.new] = inodes.pop(operation.old)
            synced[operation.new] = synced.pop(operation.old, 0)
            if old is not None:
                inodes["was " + operation.new], synced["was " + operation.new] = old, old_synced
            undone.append(operation)
            assert len(undone) == 1, "the directory is synced after each rename"
        elif operation.file:
            synced[operation.file] = len(inodes.get(operation.file, ()))
        else:
            undone.clear()
            lasting = {name: name for name in inodes if not name.startswith("was ")}
    for rename in undone:
        if chance.random() >= keep:
            previous = "was " + rename.new
            inodes.pop(rename.new)
            if previous in inodes:
                inodes[rename.new], synced[rename.new] = inodes.pop(previous), synced[previous]
    files: dict[str, bytearray] = {}
    for name, writes in inodes.items():
        if name.startswith("was ") or (name not in lasting and name.startswith("map.")):
            continue
        content = files[name] = bytearray()
        for number, write in enumerate(writes):
            end = write.offset + len(write.data)
            content.extend(bytes(max(0, end - len(content))))  # sizes survive, bytes need not
            if number < synced.get(name, 0) or chance.random() < keep:
                content[write.offset : end] = write.data
    return files


def record(directory: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> list[Operation]:
    """Lands a blob in random pieces, with a sync now and then; more lands while syncs are under way."""
    chance = random.Random(seed)
    entry = Entry(str(directory), DIGEST, SIZE)
    store = Store(entry.data_fd, SIZE, map_fd=entry.map_fd, sums_fd=entry.sums_fd, map_offset=MAP_OFFSET)
    recorder = Recorder(Path(entry.path), monkeypatch)

    def land() -> Iterator[None]:
        import threading

        granules = list(range(61))
        chance.shuffle(granules)
        for granule in granules:
            if store.has(granule * GRANULE, 1):
                continue
            waiting = threading.Thread(target=store.wait, args=(granule * GRANULE, 1, 20))
            waiting.start()
            run = store.take()
            assert run
            position, end = run.offset, min(run.offset + run.length, run.offset + chance.randrange(1, 8) * GRANULE)
            while position < end:
                length = min(chance.choice([1000, GRANULE, 3 * GRANULE]), end - position)
                store.land(run.id, position, DATA[position : position + length])
                position += length
                recorder.look()
                yield
            store.finish(run.id)
            waiting.join()

    recorder.look()
    recorder.landing = land()
    for _ in recorder.landing:
        if chance.random() < 0.2:
            entry.sync(store)
    entry.sync(store)
    store.stop()
    store.close()
    entry.close()
    monkeypatch.undo()
    return recorder.operations


@pytest.mark.parametrize("seed", range(3))
def test_the_map_claims_nothing_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    operations = record(tmp_path / "recorded", monkeypatch, seed)
    assert len([operation for operation in operations if isinstance(operation, Rename)]) > 3
    chance = random.Random(seed)
    claimed = 0
    for cut in range(1, len(operations) + 1):
        for keep in (0.0, 0.5, 1.0):
            files = after_a_crash(operations[:cut], chance, keep)
            place = tmp_path / f"{cut}-{keep}" / "sha256" / ("cd" * 32)
            place.mkdir(mode=0o700, parents=True)
            for name, content in files.items():
                (place / name).write_bytes(content)
            claimed += check(place.parent.parent, monkeypatch)
    assert claimed > 1000, "nothing was claimed, so nothing was shown"


def check(directory: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Opens what the crash has left, in another boot. How many granules it claims."""
    directory.chmod(0o700)
    (directory / "sha256").chmod(0o700)
    monkeypatch.setattr(entry_format, "boot_id", lambda: b"another boot now")
    entry = Entry(str(directory), DIGEST, SIZE)
    present = bits_of(os.pread(entry.map_fd, SIZE, MAP_OFFSET))
    for granule in present:
        start = granule * GRANULE
        wanted = DATA[start : start + GRANULE]
        assert os.pread(entry.data_fd, len(wanted), start) == wanted
        assert os.pread(entry.sums_fd, 4, MAP_OFFSET + 4 * granule) == struct.pack("=I", crc32c(wanted))
    entry.close()
    return len(present)
