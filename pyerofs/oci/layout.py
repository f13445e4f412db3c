"""An OCI image layout: a directory with images (OCI image spec, "Image Layout").

What appears in it appears whole: a blob after its digest has been seen, a tag when all that it names is there. Several
processes may write to one. Paths of blobs are the layout's: what they name does not change.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

from ..errors import ImageError, UnavailableError, UsageError
from ..files import atomic_write, regular
from .layout_index import choose
from .location import Location
from .manifest import MAX_SIZE, OCI_INDEX, Descriptor, Index, parse, verify_digest
from .raw_manifest import REF_NAME, RawManifest, dump

_VERSION = {"imageLayoutVersion": "1.0.0"}
_PIECE = 1 << 20  # bytes


_PARTIAL = ".pyerofs-partial"  # what was fetched of blobs before a pull was ended


class Layout:
    """The layout at `path`. Owns nothing that has to be closed."""

    def __init__(self, path: str) -> None:
        """Open the layout directory. Raises UsageError where there is none."""
        self.path = path
        try:
            with open(f"{path}/oci-layout", "rb", opener=regular) as file:
                body = file.read(4096)
        except FileNotFoundError:
            raise UsageError(f"{path} is not an OCI layout directory: it has no file oci-layout") from None
        except OSError as error:
            raise UsageError(f"cannot read {error.filename}: {error.strerror}") from None
        try:
            check_version(body)
        except ImageError as error:
            raise ImageError(f"{path}: {error}") from None

    @classmethod
    def create(cls, path: str) -> Layout:
        """Open the layout at `path`, made if need be. Raises UsageError where something else is there."""
        try:
            if os.path.isdir(path) and os.listdir(path) and not os.path.exists(f"{path}/oci-layout"):
                raise UsageError(f"{path} is a directory with other things in it, not an OCI layout")
            os.makedirs(f"{path}/blobs/sha256", exist_ok=True)
            with _locked(path):
                if not os.path.exists(f"{path}/index.json"):
                    atomic_write(f"{path}/index.json", dump(_EMPTY_INDEX), durable=True, mode=0o644)
                if not os.path.exists(f"{path}/oci-layout"):
                    atomic_write(f"{path}/oci-layout", dump(_VERSION), durable=True, mode=0o644)
        except OSError as error:
            raise UnavailableError(f"cannot make {path}: {error.strerror}") from None
        return cls(path)

    def blob_path(self, digest: str) -> str:
        return f"{self.path}/{blob_name(digest)}"

    def has(self, digest: str, size: int) -> bool:
        """Whether the blob is here and sound; one that is not counts as absent."""
        try:
            self.check(digest, size)
        except (ImageError, UsageError):
            return False
        return True

    def check(self, digest: str, size: int) -> str:
        """Return the path of a blob that has been hashed. Raises ImageError where it is missing or is another one."""
        path = self.blob_path(digest)
        try:
            with open(path, "rb", opener=regular) as file:
                actual = hashlib.file_digest(file, digest.partition(":")[0]).hexdigest()
                length = file.tell()
        except FileNotFoundError:
            raise ImageError(f"{self.path} does not have the blob {digest}") from None
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}") from None
        if length != size or actual != digest.partition(":")[2]:
            raise ImageError(f"{path} is corrupt: it has {length} bytes, and its digest is not the one in its name")
        return path

    def find_blob(self, digest: str, size: int) -> str:
        """Return the path of a blob that has not been hashed. Raises ImageError where it is not there, or too short."""
        path = self.blob_path(digest)
        try:
            length = os.stat(path).st_size
        except FileNotFoundError:
            raise ImageError(f"{self.path} does not have the blob {digest}") from None
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}") from None
        if length != size:
            raise ImageError(f"{path} is corrupt: it has {length} bytes instead of {size}")
        return path

    @contextlib.contextmanager
    def scratch(self) -> Iterator[str]:
        """Give a directory on the same filesystem, which is removed with all that is still in it."""
        with tempfile.TemporaryDirectory(prefix=".pyerofs-", dir=self.path) as path:
            yield path

    @contextlib.contextmanager
    def partial(self, digest: str) -> Iterator[str]:
        """Give the path of a file for a blob that comes in parts; what is not moved from there stays for the next one.

        Where another process has it, it is a file for this one alone.
        """
        directory = f"{self.path}/{_PARTIAL}"
        os.makedirs(directory, exist_ok=True)
        path = f"{directory}/{digest.replace(':', '-')}"
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                with self.scratch() as own:
                    yield f"{own}/blob"
                return
            yield path
        finally:
            if not os.path.exists(path):
                with contextlib.suppress(OSError):
                    os.unlink(f"{path}.lock")
                with contextlib.suppress(OSError):
                    os.rmdir(directory)
            os.close(lock)

    def add_blob(self, digest: str, path: str) -> None:
        """Store a file whose digest is known: moved from scratch(), copied from elsewhere."""
        if os.path.dirname(os.path.dirname(path)) == self.path:
            self._keep(digest, path)
            return
        with self.scratch() as directory:
            copy = shutil.copyfile(path, f"{directory}/blob")
            with open(copy, "rb") as file:
                if hashlib.file_digest(file, digest.partition(":")[0]).hexdigest() != digest.partition(":")[2]:
                    raise ImageError(f"{path} was changed while it was copied")
            self._keep(digest, copy)

    def _keep(self, digest: str, path: str) -> None:
        with open(path, "rb", opener=regular) as file:
            os.fsync(file.fileno())
        os.chmod(path, 0o644)
        os.makedirs(os.path.dirname(self.blob_path(digest)), exist_ok=True)
        os.rename(path, self.blob_path(digest))

    def add_document(self, document: RawManifest) -> None:
        atomic_write(self.blob_path(document.digest), document.body, durable=True, mode=0o644)

    def document(self, entry: Descriptor) -> RawManifest:
        """Return the document that the descriptor names. Raises ImageError."""
        path = self.blob_path(entry.digest)
        try:
            with open(path, "rb", opener=regular) as file:
                body = file.read(MAX_SIZE + 1)
        except FileNotFoundError:
            raise ImageError(f"{self.path} does not have the manifest {entry.digest}") from None
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}") from None
        try:
            verify_digest(body, entry.digest)
        except ImageError:
            raise ImageError(f"{path} is corrupt: its digest is not the one in its name") from None
        return RawManifest(body, entry.media_type, entry.digest)

    def find(self, name: str | None) -> Descriptor:
        """Return the image with this name; None for the only one. Raises ImageError that lists what there is."""
        return choose(read_index(dump(self._load())).manifests, Location("oci", self.path, name))

    def tags(self) -> list[str]:
        """Return the names of the images. Raises UsageError, ImageError."""
        names = [(entry.get("annotations") or {}).get(REF_NAME) for entry in self._load()["manifests"]]
        return [name for name in names if isinstance(name, str)]

    def tag(self, document: RawManifest, tag: str | None) -> None:
        """Names an image, whose parts are all here; without a tag it is listed only."""
        entry = document.describe()
        if tag is not None:
            entry["annotations"] = {REF_NAME: tag}
        with _locked(self.path):
            index = self._load()
            kept = [other for other in index["manifests"] if not _replaced(other, document.digest, tag)]
            atomic_write(
                f"{self.path}/index.json", dump({**index, "manifests": [*kept, entry]}), durable=True, mode=0o644
            )

    def _load(self) -> dict[str, Any]:
        path = f"{self.path}/index.json"
        try:
            with open(path, "rb", opener=regular) as file:
                body = file.read(MAX_SIZE + 1)
            read_index(body)
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}") from None
        except ImageError as error:
            raise ImageError(f"{path}: {error}") from None
        index: dict[str, Any] = json.loads(body)
        return index


def blob_name(digest: str) -> str:
    """Return the path of a blob within a layout."""
    algorithm, _, value = digest.partition(":")
    return f"blobs/{algorithm}/{value}"


def check_version(body: bytes) -> None:
    """Refuse a layout by what is in its file oci-layout. Raises ImageError."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    version = found.get("imageLayoutVersion") if isinstance(found, dict) else None
    if not isinstance(version, str) or not version.startswith("1."):
        raise ImageError("its oci-layout has an unknown imageLayoutVersion; 1.0.0 is known")


def read_index(body: bytes) -> Index:
    """Parse a layout's index.json. Raises ImageError."""
    found = parse(body)
    if not isinstance(found, Index):
        raise ImageError("it is not an index")
    return found


_EMPTY_INDEX = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}


def _replaced(entry: dict[str, Any], digest: str, tag: str | None) -> bool:
    """Whether the entry makes place for another one with this digest and tag."""
    name = (entry.get("annotations") or {}).get(REF_NAME)
    return name == tag if tag is not None else name is None and entry["digest"] == digest


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    """Among those who change index.json, which is read and written as a whole."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
