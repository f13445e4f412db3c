"""The CSI driver, with a client that plays kubelet and asks what csi-sanity's specs of nodes ask."""

from __future__ import annotations

import base64
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyerofs.csi import messages as m
from pyerofs.csi.credentials import KEY, credential_options
from pyerofs.csi.node import NodeService
from pyerofs.errors import UsageError
from pyerofs.grpc.client import GrpcClient
from pyerofs.grpc.protobuf import Message
from pyerofs.grpc.status import Code, RpcError
from pyerofs.kernel import mountpoint
from tests.support import skopeo
from tests.support.busyimage import busy_image
from tests.support.dockerregistry import DockerRegistry
from tests.support.ordinary import Layout
from tests.support.scene import Scene

MOUNT = {"mount": {"fs_type": ""}, "access_mode": {"mode": 1}}
EPHEMERAL = {"csi.storage.k8s.io/ephemeral": "true", "csi.storage.k8s.io/pod.name": "p"}


class Kubelet:
    """A driver, and calls to it."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.endpoint = scene.directory / "csi.sock"
        self.registration = scene.directory / "reg.sock"
        self.image = busy_image(Layout(scene.directory / "layout"), "app")
        self.target = scene.directory / "pod" / "mount"
        self.target.parent.mkdir()
        self.log = ""

    def start(self, *more: str | Path) -> None:
        sockets = ("--endpoint", self.endpoint, "--registration", self.registration)
        self.process = self.scene.start("csi", *sockets, "--node-id", "n1", *more)
        assert self.process.stdout is not None and self.process.stderr is not None
        assert self.process.stdout.readline() == f"ready: {self.endpoint}\n", self.process.stderr.read()
        self.client = GrpcClient(str(self.endpoint))

    def stop(self, how: int = signal.SIGTERM) -> None:
        self.client.close()
        self.process.send_signal(how)
        self.process.wait()
        assert self.process.stderr is not None
        self.log += self.process.stderr.read()

    def call(self, method: str, request: Message, response: Message, **values: Any) -> dict[str, Any]:
        return response.decode(self.client.call(f"/csi.v1.{method}", request.encode(values)))

    def publish(self, **more: Any) -> dict[str, Any]:
        context = {"image": self.image, "options": f"oci.cache={self.scene.cache}", **EPHEMERAL}
        values = {"volume_id": "v", "target_path": str(self.target), "volume_capability": MOUNT, "readonly": True}
        return self.call("Node/NodePublishVolume", m.PUBLISH, m.EMPTY, **{**values, "volume_context": context, **more})

    def unpublish(self, **more: Any) -> dict[str, Any]:
        values = {"volume_id": "v", "target_path": str(self.target), **more}
        return self.call("Node/NodeUnpublishVolume", m.UNPUBLISH, m.EMPTY, **values)

    def stats(self, **more: Any) -> list[dict[str, int]]:
        values = {"volume_id": "v", "volume_path": str(self.target), **more}
        found = self.call("Node/NodeGetVolumeStats", m.STATS_REQUEST, m.STATS, **values)
        usage: list[dict[str, int]] = found["usage"]
        return usage

    def refused(self, method: str, **more: Any) -> RpcError:
        with pytest.raises(RpcError) as caught:
            getattr(self, method)(**more)
        return caught.value


@pytest.fixture
def kubelet(scene: Scene, nbdfuse: None) -> Iterator[Kubelet]:
    kubelet = Kubelet(scene)
    kubelet.start()
    yield kubelet
    kubelet.stop()
    scene.nothing_left()


def test_kubelet_gets_to_know_the_driver(kubelet: Kubelet) -> None:
    client = GrpcClient(str(kubelet.registration))
    service = "/pluginregistration.Registration"
    about = m.REGISTRATION.decode(client.call(f"{service}/GetInfo", b""))
    assert (about["type"], about["name"], about["endpoint"]) == ("CSIPlugin", "pyerofs.csi", str(kubelet.endpoint))
    assert about["supported_versions"] == ["1.0.0"]
    client.call(f"{service}/NotifyRegistrationStatus", m.STATUS.encode({"plugin_registered": True}))
    client.close()
    # csi-sanity: Identity Service, Node Service
    info = kubelet.call("Identity/GetPluginInfo", m.EMPTY, m.PLUGIN_INFO)
    assert info["name"] == "pyerofs.csi" and info["vendor_version"]
    assert kubelet.call("Identity/Probe", m.EMPTY, m.PROBE) == {"ready": {"value": True}}
    assert kubelet.client.call("/csi.v1.Identity/GetPluginCapabilities", b"") == b""
    assert kubelet.call("Node/NodeGetInfo", m.EMPTY, m.NODE_INFO)["node_id"] == "n1"
    capabilities = kubelet.call("Node/NodeGetCapabilities", m.EMPTY, m.NODE_CAPABILITIES)["capabilities"]
    assert capabilities == [{"rpc": {"type": m.GET_VOLUME_STATS}}]
    with pytest.raises(RpcError) as caught:
        kubelet.client.call("/csi.v1.Node/NodeStageVolume", b"")
    assert caught.value.code == Code.UNIMPLEMENTED


def test_a_volume_is_published_and_unpublished_any_number_of_times(kubelet: Kubelet) -> None:
    assert kubelet.unpublish() == {}  # of what was never there
    for _ in range(2):
        assert kubelet.publish() == {}
        assert (kubelet.target / "etc/motd").read_bytes() == b"above"
    found = mountpoint.find(str(kubelet.target))
    assert found and "ro" in found.options.split(",")
    assert kubelet.refused("publish", volume_context={"image": "oci:other:x"}).code == Code.ALREADY_EXISTS
    space, nodes = kubelet.stats()
    assert (space["unit"], nodes["unit"]) == (m.BYTES, m.INODES) and space["total"] > 1 << 20
    for _ in range(2):
        assert kubelet.unpublish() == {}
        assert not kubelet.target.exists()
    assert kubelet.refused("stats").code == Code.NOT_FOUND


@pytest.mark.parametrize(
    ("method", "values"),
    [
        ("publish", {"volume_id": ""}),
        ("publish", {"target_path": ""}),
        ("publish", {"target_path": "relative"}),
        ("publish", {"volume_capability": None}),
        ("publish", {"volume_capability": {"access_mode": {"mode": 1}}}),
        ("publish", {"volume_capability": {"block": {}, "access_mode": {"mode": 1}}}),
        ("publish", {"volume_context": {}}),
        ("publish", {"volume_context": {"image": "x/UPPER"}}),
        ("publish", {"volume_context": {"image": "x", "size": "1"}}),
        ("publish", {"volume_context": {"image": "x", "options": "oci.nonsense"}}),
        ("publish", {"volume_context": {"image": "x"}, "secrets": {"password": "hush"}}),
        ("unpublish", {"volume_id": ""}),
        ("unpublish", {"target_path": ""}),
        ("stats", {"volume_id": ""}),
        ("stats", {"volume_path": ""}),
    ],
)
def test_what_is_no_request_is_an_invalid_argument(method: str, values: dict[str, Any]) -> None:
    """csi-sanity: "should fail when no ... is provided"."""
    capability = {"block": None, "mount": {"fs_type": ""}}
    schema = {"publish": m.PUBLISH, "unpublish": m.UNPUBLISH, "stats": m.STATS_REQUEST}[method]
    whole: dict[str, Any] = {"volume_id": "v", "target_path": "/nowhere/x", "volume_capability": capability}
    whole |= {"volume_path": "/nowhere/x", "volume_context": {"image": "x"}, **values}
    names = schema.defaults()
    request = schema.decode(schema.encode({key: value for key, value in whole.items() if key in names}))
    with pytest.raises(RpcError) as caught:
        getattr(NodeService(print), method)(request)
    assert caught.value.code == Code.INVALID_ARGUMENT and "hush" not in str(caught.value)


def test_a_volume_of_which_another_call_is_under_way_is_aborted(tmp_path: Path) -> None:
    node = NodeService(print)
    with node._alone(str(tmp_path / "x")), pytest.raises(RpcError) as caught:
        node.unpublish({"volume_id": "v", "target_path": str(tmp_path / "x")})
    assert caught.value.code == Code.ABORTED


def test_a_driver_that_is_killed_takes_no_volume_with_it(kubelet: Kubelet) -> None:
    kubelet.publish()
    kubelet.stop(signal.SIGKILL)
    assert (kubelet.target / "etc/motd").read_bytes() == b"above"
    kubelet.start()
    assert kubelet.publish() == {}  # it knows the mount as its own
    kubelet.unpublish()


def test_a_mount_s_daemons_go_to_a_cgroup_of_their_own(kubelet: Kubelet) -> None:
    """A directory stands in for the cgroup, and takes the pids one after another."""
    kubelet.stop()
    cgroup = kubelet.scene.directory / "cgroup"
    kubelet.start("--worker-cgroup", cgroup)
    kubelet.publish()
    assert int((cgroup / "cgroup.procs").read_text()) in kubelet.scene.processes()
    kubelet.unpublish()
    (cgroup / "cgroup.procs").unlink()
    (cgroup / "cgroup.procs").mkdir()
    assert kubelet.refused("publish").code == Code.FAILED_PRECONDITION
    assert not kubelet.target.exists()


def secret_for(host: str, username: str, password: str) -> dict[str, str]:
    auth = base64.b64encode(f"{username}:{password}".encode()).decode()
    return {KEY: json.dumps({"auths": {host: {"auth": auth}}})}


def test_a_secret_opens_the_registry_and_is_never_shown(kubelet: Kubelet) -> None:
    password = 'hu,s\\h"=1'
    with DockerRegistry(kubelet.scene.directory / "registry", htpasswd=("me", password)) as registry:
        name = f"{registry.host}/app:1"
        skopeo.copy(kubelet.image, f"docker://{name}", "--all", "--preserve-digests", f"--dest-creds=me:{password}")
        context = {"image": name, "options": f"oci.cache={kubelet.scene.cache}"}
        refused = kubelet.refused("publish", volume_context=context)
        assert refused.code == Code.UNAUTHENTICATED
        assert not kubelet.target.exists()
        wrong = kubelet.refused("publish", volume_context=context, secrets=secret_for(registry.host, "me", "wrong-one"))
        assert wrong.code == Code.UNAUTHENTICATED and "wrong-one" not in str(wrong)
        kubelet.publish(volume_context=context, secrets=secret_for(registry.host, "me", password))
        assert (kubelet.target / "etc/motd").read_bytes() == b"above"
        shown = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in kubelet.scene.processes()]
        shown += [path.read_bytes() for path in Path("/run/pyerofs").glob("*.json")]
        kubelet.unpublish()
    kubelet.stop()
    kubelet.start()
    shown.append(kubelet.log.encode())
    assert not [text for text in shown if b"hu,s" in text or b"hu\\\\,s" in text or b"wrong-one" in text]


@pytest.mark.parametrize(
    ("secrets", "said"),
    [
        ({"password": "hush"}, "the secret has no .dockerconfigjson"),
        ({KEY: "hush"}, "the secret is not a JSON object"),
        ({KEY: '{"auths": {"r.example": {"identitytoken": "hush"}}}'}, "the secret has a token for r.example"),
        ({KEY: '{"auths": {"r.example": {"username": "u", "password": "\\"hush"}}}'}, "begins with a double quote"),
    ],
)
def test_a_secret_that_cannot_be_used_is_not_repeated(secrets: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        credential_options("r.example/app", secrets)
    assert said in str(caught.value) and "hush" not in str(caught.value)


def test_a_secret_for_other_registries_is_none() -> None:
    secrets = secret_for("other.example", "me", "pw")
    assert credential_options("r.example/app", secrets) == credential_options("r.example/app", {}) == []
    assert credential_options("other.example/app", secrets) == ['oci.username="me"', 'oci.password="pw"']
