"""EROFS images written here, as the kernel and erofs-utils see them: torture, stacks of layers, a whole Debian."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pyerofs.config.mount_flags import MS_RDONLY
from pyerofs.kernel import mountpoint
from tests.support import ordinary, skopeo
from tests.support.erofsreader import Reader
from tests.support.erofsstacks import Stack, write
from tests.support.needs import need, need_root
from tests.support.ordinary import LAYERS, Layout, check_layer, read_json, tars
from tests.support.rootfs import rootfs
from tests.support.tarballs import archive, info
from tests.support.trees import ACL, CAPABILITY, Entry, assert_same, survey


@contextlib.contextmanager
def shown(image: Path, directory: Path, devices: Sequence[Path] = ()) -> Iterator[Path]:
    """The image, mounted as a file, without a loop device."""
    need_root()
    directory.mkdir(exist_ok=True)
    options = ",".join(f"device={device}" for device in devices)
    mountpoint.mount(str(image), str(directory), "erofs", MS_RDONLY, options)
    try:
        yield directory
    finally:
        mountpoint.umount(str(directory))


def check(image: Path) -> None:
    """By fsck.erofs, contents and all, and dump.erofs."""
    check_layer(image)
    done = subprocess.run([need("dump.erofs", "erofs-utils"), "-s", image], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def pax(**xattrs: bytes) -> dict[str, str]:
    return {f"SCHILY.xattr.{name}": value.decode("utf-8", "surrogateescape") for name, value in xattrs.items()}


def torture() -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """What filesystems get wrong."""
    yield info("./", type=tarfile.DIRTYPE, mode=0o1755, mtime=7), b""
    for number in range(5000):
        yield info(f"many/{'n' * (number % 200)}{number}", mtime=number), b"%d" % number * (number % 97)
    for depth in range(1, 300):
        yield info("/".join(["deep"] * depth), type=tarfile.DIRTYPE, mode=0o700 + depth % 8), b""
    yield info("/".join(["deep"] * 299) + "/bottom"), b"at last"
    for name in ("!", "-", "+", "...", ".a", "n" * 255, "\udcff\udcfe", "a\nb", "ü" * 127, "\x01", "..x"):
        yield info(f"names/{name}"), name.encode("utf-8", "surrogateescape")
    for size in (0, 1, 255, 256, 257, 4031, 4032, 4095, 4096, 4097, 8191, 8192, 8193, 1 << 20, (1 << 20) + 1, 3 << 20):
        yield info(f"sizes/{size}"), os.urandom(1) * size
    for length in (1, 59, 60, 3999, 4031, 4032, 4033, 4063, 4064, 4065, 4095):
        yield info(f"links/{length}", type=tarfile.SYMTYPE, linkname=("x/" * length)[: length - 1] + "y"), b""
    several = pax(**{
        "user.long": b"v" * 2000, "user." + "n" * 250: b"n", "trusted.of.this": b"\0\n",
        "security.capability": CAPABILITY, "system.posix_acl_access": ACL,
    })  # fmt: skip
    yield info("xattrs/one", pax_headers=several), b"one"
    yield info("xattrs/again", pax_headers=several), b""
    yield info("xattrs/directory", type=tarfile.DIRTYPE, mode=0o755, pax_headers=several), b""
    yield info("xattrs/inside", pax_headers=pax(**{"user.a": b"x" * 3000})), b"i" * 100
    yield (
        info("xattrs/link", type=tarfile.SYMTYPE, linkname="x", pax_headers=pax(**{"trusted.a": b"x" * 3900})),
        b"",
    )
    for number in range(300):
        shared = {f"SCHILY.xattr.user.{name}": "of several" for name in range(number % 100)}
        yield info(f"xattrs/shared/{number}", pax_headers=shared), b"%d" % number
    yield info("owner", uid=2**32 - 2, gid=2**32 - 2, mode=0o7777), b""
    for name, time in {"fine": "1600000000.123456789", "before": "-1000.5", "late": "4398046511.000000001"}.items():
        yield info(f"times/{name}", pax_headers={"mtime": time}), b""
    yield info("devices/char", type=tarfile.CHRTYPE, devmajor=4095, devminor=1_048_575, mode=0o640), b""
    yield info("devices/block", type=tarfile.BLKTYPE, devmajor=259, devminor=70_000), b""
    yield info("devices/fifo", type=tarfile.FIFOTYPE), b""
    for number in range(50):
        yield info(f"hard/{number}", type=tarfile.LNKTYPE, linkname="sizes/8193"), b""
    yield info("hard/soft", type=tarfile.LNKTYPE, linkname="links/60"), b""
    yield info("hard/char", type=tarfile.LNKTYPE, linkname="devices/char"), b""
    maps = {
        "islands": (3 << 20, [(1 << 20, 6), ((2 << 20) + 123, 5), ((2 << 20) + 4000, 200)]),
        "aligned": (50 << 20, [(16 << 20, 1 << 20), (32 << 20, 1 << 20)]),
        "front": (1 << 20, [(0, 3)]), "end": ((1 << 20) + 17, [((1 << 20) + 10, 7)]), "huge": (1 << 45, []),
    }  # fmt: skip
    for name, (size, pieces) in maps.items():
        text = ",".join(f"{offset},{length}" for offset, length in pieces) or "0,0"
        sparse = {"GNU.sparse.map": text, "GNU.sparse.size": str(size), "GNU.sparse.numblocks": str(len(pieces))}
        content = b"".join(bytes([65 + number]) * length for number, (_, length) in enumerate(pieces))
        yield info(f"sparse/{name}", pax_headers=sparse), content


def test_a_torture_tree_is_shown_by_the_kernel_as_umoci_unpacks_it(tmp_path: Path) -> None:
    members = [member for member in torture() if "huge" not in member[0].name]
    tar = archive(*members)
    stack = Stack()
    stack.add_tar(tar)
    assert not stack.layers.left_out
    image, _ = write(tmp_path / "image", stack.images[0])
    check(image)
    layout = Layout(tmp_path / "layout")
    layout.tag(layout.image([tar]), "app")
    expected = survey(skopeo.unpacked(f"{layout.path}:app", tmp_path / "bundle"))
    with shown(image, tmp_path / "mnt") as root:
        found = survey(root)
    assert found == Reader(stack.images[0]).entries()
    assert sorted(found) == sorted(expected)
    differing = {name: (found[name], expected[name]) for name in found if found[name] != expected[name]}
    # umoci gives the root, and directories that the archive does not mention, the time of its own work.
    differing = {name: both for name, both in differing.items() if name != "." and not is_implied(both[0])}
    assert not differing, list(differing.items())[:3]
    assert found["."].mtime_ns == 7 * 10**9


def is_implied(entry: Entry) -> bool:
    return entry[:4] == ("d", "0755", (0, 0), 0) and not entry.xattrs


def test_xattrs_up_to_the_limits_of_linux(tmp_path: Path) -> None:
    """More than the filesystem holds that umoci would unpack into."""
    large = {"user.empty": b"", "user.largest": b"w" * 65_535, "user.large": b"x" * 40_000}
    many = {f"user.{number}": b"%d" % number for number in range(2000)}
    stack = Stack()
    found = stack.add(
        (info("large", pax_headers=pax(**large)), b"content"), (info("again", pax_headers=pax(**large)), b""),
        (info("many", pax_headers=pax(**many)), b"content" * 600),
        (info("link", type=tarfile.SYMTYPE, linkname="to", pax_headers=pax(**{"trusted.a": b"x" * 4000})), b""),
    )  # fmt: skip
    assert found["large"].xattrs == large and found["many"].xattrs == many
    image, _ = write(tmp_path / "image", stack.images[0])
    check(image)
    with shown(image, tmp_path / "mnt") as root:
        assert survey(root) == found


def test_holes_of_a_file_that_is_larger_than_any_disk(tmp_path: Path) -> None:
    stack = Stack(merged=True)
    stack.add(*(member for member in torture() if "huge" in member[0].name))
    image, _ = write(tmp_path / "image", *stack.image())
    with shown(image, tmp_path / "mnt") as root, (root / "sparse" / "huge").open("rb") as file:
        assert file.seek(0, io.SEEK_END) == 1 << 45
        file.seek((1 << 44) + 5)
        assert file.read(10_000) == bytes(10_000)


def test_layers_alone_are_put_together_by_overlayfs(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    layout.tag(layout.image(tars()), "app")
    expected = survey(skopeo.unpacked(f"{layout.path}:app", tmp_path / "bundle"))
    stack = Stack()
    paths = []
    for number, members in enumerate(LAYERS):
        stack.add(*members)
        paths.append(write(tmp_path / f"{number}", stack.images[-1])[0])
        check(paths[-1])
    with ordinary.mounted(paths, tmp_path / "native") as merged:
        assert_same(expected, merged)


@pytest.mark.parametrize("separate", [False, True])
def test_layers_in_one_are_what_umoci_unpacks(tmp_path: Path, separate: bool) -> None:
    """With a device for each layer, and equal contents of different layers stored once or each on its own."""
    layout = Layout(tmp_path / "layout")
    layout.tag(layout.image(tars()), "app")
    expected = survey(skopeo.unpacked(f"{layout.path}:app", tmp_path / "bundle"))
    stack = Stack(merged=not separate)
    for members in LAYERS:
        stack.add(*members)
    image, devices = write(tmp_path / "image", *stack.image())
    with shown(image, tmp_path / "mnt", devices) as root:
        assert_same(expected, root)


def test_a_whole_debian_is_shown_as_umoci_unpacks_it(tmp_path: Path) -> None:
    system = rootfs()
    manifest = read_json(system.layout, skopeo.tags(system.layout)["app"])
    alone, merged = Stack(), Stack(merged=True)
    paths = []
    for number, layer in enumerate(manifest["layers"]):
        blob = (system.layout / "blobs" / layer["digest"].replace(":", "/")).read_bytes()
        tar = gzip.decompress(blob) if blob[:2] == b"\x1f\x8b" else blob
        alone.add_tar(tar)
        merged.add_tar(tar)
        paths.append(write(tmp_path / f"{number}", alone.images.pop())[0])
        check(paths[-1])
    with ordinary.mounted(paths, tmp_path / "native") as root:
        assert_same(system.entries, root)
    image, devices = write(tmp_path / "image", *merged.image())
    with shown(image, tmp_path / "mnt", devices) as root:
        assert_same(system.entries, root)
