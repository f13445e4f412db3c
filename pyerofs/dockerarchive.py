"""What `docker save` writes: a tar archive with images, each a config and the tar archives of its layers."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from . import tarstream
from .document import Document, descriptor
from .errors import ImageError, UsageError
from .layerstream import LayerStream
from .manifest import MAX_SIZE, OCI_MANIFEST, Descriptor
from .tarstream import Tar

_CONFIG = "application/vnd.oci.image.config.v1+json"
_TAR = "application/vnd.oci.image.layer.v1.tar"
_PIECE = 1 << 20  # bytes


class ArchiveOrigin:
    """One image of an archive, told by `reference` where there are several. Owns its file until close()."""

    def __init__(self, path: str, reference: str | None) -> None:
        """Raises UsageError, ImageError."""
        self.name = f"docker-archive:{path}{f':{reference}' if reference else ''}"
        try:
            self._file: BinaryIO = open(path, "rb")  # noqa: SIM115 - until close()
        except OSError as error:
            raise UsageError(f"cannot open {path}: {error.strerror}") from None
        try:
            self._file = _uncompressed(self._file)
            self._places, self._links = _survey(self._file)
            self._blobs: dict[str, tuple[int, int]] = {}  # by digest: offset and size
            self._root = self._make_root(reference)
        except ImageError as error:
            self.close()
            raise ImageError(f"{path}: {error}") from None
        except BaseException:
            self.close()
            raise

    def root(self) -> Document:
        return self._root

    def document(self, entry: Descriptor) -> Document:
        if entry.digest == self._root.digest:
            return self._root
        raise ImageError(f"{self.name} has no manifest {entry.digest}")

    @contextlib.contextmanager
    def blob(self, entry: Descriptor, directory: str | None, progress: Callable[[int], None]) -> Iterator[str]:
        at, size = self._blobs[entry.digest]
        handle, path = tempfile.mkstemp(prefix="pyerofs-", dir=directory)
        try:
            with os.fdopen(handle, "wb") as copy:
                for piece in self._pieces(at, size):
                    copy.write(piece)
                    progress(copy.tell())
            yield path
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def close(self) -> None:
        self._file.close()

    def _make_root(self, reference: str | None) -> Document:
        """The manifest that the image would have at a registry."""
        image = _choose(self._json("manifest.json"), reference)
        config = self._place(image.get("Config"))
        layers = image.get("Layers")
        if not isinstance(layers, list):
            raise ImageError("the image in its manifest.json has no list of layers")
        return Document.of(
            {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": self._describe(_CONFIG, config),
                "layers": [self._describe(_TAR, self._place(name)) for name in layers],
            },
            OCI_MANIFEST,
        )

    def _describe(self, media_type: str, place: tuple[int, int]) -> dict[str, Any]:
        hasher = hashlib.sha256()
        for piece in self._pieces(*place):
            hasher.update(piece)
        digest = f"sha256:{hasher.hexdigest()}"
        self._blobs[digest] = place
        return descriptor(media_type, digest, place[1])

    def _json(self, name: str) -> Any:
        at, size = self._place(name)
        if size > MAX_SIZE:
            raise ImageError(f"its {name} has {size} bytes; at most {MAX_SIZE} are read")
        try:
            return json.loads(b"".join(self._pieces(at, size)))
        except (ValueError, RecursionError):
            raise ImageError(f"its {name} is not JSON") from None

    def _place(self, name: object) -> tuple[int, int]:
        """Of a file in the archive; older versions of docker link equal layers to one another."""
        if not isinstance(name, str):
            raise ImageError("its manifest.json names no files where it should")
        key = os.path.normpath(name.encode())
        for _ in range(2):
            key = self._links.get(key, key)
        if key not in self._places:
            raise ImageError(f"it has no file {tarstream.show(name.encode())}: is it from docker save?")
        return self._places[key]

    def _pieces(self, at: int, size: int) -> Iterator[bytes]:
        while size:
            piece = os.pread(self._file.fileno(), min(size, _PIECE), at)
            if not piece:
                raise ImageError("it was cut short while it was read")
            yield piece
            at, size = at + len(piece), size - len(piece)


def _uncompressed(file: BinaryIO) -> BinaryIO:
    """The archive itself, or a file without a name that holds what was compressed."""
    head = file.read(4)
    file.seek(0)
    compressed = head.startswith(b"\x1f\x8b") or head == b"\x28\xb5\x2f\xfd"
    if not compressed:
        return file
    stream = LayerStream(file)
    plain = tempfile.TemporaryFile(prefix="pyerofs-")  # noqa: SIM115 - until close()
    while piece := stream.read(_PIECE):
        plain.write(piece)
    plain.seek(0)
    file.close()
    return plain


def _survey(file: BinaryIO) -> tuple[dict[bytes, tuple[int, int]], dict[bytes, bytes]]:
    """Where in the archive each file is, and which names are only links."""
    places: dict[bytes, tuple[int, int]] = {}
    links: dict[bytes, bytes] = {}
    tar = Tar(file.read)
    for entry in tar:
        name = os.path.normpath(entry.name)
        if entry.kind == tarstream.FILE:
            places[name] = (tar.position, entry.size)
        elif entry.kind == tarstream.SYMLINK:
            links[name] = os.path.normpath(os.path.join(os.path.dirname(name), entry.link))
        elif entry.kind == tarstream.HARD_LINK:
            links[name] = os.path.normpath(entry.link)
    return places, links


def _choose(found: Any, reference: str | None) -> dict[str, Any]:
    if not isinstance(found, list) or not found or not all(isinstance(image, dict) for image in found):
        raise ImageError("its manifest.json has no list of images")
    tags = [[tag for tag in image.get("RepoTags") or () if isinstance(tag, str)] for image in found]
    if reference is None:
        chosen = found
    else:
        wanted = {reference, f"{reference}:latest"} | {tag for names in tags for tag in names if _same(tag, reference)}
        chosen = [image for image, names in zip(found, tags, strict=True) if wanted & set(names)]
    if len(chosen) == 1:
        image: dict[str, Any] = chosen[0]
        return image
    there = ", ".join(tag for names in tags for tag in names) or "images without a name"
    raise ImageError(f"it has {there}: say which one with docker-archive:FILE:REFERENCE")


def _same(one: str, other: str) -> bool:
    """Whether two references name the same, one of them perhaps in short."""
    from .reference import Reference

    try:
        return Reference.parse(one) == Reference.parse(other)
    except UsageError:
        return False
