"""push and pull: whole images, unchanged, between registries and layouts, and as skopeo sees them."""

from __future__ import annotations

import hashlib
import http.client
import json
import random
import signal
import threading
from collections.abc import Iterator

import pytest

from pyerofs.errors import UsageError
from pyerofs.oci.location import Location
from pyerofs.registry.download import PART
from tests.support import skopeo
from tests.support.dockerregistry import DockerRegistry
from tests.support.fakeregistry import Exchange, FakeRegistry, honest, short, stall, status, whole
from tests.support.images import EROFS, FakePusher, Layer, push_image, push_index
from tests.support.needs import need
from tests.support.scene import Scene
from tests.support.skopeo import blobs, tags

ONE, TWO = bytes(range(256)) * 999, b"second" * 70_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    need("docker-registry", "docker-registry")
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as server:
        amd = push_image(server, "app", "amd", [Layer(ONE), Layer(TWO)])
        arm = push_image(server, "app", "arm", [Layer(ONE)], platform="linux/arm64/v8")
        push_index(server, "app", "all", [amd, arm])
        yield server


def manifest(server: DockerRegistry, repository: str, tag: str) -> bytes:
    connection = http.client.HTTPConnection(server.host, timeout=20)
    accept = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json"
    connection.request("GET", f"/v2/{repository}/manifests/{tag}", headers={"Accept": accept})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    assert answer.status == 200, body
    return body


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def test_pull_is_what_skopeo_pulls(scene: Scene, server: DockerRegistry) -> None:
    ours, theirs = scene.directory / "ours", scene.directory / "theirs"
    done = scene.run("pull", f"{server.host}/app:all", f"oci:{ours}:app")
    digest = digest_of(manifest(server, "app", "all"))
    assert (done.status, done.out) == (0, f"{digest}  oci:{ours}:app\n")
    assert all(line.startswith("pyerofs: blob sha256:") for line in done.err.splitlines())
    assert len(done.err.splitlines()) == 4  # two configs, two layers: one of them is of both
    skopeo.copy(f"docker://{server.host}/app:all", f"oci:{theirs}:app")
    assert blobs(ours) == blobs(theirs)
    assert tags(ours) == tags(theirs) == {"app": digest}


def test_skopeo_reads_what_was_pulled(scene: Scene, server: DockerRegistry) -> None:
    ours, copied = scene.directory / "ours", scene.directory / "copied"
    assert scene.run("pull", "-q", f"{server.host}/app:all", f"oci:{ours}:app").err == ""
    skopeo.copy(f"oci:{ours}:app", f"oci:{copied}:app")
    assert blobs(copied) == blobs(ours)
    skopeo.copy(f"oci:{ours}:app", f"docker://{server.host}/by-skopeo:1")
    assert manifest(server, "by-skopeo", "1") == manifest(server, "app", "all")


def test_push_what_skopeo_wrote(scene: Scene, server: DockerRegistry) -> None:
    layout = scene.directory / "layout"
    skopeo.copy(f"docker://{server.host}/app:all", f"oci:{layout}:app")
    done = scene.run("push", f"oci:{layout}:app", f"{server.host}/pushed/all:1")
    assert done.status == 0, done.err
    assert done.out == f"{tags(layout)['app']}  {server.host}/pushed/all:1\n"
    assert manifest(server, "pushed/all", "1") == manifest(server, "app", "all")
    assert done.err.count("pushed") == 4
    back = scene.directory / "back"
    assert scene.run("pull", f"{server.host}/pushed/all:1", f"oci:{back}").status == 0
    assert blobs(back) == blobs(layout)


def test_what_is_there_is_not_sent_again(scene: Scene, server: DockerRegistry) -> None:
    layout = scene.directory / "layout"
    assert scene.run("pull", f"{server.host}/app:amd", f"oci:{layout}:app").err.count("pulled") == 3
    assert scene.run("pull", f"{server.host}/app:amd", f"oci:{layout}:app").err.count("already there") == 3
    assert scene.run("push", f"oci:{layout}:app", f"{server.host}/twice:1").err.count("pushed") == 3
    assert scene.run("push", f"oci:{layout}:app", f"{server.host}/twice:2").err.count("already there") == 3


