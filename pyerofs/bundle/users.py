"""The user of an image's config as numbers: its names are looked up in the image's own passwd(5) and group(5)."""

from __future__ import annotations

from typing import NamedTuple

from ..errors import ImageError, UnavailableError
from .rootfile import read_in_root

_MAX = 1 << 20  # bytes of a list
_ID_MAX = (1 << 32) - 2


class ContainerUser(NamedTuple):
    """`groups`: the additional ones; `home`: its directory, "" where the image does not say."""

    uid: int
    gid: int
    groups: list[int]
    home: str


def look_up(root: str, text: str) -> ContainerUser:
    """Return the user that `text` names, `[USER][:GROUP]` of names or numbers, in the image that is mounted at `root`.

    OCI image spec, "Image Configuration", "User": without a group, those that the image's lists give the user. Raises
    ImageError.
    """
    user, colon, group = text.partition(":")
    users, groups = _read(root, "/etc/passwd"), _read(root, "/etc/group")
    number = _number(user or "0")
    row = next(
        (
            row
            for row in users
            if len(row) >= 4 and (row[0] == user or (number is not None and _number(row[2]) == number))
        ),
        None,
    )
    uid = number if number is not None else _number(row[2]) if row else None
    if uid is None:
        raise ImageError(f"the image's user {user[:64]!r} is not in its /etc/passwd")
    home = row[5] if row and len(row) > 5 else ""
    if colon and group:
        gid = _number(group)
        if gid is None:
            gid = next((_number(entry[2]) for entry in groups if len(entry) > 2 and entry[0] == group), None)
        if gid is None:
            raise ImageError(f"the image's group {group[:64]!r} is not in its /etc/group")
        return ContainerUser(uid, gid, [], home)
    gid = (_number(row[3]) if row else None) or 0
    more = {
        number
        for entry in groups
        if row and len(entry) > 3 and row[0] in entry[3].split(",") and (number := _number(entry[2])) is not None
    }
    return ContainerUser(uid, gid, sorted(more - {gid}), home)


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 10 and int(text) <= _ID_MAX else None


def _read(root: str, path: str) -> list[list[str]]:
    try:
        text = read_in_root(root, path, _MAX).decode(errors="replace")
    except UnavailableError:
        raise
    except OSError:
        return []  # an image need not have one
    return [line.split(":") for line in text.splitlines()]
