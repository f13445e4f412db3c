"""Text from outside (registries, paths, servers' words) as it may go to a terminal or into a log. Pure functions."""

from __future__ import annotations

from typing import Any


def one_line(text: str) -> str:
    """Return `text` as one line that is fit for a terminal.

    What would begin a new line, steer a terminal, change the direction of writing, or cannot be encoded (bytes of a
    path that are no UTF-8), is written as an escape such as \\x1b.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else _escape(c) for c in text)


def many_lines(text: str) -> str:
    """Do the same for a text of several lines, in which what comes from outside has been through one_line()."""
    return "\n".join(map(one_line, text.split("\n")))


def every_text(value: Any) -> Any:
    """Return a JSON value with each text in it, keys too, as one_line() has it."""
    if isinstance(value, str):
        return one_line(value)
    if isinstance(value, dict):
        return {every_text(key): every_text(each) for key, each in value.items()}
    return [every_text(each) for each in value] if isinstance(value, list | tuple) else value


def _escape(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # os.fsdecode()'s, for a byte
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
