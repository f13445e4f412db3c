"""The commands of the command line: each module of this folder that has some adds them to this list."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from ..config.options import MOUNT_HELP, OCI_HELP
from ..errors import UsageError

if TYPE_CHECKING:
    Say = Callable[[str], None]
    # What a command does: with its arguments, where its result goes, and where anything else that the user should know.
    # It returns the exit status, where that tells more than that nothing went wrong.
    Run = Callable[[argparse.Namespace, Say, Say], int | None]


class Parser(argparse.ArgumentParser):
    """mount(8)'s exit status for a wrong invocation, and one line instead of the usage."""

    _given: Sequence[str] = ()

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._given = args or ()
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        from .hints import explain  # deferred: only an error needs it

        raise UsageError(explain(self, message))

    def _commands(self) -> dict[str, Parser]:
        actions = [action for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        return dict(actions[0].choices) if actions else {}

    def names(self) -> list[str]:
        """Return the names of its commands."""
        return list(self._commands())

    def chosen(self) -> Parser:
        """Return the parser of the command that was given."""
        parser: Parser = self
        for word in self._given:
            parser = parser._commands().get(word, parser)
        return parser

    def flags(self) -> list[str]:
        return [flag for action in self._actions for flag in action.option_strings]

    def takes_options(self) -> bool:
        """Whether it has -o."""
        return "-o" in self.flags()


class Commands:
    """The commands of a parser, or of a command that has some itself. `run` is what each of those does."""

    def __init__(self, parsers: Any, run: Run | None = None) -> None:
        self._parsers = parsers
        self._run = run

    def add(self, name: str, text: str, examples: str, run: Run | None = None, *, options: bool = True) -> Parser:
        """Add a command, which main() has do `run`, and return its parser. `options`: it takes -o."""
        table = f"\noptions after -o (a comma in a value is written \\,):\n{_option_table()}\n" if options else ""
        parser: Parser = self._parsers.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=f"examples:\n{examples}\n{table}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if options:
            parser.add_argument("-o", "--options", action="append", default=[], metavar="OPTIONS", help="see below")
        parser.add_argument("-v", "--verbose", action="count", default=0, help="more output; -vv also traces HTTP")
        parser.add_argument("-q", "--quiet", action="store_true", help="print errors only")
        parser.set_defaults(run=run or self._run)
        return parser

    def add_group(self, name: str, text: str, examples: str, run: Run) -> Commands:
        """Add a command that has commands itself (its `action`), which do `run`, and return those."""
        parser = self._parsers.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        return Commands(parser.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=Parser), run)


def _option_table() -> str:
    rows = [*OCI_HELP, *MOUNT_HELP]
    return "\n".join(f"  {name + argument:<31} {text}" for name, argument, text in rows)
