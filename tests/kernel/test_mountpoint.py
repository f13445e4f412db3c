"""mount(2), umount2(2) and mountinfo of this machine's kernel, which mounts EROFS from a file; needs root."""

from __future__ import annotations

import errno
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyerofs.errors import ImageError, MountError, UnavailableError, UsageError
from pyerofs.kernel import loop, mountpoint
from pyerofs.kernel.mountpoint import MS_RDONLY
from pyerofs.kernel.named_source import mount_named

HELLO = b"hello from inside\n" * 1000


@pytest.fixture
def image(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "hello").write_bytes(HELLO)
    path = tmp_path / "image.erofs"
    subprocess.run(["mkfs.erofs", path, tree], check=True, capture_output=True)
    return path


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "a mount point\twith\\signs"
    path.mkdir()
    yield path
    while mountpoint.find(str(path)):
        mountpoint.umount(str(path), mountpoint.MNT_DETACH)


def mount_local(image: Path, target: Path, *, loop: bool = False) -> str:
    return mountpoint.mount_local(str(image), str(target), MS_RDONLY, loop=loop)


def device_of(target: Path) -> str:
    status = target.stat()
    return f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"


MOUNTINFO = rb"""22 27 0:21 / /proc rw,relatime shared:13 - proc proc rw
27 1 254:0 / / rw,relatime shared:1 master:2 - ext4 /dev/vda rw,discard
31 27 43:0 / /mnt/with\040space\011tab\012line\134back\043hash ro,nodev - erofs /dev/nbd0 ro,user_xattr,acl
32 27 0:44 /sub /caf\303\251 rw - fuse.nbd  rw
33 27 0:45 / /raw rw - tmpfs none
a line that is none
34 x 0:46 / /bad rw - tmpfs none rw
35 27 0:46 / /bad rw shared:1 tmpfs none rw

"""


def test_parse_mountinfo() -> None:
    mounts = mountpoint.parse_mountinfo(MOUNTINFO)
    assert [mount.id for mount in mounts] == [22, 27, 31, 32]
    assert mounts[2] == (
        *(31, 27, "43:0", "/", "/mnt/with space\ttab\nline\\back#hash"),
        *("ro,nodev", "erofs", "/dev/nbd0", "ro,user_xattr,acl"),
    )
    assert (mounts[3].root, mounts[3].target, mounts[3].source) == ("/sub", "/caf\u00e9", "")


@given(st.binary(max_size=300) | st.lists(st.sampled_from(MOUNTINFO.split(b" "))).map(b" ".join))
def test_parse_mountinfo_takes_any_bytes(data: bytes) -> None:
    assert isinstance(mountpoint.parse_mountinfo(data), list)


@given(st.binary(max_size=60).filter(lambda name: b"\0" not in name).map(lambda name: b"/" + name))
def test_names_round_trip(name: bytes) -> None:
    escaped = b"".join(b"\\%03o" % byte if byte in b" \t\n\\#" else bytes([byte]) for byte in name)
    (mount,) = mountpoint.parse_mountinfo(b"1 2 0:1 / " + escaped + b" rw - t s rw\n")
    assert os.fsencode(mount.target) == name


def entry(number: int, parent: int, target: str = "/a") -> mountpoint.MountInfo:
    return mountpoint.MountInfo(number, parent, f"0:{number}", "/", target, "", "", "", "")


@pytest.mark.parametrize(
    ("mounts", "top"),
    [
        ([], None),
        ([(5, 1)], 5),
        ([(5, 1), (6, 5), (9, 6)], 9),
        ([(9, 6), (6, 5), (5, 1)], 9),  # in any order
        ([(5, 5)], 5),
    ],
)
def test_topmost(mounts: list[tuple[int, int]], top: int | None) -> None:
    found = mountpoint.topmost([entry(1, 0, "/"), *(entry(*mount) for mount in mounts)], "/a")
    assert (found and found.id) == top


def test_a_file_is_mounted_as_it_is(image: Path, target: Path) -> None:
    assert mount_local(image, target) == "file"
    assert (target / "hello").read_bytes() == HELLO
    mount = mountpoint.find(str(target))
    assert mount and (mount.fstype, mount.source, mount.target) == ("erofs", str(image), str(target))
    assert mount.device == device_of(target)
    assert mountpoint.is_mounted_device(mount.device)
    mountpoint.umount(str(target))
    assert mountpoint.find(str(target)) is None
    assert not mountpoint.is_mounted_device(mount.device)


