"""An OCI image layout in a tar archive, as podman, skopeo and buildx write it; read where it lies, not unpacked."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ..errors import ImageError, UsageError
from ..oci.archive import Archive
from ..oci.layout import blob_name, check_version, read_index
from ..oci.layout_index import choose
from ..oci.manifest import MAX_SIZE, Descriptor, verify_digest
from ..oci.raw_manifest import RawManifest
from .blobs import FileBlob

if TYPE_CHECKING:
    from ..oci.location import Location


class LayoutArchive:
    """The layout in an archive. Owns its file until close(). Any thread may read."""

    def __init__(self, location: Location) -> None:
        """Open the archive. Raises UsageError, ImageError, UnavailableError."""
        self.name = str(location)
        self._location = location
        self._archive: Archive | None = None
        with self._named():
            self._archive = Archive(location.path)
        try:
            with self._named():
                check_version(self._archive.read("oci-layout", 4096))
                self._index = read_index(self._archive.read("index.json", MAX_SIZE))
        except BaseException:
            self.close()
            raise

    def root(self) -> RawManifest:
        return self.document(choose(self._index.manifests, self._location))

    def document(self, entry: Descriptor) -> RawManifest:
        """Return a document. Raises ImageError."""
        with self._named():
            body = self._open.read(blob_name(entry.digest), MAX_SIZE)
            verify_digest(body, entry.digest)
        return RawManifest(body, entry.media_type, entry.digest)

    @contextlib.contextmanager
    def blob(self, entry: Descriptor, directory: str | None, progress: Callable[[int], None]) -> Iterator[str]:
        """As that of an Origin: a copy whose digest has been seen."""
        handle, path = tempfile.mkstemp(prefix="pyerofs-", dir=directory)
        try:
            with os.fdopen(handle, "wb") as copy, self._named():
                hasher = hashlib.new(entry.digest.partition(":")[0])
                for piece in self._open.pieces(*self._open.place(blob_name(entry.digest))):
                    copy.write(piece)
                    hasher.update(piece)
                    progress(copy.tell())
                if hasher.hexdigest() != entry.digest.partition(":")[2] or copy.tell() != entry.size:
                    raise ImageError(f"its {blob_name(entry.digest)} is corrupt: its digest is not the one in its name")
            yield path
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def file_blob(self, digest: str, size: int, log: Callable[[str], None] | None = None) -> FileBlob:
        """Return the blob, to be read in place: nothing of this object is needed for that.

        Raises UsageError, ImageError.
        """
        if not self._open.path:
            raise UsageError(
                f"{self.name}: its layers cannot be read in place, since the archive is compressed or a pipe: "
                "unpack it into a plain file, or into a directory for oci:DIR"
            )
        with self._named():
            at, length = self._open.place(blob_name(digest))
            if length != size:
                raise ImageError(f"its {blob_name(digest)} has {length} bytes instead of {size}")
        return FileBlob(self._open.path, digest, size, at, self._open.size)

    def close(self) -> None:
        if self._archive:
            self._archive.close()

    @property
    def _open(self) -> Archive:
        assert self._archive is not None  # noqa: S101 - from __init__() on
        return self._archive

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except ImageError as error:
            raise ImageError(f"{self._location.path}: {error}") from None
