"""What `docker save` writes: a tar archive with images, each a config and the tar archives of its layers."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import ImageError
from .archive import Archive
from .layout_index import same_reference
from .location import Location, number_of
from .manifest import CONFIG, MAX_SIZE, OCI_MANIFEST, Descriptor, listed
from .raw_manifest import RawManifest, descriptor

_TAR = "application/vnd.oci.image.layer.v1.tar"


class ArchiveReader:
    """One image of an archive, told by the location's name where there are several. Owns its file until close()."""

    def __init__(self, location: Location) -> None:
        """Open the archive. Raises UsageError, ImageError, UnavailableError."""
        self.name = str(location)
        self._blobs: dict[str, tuple[int, int]] = {}  # by digest: offset and size
        try:
            self._archive = Archive(location.path)
        except ImageError as error:
            raise ImageError(f"{location.path}: {error}") from None
        try:
            self._root = self._make_root(location)
        except ImageError as error:
            self.close()
            raise ImageError(f"{location.path}: {error}") from None
        except BaseException:
            self.close()
            raise

    def root(self) -> RawManifest:
        return self._root

    def document(self, entry: Descriptor) -> RawManifest:
        if entry.digest == self._root.digest:
            return self._root
        raise ImageError(f"{self.name} has no manifest {entry.digest}")

    @contextlib.contextmanager
    def blob(self, entry: Descriptor, directory: str | None, progress: Callable[[int], None]) -> Iterator[str]:
        at, size = self._blobs[entry.digest]
        handle, path = tempfile.mkstemp(prefix="pyerofs-", dir=directory)
        try:
            with os.fdopen(handle, "wb") as copy:
                for piece in self._archive.pieces(at, size):
                    copy.write(piece)
                    progress(copy.tell())
            yield path
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def close(self) -> None:
        self._archive.close()

    def _make_root(self, location: Location) -> RawManifest:
        """Make the manifest that the image would have at a registry."""
        image = self._choose(self._images(), location)
        layers = image.get("Layers")
        config = self._place(image.get("Config"))
        if not isinstance(layers, list):
            raise ImageError("the image in its manifest.json has no list of layers")
        return RawManifest.of(
            {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": self._describe(CONFIG, config),
                "layers": [self._describe(_TAR, self._place(name)) for name in layers],
            },
            OCI_MANIFEST,
        )

    def _images(self) -> list[dict[str, Any]]:
        try:
            found = json.loads(self._read("manifest.json"))
        except (ValueError, RecursionError):
            raise ImageError("its manifest.json is not JSON") from None
        if not isinstance(found, list) or not found or not all(isinstance(image, dict) for image in found):
            raise ImageError("its manifest.json has no list of images")
        return found

    def _choose(self, images: list[dict[str, Any]], location: Location) -> dict[str, Any]:
        tags = [[tag for tag in image.get("RepoTags") or () if isinstance(tag, str)] for image in images]
        name, digest, number = location.name, location.digest, number_of(location.name)
        if name is None:
            chosen = images
        elif digest is not None:
            chosen = [image for image in images if self._config_digest(image) == digest]
        elif number is not None:
            chosen = images[number : number + 1]
        else:
            wanted = {name, f"{name}:latest"}
            wanted |= {tag for names in tags for tag in names if same_reference(tag, name)}
            chosen = [image for image, names in zip(images, tags, strict=True) if wanted & set(names)]
        if len(chosen) == 1 or (digest is not None and chosen):  # the same config is the same image
            return chosen[0]
        there = [
            text
            for number, (image, names) in enumerate(zip(images, tags, strict=True))
            for text in (names or [f"@{number} (config {self._config_digest(image)})"])
        ]
        raise ImageError(
            f"it has {listed(there)}: say which one with docker-archive:FILE:REFERENCE, or :@NUMBER or "
            ":@sha256:... of its config"
        )

    def _config_digest(self, image: dict[str, Any]) -> str:
        return self._archive.digest(*self._place(image.get("Config")))

    def _describe(self, media_type: str, place: tuple[int, int]) -> dict[str, Any]:
        digest = self._archive.digest(*place)
        self._blobs[digest] = place
        return descriptor(media_type, digest, place[1])

    def _place(self, name: object) -> tuple[int, int]:
        if not isinstance(name, str):
            raise ImageError("its manifest.json names no files where it should")
        with _from_docker():
            return self._archive.place(name)

    def _read(self, name: str) -> bytes:
        with _from_docker():
            return self._archive.read(name, MAX_SIZE)


@contextlib.contextmanager
def _from_docker() -> Iterator[None]:
    try:
        yield
    except ImageError as error:
        hint = ": is it from docker save?" if "has no file" in str(error) else ""
        raise ImageError(f"{error}{hint}") from None
