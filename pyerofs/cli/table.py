"""Tables for people: a header, columns under one another, and no line longer than the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

_LEAST = 8  # characters that are left of a column


def width() -> int | None:
    """Return the columns of the terminal that standard output is; None where it is none, and nothing is cut."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or 80 if sys.stdout.isatty() else None
    except (OSError, ValueError):
        return None


def table(header: Sequence[str], rows: Sequence[Sequence[str]], columns: int | None, shrink: Sequence[int]) -> str:
    """Format a table, in at most `columns` characters a line; None: as wide as it is.

    `shrink`: the numbers of the columns that may be cut, the first one first; what is cut ends with an ellipsis.
    """
    widths = [max(len(row[at]) for row in (header, *rows)) for at in range(len(header))]
    if columns is not None:
        for at in shrink:
            over = sum(widths) + 2 * (len(widths) - 1) - columns
            if over > 0:
                widths[at] = max(_LEAST, widths[at] - over)
    return "\n".join(
        "  ".join(_fit(text, size) for text, size in zip(row, widths, strict=True)).rstrip() for row in (header, *rows)
    )


def _fit(text: str, size: int) -> str:
    return text.ljust(size) if len(text) <= size else f"{text[: size - 1]}…"
