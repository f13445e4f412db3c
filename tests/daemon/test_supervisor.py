"""The supervisor's process, as far as it goes without a device: tests/guest has the rest."""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from pyerofs.daemon import supervisor_link
from pyerofs.daemon.channel import Channel
from pyerofs.daemon.messages import Watch
from pyerofs.daemon.record import Record, start_of
from pyerofs.daemon.supervisor import Heartbeat
from pyerofs.daemon.supervisor_link import SupervisorLink

REQUEST = struct.Struct(">IHHQQI")
REPLY = struct.Struct(">IIQ")


@pytest.mark.parametrize("said", [b"", b'{"bye": true}\n', b'{"handover": true}\n'])
def test_a_mount_that_fails_needs_none_and_hears_nothing_of_it(said: bytes) -> None:
    """What it wrote would stand on the terminal of whoever mounts."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "pyerofs.daemon.supervisor", str(theirs.fileno()), "/mnt"],
            pass_fds=[theirs.fileno()],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        theirs.close()
        ours.sendall(said)
        ours.shutdown(socket.SHUT_WR)
        out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, b"")


class Answerer(threading.Thread):
    """Plays the data path of a daemon whose registry hangs."""

    def __init__(self, sock: socket.socket):
        super().__init__(daemon=True)
        self.sock = sock
        self.start()

    def run(self) -> None:
        while data := self.sock.recv(REQUEST.size, socket.MSG_WAITALL):
            *_, cookie, _offset, length = REQUEST.unpack(data)
            if cookie % 2:
                continue  # the read of the first granule waits
            self.sock.sendall(REPLY.pack(0x67446698, 22 if not length else 0, cookie))


@pytest.fixture
def heart() -> Iterator[tuple[Heartbeat, socket.socket]]:
    ours, theirs = socket.socketpair()
    heart = Heartbeat(ours.detach())
    yield heart, theirs
    heart.close()
    theirs.close()


def test_a_heart_beats_while_the_registry_hangs(heart: tuple[Heartbeat, socket.socket]) -> None:
    beat, other = heart
    Answerer(other)
    for _ in range(3):
        beat.ask()
        while not beat.answered():
            assert beat.listen()


def test_data_that_comes_late_is_taken_for_what_it_is(heart: tuple[Heartbeat, socket.socket]) -> None:
    beat, other = heart
    beat.ask()
    first = REPLY.pack(0x67446698, 0, 1) + REPLY.pack(0x67446698, 0, 2) * 32  # 512 bytes that look like replies
    for piece in (first[:100], first[100:]):
        other.sendall(piece)
        assert beat.listen()
        assert not beat.answered()
    other.sendall(REPLY.pack(0x67446698, 22, 2))
    assert beat.listen()
    assert beat.answered()


def test_one_that_is_dead_does_not_beat(heart: tuple[Heartbeat, socket.socket]) -> None:
    beat, other = heart
    beat.ask()
    other.close()
    assert not beat.listen()
    assert not beat.answered()


@pytest.mark.parametrize(("life_min", "pauses"), [(1e9, [0.1, 0.2, 0.4]), (0.0, [0.0, 0.0, 0.0])])
def test_one_that_dies_is_started_again_later_if_it_died_at_once(
    life_min: float, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_link, "LIFE_MIN", life_min)
    supervised = SupervisorLink(None, lambda _: None)  # type: ignore[arg-type]  # it is not watched, which needs a server
    found = []
    for _ in pauses:
        supervised.start("/mnt")
        os.kill(supervised.pid, signal.SIGKILL)
        os.waitpid(supervised.pid, 0)
        assert select.select([supervised.fileno()], [], [], 60)[0]
        supervised.lost()
        assert supervised.fileno() == -1
        found.append(supervised.pause)
    assert found == pauses


def test_a_supervisor_ends_with_its_mount_while_the_worker_waits_for_that() -> None:
    """Neither waits for the other's end."""
    ours, theirs = socket.socketpair()
    heart, other = socket.socketpair()
    record = Record("pyerofs-1-1", os.getpid(), start_of(os.getpid()), "/mnt", "", "fuse", "", ())
    watch = Watch(record, None, 1, 1.0, "0", ("stderr", "info"))
    with ours, theirs, heart, other:
        process = subprocess.Popen(
            [sys.executable, "-m", "pyerofs.daemon.supervisor", str(theirs.fileno()), "/mnt"],
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        channel = Channel(ours)
        channel.send({"watch": watch.to_json()}, [other.fileno()])
        assert channel.receive() == {"ready": process.pid}
        channel.send({"bye": True})
        assert process.wait(60) == 0
