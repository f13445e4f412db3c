"""The volume plugin: what its protocol says, by hand and by real podman."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyerofs.docker import volumes
from pyerofs.kernel import mountpoint
from tests.support.busyimage import busy_image
from tests.support.ordinary import Layout
from tests.support.podman import Podman
from tests.support.scene import Scene


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


class Plugin:
    """A running plugin; what is mounted, is below a directory of its own."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.socket = scene.directory / "p.sock"
        self.directory = scene.directory / "volumes"
        self.name = f"v-{os.getpid()}-{scene.directory.name}"
        self.image = busy_image(Layout(scene.directory / "layout"), "app")
        self.options = {"image": self.image, "o": f"oci.cache={scene.cache}"}

    def start(self) -> None:
        arguments = ("--socket", self.socket, "--dir", self.directory)
        self.process = self.scene.start("volume-plugin", *arguments)
        assert self.process.stdout is not None and self.process.stderr is not None
        assert self.process.stdout.readline() == f"ready: {self.socket}\n", self.process.stderr.read()

    def stop(self, how: int = signal.SIGTERM) -> None:
        self.process.send_signal(how)
        self.process.wait()

    def call(self, method: str, **request: Any) -> dict[str, Any]:
        connection = _UnixConnection(self.socket)
        connection.request("POST", f"/{method}", json.dumps(request))
        answer = connection.getresponse()
        found: dict[str, Any] = json.loads(answer.read())
        connection.close()
        assert (answer.status == 200) == (found["Err"] == "")
        return found

    def volume(self, method: str, **request: Any) -> dict[str, Any]:
        return self.call(f"VolumeDriver.{method}", Name=self.name, **request)

    @property
    def targets(self) -> list[str]:
        return [m.target for m in mountpoint.mountinfo() if m.target.startswith(f"{volumes.RUN}/{self.name}")]


@pytest.fixture
def plugin(scene: Scene, nbdfuse: None) -> Iterator[Plugin]:
    plugin = Plugin(scene)
    plugin.start()
    try:
        yield plugin
    finally:
        plugin.stop()
        for target in plugin.targets:
            subprocess.run(["umount", "-l", target], check=True)
    scene.nothing_left()


def test_podman_has_volumes_of_images(plugin: Plugin) -> None:
    config = plugin.scene.directory / "containers.conf"
    config.write_text(f'[engine.volume_plugins]\npyerofs = "{plugin.socket}"\n')
    podman = Podman(config=config)
    try:
        image = podman("pull", "-q", plugin.image).strip()
        options = [f"--opt={key}={value}" for key, value in plugin.options.items()]
        podman("volume", "create", "--driver", "pyerofs", *options, plugin.name)
        assert podman("volume", "ls", "--format", "{{.Name}} {{.Driver}}") == f"{plugin.name} pyerofs\n"
        mount = f"{plugin.name}:/srv:ro"
        for _ in range(2):
            said = podman.container("-v", mount, image, "cat", "/srv/etc/motd")
            assert said == "above"
            assert plugin.targets == []
        podman("volume", "rm", plugin.name)
        assert plugin.call("VolumeDriver.List")["Volumes"] == []
    finally:
        podman.close()


def test_a_volume_is_mounted_as_long_as_a_container_has_it(plugin: Plugin) -> None:
    assert plugin.call("Plugin.Activate")["Implements"] == ["VolumeDriver"]
    assert plugin.call("VolumeDriver.Capabilities")["Capabilities"] == {"Scope": "local"}
    for _ in range(2):  # the same again is none
        assert plugin.volume("Create", Opts=plugin.options) == {"Err": ""}
    where = plugin.volume("Mount", ID="a")["Mountpoint"]
    assert plugin.volume("Mount", ID="b")["Mountpoint"] == where == plugin.volume("Path")["Mountpoint"]
    plugin.stop(signal.SIGKILL)  # which neither forgets nor ends anything
    assert Path(where, "etc/motd").read_bytes() == b"above"
    plugin.start()
    assert plugin.volume("Get")["Volume"]["Mountpoint"] == where
    assert "in use by 2 containers" in plugin.volume("Remove")["Err"]
    for container in ("a", "a"):  # a second time is none
        assert plugin.volume("Unmount", ID=container) == {"Err": ""}
        assert plugin.targets == [where]
    assert plugin.volume("Unmount", ID="b") == {"Err": ""}
    assert plugin.targets == []
    assert plugin.volume("Remove") == {"Err": ""}
    assert "there is no volume" in plugin.volume("Get")["Err"]
    assert list(plugin.directory.iterdir()) == []


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"Name": "x", "Opts": {}}, "a volume needs an image"),
        ({"Name": "x", "Opts": {"image": "a", "size": "1"}}, "unknown option 'size'"),
        ({"Name": "x", "Opts": {"image": "x/UPPER"}}, "UPPER"),
        ({"Name": "../x", "Opts": {"image": "a"}}, "is not a volume's name"),
        ({"Name": "x", "Opts": {"image": "a", "o": "oci.username=a,oci.password=hush"}}, "a password is not kept"),
        ({"Name": "x", "Opts": []}, "a volume needs an image"),
        ({"Name": 1}, "the request has no Name"),
        ({"Name": "x", "Opts": {"image": "oci:nowhere:x", "type": "erofs.local"}}, "erofs.local is for files"),
    ],
)
def test_what_is_no_volume_is_refused(plugin: Plugin, request_: dict[str, Any], said: str) -> None:
    error = plugin.call("VolumeDriver.Create", **request_)["Err"]
    assert said in error and "hush" not in error
    assert plugin.call("VolumeDriver.List")["Volumes"] == []


def test_what_is_no_request_is_refused(plugin: Plugin) -> None:
    assert "there is no Nothing" in plugin.call("Nothing")["Err"]
    for body, said in ((b"[", "not JSON"), (b"[]", "not a JSON object"), (b"[" * 100_000, "not JSON")):
        connection = _UnixConnection(plugin.socket)
        connection.request("POST", "/VolumeDriver.Create", body)
        assert said in json.loads(connection.getresponse().read())["Err"]
        connection.close()
