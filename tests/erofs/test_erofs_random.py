"""Random stacks of layers: together they are what a simple model says, and what overlayfs makes of each alone."""

from __future__ import annotations

import hashlib
import os
import stat
import tarfile
from collections.abc import Iterator
from random import Random
from typing import NamedTuple

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pyerofs.erofs.data_map import DataMap
from pyerofs.erofs.laying import Laying
from pyerofs.erofs.tree import Attributes, Tree
from pyerofs.erofs.writer import Device, write_metadata
from pyerofs.errors import ImageError
from tests.support.erofsreader import Reader
from tests.support.erofsstacks import Data, Stack, whole
from tests.support.ordinary import Member
from tests.support.tarballs import archive, info
from tests.support.trees import Entry

Path = tuple[str, ...]


class Node(NamedTuple):
    """In the model. `number` tells files apart."""

    kind: str
    number: int
    content: str


class Model:
    """All names and what they are, without any cleverness."""

    def __init__(self) -> None:
        self.nodes: dict[Path, Node] = {}
        self._numbers = iter(range(10**9))

    def apply(self, steps: list[tuple[str, Path, Path, bytes]]) -> list[Member]:
        """The members of the layer's archive that make sense here; applies them."""
        before = dict(self.nodes)
        members = []
        for action, path, _, _ in steps:
            if action == "delete":
                self._remove(path, itself=True)
            elif action == "hide":
                self._remove(path, itself=False)
        for action, path, target, data in steps:
            name = "/".join(path)
            above = [path[:depth] for depth in range(1, len(path))]
            # A file that the layer deletes is in the way until its deletion comes.
            if any((self.nodes.get(part) or before.get(part, _DIRECTORY)).kind != "d" for part in above):
                continue
            if action == "delete":
                members.append((info("/".join((*path[:-1], f".wh.{path[-1]}"))), b""))
                continue
            if action == "hide":
                if (self.nodes.get(path) or before.get(path, _DIRECTORY)).kind != "d":
                    continue
                members.append((info(f"{name}/.wh..wh..opq"), b""))
                self._make_directories((*path, ""))
                continue
            if action == "link":
                found = self.nodes.get(target) or before.get(target)
                if found is None or found.kind == "d" or target == path:
                    continue
                node = found
                members.append((info(name, type=tarfile.LNKTYPE, linkname="/".join(target)), b""))
            elif action == "directory":
                node = Node("d", next(self._numbers), "")
                members.append((info(name, type=tarfile.DIRTYPE, mode=0o755), b""))
            elif action == "symlink":
                node = Node("l", next(self._numbers), "t")
                members.append((info(name, type=tarfile.SYMTYPE, linkname="t"), b""))
            else:
                node = Node("-", next(self._numbers), hashlib.sha256(data).hexdigest())
                members.append((info(name), data))
            self._make_directories(path)
            if not (node.kind == "d" and self.nodes.get(path, node).kind == "d"):
                self._remove(path, itself=True)
                self.nodes[path] = node
            self.nodes.setdefault(path, node)
        return members

    def _make_directories(self, path: Path) -> None:
        for depth in range(1, len(path)):
            self.nodes.setdefault(path[:depth], Node("d", next(self._numbers), ""))

    def _remove(self, path: Path, *, itself: bool) -> None:
        for other in [other for other in self.nodes if other[: len(path)] == path]:
            if itself or other != path:
                del self.nodes[other]

    def entries(self) -> dict[str, tuple[str, str, tuple[str, ...]]]:
        names: dict[int, list[str]] = {}
        for path, node in self.nodes.items():
            names.setdefault(node.number, []).append("/".join(path))
        return {
            "/".join(path): (node.kind, node.content, tuple(sorted(names[node.number])))
            for path, node in self.nodes.items()
        }


_DIRECTORY = Node("d", 0, "")
PATHS = st.sampled_from([tuple(path.split("/")) for path in ("a", "a/a", "a/a/f", "a/f", "a/g", "b", "f", "g", "h")])
CONTENTS = st.sampled_from([b"", b"x", b"y" * 300, b"z" * 5000, b"w" * 4096])
ACTIONS = st.sampled_from(["file", "file", "directory", "symlink", "link", "link", "link", "delete", "delete", "hide"])
STEPS = st.lists(st.tuples(ACTIONS, PATHS, PATHS, CONTENTS), min_size=6, max_size=16)


def overlay(layers: list[dict[str, Entry]]) -> dict[str, Entry]:
    """What overlayfs shows."""
    shown: dict[str, Entry] = {}
    for layer in layers:
        for name, entry in sorted(layer.items()):
            is_whiteout = (entry.kind, entry.content) == ("c", "0:0")
            hides = entry.kind != "d" or entry.xattrs.get("trusted.overlay.opaque") == b"y"
            there = shown.get(name)
            if hides or (there and there.kind != "d"):
                for other in [other for other in shown if other.startswith(f"{name}/")]:
                    del shown[other]
            shown.pop(name, None)
            if not is_whiteout:
                shown[name] = entry
            else:
                assert there, f"a whiteout of {name}, where nothing is to be hidden"
    return shown


