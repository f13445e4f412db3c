"""Changed `-o` strings: some options in place of others, or without what is secret. Pure values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .option_text import as_text, split
from .options import GROUPS, find_row, is_option, is_ours, is_secret


def replaced(texts: Sequence[str], new: Sequence[str]) -> list[str]:
    """Return the `-o` strings with those of `new` in place of options that say something else. Raises UsageError."""
    fields = {find_row(item.partition("=")[0]).field for text in new for item in split(text) if is_ours(item)}
    fields |= {field for group in GROUPS if group & fields for field in group}

    def stays(item: str) -> bool:
        return not is_ours(item) or find_row(item.partition("=")[0]).field not in fields

    return [as_text(item) for text in texts for item in split(text) if stays(item)] + list(new)


def without_secrets(texts: Iterable[str]) -> tuple[list[str], bool]:
    """Return the options, one in each `-o` string, without secret ones; and whether there were any."""
    kept, dropped = [], False
    for item in (item for text in texts for item in split(text)):
        name, _, value = item.partition("=")
        if is_option(name) and is_secret(name, value):
            dropped = True
        else:
            kept.append(as_text(item))
    return kept, dropped
