"""The house: imports point downwards, one module touches each dangerous thing, no file needs a map of its own."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "pyerofs"
LINES_MAX = 400

# DESIGN.md, "The house". A module may import those of its own level, without a cycle, and those below.
LEVELS = (
    # L0: pure values, no I/O
    {
        "errors",
        "secret",
        "printable",
        "files",
        "url",
        "answer",
        "redirect",
        "curlerror",
        "platforms",
        "reference",
        "manifest",
        "superblock",
        "safepath",
    }
    | {"options", "optionvalues", "mountflags", "quantity", "compose"}
    | {"chunkindex", "document", "tarstream", "imagedoc", "layer"}
    | {"ordinary", "progress", "verity", "tally"},
    # L1: one thing each of the outside world: network, kernel, processes, files
    {
        "tls",
        "hosts",
        "proxy",
        "credentials",
        "credhelper",
        "request",
        "transport",
        "auth",
        "endpoint",
        "registry",
        "blob",
        "mirror",
        "blobcopy",
        "rangeanswer",
    }
    | {"netlink", "nbdnode", "device", "veritydevice", "loop", "mountpoint", "overlay", "core", "events", "retry"}
    | {"terminal", "processlist", "channel", "control", "reconnect", "notify", "delayed", "config", "log", "inflate"}
    | {"upload", "layout", "layerstream", "mergedview", "unpack", "mkfs", "layermaker", "localblob", "entrylock"}
    | {"archive", "location", "layoutindex", "allowance"}
    | {"entryfile", "entrymark", "cachepath"}
    | {"caller", "program", "tenancy"},
    # L2: where bytes come from, and where they stay
    {"source", "cache", "cachehealth", "cachedir", "sharing", "checked", "manifests", "record", "messages"}
    | {"download", "place", "dockerarchive", "ociarchive", "configview", "counters"}
    | {"imagesource", "indexed", "indexfile", "zstdstream", "localimage"},
    # L3: what lives: threads and connections
    {"fetch", "fill", "verify", "upkeep", "export", "server", "attachment", "part", "daemon", "supervision"}
    | {"admission", "serve"}
    | {"nbdfuse", "remains"}
    | {"copyimage", "convert", "buildimage", "converted", "conversion"},
    # L4: where all is wired together
    {"session", "reattach", "keeper", "worker", "supervisor", "blobfile", "inspect"} | {"status", "view", "metrics"},
    # L5: the command line
    {"cli", "cachecmd", "viewcmd", "__init__", "__main__"} | {"imagecmd"},
)
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py"))
# Names that live in __init__ itself are below everything.
OF_THE_PACKAGE = {"__version__"}


def imports(module: str, *, typing: bool) -> set[str]:
    """The package's modules that it imports, inside functions too; `typing`: those for annotations only as well."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    found: set[str] = set()
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not typing:
            pending += node.orelse
            continue
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            names = [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
            found |= {name for name in names if name not in OF_THE_PACKAGE | {"_core"}}
        pending += ast.iter_child_nodes(node)
    return found


def test_every_module_has_its_level() -> None:
    assert set(MODULES) == set(LEVEL)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downwards(module: str) -> None:
    upwards = {name for name in imports(module, typing=True) if LEVEL[name] > LEVEL[module]}
    assert not upwards, f"{module} (L{LEVEL[module]}) imports {upwards}"


def test_imports_have_no_cycle() -> None:
    graph = {module: imports(module, typing=False) - {module} for module in MODULES}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names it


@pytest.mark.parametrize(("what", "allowed"), [
    ("pycurl", {"transport"}), ("_core", {"core"}), ("print", {"terminal"}),
    ("ctypes", {"processlist", "mountpoint", "overlay"}),
    ("subprocess", {"credhelper", "program"}),
    ("zstandard", {"inflate", "layerstream"}),
])  # fmt: skip
def test_one_home_for_each_dangerous_thing(what: str, allowed: set[str]) -> None:
    users = set()
    for module in MODULES:
        for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
            if isinstance(node, ast.Import) and any(alias.name.split(".")[0] == what for alias in node.names):
                users.add(module)
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == what:
                users.add(module)
            if isinstance(node, ast.Name) and node.id == what:
                users.add(module)
    assert users <= allowed


@pytest.mark.parametrize(
    "path", [*PACKAGE.glob("*.py"), *(PACKAGE.parent / "csrc").rglob("*.[ch]")], ids=lambda path: path.name
)
def test_no_file_is_too_long(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LINES_MAX
