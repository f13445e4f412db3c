"""The chunk index: what is made is read back; everything that the format forbids is refused."""

from __future__ import annotations

import hashlib
import io
import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyerofs.erofs import chunk_index
from pyerofs.erofs.chunk_index import IndexLocation, build, encode, locate, parse
from pyerofs.errors import ImageError
from tests.support.indexedlayers import cut, index_of

IMAGE = random.Random(5).randbytes(4096 * 5)
CHUNK = 8192


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def at(payload: bytes, offset: int = len(IMAGE)) -> IndexLocation:
    """Of a raw layer whose index begins at `offset`, with the digest that it has."""
    return IndexLocation(offset, offset + len(payload), digest_of(payload), False)


def raw() -> bytes:
    return build(io.BytesIO(IMAGE).read, CHUNK)


def zstd(offsets: tuple[int, ...] = (0, 100, 150)) -> bytes:
    entries = [(offset, number * CHUNK, bytes(32)) for number, offset in enumerate(offsets)]
    return encode(chunk_index.ZSTD, len(IMAGE), entries)


def framed(payload: bytes, magic: int = 0x184D2A5F, length: int | None = None) -> tuple[bytes, IndexLocation]:
    section = struct.pack("<II", magic, len(payload) if length is None else length) + payload
    return section, IndexLocation(200, 200 + len(section), digest_of(payload), True)


def test_the_bytes_are_those_of_the_format() -> None:
    first = hashlib.sha256(IMAGE[:CHUNK]).digest()
    head = "cde4ec67010000000050000000000000030000000120" + "00" * 10
    assert raw()[:80] == bytes.fromhex(head) + bytes(16) + first
    assert raw()[80:96] == struct.pack("<QQ", CHUNK, CHUNK)
    assert len(raw()) == 32 + 3 * 48