def plain(found: dict[str, Entry]) -> Iterator[tuple[object, ...]]:
    """Without what overlayfs has other views of."""
    for name, entry in sorted(found.items()):
        xattrs = {key: value for key, value in entry.xattrs.items() if key != "trusted.overlay.opaque"}
        yield (name, *entry[:6], xattrs)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.lists(STEPS, min_size=2, max_size=4))
def test_random_stacks_are_what_the_model_and_overlayfs_say(
    layers: list[list[tuple[str, Path, Path, bytes]]],
) -> None:
    model, alone, merged = Model(), Stack(), Stack(merged=True)
    shown = []
    for steps in layers:
        tar = archive(*model.apply(steps))
        try:
            shown.append(alone.add_tar(tar))
        except ImageError:
            assume(False)  # a deletion that the model has seen before
        merged.add_tar(tar)
    found = merged.entries()
    del found["."]
    assert {name: (entry.kind, entry.content, entry.links if entry.kind != "d" else (name,)) for name, entry in
            found.items()} == model.entries()  # fmt: skip
    both = alone.entries()
    del both["."]
    assert both == found
    composed = overlay(shown)
    del composed["."]
    assert list(plain(composed)) == list(plain(found))


NAMES = st.binary(min_size=1, max_size=255).filter(lambda name: not set(name) & {0, 0x2F} and name not in (b".", b".."))
XATTRS = st.dictionaries(
    st.sampled_from([b"user.a", b"user.b", b"trusted.c", b"security.d"]), st.sampled_from([b"", b"1", b"x" * 3000])
)
TIMES = st.sampled_from([0, 1, -1, 10**18, 10**18 + 1, 1 << 69, -(1 << 69)])
OWNERS = st.sampled_from([0, 65_535, 65_536, 2**32 - 2])
ATTRIBUTES = st.tuples(st.integers(0, 0o7777), OWNERS, OWNERS, TIMES, XATTRS)
SIZES = st.sampled_from([0, 1, 100, 256, 257, 4000, 4096, 4097, 9000])
FILES = st.tuples(st.sampled_from(["file", "symlink", "char", "fifo", "directory", "again"]), NAMES, ATTRIBUTES, SIZES)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 10), FILES), max_size=60), st.randoms(use_true_random=False))
def test_random_trees_are_read_as_they_were_made(
    files: list[tuple[int, tuple[str, bytes, tuple[int, int, int, int, dict[bytes, bytes]], int]]], chance: Random
) -> None:
    tree, contents, data = Tree(), DataMap(), Data()
    laying = Laying(contents, 0, data.land)
    root = tree.add_directory(Attributes())
    directories = [(root, ".")]
    others: list[tuple[int, tuple[object, ...]]] = []
    expected: dict[str, tuple[object, ...]] = {".": ("d", "0755", (0, 0), 0, 0, "", {})}
    for into, (kind, name, (mode, uid, gid, time, xattrs), size) in files:
        directory, path = directories[into % len(directories)]
        if name in tree.children[directory]:
            continue
        attributes = Attributes(mode, uid, gid, time, tree.intern(tuple(sorted(xattrs.items()))))
        said: tuple[object, ...] = (f"{mode:04o}", (uid, gid), time)
        named = {os.fsdecode(key): value for key, value in xattrs.items()}
        where = os.fsdecode(name) if path == "." else f"{path}/{os.fsdecode(name)}"
        if kind == "again" and others:
            row, what = chance.choice(others)
        elif kind == "directory":
            row, what = tree.add_directory(attributes), ("d", *said, 0, "", named)
            directories.append((row, where))
        elif kind == "symlink":
            row = tree.add_symlink(attributes, b"t" * min(size + 1, 4095))
            what = ("l", "0777", *said[1:], min(size + 1, 4095), "t" * min(size + 1, 4095), named)
        elif kind == "char":
            row, what = tree.add_device(stat.S_IFCHR, attributes, 4095, 1_048_575), (
                "c", *said, 0, "4095:1048575", named)  # fmt: skip
        elif kind == "fifo":
            row, what = tree.add_device(stat.S_IFIFO, attributes, 0, 0), ("p", *said, 0, "", named)
        else:
            content = chance.randbytes(1) * size
            row = tree.add_file(attributes, size, laying.lay(size, [(0, content)]))
            what = ("-", *said, size, hashlib.sha256(content).hexdigest(), named)
        tree.children[directory][name] = row
        expected[where] = what
        if what[0] != "d":
            others.append((row, what))
    image = whole(write_metadata(tree, root, contents, Device(0, laying.size)), data.bytes)
    assert {name: entry[:7] for name, entry in Reader(image).entries().items()} == expected
