"""An image's own documents, for an engine that is to know it: its manifest and its config, as they are stored."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from ..config import file as config_file
from ..config.options import parse_mount_options
from ..context import NOBODY, Context
from ..errors import ImageError
from ..oci.location import Location
from ..oci.manifest import MAX_SIZE, Descriptor, is_image_config, verify_digest
from ..source.image_reader import open_reader
from ..source.open import resolve_image

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..config.options import MountOptions, ReadOptions
    from ..oci.raw_manifest import RawManifest


class ImageDocuments(NamedTuple):
    """An image for one platform.

    `location`: where it is, by its digest where it is at a registry; `name`: what it was called; `config`: the bytes
    whose digest is `config_digest`; `layers`: how many.
    """

    location: Location
    name: str
    manifest: RawManifest
    config_digest: str
    config: bytes
    layers: int

    def settings(self) -> dict[str, Any]:
        """Return what the config says of containers: OCI image spec, "Image Configuration", "config".

        Raises ImageError.
        """
        return read_settings(self.config, self.name)


def read_documents(location: Location, options: ReadOptions, context: Context = NOBODY) -> ImageDocuments:
    """Read them. Raises UsageError, RegistryError, ImageError: also for what is no image of a container."""
    image, _ = resolve_image(location, options, context)
    config = image.manifest.config
    if config is None or not is_image_config(config):
        raise ImageError(f"{image.name}: it has no config of a container's image")
    if config.size > MAX_SIZE:
        raise ImageError(f"{image.name}: its config has {config.size} bytes; at most {MAX_SIZE} are read")
    reader = open_reader(location, options, context)
    try:
        manifest = reader.document(Descriptor("", image.digest, 0))
        with reader.blob(config, None, lambda _: None) as path, open(path, "rb") as file:
            body = file.read(MAX_SIZE + 1)
    finally:
        reader.close()
    verify_digest(manifest.body, image.digest)
    verify_digest(body, config.digest)
    return ImageDocuments(
        pinned(location, image.digest), image.name, manifest, config.digest, body, len(image.manifest.layers)
    )


def options_of_mount(location: Location, options: Sequence[str], fstype: str = "erofs") -> MountOptions:
    """Return what a mount of the image would be given: the options, and the configuration's. Raises UsageError."""
    return parse_mount_options(options, fstype, config_file.load().defaults(location))


def pinned(location: Location, digest: str) -> Location:
    """Return the location by which just this image is found again; a local one has no other name than its own."""
    if location.kind != "registry":
        return location
    reference = location.reference
    return Location("registry", f"{reference.registry}/{reference.repository}@{digest}")


def read_settings(config: bytes, name: str) -> dict[str, Any]:
    """Return the "config" of an image's config. Raises ImageError."""
    try:
        found = json.loads(config.decode())
    except (ValueError, RecursionError):
        raise ImageError(f"{name}: its config is not JSON") from None
    settings = found.get("config") if isinstance(found, dict) else None
    if not isinstance(found, dict) or not isinstance(settings or {}, dict):
        raise ImageError(f"{name}: its config is not one of an image")
    return settings or {}
