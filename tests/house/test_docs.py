"""The documents: every command line in them is one that pyerofs takes, every link leads somewhere, README is short."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyerofs.cli.main import make_parser
from pyerofs.config.options import parse_mount_options, parse_oci_options
from tests.support.scene import Scene

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [
    REPOSITORY / "README.md",
    *sorted(path for path in (REPOSITORY / "docs").glob("*.md")),
]
README_MAX = 900  # words
_SHELL = ("", "sh", "bash", "shell", "console")
_OPERATORS = set("|&;()<>")


def code_lines(text: str) -> Iterator[str]:
    """Lines of shell in fenced blocks and in indented ones, continued lines as one."""
    fence: str | None = None
    held = ""
    for line in text.split("\n"):
        mark = re.fullmatch(r"\s*```(\w*).*", line)
        if mark:
            fence = mark[1] if fence is None else None
            continue
        indented = fence is None and line.startswith("    ")
        if (fence is not None and fence in _SHELL) or indented:
            held += line.strip().removeprefix("$ ").removesuffix("\\")
            if not line.endswith("\\"):
                yield held
                held = ""


def commands(line: str) -> Iterator[list[str]]:
    """The words of each pyerofs among the commands of a line of shell."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;()<>")
    lexer.whitespace_split = True
    words: list[str] = []
    target = False  # of a redirection
    for word in [*lexer, ";"]:
        if set(word) <= _OPERATORS:
            if not set(word) & {"<", ">"}:
                yield words
                words = []
            target = bool(set(word) & {"<", ">"})
        elif target:
            target = False
        else:
            words.append(word)


def of_pyerofs(path: Path) -> list[list[str]]:
    found = []
    for line in code_lines(path.read_text()):
        if re.search(r"\bpyerofs\b", line) and not re.match(r"(pyerofs:|#)", line):
            for words in commands(line):
                while words and (words[0] in ("sudo", "time", "exec") or re.match(r"\w+=", words[0])):
                    words = words[1:]
                if words[:1] == ["pyerofs"] and words[1:2] != ["="]:  # a line of TOML
                    found.append(words[1:])
    return found


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_command_line_is_one_that_pyerofs_takes(path: Path) -> None:
    for words in of_pyerofs(path):
        try:
            parsed = make_parser().parse_args(words)
        except SystemExit as end:
            assert end.code == 0, words
            continue
        options = getattr(parsed, "options", [])
        if isinstance(options, list) and options:
            parse = parse_mount_options if words[0] == "mount" else parse_oci_options
            parse([re.sub(r"^remount,", "", text) for text in options if text != "remount"])


def test_the_pages_have_command_lines() -> None:
    """So that the test above cannot pass by finding none."""
    assert sum(len(of_pyerofs(path)) for path in PAGES) > 50


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_the_readme_is_short() -> None:
    assert len((REPOSITORY / "README.md").read_text().split()) < README_MAX


def test_every_page_is_in_the_index() -> None:
    index = (REPOSITORY / "docs/index.md").read_text()
    assert [path.name for path in PAGES[1:] if path.name != "index.md" and f"({path.name})" not in index] == []


def test_json_has_the_fields_that_are_documented(scene: Scene) -> None:
    """Of what every machine can print: the cache's blobs, here of a pulled layer's read."""
    told = (REPOSITORY / "docs/monitoring.md").read_text()
    row = re.search(r"\| `cache ls --json` \| (.*) \|", told)
    assert row
    assert json.loads(scene.run("list", "--json").out) == [] or "`health`" in told
    from pyerofs.cache.directory import Contents, EntryInfo
    from pyerofs.cli.cache import _row

    found = _row(EntryInfo("/c/sha256/0", "sha256:0", 1, 0.0), Contents(), [])
    assert set(re.findall(r"`(\w+)`", row[1])) == set(found)
