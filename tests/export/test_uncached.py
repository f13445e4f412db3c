"""A cache on a disk that is full: every byte is read all the same, one line tells of it, and memory stays bounded."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from pyerofs.cache import entry_format
from pyerofs.cache.entry import Entry
from pyerofs.core import GRANULE
from pyerofs.errors import ImageError
from tests.support.blobs import Rig
from tests.support.coredamage import elsewhere, overwrite
from tests.support.fakeregistry import FakeRegistry
from tests.support.images import FakePusher, Images, Layer, push_image
from tests.support.needs import need, need_root
from tests.support.scene import Scene

MIB = 1 << 20
SIZE = 9 * MIB + 777
FULL = "cannot write to the cache: No space left on device; continuing without it"
AGAIN = "the cache is writable again"
DAMAGED = "cached data was damaged; damaged parts are fetched again"


class Disk:
    """A small filesystem of its own."""

    def __init__(self, path: Path):
        self.path = path
        path.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "tmpfs", path], check=True)

    def resize(self, size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", self.path], check=True)

    def fill(self, left: int = 0) -> None:
        """Until there are only so many bytes left."""
        free = os.statvfs(self.path).f_bavail * os.statvfs(self.path).f_frsize
        with (self.path / "filling").open("ab") as file:
            file.write(bytes(free - left))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    need_root()
    disk = Disk(tmp_path / "disk")
    yield disk
    subprocess.run(["umount", "-l", disk.path], check=True)


@pytest.fixture
def rig(fake: FakeRegistry, tmp_path: Path, disk: Disk) -> Rig:
    rig = Rig(fake, tmp_path)
    rig.cache = disk.path / "cache"
    return rig


def test_a_blob_that_does_not_fit(rig: Rig) -> None:
    reference, data = rig.publish(SIZE)
    with rig.open(reference) as blob:
        assert blob.read() == data
        assert blob.pread(300_000, 5 * MIB) == data[5 * MIB : 5 * MIB + 300_000]
    assert rig.log.count(FULL) == 1
    assert not [line for line in rig.log if line != FULL and "cannot write the map" not in line]


def test_sendfile_of_a_blob_that_does_not_fit(rig: Rig, tmp_path: Path) -> None:
    reference, data = rig.publish(SIZE)
    with rig.open(reference) as blob, (tmp_path / "out").open("wb") as out:
        assert blob.sendfile(out.fileno(), 5, SIZE) == SIZE - 5
    assert (tmp_path / "out").read_bytes() == data[5:]
    assert rig.log.count(FULL) == 1


def test_space_that_is_freed_is_used(rig: Rig, disk: Disk) -> None:
    reference, data = rig.publish(SIZE)
    with rig.open(reference) as blob:
        assert blob.read() == data
        disk.resize("64m")
        assert blob.pread(SIZE, 0) == data
        before = len(rig.ranges)
        assert blob.pread(SIZE, 0) == data
        assert len(rig.ranges) == before
    assert rig.log == [FULL, AGAIN]
    with rig.open(reference) as blob:
        assert blob.read() == data
    assert len(rig.ranges) == before


@pytest.mark.parametrize("left", [0, 1, 2, 3, 4, 5, 6, 8, 10])
def test_a_disk_that_was_full_before(rig: Rig, disk: Disk, left: int) -> None:
    """So many pages left: whatever the first thing is that has no room, the blob is opened and read."""
    disk.fill(left * 4096)
    reference, data = rig.publish(MIB + 5)
    for _ in range(2):
        with rig.open(reference) as blob:
            assert blob.read() == data
    assert rig.log.count(FULL) == 2


def test_who_reads_all_of_what_is_wrong_hears_it_all_the_same(rig: Rig, disk: Disk) -> None:
    reference, data = rig.publish(3 * MIB)
    rig.spoil(Layer(data), MIB)
    disk.fill()
    with rig.open(reference) as blob, pytest.raises(ImageError, match=Layer(data).digest):
        blob.read()


def test_a_live_map_that_has_no_room(rig: Rig, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a reboot, on a full disk: what the durable map knows is in the cache, and is used."""
    disk.resize("64m")
    reference, data = rig.publish(SIZE)
    with rig.open(reference) as blob:
        assert blob.read() == data
    before = len(rig.ranges)
    boot = os.urandom(16)
    monkeypatch.setattr(entry_format, "boot_id", lambda: boot)
    (rig.entry(data) / "live").unlink()
    disk.fill()
    with rig.open(reference) as blob:
        assert blob.read() == data
    assert len(rig.ranges) == before


