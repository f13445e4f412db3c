"""The ten calls of containerd's snapshots service. None of them waits for a registry, or for an unmount, for long."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..errors import UsageError
from ..grpc.protobuf import Message, ProtobufError
from ..grpc.server import Call, Method
from ..grpc.status import Code, RpcError
from . import protocol as said
from .chains import Chains
from .decision import Decisions, Eager, Lazy, check_name
from .filters import parse
from .protocol import SERVICE, Kind
from .removal import Removal
from .state import Snapshot, State
from .usage import Usage

DECISION_PATIENCE = 2.0  # seconds, in which a pull waits for what the registry has to say
MOUNT_PATIENCE = 10.0  # seconds, in which a container waits for its image's mount
_LISTED = 100  # snapshots in one message
_LABELS_MAX = 64 << 10  # bytes of all labels of a snapshot: containerd takes 4096 of each


class Snapshots:
    """The service. `directory` has one directory for each snapshot, by its number. Any thread."""

    def __init__(
        self,
        directory: str,
        state: State,
        chains: Chains,
        decisions: Decisions,
        removal: Removal,
        usage: Usage,
        log: Callable[[str], None],
    ) -> None:
        self._directory = directory
        self._state = state
        self._chains = chains
        self._decisions = decisions
        self._removal = removal
        self._usage = usage
        self._log = log

    def methods(self) -> dict[str, Method]:
        """Return them by their paths, for a server."""
        calls = {
            "Prepare": (said.PREPARE, self._prepare, said.MOUNTS),
            "View": (said.PREPARE, self._view, said.MOUNTS),
            "Mounts": (said.KEY, self._mounts, said.MOUNTS),
            "Commit": (said.COMMIT, self._commit, Message()),
            "Remove": (said.KEY, self._remove, Message()),
            "Stat": (said.KEY, self._stat, said.INFO_RESPONSE),
            "Update": (said.UPDATE, self._update, said.INFO_RESPONSE),
            "Usage": (said.KEY, self._usage_of, said.USAGE),
            "Cleanup": (said.KEY, self._cleanup, Message()),
        }
        found = {SERVICE + name: Method(_unary(*call)) for name, call in calls.items()}
        return {**found, SERVICE + "List": Method(stream=self._list)}

    def _prepare(self, request: Mapping[str, Any], call: Call) -> dict[str, Any]:
        key, parent, labels = request["key"], request["parent"], _labels(request)
        target = labels.get(said.TARGET)
        if target and self._commit_lazy(target, parent, labels):
            # containerd looks for it by its labels now, and does not fetch the layer.
            raise RpcError(Code.ALREADY_EXISTS, f"{target} need not be fetched")
        return self._make(key, parent, Kind.ACTIVE, labels, call)

    def _view(self, request: Mapping[str, Any], call: Call) -> dict[str, Any]:
        return self._make(request["key"], request["parent"], Kind.VIEW, _labels(request), call)

    def _commit_lazy(self, target: str, parent: str, labels: Mapping[str, str]) -> bool:
        """Whether the layer that is being pulled is one of a lazy image, and is known as such now."""
        if self._state.find_target(target, parent):
            return True
        below = self._state.chain(parent)
        if any(not each.lazy for each in below):
            return False  # it was begun as an ordinary one
        image, manifest = labels.get(said.IMAGE, ""), labels.get(said.MANIFEST, "")
        if not image or not manifest:
            return False
        try:
            check_name(image)
        except UsageError as error:
            self._log(f"ordinary: {error}")
            return False
        decision = self._decisions.decide(image, manifest, DECISION_PATIENCE)
        if isinstance(decision, Eager):
            return False
        count = len(below)
        why = _mismatch(decision, count, target, labels.get(said.LAYER, ""))
        if why:
            self._log(f"{image}: layer {count} is ordinary: {why}")
            return False
        layers = decision.layers[count][1]
        self._add_lazy(target, parent, labels, decision, layers)
        return True

    def _add_lazy(self, target: str, parent: str, labels: Mapping[str, str], image: Lazy, layers: int) -> None:
        below = self._state.find(parent) if parent else None
        # The same layer upon another parent is another snapshot: containerd knows it by its labels, not by its name.
        name = f"pyerofs/{below.id if below else 0}/{target}"
        whole = layers == image.total
        with contextlib.suppress(FileExistsError):
            try:
                added = self._state.add(
                    name, parent, Kind.COMMITTED, labels, image.source, 0 if whole else layers, image.options
                )
            except RpcError as error:
                if error.code is Code.ALREADY_EXISTS:
                    return  # by another call
                raise
            os.makedirs(self._chains.path(added.id), mode=0o755)
            if whole:
                self._chains.begin(added)  # what is wrong with it is in the log before a container needs it

    def _make(self, key: str, parent: str, kind: Kind, labels: Mapping[str, str], call: Call) -> dict[str, Any]:
        """Make a snapshot that can be mounted."""
        added = self._state.add(key, parent, kind, labels)
        try:
            lowers = self._lowers(added, call)
            self._make_directories(added, lowers)
        except BaseException:
            with contextlib.suppress(RpcError):
                self._state.remove(key)
            self._removal.add(added.id)
            raise
        return {"mounts": self._mounts_of(added, lowers)}

    def _make_directories(self, snapshot: Snapshot, lowers: list[str]) -> None:
        path = self._chains.path(snapshot.id)
        try:
            os.makedirs(path, mode=0o755)
            os.chmod(os.path.dirname(path), 0o700)
            if snapshot.kind is Kind.ACTIVE:
                os.mkdir(os.path.join(os.path.dirname(path), "work"), mode=0o711)
                if lowers:  # the root of what is seen is the upper directory's
                    found = os.stat(lowers[0])
                    os.chown(path, found.st_uid, found.st_gid)
                    os.chmod(path, stat.S_IMODE(found.st_mode))
        except OSError as error:
            raise RpcError(Code.UNAVAILABLE, f"{path}: {error.strerror}") from None

    def _lowers(self, snapshot: Snapshot, call: Call) -> list[str]:
        """Return the directories below a snapshot, topmost first; a lazy one stands for all below it."""
        found = []
        for below in self._state.chain(snapshot.parent):
            if below.lazy:
                remaining = call.remaining()
                patience = MOUNT_PATIENCE if remaining is None else min(MOUNT_PATIENCE, remaining * 0.9)
                found.append(self._chains.ensure(below, patience))
                break
            found.append(self._chains.path(below.id))
        return found

    def _mounts_of(self, snapshot: Snapshot, lowers: list[str]) -> list[dict[str, Any]]:
        path = self._chains.path(snapshot.id)
        if not lowers:
            how = "rw" if snapshot.kind is Kind.ACTIVE else "ro"
            return [{"type": "bind", "source": path, "options": [how, "rbind"]}]
        if snapshot.kind is not Kind.ACTIVE and len(lowers) == 1:
            return [{"type": "bind", "source": lowers[0], "options": ["ro", "rbind"]}]
        options = ["index=off", f"lowerdir={':'.join(lowers)}"]
        if snapshot.kind is Kind.ACTIVE:
            options[1:1] = [f"workdir={os.path.dirname(path)}/work", f"upperdir={path}"]
        return [{"type": "overlay", "source": "overlay", "options": options}]

    def _mounts(self, request: Mapping[str, Any], call: Call) -> dict[str, Any]:
        found = self._state.get(request["key"])
        if found.kind is Kind.COMMITTED:
            raise RpcError(Code.FAILED_PRECONDITION, f"snapshot {found.name} is committed")
        return {"mounts": self._mounts_of(found, self._lowers(found, call))}

    def _commit(self, request: Mapping[str, Any], call: Call) -> dict[str, Any]:
        if not request["name"]:
            raise RpcError(Code.INVALID_ARGUMENT, "a committed snapshot needs a name")
        committed = self._state.commit(request["key"], request["name"], _labels(request), request["parent"])
        self._usage.forget(committed.id)
        self._usage.get(committed)  # so that it is counted
        return {}

    def _remove(self, request: Mapping[str, Any], call: Call) -> dict[str, Any]:
        removed = self._state.remove(request["key"])
        self._usage.forget(removed.id)
        self._removal.add(removed.id)
        return {}

    def _stat(self, request: Mapping[str, Any], call: Call) -> dict[str, Any]:
        return {"info": self._state.get(request["key"]).info()}

    def _update(self, request: Mapping[str, Any], call: Call) -> dict[str, Any]:
        info = request["info"]
        if info is None:
            raise RpcError(Code.INVALID_ARGUMENT, "there is nothing to update")
        found = self._state.get(info["name"])
        labels = dict(found.labels)
        mask = request["update_mask"]
        for path in mask["paths"] if mask and mask["paths"] else ["labels"]:
            name, dot, label = path.partition(".")
            if name != "labels":
                raise RpcError(Code.INVALID_ARGUMENT, f"{path} of a snapshot cannot be updated")
            if not dot:
                labels = dict(info["labels"])
            elif label in info["labels"]:
                labels[label] = info["labels"][label]
            else:
                labels.pop(label, None)
        return {"info": self._state.relabel(found.name, _checked(labels)).info()}

    def _list(self, request: bytes, call: Call) -> Iterable[bytes]:
        try:
            matches = parse(_decoded(said.LIST, request)["filters"])
        except ValueError as error:
            raise RpcError(Code.INVALID_ARGUMENT, str(error)) from None
        found = []
        for snapshot in self._state.all():
            info = snapshot.info()
            if matches({**info, "kind": snapshot.kind.name.lower()}):
                found.append(info)
        for start in range(0, len(found), _LISTED):
            yield said.LIST_RESPONSE.encode({"info": found[start : start + _LISTED]})

    def _usage_of(self, request: Mapping[str, Any], call: Call) -> dict[str, Any]:
        size, inodes = self._usage.get(self._state.get(request["key"]))
        return {"size": size, "inodes": inodes}

    def _cleanup(self, request: Mapping[str, Any], call: Call) -> dict[str, Any]:
        self._removal.add_unknown()
        return {}


def _mismatch(image: Lazy, count: int, target: str, layer: str) -> str:
    """Say why the image's layer number `count` cannot be what containerd calls `target`; "" where it can."""
    if count >= len(image.layers):
        return f"the image has only {len(image.layers)} layers"
    if layer and image.layers[count][0] != layer:
        return "its manifest has another layer there"
    if image.chains[count] and image.chains[count] != target:
        return "the EROFS layers are not those that its config names, or were made of others"
    return ""


def _labels(request: Mapping[str, Any]) -> dict[str, str]:
    return _checked(request["labels"])


def _checked(labels: dict[str, str]) -> dict[str, str]:
    if sum(len(name) + len(value) for name, value in labels.items()) > _LABELS_MAX:
        raise RpcError(Code.INVALID_ARGUMENT, f"the labels of a snapshot have more than {_LABELS_MAX} bytes")
    return labels


def _decoded(message: Message, data: bytes) -> dict[str, Any]:
    try:
        return message.decode(data)
    except ProtobufError as error:
        raise RpcError(Code.INVALID_ARGUMENT, f"malformed request: {error}") from None


def _unary(
    request: Message, handle: Callable[[Mapping[str, Any], Call], Mapping[str, Any]], response: Message
) -> Callable[[bytes, Call], bytes]:
    def call(data: bytes, call: Call) -> bytes:
        return response.encode(handle(_decoded(request, data), call))

    return call
