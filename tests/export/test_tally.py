"""Who reads all of a blob hears at the end whether it was right, where nothing but its digest could tell."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pyerofs.core import GRANULE
from pyerofs.errors import ImageError, PyerofsError
from pyerofs.export.file import BlobFile
from pyerofs.export.tally import Tally
from tests.support.blobs import Rig
from tests.support.fakeregistry import FakeRegistry
from tests.support.images import Images, Layer
from tests.support.indexedlayers import compressed, image
from tests.support.needs import need
from tests.support.scene import Scene, until

SIZE = 3_000_001
WHERE = 1_234_567  # the registry has another byte there


@pytest.fixture
def rig(fake: FakeRegistry, tmp_path: Path) -> Rig:
    return Rig(fake, tmp_path)


def at_once(blob: BlobFile) -> None:
    blob.read()


def in_pieces(blob: BlobFile) -> None:
    while blob.read(70_000):
        pass


def twice_from_the_beginning(blob: BlobFile) -> None:
    blob.read(500_000)
    blob.seek(0)
    at_once(blob)


def backwards(blob: BlobFile) -> None:
    for at in reversed(range(0, SIZE, 100_000)):
        blob.pread(100_000, at)


def at_random(blob: BlobFile) -> None:
    places = list(range(0, SIZE, 50_000))
    random.Random(1).shuffle(places)
    for at in places:
        blob.pread(60_000, at)


def sent(blob: BlobFile) -> None:
    with open(os.devnull, "wb") as out:
        blob.sendfile(out.fileno(), 0, SIZE)


def sent_in_parts(blob: BlobFile) -> None:
    with open(os.devnull, "wb") as out:
        for at in range(0, SIZE, 1 << 20):
            blob.sendfile(out.fileno(), at, 1 << 20)


READERS = [at_once, in_pieces, twice_from_the_beginning, backwards, at_random, sent, sent_in_parts]


@pytest.mark.parametrize("reader", READERS)
def test_a_wrong_byte_is_an_error_at_the_end(rig: Rig, reader: Callable[[BlobFile], None]) -> None:
    reference, data = rig.publish(SIZE)
    rig.spoil(Layer(data), WHERE)
    with rig.open(reference) as blob, pytest.raises(ImageError, match=Layer(data).digest):
        reader(blob)
    assert rig.entries == []
    rig.fake.blobs[Layer(data).digest] = data
    assert rig.read(reference) == data


@pytest.mark.parametrize("reader", READERS)
def test_what_is_right_is_none(rig: Rig, reader: Callable[[BlobFile], None]) -> None:
    reference, _ = rig.publish(SIZE)
    for _ in range(2):
        with rig.open(reference) as blob:
            reader(blob)
            reader(blob)
    assert rig.log == []


def test_a_part_says_nothing(rig: Rig) -> None:
    reference, data = rig.publish(SIZE)
    rig.spoil(Layer(data), WHERE)
    with rig.open(reference) as blob:
        assert blob.read(SIZE - 1) != data[:-1]


def test_a_compressed_layer_whose_index_has_no_hashes(rig: Rig) -> None:
    content = image(64)
    layer = compressed(content, 8192, hashes="")
    layer.annotations["org.erofs.uncompressed-digest"] = "sha256:" + "0" * 64
    with rig.open(rig.push(layer)) as blob, pytest.raises(ImageError, match="instead of sha256:0000"):
        blob.read()
    assert rig.entries == []


# The commands


@pytest.mark.parametrize("cached", [False, True])
def test_read(scene: Scene, rig: Rig, cached: bool) -> None:
    reference, data = rig.publish(SIZE)
    rig.spoil(Layer(data), WHERE)
    if cached:  # all but the last granule, by somebody who did not want it
        with rig.open(reference) as blob:
            blob.read(SIZE // GRANULE * GRANULE)
    done = scene.run("read", "-o", f"oci=0,oci.cache={rig.cache}", reference, prefix=("sh", "-c", '"$@" >out', "sh"))
    assert done.status == 32
    assert Layer(data).digest in done.err.splitlines()[-1] and "Nothing of it stays" in done.err
    assert rig.entries == []
    rig.fake.blobs[Layer(data).digest] = data
    done = scene.run("read", "-o", f"oci=0,oci.cache={rig.cache}", reference, prefix=("sh", "-c", '"$@" >out', "sh"))
    assert (done.status, done.err) == (0, "")
    assert (scene.directory / "out").read_bytes() == data


def test_pull(scene: Scene, rig: Rig) -> None:
    reference, data = rig.publish(SIZE)
    rig.spoil(Layer(data), WHERE)
    done = scene.run("pull", "-q", reference, f"oci:{scene.directory}/layout:1")
    assert done.status == 32
    assert f"{Layer(data).digest} came with another content" in done.error
    left = [path for path in scene.directory.rglob("*") if path.is_file() and path.stat().st_size > 1 << 20]
    assert left == []


def test_serve(scene: Scene, fake: FakeRegistry, images: Images) -> None:
    """A client cannot be told; a line can, also when the server is ended as soon as the client has everything."""
    rig = Rig(fake, scene.directory)
    layer = Layer(images.plain)
    reference = rig.push(layer)
    rig.spoil(layer, len(layer.data) - 5000)
    server = scene.start("serve", "--unix", scene.directory / "socket", "-o", f"oci=0,oci.cache={rig.cache}", reference)
    assert server.stdout and server.stdout.readline().startswith("ready: ")
    copy = [need("nbdcopy", "libnbd-bin"), f"nbd+unix:///?socket={scene.directory}/socket", f"{scene.directory}/copy"]
    subprocess.run(copy, check=True)
    server.send_signal(signal.SIGTERM)
    _, errors = server.communicate(timeout=30)
    assert server.returncode == 0
    assert f"pyerofs: the bytes in the cache for {layer.digest} are sha256:" in errors
    assert rig.entries == []


def test_a_mount_of_what_was_wrong_leaves_nothing(rig: Rig) -> None:
    reference, data = rig.publish(SIZE)
    rig.spoil(Layer(data), WHERE)
    with rig.open(reference, "oci.fill=full") as blob:
        until(lambda: blob._export.verification == "mismatch", "mismatch")
    assert rig.entries == []


def test_others_who_use_it_keep_it(rig: Rig) -> None:
    reference, data = rig.publish(SIZE)
    rig.spoil(Layer(data), WHERE)
    with rig.open(reference) as other:
        with rig.open(reference) as blob, pytest.raises(PyerofsError):
            blob.read()
        rig.fake.blobs[Layer(data).digest] = data
        assert other.read() == data


# The tally alone


def test_a_tally_of_all_orders() -> None:
    data = os.urandom(1000)
    digest = Layer(data).digest
    for seed in range(200):
        rng = random.Random(seed)
        tally = Tally(len(data), digest)
        seen: set[int] = set()
        while not tally.is_whole:
            at = rng.randrange(len(data))
            piece = data[at : at + rng.randrange(1, 200)]
            tally.passed(at, len(piece))
            seen.update(range(at, at + len(piece)))
            assert tally.is_whole == (len(seen) == len(data))
    tally = Tally(len(data), digest)
    assert not tally.is_whole
    assert tally.add(0, data[:10]) is None
    assert tally.add(500, data[500:600]) is None
    assert tally.add(0, data[:400]) is None
    assert tally.add(400, data[400:]) == digest
    assert tally.is_whole


def test_a_tally_of_too_many_places_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyerofs.export.tally.GAPS_MAX", 10)
    data = os.urandom(100)
    tally = Tally(len(data), Layer(data).digest)
    for at in range(0, len(data), 2):
        tally.passed(at, 1)
    tally.passed(0, len(data))
    assert not tally.is_whole
    assert tally.add(0, data) == Layer(data).digest  # in order it is told all the same
