"""The snapshots that containerd knows, on disk: SQLite, write-ahead, one writer.

What is mounted is not among it: that is seen in mountinfo and the mounts' records.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..errors import UnavailableError
from ..grpc.status import Code, RpcError
from .protocol import TARGET, Kind

VERSION = 1
_SCHEMA = """
CREATE TABLE snapshots (
    id INTEGER PRIMARY KEY AUTOINCREMENT, -- never given twice: it names a directory that may still be being removed
    name TEXT NOT NULL UNIQUE,
    parent INTEGER REFERENCES snapshots (id),
    kind INTEGER NOT NULL,
    labels TEXT NOT NULL,
    created INTEGER NOT NULL, -- nanoseconds since 1970
    updated INTEGER NOT NULL,
    size INTEGER NOT NULL DEFAULT -1, -- bytes and files of its own; -1: not counted yet
    inodes INTEGER NOT NULL DEFAULT -1,
    source TEXT NOT NULL DEFAULT '', -- the image that is mounted for it, as REPOSITORY@DIGEST
    layers INTEGER NOT NULL DEFAULT 0, -- how many of that one's layers; 0: all
    options TEXT NOT NULL DEFAULT '' -- and how
);
CREATE INDEX by_parent ON snapshots (parent);
"""
_COLUMNS = (
    "s.id, s.name, p.name, s.kind, s.labels, s.created, s.updated, s.size, s.inodes, s.source, s.layers, s.options"
)
_SELECT = f"SELECT {_COLUMNS} FROM snapshots s LEFT JOIN snapshots p ON s.parent = p.id"  # noqa: S608


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One of them. `parent`: a name, "" for none; the others as in the schema."""

    id: int
    name: str
    parent: str
    kind: Kind
    labels: Mapping[str, str]
    created: int
    updated: int
    size: int
    inodes: int
    source: str
    layers: int
    options: str

    @property
    def lazy(self) -> bool:
        """Whether it is an image's mount, and not a directory."""
        return bool(self.source)

    def info(self) -> dict[str, Any]:
        """Return it as containerd wants to see it."""
        return {
            "name": self.name,
            "parent": self.parent,
            "kind": self.kind,
            "created_at": _timestamp(self.created),
            "updated_at": _timestamp(self.updated),
            "labels": self.labels,
        }


