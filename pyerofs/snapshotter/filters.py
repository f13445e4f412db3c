"""containerd's filters (pkg/filters): `labels."a.b"==c,parent=="x y"`; what is compared is a snapshot's."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

_PIECE = re.compile(
    r"""(?P<field>[A-Za-z_][\w]*(?:\.(?:"(?:[^"\\]|\\.)*"|[A-Za-z0-9_/-]+))*)
        (?:(?P<operator>==|!=|~=)(?P<value>"(?:[^"\\]|\\.)*"|[^,]*))?
        (?:,|$)""",
    re.VERBOSE,
)
_KEY = re.compile(r'\.("(?:[^"\\]|\\.)*"|[A-Za-z0-9_/-]+)')

Matcher = Callable[[Mapping[str, Any]], bool]


def parse(filters: list[str]) -> Matcher:
    """Return what tells whether a snapshot fits one of the filters; all do where there is none. Raises ValueError."""
    each = [_parse(text) for text in filters]
    return lambda info: not each or any(matches(info) for matches in each)


def _parse(text: str) -> Matcher:
    conditions: list[Matcher] = []
    at = 0
    while at < len(text):
        found = _PIECE.match(text, at)
        if not found or found.end() == at:
            raise ValueError(f"malformed filter {text[:200]!r}")
        conditions.append(_condition(found["field"], found["operator"], found["value"]))
        at = found.end()
    return lambda info: all(holds(info) for holds in conditions)


def _condition(field: str, operator: str | None, value: str | None) -> Matcher:
    name, _, _ = field.partition(".")
    key = ".".join(_plain(part) for part in _KEY.findall(field[len(name) :]))
    wanted = _plain(value or "")
    pattern = re.compile(wanted) if operator == "~=" else None

    def get(info: Mapping[str, Any]) -> str | None:
        if name == "labels":
            label: str | None = info["labels"].get(key)
            return label
        return str(info[name]) if name in ("kind", "name", "parent") else None

    def holds(info: Mapping[str, Any]) -> bool:
        found = get(info)
        if operator is None:
            return bool(found)
        if pattern is not None:
            return found is not None and pattern.search(found) is not None
        return (found == wanted) == (operator == "==")

    return holds


def _plain(text: str) -> str:
    if not text.startswith('"'):
        return text
    try:
        return str(json.loads(text))
    except ValueError:
        raise ValueError(f"malformed text {text[:200]}") from None
