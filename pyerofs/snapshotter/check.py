"""`pyerofs containerd check`: what is missing for containerd to start containers from lazy images."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ..errors import PyerofsError
from ..grpc.client import GrpcClient
from ..grpc.protobuf import STRING, Map, Message
from ..kernel import nbd
from .configuration import OLDEST, parse_version

_TIMEOUT = 5.0  # seconds
_VERSION = Message(version=(1, STRING), revision=(2, STRING))
_PLUGIN = Message(type=(1, STRING), id=(2, STRING), exports=(5, Map()))
_PLUGINS = Message(plugins=(1, [_PLUGIN]))
_FILTERS = Message(filters=(1, [STRING]))


class Finding(NamedTuple):
    """`level`: "ok", "note" for what could be better, or "missing"."""

    level: str
    text: str


def check(containerd: str, root: str, address: str, write: Callable[[str], None]) -> bool:
    """Print a line for each thing that containerd needs; return whether all is there."""
    found = [*_machine(), *_snapshotter(address), *_containerd(containerd, root)]
    for finding in found:
        write(f"{finding.level:<8} {finding.text}")
    return all(finding.level != "missing" for finding in found)


def _machine() -> Iterator[Finding]:
    filesystems = _read("/proc/filesystems").split()
    for name in ("erofs", "overlay"):
        there = name in filesystems or _module(name)
        yield Finding(
            "ok" if there else "missing",
            f"the kernel {'has' if there else 'lacks'} {name}{'' if there else f': modprobe {name}'}",
        )
    if nbd.load_module():
        yield Finding("ok", "the kernel has NBD: mounts outlive the death of their workers")
    elif shutil.which("nbdfuse"):
        yield Finding("note", "the kernel lacks NBD (modprobe nbd): mounts are by nbdfuse, and die with their workers")
    else:
        yield Finding("missing", "there is neither NBD in the kernel (modprobe nbd) nor nbdfuse (libnbd-bin)")
    runtime = next((name for name in ("runc", "crun") if shutil.which(name)), "")
    yield Finding("ok", f"the runtime is {runtime}") if runtime else Finding("missing", "there is no runc, and no crun")
    unified = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
    yield Finding(
        "ok", f"cgroups are {'version 2' if unified else 'version 1, or hybrid: crun does not work with those'}"
    )
    if os.geteuid() != 0:
        yield Finding("missing", "only root can serve containerd")


def _module(name: str) -> bool:
    release = os.uname().release
    return any(
        f"/{name}.ko" in _read(f"/lib/modules/{release}/{index}") for index in ("modules.dep", "modules.builtin")
    )


def _snapshotter(address: str) -> Iterator[Finding]:
    with contextlib.closing(GrpcClient(address)) as client:
        try:
            for _ in client.stream("/containerd.services.snapshots.v1.Snapshots/List", b"", _TIMEOUT):
                pass
            yield Finding("ok", f"pyerofs serves at {address}")
        except PyerofsError as error:
            yield Finding("missing", f"pyerofs does not serve: {error} (start `pyerofs containerd`)")


def _containerd(socket: str, root: str) -> Iterator[Finding]:
    with contextlib.closing(GrpcClient(socket)) as client:
        try:
            answer = client.call("/containerd.services.version.v1.Version/Version", b"", _TIMEOUT)
            version = _VERSION.decode(answer)["version"]
            request = _FILTERS.encode({"filters": ["type==io.containerd.snapshotter.v1,id==pyerofs"]})
            answer = client.call("/containerd.services.introspection.v1.Introspection/Plugins", request, _TIMEOUT)
            plugins = _PLUGINS.decode(answer)["plugins"]
        except (PyerofsError, ValueError) as error:
            yield Finding("missing", f"containerd does not answer: {error}")
            return
    try:
        numbers = parse_version(version)
        yield Finding("ok", f"containerd is {version}")
    except PyerofsError as error:
        numbers = OLDEST
        yield Finding("missing", str(error))
    hint = f"`pyerofs containerd --print-config {numbers[0]}.{numbers[1]}` shows what its config.toml needs"
    if not plugins:
        yield Finding("missing", f"containerd has no snapshotter `pyerofs`: {hint}, and restart it")
        return
    yield Finding("ok", "containerd has the snapshotter `pyerofs`")
    exports = plugins[0]["exports"]
    if numbers >= (1, 7) and exports.get("root") != root:
        yield Finding(
            "note", f"containerd does not know the snapshotter's directory {root}, for kubelet's limits: {hint}"
        )
    if numbers >= (2, 0) and exports.get("enable_remote_snapshot_annotations") != "true":
        yield Finding("missing", f"containerd does not tell which image a layer is of, for `ctr images pull`: {hint}")


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
