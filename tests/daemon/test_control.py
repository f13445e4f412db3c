"""The control socket: one line asks, one answers, whatever others do."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyerofs.daemon.control import Answer, ControlServer, ask
from pyerofs.errors import MountError
from tests.support.controls import answering


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    """Of a server that knows echo, fd and fail."""
    reader, writer = os.pipe()

    def fail(_: dict[str, Any]) -> Answer:
        raise MountError("that cannot be done")

    server = ControlServer(
        str(tmp_path / "socket"),
        {"echo": lambda q: Answer(q), "fd": lambda _: Answer({}, [reader]), "fail": fail},
    )
    os.write(writer, b"x")
    with answering(server):
        yield server.path
    os.unlink(server.path)
    for fd in (reader, writer):
        os.close(fd)


def test_it_answers(path: str) -> None:
    assert ask(path, "echo", text="t" * 200_000).values == {"op": "echo", "text": "t" * 200_000}


def test_descriptors_come_with_the_answer(path: str) -> None:
    answer = ask(path, "fd")
    assert len(answer.fds) == 1
    assert not os.get_inheritable(answer.fds[0])
    assert os.read(answer.fds[0], 1) == b"x"
    os.close(answer.fds[0])


@pytest.mark.parametrize(("op", "text"), [("fail", "that cannot be done"), ("nonsense", "does not know 'nonsense'")])
def test_what_it_refuses(path: str, op: str, text: str) -> None:
    with pytest.raises(MountError, match=text):
        ask(path, op)


def test_who_says_nothing_or_nonsense_holds_up_nobody(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as mute, socket.socket(socket.AF_UNIX) as rude:
        mute.connect(path)
        rude.connect(path)
        rude.sendall(b"[]\n")
        assert ask(path, "echo").values == {"op": "echo"}
        assert rude.recv(1) == b""


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(MountError, match="does not answer"):
        ask(str(tmp_path / "nothing"), "echo")


def test_somebody_there_who_does_not_answer(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        with pytest.raises(MountError, match=r"within 0\.05 s"):
            ask(str(tmp_path / "socket"), "echo", 0.05)


def test_a_socket_of_a_dead_daemon_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    server = ControlServer(path, {})
    with pytest.raises(MountError, match="does not answer"):
        ask(path, "echo", 0.05)  # it listens, and nobody accepts yet
    server.close()
