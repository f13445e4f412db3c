"""What ends a mistake on the command line: the command, the flag or the option that was meant."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

from ..config.options import MOUNT_HELP, OCI_HELP

if TYPE_CHECKING:
    from collections.abc import Collection

OPTION_NAMES = frozenset(name for name, _, _ in (*OCI_HELP, *MOUNT_HELP))


class Asked(Protocol):
    """What is asked of a parser (commands.Parser)."""

    prog: str

    def names(self) -> list[str]: ...

    def chosen(self) -> Asked: ...

    def flags(self) -> list[str]: ...

    def takes_options(self) -> bool: ...


# What other tools call so.
_COMMANDS = {
    "unmount": "it is `pyerofs umount`",
    "login": "credentials come from `docker login` or `podman login`, or from -o oci.username=,oci.password_file=",
    "run": "pyerofs runs nothing: `pyerofs mount` shows an image's files, and `pyerofs bundle` prepares them for runc",
    "images": "`pyerofs list` shows what is mounted, `pyerofs cache ls` what is in the cache",
    "ps": "`pyerofs list` shows what is mounted",
    "df": "`pyerofs cache ls` shows what the cache takes",
    "info": "`pyerofs inspect IMAGE` shows an image, `pyerofs stat TARGET` a mount",
    "copy": "`pyerofs pull` and `push` copy images, `pyerofs cp` files of one",
    "help": "`pyerofs --help` lists the commands",
}


def explain(parser: Asked, message: str) -> str:
    """Return argparse's message in plain words, with the way out. For the top parser, and for each of a command."""
    if found := re.match(r"argument (COMMAND|ACTION): invalid choice: '(.*?)' \(choose", message):
        what, name = found[1].lower(), found[2]
        hint = _COMMANDS.get(name) if what == "command" else None
        hint = hint or _nearest(name, parser.names()) or f"`{parser.prog} --help` lists them"
        return f"there is no {what} '{name}': {hint}"  # argparse has escaped it
    if found := re.match(r"the following arguments are required: (COMMAND|ACTION)$", message):
        what = "an action" if found[1] == "ACTION" else "a command"
        return f"{what} is missing: `{parser.prog} --help` lists them"
    if found := re.match(r"unrecognized arguments: (--?[^\s=]+)", message):
        flag, command = found[1], parser.chosen()
        option = flag.lstrip("-").replace("-", "_")
        for prefix in ("oci.", "cache.", "nbd.", "log."):
            if prefix + option in OPTION_NAMES and command.takes_options():
                return f"there is no {flag}: write -o {prefix}{option}=..."
        hint = _nearest(flag, command.flags()) or f"see `{command.prog} --help`"
        return f"there is no {flag} of `{command.prog}`: {hint}"
    if found := re.match(r"unrecognized arguments: (.*)", message):
        return f"too many arguments, from {found[1].split()[0]!r} on (see `{parser.chosen().prog} --help`)"
    return f"{message} (see `{parser.prog} --help`)"


def _nearest(name: str, names: Collection[str]) -> str:
    from difflib import get_close_matches

    close = get_close_matches(name, names, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else ""
