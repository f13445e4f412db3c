"""zTOCs: what is written is read again, by every span; what is not exact, or not in bounds, is refused."""

from __future__ import annotations

import gzip
import itertools
import json
import random
import struct
import tarfile
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyerofs.errors import ImageError
from pyerofs.tar.toc import ztoc
from pyerofs.tar.toc.flatbuffer import FlatBuffer
from pyerofs.tar.toc.model import TocError
from pyerofs.tar.toc.spans import SpanTable
from pyerofs.tar.toc.ztoc import read_ztoc, unpack_ztoc
from pyerofs.tar.toc.ztoc_writer import compress, write_ztoc
from tests.support.tarballs import archive, info
from tests.support.ztocs import assert_sound, make_ztoc, read_all, record

KIB = 1024


def layer(seed: int = 0, files: int = 12, most: int = 90 * KIB) -> bytes:
    """An archive with entries of every type, and contents that deflate finds something in."""
    rng = random.Random(seed)
    words = [rng.randbytes(rng.randrange(1, 60)) for _ in range(3000)]
    members: list[tuple[tarfile.TarInfo, bytes]] = [(info("d/", type=tarfile.DIRTYPE, mode=0o1777), b"")]
    for number in range(files):
        size = rng.randrange(most) if number % 2 else rng.choice([0, 1, 511, 512, 513])
        content = b"".join(rng.choices(words, k=size // 20 + 1))[:size]
        if number % 5 == 4:
            content = bytes(len(content))
        attributes = {"SCHILY.xattr.user.n": f"v{number}", "comment": "not an attribute"} if number % 3 == 0 else {}
        name = f"d/{number}-\udcff\u00e4" if number % 4 == 1 else f"d/{number}"
        made = info(
            name, mtime=rng.choice([0, -1.5, 1e9 + 0.123456789, 2**33]), mode=rng.randrange(0o10000), uid=number
        )
        made.pax_headers = attributes
        members.append((made, content))
    members += [
        (info("d/hard", type=tarfile.LNKTYPE, linkname="d/0"), b""),
        (info("d/soft", type=tarfile.SYMTYPE, linkname="../anywhere \udcfe", mode=0o777), b""),
        (info("d/char", type=tarfile.CHRTYPE, devmajor=4095, devminor=1048575), b""),
        (info("d/block", type=tarfile.BLKTYPE, devmajor=8, devminor=1), b""),
        (info("d/fifo", type=tarfile.FIFOTYPE, uid=2**32 - 2, gid=2**32 - 2), b""),
        (info("d/0", mtime=5), b"the same name once more"),
        (info("d/.wh.gone"), b""),
    ]
    return archive(*members)


def members(plain: bytes, cuts: list[int], levels: list[int]) -> bytes:
    """A gzip stream of many small blocks."""
    edges = [0, *sorted(cut % (len(plain) + 1) for cut in cuts), len(plain)]
    found = b""
    for number, (begin, end) in enumerate(itertools.pairwise(edges)):
        made = zlib.compressobj(levels[number % len(levels)], zlib.DEFLATED, 31, 1)
        found += made.compress(plain[begin:end]) + made.flush()
    return found


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32), st.lists(st.integers(0, 2**20), max_size=4), st.lists(st.integers(0, 9), min_size=1),
    st.integers(1, 200 * KIB), st.integers(0, 2000),
)  # fmt: skip
def test_every_file_comes_from_its_spans(
    seed: int, cuts: list[int], levels: list[int], spacing: int, padding: int
) -> None:
    blob = members(layer(seed), cuts, levels) + bytes(padding)
    data, table, entries, contents = make_ztoc(blob, spacing)
    toc = read_ztoc(data, len(blob))
    assert read_all(toc, blob) == (entries, contents)
    assert (toc.units.codec, toc.units.digest_of) == ("span", "stored")
    assert len(toc.units) <= len(table.spans) <= 1 + len(layer(seed)) // spacing + len(cuts) + 1
    assert SpanTable.from_bytes(table.to_bytes()) == table


