"""The package's import graph: `python -m tests.house.imports` prints folders, crossings and cycles.

An edge is a module that imports another one: at the top of its file, only inside functions ("lazy"), or only for
annotations ("typing"). Modules are named from the package on, as "http.url"; those beside the folders are of folder "".
"""

from __future__ import annotations

import ast
import graphlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).resolve().parents[2] / "pyerofs"
# What is started or imported from outside: these are above all folders.
ENTRY_POINTS = {"", "__main__", "worker", "supervisor"}
KINDS = ("top", "lazy", "typing")


class Edge(NamedTuple):
    importer: str
    imported: str
    kind: str  # "top", "lazy" or "typing"


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def paths() -> dict[str, Path]:
    """Every module but the folders' `__init__`, which hold a docstring alone."""
    found = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
    return {name: path for name, path in found.items() if name == "" or path.stem != "__init__"}


def folder(module: str) -> str:
    """The top one: what is below "daemon.attach" is of "daemon"."""
    return module.partition(".")[0] if "." in module else ""


def edges() -> list[Edge]:
    modules = paths()
    found: dict[tuple[str, str], str] = {}
    for module, path in modules.items():
        for node, kind in _imports(ast.parse(path.read_text())):
            for name in _named(module, path, node):
                if name in modules and name != module:
                    found[module, name] = min(kind, found.get((module, name), kind), key=KINDS.index)
    return [Edge(importer, imported, kind) for (importer, imported), kind in found.items()]


def _imports(tree: ast.AST, kind: str = "top") -> Iterator[tuple[ast.Import | ast.ImportFrom, str]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, kind
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from _imports(ast.Module(node.body, []), "typing")
            yield from _imports(ast.Module(node.orelse, []), kind)
        else:
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _imports(node, "lazy" if is_function and kind == "top" else kind)


def _named(module: str, path: Path, node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """The modules of ours that one statement names."""
    if isinstance(node, ast.Import):
        yield from (alias.name.removeprefix("pyerofs.") for alias in node.names if alias.name.startswith("pyerofs."))
        return
    if not node.level:
        return
    package = module.split(".") if module else []
    if path.stem != "__init__":
        package = package[:-1]
    base = package[: len(package) - (node.level - 1)]
    base += node.module.split(".") if node.module else []
    target = ".".join(base)
    for alias in node.names:
        below = f"{target}.{alias.name}" if target else alias.name
        yield below if (PACKAGE / Path(*below.split("."))).with_suffix(".py").exists() else target


def cycle(found: list[Edge], of: object = None) -> list[str]:
    """One circle of modules, or of folders with `of=folder`; [] where there is none."""
    name = of if callable(of) else str
    graph: dict[str, set[str]] = {}
    for edge in found:
        a, b = name(edge.importer), name(edge.imported)
        if a != b and edge.importer not in ENTRY_POINTS:
            graph.setdefault(a, set()).add(b)
    try:
        list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def main() -> None:
    found = edges()
    modules = paths()
    print(f"{len(modules)} modules, {len(found)} imports")
    sizes = Counter(folder(name) for name in modules)
    lines: Counter[str] = Counter()
    for name, path in modules.items():
        lines[folder(name)] += len(path.read_text().splitlines())
    for name in sorted(sizes, key=lambda name: (name != "", name)):
        print(f"  {name or '(root)':<10} {sizes[name]:>3} modules {lines[name]:>6} lines")
    crossing = [
        edge for edge in found
        if folder(edge.importer) != folder(edge.imported) and "" not in (folder(edge.importer), folder(edge.imported))
    ]  # fmt: skip
    inside = sum(folder(edge.importer) == folder(edge.imported) != "" for edge in found)
    kinds = Counter(edge.kind for edge in crossing)
    print(
        f"inside a folder {inside}, crossing {len(crossing)}: " + ", ".join(f"{kinds[kind]} {kind}" for kind in KINDS)
    )
    pairs = Counter((folder(edge.importer), folder(edge.imported)) for edge in crossing)
    print(f"pairs of folders: {len(pairs)}")
    for (a, b), count in pairs.most_common():
        print(f"  {a:>9} -> {b:<9} {count:>3}")
    print("cycles of modules at run time:", cycle([e for e in found if e.kind != "typing"]) or "none")
    print("cycles of modules, typing too:", cycle(found) or "none")
    print("cycles of folders, typing too:", cycle(found, folder) or "none")


if __name__ == "__main__":
    main()
