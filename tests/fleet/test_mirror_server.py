"""A node's cache as the mirror of another: what is given of it, and that the registry is asked for nothing else."""

from __future__ import annotations

import hashlib
import http.client
import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyerofs.fleet.neighbours import CachedBlobs
from tests.support.images import EROFS, Layer, push_image
from tests.support.indexedlayers import image, raw
from tests.support.realregistry import LoggingRegistry
from tests.support.scene import Scene

CHUNK = 16384
DATA = image(600)  # blocks of 4 KiB


class Node:
    """A cache and a process that serves it."""

    def __init__(self, scene: Scene, name: str) -> None:
        self.scene = scene
        self.name = name
        self.directory = scene.directory / name
        self.cache = self.directory / "cache"
        self.directory.mkdir()

    def read(self, reference: str, offset: int = 0, length: int = len(DATA), mirror: Node | None = None) -> None:
        options = [f"oci.cache={self.cache}", "oci=0", *([f"oci.mirror=http://{mirror.host}"] if mirror else [])]
        where = ("--offset", str(offset), "--length", str(length))
        command = self.scene.argv("read", "-o", ",".join(options), *where, reference)
        done = subprocess.run(command, env=self.scene.environment, capture_output=True, check=True)
        assert done.stdout == DATA[offset : offset + length], done.stderr

    def start(self) -> None:
        self.process = self.scene.start("serve", "-o", f"oci.cache={self.cache}", "--registry", "0")
        assert self.process.stdout is not None and self.process.stderr is not None
        line = self.process.stdout.readline()
        assert line.startswith("ready: http://127.0.0.1:"), self.process.stderr.read()
        self.host = line.split("//")[1].strip()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait() == 0

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes, dict[str, str]]:
        connection = http.client.HTTPConnection(self.host, timeout=30)
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        found = answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}
        connection.close()
        return found


@pytest.fixture
def node(scene: Scene) -> Iterator[Node]:
    node = Node(scene, "first")
    node.start()
    yield node
    node.stop()
    scene.nothing_left()


@pytest.fixture
def indexed(registry: LoggingRegistry, scene: Scene) -> tuple[str, Layer]:
    layer = raw(DATA, CHUNK)
    push_image(registry, scene.directory.name.replace("_", "-").lower(), "indexed", [layer])
    return f"{registry.host}/{scene.directory.name.replace('_', '-').lower()}:indexed", layer


def digest_of(layer: Layer) -> str:
    return f"sha256:{hashlib.sha256(bytes(layer.data)).hexdigest()}"


def test_the_registry_is_not_asked_for_what_a_neighbour_has(
    node: Node, registry: LoggingRegistry, indexed: tuple[str, Layer]
) -> None:
    reference, _ = indexed
    node.read(reference, 0, 40 * CHUNK)
    before = len(registry.requests())
    second = Node(node.scene, "second")
    second.read(reference, 3 * CHUNK + 5, 20 * CHUNK, mirror=node)
    assert len(registry.requests()) == before
    # What the neighbour lacks comes from the registry, and the neighbour is asked again for what it has.
    third = Node(node.scene, "third")
    third.read(reference, 30 * CHUNK, 30 * CHUNK, mirror=node)
    assert len(registry.requests()) > before


def test_a_neighbour_that_dies_is_done_without(node: Node, indexed: tuple[str, Layer]) -> None:
    reference, _ = indexed
    node.read(reference)
    node.stop()
    Node(node.scene, "second").read(reference, mirror=node)
    node.start()


def test_pieces_are_for_those_who_check_them(node: Node, indexed: tuple[str, Layer]) -> None:
    """Which index is a blob's, a manifest says, and that vouches for its own image alone."""
    reference, layer = indexed
    node.read(reference, 0, 8 * CHUNK)
    path = f"/v2/any/thing/blobs/{digest_of(layer)}"
    status, body, headers = node.ask(path, Range=f"bytes={CHUNK}-{2 * CHUNK - 1}", Pyerofs_Verifies="chunks")
    assert (status, body) == (206, DATA[CHUNK : 2 * CHUNK])
    assert headers["content-range"] == f"bytes {CHUNK}-{2 * CHUNK - 1}/{len(bytes(layer.data))}"
    for asked in ({"Range": f"bytes={CHUNK}-{2 * CHUNK - 1}"}, {}, {"Pyerofs_Verifies": "chunks"}):
        status, _, headers = node.ask(path, **asked)
        assert (status, headers["docker-content-digest"]) == (404, digest_of(layer))


