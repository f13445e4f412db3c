"""Layers read by the spans of their zTOCs: any range, checked by what is stored; what is wrong never goes on."""

from __future__ import annotations

import json
import random
import zlib

import pytest

from pyerofs.erofs.chunk_map import ChunkMap
from pyerofs.erofs.layer import Layer
from pyerofs.erofs.toc_layer import map_layer
from pyerofs.errors import CorruptError
from pyerofs.source.mapped import MappedSource
from pyerofs.tar.reader import FILE
from pyerofs.tar.toc.ztoc import read_ztoc
from tests.source.test_chunked import FakeBlob, Transport
from tests.source.test_mapped import Mapped, contents, read, read_all
from tests.support.lazyimages import EVERYTHING
from tests.support.ordinary import file
from tests.support.tarballs import archive
from tests.support.ztocs import make_ztoc

KIB = 1024


def packed(tar: bytes, level: int = 6) -> bytes:
    """A gzip stream of two members, in small blocks."""
    found = b""
    for part in (tar[: len(tar) // 3], tar[len(tar) // 3 :]):
        made = zlib.compressobj(level, zlib.DEFLATED, 31, 2)
        found += made.compress(part) + made.flush()
    return found


def mapped(blob: bytes, spacing: int, served: bytes | None = None, prefetch: bytes = b"") -> Mapped:
    toc = read_ztoc(make_ztoc(blob, spacing)[0], len(blob), prefetch)
    made = map_layer(toc, len(blob))
    fake = FakeBlob(blob if served is None else served)
    where = Layer(0, "sha256:" + "0" * 64, len(blob), map="sha256:" + "1" * 64)
    parts = (fake, Transport(), ChunkMap(made.chunk_map))
    source = MappedSource("app:1", where, *parts)  # type: ignore[arg-type]  # fakes of a blob and its connections
    return Mapped(made.table, source, fake)


@pytest.mark.parametrize(("level", "step"), [(0, 128 * KIB), (6, 4 * KIB), (6, 8192 * KIB)])
def test_a_device_has_what_the_archive_has(level: int, step: int) -> None:
    blob = packed(EVERYTHING, level)
    _, _, entries, wanted = make_ztoc(blob, 64 * KIB)
    found = mapped(blob, 64 * KIB)
    assert found.chunks.units > 4
    files = zip(entries, wanted, strict=True)
    assert contents(found.table, read_all(found, step)) == {e.name: data for e, data in files if e.kind == FILE}


def test_a_device_of_an_archive_that_is_not_compressed() -> None:
    _, _, entries, wanted = make_ztoc(EVERYTHING, 64 * KIB)
    found = mapped(EVERYTHING, 64 * KIB)
    files = zip(entries, wanted, strict=True)
    assert contents(found.table, read_all(found)) == {e.name: data for e, data in files if e.kind == FILE}


def test_a_device_is_read_from_anywhere() -> None:
    blob = packed(EVERYTHING)
    found = mapped(blob, 32 * KIB)
    device = read_all(found)
    chance = random.Random(4)
    for _ in range(60):
        offset = chance.randrange(len(device))
        data = read(found, offset, chance.randrange(1, len(device) - offset + 1)).data
        assert data and device[offset : offset + len(data)] == data


def test_one_request_brings_many_spans() -> None:
    blob = packed(archive(file("one", random.Random(1).randbytes(500 * KIB))))
    found = mapped(blob, 32 * KIB)
    assert found.chunks.units > 8
    read(found, 0, found.chunks.size)
    assert len(found.blob.asked) == 1


def test_flipped_byte_is_an_error_or_changes_nothing() -> None:
    """Every byte of a small layer."""
    blob = packed(archive(file("one", random.Random(1).randbytes(700)), file("two", b"2" * 900)))
    device = read_all(mapped(blob, 512))
    errors = 0
    for at in range(len(blob)):
        served = bytearray(blob)
        served[at] ^= 1 << at % 8
        found = mapped(blob, 512, served=bytes(served))
        try:
            assert read_all(found) == device
        except CorruptError:
            errors += 1
    assert errors > len(blob) - 100  # all but headers, and spans without content of files


def test_prefetch_artifact_becomes_what_a_start_reads() -> None:
    """Parts of the device that lie in the spans it names, the most urgent first; each costs these spans alone."""
    blob = packed(archive(*(file(f"f{n}", random.Random(n).randbytes(40 * KIB)) for n in range(12))))
    spans = make_ztoc(blob, 64 * KIB)[1].spans
    wish = {"version": "1.0", "prefetch_spans": [{"start_span": 3, "end_span": 4}, {"start_span": 1, "end_span": 1}]}
    found = mapped(blob, 64 * KIB, prefetch=json.dumps(wish).encode())
    hot = found.source.storage.hot
    assert len(hot) == 2 and hot[0][0] < hot[1][0]
    for (offset, length), (first, last) in zip(hot, ((1, 1), (3, 4)), strict=True):
        read(found, offset, length)
        end = spans[last + 1].offset + (spans[last + 1].bits > 0)
        offset, length = found.blob.asked[-1]
        assert offset == spans[first].offset and offset + length <= end
    assert mapped(blob, 64 * KIB).source.storage.hot == ()
