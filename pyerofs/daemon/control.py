"""The control socket of a mount's daemon: one message asks, one answers, descriptors may come with the answer.

A Unix stream socket in the records' directory, for root only. Each conversation has a thread of its own, so that one
a silent client holds up no other, and an answer never waits for the registry.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import MountError, PyerofsError
from .channel import Channel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PATIENCE = 5.0  # seconds for the other side to say or to take its line


def _nothing() -> None:
    pass


class Answer(NamedTuple):
    """`fds` are the receiver's from then on; who sends them keeps its own. `sent` is called when it has gone."""

    values: dict[str, Any]
    fds: Sequence[int] = ()
    sent: Callable[[], None] = _nothing


class ControlServer:
    """Listens at `path` until close(). `handlers`: by the name of the operation, called from any thread."""

    def __init__(self, path: str, handlers: dict[str, Callable[[dict[str, Any]], Answer]]):
        """Listen at `path`. Raises OSError."""
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
        with Channel(client) as channel:
            try:
                answer = self._answer(channel.receive())
            except (OSError, ValueError, EOFError):
                return  # it said nothing that could be answered
            try:
                channel.send(answer.values, answer.fds)
            except OSError:
                return  # it does not listen any more
            finally:
                answer.sent()

    def _answer(self, question: dict[str, Any]) -> Answer:
        handler = self._handlers.get(str(question.get("op")))
        if handler is None:
            return Answer({"error": f"this daemon does not know {question.get('op')!r}; it may be of another version"})
        try:
            return handler(question)
        except PyerofsError as e:
            return Answer({"error": str(e)})

    def close(self) -> None:
        """Stop listening. The socket's name stays: it may be another daemon's by now, and goes with the record."""
        self._listener.close()


def ask(path: str, op: str, timeout: float = PATIENCE, **values: Any) -> Answer:
    """One question to the daemon at `path`. Raises MountError if no answer comes in time, or a refusal."""
    try:
        with Channel(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as channel:
            channel.socket.settimeout(timeout)
            channel.socket.connect(path)
            channel.send({"op": op, **values})
            answer = channel.receive()
            if "error" in answer:
                raise MountError(str(answer["error"]))
            return Answer(answer, channel.take_fds())
    except TimeoutError:
        raise MountError(f"the daemon does not answer within {timeout:g} s") from None
    except (OSError, ValueError, EOFError) as e:
        raise MountError(f"the daemon does not answer: {getattr(e, 'strerror', None) or e}") from None