def test_a_blob_that_was_hashed_is_for_everyone(
    node: Node, registry: LoggingRegistry, indexed: tuple[str, Layer]
) -> None:
    repository = indexed[0].partition("/")[2].partition(":")[0]
    push_image(registry, repository, "plain", [Layer(DATA, EROFS)])
    reference = indexed[0].replace(":indexed", ":plain")
    path = f"/v2/x/blobs/sha256:{hashlib.sha256(DATA).hexdigest()}"
    assert node.ask(path)[0] == 404
    node.read(reference)
    assert node.scene.run("cache", "verify", "--dir", node.cache).status == 0
    assert node.ask(path)[:2] == (200, DATA)
    status, body, headers = node.ask(path, method="HEAD")
    assert (status, body, headers["content-length"]) == (200, b"", str(len(DATA)))
    for text, expected in (("bytes=5-5", DATA[5:6]), ("bytes=1000000-", DATA[1000000:])):
        assert node.ask(path, Range=text)[:2] == (206, expected)
    for text in ("bytes=9-8", "bytes=-5", "bytes=0-1,3-4", f"bytes={len(DATA)}-", "lines=1-2"):
        assert node.ask(path, Range=text)[0] == 404, text


def test_what_is_spoiled_in_the_cache_is_not_given(node: Node, indexed: tuple[str, Layer]) -> None:
    reference, layer = indexed
    node.read(reference)
    [data] = node.cache.glob("sha256+chunks/*/data")
    with data.open("r+b") as file:
        file.seek(5 * CHUNK + 7)
        file.write(bytes([DATA[5 * CHUNK + 7] ^ 1]))
    path = f"/v2/x/blobs/{digest_of(layer)}"
    wanted = f"bytes={5 * CHUNK}-{6 * CHUNK - 1}"
    assert node.ask(path, Range=wanted, Pyerofs_Verifies="chunks")[0] == 404
    Node(node.scene, "second").read(reference, mirror=node)


def test_there_is_nothing_but_blobs(node: Node) -> None:
    assert node.ask("/v2/")[:2] == (200, b"{}")
    digest = f"sha256:{'0' * 64}"
    for path in ("/", "/v2/a/manifests/latest", f"/v2/a/blobs/{digest}", "/v2/a/blobs/../../etc", "/v2/a/tags/list"):
        status, body, headers = node.ask(path)
        assert status == 404 and json.loads(body)["errors"][0]["code"] in ("UNSUPPORTED", "BLOB_UNKNOWN")
        assert "docker-content-digest" not in headers
    connection = http.client.HTTPConnection(node.host, timeout=30)
    connection.request("PUT", f"/v2/a/blobs/{digest}", b"x")
    assert connection.getresponse().status == 501
    connection.close()


def test_hosts_toml_names_the_neighbour(node: Node, registry: LoggingRegistry, indexed: tuple[str, Layer]) -> None:
    """docs/fleet.md."""
    reference, _ = indexed
    node.read(reference)
    before = len(registry.requests())
    certs = node.scene.directory / "certs.d"
    (certs / registry.host).mkdir(parents=True)
    (certs / registry.host / "hosts.toml").write_text(
        f'server = "http://{registry.host}"\n[host."http://{node.host}"]\n  capabilities = ["pull"]\n'
    )
    # In a mount namespace of its own the machine has this configuration.
    script = f'mount -t tmpfs tmpfs /etc && mkdir /etc/containerd && cp -r {certs} /etc/containerd/ && exec "$@"'
    prefix = ["unshare", "--mount", "sh", "-c", script, "sh"]
    command = node.scene.argv("read", "-o", f"oci.cache={node.scene.directory}/second,oci=0", reference)
    done = subprocess.run([*prefix, *command], env=node.scene.environment, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == DATA
    assert len(registry.requests()) == before


def test_an_empty_cache_has_nothing(tmp_path: Path) -> None:
    with CachedBlobs(str(tmp_path / "none")).open(f"sha256:{'0' * 64}", 0, 1, verifies=True) as reader:
        assert reader is None
