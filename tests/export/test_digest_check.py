"""Verifying: a complete blob is hashed once; one that is not what its digest says is fetched anew, once."""

from __future__ import annotations

import hashlib
import os
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pyerofs
from pyerofs.cache.entry import Entry
from pyerofs.cache.entry_format import MAP_OFFSET
from pyerofs.core import GRANULE, Store, crc32c
from pyerofs.export import digest_check, fill
from pyerofs.export.digest_check import NICE, DigestCheck, digest_of
from pyerofs.source.index_file import own_index
from tests.support.blobs import Rig
from tests.support.fakeregistry import LIMIT, FakeRegistry
from tests.support.images import Layer
from tests.support.scene import until

SIZE = 3_000_001
WHERE = 1_234_567  # what is damaged
DATA = os.urandom(5 * GRANULE + 9)


@pytest.fixture
def rig(fake: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setattr(fill, "QUIET", 0.001)
    return Rig(fake, tmp_path)


def reaches(blob: pyerofs.BlobFile, state: str) -> None:
    until(lambda: blob._export.verification == state, state)


def no_hashing(*_: object) -> str | None:
    pytest.fail("it is hashed again")


# Over a registry


def test_what_has_been_read_whole_is_verified_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    reference, data = rig.publish(SIZE)
    with rig.open(reference) as blob:
        assert blob.pread(10, 0) == data[:10]
        assert blob._export.verification == "unverified"
        assert blob.read() == data
        reaches(blob, "verified")
    monkeypatch.setattr(digest_check, "digest_of", no_hashing)
    with rig.open(reference) as blob:
        assert blob._export.verification == "verified"
        assert blob.read() == data
    assert rig.log == []


def test_it_is_made_up_for_at_the_next_opening(rig: Rig) -> None:
    reference, data = rig.publish(SIZE)
    with rig.open(reference) as blob:
        blob.read()
        reaches(blob, "verified")
    rig.give_back(data)
    with rig.open(reference) as blob:
        reaches(blob, "verified")
    assert (rig.entry(data) / "verified").exists()


def test_a_local_file_is_not_concerned(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(DATA)
    with pyerofs.open_blob(str(tmp_path / "file")) as blob:
        assert blob.read() == DATA
        assert blob._export.verification == "unverified"


def damage(rig: Rig, reference: str, data: bytes, *, came_so: bool = True) -> None:
    """A bit of the complete blob is another one, and nobody has verified it. `came_so`: from the registry, that is,
    the granule's sum agrees with it."""
    with rig.open(reference) as blob:
        blob.read()
        reaches(blob, "verified")
    rig.give_back(data)
    with (rig.entry(data) / "data").open("r+b") as file:
        file.seek(WHERE)
        byte = file.read(1)
        file.seek(WHERE)
        file.write(bytes([byte[0] ^ 4]))
        file.seek(WHERE // GRANULE * GRANULE)
        spoiled = file.read(GRANULE)
    if came_so:
        with (rig.entry(data) / "sums").open("r+b") as file:
            file.seek(MAP_OFFSET + 4 * (WHERE // GRANULE))
            file.write(struct.pack("=I", crc32c(spoiled)))


@pytest.mark.parametrize("mode", ["none", "full"])
def test_damage_on_the_disk_costs_one_granule(rig: Rig, mode: str) -> None:
    reference, data = rig.publish(SIZE)
    damage(rig, reference, data, came_so=False)
    asked = len(rig.ranges)
    with rig.open(reference, f"oci.fill={mode}") as blob:
        if mode == "none":
            until(lambda: not blob._export.store.has(0, SIZE), "that it is found")
            assert blob.read() == data
            blob.seek(0)
        reaches(blob, "verified")
        assert blob.read() == data
    assert rig.ranges[asked:] == [(WHERE // GRANULE * GRANULE, (WHERE // GRANULE + 1) * GRANULE - 1)]
    assert rig.log == ["cached data was damaged; damaged parts are fetched again"]


@pytest.mark.parametrize("mode", ["none", "idle", "full"])
def test_a_spoiled_blob_is_fetched_anew(rig: Rig, mode: str) -> None:
    reference, data = rig.publish(SIZE)
    damage(rig, reference, data)
    asked = len(rig.ranges)
    with rig.open(reference, f"oci.fill={mode}") as blob:
        if mode == "none":
            reaches(blob, "mismatch")
            assert blob._export.store.stats().present == 0
            assert len(rig.ranges) == asked
            assert blob.read() == data
            blob.seek(0)
        reaches(blob, "verified")
        assert blob.read() == data
    assert len(rig.ranges) > asked
    assert len(rig.log) == 1
    assert Layer(data).digest in rig.log[0] and "fetched again" in rig.log[0]


def test_a_registry_that_has_other_bytes_is_asked_for_them_twice_and_no_more(rig: Rig) -> None:
    reference, data = rig.publish(SIZE)
    rig.fake.blobs[Layer(data).digest] = bytes(reversed(data))
    with rig.open(reference, "oci.fill=full") as blob:
        until(lambda: len(rig.log) == 2, "the second mismatch")
        assert blob._export.verification == "mismatch"
        assert blob._export.store.stats().present == SIZE
    assert "fetched again" in rig.log[0] and rig.log[1].startswith("error: ")
    assert sum(last + 1 - first for first, last in rig.ranges) == 2 * SIZE
    assert rig.entries == []  # nobody wants them once more


def test_after_forgetting_the_durable_map_is_empty_too(rig: Rig) -> None:
    reference, data = rig.publish(SIZE)
    damage(rig, reference, data)
    path = rig.entry(data) / "map"
    assert any(path.read_bytes()[MAP_OFFSET:])
    with rig.open(reference) as blob:
        reaches(blob, "mismatch")
        until(lambda: not any(path.read_bytes()[MAP_OFFSET:]), "the map is empty")


def test_another_process_s_mark_is_seen(rig: Rig) -> None:
    reference, data = rig.publish(SIZE)
    with rig.open(reference) as blob, rig.open(reference) as other:
        other.read()
        reaches(other, "verified")
        assert blob._export.verification == "verified"
        assert blob.read() == data


# The verifier alone


class Bench:
    """An entry with DATA's bytes and a verifier. `hashed` counts; the hashing waits for `go`."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, digest: str | None = None):
        digest = digest or "sha256:" + hashlib.sha256(DATA).hexdigest()
        self.entry = Entry(str(directory), digest, len(DATA))
        os.pwrite(self.entry.data_fd, DATA, 0)
        self.store = Store(self.entry.data_fd, len(DATA), map_fd=self.entry.map_fd, map_offset=MAP_OFFSET)
        self.log: list[str] = []
        self.hashed = 0
        self.synced = 0
        self.go = threading.Event()
        self.begun = threading.Event()
        self.verifier = DigestCheck(self.entry, self.store, lambda: digest, self.sync, self.log.append)
        monkeypatch.setattr(digest_check, "digest_of", self.digest_of)

    def sync(self) -> None:
        self.synced += 1
        self.entry.sync(self.store)

    def digest_of(
        self,
        fd: int,
        size: int,
        algorithm: str,
        cancel: Callable[[], bool],
        each: Callable[[memoryview], None] | None = None,
    ) -> str | None:
        self.hashed += 1
        self.begun.set()
        until(lambda: self.go.is_set() or cancel(), "go")
        return digest_of(fd, size, algorithm, cancel, each)

    def present(self, granules: int) -> None:
        os.pwrite(self.entry.map_fd, bytes([(1 << granules) - 1]), MAP_OFFSET)

    def reaches(self, state: str) -> None:
        until(lambda: self.verifier.state == state, state)

    def close(self) -> None:
        self.verifier.stop()
        self.store.close()
        self.entry.close()


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    bench = Bench(tmp_path / "cache", monkeypatch)
    yield bench
    bench.close()


def test_only_what_is_complete_is_hashed(bench: Bench) -> None:
    bench.present(5)
    bench.verifier.start()
    bench.verifier.landed()
    assert (bench.verifier.state, bench.hashed) == ("unverified", 0)
    bench.present(6)
    bench.verifier.landed()
    assert bench.verifier.state == "verifying"
    bench.go.set()
    bench.reaches("verified")
    assert bench.entry.is_marked_verified()
    assert bench.hashed == 1 and bench.synced >= 1


def test_what_has_been_hashed_is_trusted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    trusted: list[int] = []
    monkeypatch.setattr(Store, "trust", lambda _, epoch: trusted.append(epoch))
    monkeypatch.setattr(Store, "epoch", lambda _: 7)
    bench.present(6)
    bench.verifier.landed()
    bench.go.set()
    bench.reaches("verified")
    assert trusted == [7]


def test_the_mark_of_what_is_not_complete_is_removed(bench: Bench) -> None:
    """It may have been true; but it is not known what will be fetched, and whether anybody will be there to hash it."""
    bench.present(5)
    bench.entry.mark_verified()
    bench.verifier.start()
    assert not bench.entry.is_marked_verified()


def test_what_is_fetched_again_is_checked_as_it_comes(bench: Bench) -> None:
    """By the hashes beside the mark: it need not be hashed again."""
    bench.present(6)
    bench.verifier.start()
    bench.go.set()
    bench.reaches("verified")
    bench.present(5)
    bench.verifier.landed()
    assert bench.verifier.state == "unverified"
    assert bench.entry.is_marked_verified()
    bench.present(6)
    bench.verifier.landed()
    bench.reaches("verified")
    assert bench.hashed == 1


def test_what_is_fetched_while_it_is_hashed_is_hashed_again(bench: Bench) -> None:
    bench.present(6)
    bench.verifier.start()
    assert bench.begun.wait(LIMIT)
    bench.begun.clear()
    bench.verifier.landed()
    assert bench.begun.wait(LIMIT)
    bench.go.set()
    bench.reaches("verified")
    assert bench.hashed == 2


def test_hashing_is_given_up_at_the_end(bench: Bench) -> None:
    bench.present(6)
    bench.verifier.start()
    assert bench.begun.wait(LIMIT)
    bench.verifier.stop()
    bench.verifier.landed()
    assert bench.verifier.state == "unverified"
    assert not bench.entry.is_marked_verified()
    assert bench.hashed == 1


def test_hashing_has_a_low_priority(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[int] = []
    monkeypatch.setattr(digest_check, "digest_of", lambda *_: found.append(os.getpriority(os.PRIO_PROCESS, 0)))
    before = os.getpriority(os.PRIO_PROCESS, 0)
    bench.present(6)
    bench.verifier.start()
    until(lambda: found, "hashed")
    assert found == [NICE]
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


def test_a_disk_that_fails(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> str:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(digest_check, "digest_of", fail)
    bench.present(6)
    bench.verifier.start()
    until(lambda: bench.log, "the error")
    assert "Input/output error" in bench.log[0]
    until(lambda: bench.verifier.state == "unverified", "unverified")
    assert not bench.entry.is_marked_verified()


def test_a_mark_that_cannot_be_made(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bench.entry, "mark_verified", fail)
    bench.present(6)
    bench.verifier.start()
    bench.go.set()
    bench.reaches("verified")  # it has been hashed all the same
    assert "No space left" in bench.log[0]


def test_sha512(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path / "cache", monkeypatch, "sha512:" + hashlib.sha512(DATA).hexdigest())
    bench.go.set()
    bench.present(6)
    bench.verifier.start()
    bench.reaches("verified")
    bench.close()


@pytest.mark.parametrize(
    "size", [1, digest_check.CHUNK - 1, digest_check.CHUNK, digest_check.CHUNK + 1, 3 * digest_check.CHUNK + 5]
)
def test_digest_of(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data + b"and the seal")
    with (tmp_path / "file").open("rb") as file:
        expected = "sha256:" + hashlib.sha256(data).hexdigest()
        assert digest_of(file.fileno(), size, "sha256", lambda: False) == expected
        assert digest_of(file.fileno(), size, "sha256", lambda: True) is None
        os.truncate(tmp_path / "file", size - 1)
        assert digest_of(file.fileno(), size, "sha256", lambda: False) != expected


def test_the_hashes_of_a_large_one_are_of_larger_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = os.urandom((3 << 20) + 5)
    (tmp_path / "file").write_bytes(data + b"and the seal")
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    for most, chunks in ((1 << 20, 25), (12, 13), (1, 4)):  # never larger than what is hashed at a time
        monkeypatch.setattr(digest_check, "CHUNKS_MAX", most)
        with (tmp_path / "file").open("rb") as file:
            found = digest_check.hash_all(file.fileno(), len(data), "sha256", lambda: False)
        assert found is not None and found[0] == digest
        index = own_index(found[1], len(data))
        assert index is not None and len(index) == chunks
        for number in range(chunks):
            chunk = index.chunk(number)
            chunk.verify(data[chunk.start : chunk.start + chunk.length])
