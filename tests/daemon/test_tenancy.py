"""Whether a mount namespace has anybody left who could use a mount."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyerofs.daemon import tenancy
from pyerofs.daemon.tenancy import Tenancy
from tests.support.needs import need_root
from tests.support.scene import until


@pytest.fixture(autouse=True)
def needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root; and processes that even root may not look into, as of a sandbox around us, are none of the scene."""
    need_root()
    look = tenancy._namespace

    def namespace(pid: int) -> str:
        try:
            return look(pid)
        except PermissionError:
            return ""

    monkeypatch.setattr(tenancy, "_namespace", namespace)


@pytest.fixture
def device() -> str:
    number = os.stat("/").st_dev
    return f"{os.major(number)}:{os.minor(number)}"


@pytest.fixture
def tenant() -> Iterator[subprocess.Popen[bytes]]:
    """A process in a mount namespace of its own."""
    with subprocess.Popen(["unshare", "--mount", "sleep", "1000"]) as process:
        own = os.readlink("/proc/self/ns/mnt")
        until(lambda: os.readlink(f"/proc/{process.pid}/ns/mnt") != own, "its namespace")
        yield process
        process.kill()


def test_a_namespace_of_the_machine_is_not_private() -> None:
    code = "from pyerofs.daemon import tenancy; print(tenancy.is_private())"
    script = '"$0" -c "$1"; unshare --mount "$0" -c "$1"; :'  # the shell is process 1 of a machine of its own
    unshare = ["unshare", "--pid", "--fork", "--mount-proc"]
    done = subprocess.run([*unshare, "sh", "-c", script, sys.executable, code], capture_output=True, check=True)
    assert done.stdout == b"False\nTrue\n"


def only_ours(monkeypatch: pytest.MonkeyPatch, *others: int) -> None:
    """Every process but those is taken for a daemon of ours."""
    monkeypatch.setattr(tenancy, "_is_ours", lambda pid: pid not in others)


def test_processes_of_the_namespace_use_a_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["sleep", "1000"]) as process:
        only_ours(monkeypatch, process.pid)
        found = Tenancy("0:0")
        assert not found.ended()
        only_ours(monkeypatch)
        assert not found.ended()  # it is known, and not asked for once more
        process.kill()
        process.wait()
        assert found.ended()


def test_processes_of_another_namespace_use_a_mount_that_is_there_too(
    tenant: subprocess.Popen[bytes], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_ours(monkeypatch, tenant.pid)
    assert not Tenancy(device).ended()
    assert Tenancy("0:0").ended()


def test_open_files_and_mounts_hold_a_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    only_ours(monkeypatch)
    with open("/proc/self/ns/mnt", "rb"):
        assert not Tenancy("0:0").ended()
    assert Tenancy("0:0").ended()


def test_what_cannot_be_known_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> str:
        raise PermissionError

    found = Tenancy("0:0")
    monkeypatch.setattr(tenancy, "_namespace", refuse)
    assert not found.ended()


def test_daemons_and_their_nbdfuse_are_ours() -> None:
    for words, expected in (
        (["python", "-P", "-m", "pyerofs.daemon.worker", "4", "/mnt"], True),
        (["python", "-P", "-m", "pyerofs.daemon.supervisor", "4", "/mnt"], True),
        (["nbdfuse", "--readonly", "/run/pyerofs/pyerofs-1-a/image", "--fd", "4"], True),
        (["nbdfuse", "--readonly", "/tmp/image", "--fd", "4"], False),
        (["python", "-m", "pyerofs", "umount", "pyerofs.daemon.worker"], False),
    ):
        with subprocess.Popen([words[0], "-c", "read x", *words[1:]], executable="/bin/sh", stdin=subprocess.PIPE) as p:
            cmdline = Path(f"/proc/{p.pid}/cmdline")
            until(lambda cmdline=cmdline: cmdline.read_bytes() != b"", "arguments")  # type: ignore[misc]  # binds the loop's value
            assert tenancy._is_ours(p.pid) is expected, words
            p.kill()
