"""Docker's volume plugin protocol, version 1: JSON by POST on a Unix socket (docs.docker.com, "Docker volume plugins").

What podman wants besides: a Mountpoint in each answer, and that List is never null.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

from ..errors import UsageError, unexpected
from ..printable import one_line
from ..webserver import WebHandler, serve_http
from .volumes import Volume, Volumes

SOCKET = "/run/docker/plugins/pyerofs.sock"
_KIND = "application/vnd.docker.plugins.v1.2+json"
_REQUEST_MAX = 1 << 20  # bytes

Request = dict[str, Any]


def _text(request: Request, key: str) -> str:
    found = request.get(key)
    if not isinstance(found, str):
        raise UsageError(f"the request has no {key}")
    return found


def _describe(volumes: Volumes, volume: Volume) -> dict[str, Any]:
    return {
        "Name": volume.name,
        "Mountpoint": volumes.mounted_at(volume.name),
        "Status": {"image": volume.image, "options": ",".join(volume.options)},
    }


def _create(volumes: Volumes, request: Request) -> Request:
    options = request.get("Opts") or {}
    if not isinstance(options, dict):
        raise UsageError("the request has Opts that are no object")
    volumes.create(_text(request, "Name"), options)
    return {}


def _remove(volumes: Volumes, request: Request) -> Request:
    volumes.remove(_text(request, "Name"))
    return {}


def _unmount(volumes: Volumes, request: Request) -> Request:
    volumes.unmount(_text(request, "Name"), _text(request, "ID"))
    return {}


_CALLS: dict[str, Callable[[Volumes, Request], Request]] = {
    "Plugin.Activate": lambda volumes, request: {"Implements": ["VolumeDriver"]},
    "VolumeDriver.Capabilities": lambda volumes, request: {"Capabilities": {"Scope": "local"}},
    "VolumeDriver.Create": _create,
    "VolumeDriver.Remove": _remove,
    "VolumeDriver.Unmount": _unmount,
    "VolumeDriver.Get": lambda volumes, request: {"Volume": _describe(volumes, volumes.find(_text(request, "Name")))},
    "VolumeDriver.List": lambda volumes, request: {"Volumes": [_describe(volumes, volume) for volume in volumes.all()]},
    "VolumeDriver.Path": lambda volumes, request: {
        "Mountpoint": volumes.mounted_at(volumes.find(_text(request, "Name")).name)
    },
    "VolumeDriver.Mount": lambda volumes, request: {
        "Mountpoint": volumes.mount(_text(request, "Name"), _text(request, "ID"))
    },
}


def serve_plugin(
    listener: socket.socket, volumes: Volumes, report: Callable[[str], None], ready: Callable[[], None]
) -> None:
    """Serve on a listening socket, which stays the caller's, until a signal. For the main thread.

    What is mounted stays mounted. `report` gets a line for each request that fails.
    """

    class PluginHandler(WebHandler):
        def do_POST(self) -> None:
            name = self.path.removeprefix("/")
            status, value = 200, {"Err": ""}
            try:
                if name not in _CALLS:
                    raise UsageError(f"there is no {name[:64]}")
                value |= _CALLS[name](volumes, self._request())
            except Exception as e:
                error = unexpected(e)
                report(f"{name}: {one_line(str(error))}")
                status, value = 500, {"Err": str(error)}
            self.send_body(status, _KIND, json.dumps(value).encode())

        def _request(self) -> Request:
            length = self.headers.get("Content-Length", "0")
            if not length.isdecimal() or int(length) > _REQUEST_MAX:
                raise UsageError("the request has no length, or is too long")
            try:
                found = json.loads(self.rfile.read(int(length)) or b"{}")
            except (ValueError, RecursionError):
                raise UsageError("the request is not JSON") from None
            if not isinstance(found, dict):
                raise UsageError("the request is not a JSON object")
            return found

    serve_http(listener, PluginHandler, ready)
