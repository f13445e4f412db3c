"""The way to a dm-verity device, as far as it goes without one; tests/guest/test_verity.py has the rest."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pyerofs import program
from pyerofs.config.options import MountOptions, ReadOptions, parse_mount_options, parse_oci_options
from pyerofs.daemon import served_layer
from pyerofs.daemon.attach.dmverity import VerityAttachment
from pyerofs.daemon.record import LayerRecord
from pyerofs.erofs import chunk_index, dmverity
from pyerofs.erofs.dmverity import HashTree, Table
from pyerofs.errors import ImageError, MountError, UnavailableError, UsageError
from pyerofs.export.base import Export
from pyerofs.kernel import dmverity as dmverity_device
from pyerofs.kernel.dmverity import VerityDevice
from pyerofs.source.local import LocalSource
from tests.support.images import Images, Layer
from tests.support.indexedlayers import raw
from tests.support.needs import need
from tests.support.veritytrees import own_tree

ROOT = f"sha256:{'ab' * 32}"
ROOT_512 = f"sha512:{'ab' * 64}"


# The option


@pytest.mark.parametrize(("text", "value"), [
    ("oci", "none"), ("oci.verity", "require"), ("oci.verity=require", "require"), ("oci.verity=auto", "auto"),
    ("oci.verity=none", "none"),
])  # fmt: skip
def test_the_option(text: str, value: str) -> None:
    assert parse_mount_options([text]).verity == value
    assert parse_mount_options(["oci"], defaults=[[("oci.verity", "auto")]]).verity == "auto"


def test_the_option_is_for_mount_and_has_three_values() -> None:
    with pytest.raises(UsageError, match=r"'oci\.verity' is for mount only"):
        parse_oci_options(["oci.verity"])
    with pytest.raises(UsageError, match="auto"):
        parse_mount_options(["oci.verity=yes"])


# Before anything is attached


@pytest.fixture
def available(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this machine's kernel had dm-verity."""
    monkeypatch.setattr(dmverity_device, "check_available", lambda: None)


def check(path: Path, tree: HashTree) -> None:
    made = served_layer.ServedLayer(Export(LocalSource(str(path)), ReadOptions()), print, tree=tree)
    try:
        made.check(MountOptions())
    finally:
        made.close()


@pytest.mark.usefixtures("available")
def test_a_part_is_checked(tmp_path: Path, images: Images) -> None:
    image = tmp_path / "image"
    image.write_bytes(images.other.read_bytes())
    size = image.stat().st_size
    tree = dmverity.find(own_tree(image), 4096)
    assert tree is not None
    check(image, tree)
    for bad, error in (
        (tree._replace(offset=1 << 40), "it begins at 1099511627776, and the layer has"),
        (tree._replace(offset=size - 4096), f"{size} bytes, and its dm-verity tree covers {size - 4096}"),
        (tree._replace(root=ROOT_512), "its superblock says 'sha256', and the root digest"),
    ):  # fmt: skip
        with pytest.raises(ImageError) as caught:
            check(image, bad)
        assert error in str(caught.value) and str(image) in str(caught.value)


@pytest.mark.usefixtures("available")
def test_blocks_smaller_than_the_tree_s(tmp_path: Path, images: Images) -> None:
    """The kernel cannot mount it: better said here."""
    data = bytearray(images.other.read_bytes())
    data[1024 + 12] = 9  # 512 bytes
    image = tmp_path / "image"
    image.write_bytes(data)
    tree = dmverity.find(own_tree(image), 4096)
    assert tree is not None
    with pytest.raises(ImageError, match="blocks of 512 bytes, and its dm-verity tree of 4096"):
        check(image, tree)


