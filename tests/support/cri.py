"""What kubelet says to containerd (CRI, runtime.v1), by our own gRPC client."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

from pyerofs.grpc.client import GrpcClient
from pyerofs.grpc.protobuf import BOOL, BYTES, INT, STRING, UINT, Message
from pyerofs.grpc.status import RpcError

_SPEC = Message(image=(1, STRING))
_NAMESPACES = Message(network=(1, INT), pid=(2, INT), ipc=(3, INT))
_METADATA = Message(name=(1, STRING), uid=(2, STRING), namespace=(3, STRING), attempt=(4, UINT))
_POD = Message(
    metadata=(1, _METADATA),
    log_directory=(3, STRING),
    linux=(8, Message(security_context=(2, Message(namespace_options=(1, _NAMESPACES))))),
)
_CONTAINER = Message(
    metadata=(1, Message(name=(1, STRING), attempt=(2, UINT))),
    image=(2, _SPEC),
    command=(3, [STRING]),
    args=(4, [STRING]),
    log_path=(11, STRING),
    linux=(15, Message(security_context=(2, Message(namespace_options=(3, _NAMESPACES))))),
)
_STATUS = Message(id=(1, STRING), state=(3, INT), exit_code=(7, INT), reason=(10, STRING), message=(11, STRING))
_POD_NAMESPACES = {"network": 2}  # the node's
RUNNING, EXITED = 1, 2


class Ran(NamedTuple):
    status: int
    out: str
    err: str


class Cri:
    """`address` of containerd. For one thread."""

    def __init__(self, address: str) -> None:
        self._client = GrpcClient(address)
        self._pods: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def _image(self, method: str, request: bytes) -> bytes:
        return self._client.call(f"/runtime.v1.ImageService/{method}", request, 120.0)

    def _runtime(self, method: str, request: bytes) -> bytes:
        return self._client.call(f"/runtime.v1.RuntimeService/{method}", request, 120.0)

    def pull(self, image: str) -> str:
        request = Message(image=(1, _SPEC)).encode({"image": {"image": image}})
        return str(Message(image_ref=(1, STRING)).decode(self._image("PullImage", request))["image_ref"])

    def pulled(self, image: str) -> bool:
        """Pull an image, and tell whether that was possible: the snapshotter may be unavailable."""
        try:
            self.pull(image)
        except RpcError as error:
            assert "unavailable" in str(error) or "connect" in str(error)
            return False
        return True

    def images(self) -> set[str]:
        each = Message(id=(1, STRING), repo_tags=(2, [STRING]))
        answer = self._image("ListImages", b"")
        return {tag for image in Message(images=(1, [each])).decode(answer)["images"] for tag in image["repo_tags"]}

    def remove_image(self, image: str) -> None:
        self._image("RemoveImage", Message(image=(1, _SPEC)).encode({"image": {"image": image}}))

    def run_pod(self, name: str) -> str:
        pod = {
            "metadata": {"name": name, "uid": f"uid-{name}", "namespace": "tests", "attempt": 0},
            "linux": {"security_context": {"namespace_options": _POD_NAMESPACES}},
        }
        answer = self._runtime("RunPodSandbox", Message(config=(1, _POD)).encode({"config": pod}))
        identifier = str(Message(id=(1, STRING)).decode(answer)["id"])
        self._pods[identifier] = pod
        return identifier

    def create(self, pod: str, name: str, image: str, *command: str) -> str:
        config = {
            "metadata": {"name": name, "attempt": 0},
            "image": {"image": image},
            "command": list(command),
            "linux": {"security_context": {"namespace_options": _POD_NAMESPACES}},
        }
        request = Message(pod=(1, STRING), config=(2, _CONTAINER), sandbox=(3, _POD)).encode(
            {"pod": pod, "config": config, "sandbox": self._pods[pod]}
        )
        return str(Message(id=(1, STRING)).decode(self._runtime("CreateContainer", request))["id"])

    def start(self, container: str) -> None:
        self._runtime("StartContainer", _id(container))

    def run(self, pod: str, name: str, image: str, *command: str) -> str:
        container = self.create(pod, name, image, *command)
        self.start(container)
        return container

    def exec(self, container: str, *command: str) -> Ran:
        """Run a command in a container, to its end."""
        request = Message(id=(1, STRING), cmd=(2, [STRING]), timeout=(3, INT)).encode(
            {"id": container, "cmd": list(command), "timeout": 60}
        )
        answer = Message(out=(1, BYTES), err=(2, BYTES), status=(3, INT)).decode(self._runtime("ExecSync", request))
        return Ran(answer["status"], answer["out"].decode(), answer["err"].decode())

    def status(self, container: str) -> dict[str, Any]:
        answer = self._runtime("ContainerStatus", _id(container))
        found: dict[str, Any] = Message(status=(1, _STATUS)).decode(answer)["status"]
        return found

    def remove(self, container: str) -> None:
        """Stop it, if need be, and remove it."""
        self._runtime("StopContainer", Message(id=(1, STRING), timeout=(2, INT)).encode({"id": container}))
        self._runtime("RemoveContainer", _id(container))

    def remove_pod(self, pod: str) -> None:
        self._runtime("StopPodSandbox", _id(pod))
        self._runtime("RemovePodSandbox", _id(pod))
        del self._pods[pod]

    def clear(self) -> None:
        """Remove all containers, pods and images."""
        for pod in list(self._pods):
            self.remove_pod(pod)
        for image in self.images():
            self.remove_image(image)

    def reconnect(self) -> None:
        """Forget a connection to a containerd that has ended."""
        self._client.close()

    def stats(self) -> int:
        """Return how many containers there are statistics of."""
        answer = self._runtime("ListContainerStats", b"")
        return len(Message(stats=(1, [Message(ignored=(99, BOOL))])).decode(answer)["stats"])


def _id(identifier: str) -> bytes:
    return Message(id=(1, STRING)).encode({"id": identifier})