@given(st.integers(0, 50_000), st.integers(100, 20_000))
def test_round_trip(size: int, chunk_size: int) -> None:
    image = bytes(size)
    payload = build(io.BytesIO(image).read, chunk_size)
    index = parse(payload, at(payload, size))
    assert index is not None
    assert (index.size, len(index)) == (size, -(-size // chunk_size))
    position = 0
    for number in range(len(index)):
        chunk = index.chunk(number)
        assert (chunk.start, chunk.offset, chunk.stored) == (position, position, chunk.length)
        assert index.find(position) == index.find(position + chunk.length - 1) == number
        chunk.verify(image[position : position + chunk.length])
        position += chunk.length
    assert position == size


def test_verify() -> None:
    index = parse(raw(), at(raw()))
    assert index is not None
    last = index.chunk(2)
    assert (last.start, last.length) == (2 * CHUNK, 4096)
    with pytest.raises(ImageError, match="chunk at 16384 is corrupt"):
        last.verify(bytes(4096))
    with pytest.raises(ImageError, match="has 1 bytes instead of 4096"):
        last.verify(b"x")
    with pytest.raises(IndexError):
        index.chunk(3)
    for outside in (-1, len(IMAGE)):
        with pytest.raises(ValueError, match="within"):
            index.find(outside)


@pytest.mark.parametrize(("hashes", "size"), [("sha256", 32), ("sha512", 64), ("", 0)])
def test_the_hashes_that_there_are(hashes: str, size: int) -> None:
    payload = index_of(cut(IMAGE, CHUNK), hashes=hashes)
    index = parse(payload, at(payload))
    assert index is not None and index.hash_size == size
    for number in range(len(index)):
        chunk = index.chunk(number)
        good = IMAGE[chunk.start : chunk.start + chunk.length]
        chunk.verify(good)
        for changed in (0, len(good) // 2, len(good) - 1):
            bad = bytearray(good)
            bad[changed] ^= 1
            if hashes:
                with pytest.raises(ImageError, match="is corrupt"):
                    chunk.verify(bytes(bad))
            else:
                chunk.verify(bytes(bad))


def test_what_lies_between_image_and_index_is_in_no_chunk() -> None:
    index = parse(raw(), at(raw(), len(IMAGE) + 4096))
    assert index is not None and index.size == len(IMAGE)


def test_zstd_chunks_end_where_the_next_begins() -> None:
    index = parse(*framed(zstd(), magic=0x184D2A50))
    assert index is not None
    assert [index.chunk(n)[:4] for n in range(3)] == [(0, 8192, 0, 100), (8192, 8192, 100, 50), (16384, 4096, 150, 50)]
    index = parse(*framed(zstd((9, 100, 199))))  # something else lies at the beginning
    assert index is not None
    assert [index.chunk(n)[2:4] for n in range(3)] == [(9, 91), (100, 99), (199, 1)]


@pytest.mark.parametrize(("place", "value", "error"), [
    (0, b"\xcc", "does not start with the magic number"),
    (5, b"\x01", "compression is not the layer's"),
    (16, b"\x04\0\0\0", "4 chunks do not take its 176 bytes"),
    (16, b"\x02\0\0\0", "2 chunks do not take its 176 bytes"),
    (16, b"\xff\xff\xff\xff", "chunks do not take"),
    (20, b"\x00", "hashes have 32 bytes"),
    (21, b"\x00", "hashes have 0 bytes"),
    (21, b"\x14", "hashes have 20 bytes"),
    (21, b"\x30", "hashes have 48 bytes"),
    (21, b"\x40", "3 chunks do not take"),
    *((reserved, b"\x01", "reserved byte") for reserved in range(22, 32)),
    (8, b"\x00\x40\0\0\0\0\0\0", "do not cover the image"),  # ends before the last chunk
    (8, b"\x00\x50\x01\0\0\0\0\0", "lies within the image"),
    (40, b"\x01", "do not cover the image"),  # the first chunk does not begin at 0
    (88, b"\x00\0\0\0\0\0\0\0", "not in order"),
    (88, b"\x00\x40\0\0\0\0\0\0", "not in order"),  # equal to the next
    (80, b"\x01", "lies elsewhere in the blob"),
])  # fmt: skip
def test_corrupt(place: int, value: bytes, error: str) -> None:
    payload = bytearray(raw())
    payload[place : place + len(value)] = value
    with pytest.raises(ImageError, match=error):
        parse(bytes(payload), at(bytes(payload)))


@pytest.mark.parametrize("frame", [False, True])
@pytest.mark.parametrize(("offset", "value"), [(4, 0), (4, 2), (5, 2), (6, 1), (6, 0x80), (7, 1), (20, 2)])
def test_what_is_not_known_is_ignored(frame: bool, offset: int, value: int) -> None:
    """Whatever else is in it: who knows what that means there."""
    payload = bytearray(zstd() if frame else raw())
    payload[offset] = value
    for reserved in (0, 1):
        payload[22] = reserved
        section, where = framed(bytes(payload)) if frame else (bytes(payload), at(bytes(payload)))
        assert parse(section, where) is None


def test_the_digest_comes_first() -> None:
    where = at(raw())._replace(digest=digest_of(b""))
    with pytest.raises(ImageError, match="digest is not sha256:e3b0c442"):
        parse(raw(), where)
    sha512 = f"sha512:{hashlib.sha512(raw()).hexdigest()}"
    assert parse(raw(), at(raw())._replace(digest=sha512)) is not None


@pytest.mark.parametrize("payload", [b"", b"\xcd\xe4\xec\x67", bytes(31)])
def test_too_short(payload: bytes) -> None:
    with pytest.raises(ImageError, match="has only"):
        parse(payload, at(payload))
    with pytest.raises(ImageError, match="instead of 176"):
        parse(payload, at(raw()))


def test_no_chunks() -> None:
    empty = encode(chunk_index.NONE, 0, [])
    assert parse(empty, at(empty)) is not None
    nothing = encode(chunk_index.NONE, 4096, [])
    with pytest.raises(ImageError, match="no chunk holds its 4096 bytes"):
        parse(nothing, at(nothing))


@pytest.mark.parametrize(("section", "error"), [
    (framed(zstd(), magic=0x184D2A4F), "skippable frame"),
    (framed(zstd(), magic=0x184D2A60), "skippable frame"),
    (framed(zstd(), length=5), "skippable frame"),
    ((b"1234567", IndexLocation(200, 207, digest_of(b""), True)), "skippable frame"),
    (framed(zstd((0, 100, 100))), "not in order in the blob"),
    (framed(zstd((0, 100, 50))), "not in order in the blob"),
    (framed(zstd((0, 100, 200))), "not in order in the blob"),  # within the index itself
    (framed(raw()), "compression is not the layer's"),
])  # fmt: skip
def test_corrupt_zstd(section: tuple[bytes, IndexLocation], error: str) -> None:
    with pytest.raises(ImageError, match=error):
        parse(*section)


@given(st.binary(max_size=300), st.booleans())
def test_nothing_but_image_errors(data: bytes, frame: bool) -> None:
    where = IndexLocation(1000, 1000 + len(data), digest_of(data[8:] if frame else data), frame)
    try:
        parse(data, where)
    except ImageError as error:
        assert "\n" not in str(error)


@given(st.data())
def test_spoiled_ones_are_refused_or_sound(data: st.DataObject) -> None:
    payload = bytearray(raw())
    payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    try:
        index = parse(bytes(payload), at(bytes(payload)))
    except ImageError:
        return
    if index:
        chunks = [index.chunk(number) for number in range(len(index))]
        assert sum(chunk.length for chunk in chunks) == index.size <= len(IMAGE)


def test_place() -> None:
    digest = digest_of(raw())
    both = {chunk_index.RANGE: "4096:4272", chunk_index.DIGEST: digest}
    assert locate(both, 5000, False) == IndexLocation(4096, 4272, digest, False)
    assert locate({**both, chunk_index.RANGE: "4096"}, 5000, True) == IndexLocation(4096, 5000, digest, True)
    assert locate({**both, chunk_index.KIND: chunk_index.MEDIA_TYPE}, 5000, False) is not None
    assert locate({**both, chunk_index.KIND: "application/x"}, 5000, False) is None
    unknown = {"org.erofs.chunk-index.future": "x", "org.erofs.unheard": "x"}
    assert locate({**both, **unknown}, 5000, False) == locate(both, 5000, False)
    assert locate({**both, chunk_index.KIND: "application/x", chunk_index.RANGE: "x"}, 5000, False) is None
    assert locate({chunk_index.RANGE: "4096"}, 5000, False) is None  # what cannot be verified is not used
    assert locate({chunk_index.DIGEST: digest}, 5000, False) is None
    assert locate(unknown, 5000, False) is None


@pytest.mark.parametrize("text", ["", "x", "-1", "1:", ":5", "10:5", "5:5", "0:5001", "5000", "1:2:3", "9" * 30])
def test_a_place_that_is_none(text: str) -> None:
    with pytest.raises(ImageError, match=r"chunk-index\.range"):
        locate({chunk_index.RANGE: text, chunk_index.DIGEST: digest_of(b"")}, 5000, False)


def test_a_digest_that_is_none() -> None:
    with pytest.raises(ImageError, match="is not a sha256"):
        locate({chunk_index.RANGE: "1", chunk_index.DIGEST: "md5:0"}, 5000, False)


def test_annotations() -> None:
    said = chunk_index.describe(len(IMAGE), raw())
    where = locate(said, len(IMAGE) + len(raw()), False)
    assert where == at(raw())
    assert parse(raw(), where) is not None
