"""As much of YAML as kubelet's configuration files are written in: mappings, sequences and scalars; JSON as well.

What is more than that (anchors, block scalars, tags, several documents) is an error, never another value. Scalars stay
text.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

_KEY = re.compile(r"""("(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|[^\s"'\[\]{},#&*!|>%@`-][^:#]*?)\s*:(?:\s+|$)""")
_DEPTH = 16


class _Line(NamedTuple):
    number: int
    indent: int
    text: str


def parse(text: str) -> Any:
    """Return dicts, lists and texts. Raises ValueError, which names the line and nothing of what it says."""
    if text.lstrip().startswith("{"):
        return json.loads(text)
    lines: list[_Line] = []
    for number, raw in enumerate(text.splitlines(), 1):
        line = _without_comment(raw).rstrip()
        if line and not (line == "---" and not lines):
            if "\t" in line[: len(line) - len(line.lstrip())]:
                raise ValueError(f"line {number}: a tab")
            lines.append(_Line(number, len(line) - len(line.lstrip(" ")), line.strip()))
    value, rest = _value(lines, 0)
    if rest:
        raise ValueError(f"line {rest[0].number}: it is indented otherwise than those before it")
    return value


def _value(lines: list[_Line], depth: int) -> tuple[Any, list[_Line]]:
    """Return what the first lines are, and the others."""
    if not lines:
        return None, []
    if depth > _DEPTH:
        raise ValueError(f"line {lines[0].number}: nested too deeply")
    first = lines[0]
    if _is_item(first):
        return _sequence(lines, first.indent, depth)
    if _KEY.match(first.text):
        return _mapping(lines, first.indent, depth)
    return _scalar(first, first.text), lines[1:]


def _is_item(line: _Line) -> bool:
    return line.text == "-" or line.text.startswith("- ")


def _sequence(lines: list[_Line], indent: int, depth: int) -> tuple[list[Any], list[_Line]]:
    found: list[Any] = []
    while lines and lines[0].indent == indent and _is_item(lines[0]):
        first, lines = lines[0], lines[1:]
        inner = first.text[1:].lstrip()
        if inner:
            moved = first._replace(indent=indent + len(first.text) - len(inner), text=inner)
            lines = [moved, *lines]
        elif not lines or lines[0].indent <= indent:
            found.append(None)
            continue
        value, lines = _value(lines, depth + 1)
        found.append(value)
    return found, lines


def _mapping(lines: list[_Line], indent: int, depth: int) -> tuple[dict[str, Any], list[_Line]]:
    found: dict[str, Any] = {}
    while lines and lines[0].indent == indent and (match := _KEY.match(lines[0].text)):
        first, lines = lines[0], lines[1:]
        key, rest = str(_scalar(first, match[1])), first.text[match.end() :]
        if key in found:
            raise ValueError(f"line {first.number}: a key is there twice")
        if rest:
            found[key] = _scalar(first, rest)
        elif lines and (lines[0].indent > indent or (lines[0].indent == indent and _is_item(lines[0]))):
            found[key], lines = _value(lines, depth + 1)
        else:
            found[key] = None
    return found, lines


def _scalar(line: _Line, text: str) -> Any:
    try:
        if text[0] in '"[{':
            return json.loads(text)
    except ValueError:
        if text[0] != "[" or not text.endswith("]") or "[" in text[1:]:
            raise ValueError(f"line {line.number}: it cannot be read") from None
        return [_scalar(line, part.strip()) for part in text[1:-1].split(",") if part.strip()]
    if text[0] == "'":
        if len(text) < 2 or not text.endswith("'") or text[1:-1].replace("''", "").count("'"):
            raise ValueError(f"line {line.number}: a quote is not closed")
        return text[1:-1].replace("''", "'")
    if text[0] in "&*!|>%@`]}" or ": " in text:
        raise ValueError(f"line {line.number}: this kind of YAML is not understood")
    return text


def _without_comment(line: str) -> str:
    quote = ""
    for at, character in enumerate(line):
        if quote:
            quote = "" if character == quote and line[at - 1] != "\\" else quote
        elif character in "\"'" and line[:at].rstrip()[-1:] in ("", ":", "-", "[", ","):
            quote = character
        elif character == "#" and (at == 0 or line[at - 1] in " \t"):
            return line[:at]
    return line
