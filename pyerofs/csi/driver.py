"""The driver: which methods there are, on the socket for kubelet's calls and on that for its registration."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from .. import __version__
from ..daemon.record import Record
from ..errors import PyerofsError, UnavailableError, unexpected
from ..grpc.protobuf import Message, ProtobufError
from ..grpc.server import Call, Method
from ..grpc.status import Code, RpcError
from ..printable import one_line
from . import messages as m
from .node import NodeService

NAME = "pyerofs.csi"
_VERSIONS = ("1.0.0",)  # of the interface, as registrations have them

Handler = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def _method(request: Message, response: Message, handler: Handler, report: Callable[[str], None]) -> Method:
    def call(data: bytes, about: Call) -> bytes:
        try:
            return response.encode(handler(request.decode(data)))
        except ProtobufError as e:
            raise RpcError(Code.INVALID_ARGUMENT, f"the request is malformed: {e}") from None
        except RpcError as e:
            report(f"{about.method}: {one_line(str(e))}")
            raise
        except PyerofsError as e:
            report(f"{about.method}: {one_line(str(e))}")
            raise RpcError(Code.INTERNAL, str(e)) from None
        except Exception as e:
            error = unexpected(e)
            report(f"{about.method}: {one_line(str(error))}")
            raise RpcError(Code.INTERNAL, str(error)) from None

    return Method(unary=call)


def driver_methods(node_id: str, node: NodeService, report: Callable[[str], None]) -> dict[str, Method]:
    """Return the methods of the Identity and Node services."""

    def method(service: str, name: str, request: Message, response: Message, handler: Handler) -> None:
        found[f"/csi.v1.{service}/{name}"] = _method(request, response, handler, report)

    found: dict[str, Method] = {}
    capabilities = {"capabilities": [{"rpc": {"type": m.GET_VOLUME_STATS}}]}
    method("Identity", "GetPluginInfo", m.EMPTY, m.PLUGIN_INFO, lambda _: {"name": NAME, "vendor_version": __version__})
    method("Identity", "GetPluginCapabilities", m.EMPTY, m.EMPTY, lambda _: {})
    method("Identity", "Probe", m.EMPTY, m.PROBE, lambda _: {"ready": {"value": True}})
    method("Node", "NodeGetInfo", m.EMPTY, m.NODE_INFO, lambda _: {"node_id": node_id})
    method("Node", "NodeGetCapabilities", m.EMPTY, m.NODE_CAPABILITIES, lambda _: capabilities)
    method("Node", "NodePublishVolume", m.PUBLISH, m.EMPTY, node.publish)
    method("Node", "NodeUnpublishVolume", m.UNPUBLISH, m.EMPTY, node.unpublish)
    method("Node", "NodeGetVolumeStats", m.STATS_REQUEST, m.STATS, node.stats)
    return found


def registration_methods(endpoint: str, report: Callable[[str], None]) -> dict[str, Method]:
    """Return those by which kubelet gets to know the driver at `endpoint`, a path as kubelet sees it."""
    about = {"type": "CSIPlugin", "name": NAME, "endpoint": endpoint, "supported_versions": list(_VERSIONS)}

    def notified(status: Mapping[str, Any]) -> dict[str, Any]:
        error = one_line(status["error"])
        report("kubelet knows the driver" if status["plugin_registered"] else f"kubelet refuses the driver: {error}")
        return {}

    service = "/pluginregistration.Registration"
    return {
        f"{service}/GetInfo": _method(m.EMPTY, m.REGISTRATION, lambda _: about, report),
        f"{service}/NotifyRegistrationStatus": _method(m.STATUS, m.EMPTY, notified, report),
    }


def move_to(cgroup: str) -> Callable[[Record], None]:
    """Return what moves a mount's daemons into a cgroup that outlives the driver's container.

    `cgroup`: its directory, which is there. What they start later is in there as well. That raises UnavailableError.
    """

    def move(record: Record) -> None:
        ours = {record.pid, record.supervisor} - {0}
        for pid in ours | _children(ours):
            try:
                with open(os.path.join(cgroup, "cgroup.procs"), "w", encoding="ascii") as file:
                    file.write(str(pid))
            except ProcessLookupError:
                continue  # it has ended
            except OSError as e:
                raise UnavailableError(f"cannot move a mount's daemon into the cgroup {cgroup}: {e.strerror}") from None

    return move


def _children(parents: set[int]) -> set[int]:
    found = set()
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                    parent = int(file.read().rpartition(")")[2].split()[1])
            except (OSError, ValueError, IndexError):
                continue
            if parent in parents:
                found.add(int(name))
    return found
