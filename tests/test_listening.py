"""Sockets at a path: whose place may be taken."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from pyerofs.errors import UsageError
from pyerofs.listening import listen


def test_a_killed_server_s_socket_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "made" / "socket")
    listen(path).close()
    with listen(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


def test_a_living_server_keeps_its_place(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with listen(path), socket.socket(socket.AF_UNIX) as client:
        with pytest.raises(UsageError, match="another server listens at"):
            listen(path)
        client.connect(path)


def test_a_file_that_is_no_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"kept")
    with pytest.raises(UsageError, match="it is not a socket"):
        listen(str(path))
    assert path.read_bytes() == b"kept"
