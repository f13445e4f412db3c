"""The house: imports point downwards, a folder's inner modules are its own, one module touches each dangerous thing."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

from tests.house.imports import ENTRY_POINTS, PACKAGE, Edge, cycle, edges, folder, paths

LINES_MAX = 400

# DESIGN.md, "The house". A folder may import those in rows above its own; those of one row know nothing of one another.
# Modules beside the folders are in the row of "", but the entry points, which may import everything.
LEVELS = (
    {""},
    {"grpc", "http", "tar"},
    {"oci"},
    {"config", "registry"},
    {"erofs"},
    {"cache", "kernel"},
    {"source"},
    {"export"},
    {"daemon", "images"},
    {"mounting"},
    {"bundle", "csi", "docker", "fleet", "podman", "snapshotter"},
    {"cli"},
)
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}


@pytest.fixture(scope="module")
def imports() -> list[Edge]:
    return edges()


def test_every_folder_has_its_level() -> None:
    assert {folder(name) for name in paths()} == set(LEVEL)


def test_imports_point_downwards(imports: list[Edge]) -> None:
    """Those for annotations too."""
    upwards = [
        edge
        for edge in imports
        if edge.importer not in ENTRY_POINTS
        and edge.imported != ""  # __version__, which __init__ itself defines
        and folder(edge.importer) != folder(edge.imported)
        and LEVEL[folder(edge.imported)] >= LEVEL[folder(edge.importer)]
    ]
    assert not upwards


def test_imports_have_no_cycle(imports: list[Edge]) -> None:
    """Within a folder neither."""
    assert not cycle([edge for edge in imports if edge.imported != ""])


def public(name: str) -> set[str] | None:
    """The modules of a folder that its docstring names as public; None: it names none, all are."""
    text = importlib.import_module(f"pyerofs.{name}").__doc__ or ""
    found = re.search(r"^Public: ([\w., \n]+?)\.$", text, re.MULTILINE)
    return set(re.split(r",\s+", found[1])) if found else None


def test_a_folder_s_inner_modules_are_its_own(imports: list[Edge]) -> None:
    doors = {name: public(name) for name in LEVEL if name}
    for name, modules in doors.items():
        assert (modules or set()) <= {module.partition(".")[2] for module in paths()}, name
    inner = [
        edge
        for edge in imports
        if edge.importer not in ENTRY_POINTS
        and folder(edge.imported) not in ("", folder(edge.importer))
        and (door := doors[folder(edge.imported)]) is not None
        and edge.imported.partition(".")[2] not in door
    ]
    assert not inner


@pytest.mark.parametrize(
    ("what", "allowed"),
    [
        ("pycurl", {"http.exchange", "http.transport"}),
        ("_core", {"core"}),
        ("print", {"cli.terminal"}),
        ("ctypes", {"cli.process_list", "kernel.mountpoint", "kernel.overlay"}),
        ("subprocess", {"program", "registry.credential_helper"}),
        ("zstandard", {"erofs.zstd", "tar.decompress"}),
    ],
)
def test_one_home_for_each_dangerous_thing(what: str, allowed: set[str]) -> None:
    users = set()
    for module, path in paths().items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import) and any(alias.name.split(".")[0] == what for alias in node.names):
                users.add(module)
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == what:
                users.add(module)
            if isinstance(node, ast.Name) and node.id == what:
                users.add(module)
    assert users <= allowed


def test_no_two_classes_have_one_name() -> None:
    """Each word for one thing, also for those that are in a function or in another class."""
    homes: dict[str, list[str]] = {}
    for module, path in paths().items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, []).append(module)
    assert {name: modules for name, modules in homes.items() if len(modules) > 1} == {}


def test_no_file_is_too_long() -> None:
    files: list[Path] = [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "csrc").rglob("*.[ch]")]
    assert {str(path): lines for path in files if (lines := len(path.read_text().splitlines())) > LINES_MAX} == {}


def test_what_is_hidden_from_mypy_has_a_reason() -> None:
    """Beside the package in tests and tools too."""
    bare = re.compile(r"# type: ignore(\[[\w, -]+\])?\s*$", re.MULTILINE)
    folders = [PACKAGE.parent / name for name in ("pyerofs", "tests", "bench", "demo", "tools")]
    files = [path for folder in folders for path in folder.rglob("*.py") if ".work" not in path.parts]
    assert [str(path) for path in files if bare.search(path.read_text())] == []
