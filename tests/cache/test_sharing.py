"""Whose bytes are served to whom: what nothing vouches for yet is its giver's, and a manifest vouches for no other."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pyerofs.cache import directory as cache_directory
from pyerofs.cache import sharing
from pyerofs.cache.entry import Entry
from pyerofs.cache.entry_format import MAP_OFFSET
from pyerofs.cli import main
from pyerofs.core import GRANULE
from pyerofs.erofs.layer import Storage
from pyerofs.errors import ImageError, PyerofsError
from pyerofs.export.digest_check import hash_all
from pyerofs.oci.layout import Layout
from pyerofs.oci.raw_manifest import RawManifest
from pyerofs.source.blobs import FileBlob, NoConnections
from pyerofs.source.checked import CheckedSource
from pyerofs.source.raw import RawSource
from tests.support.blobs import Rig, wrong
from tests.support.fakeregistry import FakeRegistry, status
from tests.support.images import OCI_MANIFEST, FakePusher, Layer, push_image
from tests.support.indexedlayers import CONTENT, alone, compressed, frames, image, stream
from tests.support.scene import until

SIZE = 1_000_003
CHUNK = 8192
IMAGE = image(64)
OTHER = image(64, seed=2)
OLD_MAGIC = b"pyerofs good 1\n\0"


@pytest.fixture
def rig(fake: FakeRegistry, tmp_path: Path) -> Rig:
    return Rig(fake, tmp_path)


@pytest.fixture
def evil() -> Iterator[FakeRegistry]:
    """A registry of somebody else."""
    with FakeRegistry() as fake:
        yield fake


def publish_wrong(evil: FakeRegistry, layers: list[Layer], blobs: dict[str, bytes]) -> str:
    """The reference of an image there whose manifest names these layers, and whose blobs are others."""
    push_image(FakePusher(evil), "evil", "1", layers)
    evil.blobs.update(blobs)
    return f"{evil.host}/evil:1"


# Raw layers without an index


def test_a_stranger_s_part_of_a_blob_is_not_served_to_others(rig: Rig, evil: FakeRegistry) -> None:
    reference, data = rig.publish(SIZE)
    bad = publish_wrong(evil, [Layer(data)], {Layer(data).digest: wrong(data)})
    with rig.open(bad) as blob:
        assert blob.pread(65_536, 0) == wrong(data)[:65_536]  # who asks him may get this
    with rig.open(reference) as blob:
        assert blob.pread(65_536, 0) == data[:65_536]
    assert len(rig.ranges) == 1


def test_a_layout_directory_that_has_rotted_spoils_nobody_else_s(rig: Rig, tmp_path: Path) -> None:
    reference, data = rig.publish(SIZE)
    layer = Layer(data)
    layout = Layout.create(str(tmp_path / "layout"))
    (tmp_path / "layout" / "blobs" / "sha256" / layer.digest[7:]).write_bytes(wrong(data))
    manifest = RawManifest.of({"schemaVersion": 2, "layers": [layer.descriptor]}, OCI_MANIFEST)
    layout.add_document(manifest)
    layout.tag(manifest, "1")
    with rig.open(f"oci:{tmp_path}/layout:1") as blob:
        assert blob.pread(10, 0) == wrong(data)[:10]
    assert rig.read(reference) == data


@pytest.mark.parametrize("option", ["oci.insecure", "oci.mirror"])
def test_who_is_asked_by_another_way_is_another_giver(rig: Rig, evil: FakeRegistry, option: str) -> None:
    reference, data = rig.publish(SIZE)
    evil.blobs = {Layer(data).digest: wrong(data)}
    if option == "oci.mirror":
        with rig.open(reference, f"oci=0,oci.mirror={evil.url}") as blob:
            assert blob.pread(10, 0) == wrong(data)[:10]
    else:
        rig.fake.blobs[Layer(data).digest] = wrong(data)
        with rig.open(reference, "oci=0,oci.insecure") as blob:
            assert blob.pread(10, 0) == wrong(data)[:10]
        rig.fake.blobs[Layer(data).digest] = data
    assert rig.read(reference) == data


def test_what_has_its_digest_is_everybody_s(rig: Rig, evil: FakeRegistry) -> None:
    reference, data = rig.publish(SIZE)
    bad = publish_wrong(evil, [Layer(data)], {Layer(data).digest: wrong(data)})
    with rig.open(bad) as blob:
        blob.pread(10, 0)
    assert rig.verified(reference) == data
    assert f"sha256/{Layer(data).digest[7:]}" in rig.entries
    asked = len(evil.requests("/blobs/"))
    assert rig.verified(bad) == data
    assert len(evil.requests("/blobs/")) == asked
    assert rig.entries == [f"sha256/{Layer(data).digest[7:]}"]  # his own is of no use any more


def test_those_who_have_it_open_go_on_when_it_becomes_everybody_s(rig: Rig) -> None:
    reference, data = rig.publish(SIZE)
    with rig.open(reference) as first:
        assert first.pread(10, 0) == data[:10]
        assert "@" in first._export.cache_path
        assert rig.verified(reference) == data
        asked = len(rig.ranges)
        assert first.read() == data
        assert first._export.verification == "verified"
        first._export.sync()
        assert first._export.cache_path == str(rig.cache / "sha256" / Layer(data).digest[7:])
    assert len(rig.ranges) == asked


def test_a_manifest_that_gives_another_size_throws_nothing_away(rig: Rig, evil: FakeRegistry) -> None:
    reference, data = rig.publish(SIZE)
    assert rig.verified(reference) == data
    bad = publish_wrong(evil, [Layer(data, size=SIZE - 5)], {Layer(data).digest: wrong(data)[:-5]})
    for _ in range(2):
        with rig.open(bad) as blob:
            assert blob.pread(10, 0) == wrong(data)[:10]
    asked = len(rig.ranges)
    assert rig.read(reference) == data
    assert len(rig.ranges) == asked


def spoil(path: Path, at: int) -> None:
    with (path / "data").open("r+b") as file:
        file.seek(at)
        file.write(b"damage")


def test_what_everybody_s_lacks_comes_back_only_as_it_was(rig: Rig, evil: FakeRegistry) -> None:
    """Damage on the disk gives nobody the chance to put other bytes into what all read."""
    reference, data = rig.publish(SIZE)
    bad = publish_wrong(evil, [Layer(data)], {Layer(data).digest: wrong(data)})
    assert rig.verified(reference) == data
    spoil(rig.entry(data), 500_000)
    with rig.open(bad) as his, rig.open(reference) as ours:
        with pytest.raises(PyerofsError, match="the chunk at 393216 is corrupt"):
            his.pread(100, 500_000)
        before = len(rig.ranges)
        assert ours.pread(100, 500_000) == data[500_000:500_100]
        assert rig.ranges[before:] == [(393_216, 393_216 + (128 << 10) - 1)]
        assert his.read() == data
        assert ours._export.verification == "verified"


def test_what_everybody_s_lacked_when_it_was_closed_too(rig: Rig, evil: FakeRegistry) -> None:
    reference, data = rig.publish(SIZE)
    bad = publish_wrong(evil, [Layer(data)], {Layer(data).digest: wrong(data)})
    assert rig.verified(reference) == data
    spoil(rig.entry(data), 500_000)
    evil.default = status(404)
    with rig.open(bad) as blob, pytest.raises(PyerofsError):
        blob.pread(100, 500_000)
    assert rig.verified(reference) == data
    assert len(rig.ranges) >= 2


# Compressed ones


def test_a_stranger_s_index_and_annotation_vouch_for_his_image_alone(rig: Rig, evil: FakeRegistry) -> None:
    """His manifest names our layer, with an index of his own that has no hashes, and a digest of what he serves."""
    layer = stream(IMAGE)
    reference = rig.push(layer)
    body, index = frames(OTHER, CHUNK, hashes="")
    his = Layer(
        layer.data, str(layer.descriptor["mediaType"]), size=len(body), annotations={CONTENT: Layer(OTHER).digest}
    )
    bad = publish_wrong(evil, alone(his, index), {layer.digest: body})
    assert rig.verified(bad) == OTHER
    assert rig.verified(reference) == IMAGE
    assert rig.ranges
    assert len(rig.entries) == 2


def test_two_annotations_of_one_layer_do_not_share_a_place(rig: Rig, evil: FakeRegistry) -> None:
    layer = compressed(IMAGE, CHUNK, hashes="")
    reference = rig.push(layer)
    assert rig.verified(reference) == IMAGE
    again = Layer(layer.data, str(layer.descriptor["mediaType"]), annotations=layer.annotations)
    again.annotations[CONTENT] = Layer(OTHER).digest
    push_image(FakePusher(evil), "evil", "1", [again])
    with rig.open(f"{evil.host}/evil:1") as blob, pytest.raises(ImageError, match="instead of"):
        blob.read()
    asked = len(rig.ranges)
    assert rig.read(reference) == IMAGE
    assert len(rig.ranges) == asked


def test_what_nobody_has_a_digest_of_is_never_shared(rig: Rig, evil: FakeRegistry) -> None:
    layer = compressed(IMAGE, CHUNK, hashes="", content=False)
    reference = rig.push(layer)
    push_image(FakePusher(evil), "evil", "1", [layer])
    assert rig.read(reference) == IMAGE
    assert rig.read(f"{evil.host}/evil:1") == IMAGE
    assert len(rig.entries) == 2 and all("@" in entry for entry in rig.entries)


# Marks


def test_a_mark_counts_only_for_what_it_names(rig: Rig) -> None:
    """An entry that was moved to another one's place."""
    reference, data = rig.publish(SIZE)
    _, other = rig.publish(SIZE, seed=2)
    assert rig.verified(reference) == data
    mine = rig.entry(data)
    theirs = mine.rename(mine.with_name(Layer(other).digest[7:]))
    assert Entry.open_believed(str(theirs)) is None
    theirs.rename(mine)
    entry = Entry.open_believed(str(mine))
    assert entry is not None
    entry.close()