@pytest.mark.parametrize("spacing", [512, 4096, 100_000, 1 << 30])
def test_archive_that_is_not_compressed(spacing: int) -> None:
    blob = layer()
    data, _, entries, contents = make_ztoc(blob, spacing)
    toc = read_ztoc(data, len(blob))
    assert toc.units.codec == "none"
    if spacing < 1 << 30:
        assert len(toc.units) == -(-len(blob) // spacing)
    assert read_all(toc, blob) == (entries, contents)


def test_ztoc_is_the_same_each_time_and_compresses_well() -> None:
    blob = members(layer(), [300 * KIB], [6])
    data = make_ztoc(blob, 32 * KIB)[0]
    assert make_ztoc(blob, 32 * KIB)[0] == data
    packed = compress(data)
    assert packed == compress(data) and len(packed) < len(data) / 4
    assert unpack_ztoc(packed) == unpack_ztoc(data) == data


@pytest.mark.parametrize("broken", ["cut", "flipped", "behind"])
def test_compressed_ztoc_that_is_damaged(broken: str) -> None:
    packed = bytearray(compress(make_ztoc(members(layer(), [], [6]), 32 * KIB)[0]))
    if broken == "cut":
        del packed[-9:]
    else:
        packed[-7 if broken == "flipped" else 12] ^= 0xFF
    with pytest.raises(TocError):
        unpack_ztoc(bytes(packed))


def first_version(data: bytes) -> bytes:
    """The same zTOC with a zinfo of version 1, which has no first checkpoint."""
    head = struct.pack("<iq", *struct.unpack_from("<iq", data, at := data.index(state_of(data))))
    cut = state_of(data)[:12] + state_of(data)[12 + ztoc.CHECKPOINT.size :]
    assert head == cut[:12]
    found = data[:at] + cut + bytes(ztoc.CHECKPOINT.size) + data[at + len(state_of(data)) :]
    return found[: at - 4] + struct.pack("<I", len(cut)) + found[at:]


def state_of(data: bytes) -> bytes:
    buffer = FlatBuffer(data)
    return buffer.string(buffer.table(buffer.table(buffer.root(), ztoc.ZTOC)[5], ztoc.COMPRESSION)[3])


def test_checkpoints_of_the_first_version() -> None:
    blob = members(layer(), [], [6])
    data, _, entries, contents = make_ztoc(blob, 32 * KIB)
    toc = read_ztoc(first_version(data), len(blob))
    assert read_all(toc, blob) == (entries, contents)


@pytest.mark.parametrize("form", ["--format=gnu", "--format=pax", "--sparse-version=0.0", "--sparse-version=0.1"])
def test_sparse_file_is_not_told_by_a_ztoc(form: str) -> None:
    """Neither written, nor believed: its size is not that of what lies in the archive."""
    sparse = tarfile.TarInfo("sparse")
    sparse.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "1024"}
    blob = gzip.compress(archive((sparse, b"1\n512\n512\n".ljust(512, b"\0") + b"x" * 512), (info("next"), b"n")))
    spans, entries, _ = record(blob, 32 * KIB)
    assert spans.finish() is None and spans.sparse
    spans.sparse = False
    table = spans.finish()
    assert table is not None
    entries[0] = entries[0]._replace(xattrs={b"a": b"b"})
    data = write_ztoc(table, entries).replace(b"SCHILY.xattr.a\0", b"GNU.sparse.maj\0")
    with pytest.raises(TocError, match="sparse"):
        list(read_ztoc(data, len(blob)).entries)


def test_content_that_reaches_into_the_next_entry_is_refused() -> None:
    """As SOCI's own tool has it of a sparse file: it states more bytes than there are."""
    blob = gzip.compress(archive((info("a"), b"x" * 512), (info("b"), b"y" * 600)))
    _, table, entries, _ = make_ztoc(blob, 32 * KIB)
    for size in (513, 1024, 5000, 2**62):
        larger = [entries[0]._replace(size=size), entries[1]]
        with pytest.raises(TocError, match=r"places in the archive do not fit: 'a'|do not fit: 'b'"):
            list(read_ztoc(write_ztoc(table, larger), len(blob)).entries)
    past = [entries[0], entries[1]._replace(size=100_000)]
    with pytest.raises(TocError, match="do not fit: 'b'"):
        list(read_ztoc(write_ztoc(table, past), len(blob)).entries)


