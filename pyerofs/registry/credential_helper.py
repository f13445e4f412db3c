"""Credential helpers: programs named docker-credential-NAME that keep passwords for docker and podman.

docker/docker-credential-helpers, "Development": `docker-credential-NAME get` reads a server's address from standard
input and writes {"ServerURL", "Username", "Secret"} to standard output. What it says is not repeated beyond one
redacted line, since it may be a secret. Any thread; nothing is kept, and no process is left behind.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from .. import program as programs
from ..errors import RegistryError, UsageError
from ..secret import Secret

if TYPE_CHECKING:
    from subprocess import Popen

TIMEOUT = 12.0  # seconds; a helper may ask a cloud's service, but cannot ask a user
_OUTPUT_MAX = 64 << 10  # bytes of each of its outputs
_PREFIX = "docker-credential-"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_NOT_FOUND = "credentials not found in native keychain"
_WORDS_MAX = 120  # characters of the helper's own complaint that are repeated
# Anything in it that is long and has no blank might be a token, whatever it is meant to be.
_LONG_WORD = re.compile(r"[^\s/:,;]{24,}")


class StoredCredential(NamedTuple):
    """What a helper keeps: a password or, where `username` is "<token>", an identity token."""

    username: str
    secret: Secret


def get(helper: str, server: str, *, environ: Mapping[str, str], timeout: float = TIMEOUT) -> StoredCredential | None:
    """Return what docker-credential-`helper` has for `server`; None where it has nothing.

    It is found in `environ`'s PATH, and gets all of `environ`. Raises UsageError for a program that is not there or
    does not keep to the protocol, RegistryError (temporary) for one that fails or takes longer than `timeout` seconds.
    """
    path = find(helper, environ)
    program = f"{_PREFIX}{helper}"
    if path is None:
        raise UsageError(f"the credential helper {program} is not in PATH")
    status, output, complaint = exchange(program, [path, "get"], server.encode(), server, environ, timeout)
    if status != 0:
        # By the protocol the reason stands on standard output.
        said = (output.strip() or complaint.strip()).decode(errors="replace")
        if said.strip().lower().startswith(_NOT_FOUND):
            return None
        raise RegistryError(f"{program} failed for {server}: {complain(status, said)}", temporary=True)
    return _read(program, output)


def find(helper: str, environ: Mapping[str, str]) -> str | None:
    """Return the path of docker-credential-`helper`; None where there is no such program.

    Raises UsageError where the helper's name cannot be one.
    """
    if not _NAME.fullmatch(helper):
        raise UsageError("the name of a credential helper has letters, digits, '.', '_' and '-' only")
    return programs.find(f"{_PREFIX}{helper}", environ, system=False)


def _read(program: str, output: bytes) -> StoredCredential | None:
    import json

    try:
        answer = json.loads(output)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise UsageError(f"{program} answered with something that is not a JSON object")
    username, secret = answer.get("Username"), answer.get("Secret")
    if not isinstance(username, str) or not isinstance(secret, str):
        raise UsageError(f"{program} answered without a Username and a Secret")
    return StoredCredential(username, Secret(secret)) if username and secret else None


def exchange(
    program: str, command: Sequence[str], data: bytes, server: str, environ: Mapping[str, str], timeout: float
) -> tuple[int, bytes, bytes]:
    """Give a program `data`; return exit status (or minus the signal), standard output, standard error.

    `program` and `server` (what it is asked about) are for messages. Raises as get() does.
    """
    deadline = time.monotonic() + timeout
    try:
        process = programs.start(command, stdin=True, stdout=True, stderr=True, environ=environ)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "the environment cannot be passed on"
        raise UsageError(f"cannot run {program}: {reason}") from None
    with process:
        try:
            outputs = _talk(program, process, data, server, deadline)
            status = programs.wait(process, deadline - time.monotonic())
            if status is None:
                raise _too_slow(program, server)
            return status, outputs[0], outputs[1]
        except BaseException:
            programs.end(process)
            raise


def _talk(program: str, process: Popen[bytes], data: bytes, server: str, deadline: float) -> list[bytes]:
    """Write `data` and read both outputs to their ends, as they come: neither side can wait for the other."""
    import select

    assert process.stdin and process.stdout and process.stderr  # noqa: S101 - for the type checker
    try:
        process.stdin.write(data)  # far less than a pipe holds, so that this does not wait
        process.stdin.close()
    except BrokenPipeError:
        pass  # it does not care; what it answers counts
    outputs = {process.stdout.fileno(): b"", process.stderr.fileno(): b""}
    poll = select.poll()
    for fd in outputs:
        poll.register(fd, select.POLLIN)
    still = len(outputs)
    while still:
        left = deadline - time.monotonic()
        ready = poll.poll(left * 1000) if left > 0 else []
        if not ready:
            raise _too_slow(program, server)
        for fd, _ in ready:
            piece = os.read(fd, _OUTPUT_MAX)
            outputs[fd] += piece
            if not piece:
                poll.unregister(fd)
                still -= 1
            elif len(outputs[fd]) > _OUTPUT_MAX:
                raise UsageError(f"{program} answered with more than {_OUTPUT_MAX >> 10} KiB")
    return list(outputs.values())


def _too_slow(program: str, server: str) -> RegistryError:
    return RegistryError(f"{program} gave no answer for {server} in time, and was ended", temporary=True)


def complain(status: int, said: str) -> str:
    """Say how a program ended, and what of its complaint can be repeated."""
    return f"{f'status {status}' if status > 0 else f'signal {-status}'}{_words(said)}"


def _words(text: str) -> str:
    """Return the helper's complaint, behind a colon: its first line, short, without what might be a secret."""
    lines = text.strip().splitlines()
    line = "".join(c if c.isprintable() else " " for c in lines[0]) if lines else ""
    line = _LONG_WORD.sub("***", line)[:_WORDS_MAX].strip()
    return f": {line}" if line else ""