def test_a_mark_without_its_hashes_counts_while_all_is_there(rig: Rig) -> None:
    reference, data = rig.publish(SIZE)
    assert rig.verified(reference) == data
    (rig.entry(data) / "hashes").unlink()
    asked = len(rig.ranges)
    assert rig.verified(reference) == data
    assert len(rig.ranges) == asked
    assert (rig.entry(data) / "hashes").exists()  # it has been hashed once more
    (rig.entry(data) / "hashes").unlink()
    with (rig.entry(data) / "live").open("r+b") as file:
        file.seek(MAP_OFFSET)
        file.write(b"\0")
    assert rig.read(reference) == data
    assert sum(last + 1 - first for first, last in rig.ranges[asked:]) == SIZE


@pytest.mark.parametrize("later", [True, False])
def test_a_mark_that_was_made_while_bytes_came(rig: Rig, later: bool) -> None:
    """It is for what was there before: for these only if all of them were."""
    data = os.urandom(GRANULE)
    digest = Layer(data).digest
    entry = Entry(str(rig.cache), f"{digest}@{'0' * 32}", len(data), earns=digest)

    class Source(RawSource):
        def read_range(self, offset: int, length: int, sink: Callable[[int, bytes], bool], **_: Any) -> None:
            sink(0, data)
            entry.mark_verified(hash_all_of(data))
            when = time.time() + (1 if later else -1)
            os.utime(Path(entry.path, "verified"), (when, when))

    blob = FileBlob("", digest, len(data))
    source = CheckedSource(Source("app:1", 0, blob, NoConnections()), entry)
    source.read_range(0, len(data), lambda at, piece: True, whole=lambda: None, cancel=lambda: False)
    assert entry.is_marked_verified() == later
    entry.close()