def test_spans_that_cannot_be_are_refused() -> None:
    blob = members(layer(), [], [6])
    _, table, entries, _ = make_ztoc(blob, 32 * KIB)
    spans = table.spans
    assert len(spans) > 4
    swapped = [*spans[:2], spans[3], spans[2], *spans[4:]]
    late = [spans[0]._replace(plain=5), *spans[1:]]
    outside = [*spans[:-1], spans[-1]._replace(offset=len(blob))]
    back = [*spans[:2], spans[2]._replace(plain=spans[1].plain - 1), *spans[3:]]
    for bad in (swapped, late, outside, back):
        with pytest.raises(TocError, match="spans do not"):
            read_ztoc(write_ztoc(table._replace(spans=bad), entries), len(blob))
    with pytest.raises(TocError, match="checkpoint that cannot be"):
        read_ztoc(
            write_ztoc(table._replace(spans=[*spans[:2], spans[2]._replace(bits=9), *spans[3:]]), entries), len(blob)
        )
    with pytest.raises(TocError, match=f"of a layer of {len(blob)} bytes, not of 7"):
        read_ztoc(write_ztoc(table, entries), 7)
    with pytest.raises(TocError, match="at most 33554432"):
        read_ztoc(
            write_ztoc(table._replace(spans=spans[:1], digests=table.digests[:32], archive=1 << 40), entries), len(blob)
        )


def test_digest_that_is_none_is_refused() -> None:
    blob = members(layer(), [], [6])
    data = make_ztoc(blob, 32 * KIB)[0]
    with pytest.raises(TocError, match="SHA-256"):
        read_ztoc(data.replace(b"sha256:", b"sha512:", 1), len(blob))


@pytest.mark.parametrize("mtime", [2**68, -(2**68), -62135596800 * 10**9])
def test_time_that_the_format_cannot_tell_is_refused(mtime: int) -> None:
    _, table, entries, _ = make_ztoc(gzip.compress(archive((info("a"), b"x"))), 32 * KIB)
    with pytest.raises(ImageError, match="time of a file"):
        write_ztoc(table, [entries[0]._replace(mtime=mtime)])


def artifact(*spans: dict[str, object]) -> bytes:
    return json.dumps({"version": "1.0", "prefetch_spans": spans}).encode()


def test_prefetch_artifact_names_parts_of_the_blob() -> None:
    """By their priority, smaller first; what is no span, or no such artifact, is no wish."""
    blob = members(layer(), [], [6])
    data, table, _, _ = make_ztoc(blob, 32 * KIB)
    last = len(table.spans) - 1
    wish = artifact(
        {"start_span": 2, "end_span": 2, "priority": 1}, {"start_span": 0, "end_span": 1},
        {"start_span": last, "end_span": last + 7}, {"start_span": last + 1, "end_span": last + 2},
    )  # fmt: skip
    second = table.spans[2]
    assert read_ztoc(data, len(blob), wish).prefetch == [
        (table.spans[0].offset, second.offset + (second.bits > 0)),
        (table.spans[last].offset, len(blob)),
        (second.offset, table.spans[3].offset + (table.spans[3].bits > 0)),
    ]
    for other in (b"", b"[]", b"{", b'{"version":"2.0"}', artifact({"start_span": 0}), artifact({"start_span": "a"})):
        assert read_ztoc(data, len(blob), other).prefetch == []
    assert read_ztoc(data, len(blob), artifact({"start_span": 0, "end_span": True})).prefetch == []


def test_ztoc_that_is_damaged_is_refused_or_read_in_bounds() -> None:
    """Whatever is flipped: TocError, or entries whose pieces lie in their units."""
    blob = members(layer(files=6, most=9000), [], [6])
    data = make_ztoc(blob, 1 << 30)[0]
    edge = data.index(state_of(data))
    places = [*range(edge), *range(edge + len(state_of(data)), len(data))]
    rng = random.Random(4)
    good = 0
    for place in [*places, *rng.choices(range(edge, edge + 60), k=60)]:
        broken = bytearray(data)
        broken[place] ^= 1 << rng.randrange(8)
        try:
            toc = read_ztoc(bytes(broken), len(blob))
            assert_sound(toc, list(toc.entries), len(blob))
            good += 1
        except TocError as error:
            assert "\n" not in str(error)
    assert good
