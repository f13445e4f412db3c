"""A cache of an earlier version, which knew no givers: what can be believed of it is kept, the rest is dropped."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from pyerofs.cache import directory as cache_directory
from pyerofs.cache.entry import Entry
from pyerofs.cache.entry_format import MAP_OFFSET, SEAL
from pyerofs.cli import main
from pyerofs.config.options import parse_oci_options
from pyerofs.context import Context
from pyerofs.core import GRANULE, crc32c
from pyerofs.erofs.layer import Layer as Described
from pyerofs.export.base import Export
from pyerofs.export.file import BlobFile
from pyerofs.oci.location import Location
from pyerofs.source.open import reopen_layers
from tests.support.blobs import Rig, wrong
from tests.support.fakeregistry import FakeRegistry
from tests.support.images import Layer
from tests.support.indexedlayers import compressed, image, raw, stream
from tests.support.scene import until

SIZE = 1_000_003
CHUNK = 8192
IMAGE = image(64)
OTHER = image(64, seed=2)
OLD_MAGIC = b"pyerofs good 1\n\0"


@pytest.fixture
def rig(fake: FakeRegistry, tmp_path: Path) -> Rig:
    return Rig(fake, tmp_path)


def lay_old(cache: Path, key: str, data: bytes, granules: int | None = None, *, mark: bool = False) -> Path:
    """An entry as that version left it, with its first granules, or all; closed."""
    entry = Entry(str(cache), key, len(data))
    count = (len(data) + GRANULE - 1) // GRANULE
    os.pwrite(entry.data_fd, data, 0)
    sums = [crc32c(data[at : at + GRANULE]) for at in range(0, len(data), GRANULE)]
    os.pwrite(entry.sums_fd, struct.pack(f"={count}I", *sums), MAP_OFFSET)
    bits = (1 << (count if granules is None else granules)) - 1
    os.pwrite(entry.map_fd, bits.to_bytes((count + 63) // 64 * 8, "little"), MAP_OFFSET)
    if mark:
        _, seal, _ = SEAL.unpack(os.pread(entry.data_fd, SEAL.size, count * GRANULE))
        Path(entry.path, "verified").write_bytes(SEAL.pack(OLD_MAGIC, seal, len(data)))
    entry.close()
    return Path(entry.path)


@pytest.mark.parametrize("whole", [True, False])
def test_an_old_entry_that_was_not_hashed_is_dropped(rig: Rig, whole: bool) -> None:
    """Anybody may have given it."""
    reference, data = rig.publish(SIZE)
    old = lay_old(rig.cache, Layer(data).digest, wrong(data), None if whole else 100)
    with rig.open(reference) as blob:
        assert blob.pread(SIZE // 2, 0) == data[: SIZE // 2]
        assert not old.exists()
    assert rig.read(reference) == data


def test_an_old_entry_that_was_hashed_is_kept(rig: Rig) -> None:
    reference, data = rig.publish(SIZE)
    old = lay_old(rig.cache, Layer(data).digest, data, mark=True)
    inode = os.stat(old / "data").st_ino
    assert rig.verified(reference) == data
    assert rig.ranges == []
    assert os.stat(old / "data").st_ino == inode
    assert (old / "hashes").exists()


@pytest.mark.parametrize(
    "layer", [stream(IMAGE), compressed(IMAGE, CHUNK, hashes=""), compressed(IMAGE, CHUNK, hashes="", content=False)]
)
def test_an_old_entry_of_a_compressed_layer_is_dropped_although_it_was_hashed(rig: Rig, layer: Layer) -> None:
    """To whatever the manifest of whoever opened it said."""
    reference = rig.push(layer)
    old = lay_old(rig.cache, f"sha256+zstd:{layer.digest[7:]}", OTHER, mark=True)
    assert rig.read(reference) == IMAGE
    assert not old.exists()


def test_an_old_entry_that_an_index_vouches_for_is_kept(rig: Rig) -> None:
    layer = raw(IMAGE, CHUNK)
    reference = rig.push(layer)
    with rig.open(reference) as blob:
        path = Path(blob._export.cache_path)
    index = (path / "index").read_bytes()
    cache_directory.drop(cache_directory.EntryInfo(str(path), "", 0, 0))
    lay_old(rig.cache, f"{path.parent.name}:{path.name}", IMAGE)
    (path / "index").write_bytes(index)
    asked = len(rig.ranges)
    assert rig.read(reference, "oci=0,oci.verify=require") == IMAGE
    assert len(rig.ranges) == asked


def test_an_old_entry_in_use_stays_its_user_s(rig: Rig) -> None:
    """A mount of that version goes on; nobody believes it, and what is verified takes its place."""
    reference, data = rig.publish(SIZE)
    old = lay_old(rig.cache, Layer(data).digest, wrong(data))
    used = Entry(str(rig.cache), Layer(data).digest, SIZE)
    with rig.open(reference) as blob:
        assert old.exists()
        assert blob.read() == data
        until(lambda: blob._export.verification == "verified", "verified")
    assert os.pread(used.data_fd, 100, 0) == wrong(data)[:100]
    used.close()
    asked = len(rig.ranges)
    assert rig.read(reference) == data
    assert len(rig.ranges) == asked


@pytest.mark.parametrize("hashed", [True, False])
def test_a_mount_of_that_version_is_taken_over(rig: Rig, hashed: bool) -> None:
    """By what its record says of the layer. What can be believed is served without the registry, the rest is its."""
    reference, data = rig.publish(SIZE)
    lay_old(rig.cache, Layer(data).digest, data if hashed else wrong(data), mark=hashed)
    used = Entry(str(rig.cache), Layer(data).digest, SIZE)  # by the worker that goes
    origin = {
        "number": 0, "digest": Layer(data).digest, "size": SIZE, "compressed": False, "index": None, "alone": False,
        "content": Layer(data).digest, "converted": False,
    }  # fmt: skip
    options = parse_oci_options([f"oci=0,oci.cache={rig.cache}"])
    [open_] = reopen_layers(Location.parse(reference), [(Described.from_dict(origin), SIZE)], options)
    with BlobFile(Export(open_(Context(rig.log.append)), options, Context(rig.log.append))) as blob:
        assert rig.fake.requests() == []
        used.close()
        assert blob.read() == data
    assert (rig.ranges == []) == hashed


@pytest.mark.parametrize("action", ["gc", "verify"])
def test_the_commands_deal_with_old_entries(
    rig: Rig, capsys: pytest.CaptureFixture[str], action: str, tmp_path: Path
) -> None:
    good, bad, part = (os.urandom(SIZE) for _ in range(3))
    lay_old(rig.cache, Layer(good).digest, good)
    lay_old(rig.cache, Layer(bad).digest, wrong(bad))
    lay_old(rig.cache, Layer(part).digest, part, 3)
    status = main.main(["cache", action, "--dir", str(rig.cache)])
    said = capsys.readouterr().out
    if action == "gc":  # which hashes nothing
        assert status == 0 and said.count("removed: broken") == 3
    else:
        assert status == 32
        assert f"{Layer(good).digest}  verified" in said
        assert rig.entry(good).exists() and not rig.entry(bad).exists()
        found = Entry.open_believed(str(rig.entry(good)))
        assert found is not None
        found.close()