def test_an_index_that_does_not_cover_the_tree(tmp_path: Path, images: Images) -> None:
    """The specification has the tree in the image data, and the index over all of these."""
    data = images.other.read_bytes()
    layer = raw(data, 4096)
    index = chunk_index.parse(
        layer.data[len(data) :], chunk_index.IndexLocation(len(data), len(layer.data), layer_digest(layer), False)
    )
    assert index is not None
    with pytest.raises(ImageError, match=f"begins at {len(data)}, and the layer has {len(data)} bytes of image data"):
        dmverity.check_within(HashTree(len(data), 4096, ROOT), index.size)


def layer_digest(layer: Layer) -> str:
    found = layer.descriptor["annotations"]
    assert isinstance(found, dict)
    return str(found[chunk_index.DIGEST])


# The device


def test_what_this_system_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []
    monkeypatch.setattr(dmverity_device, "modprobe", asked.append)
    monkeypatch.setattr(dmverity_device, "_MODULE", str(tmp_path / "none"))
    need("veritysetup", "cryptsetup-bin")
    with pytest.raises(
        UnavailableError, match=r"^this kernel has no dm-verity: try `modprobe dm-verity` \(oci.verity=none"
    ):
        dmverity_device.check_available()
    assert asked == ["dm-verity"]
    monkeypatch.setattr(dmverity_device, "_MODULE", str(tmp_path))
    dmverity_device.check_available()
    assert asked == ["dm-verity"]
    monkeypatch.setattr(program, "find", lambda _: None)
    with pytest.raises(UnavailableError, match="veritysetup is not installed: apt-get install cryptsetup-bin"):
        dmverity_device.check_available()


@pytest.mark.parametrize(("script", "error"), [
    ("echo one >&2; echo 'Device x is busy.' >&2; exit 5", "veritysetup open: Device x is busy.; see `dmesg`"),
    ("exit 5", "veritysetup open: it ended with status 5; see `dmesg`"),
    ("exec sleep 1000", "veritysetup open has not ended within 0.2 s"),
    ("exit 0", "veritysetup has made no device x"),
])  # fmt: skip
def test_veritysetup_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, error: str) -> None:
    program = tmp_path / "veritysetup"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(MountError) as caught:
        VerityDevice.open(Table(1, 4096, 4096, "sha256", "", "ab" * 32), "/dev/null", "x", 0.2)
    assert str(caught.value).startswith(error)


class Below:
    """An attachment that notes what is done to it."""

    path, how = "/dev/nbd9", "netlink"

    def __init__(self) -> None:
        self.did: list[str] = []

    def _note(name: str) -> Callable[[Below], bool]:  # type: ignore[misc]  # of a class, called in it
        def act(self: Below) -> bool:
            self.did.append(name)
            return True

        return act

    mounted, is_mounted, reconnect, release, abort = map(
        _note, ("mounted", "is_mounted", "reconnect", "release", "abort")
    )


def test_what_is_below_is_kept_while_the_device_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(dmverity_device, "SYS_BLOCK", str(tmp_path))
    (tmp_path / "dm-9" / "dm").mkdir(parents=True)
    (tmp_path / "dm-9" / "dm" / "name").write_text("ours\n")
    held, other = os.pipe()
    below = Below()
    attachment = VerityAttachment(below, VerityDevice("ours", "/dev/dm-9", "254:9", held))  # type: ignore[arg-type]  # a fake
    assert (attachment.path, attachment.how) == ("/dev/dm-9", "netlink")
    attachment.mounted()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(held)
    assert not attachment.release() and below.did == ["mounted"]
    (tmp_path / "dm-9" / "dm" / "name").write_text("another\n")
    assert attachment.release()
    attachment.abort()
    assert below.did == ["mounted", "release", "abort"]
    os.close(other)


def test_a_device_that_has_gone_is_not_mounted() -> None:
    attachment = VerityAttachment(Below(), VerityDevice.adopt("nobody", "/dev/dm-0"))  # type: ignore[arg-type]  # a fake
    assert not attachment.is_mounted()


def test_a_record_of_an_earlier_version() -> None:
    assert LayerRecord(id="a", device="/dev/nbd0", size=1).verity == ""
