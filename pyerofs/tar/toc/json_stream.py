"""A large JSON document of one object with one long list, read item by item: RFC 8259.

Only one item is in memory at a time. The text comes from a stranger: whatever it is, the only exception is TocError.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from .model import TocError

VALUE_MAX = 4 << 20  # characters of one value: of an item, or of another member than the list
_PIECE = 256 << 10  # bytes
_BLANK = " \t\n\r"
_DECODE = json.JSONDecoder().raw_decode
_COMMA = re.compile(r"[ \t\n\r]*,[ \t\n\r]*(?=[^ \t\n\r\]])").match  # and the beginning of another item


def stream_items(read: Callable[[int], bytes], name: str, rest: dict[str, Any]) -> Iterator[Any]:
    """Yield the items of the list in the member `name`, whose other members go into `rest`.

    `read(n)` gives up to n bytes, none only at the end. null stands for an empty list. Raises TocError, also for a
    document without the list, or with anything behind it.
    """
    text = _Text(read)
    text.take("{")
    found = False
    while text.peek() != "}":
        key = text.value()
        text.take(":")
        if not isinstance(key, str) or key in rest or (found and key == name):
            raise TocError("it is not valid: a member has no name, or another's")
        if key == name and text.peek() == "[":
            found = True
            yield from _items(text)
        elif key == name:
            found = True
            if text.value() is not None:
                raise TocError(f"it has something else than a list for {name!r}")
        else:
            rest[key] = text.value()
        if text.peek() != "}":
            text.take(",")
            if text.peek() == "}":
                raise TocError("it is not valid JSON")
    text.take("}")
    if text.peek() or not found:
        raise TocError("it is not valid: it has no entries" if not found else "it is followed by something else")


def _items(text: _Text) -> Iterator[Any]:
    text.take("[")
    while text.peek() != "]":
        yield from text.values()
        if text.peek() != "]":
            text.take(",")
            if text.peek() == "]":
                raise TocError("it is not valid JSON")
    text.take("]")


class _Text:
    """The characters that have come and are not used yet."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._decode = codecs.getincrementaldecoder("utf-8")()
        self._text = ""
        self._at = 0
        self._ended = False

    def peek(self) -> str:
        """Return the next character that is not blank, and stay in front of it; "" at the end."""
        while True:
            while self._at < len(self._text):
                if (char := self._text[self._at]) not in _BLANK:
                    return char
                self._at += 1
            if not self._more():
                return ""

    def take(self, wanted: str) -> None:
        if self.peek() != wanted:
            raise TocError("it is not valid JSON")
        self._at += 1

    def values(self) -> Iterator[Any]:
        """Yield the next value, and those behind commas that are here as a whole: most are, and cost little."""
        yield self.value()
        text, at = self._text, self._at
        while comma := _COMMA(text, at):
            try:
                found, at = _DECODE(text, comma.end())
            except (ValueError, RecursionError):
                return
            if at == len(text):
                return
            self._at = at
            yield found

    def value(self) -> Any:
        """Return the next value. One that does not parse may be cut short: more is read then, in doubling steps."""
        self.peek()
        while True:
            try:
                found, end = _DECODE(self._text, self._at)
            except (ValueError, RecursionError):
                if len(self._text) - self._at > VALUE_MAX or not self._more():
                    raise TocError("it is not valid JSON, or has too large a value") from None
                continue
            if end == len(self._text) and self._more():  # a number may go on
                continue
            if end - self._at > VALUE_MAX:
                raise TocError("it has too large a value")
            self._at = end
            return found

    def _more(self) -> bool:
        """Read on, at least as much as is there; whether anything came."""
        if self._ended:
            return False
        parts = [self._text[self._at :]]
        self._at = 0
        wanted = max(_PIECE, len(parts[0]))
        while wanted > 0 and not self._ended:
            piece = self._read(min(wanted, _PIECE))
            wanted -= len(piece)
            self._ended = not piece
            try:
                parts.append(self._decode.decode(piece, final=self._ended))
            except UnicodeDecodeError:
                raise TocError("it is not valid UTF-8") from None
        self._text = "".join(parts)
        return len(self._text) > len(parts[0])
