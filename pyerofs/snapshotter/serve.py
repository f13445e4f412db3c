"""The snapshotter as a process. It holds no data path: workers serve the mounts, with or without it."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Mapping, Sequence

from ..config.options import parse_mount_options
from ..errors import PyerofsError, UnavailableError, UsageError
from ..grpc.server import GrpcServer, activated, listen, serve
from .chains import Chains
from .decision import Decisions
from .removal import Removal
from .service import Snapshots
from .state import State
from .usage import Usage

ROOT = "/var/lib/pyerofs/snapshotter"
ADDRESS = "/run/pyerofs-containerd.sock"
IDLE = 600.0  # seconds
_LOOK = 10.0  # seconds between two looks at the mounts
_LARGEST = 1 << 20  # bytes of a request: containerd's have a few thousand
_GRACE = 5.0  # seconds for calls under way when it is to end


def run(
    root: str,
    address: str,
    idle: float,
    options: Sequence[str],
    only: Sequence[str],
    log: Callable[[str], None],
    ready: Callable[[str], None],
    environ: Mapping[str, str],
) -> None:
    """Serve containerd until a signal ends it; the mounts stay. For the main thread.

    `root`: its directory; `address`: its socket, unless a service manager has opened one; `idle`: seconds after which
    an image that no container needs is unmounted; `options`: -o strings for every mount; `only`: prefixes of the names
    of images that may be lazy, none for all; `ready` gets the address when it serves. Nothing is mounted, and no
    registry asked, before containerd wants it. Raises PyerofsError.
    """
    if os.geteuid() != 0:
        raise UsageError("only root can mount, and so can only root serve containerd")
    parse_mount_options(options)
    root = os.path.abspath(root)
    directory = os.path.join(root, "snapshots")
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        lock = os.open(os.path.join(root, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UnavailableError(f"cannot use {root}: {error.strerror}") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another `pyerofs containerd` uses {root}: give each containerd its own --root") from None
        decisions = Decisions(options, log, only)
        _serve(root, directory, address, idle, options, decisions, log, ready, environ)
    finally:
        os.close(lock)


def _serve(
    root: str,
    directory: str,
    address: str,
    idle: float,
    options: Sequence[str],
    decisions: Decisions,
    log: Callable[[str], None],
    ready: Callable[[str], None],
    environ: Mapping[str, str],
) -> None:
    os.umask(0o022)
    state = State(os.path.join(root, "state.db"), begun=bool(os.listdir(directory)))
    chains = Chains(directory, state, options, log)
    removal = Removal(directory, state, chains, log)
    usage = Usage(state, chains, log)
    service = Snapshots(directory, state, chains, decisions, removal, usage, log)
    listeners = activated(environ)
    own = not listeners
    if own:
        listeners = [listen(address)]
    ended = threading.Event()

    def look_after() -> None:
        """Have what is left removed, and then look at the mounts now and then."""
        try:
            removal.add_unknown()
        except (OSError, PyerofsError) as error:
            log(f"cannot look for what is left of removed snapshots: {error}")
        while not ended.wait(min(_LOOK, idle / 2 or _LOOK)):
            try:
                chains.look_after(idle)
            except (OSError, PyerofsError) as error:
                log(f"cannot look after the mounts: {error}")

    keeper = threading.Thread(target=look_after, name="pyerofs-keeper", daemon=True)
    try:
        server = GrpcServer(service.methods(), log, largest=_LARGEST)

        def begin() -> None:
            keeper.start()
            ready(address if own else "the service manager's socket")

        serve(server, listeners, begin, grace=_GRACE)
    finally:
        ended.set()
        for listener in listeners:
            listener.close()
        if own:
            os.unlink(address)
        state.close()
