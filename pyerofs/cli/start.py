"""The start of every command: the daemon of a mount first, then what this process needs itself."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ..daemon import launch
from ..errors import unexpected
from . import terminal

if TYPE_CHECKING:
    from collections.abc import Sequence


def main() -> int:
    """Run the command of this process's arguments."""
    return run(sys.argv[1:])


def run(arguments: Sequence[str]) -> int:
    """Run a command and return its exit status, mount(8)'s."""
    terminal.open_standard_files()  # before anything else is opened
    launch.start_early(arguments)  # before the rest is imported
    try:
        from .main import main as run_command

        return run_command(arguments)
    except (ImportError, MemoryError) as error:
        problem = unexpected(error)
        terminal.say_error(problem, 0)
        return problem.status
    finally:
        launch.drop_spare()
