"""From the text of an option to its value: each function takes the option's name, for its message, and the text.

Raises UsageError; no message repeats a value that may be a secret. Pure values.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

from ..errors import UsageError
from ..http.url import parse as parse_url
from ..oci.reference import is_digest
from ..secret import Secret

LOG_PLACES = ("auto", "journal", "syslog", "stderr")


def whole(lowest: int, highest: int) -> Callable[[str, str], int]:
    def convert(name: str, value: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", value) or not lowest <= int(value) <= highest:
            raise UsageError(f"{name}={value!r}: a whole number from {lowest} to {highest} is needed")
        return int(value)

    return convert


def one_of(*words: str) -> Callable[[str, str], str]:
    def convert(name: str, value: str) -> str:
        if value not in words:
            raise UsageError(f"{name}={value!r}: it must be one of {', '.join(words)}")
        return value

    return convert


def soci(name: str, value: str) -> str:
    if value in ("auto", "v1", "no") or is_digest(value):
        return value
    raise UsageError(f"{name}={value!r}: it must be one of auto, v1, no, or the digest of a SOCI index")


def path(_name: str, value: str) -> str:
    """Absolute: the daemon, which uses it later, runs in another directory."""
    return os.path.abspath(value)


def text(_name: str, value: str) -> str:
    return value


def secret(_name: str, value: str) -> Secret:
    return Secret(value)


def boolean(name: str, value: str) -> bool:
    return one_of("1", "yes", "true", "0", "no", "false")(name, value) in ("1", "yes", "true")


def seconds(name: str, value: str) -> float:
    match = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)([sm]?)", value)
    seconds = float(match[1]) * (60 if match[2] == "m" else 1) if match else 0.0
    if seconds <= 0:
        raise UsageError(f"{name}={value!r}: a time above 0 is needed, in seconds, or with the unit s or m")
    return seconds


def mirror(name: str, value: str) -> str:
    try:
        if parse_url(value).query:
            raise ValueError
    except ValueError:
        # Not repeated in the message: it may contain a password.
        raise UsageError(f"{name}: the URL of a mirror is http[s]://HOST[:PORT][/PATH]") from None
    return value


def parsed(parse: Callable[[str], Any]) -> Callable[[str, str], Any]:
    def convert(name: str, value: str) -> Any:
        try:
            return parse(value)
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from None

    return convert


def nbd_device(name: str, value: str) -> str:
    if not re.fullmatch(r"/dev/nbd[0-9]{1,6}", value):
        raise UsageError(f"{name}={value!r}: it must be a device such as /dev/nbd0")
    return value


def log_place(name: str, value: str) -> str:
    if value not in LOG_PLACES and not os.path.isabs(value):
        raise UsageError(f"{name}={value!r}: it must be one of {', '.join(LOG_PLACES)}, or the absolute path of a file")
    return value


def prefetch(name: str, value: str) -> str | tuple[str, ...]:
    """Return a word, or paths in the image, which are absolute."""
    if value in ("auto", "none"):
        return value
    paths = tuple(path for path in value.split(":") if path)
    if not paths or not all(path.startswith("/") for path in paths):
        raise UsageError(f"{name}={value!r}: it must be auto, none, or absolute paths in the image, A:B")
    return paths
