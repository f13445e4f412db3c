"""`pyerofs volume-plugin`, `csi` and `containerd-config`: engines that ask for mounts over a socket."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

from ..errors import UsageError
from .notify import notify

if TYPE_CHECKING:
    import argparse

    from .commands import Commands, Say

_PLUGIN = "/run/docker/plugins/pyerofs.sock"
_VOLUMES = "/var/lib/pyerofs/volumes"


def register(commands: Commands) -> None:
    """Add these commands."""
    p = commands.add(
        "volume-plugin",
        "give docker and podman volumes of images, mounted lazily",
        "  pyerofs volume-plugin\n"
        "  docker volume create -d pyerofs -o image=quay.io/org/models:1 models\n"
        "  docker run --mount type=volume,src=models,dst=/models,readonly,volume-nocopy ...",
        _volume_plugin,
        options=False,
    )
    p.add_argument("--socket", default=_PLUGIN, metavar="PATH", help="where docker looks (default: %(default)s)")
    p.add_argument("--dir", default=_VOLUMES, metavar="DIR", help="what is known of volumes (default: %(default)s)")
    p = commands.add(
        "csi",
        "give Kubernetes' pods volumes of images, mounted lazily: a CSI node driver",
        "  pyerofs csi --endpoint /var/lib/kubelet/plugins/pyerofs.csi/csi.sock \\\n"
        "    --registration /var/lib/kubelet/plugins_registry/pyerofs.csi-reg.sock\n\n"
        "manifests: deploy/kubernetes in the sources",
        _csi,
        options=False,
    )
    p.add_argument("--endpoint", required=True, metavar="PATH", help="the socket for kubelet's calls")
    p.add_argument("--registration", metavar="PATH", help="the socket by which kubelet finds the driver")
    p.add_argument("--kubelet-endpoint", metavar="PATH", help="what kubelet calls the endpoint (default: the same)")
    p.add_argument("--node-id", default=socket.gethostname(), metavar="NAME", help="the node (default: %(default)s)")
    p.add_argument("--worker-cgroup", metavar="DIR", help="make this cgroup, and move the mounts' daemons into it")
    p = commands.add(
        "containerd-config",
        "put what containerd needs for pyerofs into its config.toml, or take it out again",
        "  pyerofs containerd-config install 1.7      then: systemctl restart containerd\n"
        "  pyerofs containerd-config undo",
        _containerd_config,
        options=False,
    )
    p.add_argument("--config", default="/etc/containerd/config.toml", metavar="FILE", help="default: %(default)s")
    p.add_argument("action", choices=["install", "undo"], metavar="ACTION", help="install or undo")
    p.add_argument("version", metavar="VERSION", nargs="?", help="containerd's, for install")


def need_root() -> None:
    """Raise UsageError for others."""
    if os.geteuid() != 0:
        raise UsageError("only root can mount")


def open_listener(path: str, held: ExitStack) -> socket.socket:
    """Return the socket that a service manager has opened, or one at `path`, which is removed in the end."""
    from ..listening import activated, listen

    found = activated(os.environ)
    listener = found[0] if found else listen(path)
    held.callback(listener.close)
    if not found:
        held.callback(os.unlink, path)
    return listener


def _volume_plugin(arguments: argparse.Namespace, write: Say, report: Say) -> None:
    from ..docker.plugin import serve_plugin
    from ..docker.volumes import Volumes

    need_root()
    with ExitStack() as held:
        volumes = Volumes(report, arguments.dir)
        listener = open_listener(arguments.socket, held)

        def ready() -> None:
            write(f"ready: {arguments.socket}")
            notify("READY=1")

        serve_plugin(listener, volumes, report, ready)


def _csi(arguments: argparse.Namespace, write: Say, report: Say) -> None:
    from ..csi.driver import driver_methods, move_to, registration_methods
    from ..csi.node import NodeService
    from ..grpc.server import GrpcServer, serve
    from ..listening import listen

    need_root()
    endpoint = arguments.endpoint.removeprefix("unix://")
    if arguments.worker_cgroup:
        try:
            os.makedirs(arguments.worker_cgroup, exist_ok=True)
        except OSError as e:
            raise UsageError(f"--worker-cgroup {arguments.worker_cgroup}: {e.strerror}") from None
    node = NodeService(report, move_to(arguments.worker_cgroup)) if arguments.worker_cgroup else NodeService(report)
    methods = driver_methods(arguments.node_id, node, report)
    with ExitStack() as held:
        listeners = [open_listener(endpoint, held)]
        if arguments.registration:
            methods |= registration_methods(arguments.kubelet_endpoint or endpoint, report)
            listeners.append(listen(arguments.registration))
            held.callback(listeners[-1].close)
            held.callback(os.unlink, arguments.registration)

        def ready() -> None:
            write(f"ready: {endpoint}")
            notify("READY=1")

        serve(GrpcServer(methods, report), listeners, ready)


def _containerd_config(arguments: argparse.Namespace, write: Say, report: Say) -> None:
    from ..snapshotter.config_file import install, undo
    from ..snapshotter.serve import ADDRESS, ROOT

    if (arguments.action == "install") != (arguments.version is not None):
        raise UsageError("install needs containerd's VERSION, and undo takes none (`containerd --version` tells it)")
    if arguments.action == "install":
        done = install(arguments.config, arguments.version, ROOT, ADDRESS)
    else:
        done = undo(arguments.config)
    report(f"{arguments.config} is changed: restart containerd" if done else f"{arguments.config}: nothing to do")
