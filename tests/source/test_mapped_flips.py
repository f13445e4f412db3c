"""Every byte of small layers with a TOC, changed at the registry: the layer is read whole, or a read fails, or the
bytes are right. tests/system/test_lazy_images.py does it with a mount."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pyerofs.errors import CorruptError
from pyerofs.tar.toc.model import TocError
from tests.source.test_chunked import Sink
from tests.source.test_mapped import MADE, Mapped, contents, mapped, read_all
from tests.support.lazyimages import LazyLayer
from tests.support.ordinary import directory, file, symlink
from tests.support.tarballs import archive

TAR = archive(
    directory("d", mode=0o700), file("d/one", b"some text " * 30), file("d/empty"), symlink("d/link", "one"),
    file("d/zeros", bytes(2000) + b"end"), file("d/two", b"two" * 100),
)  # fmt: skip


def with_errors(found: Mapped, device: bytes) -> tuple[bytes, int]:
    """What the device gives, of `device` where a read fails; and how many failed."""
    given = bytearray()
    failed = 0
    while len(given) < len(device):
        sink = Sink(len(given))
        try:
            found.source.read_range(len(given), len(device) - len(given), sink, whole=sink.whole, cancel=lambda: False)
        except CorruptError as error:
            assert error.end is not None and error.end > sink.at
            given += sink.data
            given += device[sink.at : error.end]
            failed += 1
            continue
        given += sink.data
    return bytes(given), failed


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_no_byte_is_served_wrong(make: Callable[[bytes], LazyLayer]) -> None:
    layer = make(TAR)
    right = mapped(layer)
    device = read_all(right)
    entries = list(right.table.entries(right.table.contents, 0))
    refused = failed = 0
    for at in range(len(layer.blob)):
        blob = bytearray(layer.blob)
        blob[at] ^= 1 << at % 8
        try:
            found = mapped(layer._replace(blob=bytes(blob)))
        except TocError:
            refused += 1
            continue
        given, errors = with_errors(found, device)
        failed += errors > 0
        assert given == device
        assert list(found.table.entries(found.table.contents, 0)) == entries
    assert refused > 100 and failed > 30  # the TOC, and the contents


def test_a_file_is_what_it_was() -> None:
    """What the loop above compares is what the archive holds."""
    for make in MADE.values():
        found = mapped(make(TAR))
        assert contents(found.table, read_all(found))[b"d/one"] == b"some text " * 30
