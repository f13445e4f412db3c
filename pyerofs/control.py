"""The control socket of a mount's daemon: one JSON line asks, one answers, descriptors may come with the answer.

A Unix stream socket in the records' directory, for root only. Each conversation has a thread of its own, so that one
who says nothing holds up nobody, and an answer never waits for the registry.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import MountFailure, PyerofsError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PATIENCE = 5.0  # seconds for the other side to say or to take its line
_LINE_MAX = 1 << 20
_FDS_MAX = 64


class Answer(NamedTuple):
    """`fds` are the receiver's from then on; who sends them keeps its own."""

    values: dict[str, Any]
    fds: Sequence[int] = ()


class ControlServer:
    """Listens at `path` until close(). `handlers`: by the name of the operation, called from any thread."""

    def __init__(self, path: str, handlers: dict[str, Callable[[dict[str, Any]], Answer]]):
        """Raises OSError."""
        self.path = path
        self._handlers = handlers
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)  # of a daemon before this one
            self._listener.bind(path)  # the directory keeps others out
            self._listener.listen()
        except BaseException:
            self._listener.close()
            raise

    def fileno(self) -> int:
        return self._listener.fileno()

    def accept(self) -> None:
        """To be called when fileno() is readable."""
        with contextlib.suppress(OSError):  # it has gone again
            client, _ = self._listener.accept()
            client.settimeout(PATIENCE)
            threading.Thread(target=self._converse, args=(client,), name="pyerofs-control", daemon=True).start()

    def _converse(self, client: socket.socket) -> None:
        with client:
            try:
                question = _receive_line(client, [])
                _send(client, self._answer(question))
            except (OSError, ValueError):
                return  # whoever asked does not listen

    def _answer(self, question: dict[str, Any]) -> Answer:
        handler = self._handlers.get(str(question.get("op")))
        if handler is None:
            return Answer({"error": f"this daemon knows no {question.get('op')!r}; it may be of another version"})
        try:
            return handler(question)
        except PyerofsError as e:
            return Answer({"error": str(e)})

    def close(self) -> None:
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)


def ask(path: str, op: str, timeout: float = PATIENCE, **values: Any) -> Answer:
    """One question to the daemon at `path`. Raises MountFailure: nobody answers there in time, or says no."""
    fds: list[int] = []
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(timeout)
            sock.connect(path)
            _send(sock, Answer({"op": op, **values}))
            answer = _receive_line(sock, fds)
        if "error" in answer:
            raise MountFailure(str(answer["error"]))
    except TimeoutError:
        _close_all(fds)
        raise MountFailure(f"the daemon does not answer within {timeout:g} s") from None
    except (OSError, ValueError) as e:
        _close_all(fds)
        raise MountFailure(f"the daemon does not answer: {getattr(e, 'strerror', None) or e}") from None
    except BaseException:
        _close_all(fds)
        raise
    return Answer(answer, fds)


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


def _send(sock: socket.socket, answer: Answer) -> None:
    line = json.dumps(answer.values).encode() + b"\n"
    if answer.fds:
        sent = socket.send_fds(sock, [line], list(answer.fds))
        line = line[sent:]
    sock.sendall(line)


def _receive_line(sock: socket.socket, fds: list[int]) -> dict[str, Any]:
    """One line; the descriptors that come with it are added to `fds`. Raises OSError, ValueError."""
    line = b""
    while not line.endswith(b"\n"):
        piece, received, _, _ = socket.recv_fds(sock, 1 << 16, _FDS_MAX)
        for fd in received:
            os.set_inheritable(fd, False)
        fds += received
        line += piece
        if not piece or len(line) > _LINE_MAX:
            raise ValueError("it hung up" if not piece else "it says too much")
    values = json.loads(line)
    if not isinstance(values, dict):
        raise ValueError("that is no answer")
    return values
