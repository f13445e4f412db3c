"""A compressed layer without an index: streamed once, read while it comes, believed only at its end."""

from __future__ import annotations

import lzma
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from pyerofs.config.options import parse_oci_options
from pyerofs.context import NOBODY
from pyerofs.erofs.layer import Layer as Described
from pyerofs.errors import ImageError, RegistryError, UnavailableError
from pyerofs.export import fill
from pyerofs.oci.location import Location
from pyerofs.source.open import open_layer, reopen_layers
from tests.support.blobs import Rig
from tests.support.fakeregistry import LIMIT, Exchange, FakeRegistry, honest, reset, short, stall, status
from tests.support.images import FakePusher, Layer, push_image
from tests.support.indexedlayers import CONTENT, ZSTD, compressed, frames, image, stream
from tests.support.scene import until
from tests.support.sinks import into

DATA = image(200)


@pytest.fixture
def rig(fake: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setattr(fill, "PAUSE_FIRST", 0.01)
    return Rig(fake, tmp_path)


def push(rig: Rig, layer: Layer) -> str:
    push_image(FakePusher(rig.fake), "app", "1", [layer])
    return f"{rig.fake.host}/app:1"


def entry(rig: Rig, layer: Layer) -> Path:
    (found,) = (rig.cache / "sha256+zstd").glob(f"{layer.digest[7:]}*")
    return found


@pytest.mark.parametrize("content", [True, False])
@pytest.mark.parametrize("chunk", [1 << 20, 5000])
def test_the_image_is_there_and_stays(rig: Rig, content: bool, chunk: int) -> None:
    layer = stream(DATA, chunk, content=content)
    reference = push(rig, layer)
    with rig.open(reference) as blob:
        assert blob.size == len(DATA)
        assert blob.read() == DATA
        until(lambda: blob._export.verification == "verified", "verified")
    assert rig.ranges == [(0, len(layer.data) - 1)]  # once, from its start
    rig.fake.default = status(500)
    with rig.open(reference) as blob:
        assert blob.size == len(DATA)
        assert blob._export.verification == "verified"
        assert blob.read() == DATA
    assert len(rig.ranges) == 1
    assert rig.log == []


def test_all_of_it_is_fetched_although_nobody_reads(rig: Rig) -> None:
    reference = push(rig, stream(DATA))
    with rig.open(reference) as blob:
        until(lambda: blob._export.verification == "verified", "verified")
        assert blob._export.store.stats().present == len(DATA)


def test_what_lies_behind_the_filesystem_is_passed_over(rig: Rig) -> None:
    """A hash tree, say. It counts for the digest of the whole."""
    layer = stream(DATA + os.urandom(50_000), 10_000)
    with rig.open(push(rig, layer)) as blob:
        assert blob.size == len(DATA)
        assert blob.read() == DATA
        until(lambda: blob._export.verification == "verified", "verified")


def test_skippable_frames_are_skipped(rig: Rig) -> None:
    layer = stream(DATA, tail=b"\x50\x2a\x4d\x18\x05\0\0\0hello")
    with rig.open(push(rig, layer)) as blob:
        assert blob.read() == DATA


@pytest.fixture
def held(rig: Rig) -> Iterator[tuple[Layer, threading.Event]]:
    """A layer of which the first half comes, and the second when the event is set."""
    layer = stream(DATA, 8192)
    release = threading.Event()
    rig.fake.script(stall(release, after=len(layer.data) // 2))
    yield layer, release
    release.set()


def test_reads_are_answered_as_the_stream_reaches_them(rig: Rig, held: tuple[Layer, threading.Event]) -> None:
    layer, release = held
    with rig.open(push(rig, layer)) as blob:
        assert blob.pread(100_000, 5) == DATA[5:100_005]
        assert blob._export.verification == "unverified"
        late: list[bytes] = []
        reader = threading.Thread(target=lambda: late.append(blob.pread(5000, len(DATA) - 5000)))
        reader.start()
        assert blob.pread(100, 50_000) == DATA[50_000:50_100]
        assert late == []
        release.set()  # the connection ends here: the rest comes by another request
        reader.join(LIMIT)
        assert late == [DATA[-5000:]]
    assert rig.ranges[1][0] == len(layer.data) // 2


def test_a_stream_that_is_cut_goes_on_where_it_was(rig: Rig) -> None:
    layer = stream(DATA, 30_000)
    rig.fake.script(*[short(7001)] * 20, reset, status(503))
    with rig.open(push(rig, layer)) as blob:
        assert blob.read() == DATA
        until(lambda: blob._export.verification == "verified", "verified")
    firsts = [first for first, _ in rig.ranges]
    assert firsts == sorted(firsts)
    assert firsts[:21] == [7001 * n for n in range(21)]


def test_a_registry_that_ignores_ranges(rig: Rig) -> None:
    layer = stream(DATA, 30_000)

    def cut_whole(exchange: Exchange) -> None:
        exchange.reply(200, exchange.blob[:20_000], length=len(exchange.blob))

    def whole(exchange: Exchange) -> None:
        exchange.reply(200, exchange.blob)

    rig.fake.script(cut_whole, whole)
    with rig.open(push(rig, layer)) as blob:
        assert blob.read() == DATA


# What is wrong


def spoiled(layer: Layer, at: int) -> bytes:
    data = bytearray(layer.data)
    data[at] ^= 1
    return bytes(data)


def test_a_stream_with_another_digest_is_taken_back(rig: Rig) -> None:
    """Every frame is sound; it is another image."""
    layer = stream(DATA, 8192, content=False)
    reference = push(rig, layer)
    other = frames(image(200, seed=2), 8192)[0]
    rig.fake.blobs[layer.digest] = other[: len(layer.data)].ljust(len(layer.data), b"\0")
    check_taken_back(rig, reference, layer)


def check_taken_back(rig: Rig, reference: str, layer: Layer) -> None:
    try:
        with rig.open(reference) as blob:
            until(
                lambda: any("instead" in line or "are sha256" in line or "corrupt" in line for line in rig.log), "end"
            )
            until(lambda: blob._export.store.stats().present == 0, "nothing")
            for at in (0, 100_000, len(DATA) - 1):
                with pytest.raises(ImageError):
                    blob.pread(1, at)
            assert blob._export.store.stats().present == 0
    except ImageError as e:
        assert reference in str(e)  # it was found out before the size was known
    rig.fake.blobs[layer.digest] = layer.data
    with rig.open(reference) as blob:
        assert blob.read() == DATA


@pytest.mark.parametrize("part", range(12))
def test_a_stream_with_a_wrong_byte_is_taken_back(rig: Rig, part: int) -> None:
    layer = stream(DATA, 8192)
    reference = push(rig, layer)
    rig.fake.blobs[layer.digest] = spoiled(layer, part * (len(layer.data) - 1) // 11)
    check_taken_back(rig, reference, layer)


def test_a_layer_that_is_not_its_own_content_is_taken_back(rig: Rig) -> None:
    layer = Layer(frames(DATA, 8192)[0], ZSTD, annotations={CONTENT: "sha256:" + "0" * 64})
    reference = push(rig, layer)
    # It may be found out before the size is known, or later.
    with pytest.raises(ImageError, match="decompresses to sha256"), rig.open(reference) as blob:
        until(lambda: any("decompresses to sha256" in line for line in rig.log), "the end")
        until(lambda: blob._export.store.stats().present == 0, "nothing")
        blob.pread(1, 0)


def test_it_never_becomes_complete_before_its_end(rig: Rig) -> None:
    """The end alone tells whether it is right: until then the last granule is not given out."""
    layer = stream(DATA, 8192, tail=b"\x50\x2a\x4d\x18\x05\0\0\0hello")
    release = threading.Event()
    rig.fake.script(stall(release, after=len(layer.data) - 1))
    with rig.open(push(rig, layer)) as blob:
        until(lambda: blob._export.store.stats().present == len(DATA) - 4096, "all but the last granule")
        assert not blob._export.store.has(len(DATA) - 4096, 4096)
        release.set()
        assert blob.read() == DATA


@pytest.mark.parametrize(("data", "text"), [
    (b"not zstd at all" * 10, "corrupt"),
    (lzma.compress(DATA), "the layer is not zstd data: it looks like xz data"),
    (lzma.compress(DATA)[:1000], "the layer is not zstd data: it looks like xz data"),
    (zstandard.ZstdCompressor().compress(DATA)[:-1000], "the image is truncated: it has"),
    (b"<html>Log in</html>" * 10, "the layer is not zstd data: it looks like HTML or XML text"),
    (zstandard.ZstdCompressor().compress(b"x" * 5000), "no EROFS superblock"),
    (zstandard.ZstdCompressor().compress(b"x" * 50), "at least 1152"),
    (zstandard.ZstdCompressor().compress(DATA[:50_000]), "truncated"),
    (zstandard.ZstdCompressor().compress(DATA[: 1024 + 12] + b"\x10" + DATA[1024 + 13 :]), "this kernel's pages"),
    (zstandard.ZstdCompressor().compress(DATA[: 1024 + 36] + bytes(4) + DATA[1024 + 40 :]), "the image has 0 bytes"),
])  # fmt: skip
def test_layers_that_are_none(rig: Rig, monkeypatch: pytest.MonkeyPatch, data: bytes, text: str) -> None:
    monkeypatch.setattr(os, "sysconf", lambda _: 4096)
    reference = push(rig, Layer(data, ZSTD))
    with pytest.raises(ImageError, match=text) as caught, rig.open(reference) as blob:
        blob.read()
    assert reference in str(caught.value)


def test_a_bomb_takes_no_more_than_its_superblock_says(rig: Rig) -> None:
    small = image(3)
    bomb = Layer(zstandard.ZstdCompressor().compress(small + bytes(1 << 28)), ZSTD)
    with rig.open(push(rig, bomb)) as blob:
        assert blob.read() == small
        until(lambda: blob._export.verification == "verified", "verified")
        assert blob.size == len(small)
    assert sum(path.stat().st_blocks * 512 for path in rig.cache.rglob("*") if path.is_file()) < 1 << 20


def claiming(blocks: int) -> bytes:
    """The beginning of an image that says that it has so many blocks."""
    head = bytearray(image(1))
    head[1024 + 36 : 1024 + 40] = blocks.to_bytes(4, "little")
    return bytes(head)


def test_a_layer_that_would_fill_the_disk_is_refused_at_its_start(rig: Rig) -> None:
    compressor = zstandard.ZstdCompressor()
    bomb = Layer(compressor.compress(claiming(1 << 19)) + compressor.compress(b"b" * (1 << 20)) * 100, ZSTD)
    reference = push(rig, bomb)
    for options, limit in (("oci=0", "1.0 GiB"), ("oci.unpacked_max=1M", "1.0 MiB")):
        with pytest.raises(ImageError, match=rf"more than {limit}, and may .*-o oci.unpacked_max=SIZE"):
            rig.open(reference, options)
    assert sum(path.stat().st_blocks * 512 for path in rig.cache.rglob("*") if path.is_file()) < 1 << 20
    with pytest.raises(ImageError, match="the image is truncated"):  # which is seen at its end: so far it came
        rig.read(reference, "oci.unpacked_max=2G")


def test_a_compressed_layer_that_would_fill_the_disk_is_refused(rig: Rig) -> None:
    """Before anything of it is fetched but its index, which says how large it is."""
    data = image(40)
    layer = compressed(data)
    reference = rig.push(layer)
    with pytest.raises(ImageError, match=r"layer 0: what it decompresses to is more than .*-o oci.unpacked_max=SIZE"):
        rig.open(reference, f"oci.unpacked_max={len(data) - 1}")
    assert rig.read(reference, f"oci.unpacked_max={len(data)}") == data


@pytest.mark.parametrize("tail", [0, 1 << 20])
def test_a_layer_with_more_than_is_allowed_behind_its_filesystem_is_refused(rig: Rig, tail: int) -> None:
    reference = push(rig, stream(DATA + bytes(tail)))
    options = f"oci.unpacked_max={len(DATA)}"
    if tail:
        with pytest.raises(ImageError, match=r"oci\.unpacked_max"):
            rig.read(reference, options)
    else:
        assert rig.read(reference, options) == DATA


def test_zeros_take_no_room_beside_the_cache(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    written = 0
    pwrite = os.pwrite

    def counted(fd: int, data: memoryview, at: int) -> int:
        nonlocal written
        written += len(data)
        return pwrite(fd, data, at)

    monkeypatch.setattr(os, "pwrite", counted)
    data = claiming(2000) + bytes(1999 * 4096)
    with rig.open(push(rig, stream(data))) as blob:
        assert blob.read() == data
    assert written < 1 << 20


def test_a_registry_that_is_down(rig: Rig) -> None:
    reference = push(rig, stream(DATA))
    rig.fake.default = status(404)
    with pytest.raises(RegistryError):
        rig.open(reference)
    rig.fake.default = status(503)
    with pytest.raises(RegistryError):
        rig.open(reference, "oci=0,oci.timeout=0.3")
    rig.fake.default = honest
    with rig.open(reference) as blob:
        assert blob.read() == DATA


def test_what_an_unfinished_stream_left_is_not_believed(rig: Rig) -> None:
    layer = stream(DATA, 8192, content=False)
    reference = push(rig, layer)
    wrong = frames(image(200, seed=2), 8192)[0][: len(layer.data)]
    wrong = wrong.ljust(len(layer.data), b"\0")
    rig.fake.blobs[layer.digest] = wrong
    release = threading.Event()
    rig.fake.script(stall(release, after=len(wrong) // 2))
    with rig.open(reference) as blob:
        assert blob.pread(50_000, 8192) != DATA[8192:58_192]  # who asks for no verification may get this
        release.set()
    rig.fake.blobs[layer.digest] = layer.data
    with rig.open(reference) as blob:
        assert blob.read() == DATA


def test_a_complete_cache_that_nobody_has_verified_is_streamed_again(rig: Rig) -> None:
    layer = stream(DATA)
    reference = push(rig, layer)
    with rig.open(reference) as blob:
        until(lambda: blob._export.verification == "verified", "verified")
    (entry(rig, layer) / "verified").unlink()
    with rig.open(reference) as blob:
        until(lambda: blob._export.verification == "verified", "verified")
        assert blob.read() == DATA
    assert len(rig.ranges) == 2


def test_the_file_beside_the_cache_goes_when_all_is_there(rig: Rig) -> None:
    def held() -> int:
        """Files in the cache directory that have no name any more."""
        links = [os.path.join("/proc/self/fd", fd) for fd in os.listdir("/proc/self/fd")]
        return sum(
            os.path.lexists(link) and str(rig.cache) in os.readlink(link) and "(deleted)" in os.readlink(link)
            for link in links
        )

    release = threading.Event()
    layer = stream(DATA, 8192)
    rig.fake.script(stall(release, after=len(layer.data) // 2))
    with rig.open(push(rig, layer)) as blob:
        assert held() == 1
        release.set()
        until(lambda: held() == 0, "released")
        assert blob.read() == DATA
        blob._export.store.forget_all()  # as when a spoiled cache is found
        assert blob.pread(len(DATA), 0) == DATA  # another stream
    assert held() == 0
    assert [path for path in rig.cache.iterdir() if path.is_file()] == []


def test_a_cache_that_cannot_take_it(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    reference = push(rig, stream(DATA))
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(UnavailableError, match="No space left"):
        rig.open(reference)


def test_many_readers(rig: Rig) -> None:
    layer = stream(DATA, 8192)
    rig.fake.script(short(3000), reset, short(20_000))
    wrong: list[int] = []
    with rig.open(push(rig, layer)) as blob:

        def read(number: int) -> None:
            for at in range(number * 1000, len(DATA) - 10_000, 97_000):
                if blob.pread(10_000, at) != DATA[at : at + 10_000]:
                    wrong.append(at)

        readers = [threading.Thread(target=read, args=(number,)) for number in range(12)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(LIMIT)
            assert not reader.is_alive()
    assert wrong == []


def test_closing_does_not_wait_for_the_stream(rig: Rig, held: tuple[Layer, threading.Event]) -> None:
    layer, _ = held
    with rig.open(push(rig, layer)) as blob:
        assert blob.pread(10, 0) == DATA[:10]


def test_a_worker_that_takes_another_one_s_place(rig: Rig) -> None:
    layer = stream(DATA)
    reference = push(rig, layer)
    options = parse_oci_options([f"oci=0,oci.cache={rig.cache}"])
    source = open_layer(Location.parse(reference), options)
    source.close()
    again = reopen_layers(
        Location.parse(source.name), [(Described.from_dict(source.origin.as_dict()), len(DATA))], options
    )[0](NOBODY)
    try:
        assert (again.size, again.storage) == (source.size, source.storage)
        got = bytearray()
        again.read_range(0, 5000, into(got), whole=lambda: None, cancel=lambda: False)
        assert got == DATA[:5000]
    finally:
        again.close()


def test_a_size_that_is_another_one_now(rig: Rig) -> None:
    reference = push(rig, stream(DATA))
    options = parse_oci_options([f"oci=0,oci.cache={rig.cache}"])
    source = open_layer(Location.parse(reference), options)
    source.close()
    again = reopen_layers(Location.parse(source.name), [(source.origin, len(DATA) - 4096)], options)[0](NOBODY)
    try:
        with pytest.raises(ImageError, match="by its superblock"):
            again.read_range(0, 5000, lambda at, piece: True, whole=lambda: None, cancel=lambda: False)
    finally:
        again.close()
