"""The C core's folders and files: includes point one way, and what Python is told of it is what is there."""

from __future__ import annotations

import graphlib
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.needs import need

CSRC = Path(__file__).resolve().parents[2] / "csrc"
FLOORS = ["", "base", "store", "nbd"]  # each may include what lies before it; "" is pyerofs.h
FILES = sorted(CSRC.glob("*/*.[ch]"))
INCLUDE = re.compile(r'^#include "(.*)"', re.MULTILINE)


def folder(path: Path) -> str:
    name = str(path.parent.relative_to(CSRC))
    return "" if name == "." else name


def includes(path: Path) -> list[Path]:
    """The core's own headers that a file includes: of its folder by name, of others with the folder."""
    found = []
    for name in INCLUDE.findall(path.read_text()):
        here, there = path.parent / name, CSRC / name
        assert here.exists() != there.exists(), f"{path}: {name}"
        found.append(here if here.exists() else there)
    return found


def test_every_folder_has_a_floor() -> None:
    assert {folder(path) for path in FILES} == set(FLOORS) - {""}


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_includes_point_down(path: Path) -> None:
    for header in includes(path):
        assert FLOORS.index(folder(header)) <= FLOORS.index(folder(path)), f"{path} includes {header}"


def test_files_include_one_another_in_no_circle() -> None:
    """A header and its source are one."""
    graph: dict[Path, set[Path]] = {}
    for path in FILES:
        graph.setdefault(path.with_suffix(""), set()).update(
            header.with_suffix("") for header in includes(path) if header.with_suffix("") != path.with_suffix("")
        )
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names it


def test_stub_names_what_the_core_has() -> None:
    from pyerofs._core import lib

    stub = (CSRC.parent / "pyerofs" / "_core.pyi").read_text()
    assert set(re.findall(r"^    (?:def )?(\w+)[:(]", stub, re.MULTILINE)) == set(dir(lib))


@pytest.mark.system
def test_sources_have_the_form_that_clang_format_gives() -> None:
    program = need("clang-format-14", "clang-format-14")
    done = subprocess.run([program, "--dry-run", "--Werror", CSRC / "pyerofs.h", *FILES], check=False)
    assert done.returncode == 0
