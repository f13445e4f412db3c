"""pyerofs.open_blob(): a file object over a blob in a registry, or over a local file."""

from __future__ import annotations

import io
import os
import random
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import pyerofs
from pyerofs.errors import ImageError, NotFoundError, PyerofsError, RegistryError, UsageError
from tests.support.blobs import Rig
from tests.support.fakeregistry import FakeRegistry, stall, status

SIZE = 3_000_001
KIB = 1024


@pytest.fixture
def rig(fake: FakeRegistry, tmp_path: Path) -> Rig:
    return Rig(fake, tmp_path)


@pytest.fixture(params=["registry", "file"])
def opened(rig: Rig, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[pyerofs.BlobFile, bytes]]:
    """A blob file, cold, and what it holds."""
    reference, data = rig.publish(SIZE)
    if request.param == "file":
        (tmp_path / "file").write_bytes(data)
        with pyerofs.open_blob(str(tmp_path / "file")) as blob:
            yield blob, data
    else:
        with rig.open(reference) as blob:
            yield blob, data


def test_read_the_whole(opened: tuple[pyerofs.BlobFile, bytes]) -> None:
    blob, data = opened
    assert isinstance(blob, io.RawIOBase)
    assert blob.readable() and blob.seekable() and not blob.writable()
    assert blob.size == SIZE
    assert blob.read() == data
    assert blob.read() == b"" == blob.read(10)
    assert blob.tell() == SIZE


def test_reads_and_seeks(opened: tuple[pyerofs.BlobFile, bytes]) -> None:
    blob, data = opened
    reference = io.BytesIO(data)
    chance = random.Random(5)
    for _ in range(300):
        whence = chance.choice([os.SEEK_SET, os.SEEK_CUR, os.SEEK_END])
        offset = {
            os.SEEK_SET: chance.randrange(SIZE + 10),
            os.SEEK_CUR: chance.randrange(-reference.tell(), 1000),
            os.SEEK_END: chance.randrange(-SIZE, 10),
        }[whence]
        assert blob.seek(offset, whence) == reference.seek(offset, whence)
        length = chance.choice([0, 1, 100, 4096, 70_000])
        assert blob.read(length) == reference.read(length)
        assert blob.tell() == reference.tell()


def test_readinto(opened: tuple[pyerofs.BlobFile, bytes]) -> None:
    blob, data = opened
    buffer = bytearray(b"x" * 20)
    blob.seek(SIZE - 5)
    assert blob.readinto(memoryview(buffer)[3:]) == 5
    assert buffer == b"xxx" + data[-5:] + b"x" * 12
    assert blob.readinto(buffer) == 0
    assert blob.readinto(b"") == 0


def test_with_a_buffered_reader(opened: tuple[pyerofs.BlobFile, bytes]) -> None:
    blob, data = opened
    buffered = io.BufferedReader(blob, 64 * KIB)
    assert b"".join(iter(lambda: buffered.read(777), b"")) == data
    buffered.seek(1000)
    assert buffered.peek(1)[:1] == data[1000:1001]
    assert list(buffered) == data[1000:].splitlines(keepends=True) or b"".join(buffered) == b""


def test_seeks_that_are_none(opened: tuple[pyerofs.BlobFile, bytes]) -> None:
    blob, _ = opened
    for offset, whence in ((-1, 0), (-1, 1), (-SIZE - 1, 2), (0, 9)):
        with pytest.raises(ValueError, match=r"seek|whence"):
            blob.seek(offset, whence)
    assert blob.tell() == 0


def test_pread(opened: tuple[pyerofs.BlobFile, bytes]) -> None:
    blob, data = opened
    blob.seek(7)
    for n, offset in ((0, 0), (1, SIZE - 1), (10, SIZE - 5), (10, SIZE), (10, SIZE + 9), (SIZE + 1, 0), (5000, 4095)):
        assert blob.pread(n, offset) == data[offset : offset + n]
    assert blob.tell() == 7
    for n, offset in ((-1, 0), (1, -1)):
        with pytest.raises(ValueError, match="negative"):
            blob.pread(n, offset)