def test_a_relative_path(image: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(image.parent)
    assert mount_local(Path(image.name), target) == "file"
    assert (target / "hello").read_bytes() == HELLO


def test_loop_when_asked_for(image: Path, target: Path) -> None:
    assert mount_local(image, target, loop=True) == "loop"
    assert (target / "hello").read_bytes() == HELLO
    mount = mountpoint.find(str(target))
    assert mount and mount.source.startswith("/dev/loop")
    mountpoint.umount(str(target))
    assert not Path(f"/sys/dev/block/{mount.device}/loop").exists()


def test_loop_where_the_kernel_cannot_read_the_file(image: Path, target: Path) -> None:
    shared = Path("/dev/shm") / f"pyerofs-test-{os.getpid()}"  # a tmpfs, which has no read_folio
    shutil.copy(image, shared)
    try:
        assert mount_local(shared, target) == "loop"
        assert (target / "hello").read_bytes() == HELLO
    finally:
        shared.unlink()


@pytest.mark.parametrize("code", [errno.ENOTBLK, errno.EINVAL])
def test_loop_on_an_older_kernel(image: Path, target: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = mountpoint._mount

    def older(source: str, *rest: object) -> None:
        if not source.startswith("/dev/loop"):
            raise OSError(code, os.strerror(code))
        real(source, *rest)  # type: ignore[arg-type]  # a fake

    monkeypatch.setattr(mountpoint, "_mount", older)
    assert mount_local(image, target) == "loop"
    assert (target / "hello").read_bytes() == HELLO


def test_a_block_device_and_a_busy_target(image: Path, target: Path) -> None:
    device, fd = loop.attach(str(image))
    try:
        assert mount_local(Path(device), target) == "device"
        with pytest.raises(MountError, match=r"is already mounted on .*, or in use: `umount "):
            mount_local(Path(device), target)
    finally:
        os.close(fd)


def test_the_topmost_of_two(image: Path, target: Path) -> None:
    mount_local(image, target)
    below = mountpoint.find(str(target))
    mount_local(image, target, loop=True)
    above = mountpoint.find(str(target))
    assert below and above and above.parent == below.id
    mountpoint.umount(str(target))
    assert mountpoint.find(str(target)) == below


def test_unmount_of_a_busy_target(image: Path, target: Path) -> None:
    mount_local(image, target)
    with (target / "hello").open("rb") as held:
        with pytest.raises(MountError, match=r"is busy: `fuser -vm .*; `umount -l` detaches"):
            mountpoint.umount(str(target))
        mountpoint.umount(str(target), mountpoint.MNT_DETACH | mountpoint.UMOUNT_NOFOLLOW)
        assert held.read() == HELLO
    assert mountpoint.find(str(target)) is None


def test_unmount_of_what_is_not_mounted(target: Path, tmp_path: Path) -> None:
    with pytest.raises(MountError, match=r"is not a mount point$"):
        mountpoint.umount(str(target))
    with pytest.raises(MountError, match=r"/none does not exist$"):
        mountpoint.umount(str(tmp_path / "none"))


def test_unmount_does_not_follow_links(image: Path, target: Path, tmp_path: Path) -> None:
    mount_local(image, target)
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(MountError, match="is not a mount point"):
        mountpoint.umount(str(tmp_path / "link"))


def test_a_mount_and_an_unmount_are_events(image: Path, target: Path) -> None:
    with mountpoint.MountWatch() as watch:
        poll = select.poll()
        poll.register(watch, watch.EVENTS)
        assert poll.poll(0) == []
        mount_local(image, target)
        assert poll.poll(5000)
        assert poll.poll(0) == []
        mountpoint.umount(str(target))
        assert poll.poll(5000)
    watch.close()


def test_what_is_no_image(image: Path, target: Path, tmp_path: Path) -> None:
    noise = tmp_path / "noise {x}"
    noise.write_bytes(bytes(8192))
    with pytest.raises(ImageError, match=r"^/.*/noise \{x\}: not an EROFS image: it has only zeros where"):
        mount_local(noise, target)
    data = bytearray(image.read_bytes())
    data[1024 + 90] = 1  # directory blocks of another size, which no kernel knows
    noise.write_bytes(data)
    with pytest.raises(MountError, match=r"^the kernel refused .*noise \{x\}: not an erofs image .*see `dmesg`$"):
        mount_local(noise, target)
    assert mountpoint.find(str(target)) is None
    with pytest.raises(UsageError, match="neither a regular file nor a block device"):
        mount_local(Path("/dev/null"), target)
    with pytest.raises(UsageError, match="cannot use /nowhere: No such file"):
        mount_local(Path("/nowhere"), target)


@pytest.mark.parametrize(
    ("source", "fstype", "kind", "line"),
    [
        (
            "/dev/null",
            "nosuchfs",
            UnavailableError,
            r"^this kernel has no nosuchfs filesystem: try `modprobe nosuchfs`$",
        ),
        ("/nowhere", "erofs", MountError, r"^cannot mount /nowhere on .*: one of them does not exist$"),
        ("/dev/null", "ext4", MountError, r"^cannot mount /dev/null: it is not a block device"),
    ],
)
def test_lines_of_errors(source: str, fstype: str, kind: type[Exception], line: str, target: Path) -> None:
    with pytest.raises(kind, match=line):
        mountpoint.mount(source, str(target), fstype, MS_RDONLY)


def test_a_bad_option_and_too_many(image: Path, target: Path) -> None:
    with pytest.raises(MountError, match=r"or a bad option; see `dmesg`$"):
        mountpoint.mount_local(str(image), str(target), MS_RDONLY, "nosuchoption")
    with pytest.raises(UsageError, match="longer than 4095 bytes"):
        mountpoint.mount(str(image), str(target), "erofs", MS_RDONLY, "a" * 4096)
    mountpoint.mount_local(str(image), str(target), MS_RDONLY, "user_xattr,cache_strategy=readaround")


def test_not_root(image: Path, target: Path) -> None:
    os.seteuid(65534)
    try:
        with pytest.raises(UsageError, match="only root may; try sudo") as caught:
            mountpoint.mount("none", "/mnt", "tmpfs", 0)
        assert caught.value.status == 1
        with pytest.raises(UsageError, match="only root may; try sudo"):
            mountpoint.umount("/")
    finally:
        os.seteuid(0)


def test_check_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("dir")
    (tmp_path / "ring").symlink_to("ring")
    monkeypatch.chdir(tmp_path)
    assert mountpoint.check_target("link") == str(tmp_path / "dir")
    assert mountpoint.check_target("dir/../dir/") == str(tmp_path / "dir")
    for name, line in {
        "file": "not a directory",
        "none": "No such file",
        "ring": "",
        "a\0b": "null",
        "file/x": "",
    }.items():
        with pytest.raises(UsageError, match=f"^mount point .*{line}"):
            mountpoint.check_target(name)


# Under another name


@pytest.mark.parametrize("name", ["quay.io/org/app:1.0", "oci:/images/all of them:app", "docker://quay.io/a@sha256:ff"])
def test_a_source_is_shown_by_its_name(image: Path, target: Path, name: str) -> None:
    directory = os.getcwd()
    mount_named(name, str(image), str(target), "erofs", mountpoint.MS_RDONLY)
    found = mountpoint.find(str(target))
    assert found is not None and (found.source, found.fstype) == (name, "erofs")
    assert (target / "hello").read_bytes() == HELLO
    assert os.getcwd() == directory


@pytest.mark.parametrize("name", ["", "/absolute", "a/../b", "./a", "x" * 256, "a/", "n" * 200 + "/" + "m" * 4000])
def test_a_name_that_is_no_path_is_not_used(image: Path, target: Path, name: str) -> None:
    mount_named(name, str(image), str(target), "erofs", mountpoint.MS_RDONLY)
    found = mountpoint.find(str(target))
    assert found is not None and found.source == str(image)


def test_a_mount_under_a_name_fails_as_others_do(tmp_path: Path, target: Path) -> None:
    bad = tmp_path / "bad"
    bad.write_bytes(bytes(8192))
    with pytest.raises(MountError, match=f"the kernel refused {bad}"):
        mount_named("quay.io/a", str(bad), str(target), "erofs", mountpoint.MS_RDONLY)
    assert mountpoint.find(str(target)) is None
