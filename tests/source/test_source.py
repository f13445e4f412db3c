"""Sources: what a reference or a path leads to, or the one line that says why not."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from pyerofs.config.options import parse_oci_options
from pyerofs.context import NOBODY
from pyerofs.erofs.compose import ROLE
from pyerofs.errors import ImageError, NotFoundError, UsageError
from pyerofs.oci.location import Location
from pyerofs.oci.manifest import INDEX_DEPTH
from pyerofs.source.local import LocalSource
from pyerofs.source.open import open_layer, plan_layers
from tests.support.fakeregistry import FakeRegistry
from tests.support.images import OCI_INDEX, OCI_MANIFEST, TAR, FakePusher, Layer, digest_of, push_image, push_index
from tests.support.indexedlayers import compressed, image, stream
from tests.support.sinks import into

AMD64 = "oci.platform=linux/amd64"


def layer_of(reference: str, *options: str) -> tuple[int, str, int]:
    """Index, digest and size of what was chosen."""
    source = open_layer(Location.parse(reference), parse_oci_options(list(options)))
    try:
        return source.layer, source.digest, source.size
    finally:
        source.close()


@pytest.fixture
def pusher(fake: FakeRegistry) -> FakePusher:
    return FakePusher(fake)


PLAIN, OTHER = Layer(b"plain" * 100), Layer(b"other" * 50)
TARRED = Layer(b"tar", TAR)


def test_the_only_layer(pusher: FakePusher) -> None:
    push_image(pusher, "app", "1", [TARRED, PLAIN])
    for options in ([], ["oci"], ["oci=1"], ["oci.layer=1"], [f"oci.blob={PLAIN.digest}"]):
        assert layer_of(f"{pusher.host}/app:1", *options) == (1, PLAIN.digest, 500)


def test_several_layers_have_to_be_named(pusher: FakePusher) -> None:
    push_image(pusher, "app", "1", [PLAIN, OTHER])
    with pytest.raises(ImageError) as caught:
        layer_of(f"{pusher.host}/app:1")
    assert PLAIN.digest in str(caught.value) and OTHER.digest in str(caught.value)
    assert layer_of(f"{pusher.host}/app:1", "oci=0")[0] == 0
    assert layer_of(f"{pusher.host}/app:1", f"oci.blob={OTHER.digest.removeprefix('sha256:')}")[0] == 1


@pytest.mark.parametrize(("options", "text"), [
    (["oci=2"], "2"), ([f"oci.blob={'0' * 64}"], "0" * 64), (["oci=0"], "tar"), ([], "EROFS"),
])  # fmt: skip
def test_layers_that_are_none(pusher: FakePusher, options: list[str], text: str) -> None:
    push_image(pusher, "app", "1", [TARRED, Layer(b"more", TAR)])
    with pytest.raises(ImageError, match=text) as caught:
        layer_of(f"{pusher.host}/app:1", *options)
    assert f"{pusher.host}/app:1" in str(caught.value)


ANYTHING = bytes(range(256)) * 100
EROFS_DEVICE = image(20)


@pytest.mark.parametrize(("device", "content", "error"), [
    (compressed(ANYTHING, 4096), ANYTHING, ""),
    (stream(EROFS_DEVICE), EROFS_DEVICE, ""),
    (stream(ANYTHING), b"", "not an EROFS image: .*; a compressed device needs a chunk index"),
], ids=["index", "superblock", "neither"])  # fmt: skip
def test_a_compressed_device(pusher: FakePusher, tmp_path: Path, device: Layer, content: bytes, error: str) -> None:
    """Of any type: the suffix alone tells how to read it. Its size has to be known before it is attached."""
    device.descriptor["mediaType"] = "application/vnd.example.blob+zstd"
    device.annotations[ROLE] = "device"
    push_image(pusher, "app", "1", [device, PLAIN])
    (part, open_), _ = plan_layers(Location.parse(f"{pusher.host}/app:1"), parse_oci_options([f"oci.cache={tmp_path}"]))
    assert (part.layer, part.role) == (0, "device")
    if error:
        with pytest.raises(ImageError, match=error) as caught:
            open_(NOBODY)
        assert "\n" not in str(caught.value)
        return
    source = open_(NOBODY)
    found = bytearray()
    try:
        assert source.size == len(content)
        source.read_range(0, source.size, into(found), whole=lambda: None, cancel=lambda: False)
    finally:
        source.close()
    assert found == content


def test_a_tag_a_digest_and_both(pusher: FakePusher) -> None:
    digest = push_image(pusher, "app", "1", [PLAIN])["digest"]
    for reference in ("app:1", f"app@{digest}", f"app:1@{digest}", f"app:gone@{digest}"):
        assert layer_of(f"{pusher.host}/{reference}")[1] == PLAIN.digest


def test_an_index(pusher: FakePusher) -> None:
    arm = push_image(pusher, "app", None, [OTHER], platform="linux/arm64")
    tar = push_image(pusher, "app", None, [TARRED])
    amd = push_image(pusher, "app", None, [PLAIN], os_features=["erofs"])
    push_index(pusher, "app", "1", [arm, tar, amd])
    reference = f"{pusher.host}/app:1"
    assert layer_of(reference, AMD64)[1] == PLAIN.digest  # the one with "erofs" in os.features
    assert layer_of(reference, "oci.platform=linux/arm64/v8")[1] == OTHER.digest
    with pytest.raises(ImageError, match="linux/s390x"):
        layer_of(reference, "oci.platform=linux/s390x")


def nest(pusher: FakePusher, depth: int) -> None:
    """An index of an index of ... of a manifest."""
    entry = push_image(pusher, "app", None, [PLAIN])
    for _ in range(depth):
        digest = push_index(pusher, "app", "1", [entry])
        entry = {"mediaType": OCI_INDEX, "digest": digest, "size": 1, "platform": entry["platform"]}


def test_nested_indexes(pusher: FakePusher) -> None:
    nest(pusher, INDEX_DEPTH - 1)
    assert layer_of(f"{pusher.host}/app:1", AMD64)[1] == PLAIN.digest
    nest(pusher, INDEX_DEPTH)
    with pytest.raises(ImageError, match="nested more than"):
        layer_of(f"{pusher.host}/app:1", AMD64)


def test_a_manifest_that_is_not_its_digest_s(pusher: FakePusher) -> None:
    good = push_image(pusher, "app", "1", [PLAIN])
    evil = push_image(pusher, "app", "2", [OTHER])
    pusher.fake.manifests[str(good["digest"])] = pusher.fake.manifests[str(evil["digest"])]
    with pytest.raises(ImageError, match="instead of"):
        layer_of(f"{pusher.host}/app@{good['digest']}")
    push_index(pusher, "app", "3", [good])
    with pytest.raises(ImageError, match="instead of"):
        layer_of(f"{pusher.host}/app:3", AMD64)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"layers": 1}', b'{"schemaVersion": 2}', b"\xff", b'{"manifests": []}']
)
def test_manifests_that_are_none(pusher: FakePusher, body: bytes) -> None:
    pusher.put_manifest("app", "1", body, OCI_MANIFEST)
    with pytest.raises(ImageError) as caught:
        layer_of(f"{pusher.host}/app:1")
    assert f"{pusher.host}/app:1" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_a_media_type(pusher: FakePusher) -> None:
    """It is told by its shape."""
    pusher.put_blob("app", PLAIN.data)
    body = json.dumps({"schemaVersion": 2, "layers": [PLAIN.descriptor]}).encode()
    pusher.put_manifest("app", "1", body, "application/json")
    assert layer_of(f"{pusher.host}/app:1")[1] == PLAIN.digest
    where = {"os": "linux", "architecture": "amd64"}
    entry = {"mediaType": OCI_MANIFEST, "digest": digest_of(body), "size": len(body), "platform": where}
    index = {"manifests": [entry]}
    pusher.put_manifest("app", "2", json.dumps(index).encode(), "text/plain")
    assert layer_of(f"{pusher.host}/app:2", AMD64)[1] == PLAIN.digest


def test_what_is_not_there(pusher: FakePusher) -> None:
    with pytest.raises(NotFoundError):
        layer_of(f"{pusher.host}/app:missing")


# Local sources


def test_a_file(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"x" * 1000)
    source = LocalSource(str(tmp_path / "image"))
    assert (source.size, source.name, source.layer) == (1000, str(tmp_path / "image"), -1)
    source.close()
    source.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make loop devices")
def test_a_block_device(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"x" * 8192)
    made = subprocess.run(
        ["losetup", "--find", "--show", tmp_path / "image"], capture_output=True, text=True, check=True
    )
    try:
        source = LocalSource(made.stdout.strip())
        assert source.size == 8192
        source.close()
    finally:
        subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)


def test_what_is_no_local_source(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "fifo")
    before = os.listdir("/proc/self/fd")
    for path, error in (("missing", UsageError), (".", UsageError), ("empty", ImageError)):
        with pytest.raises(error, match=str(tmp_path)):
            LocalSource(str(tmp_path / path))
    with pytest.raises(UsageError):
        LocalSource("/dev/null")
    assert len(os.listdir("/proc/self/fd")) == len(before)
