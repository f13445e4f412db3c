"""Messages between our processes."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator

import pytest

from pyerofs.daemon.channel import Channel


@pytest.fixture
def pair() -> Iterator[tuple[Channel, Channel]]:
    ours, theirs = socket.socketpair()
    with Channel(ours) as one, Channel(theirs) as other:
        yield one, other


def test_several_messages_at_once_and_one_in_pieces(pair: tuple[Channel, Channel]) -> None:
    one, other = pair
    one.send({"a": 1})
    one.send({"b": "ü\n"})
    assert other.receive() == {"a": 1}
    assert other.pending()
    assert other.receive() == {"b": "ü\n"}
    assert not other.pending()
    one.socket.sendall(b'{"c"')
    one.socket.sendall(b": 3}\n")
    assert other.receive() == {"c": 3}


def test_descriptors(pair: tuple[Channel, Channel]) -> None:
    one, other = pair
    reader, writer = os.pipe()
    one.send({"fds": 2}, [reader, writer])
    os.close(reader)
    os.close(writer)
    assert other.receive() == {"fds": 2}
    fds = other.take_fds()
    os.write(fds[1], b"x")
    assert os.read(fds[0], 1) == b"x"
    assert not any(os.get_inheritable(fd) for fd in fds)
    assert other.take_fds() == []
    for fd in fds:
        os.close(fd)


def test_more_descriptors_than_go_in_one_piece(pair: tuple[Channel, Channel]) -> None:
    one, other = pair
    pipes = [os.pipe() for _ in range(200)]
    one.send({"many": True}, [fd for pipe in pipes for fd in pipe])
    one.send({"next": True})
    assert other.receive() == {"many": True}
    fds = other.take_fds()
    assert len(fds) == 400
    for number, (ours, theirs) in enumerate(zip(pipes, zip(fds[::2], fds[1::2], strict=True), strict=True)):
        os.write(theirs[1], b"%d" % number)
        assert os.read(ours[0], 10) == b"%d" % number  # in their order
    assert other.receive() == {"next": True}
    for fd in (*fds, *(fd for pipe in pipes for fd in pipe)):
        os.close(fd)


def test_descriptors_that_nobody_takes_are_closed() -> None:
    ours, theirs = socket.socketpair()
    reader, writer = os.pipe()
    with Channel(ours) as one, Channel(theirs) as other:
        one.send({}, [writer])
        os.close(writer)
        other.receive()
    assert os.read(reader, 1) == b""  # no writer is left
    os.close(reader)


@pytest.mark.parametrize("line", [b"[]\n", b"nonsense\n", b"\xff\n"])
def test_what_is_no_message(pair: tuple[Channel, Channel], line: bytes) -> None:
    one, other = pair
    one.socket.sendall(line)
    with pytest.raises(ValueError):
        other.receive()


def test_a_message_without_an_end(pair: tuple[Channel, Channel]) -> None:
    one, other = pair

    def talk_on() -> None:
        with contextlib.suppress(OSError):
            one.socket.sendall(b"x" * (5 << 20))

    talk = threading.Thread(target=talk_on)
    talk.start()
    with pytest.raises(ValueError, match="too long"):
        other.receive()
    other.close()  # and the talker sees that
    one.socket.shutdown(socket.SHUT_RDWR)
    talk.join()


def test_a_hang_up(pair: tuple[Channel, Channel]) -> None:
    one, other = pair
    one.socket.sendall(b'{"half')
    one.socket.shutdown(socket.SHUT_WR)
    with pytest.raises(EOFError):
        other.receive()