def test_between_repositories_blobs_are_mounted(scene: Scene, server: DockerRegistry) -> None:
    done = scene.run("push", f"{server.host}/app:all", f"{server.host}/mounted:1")
    assert done.status == 0, done.err
    assert done.err.count("mounted") == 4
    assert manifest(server, "mounted", "1") == manifest(server, "app", "all")


def test_one_platform(scene: Scene, server: DockerRegistry) -> None:
    layout = scene.directory / "layout"
    done = scene.run("pull", "-o", "oci.platform=linux/arm64", f"{server.host}/app:all", f"oci:{layout}")
    assert done.out.startswith(digest_of(manifest(server, "app", "arm")))
    assert len(blobs(layout)) == 3
    done = scene.run("pull", "-o", "oci.platform=linux/s390x", f"{server.host}/app:all", f"oci:{layout}")
    assert "nothing for the platform linux/s390x" in done.error


def test_a_corrupt_blob_of_a_layout_is_not_pushed(scene: Scene, server: DockerRegistry) -> None:
    layout = scene.directory / "layout"
    assert scene.run("pull", f"{server.host}/app:amd", f"oci:{layout}:app").status == 0
    path = layout / "blobs" / digest_of(TWO).replace(":", "/")
    path.write_bytes(path.read_bytes()[:-1] + b"X")
    done = scene.run("push", "-q", f"oci:{layout}:app", f"{server.host}/corrupt:1")
    assert done.status == 32
    assert "is corrupt" in done.error
    # Pulled again, it is put in order.
    assert scene.run("pull", f"{server.host}/app:amd", f"oci:{layout}:app").err.count("pulled") == 1
    assert scene.run("push", f"oci:{layout}:app", f"{server.host}/corrupt:1").status == 0


def test_a_download_that_breaks_is_resumed(scene: Scene, fake: FakeRegistry) -> None:
    push_image(FakePusher(fake), "app", "1", [Layer(ONE)])
    layout = scene.directory / "layout"
    fake.script(short(1000), status(503), short(70_000), short(1))
    assert scene.run("pull", f"{fake.host}/app:1", f"oci:{layout}:app").status == 0
    assert ONE in blobs(layout).values()


def ranges(fake: FakeRegistry, digest: str) -> list[str]:
    return [seen.headers.get("range", "") for seen in fake.requests(f"/blobs/{digest}")]


def test_a_large_blob_comes_in_several_ranges_at_once(scene: Scene, fake: FakeRegistry) -> None:
    """None of them comes alone: each request for it waits until there are two."""
    layer = Layer(random.Random(1).randbytes(5 * PART + 17))
    push_image(FakePusher(fake), "app", "1", [layer])
    two = threading.Barrier(2)

    def together(exchange: Exchange) -> None:
        if layer.digest in exchange.path and exchange.range[0] < 2 * PART:
            two.wait(60)
        honest(exchange)

    fake.default = together
    layout = scene.directory / "layout"
    assert scene.run("pull", "-q", f"{fake.host}/app:1", f"oci:{layout}:app").status == 0
    assert blobs(layout)[layer.digest.partition(":")[2]] == layer.data
    starts = sorted(int(text.removeprefix("bytes=").partition("-")[0]) for text in ranges(fake, layer.digest))
    assert starts == sorted(set(starts)) and len(starts) > 2


def test_a_registry_without_ranges_sends_a_large_blob_once(scene: Scene, fake: FakeRegistry) -> None:
    layer = Layer(random.Random(2).randbytes(4 * PART))
    push_image(FakePusher(fake), "app", "1", [layer])
    fake.default = whole()
    layout = scene.directory / "layout"
    assert scene.run("pull", "-q", f"{fake.host}/app:1", f"oci:{layout}:app").status == 0
    assert blobs(layout)[layer.digest.partition(":")[2]] == layer.data


