"""Random blobs in a FakeRegistry, opened through the whole of cache, fetch threads and C core; no image, no mount."""

from __future__ import annotations

import random
import re
from pathlib import Path

from pyerofs.erofs.layer import Layer as Described
from pyerofs.export.file import BlobFile, open_blob
from tests.support.fakeregistry import FakeRegistry
from tests.support.images import FakePusher, Layer, push_image
from tests.support.scene import until


def wrong(data: bytes) -> bytes:
    """As many other bytes."""
    return bytes(byte ^ 0xFF for byte in data)


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

    def push(self, *layers: Layer, tag: str = "1") -> str:
        """The reference of an image of these layers."""
        push_image(FakePusher(self.fake), "app", tag, layers)
        return f"{self.fake.host}/app:{tag}"

    def spoil(self, layer: Layer, *places: int) -> None:
        """From now on the registry has a wrong byte at each of these places."""
        data = bytearray(layer.data)
        for at in places:
            data[at] ^= 0x10
        self.fake.blobs[layer.digest] = bytes(data)

    def read(self, reference: str, options: str = "oci=0") -> bytes:
        """All of it."""
        with self.open(reference, options) as blob:
            return blob.read()

    def verified(self, reference: str) -> bytes:
        """All of it, when it has been verified."""
        with self.open(reference) as blob:
            data = blob.read()
            until(lambda: blob._export.verification == "verified", "verified")
        return data

    @property
    def entries(self) -> list[str]:
        """The cache's entries, as KIND/HEX."""
        return sorted(str(path.relative_to(self.cache).parent) for path in self.cache.glob("*/*/data"))

    @property
    def blobs(self) -> list[str]:
        """The same without whose they are."""
        return [re.split("[@=]", entry)[0] for entry in self.entries]

    def check_log(self) -> None:
        """One line for each thing, none of them a bug's."""
        assert not [line for line in self.log if re.search(r"\n|Traceback|internal", line)]

    def open(self, reference: str, options: str = "oci=0") -> BlobFile:
        return open_blob(reference, [options, f"oci.cache={self.cache}"], log=self.log.append)

    def entry(self, data: bytes) -> Path:
        """The directory of a blob in the cache: everybody's, or else its giver's."""
        return self.place(Layer(data).digest)

    def place(self, digest: str) -> Path:
        """The same by its digest."""
        everybodys = self.cache / "sha256" / digest.removeprefix("sha256:")
        return everybodys if everybodys.exists() else next(everybodys.parent.glob(f"{everybodys.name}@*"), everybodys)

    def give_back(self, data: bytes) -> Path:
        """A blob's directory in the cache, as if nobody had got so far as to hash it: its giver's again."""
        path = self.entry(data)
        if "@" not in path.name:
            key = Described(0, Layer(data).digest, len(data)).given_key(f"{self.fake.host}/app")
            path = path.rename(path.with_name(key.removeprefix("sha256:")))
        for name in ("verified", "hashes"):
            (path / name).unlink(missing_ok=True)
        return path

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """First and last byte of each request for a range of a blob so far."""
        texts = [seen.headers.get("range", "") for seen in self.fake.requests("/blobs/")]
        asked = [text.removeprefix("bytes=").split("-") for text in texts if text]
        return [(int(first), int(last)) for first, last in asked]
