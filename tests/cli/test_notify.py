"""sd_notify: what a service manager hears."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from pyerofs.cli.notify import notify


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    path = str(tmp_path / "notify") if kind == "path" else f"@pyerofs-test-{tmp_path}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path if kind == "path" else "\0" + path[1:])
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        notify("READY=1")
        assert manager.recv(100) == b"READY=1"


@pytest.mark.parametrize("value", ["", "vsock:2:3", "/nowhere/at/all"])
def test_without_a_manager_nothing_happens(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", value)
    notify("READY=1")
    assert sys.exc_info() == (None, None, None)