def test_sendfile_to_a_file(opened: tuple[pyerofs.BlobFile, bytes], tmp_path: Path) -> None:
    blob, data = opened
    blob.seek(7)
    with (tmp_path / "out").open("wb+") as out:
        assert blob.sendfile(out.fileno(), 4095, 2_000_000) == 2_000_000
        assert blob.sendfile(out.fileno(), SIZE - 10, 100) == 10
        assert blob.sendfile(out.fileno(), SIZE, 1) == 0 == blob.sendfile(out.fileno(), 0, 0)
        out.seek(0)
        assert out.read() == data[4095:2_004_095] + data[-10:]
    assert blob.tell() == 7
    with pytest.raises(ValueError, match="negative"):
        blob.sendfile(1, -1, 1)


def test_sendfile_to_pipes_and_sockets(opened: tuple[pyerofs.BlobFile, bytes]) -> None:
    """One that takes little at a time gets every byte in order."""
    blob, data = opened
    ours, theirs = socket.socketpair()
    read_end, write_end = os.pipe()
    for output, source in ((ours.fileno(), theirs.makefile("rb")), (write_end, os.fdopen(read_end, "rb"))):
        with ThreadPoolExecutor(1) as pool, source:
            received = pool.submit(source.read, SIZE - 100)
            assert blob.sendfile(output, 100, SIZE) == SIZE - 100
            assert received.result(20) == data[100:]
    os.close(write_end)
    ours.close()
    theirs.close()


def test_sendfile_to_what_takes_nothing(opened: tuple[pyerofs.BlobFile, bytes]) -> None:
    blob, _ = opened
    read_end, write_end = os.pipe()
    os.close(read_end)
    with pytest.raises(BrokenPipeError):
        blob.sendfile(write_end, 0, SIZE)
    os.close(write_end)
    with pytest.raises(OSError, match="Bad file descriptor"):
        blob.sendfile(write_end, 0, SIZE)
    with Path("/dev/full").open("wb") as full, pytest.raises(OSError, match="No space left"):
        blob.sendfile(full.fileno(), 0, SIZE)
    assert len(blob.read(100)) == 100


def test_threads(opened: tuple[pyerofs.BlobFile, bytes], tmp_path: Path) -> None:
    """pread() and sendfile() from many threads at once."""
    blob, data = opened

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(50):
            offset, length = chance.randrange(SIZE), chance.choice([1, 4096, 100_000])
            assert blob.pread(length, offset) == data[offset : offset + length]
        with (tmp_path / str(seed)).open("wb+") as out:
            blob.sendfile(out.fileno(), 0, SIZE)
            out.seek(0)
            assert out.read() == data

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


def test_closed(opened: tuple[pyerofs.BlobFile, bytes]) -> None:
    blob, _ = opened
    blob.close()
    blob.close()
    assert blob.closed
    for use in (
        blob.tell,
        blob.read,
        lambda: blob.read(0),
        lambda: blob.seek(0),
        lambda: blob.pread(1, 0),
        lambda: blob.pread(0, 0),
        lambda: blob.sendfile(1, 0, 1),
        lambda: blob.readinto(bytearray(1)),
    ):
        with pytest.raises(ValueError, match="closed"):
            use()


