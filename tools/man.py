"""Man pages out of argparse and the option table: pyerofs(8), one for each command, pyerofs.toml(5), mount.erofs.*(8).

python -m tools.man DIRECTORY
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from pyerofs import __version__
from pyerofs.cli.main import make_parser
from pyerofs.config.options import ROWS

HELPERS = ("nbd", "fuse", "oci")
# The same source gives the same pages.
DATE = time.strftime("%Y-%m-%d", time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH", "0"))))
_STATUS = (
    ("0", "success"),
    ("1", "wrong arguments, or no permission"),
    ("2", "the machine lacks something: a program, memory, room, a kernel's feature"),
    ("4", "a bug of pyerofs"),
    ("8", "interrupted"),
    ("16", "the record of a mount cannot be written or read"),
    ("32", "the mount, or what else was asked for, failed"),
)
_FILES = (
    ("/etc/pyerofs/config.toml", "defaults of all options: pyerofs.toml(5)"),
    ("~/.config/pyerofs/config.toml", "the same for one user"),
    ("/var/cache/pyerofs", "the cache; for users $XDG_CACHE_HOME/pyerofs"),
    ("/run/pyerofs", "records of mounts"),
)


def pages() -> dict[str, str]:
    """Return every page by its file's name."""
    parser = make_parser()
    commands = dict(walk(parser))
    names = [name for name in commands if name]
    found = {"pyerofs.8": _main_page(parser, names)}
    for name, command in commands.items():
        if name:
            found[f"pyerofs-{name.replace(' ', '-')}.8"] = _command_page(name, command)
    found["pyerofs.toml.5"] = _options_page()
    found["mount.erofs.nbd.8"] = _helper_page()
    for helper in HELPERS[1:]:
        found[f"mount.erofs.{helper}.8"] = ".so man8/mount.erofs.nbd.8\n"
    return found


def walk(parser: argparse.ArgumentParser, prefix: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield every command that does something, by its words; "" for the program itself."""
    inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not prefix or not inner:
        yield prefix, parser
    for action in inner:
        for name, command in action.choices.items():
            yield from walk(command, f"{prefix} {name}".strip())


def escape(text: str) -> str:
    """Return text as roff shows it."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    return "\n".join(f"\\&{line}" if line.startswith((".", "'")) else line for line in text.split("\n"))


def _head(name: str, section: int, summary: str) -> list[str]:
    title = name.upper().replace("-", "\\-")
    return [
        f'.TH {title} {section} "{DATE}" "pyerofs {__version__}" "pyerofs"',
        ".SH NAME",
        f"{escape(name)} \\- {escape(summary)}",
    ]


def _pairs(rows: Iterator[tuple[str, str]] | tuple[tuple[str, str], ...]) -> list[str]:
    lines = []
    for term, text in rows:
        lines += [".TP", f"\\fB{escape(term)}\\fR", escape(text)]
    return lines


def _arguments(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    formatter = parser._get_formatter()
    for action in parser._actions:
        if action.help == argparse.SUPPRESS or isinstance(action, argparse._SubParsersAction):
            continue
        text = formatter._expand_help(action) if action.help else ""
        yield formatter._format_action_invocation(action), text


def _usage(parser: argparse.ArgumentParser) -> str:
    return " ".join(parser.format_usage().removeprefix("usage: ").split())


def _main_page(parser: argparse.ArgumentParser, names: list[str]) -> str:
    lines = _head("pyerofs", 8, "mount EROFS layers of OCI images lazily")
    lines += [".SH SYNOPSIS", ".B pyerofs", "COMMAND [OPTIONS] ARGUMENTS", ".SH DESCRIPTION"]
    lines += [escape(parser.description or ""), ".SH COMMANDS"]
    commands = dict(walk(parser))
    rows = ((f"pyerofs-{name.replace(' ', '-')}(8)", commands[name].description or "") for name in names)
    lines += _pairs(rows)
    lines += [".SH FILES", *_pairs(_FILES), ".SH EXIT STATUS", "That of mount(8):", *_pairs(_STATUS)]
    return "\n".join([*lines, ".SH SEE ALSO", "pyerofs.toml(5), mount.erofs.nbd(8), mount(8)", ""])


def _command_page(name: str, parser: argparse.ArgumentParser) -> str:
    summary = (parser.description or name).rstrip(".")
    lines = _head(f"pyerofs-{name.replace(' ', '-')}", 8, summary[0].lower() + summary[1:])
    lines += [".SH SYNOPSIS", escape(_usage(parser)), ".SH OPTIONS", *_pairs(_arguments(parser))]
    examples, _, table = (parser.epilog or "").removeprefix("examples:\n").partition("\noptions after -o")
    if table:
        lines += [".SH OPTIONS AFTER \\-o", "Separated by commas; pyerofs.toml(5) has all of them.", *_option_rows()]
    if examples.strip():
        lines += [".SH EXAMPLES", ".nf", escape(examples.rstrip()), ".fi"]
    return "\n".join([*lines, ".SH SEE ALSO", "pyerofs(8), pyerofs.toml(5)", ""])


def _option_rows() -> list[str]:
    return _pairs(tuple((f"{row.name}{row.argument}", row.text) for row in ROWS))


def _options_page() -> str:
    lines = _head("pyerofs.toml", 5, "defaults of the options of pyerofs")
    lines += [
        ".SH DESCRIPTION",
        "/etc/pyerofs/config.toml, for users other than root also ~/.config/pyerofs/config.toml, which comes first. "
        "PYEROFS_CONFIG names another file instead. What is written after \\-o wins.",
        ".PP",
        "An option SECTION.NAME is the key NAME of the table [SECTION]. A table [registry.\\(dqHOST\\(dq.SECTION] is "
        "for the images of one registry, and stronger.",
        ".PP",
        "\\fBpyerofs config\\fR shows effective values and where they come from, \\fBpyerofs config \\-\\-example\\fR "
        "prints a file with every key.",
        ".SH KEYS",
        *_option_rows(),
    ]
    return "\n".join([*lines, ".SH SEE ALSO", "pyerofs(8), pyerofs\\-config(8)", ""])


def _helper_page() -> str:
    lines = _head("mount.erofs.nbd, mount.erofs.fuse, mount.erofs.oci", 8, "mount(8) helpers of pyerofs")
    lines[0] = f'.TH MOUNT.EROFS.NBD 8 "{DATE}" "pyerofs {__version__}" "pyerofs"'
    lines += [
        ".SH SYNOPSIS",
        ".B mount.erofs.nbd",
        "SOURCE TARGET [\\-sfnv] [\\-N NAMESPACE] [\\-o OPTIONS] [\\-t TYPE]",
        ".SH DESCRIPTION",
        "mount(8) calls them for the types erofs.nbd, erofs.fuse and erofs.oci, which chooses one of the other two; "
        "they do what \\fBpyerofs mount \\-t TYPE\\fR does. So an image can be a line of fstab(5):",
        ".PP",
        ".nf",
        "quay.io/org/app:1.0  /srv/app  erofs.oci  ro,_netdev,nofail,x\\-systemd.automount  0 0",
        ".fi",
        ".SH OPTIONS",
        "Those of mount(8), and:",
        *_option_rows(),
    ]
    return "\n".join([*lines, ".SH SEE ALSO", "pyerofs\\-mount(8), mount(8), fstab(5)", ""])


def main() -> None:
    """Write every page below DIRECTORY/manN."""
    for name, text in pages().items():
        path = Path(sys.argv[1], f"man{name[-1]}", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main()
