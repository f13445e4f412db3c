"""Files that somebody else names: none of them holds anybody up, and none is looked for below "~" or elsewhere."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pyerofs import files
from pyerofs.cache import paths as cache_paths
from pyerofs.config import file as config_file
from pyerofs.errors import PyerofsError
from pyerofs.http.tls import find_authorities, merged
from pyerofs.kernel import loop
from pyerofs.oci.layout import Layout
from pyerofs.registry import credentials, hosts
from pyerofs.source.blobs import FileBlob
from pyerofs.source.local import LocalSource
from tests.support.blobs import Rig

DIGEST = f"sha256:{'0' * 64}"


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "fifo")
    return tmp_path / "fifo"


def test_regular(tmp_path: Path, fifo: Path) -> None:
    (tmp_path / "file").write_bytes(b"bytes")
    with open(tmp_path / "file", "rb", opener=files.regular) as file:
        assert file.read() == b"bytes"
        assert os.get_blocking(file.fileno())
    with open(os.devnull, "rb", opener=files.regular) as file:
        assert file.read() == b""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        for path in (fifo, tmp_path, tmp_path / "socket", Path("/dev/zero"), tmp_path / "none"):
            with pytest.raises(OSError, match=r"Is a directory|not a regular file|No such") as caught:
                files.regular(str(path), os.O_RDONLY)
            assert caught.value.filename == str(path)


def a_layout(tmp_path: Path, name: str) -> Layout:
    """With a FIFO in the place of one of its files."""
    layout = Layout.create(str(tmp_path / "images"))
    (tmp_path / "images" / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / "images" / name)
    return layout


def read_blob(path: Path) -> None:
    FileBlob(str(path), DIGEST, 5).read_range(0, 5, lambda _offset, _piece: True)


def load_config(path: Path) -> None:
    config_file.load({"PYEROFS_CONFIG": str(path)}, uid=0)


def load_hosts(path: Path) -> None:
    directory = path.parent / "certs.d" / "quay.io"
    directory.mkdir(parents=True)
    path.rename(directory / "hosts.toml")
    hosts.load("quay.io", hosts.Roots((str(directory.parent),), ()))


def load_certificates(path: Path) -> None:
    directory = path.parent / "certs.d" / "quay.io"
    directory.mkdir(parents=True)
    path.rename(directory / "ca.crt")
    hosts.load("quay.io", hosts.Roots((), (str(directory.parent),)))


def look_up(path: Path) -> None:
    credentials.lookup("quay.io", "a/b", {"REGISTRY_AUTH_FILE": str(path), "DOCKER_CONFIG": "/nonexistent"})


@pytest.mark.parametrize(
    "use",
    [
        lambda path: LocalSource(str(path)),
        lambda path: loop.attach(str(path)),
        lambda path: credentials.read_password_file(str(path)),
        lambda path: hosts.check_readable(str(path), "oci.ca"),
        lambda path: merged((str(path),)),
        lambda path: find_authorities({"SSL_CERT_FILE": str(path)}),
        lambda path: a_layout(path.parent, "oci-layout").__init__(str(path.parent / "images")),  # type: ignore[misc]  # called once more
        lambda path: a_layout(path.parent, "index.json").find(None),
        lambda path: a_layout(path.parent, f"blobs/sha256/{'0' * 64}").check(DIGEST, 5),
        read_blob, load_config, load_hosts, load_certificates, look_up,
    ],
)  # fmt: skip
def test_a_fifo_holds_nobody_up(fifo: Path, use: Callable[[Path], object]) -> None:
    with pytest.raises(PyerofsError, match=r"regular file") as caught:
        use(fifo)
    assert "\n" not in str(caught.value)


# Where a user's own files are


@pytest.fixture
def nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user whom the system does not list, with nothing in the environment."""

    def getpwuid(uid: int) -> object:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", getpwuid)
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"HOME": "/home/me"}, "/home/me/.cache"),
        ({"HOME": "home/me"}, None),
        ({"HOME": "~"}, None),
        ({"XDG_CACHE_HOME": "/var/tmp/me"}, "/var/tmp/me"),
        ({"XDG_CACHE_HOME": "tmp/me"}, None),
        ({"XDG_CACHE_HOME": "tmp/me", "HOME": "/home/me"}, "/home/me/.cache"),
        ({"XDG_CACHE_HOME": "", "HOME": "/home/me"}, "/home/me/.cache"),
    ],
)
def test_a_relative_directory_is_ignored(
    nobody_knows: None, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], expected: str | None
) -> None:
    """XDG Base Directory Specification: "All paths set in these environment variables must be absolute"."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    if expected is None:
        with pytest.raises(PyerofsError, match=r"no home directory: give oci\.cache=DIR"):
            cache_paths.default_directory()
    else:
        assert cache_paths.default_directory() == f"{expected}/pyerofs"


def test_the_system_knows_the_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME", raising=False)
    assert files.home(os.environ, os.getuid()) == pwd.getpwuid(os.getuid()).pw_dir


def test_configuration_of_nobody(nobody_knows: None) -> None:
    for environ in ({}, {"XDG_CONFIG_HOME": "etc"}, {"HOME": "me", "XDG_RUNTIME_DIR": "run"}):
        assert [path for path, _ in config_file.load(environ, uid=4242).files] == [config_file.SYSTEM_FILE]
        assert hosts.default_roots(environ, 4242) == hosts.Roots()
        assert credentials.lookup("quay.io", "a/b", environ) is None


# A directory in the place of a file of the cache


@pytest.mark.parametrize("name", ["data", "sums", "live", "map", "lock", "verified", "index"])
def test_a_directory_in_the_cache_is_healed(rig: Rig, name: str) -> None:
    reference, data = rig.publish(300_000)
    assert rig.read(reference) == data
    (entry,) = (path.parent for path in rig.cache.rglob("data"))
    path = entry / name
    path.unlink(missing_ok=True)
    (path / "deeper").mkdir(parents=True)
    assert rig.read(reference) == data
    assert not path.is_dir()
    shutil.rmtree(rig.cache)


def test_a_file_is_replaced_whole_by_any_number_of_writers(tmp_path: Path) -> None:
    """Each in a thread of one process, where a name made of its number would be one for all."""
    path = tmp_path / "file"
    texts = [bytes([65 + number]) * 100_000 for number in range(8)]
    start = threading.Barrier(len(texts))

    def write(text: bytes) -> None:
        start.wait()
        for _ in range(10):
            files.atomic_write(str(path), text)
            assert path.read_bytes() in texts

    with ThreadPoolExecutor(len(texts)) as pool:
        list(pool.map(write, texts))
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("durable", [False, True])
def test_a_replaced_file_has_its_mode_and_no_reader_loses_the_old_one(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with path.open() as before:
        files.atomic_write(str(path), b"new", durable=durable, mode=0o644)
        assert (before.read(), path.read_text()) == ("old", "new")
    assert path.stat().st_mode & 0o777 == 0o644
    (tmp_path / "link").symlink_to(path)
    files.atomic_write(str(tmp_path / "link"), b"mine")
    assert (path.read_text(), (tmp_path / "link").is_symlink()) == ("new", False)


def test_a_file_that_cannot_be_replaced_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    for name in ("directory", "none/file"):
        with pytest.raises(OSError):
            files.atomic_write(str(tmp_path / name), b"x")
    assert os.listdir(tmp_path) == ["directory"]