def test_nothing_of_it_stays(rig: Rig) -> None:
    reference, data = rig.publish(100_000)

    def here() -> Counter[str]:
        """What this process has open, and its threads, without those of the fake registry."""
        files = [os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
        ours = [file for file in files if str(rig.cache) in file or "event" in file]
        return Counter(ours + [thread.name for thread in threading.enumerate() if thread.name.startswith("pyerofs")])

    before = here()  # something of another test's may still be there, and go meanwhile
    for _ in range(3):
        with rig.open(reference) as blob:
            assert blob.read() == data
            assert here() - before
    assert not here() - before
    with pytest.raises(PyerofsError):
        rig.open(f"{rig.fake.host}/app:missing")
    assert not here() - before


def test_a_file_that_nobody_closes_does_not_hold_up_the_end(rig: Rig) -> None:
    """And what it has fetched is in the durable map all the same."""
    reference, data = rig.publish(SIZE)
    code = (
        f"import pyerofs; blob = pyerofs.open_blob({reference!r}, 'oci.cache={rig.cache}'); print(blob.pread(5, 0)[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{data[0]}\n", "")
    assert (rig.entry(data) / "map").exists()


def test_close_ends_the_reads_of_other_threads(rig: Rig) -> None:
    reference, _ = rig.publish(SIZE)
    release, reached = threading.Event(), threading.Event()
    rig.fake.default = stall(release, reached=reached)
    blob = rig.open(reference)
    with ThreadPoolExecutor(2) as pool, Path("/dev/null").open("wb") as null:
        reads: list[Future[Any]] = [
            pool.submit(blob.pread, 10, 0),
            pool.submit(blob.sendfile, null.fileno(), SIZE - 10, 10),
        ]
        assert reached.wait(20)
        blob.close()
        for read in reads:
            with pytest.raises(ValueError, match="closed"):
                read.result(20)
    release.set()


def test_close_while_other_threads_read(rig: Rig) -> None:
    reference, data = rig.publish(SIZE)
    with rig.open(reference) as blob:
        blob.read()
    for _ in range(5):
        blob = rig.open(reference)
        started = threading.Barrier(5)

        def work(blob: pyerofs.BlobFile = blob, started: threading.Barrier = started) -> None:
            started.wait()
            with pytest.raises(ValueError, match="closed"):
                while True:
                    assert blob.pread(100_000, 5) == data[5:100_005]

        with ThreadPoolExecutor(4) as pool:
            works = [pool.submit(work) for _ in range(4)]
            started.wait()
            blob.close()
        assert [w.result() for w in works] == [None] * 4


# What goes wrong


def test_a_blob_that_is_not_there(rig: Rig) -> None:
    reference, data = rig.publish(SIZE)
    with rig.open(reference) as blob:
        rig.fake.default = status(404)
        with pytest.raises(NotFoundError, match="404"):
            blob.read(10)
        with pytest.raises(NotFoundError, match="404"), Path("/dev/null").open("wb") as null:
            blob.sendfile(null.fileno(), 0, SIZE)
        assert blob.tell() == 0
        rig.fake.default = lambda exchange: exchange.partial()
        assert blob.read(10) == data[:10]
    assert rig.log == []


def test_a_registry_that_stops_answering(rig: Rig) -> None:
    reference, data = rig.publish(SIZE)
    release = threading.Event()
    with rig.open(reference, "oci.timeout=0.5") as blob:
        assert blob.pread(10, 0) == data[:10]
        rig.fake.default = stall(release)
        with pytest.raises(RegistryError, match=r"nothing came for 0\.5 s"):
            blob.pread(10, SIZE - 10)
        with pytest.raises(RegistryError, match=r"nothing came for 0\.5 s"), Path("/dev/null").open("wb") as null:
            blob.sendfile(null.fileno(), SIZE - 10, 10)
        assert blob.pread(10, 0) == data[:10]
        release.set()
    release.set()


@pytest.mark.parametrize("options", ["oci=9", "oci.nonsense=1", "nosuid", "nbd.device=/dev/nbd0"])
def test_options_that_do_not_fit(rig: Rig, options: str) -> None:
    reference, _ = rig.publish(1000)
    with pytest.raises((UsageError, ImageError)):
        rig.open(reference, options)


def test_sources_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for path, error in ((tmp_path / "missing", UsageError), (tmp_path, UsageError), (tmp_path / "empty", ImageError)):
        with pytest.raises(error, match=str(path)):
            pyerofs.open_blob(str(path))
    with pytest.raises(UsageError):
        pyerofs.open_blob("not a reference")
