"""The stream in a layer's blob, by what it is; its digest is of all that is in it."""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import random
import sys
from collections.abc import Callable

import pytest
import zstandard

from pyerofs.errors import ImageError, UnavailableError
from pyerofs.tar.allowance import Allowance
from pyerofs.tar.decompress import LayerStream

DATA = random.Random(9).randbytes(700_000) + bytes(3_000_000)
SKIPPED = b"\x50\x2a\x4d\x18\x04\0\0\0skip"


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


@pytest.mark.parametrize(("blob", "content"), [
    (DATA, DATA), (b"", b""), (b"x", b"x"),
    (gzip.compress(DATA), DATA), (gzip.compress(b""), b""),
    (gzip.compress(DATA) + gzip.compress(b"more") + bytes(600_000), DATA + b"more"),
    (zstd(DATA), DATA), (zstd(DATA) + SKIPPED + zstd(b"more"), DATA + b"more"), (SKIPPED + zstd(b"more"), b"more"),
], ids=range(9))  # fmt: skip
@pytest.mark.parametrize("count", [511, 1 << 20])
def test_content(blob: bytes, content: bytes, count: int) -> None:
    stream = LayerStream(io.BytesIO(blob))
    assert stream.read(10) == content[:10]
    rest = b"".join(iter(lambda: stream.read(count), b""))
    assert content[:10] + rest == content
    assert stream.finish() == f"sha256:{hashlib.sha256(content).hexdigest()}"


@pytest.mark.parametrize("blob", [DATA, gzip.compress(DATA), zstd(DATA)])
def test_the_digest_counts_what_nobody_read(blob: bytes) -> None:
    assert LayerStream(io.BytesIO(blob)).finish() == f"sha256:{hashlib.sha256(DATA).hexdigest()}"


@pytest.mark.parametrize(("blob", "error"), [
    (gzip.compress(DATA)[:-5], "gzip stream is cut short"),
    (gzip.compress(DATA)[:5000], "gzip stream is cut short"),
    (gzip.compress(DATA)[:-8] + b"12345678", "gzip stream is corrupt"),
    (gzip.compress(DATA) + b"junk", "followed by something else"),
    (b"\x1f\x8bnot really", "gzip stream is corrupt"),
    (zstd(DATA)[:50_000] + b"\xff" * 500_000, "zstd stream is corrupt"),
    (zstd(DATA)[:-1], "zstd stream is cut short"),
    (zstd(DATA)[:5000], "zstd stream is cut short"),
    (zstd(DATA) + SKIPPED[:-1], "zstd stream is cut short"),
    (zstd(DATA) + zstd(DATA)[:9], "zstd stream is cut short"),
    (lzma.compress(DATA)[:300], "compressed with xz"),
    (zstd(DATA) + b"junkjunk", "zstd stream is corrupt"),
    (lzma.compress(DATA), "compressed with xz"),
    (b"BZh91AY", "compressed with bzip2"),
])  # fmt: skip
def test_unsound(blob: bytes, error: str) -> None:
    with pytest.raises(ImageError, match=error):
        LayerStream(io.BytesIO(blob)).finish()


def test_without_zstandard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(UnavailableError, match="pip install zstandard"):
        LayerStream(io.BytesIO(zstd(DATA))).read(1)
    assert LayerStream(io.BytesIO(gzip.compress(DATA))).read(1)


FRAMES = [
    zstandard.ZstdCompressor(level=level, write_checksum=checksum, write_content_size=size)
    for level in (1, 19) for checksum in (False, True) for size in (False, True)
]  # fmt: skip


@pytest.mark.parametrize("data", [b"", b"x", b"y" * 300, DATA, bytes(5_000_000)], ids=len)
@pytest.mark.parametrize("compressor", FRAMES, ids=range(len(FRAMES)))
def test_every_kind_of_frame_ends_where_it_ends(compressor: zstandard.ZstdCompressor, data: bytes) -> None:
    frame = compressor.compress(data)
    assert LayerStream(io.BytesIO(frame + frame)).finish() == f"sha256:{hashlib.sha256(data + data).hexdigest()}"
    with pytest.raises(ImageError, match="cut short"):
        LayerStream(io.BytesIO(frame + frame[:-1])).finish()


def test_the_digest_of_another_algorithm() -> None:
    assert LayerStream(io.BytesIO(zstd(DATA)), "sha512").finish() == f"sha512:{hashlib.sha512(DATA).hexdigest()}"


@pytest.mark.parametrize("pack", [gzip.compress, zstd, bytes])
def test_a_stream_that_is_larger_than_it_may_be(pack: Callable[[bytes], bytes]) -> None:
    assert LayerStream(io.BytesIO(pack(DATA)), allowance=Allowance(0, len(DATA))).finish()
    with pytest.raises(ImageError, match=r"decompresses to is more than 3.5 MiB.*-o oci.unpacked_max=SIZE"):
        LayerStream(io.BytesIO(pack(DATA)), allowance=Allowance(0, len(DATA) - 1)).finish()
