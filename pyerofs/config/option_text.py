"""The text of an `-o` string: its items, and back. Pure values."""

from __future__ import annotations

from ..errors import UsageError


def split(text: str) -> list[str]:
    r"""Split an `-o` string at its commas; empty items are dropped. Raises UsageError on an unclosed quote or a NUL.

    `\,` is a comma of the value and `\\` a backslash, any other backslash itself. As in mount(8), a value that begins
    with a double quote goes on to the next one, commas and backslashes included; the quotes are kept.
    """
    if "\0" in text:
        raise UsageError("an option contains a NUL character")
    items: list[str] = []
    item = ""
    quoted = in_value = False
    position = 0
    while position < len(text):
        character = text[position]
        if quoted:
            quoted = character != '"'
        elif character == "\\" and text[position + 1 : position + 2] in (",", "\\"):
            position += 1
            character = text[position]
        elif character == ",":
            items.append(item)
            item, in_value, character = "", False, ""
        elif character == "=" and not in_value:
            in_value = True
            quoted = text.startswith('"', position + 1)
            character = '="' if quoted else "="
            position += quoted
        item += character
        position += 1
    if quoted:
        raise UsageError(f"the double quote in the option {item.partition('=')[0]!r} is not closed")
    return [item for item in (*items, item) if item]


def as_text(item: str) -> str:
    """Return an item of split() as it is written in an `-o` string."""
    name, equals, value = item.partition("=")
    quoted = value[: value.index('"', 1) + 1] if value.startswith('"') else ""
    return _escaped(name) + equals + quoted + _escaped(value[len(quoted) :])


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace(",", "\\,")
