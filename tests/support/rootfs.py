"""A whole system as an ordinary image: Debian with Python, in five layers that change one another in every way.

Made once and kept in tests/.work, by the sources that it is made with; what is converted from it is made anew by each
session, since that is what the tests are about.
"""

from __future__ import annotations

import fcntl
import functools
import gzip
import hashlib
import io
import os
import pickle
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support import ordinary, skopeo
from tests.support.dockerregistry import DockerRegistry
from tests.support.needs import need, need_root
from tests.support.ordinary import TAR, Layout, device, directory, file, link, read_json, symlink
from tests.support.tarballs import archive, info
from tests.support.trees import CAPABILITY, Entry, survey

SUITE = "bookworm"
PACKAGES = ("python3", "openssl", "ca-certificates")
COMMANDS = (
    ["/usr/bin/python3", "-c", "import json, ssl, sqlite3; print(ssl.OPENSSL_VERSION, sqlite3.sqlite_version)"],
    ["/usr/bin/dpkg", "-l"],
)
_WORK = Path(__file__).parent.with_name(".work")
EXPECTED = "expected"
_PYTHON = ("./usr/bin/python3", "./usr/lib/python3", "./usr/share/python3", "./etc/python3")


class RootFSError(Exception):
    """It cannot be made."""


class RootFS(NamedTuple):
    """`layout`: the ordinary image, tagged app. `entries`: what `umoci unpack` makes of it. `said`: what COMMANDS
    print in that."""

    layout: Path
    entries: dict[str, Entry]
    said: list[str]

    @property
    def name(self) -> str:
        return f"oci:{self.layout}:app"


def rootfs() -> RootFS:
    """Needs root, mmdebstrap and umoci; the first time a Debian mirror and a minute or two. For any thread."""
    need_root()
    _WORK.mkdir(exist_ok=True)
    with (_WORK / "lock").open("w") as lock:  # one makes it, the others wait: threads, and other runs
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _rootfs()


@functools.cache
def _rootfs() -> RootFS:
    made = _WORK / f"rootfs-{_key()}"
    if not made.exists():
        with tempfile.TemporaryDirectory(dir=_WORK, prefix="making-") as temporary:
            part = Path(temporary, "made")
            part.mkdir()
            _make(part)
            part.rename(made)
    entries, said = expected(made)
    return RootFS(made / "layout", entries, said)


def _expect(directory: Path, entries: dict[str, Entry], said: list[str]) -> None:
    (directory / EXPECTED).write_bytes(pickle.dumps((entries, said)))


def expected(directory: Path) -> tuple[dict[str, Entry], list[str]]:
    """RootFS's entries and said, as publish() left them there."""
    found: tuple[dict[str, Entry], list[str]] = pickle.loads((directory / EXPECTED).read_bytes())
    return found


def publish(directory: Path) -> None:
    """Into `directory`: what is expected, and a DockerRegistry's storage with system:tar and, converted, system:erofs.

    Raises RootFSError. For any thread.
    """
    try:
        system = rootfs()
    except (AssertionError, OSError, pytest.fail.Exception) as error:
        raise RootFSError(f"the image of a whole system cannot be made: {error}") from error
    _expect(directory, system.entries, system.said)
    with DockerRegistry(directory / "registry") as server:
        skopeo.copy(system.name, f"docker://{server.host}/system:tar")
        command = [sys.executable, "-m", "pyerofs", "convert", "-q"]
        command += ["-o", f"oci.cache={directory}/cache", system.name, f"{server.host}/system:erofs"]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RootFSError(f"the image of a whole system cannot be converted: {done.stderr}")


def _key() -> str:
    sources = (Path(module.__file__ or "") for module in (ordinary, skopeo))
    return hashlib.sha256(b"".join(path.read_bytes() for path in (Path(__file__), *sources))).hexdigest()[:12]


def _make(made: Path) -> None:
    layout = Layout(made / "layout")
    tars = system_layers()
    layout.tag(layout.image(tars, [TAR] * len(tars)), "app")
    tars.append(_by_umoci(layout.path, made / "bundle"))
    tars += [archive(*members) for members in (FOURTH, FIFTH)]
    shutil.rmtree(layout.path)
    layout = Layout(made / "layout")
    layout.tag(layout.image(tars), "app")
    root = skopeo.unpacked(f"{layout.path}:app", made / "bundle")
    _expect(made, survey(root), [run_in(root, command) for command in COMMANDS])
    shutil.rmtree(made / "bundle")


def run_in(root: Path, command: list[str]) -> str:
    """What a command says in a root of its own."""
    chroot = need("chroot", "coreutils")
    done = subprocess.run([chroot, root, *command], capture_output=True, text=True, env={"LC_ALL": "C.UTF-8"})
    assert (done.returncode, done.stderr) == (0, ""), (command, done.stdout, done.stderr)
    assert done.stdout
    return done.stdout


