"""Files of the cache."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

from pyerofs.cache.files import read_file


def test_a_file_is_read_up_to_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert [read_file(str(path), most) for most in (0, 3, 5, 100)] == [b"", b"123", b"12345", b"12345"]


def test_a_file_is_read_with_memory_for_what_is_in_it(tmp_path: Path) -> None:
    """However much would be taken: a machine may have less than that."""
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    tracemalloc.start()
    try:
        read_file(str(path), 1 << 30)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20
