"""The cache: nothing is fetched twice, and nothing that cannot be believed is handed out."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from pyerofs.cache import entry_format
from pyerofs.cache.entry import Entry
from pyerofs.cache.entry_format import MAP_OFFSET
from pyerofs.cache.paths import default_directory
from pyerofs.core import GRANULE, Store
from pyerofs.errors import UnavailableError, UsageError
from tests.support.blobs import Rig
from tests.support.fakeregistry import FakeRegistry

SIZE = 1_000_003
DIGEST = "sha256:" + "ab" * 32
FILES = ["data", "live", "lock", "map", "sums"]


@pytest.fixture
def rig(fake: FakeRegistry, tmp_path: Path) -> Rig:
    return Rig(fake, tmp_path)


def files(entry: Path) -> list[str]:
    """Whether the blob was verified before it was closed again is a matter of chance."""
    return sorted(path.name for path in entry.iterdir() if path.name not in ("verified", "hashes", "giver"))


def read(rig: Rig, reference: str, n: int = -1, offset: int = 0) -> bytes:
    with rig.open(reference) as blob:
        return blob.read() if n < 0 else blob.pread(n, offset)


# Nothing twice


def test_the_second_open_asks_for_nothing(rig: Rig) -> None:
    reference, data = rig.publish(SIZE)
    assert read(rig, reference) == data
    before = len(rig.ranges)
    assert before > 0
    assert read(rig, reference) == data
    assert len(rig.ranges) == before


def test_only_what_was_missing_is_fetched(rig: Rig) -> None:
    reference, data = rig.publish(40 << 20)
    with rig.open(reference) as blob:
        blob.pread(1, 0)
        blob.pread(1, 20 << 20)
    bits = int.from_bytes((rig.entry(data) / "map").read_bytes()[MAP_OFFSET:], "little")
    assert bits & 1 and bits >> (20 << 20) // GRANULE & 1
    before = len(rig.ranges)
    assert read(rig, reference) == data
    again = 0
    for first, last in rig.ranges[before:]:
        assert not bits >> first // GRANULE & 1
        again += sum(bits >> granule & 1 for granule in range(first // GRANULE, last // GRANULE + 1))
    assert again * GRANULE <= 128 << 10  # a short stretch that is there may be part of a run


def test_two_processes_share(rig: Rig, tmp_path: Path) -> None:
    """What one of them fetches while both are there, the other has."""
    reference, data = rig.publish(SIZE)
    with rig.open(reference) as blob:
        opened = f"pyerofs.open_blob({reference!r}, 'oci.cache={rig.cache}')"
        code = f"import pyerofs; print({opened}.pread(50, 7)[0])"
        before = len(rig.ranges)
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert other.stdout == f"{data[7]}\n"
        after = len(rig.ranges)
        assert after == before + 1
        assert blob.pread(50, 7) == data[7:57]
        assert len(rig.ranges) == after


def test_kill_9_loses_nothing(rig: Rig) -> None:
    reference, data = rig.publish(SIZE)
    code = f"""
        import os, pyerofs
        b = pyerofs.open_blob({reference!r}, 'oci.cache={rig.cache}')
        b.read()
        os.kill(os.getpid(), 9)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (rig.entry(data) / "map").exists()
    before = len(rig.ranges)
    assert read(rig, reference) == data
    assert len(rig.ranges) == before


