"""`--progress`: how commands that take long show how far they are."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from .terminal import say_plainly, show

if TYPE_CHECKING:
    import argparse

    from ..images.progress import Console, Style
    from .commands import Say

STYLES = ("plain", "bar", "none", "json")


def add_progress(parser: argparse.ArgumentParser) -> None:
    """Add the option."""
    parser.add_argument(
        "--progress", choices=STYLES, metavar="HOW",
        help=f"{', '.join(STYLES)} (default: bar on a terminal, else plain, a line every 10 s)",
    )  # fmt: skip


def console_of(arguments: argparse.Namespace, report: Say, *, sparing: bool = False) -> Console:
    """Return where a command shows its progress, as it was told, or else as standard error is."""
    from ..images.progress import Console

    if arguments.quiet:
        return Console(report, None, "none")
    terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    style: Style = arguments.progress or ("bar" if terminal else "plain")
    if style == "json":
        return Console(say_plainly, None, style)
    return Console(report, show if style == "bar" and terminal else None, style, sparing)
