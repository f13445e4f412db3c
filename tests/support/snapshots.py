"""The snapshots service in this process, as containerd calls it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from pyerofs.grpc.protobuf import Message
from pyerofs.grpc.server import Call
from pyerofs.snapshotter import protocol as said
from pyerofs.snapshotter.chains import Chains
from pyerofs.snapshotter.decision import Decisions
from pyerofs.snapshotter.removal import Removal
from pyerofs.snapshotter.service import Snapshots
from pyerofs.snapshotter.state import State
from pyerofs.snapshotter.usage import Usage


class SnapshotsStage:
    """Owns its state until the end. `log` is what was said."""

    def __init__(self, directory: Path, options: Sequence[str] = ()) -> None:
        self.directory = directory / "snapshots"
        self.directory.mkdir(exist_ok=True)
        self.log: list[str] = []
        self.state = State(str(directory / "state.db"), begun=any(self.directory.iterdir()))
        self.chains = Chains(str(self.directory), self.state, options, self.log.append)
        self.removal = Removal(str(self.directory), self.state, self.chains, self.log.append)
        self.usage = Usage(self.state, self.chains, self.log.append)
        decisions = Decisions(options, self.log.append)
        service = Snapshots(
            str(self.directory), self.state, self.chains, decisions, self.removal, self.usage, self.log.append
        )
        self.methods = service.methods()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.state.close()

    def call(self, name: str, request: Message, response: Message, /, **values: Any) -> dict[str, Any]:
        handle = self.methods[said.SERVICE + name].unary
        assert handle is not None
        call = Call(name, {}, 60.0)
        return response.decode(handle(request.encode(values), call))

    def prepare(self, key: str, parent: str = "", **labels: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.call(
            "Prepare", said.PREPARE, said.MOUNTS, key=key, parent=parent, labels=labels
        )["mounts"]
        return found

    def view(self, key: str, parent: str = "") -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.call("View", said.PREPARE, said.MOUNTS, key=key, parent=parent)["mounts"]
        return found

    def mounts(self, key: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.call("Mounts", said.KEY, said.MOUNTS, key=key)["mounts"]
        return found

    def commit(self, key: str, name: str, **more: Any) -> None:
        self.call("Commit", said.COMMIT, Message(), key=key, name=name, **more)

    def remove(self, key: str) -> None:
        self.call("Remove", said.KEY, Message(), key=key)

    def stat(self, key: str) -> dict[str, Any]:
        found: dict[str, Any] = self.call("Stat", said.KEY, said.INFO_RESPONSE, key=key)["info"]
        return found

    def update(self, name: str, labels: dict[str, str], *paths: str) -> dict[str, str]:
        info = {"name": name, "labels": labels}
        answer = self.call("Update", said.UPDATE, said.INFO_RESPONSE, info=info, update_mask={"paths": paths})
        found: dict[str, str] = answer["info"]["labels"]
        return found

    def usage_of(self, key: str) -> tuple[int, int]:
        found = self.call("Usage", said.KEY, said.USAGE, key=key)
        return found["size"], found["inodes"]

    def cleanup(self) -> None:
        self.call("Cleanup", said.KEY, Message())

    def names(self, *filters: str) -> list[str]:
        handle = self.methods[f"{said.SERVICE}List"].stream
        assert handle is not None
        parts = handle(said.LIST.encode({"filters": filters}), Call("List", {}, 60.0))
        return [info["name"] for part in parts for info in said.LIST_RESPONSE.decode(part)["info"]]
