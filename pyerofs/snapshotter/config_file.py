"""Editing containerd's config.toml so that it uses us, and undoing that: comments and all that is not ours stay.

The lines are changed as text. What comes of it is read again and must be what was there with what is ours put into it:
else nothing is written. FILE.pyerofs-undo keeps what was there before.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import tomllib
from hashlib import sha256
from typing import Any

from ..errors import UnavailableError, UsageError
from ..files import atomic_write
from .configuration import render

_HEADER = re.compile(r"\s*(\[\[?)([^\[\]]+(?:\[[^\]]*\])?[^\[\]]*)(\]\]?)\s*(?:#.*)?")
_BY_HAND = "merge what `pyerofs containerd --print-config` prints yourself"
Table = dict[str, Any]
Path = tuple[str, ...]


def merged(text: str, wanted: str, where: str = "config.toml") -> str:
    """Return the text of a configuration with what another one says put into it. Raises UsageError."""
    before, ours = _parse(text, where), tomllib.loads(wanted)
    if before and before.get("version", 1) != ours["version"]:
        raise UsageError(
            f"{where} is of version {before.get('version', 1)}, and this containerd's is {ours['version']}: "
            "`containerd config migrate` brings it up to date"
        )
    lines = text.splitlines()
    goal = _combine(before, ours)
    for path, table, is_list in _tables(ours):
        lines = _prepend(lines, path, table) if is_list else _set_all(lines, path, table)
    found = "\n".join(lines).lstrip("\n") + "\n"
    try:
        right = tomllib.loads(found) == goal
    except tomllib.TOMLDecodeError:
        right = False
    if not right:
        raise UsageError(f"{where} is written in a way that cannot be edited safely: {_BY_HAND}")
    return found


def _parse(text: str, where: str) -> Table:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise UsageError(f"{where} is not TOML: {e}") from None


def _combine(old: Table, new: Table) -> Table:
    found = dict(old)
    for key, value in new.items():
        there = found.get(key)
        if isinstance(value, dict) and isinstance(there, dict):
            found[key] = _combine(there, value)
        elif isinstance(value, list) and isinstance(there, list):
            found[key] = [*value, *(each for each in there if each not in value)]
        else:
            found[key] = value
    return found


def _tables(table: Table, path: Path = ()) -> list[tuple[Path, Table, bool]]:
    """Return each table that has values of its own, with its path; and whether it is one of a list."""
    own = {key: value for key, value in table.items() if not isinstance(value, dict | list)}
    found = [(path, own, False)] if own else []
    for key, value in table.items():
        if isinstance(value, dict):
            found += _tables(value, (*path, key))
        elif isinstance(value, list):
            found += [((*path, key), each, True) for each in value]
    return found


def _header(line: str) -> tuple[Path, bool] | None:
    """Return the path of a table's header, and whether it is one of a list; None for another line."""
    if not _HEADER.fullmatch(line):
        return None
    try:
        found: Any = tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        return None
    path: list[str] = []
    while isinstance(found, dict) and found:
        [(key, found)] = found.items()
        path.append(key)
    return tuple(path), isinstance(found, list)


def _set_all(lines: list[str], path: Path, values: Table) -> list[str]:
    headers = [(number, found) for number, line in enumerate(lines) if (found := _header(line))]
    if path:
        start = next((number + 1 for number, found in headers if found == (path, False)), None)
        if start is None:
            new = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
            return [*lines, *([""] if lines else []), f"[{_written(path)}]", *new]
    else:
        start = 0
    end = next((number for number, _ in headers if number >= start), len(lines))
    for key, value in values.items():
        line = f"{key} = {json.dumps(value)}"
        pattern = re.compile(rf'(\s*)"?{re.escape(key)}"?\s*=.*')
        at = next((number for number in range(start, end) if pattern.fullmatch(lines[number])), None)
        if at is None:
            indent = re.match(r"\s*", lines[start - 1])[0] + "  " if start else ""  # type: ignore[index] # it always does
            lines = [*lines[:start], indent + line, *lines[start:]]
            end += 1
        elif tomllib.loads(lines[at].strip()) != {key: value}:
            lines = [*lines[:at], pattern.fullmatch(lines[at])[1] + line, *lines[at + 1 :]]  # type: ignore[index] # it does
    return lines


def _prepend(lines: list[str], path: Path, values: Table) -> list[str]:
    """Put a table before all others of its list, unless it is there."""
    new = [f"[[{_written(path)}]]", *(f"  {key} = {json.dumps(value)}" for key, value in values.items()), ""]
    for number, line in enumerate(lines):
        if _header(line) == (path, True):
            return lines if _is_there(lines, path, values) else [*lines[:number], *new, *lines[number:]]
    return [*lines, "", *new[:-1]]


def _is_there(lines: list[str], path: Path, values: Table) -> bool:
    found: Any = tomllib.loads("\n".join(lines))
    for key in path:
        found = found[key]
    return values in found


def _written(path: Path) -> str:
    return ".".join(key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key) for key in path)


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as e:
        raise UnavailableError(f"{path}: {getattr(e, 'strerror', None) or 'it is not UTF-8'}") from None


def install(path: str, version: str, root: str, address: str) -> bool:
    """Have containerd of this version use us; return whether there was anything to do.

    It has to be restarted then. Raises UsageError, UnavailableError, and then nothing is changed.
    """
    before = _read(path)
    after = merged(before or "", render(version, root, address), path)
    if after == before or (before is not None and tomllib.loads(after) == tomllib.loads(before)):
        return False
    kept = _undo(path)
    # What was there before the first time counts, unless it has been changed since by others.
    original = kept["original"] if kept and before is not None and _sum(before) == kept["written"] else before
    record = {"original": original, "written": _sum(after)}
    try:
        mode = stat.S_IMODE(os.stat(path).st_mode) if before is not None else 0o644
        atomic_write(f"{path}.pyerofs-undo", json.dumps(record).encode(), durable=True)
        atomic_write(path, after.encode(), durable=True, mode=mode)
    except OSError as e:
        raise UnavailableError(f"{path}: {e.strerror}") from None
    return True


def undo(path: str) -> bool:
    """Put back what was there before install(); return whether there was anything to do.

    Raises UsageError where others have changed it since, UnavailableError.
    """
    kept = _undo(path)
    if kept is None:
        return False
    now = _read(path)
    if now is None or _sum(now) != kept["written"]:
        raise UsageError(
            f"{path} has been changed since: take out what is ours by hand, then remove {path}.pyerofs-undo"
        )
    try:
        if kept["original"] is None:
            os.unlink(path)
        else:
            atomic_write(path, kept["original"].encode(), durable=True, mode=stat.S_IMODE(os.stat(path).st_mode))
        os.unlink(f"{path}.pyerofs-undo")
    except OSError as e:
        raise UnavailableError(f"{path}: {e.strerror}") from None
    return True


def _undo(path: str) -> Table | None:
    text = _read(f"{path}.pyerofs-undo")
    found: Any = None
    with contextlib.suppress(ValueError):
        found = json.loads(text or "null")
    return found if isinstance(found, dict) and {"original", "written"} <= set(found) else None


def _sum(text: str) -> str:
    return sha256(text.encode()).hexdigest()
