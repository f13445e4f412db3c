"""Random blobs in a FakeRegistry, opened through the whole of cache, fetch threads and C core; no image, no mount."""

from __future__ import annotations

import random
from pathlib import Path

from fakeregistry import FakeRegistry
from images import FakePusher, Layer, push_image

from pyerofs.blobfile import BlobFile, open_blob


class Rig:
    """`log` has what a person would be told."""

    def __init__(self, fake: FakeRegistry, directory: Path):
        self.fake = fake
        self.cache = directory / "cache"
        self.log: list[str] = []

    def publish(self, size: int, seed: int = 1) -> tuple[str, bytes]:
        """The reference of an image whose layer is so many random bytes, and those bytes."""
        data = random.Random(seed).randbytes(size)
        push_image(FakePusher(self.fake), "app", str(seed), [Layer(data)])
        return f"{self.fake.host}/app:{seed}", data

    def open(self, reference: str, options: str = "oci=0") -> BlobFile:
        return open_blob(reference, [options, f"oci.cache={self.cache}"], log=self.log.append)

    def entry(self, data: bytes) -> Path:
        """The directory of a blob in the cache."""
        return self.cache / "sha256" / Layer(data).digest.removeprefix("sha256:")

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """First and last byte of each request for a blob so far."""
        asked = [seen.headers["range"].removeprefix("bytes=").split("-") for seen in self.fake.requests("/blobs/")]
        return [(int(first), int(last)) for first, last in asked]
