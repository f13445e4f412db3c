"""Whole images from one place to another, unchanged: every platform, every byte, every digest."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Protocol

from ..errors import ImageError
from ..oci.manifest import INDEX_DEPTH, Descriptor, Index, Manifest, parse, select
from ..oci.platforms import Platform
from ..oci.raw_manifest import RawManifest
from ..source.image_reader import ImageReader, RegistryReader
from ..source.layer_blob import streams_of
from .writer import CopyWriter, RegistryWriter

STREAMS = 8  # blobs that are copied at the same time


class Meter(Protocol):
    """Shows the progress of a copy. For any number of threads."""

    def update(self, what: str, done: int, total: int) -> None: ...

    def done(self, what: str, size: int, how: str) -> None: ...


def copy_image(origin: ImageReader, target: CopyWriter, platform: Platform | None, meter: Meter) -> str:
    """Copy an image with all its platforms, or what it has for one of them; return the digest of its root.

    Raises RegistryError, ImageError, UsageError. What has been copied before that stays, without a tag.
    """
    root = origin.root()
    try:
        if platform:
            root = choose(origin, root, platform)
        _Copy(origin, target, meter).run(root)
    except ImageError as error:
        raise ImageError(f"{origin.name}: {error}") from None
    return root.digest


def copy_document(origin: ImageReader, target: CopyWriter, document: RawManifest, meter: Meter) -> None:
    """Copy one document with all that it names, without a tag. Raises RegistryError, ImageError, UsageError."""
    _Copy(origin, target, meter).run(document, root=False)


def choose(origin: ImageReader, root: RawManifest, platform: Platform) -> RawManifest:
    """Return the manifest for a platform. Raises ImageError."""
    for _ in range(INDEX_DEPTH):
        found = parse(root.body, root.media_type)
        if isinstance(found, Manifest):
            return root
        root = origin.document(select(found, platform))
    raise ImageError(f"its indexes are nested more than {INDEX_DEPTH} deep")


class _Copy:
    """Blobs are copied several at once; documents follow when all that they name is there."""

    def __init__(self, origin: ImageReader, target: CopyWriter, meter: Meter) -> None:
        self._origin = origin
        self._target = target
        self._meter = meter
        self._seen: set[str] = set()
        self._blobs: list[Descriptor] = []
        self._documents: list[RawManifest] = []

    def run(self, document: RawManifest, *, root: bool = True) -> None:
        self._parts(document, INDEX_DEPTH)
        self._copy_blobs()
        for inner in self._documents:
            self._target.add_document(inner, root=False)
        self._target.add_document(document, root=root)

    def _parts(self, document: RawManifest, depth: int) -> None:
        found = parse(document.body, document.media_type)
        if isinstance(found, Index):
            if not depth:
                raise ImageError(f"its indexes are nested more than {INDEX_DEPTH} deep")
            for entry in found.manifests:
                self._document(entry, depth - 1)
            return
        for blob in (*((found.config,) if found.config else ()), *found.layers):
            if blob.digest not in self._seen:
                self._seen.add(blob.digest)
                self._blobs.append(blob)

    def _document(self, entry: Descriptor, depth: int) -> None:
        if entry.digest in self._seen:
            return
        self._seen.add(entry.digest)
        document = self._origin.document(entry)
        if self._target.has_document(document):
            self._meter.done(f"manifest {short_digest(entry.digest)}", len(document.body), "already there")
            return
        self._parts(document, depth)
        self._documents.append(document)

    def _copy_blobs(self) -> None:
        threads = streams_of(self._origin, STREAMS)
        with ThreadPoolExecutor(max_workers=threads, thread_name_prefix="pyerofs-copy") as pool:
            futures = [pool.submit(self._blob, blob) for blob in self._blobs]
            try:
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
            except BaseException:
                for future in futures:
                    future.cancel()
                for end in (self._origin, self._target):
                    if isinstance(end, (RegistryReader, RegistryWriter)):
                        end.give_up()
                raise

    def _blob(self, entry: Descriptor) -> None:
        what = f"blob {short_digest(entry.digest)}"
        how = self._target.add(entry, self._origin, meter(self._meter, what, entry.size))
        self._meter.done(what, entry.size, how)


def meter(shown: Meter, what: str, total: int) -> Callable[[int], None]:
    """How far one thing is."""
    return lambda done: shown.update(what, done, total)


def short_digest(digest: str) -> str:
    """Enough of a digest to tell blobs apart."""
    algorithm, _, value = digest.partition(":")
    return f"{algorithm}:{value[:12]}"