@pytest.mark.parametrize("name", ["verified", "hashes", "giver", "map", "live", "sums", "data", "index", "lock"])
def test_a_symlink_in_the_cache_is_not_followed(rig: Rig, tmp_path: Path, name: str) -> None:
    target = tmp_path / "precious"
    target.write_bytes(b"precious")
    layer = compressed(IMAGE, CHUNK, hashes="")
    reference = rig.push(layer)
    with rig.open(reference) as blob:
        blob.pread(10, 0)
    path = rig.cache / rig.entries[0]
    (path / name).unlink(missing_ok=True)
    (path / name).symlink_to(target)
    try:
        assert rig.read(reference) == IMAGE
    except PyerofsError as e:
        assert name == "lock" and str(path.parent.parent) in str(e)
    assert target.read_bytes() == b"precious"


# Whoever is at the same place at once


def test_one_that_was_killed_between_mark_and_rename_is_shared_later(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    reference, data = rig.publish(SIZE)
    with monkeypatch.context() as patch:
        patch.setattr("pyerofs.export.digest_check.share", lambda entry: False)
        assert rig.verified(reference) == data
    assert "@" in rig.entry(data).name
    asked = len(rig.ranges)
    assert rig.verified(reference) == data
    assert rig.entry(data).name == Layer(data).digest[7:]
    assert len(rig.ranges) == asked


def test_two_givers_of_the_same_share_one(rig: Rig, evil: FakeRegistry) -> None:
    """The second one to be hashed finds the first."""
    reference, data = rig.publish(SIZE)
    push_image(FakePusher(evil), "other", "1", [Layer(data)])
    with rig.open(f"{evil.host}/other:1") as theirs:
        assert theirs.pread(10, 0) == data[:10]
        assert rig.verified(reference) == data
        shared = os.stat(rig.entry(data) / "data").st_ino
        assert theirs.read() == data
        until(lambda: theirs._export.verification == "verified", "verified")
        assert os.stat(rig.entry(data) / "data").st_ino == shared
    assert len(rig.entries) == 2
    assert rig.read(f"{evil.host}/other:1") == data
    assert len(rig.entries) == 1


def test_what_becomes_everybody_s_while_it_is_opened(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    reference, data = rig.publish(SIZE)
    real = sharing._open_shared

    def meanwhile(*arguments: Any, **more: Any) -> Entry | None:
        monkeypatch.setattr(sharing, "_open_shared", real)
        found = real(*arguments, **more)
        assert found is None
        assert rig.verified(reference) == data
        return found

    monkeypatch.setattr(sharing, "_open_shared", meanwhile)
    with rig.open(reference) as blob:
        assert blob._export.cache_path == str(rig.cache / "sha256" / Layer(data).digest[7:])
        asked = len(rig.ranges)
        assert blob.read() == data
    assert len(rig.ranges) == asked


def test_openers_sharers_and_evictors_at_once(tmp_path: Path) -> None:
    """Whatever is everybody's is whole and right, whoever has just made it so or taken it away."""
    data = os.urandom(10 * GRANULE + 7)
    directory, digest = str(tmp_path / "cache"), Layer(data).digest
    storages = [Storage(f"{digest}@{number:032x}", shared=digest, giver="x") for number in range(3)]
    done = threading.Event()
    found = hash_all_of(data)

    def opener(storage: Storage) -> int:
        shared = 0
        for _ in range(100):
            entry = sharing.open_entry(directory, storage, len(data))
            if "@" not in os.path.basename(entry.path):
                shared += 1
                assert entry.present() == entry.size and os.pread(entry.data_fd, len(data), 0) == data
            else:
                os.pwrite(entry.data_fd, data, 0)
                os.pwrite(entry.map_fd, ((1 << 11) - 1).to_bytes(8, "little"), MAP_OFFSET)
                entry.mark_verified(found)
                sharing.share(entry)
            entry.close()
        return shared

    def evictor() -> None:
        while not done.is_set():
            for place in cache_directory.scan(directory):
                cache_directory.drop(place)
            done.wait(0.002)

    with ThreadPoolExecutor(5) as pool:
        evictors = [pool.submit(evictor) for _ in range(2)]
        openers = [pool.submit(opener, storage) for storage in storages]
        try:
            assert sum(future.result() for future in openers) > 0
        finally:
            done.set()
        for future in evictors:
            future.result()


def hash_all_of(data: bytes) -> bytes:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        found = hash_all(file.fileno(), len(data), "sha256", lambda: False)
    assert found is not None
    return found[1]


def test_the_command_verify_makes_what_is_right_everybody_s(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    reference, data = rig.publish(SIZE)
    assert rig.verified(reference) == data
    rig.give_back(data)
    assert main.main(["cache", "verify", "--dir", str(rig.cache)]) == 0
    assert capsys.readouterr().out == f"{Layer(data).digest}  verified\n"
    assert rig.entries == [f"sha256/{Layer(data).digest[7:]}"]
    assert not (rig.entry(data) / "giver").exists()
    asked = len(rig.ranges)
    assert rig.read(reference) == data
    assert len(rig.ranges) == asked