def test_a_pull_that_was_ended_goes_on_where_it_was(scene: Scene, fake: FakeRegistry) -> None:
    """After SIGINT, and after what it kept was spoiled: then it begins anew by itself."""
    layer = Layer(random.Random(3).randbytes(6 * PART))
    push_image(FakePusher(fake), "app", "1", [layer])
    layout = scene.directory / "layout"
    for spoil in (False, True):
        release, reached = threading.Event(), threading.Event()

        def late(exchange: Exchange, release: threading.Event = release, reached: threading.Event = reached) -> None:
            if layer.digest in exchange.path and exchange.range[0] >= 3 * PART:
                stall(release, 0, reached)(exchange)
            else:
                honest(exchange)

        fake.default = late
        process = scene.start("pull", "-q", f"{fake.host}/app:1", f"oci:{layout}:app")
        assert reached.wait(60)
        kept = layout / ".pyerofs-partial" / layer.digest.replace(":", "-")
        parts = kept.with_name(f"{kept.name}.parts")
        while parts.read_bytes().count(b"\1") < 3:
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        release.set()
        assert process.returncode == 8
        if spoil:
            with kept.open("r+b") as file:
                file.write(b"?")
        fake.default = honest
        fake.seen.clear()
        assert scene.run("pull", "-q", f"{fake.host}/app:1", f"oci:{layout}:app").status == 0
        asked = [int(text.removeprefix("bytes=").partition("-")[0]) for text in ranges(fake, layer.digest)]
        assert (min(asked) >= 3 * PART) is not spoil
        assert blobs(layout)[layer.digest.partition(":")[2]] == layer.data
        assert {path.name for path in layout.iterdir()} == {"blobs", "index.json", "oci-layout"}
        (layout / "blobs" / layer.digest.replace(":", "/")).unlink()


def test_nothing_is_left_of_a_pull_that_fails(scene: Scene, fake: FakeRegistry) -> None:
    layer = Layer(ONE)
    push_image(FakePusher(fake), "app", "1", [layer])
    fake.blobs[layer.digest] = ONE[:-1] + b"?"
    layout = scene.directory / "layout"
    done = scene.run("pull", "-q", f"{fake.host}/app:1", f"oci:{layout}:app")
    assert done.status == 32
    assert f"blob {layer.digest} came with another content" in done.error
    assert tags(layout) == {}
    assert layer.digest.partition(":")[2] not in blobs(layout)
    assert {path.name for path in layout.iterdir()} == {"blobs", "index.json", "oci-layout"}


def test_errors(scene: Scene, server: DockerRegistry) -> None:
    layout = scene.directory / "layout"
    source = f"{server.host}/app:all"
    assert "not an OCI layout" in scene.run("push", f"oci:{layout}:app", f"{server.host}/x").error
    assert "404" in scene.run("pull", f"{server.host}/app:none", f"oci:{layout}").error
    assert "not by a digest" in scene.run("push", source, f"{server.host}/x@{digest_of(b'')}").error
    assert "oci.layer" in scene.run("pull", "-o", "oci.layer=1", source, f"oci:{layout}").error
    assert "read only" in scene.run("pull", source, f"docker-archive:{layout}").error
    assert "cannot open" in scene.run("push", "docker-archive:none", f"{server.host}/x").error


def test_a_manifest_without_media_type(scene: Scene, fake: FakeRegistry) -> None:
    layer = fake.add_blob(ONE)
    entry = {"mediaType": EROFS, "digest": layer, "size": len(ONE)}
    fake.add_manifest("1", json.dumps({"schemaVersion": 2, "layers": [entry]}).encode(), "text/plain")
    layout = scene.directory / "layout"
    assert scene.run("pull", f"{fake.host}/app:1", f"oci:{layout}:app").status == 0
    assert skopeo.index(layout)["manifests"][0]["mediaType"] == "application/vnd.oci.image.manifest.v1+json"


@pytest.mark.parametrize(("text", "place"), [
    ("oci:/a/b:c", Location("oci", "/a/b", "c")), ("oci:/a/b", Location("oci", "/a/b")),
    ("oci:/a:b/c", Location("oci", "/a", "b/c")), ("oci:/a/b:", Location("oci", "/a/b")),
    ("docker-archive:/a.tar", Location("docker-archive", "/a.tar")),
    ("docker-archive:/a.tar:x/y:1", Location("docker-archive", "/a.tar", "x/y:1")),
    ("quay.io/a/b:c", Location("registry", "quay.io/a/b:c")), ("app:1", Location("registry", "app:1")),
])  # fmt: skip
def test_places(text: str, place: Location) -> None:
    assert Location.parse(text) == place


@pytest.mark.parametrize("text", ["oci:", "oci::tag", "oci:dir:-x", "docker-archive:", "docker-archive::x", "a/B", ""])
def test_what_is_no_place(text: str) -> None:
    with pytest.raises(UsageError):
        Location.parse(text)