def test_an_entry_without_a_place(rig: Rig, disk: Disk) -> None:
    disk.fill()
    entry = Entry(str(disk.path / "cache"), "sha256:" + "ab" * 32, SIZE)
    assert entry.problem == os.strerror(28)
    with pytest.raises(OSError):
        os.pwrite(entry.data_fd, b"x", 0)
    entry.close()


def peak(pid: int) -> int:
    """Of a process's memory, in bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) * 1024


def test_serve_and_a_client_of_its_own(scene: Scene, fake: FakeRegistry, images: Images, disk: Disk) -> None:
    image = images.plain.read_bytes()
    image += os.urandom(max(0, 120 * MIB - len(image)))
    push_image(FakePusher(fake), "app", "1", [Layer(image)])
    socket = scene.directory / "socket"
    options = f"oci=0,oci.cache={disk.path}/cache"
    server = scene.start("serve", "--unix", socket, "-o", options, f"{fake.host}/app:1")
    assert server.stdout and server.stdout.readline().startswith("ready: ")
    before = peak(server.pid)
    for name in ("one", "two"):
        copy = scene.directory / name
        subprocess.run([need("nbdcopy", "libnbd-bin"), f"nbd+unix:///?socket={socket}", copy], check=True, timeout=120)
        assert copy.read_bytes() == image
        copy.unlink()
    assert peak(server.pid) - before < 80 * MIB
    server.send_signal(signal.SIGTERM)
    _, errors = server.communicate(timeout=30)
    assert server.returncode == 0
    assert errors.count(FULL) == 1


def test_read_into_a_pipe(scene: Scene, rig: Rig) -> None:
    reference, data = rig.publish(SIZE)
    done = subprocess.run(
        scene.argv("read", "-o", f"oci=0,oci.cache={rig.cache}", reference), capture_output=True, timeout=60
    )
    assert (done.returncode, done.stdout == data) == (0, True)
    assert done.stderr.decode().count(FULL) == 1


# And a cache that is there, but is not what it was


def test_damage_under_an_open_blob_is_told_once(rig: Rig, disk: Disk) -> None:
    disk.resize("64m")
    reference, data = rig.publish(SIZE)
    with rig.open(reference) as blob:
        assert blob.read() == data
        for place in (5 * GRANULE, 70 * GRANULE, 200 * GRANULE):
            elsewhere(partial(overwrite, rig.entry(data) / "data", place, b"no"))
            assert blob.pread(SIZE, 0) == data
    assert rig.log == [DAMAGED]


def test_a_file_cut_short_under_an_open_blob_is_whole_again_afterwards(rig: Rig, disk: Disk) -> None:
    disk.resize("64m")
    reference, data = rig.publish(SIZE)
    with rig.open(reference) as blob:
        assert blob.read() == data
        elsewhere(partial(os.truncate, rig.entry(data) / "data", MIB))
        assert blob.pread(SIZE, 0) == data
    before = len(rig.ranges)
    with rig.open(reference) as blob:
        assert blob.read() == data
    assert len(rig.ranges) == before


def test_damage_while_nobody_has_it_open(rig: Rig, disk: Disk) -> None:
    disk.resize("64m")
    reference, data = rig.publish(SIZE)
    with rig.open(reference) as blob:
        assert blob.read() == data
    before = rig.ranges
    overwrite(rig.entry(data) / "data", 3 * GRANULE + 1, b"no")
    with rig.open(reference) as blob:
        assert blob.read() == data
    assert rig.ranges[len(before) :] == [(3 * GRANULE, 4 * GRANULE - 1)]