class State:
    """The file. Any thread; its methods raise RpcError. Owns it until close()."""

    def __init__(self, path: str, *, begun: bool = False) -> None:
        """Open it, or begin with none; `begun`: there are snapshots, so that there must be a state of them."""
        self._path = path
        self._begun = begun
        self._lock = threading.RLock()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise UnavailableError(self._damaged(str(error))) from None
        except BaseException:
            self._db.close()
            raise

    def _open(self) -> None:
        [version] = self._db.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            raise UnavailableError(
                f"{self._path} was written by a newer pyerofs (its version is {version}, {VERSION} is known here): "
                "install that one again"
            )
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")  # containerd's own is on disk too when it has been told
        self._db.execute("PRAGMA foreign_keys=ON")
        if version == 0:
            if self._begun:
                raise UnavailableError(self._damaged("it is empty, and snapshots are there"))
            self._db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version={VERSION}; COMMIT;")
        [found] = self._db.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise UnavailableError(self._damaged(found))
        self._db.execute(f"{_SELECT} LIMIT 1").fetchall()

    def _damaged(self, why: str) -> str:
        where = os.path.dirname(self._path)
        return (
            f"{self._path} is damaged ({' '.join(why.split())[:100]}): restore it, or stop containerd, move {where} "
            "away, start both, remove the images in containerd (`ctr images rm`, `crictl rmi`) and pull them again"
        )

    def close(self) -> None:
        with self._lock:
            self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Do all of it or nothing; nobody else writes meanwhile."""
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield
                except BaseException:
                    self._db.execute("ROLLBACK")
                    raise
                self._db.execute("COMMIT")
            except sqlite3.Error as error:  # a full disk
                raise RpcError(Code.UNAVAILABLE, f"{self._path}: {error}") from None

    # Reading

    def find(self, name: str) -> Snapshot | None:
        return self._one(f"{_SELECT} WHERE s.name = ?", name)

    def get(self, name: str) -> Snapshot:
        found = self.find(name)
        if found is None:
            raise RpcError(Code.NOT_FOUND, f"snapshot {name} does not exist")
        return found

    def by_id(self, number: int) -> Snapshot | None:
        return self._one(f"{_SELECT} WHERE s.id = ?", number)

    def find_target(self, target: str, parent: str) -> Snapshot | None:
        """Return the lazy one for what containerd calls `target`, upon this parent."""
        for found in self._all(f"{_SELECT} WHERE s.source != '' AND p.name IS ?", parent or None):
            if found.labels.get(TARGET) == target:
                return found
        return None

    def all(self) -> list[Snapshot]:
        return self._all(f"{_SELECT} ORDER BY s.id")

    def ids(self) -> set[int]:
        return {number for (number,) in self._rows("SELECT id FROM snapshots")}

    def chain(self, name: str) -> list[Snapshot]:
        """Return a snapshot and all that lie below it, from it downwards; nothing for ""."""
        found = []
        while name:
            found.append(self.get(name))
            name = found[-1].parent
        return found

    def in_use(self) -> set[int]:
        """Return the lazy ones that a container needs: the topmost below each that is not committed."""
        rows = {row.name: row for row in self.all()}
        found = set()
        for row in rows.values():
            if row.kind is Kind.COMMITTED:
                continue
            below = rows.get(row.parent)
            while below and not below.lazy:
                below = rows.get(below.parent)
            if below:
                found.add(below.id)
        return found

    # Writing

    def add(
        self,
        name: str,
        parent: str,
        kind: Kind,
        labels: Mapping[str, str],
        source: str = "",
        layers: int = 0,
        options: str = "",
    ) -> Snapshot:
        """Add one whose parent, if any, is committed."""
        now = time.time_ns()
        with self.transaction():
            if self.find(name) is not None:
                raise RpcError(Code.ALREADY_EXISTS, f"snapshot {name} already exists")
            below = self._parent(parent)
            self._db.execute(
                "INSERT INTO snapshots (name, parent, kind, labels, created, updated, source, layers, options) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (name, below, kind, json.dumps(dict(labels)), now, now, source, layers, options),
            )
        return self.get(name)

    def _parent(self, name: str) -> int | None:
        if not name:
            return None
        found = self.get(name)
        if found.kind is not Kind.COMMITTED:
            raise RpcError(Code.INVALID_ARGUMENT, f"parent {name} is not committed")
        return found.id

    def commit(self, key: str, name: str, labels: Mapping[str, str], parent: str = "") -> Snapshot:
        """Make an active one a committed one of another name, with these labels instead of its own."""
        with self.transaction():
            found = self.get(key)
            if found.kind is not Kind.ACTIVE:
                raise RpcError(Code.FAILED_PRECONDITION, f"snapshot {key} is not active")
            if parent and parent != found.parent:
                raise RpcError(Code.FAILED_PRECONDITION, f"snapshot {key} cannot be moved upon {parent}")
            if self.find(name) is not None:
                raise RpcError(Code.ALREADY_EXISTS, f"snapshot {name} already exists")
            now = time.time_ns()
            self._db.execute(
                "UPDATE snapshots SET name = ?, kind = ?, labels = ?, created = ?, updated = ?, size = -1, inodes = -1 "
                "WHERE id = ?",
                (name, Kind.COMMITTED, json.dumps(dict(labels)), now, now, found.id),
            )
        return self.get(name)

    def remove(self, name: str) -> Snapshot:
        """Forget one without children, and return it."""
        with self.transaction():
            found = self.get(name)
            if self._db.execute("SELECT 1 FROM snapshots WHERE parent = ? LIMIT 1", (found.id,)).fetchone():
                raise RpcError(Code.FAILED_PRECONDITION, f"cannot remove snapshot {name}: it has children")
            self._db.execute("DELETE FROM snapshots WHERE id = ?", (found.id,))
        return found

    def relabel(self, name: str, labels: Mapping[str, str]) -> Snapshot:
        with self.transaction():
            found = self.get(name)
            self._db.execute(
                "UPDATE snapshots SET labels = ?, updated = ? WHERE id = ?",
                (json.dumps(dict(labels)), time.time_ns(), found.id),
            )
        return self.get(name)

    def count(self, number: int, size: int, inodes: int) -> None:
        """Note how much a snapshot takes."""
        with self.transaction():
            self._db.execute("UPDATE snapshots SET size = ?, inodes = ? WHERE id = ?", (size, inodes, number))

    def _one(self, query: str, *values: object) -> Snapshot | None:
        found = self._all(query, *values)
        return found[0] if found else None

    def _all(self, query: str, *values: object) -> list[Snapshot]:
        return [
            Snapshot(number, name, parent or "", Kind(kind), json.loads(labels), *rest)
            for number, name, parent, kind, labels, *rest in self._rows(query, *values)
        ]

    def _rows(self, query: str, *values: object) -> list[Any]:
        with self._lock:
            try:
                return self._db.execute(query, values).fetchall()
            except sqlite3.Error as error:
                raise RpcError(Code.UNAVAILABLE, f"{self._path}: {error}") from None


def _timestamp(nanoseconds: int) -> dict[str, int]:
    return {"seconds": nanoseconds // 1_000_000_000, "nanos": nanoseconds % 1_000_000_000}
