"""A mount's daemon as seen by the process that starts it; daemon/messages.py says what they say to one another."""

from __future__ import annotations

import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

from ..errors import UnavailableError, from_json
from .channel import Channel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .messages import MountRequest, Resume

_WITH_VALUE = ("-t", "--types", "-o", "--options", "-d", "--debug")  # of the command line of mount
_HARMLESS = ("PYTHONDONTWRITEBYTECODE", "PYTHONFAULTHANDLER", "PYTHONMALLOC", "PYTHONUTF8")
# Where the package lies: three steps up from this file.
PACKAGE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def spawn(module: str, *arguments: str, socket_: socket.socket) -> int:
    """Start `python -P -m pyerofs.daemon.MODULE FD ARGUMENTS` in a session of its own and return its pid.

    FD is the socket. A new interpreter, not a fork: the caller may have threads, and more memory than the daemon needs.
    It finds this very package, and imports nothing from the current directory or from where the caller's PYTHONPATH
    leads; it is to leave that directory first of all. Raises OSError.
    """
    os.set_inheritable(socket_.fileno(), True)
    try:
        return os.posix_spawn(
            sys.executable,
            [sys.executable, "-P", "-m", f"pyerofs.daemon.{module}", str(socket_.fileno()), *arguments],
            _for_python(os.environ),
            setsid=True,
        )
    finally:
        os.set_inheritable(socket_.fileno(), False)


def _for_python(environ: Mapping[str, str]) -> dict[str, str]:
    """Of what Python heeds nothing that names a place of code, but where we are ourselves."""
    kept = {name: value for name, value in environ.items() if not name.startswith("PYTHON") or name in _HARMLESS}
    home = environ.get("PYTHONHOME", "")
    return {**kept, **({"PYTHONHOME": home} if os.path.isabs(home) else {}), "PYTHONPATH": PACKAGE}


def begin() -> socket.socket:
    """Leave the caller's directory, as the first thing in a process that spawn() has started, and return its socket.

    No process that this one starts inherits the socket.
    """
    os.chdir("/")
    sock = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(sock.fileno(), False)
    return sock


def leave_terminal() -> None:
    """Give up standard input, output and error, which belong to the process that started this one."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)


def start_early(arguments: Sequence[str]) -> None:
    """Start the daemon of the mount that a command's arguments seem to ask for, before everything else.

    It comes up while this process imports what it needs itself; the caller calls drop_spare() in the end. This is a
    first glance only: nothing is done until the daemon is sent a request, and start() does without a spare as well.
    """
    global _spare
    if arguments[:1] != ["mount"]:
        return
    places = []
    words = iter(arguments[1:])
    for word in words:
        if word in _WITH_VALUE:
            next(words, None)
        elif not word.startswith("-"):
            places.append(word)
    # What is no directory may be an option with a password, which must not be among a process's arguments.
    if len(places) == 2 and not os.path.exists(places[0]) and os.path.isdir(places[1]):
        _spare = WorkerProcess(os.path.realpath(places[1]))


def drop_spare() -> None:
    """End a daemon that was started early and is not needed."""
    global _spare
    if _spare:
        _spare.kill()
        _spare = None


def start(target: str) -> WorkerProcess:
    """Start a daemon for a mount at `target`. Raises UnavailableError."""
    global _spare
    if _spare and _spare.target == target:
        daemon, _spare = _spare, None
        return daemon
    return WorkerProcess(target)


class WorkerProcess:
    """Owns its end of the conversation until give_up() or let_go(). Raises UnavailableError. For one thread."""

    def __init__(self, target: str):
        self.target = target
        ours, theirs = socket.socketpair()
        self.channel = Channel(ours)
        try:
            self.pid = spawn("worker", target, socket_=theirs)
        except OSError as e:
            self.channel.close()
            raise UnavailableError(f"cannot start the daemon: {e.strerror}") from None
        finally:
            theirs.close()

    def send(self, fds: Sequence[int] = (), **message: Any) -> None:
        """Send a message; the descriptors stay the caller's."""
        try:
            self.channel.send(message, fds)
        except OSError:
            raise self._died() from None

    def _died(self) -> UnavailableError:
        return UnavailableError("the daemon exited unexpectedly; see what it wrote, or `journalctl -t pyerofs`")

    def take_over(
        self,
        fds: Sequence[int],
        request: MountRequest,
        resume: Resume,
        report: Callable[[str], None],
        *,
        patience: float,
    ) -> None:
        """Have the daemon go on with a mount; return when it serves.

        `fds`, which stay the caller's, are what `resume` tells of. Raises UnavailableError after `patience` seconds
        without an answer.
        """
        self.send(fds, **request.to_json(), resume=resume.to_json())
        self.channel.socket.settimeout(patience)
        self.wait_for("done", report)
        self.channel.socket.settimeout(None)

    def wait_for(
        self, key: str, report: Callable[[str], None], wishes: Mapping[str, Callable[[Any], None]] | None = None
    ) -> Any:
        """Return the value of the next message with this key.

        `wishes`: what the daemon may want done before that, by the key of the message. Raises what the daemon reports.
        """
        while True:
            try:
                message = self.channel.receive()
            except TimeoutError:
                raise UnavailableError("the daemon has not answered in time; see `journalctl -t pyerofs`") from None
            except (OSError, ValueError, EOFError):
                raise self._died() from None
            if "error" in message:
                raise from_json(message)
            if key in message:
                return message[key]
            for other, value in message.items():
                (wishes or {}).get(other, report)(value)

    def give_up(self) -> bool:
        """Hang up, which makes the daemon take everything back, and wait until it has.

        True: it could not, since it was killed.
        """
        self.channel.close()
        return os.WIFSIGNALED(os.waitpid(self.pid, 0)[1])

    def kill(self) -> None:
        """End the daemon now, whatever it has begun."""
        self.channel.close()
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def let_go(self) -> None:
        self.channel.close()
        # It outlives a command; in a longer-lived caller it would become a zombie when the filesystem is unmounted.
        import threading

        threading.Thread(target=os.waitpid, args=(self.pid, 0), daemon=True).start()


_spare: WorkerProcess | None = None  # started early, and not in use yet
