"""The fields of one entry of a TOC in JSON, each with its type and its limits. From a stranger: TocError is all."""

from __future__ import annotations

import base64
import functools
import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from .. import reader
from ..reader import TarEntry, show
from .model import DIGEST_SIZE, TocError

KINDS = {
    "reg": reader.FILE,
    "hardlink": reader.HARD_LINK,
    "symlink": reader.SYMLINK,
    "char": reader.CHARACTER,
    "block": reader.BLOCK,
    "dir": reader.DIRECTORY,
    "fifo": reader.FIFO,
}
SIZE_MAX = 2**63 - 1
OWNER_MAX = 2**32 - 2  # the last one means "leave it" to chown(2)
MAJOR_MAX, MINOR_MAX = 2**12 - 1, 2**20 - 1  # all that Linux has
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(?:Z|([+-])(\d\d):(\d\d))", re.ASCII)  # RFC 3339
_EPOCH = datetime(1970, 1, 1)
NO_TIME = "0001-01-01T00:00:00Z"  # Go's
_NO_DEVICE = (0, 0)
_LINKS, _DEVICES = (reader.HARD_LINK, reader.SYMLINK), (reader.CHARACTER, reader.BLOCK)
_NO_XATTRS: dict[bytes, bytes] = {}
_REPLACED = "\ufffd"  # what Go writes for each byte that is not UTF-8

Fields = Mapping[str, Any]


def tar_entry(fields: Fields) -> TarEntry:
    """Return the entry that the fields describe, all of it but the bytes of a file. Raises TocError."""
    get = fields.get
    stated = get("type")
    kind = KINDS.get(stated) if isinstance(stated, str) else None
    if kind is None:
        raise TocError(f"it has an entry of the unknown type {ascii(stated)[:40]}")
    size, link, device, xattrs = 0, b"", _NO_DEVICE, get("xattrs")
    if kind == reader.FILE:
        size = number(fields, "size")
    elif kind in _LINKS:
        link = text(fields, "linkName")
    elif kind in _DEVICES:
        device = number(fields, "devMajor", MAJOR_MAX), number(fields, "devMinor", MINOR_MAX)
    uid = number(fields, "uid", OWNER_MAX) if "uid" in fields else 0
    gid = number(fields, "gid", OWNER_MAX) if "gid" in fields else 0
    return TarEntry(
        text(fields, "name"),
        kind,
        number(fields, "mode") & 0o7777,
        uid,
        gid,
        _time(fields),
        size,
        link,
        device,
        _xattrs(xattrs) if xattrs else _NO_XATTRS,
    )


def number(fields: Fields, key: str, most: int = SIZE_MAX) -> int:
    """Return a field's value, 0 to `most`; 0 where it is missing."""
    value = fields.get(key, 0)
    if type(value) is not int:
        if value is None:
            return 0
        raise TocError(f"it has something else than a number for {key!r}")
    if not 0 <= value <= most:
        raise TocError(f"it has {value if -(2**64) < value < 2**64 else 'a huge number'} for {key!r}")
    return value


def text(fields: Fields, key: str) -> bytes:
    """Return a field's value as the bytes of a name; b"" where it is missing.

    What was not UTF-8 in the archive cannot be told any more: that is a TocError.
    """
    value = fields.get(key, "")
    if not isinstance(value, str):
        if value is None:
            return b""
        raise TocError(f"it has something else than a text for {key!r}")
    return _name_bytes(value)


def sha256(value: object) -> bytes:
    """Return the bytes of "sha256:HEX". Raises TocError for anything else."""
    if isinstance(value, str) and len(value) == 7 + 2 * DIGEST_SIZE and value.startswith("sha256:"):
        try:
            found = bytes.fromhex(value[7:])
        except ValueError:
            found = b""
        if len(found) == DIGEST_SIZE:
            return found
    raise TocError("it has something else than a SHA-256 for a digest")


def _name_bytes(value: str) -> bytes:
    if value.isascii():
        found = value.encode()
        if b"\0" in found:
            raise TocError(f"it has a NUL in the name {show(found)}")
        return found
    if _REPLACED in value:
        raise TocError(f"it has lost bytes of the name {show(value.encode('utf-8', 'replace'))}, which is not UTF-8")
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise TocError("it has half of a surrogate pair in a name") from None


def _xattrs(found: object) -> dict[bytes, bytes]:
    if not isinstance(found, dict):
        raise TocError("it has something else than an object for 'xattrs'")
    xattrs = {}
    for key, value in found.items():
        try:
            xattrs[_name_bytes(key)] = base64.b64decode("" if value is None else value, validate=True)
        except (ValueError, TypeError):
            raise TocError(f"it has a value that is not base64 for the attribute {key[:80]!a}") from None
    return xattrs


def _time(fields: Fields) -> int:
    value = fields.get("modtime")
    if value is None:
        return 0
    if not isinstance(value, str):
        raise TocError("it has something else than a text for 'modtime'")
    return nanoseconds(value)


@functools.lru_cache(4096)
def nanoseconds(value: str) -> int:
    """Return a time since the epoch. Of an empty text, and of Go's zero time: 0."""
    if value in ("", NO_TIME):
        return 0
    found = _TIME.fullmatch(value)
    try:
        if found is None:
            raise ValueError
        at = datetime.fromisoformat(found[1]) - _EPOCH
    except ValueError:
        raise TocError("it has something else than a time of RFC 3339 for 'modtime'") from None
    if found[3]:
        shift = timedelta(hours=int(found[4]), minutes=int(found[5]))
        at = at - shift if found[3] == "+" else at + shift
    return (at.days * 86400 + at.seconds) * 10**9 + int((found[2] or "").ljust(9, "0"))