def system_layers() -> list[bytes]:
    """The base, and Python on it, as tar archives."""
    with tarfile.open(_bootstrap()) as tar:
        members = tar.getmembers()
        python = {member.name for member in members if f"./{member.name.removeprefix('./')}".startswith(_PYTHON)}
        parents = {str(parent) for name in python for parent in Path(name).parents}

        def pick(wanted: Callable[[tarfile.TarInfo], bool]) -> bytes:
            out = io.BytesIO()
            with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as layer:
                for member in filter(wanted, members):
                    layer.addfile(member, tar.extractfile(member) if member.isreg() else None)
            return out.getvalue()

        return [
            pick(lambda member: member.name not in python),
            pick(lambda member: member.name in python or (member.isdir() and str(Path(member.name)) in parents)),
        ]


def _bootstrap() -> Path:
    """The archive of a small system with PACKAGES, by Debian's tools from wherever they fetch packages."""
    tar = _WORK / f"{SUITE}-{'-'.join(PACKAGES)}.tar"
    if not tar.exists():
        program = need("mmdebstrap", "mmdebstrap")
        part = tar.with_suffix(".part.tar")
        include = f"--include={','.join(PACKAGES)}"
        command = [program, "--mode=root", "--variant=minbase", include, SUITE, str(part)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        part.rename(tar)
    return tar


def _by_umoci(layout: Path, bundle: Path) -> bytes:
    """A layer that umoci finds by comparing, as it does for whoever changes an image with it."""
    root = skopeo.unpacked(f"{layout}:app", bundle)
    shutil.rmtree(root / "usr/share/man")
    shutil.rmtree(root / "usr/share/locale")
    (root / "usr/bin/faillog").unlink()
    os.setxattr(root / "usr/bin/openssl", "security.capability", CAPABILITY)
    os.setxattr(root / "etc/skel", "user.of.a.directory", bytes(range(256)))
    (root / "usr/bin/passwd").chmod(0o4711)
    os.chown(root / "etc/shadow", 0, 12_345)
    os.mknod(root / "dev/odd", 0o640 | stat.S_IFBLK, os.makedev(259, 70_000))
    os.mkfifo(root / "run/fifo")
    (root / "etc/motd").unlink()
    (root / "etc/motd").symlink_to("/run/motd")
    (root / "opt/one").write_bytes(b"one" * 3000)
    os.link(root / "opt/one", root / "opt/two")
    with (root / "opt/sparse").open("wb") as sparse:
        sparse.truncate(5 << 20)
    skopeo.umoci("repack", "--image", f"{layout}:changed", bundle)
    shutil.rmtree(bundle)
    blob = read_json(layout, skopeo.tags(layout)["changed"])["layers"][-1]["digest"]
    return gzip.decompress((layout / "blobs" / blob.replace(":", "/")).read_bytes())


# What umoci does not write by itself: opaque directories, links to files of lower layers, ways through links.
FOURTH = [
    directory("usr/share/doc", mode=0o750, uid=3), file("usr/share/doc/.wh..wh..opq"),
    file("usr/share/doc/README", b"there was more\n"),
    link("usr/local/bin/another-bash", "usr/bin/bash"),
    file("bin/tool", b"#!/bin/sh\necho through the link\n", mode=0o755),
    file("usr/bin/capable", b"x" * 5000, mode=0o755, pax_headers={
        "SCHILY.xattr.security.capability": CAPABILITY.decode("utf-8", "surrogateescape"),
        "SCHILY.xattr.user.twice": "first",
    }),
    device("dev/another-null", tarfile.CHRTYPE, 1, 3), (info("run/pipe", type=tarfile.FIFOTYPE, mode=0o622), b""),
    file("usr/share/bug", b"a directory no more"), directory("etc/motd"), file("etc/motd/inner", b"no link any more"),
    file("fine", b"t", pax_headers={"mtime": "1600000000.123456789"}), file("usr/lib/.wh.init"),
]  # fmt: skip
# No name of a file with several is deleted: overlayfs would go on counting it, whoever has made the layers.
FIFTH = [
    directory("usr/share/man", mode=0o711), file("usr/share/man/new", b"again"),
    file("opt/.wh.sparse"), file("etc/.wh.motd"), file("usr/share/.wh.bug"), directory("usr/share/bug"),
    directory("etc/skel", mode=0o1777, mtime=1_600_000_100),
    symlink("srv/to-nowhere", "/no/where"), file("usr/share/doc/late", b"l"),
    file("usr/bin/capable", b"y" * 5000, mode=0o2755, pax_headers={"SCHILY.xattr.user.twice": "second"}),
]  # fmt: skip
