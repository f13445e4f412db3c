"""What a mount leaves that was made by an older version: record, cache and image, as c867e45 has written them.

c867e45.tar.xz was made by that version in the guest: `mount -t erofs.nbd -o oci=0` of an image at a registry on
loopback, one file read; the record was copied then, the cache after the unmount. Of the record only PATH and the
directory of the caller have been changed.
"""

from __future__ import annotations

import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ARCHIVE = Path(__file__).with_name("c867e45.tar.xz")


@dataclass(frozen=True)
class OlderMount:
    """`record`: the record's members; `cache`: a directory; `image`: a file, of which the cache has `present` bytes."""

    record: dict[str, Any]
    cache: Path
    image: Path
    present: int = 128 << 10

    @property
    def absent(self) -> int:
        return self.image.stat().st_size - self.present


def unpack(directory: Path) -> OlderMount:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(directory, filter="data")
    return OlderMount(json.loads((directory / "record.json").read_text()), directory / "cache", directory / "image")
