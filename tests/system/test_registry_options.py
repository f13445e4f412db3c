"""oci.mirror, oci.ca and the conversation, as the command line has them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fakeregistry import Certificate, FakeRegistry, reset, status
from tests.support.images import FakePusher, Layer, push_image
from tests.support.nginxserver import Authority
from tests.support.scene import Done, Scene

DATA = bytes(1024) + (0xE0F5E1E2).to_bytes(4, "little") + bytes(8) + b"\x0c" + bytes(200_000)


def publish(fake: FakeRegistry) -> str:
    push_image(FakePusher(fake), "app", "1", [Layer(DATA)])
    return f"{fake.host}/app:1"


@pytest.fixture
def other() -> Iterator[FakeRegistry]:
    with FakeRegistry() as fake:
        publish(fake)
        yield fake


def read(scene: Scene, image: str, *options: str, verbosity: str = "-vv") -> Done:
    given = ",".join(["oci=0", f"oci.cache={scene.cache}", *options])
    return scene.run("read", verbosity, "-o", given, image, prefix=("sh", "-c", '"$@" | wc -c', "sh"))


def test_ca(scene: Scene, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    with FakeRegistry(certificate=Certificate(*authority.issue("server"))) as fake:
        image = publish(fake)
        done = scene.run("inspect", image)
        assert done.status == 32 and "not trusted" in done.error
        assert read(scene, image, f"oci.ca={authority.ca}").out == f"{len(DATA)}\n"
        done = scene.run("inspect", "-o", "oci.ca=/none.pem", image)
        assert (done.status, done.error) == (1, "oci.ca: cannot read /none.pem: No such file or directory")
        done = scene.run("inspect", "-o", f"oci.ca={__file__}", image)
        assert done.status == 32 and len(done.error) < 300


def test_mirrors(scene: Scene, fake: FakeRegistry, other: FakeRegistry) -> None:
    image = publish(fake)
    with FakeRegistry() as gone:
        pass
    done = read(scene, image, f"oci.mirror={gone.url}", f"oci.mirror={other.url}")
    assert done.out == f"{len(DATA)}\n"
    assert fake.seen == [] and all("?ns=" in seen.path for seen in other.seen)
    assert f"connection to {gone.host} refused" in done.err
    other.default = reset
    scene.cache = scene.directory / "another"
    assert read(scene, image, f"oci.mirror={other.url}").out == f"{len(DATA)}\n"
    assert fake.requests("/blobs/")


def test_conversation(scene: Scene, fake: FakeRegistry) -> None:
    image = publish(fake)
    fake.script(status(503))
    done = read(scene, image)
    lines = [line.removeprefix("pyerofs: ") for line in done.err.splitlines()]
    time = r"[0-9.]+ ms"
    new = rf"name {time}, connected {time}, first byte {time}, end {time}, new connection"
    blob = rf"GET http://{fake.host}/v2/app/blobs/{Layer(DATA).digest} bytes=0-{len(DATA) - 1}"
    expected = [
        rf"GET http://{fake.host}/v2/app/manifests/1 -> 200, [0-9]+ bytes, {new}",
        rf"{blob} -> 503, 0 bytes, (first byte {time}, end {time}, same|name.*, new) connection",
        r"attempt 1 for [0-9]+ bytes at 0: .*: 503; retrying in 0\.1 s",
        rf"{blob} -> 206, {len(DATA)} bytes, {new} \(try 2, after: 503\)",
    ]
    for line, pattern in zip(lines, expected, strict=False):
        assert re.fullmatch(pattern, line), line
    done = scene.run("inspect", "-v", image)
    assert f"GET http://{fake.host}/v2/app/manifests/1 -> 200" in done.err
    assert scene.run("inspect", image).err == ""