def reboot(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another boot, as far as maps can tell."""
    boot = random.randbytes(16)
    monkeypatch.setattr(entry_format, "boot_id", lambda: boot)


def test_a_reboot_loses_nothing_that_was_closed_in_good_order(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    reference, data = rig.publish(SIZE)
    assert read(rig, reference) == data
    before = len(rig.ranges)
    reboot(rig, monkeypatch)
    assert read(rig, reference) == data
    assert len(rig.ranges) == before


# Nothing that cannot be believed


def cut(entry: Path) -> None:
    os.truncate(entry / "data", SIZE // 2)


def cut_off_the_seal(entry: Path) -> None:
    os.truncate(entry / "data", (entry / "data").stat().st_size - 1)


def zeroed(entry: Path) -> None:
    size = (entry / "data").stat().st_size
    os.truncate(entry / "data", 0)
    os.truncate(entry / "data", size)


def lengthened(entry: Path) -> None:
    with (entry / "data").open("ab") as file:
        file.write(b"\0")


def foreign(entry: Path) -> None:
    """The data file of another entry of the same size: its seal is whole, but not this map's."""
    other = Entry(str(entry.parent.parent.parent), DIGEST, SIZE)
    other.close()
    os.replace(Path(other.path) / "data", entry / "data")


def removed(entry: Path) -> None:
    (entry / "data").unlink()


def a_link(entry: Path) -> None:
    (entry / "data").rename(entry / "elsewhere")
    (entry / "data").symlink_to("elsewhere")


def another_magic(entry: Path) -> None:
    with (entry / "data").open("r+b") as file:
        file.seek(-entry_format.SEAL.size, os.SEEK_END)
        file.write(b"pyerofs data 2\n\0")


@pytest.mark.parametrize("damage", [cut, cut_off_the_seal, zeroed, lengthened, foreign, removed, a_link, another_magic])
def test_data_that_is_not_what_the_map_describes(rig: Rig, damage: Callable[[Path], None]) -> None:
    reference, data = rig.publish(SIZE)
    assert read(rig, reference) == data
    damage(rig.entry(data))
    before = len(rig.ranges)
    assert read(rig, reference) == data
    assert len(rig.ranges) > before
    assert read(rig, reference) == data


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize("offset", [0, 20, 40, 50, 60, 100, MAP_OFFSET - 1, MAP_OFFSET])
def test_a_damaged_durable_map(rig: Rig, monkeypatch: pytest.MonkeyPatch, offset: int) -> None:
    reference, data = rig.publish(SIZE)
    assert read(rig, reference) == data
    flip(rig.entry(data) / "map", offset)
    reboot(rig, monkeypatch)
    before = len(rig.ranges)
    assert read(rig, reference) == data
    assert len(rig.ranges) > before


@pytest.mark.parametrize("size", [0, 1, MAP_OFFSET, MAP_OFFSET + 8])
@pytest.mark.parametrize("name", ["map", "live"])
def test_a_map_that_was_cut(rig: Rig, monkeypatch: pytest.MonkeyPatch, name: str, size: int) -> None:
    reference, data = rig.publish(SIZE)
    assert read(rig, reference) == data
    os.truncate(rig.entry(data) / name, size)
    if name == "map":
        reboot(rig, monkeypatch)
    else:
        (rig.entry(data) / "map").unlink()
    before = len(rig.ranges)
    assert read(rig, reference) == data
    assert len(rig.ranges) > before


@pytest.mark.parametrize("offset", [0, 20, 40, 60, entry_format.SHARED_OFFSET - 1])
def test_a_live_map_with_a_wrong_header(rig: Rig, offset: int) -> None:
    reference, data = rig.publish(SIZE)
    assert read(rig, reference) == data
    flip(rig.entry(data) / "live", offset)
    (rig.entry(data) / "map").unlink()
    before = len(rig.ranges)
    assert read(rig, reference) == data
    assert len(rig.ranges) > before


def test_a_live_map_of_another_boot_is_not_believed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine stopped: the durable map knows less than the live one, and only it has been synced."""
    reference, data = rig.publish(SIZE)
    assert read(rig, reference, 10) == data[:10]
    durable = (rig.entry(data) / "map").read_bytes()
    assert read(rig, reference) == data
    (rig.entry(data) / "map").write_bytes(durable)
    reboot(rig, monkeypatch)
    with (rig.entry(data) / "data").open("r+b") as file:  # what was not synced is lost
        file.seek(SIZE - 100)
        file.write(bytes(100))
    before = len(rig.ranges)
    assert read(rig, reference) == data
    assert len(rig.ranges) > before


def test_those_who_have_it_open_keep_what_was_dropped(rig: Rig) -> None:
    reference, data = rig.publish(SIZE)
    with rig.open(reference) as blob:
        assert blob.read(1000) == data[:1000]
        foreign(rig.entry(data))
        assert read(rig, reference) == data
        assert blob.read() == data[1000:]


# The order of the durable map


def test_the_durable_map_is_written_after_its_data(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    reference, data = rig.publish(SIZE)
    calls: list[str] = []

    def note(name: str) -> None:
        real = getattr(os, name)

        def call(*arguments: object) -> object:
            what = os.path.basename(os.readlink(f"/proc/self/fd/{arguments[0]}") if name != "rename" else arguments[1])  # type: ignore[call-overload]  # any system call
            if not what.startswith(("verified", "hashes")):
                calls.append(f"{name} {what.partition('.')[0]}")
            return real(*arguments)

        monkeypatch.setattr(os, name, call)

    with rig.open(reference) as blob:
        for name in ("fdatasync", "fsync", "rename"):
            note(name)
        assert blob.read() == data
    assert calls == ["fdatasync data", "fdatasync sums", "fsync map", "rename map", f"fsync {rig.entry(data).name}"]
    assert files(rig.entry(data)) == FILES


def test_a_map_copied_before_the_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lands while the data is being synced is not in the durable map."""
    entry = Entry(str(tmp_path / "cache"), DIGEST, SIZE)
    store = Store(entry.data_fd, SIZE, map_fd=entry.map_fd, map_offset=MAP_OFFSET)
    real = os.fdatasync

    def sync(fd: int) -> None:
        os.pwrite(entry.map_fd, b"\xff", MAP_OFFSET)
        real(fd)

    monkeypatch.setattr(os, "fdatasync", sync)
    entry.sync(store)
    assert (Path(entry.path) / "map").read_bytes()[MAP_OFFSET] == 0
    monkeypatch.undo()
    entry.sync(store)
    assert (Path(entry.path) / "map").read_bytes()[MAP_OFFSET] == 0xFF
    store.close()
    entry.close()


@pytest.mark.parametrize("failing", ["fdatasync", "fsync", "rename"])
def test_a_disk_that_fails_keeps_the_previous_map(rig: Rig, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    reference, data = rig.publish(SIZE)
    assert read(rig, reference, 10) == data[:10]
    before = (rig.entry(data) / "map").read_bytes()

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with rig.open(reference) as blob:
        monkeypatch.setattr(os, failing, fail)
        assert blob.read() == data
    assert (rig.entry(data) / "map").read_bytes() == before
    assert files(rig.entry(data)) == FILES
    assert len(rig.log) == 1 and "cache" in rig.log[0]


# Who may


def test_it_is_for_its_owner_only(rig: Rig) -> None:
    reference, data = rig.publish(SIZE)
    before = os.umask(0)
    try:
        read(rig, reference)
    finally:
        os.umask(before)
    for path in [rig.cache, *rig.cache.rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
    assert rig.entry(data).is_dir()


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777])
def test_a_directory_that_others_may_write_to(tmp_path: Path, mode: int) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(mode)
    with pytest.raises(UsageError, match="writable only by you"):
        Entry(str(tmp_path / "cache"), DIGEST, SIZE)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_somebody_else(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o700)
    os.chown(tmp_path / "cache", 1234, 1234)
    with pytest.raises(UsageError, match="belong to you"):
        Entry(str(tmp_path / "cache"), DIGEST, SIZE)


def test_places_that_cannot_be_a_cache(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nowhere")):
        with pytest.raises((UsageError, UnavailableError), match=f"cache directory {path}"):
            Entry(str(path), DIGEST, SIZE)


def test_the_default_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_directory() == "/var/cache/pyerofs"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert default_directory() == "/x/pyerofs"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert default_directory() == "/home/me/.cache/pyerofs"


@pytest.mark.parametrize("size", [1, GRANULE - 1, GRANULE, GRANULE + 1, 64 * GRANULE, 64 * GRANULE + 1])
def test_sizes(rig: Rig, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    reference, data = rig.publish(size)
    assert read(rig, reference) == data
    before = len(rig.ranges)
    assert read(rig, reference) == data
    reboot(rig, monkeypatch)
    assert read(rig, reference) == data
    assert len(rig.ranges) == before
