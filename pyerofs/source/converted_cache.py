"""Ordinary images made native in the cache, once, so that they are mounted as native ones are.

    DIRECTORY/converted/ALGORITHM-HEX/        of the manifest of the ordinary image
        image   one line of JSON, then the manifest of what it became
        lock    held while it is being made; its mtime is the last use
        work    the devices as they are made

What it became is one EROFS image: a primary device, and a device for each layer with much content. They are entries of
the cache like all others, each of whose bytes is checked against its chunk index. So they are found spoiled, evicted,
verified and shared as those are; what has been lost is made again out of the registry's layers (remade.py). `image` is
written when all devices are complete, and counts only as long as they are.

A layer that is read by its table of contents is a device too, of which nothing but the chunk map need be there: what is
read comes from the registry's layer (mapped.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from ..cache.directory import MAP, EntryInfo, describe_key, hold
from ..cache.files import open_file
from ..cache.lock import lock_entry
from ..cache.paths import chosen_directory, entry_path
from ..context import NOBODY, Context
from ..erofs.foreign import obstacle, summary
from ..erofs.layer import Layer, describe_converted
from ..errors import ImageError, MountError, UnavailableError
from ..oci.location import Location
from ..oci.manifest import MAX_SIZE, Manifest, parse, verify_digest
from . import kept_layers
from .map_file import hold_mapped
from .original_blobs import OriginalBlobs, original_blobs
from .plan import plan_from_manifest, with_index
from .resolve import Image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ..cache.entry import Entry
    from ..config.options import ReadOptions
    from ..erofs.compose import PlannedLayer
    from ..erofs.foreign import NotErofsError
    from .base import Opener
    from .remade import RemadeBlobs

NAME = "converted"
VERSION = 2  # of what a conversion makes: one by another version is made again
_HEAD_MAX = 1 << 20  # bytes
IMAGE, WORK = "image", "work"


class ConvertedImage:
    """A converted image, all of which is in the cache, and stays there until close()."""

    def __init__(self, image: Image, layers: tuple[str, ...], held: list[Entry]) -> None:
        """`layers`: the digests of the ordinary image's."""
        self.image = image
        self.layers = layers
        self._held = held

    def parts(
        self, location: Location, options: ReadOptions, context: Context = NOBODY
    ) -> list[tuple[PlannedLayer, Opener]]:
        """Return the parts as plan_layers() does; `location` of the ordinary image. Raises ImageError, UsageError."""
        manifest = self.image.manifest
        layers = [describe_converted(manifest, number) for number in range(len(manifest.layers))]
        blobs = blobs_of(location, self.image.name, options, layers, context)
        return plan_from_manifest(
            self.image, blobs.remade, blobs.remade, with_index(options), originals=blobs.originals
        )

    def close(self) -> None:
        for entry in self._held:
            entry.close()
        self._held = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ConversionInfo(NamedTuple):
    """What is known of a converted image.

    `name` for messages; `digest`: of the ordinary image's manifest; `keys`: its devices' in the cache; `layers`: the
    digests of the ordinary image's layers; `stargz`: the numbers of those that KeptLayer has as is_stargz. `unbound`:
    the digest of a SOCI index that it was made by although the manifest does not name it.
    """

    path: str
    name: str
    digest: str
    keys: tuple[str, ...]
    layers: tuple[str, ...]
    stargz: tuple[int, ...] = ()
    unbound: str = ""


class ConversionRequest(NamedTuple):
    """What is to be converted.

    `name` of the image for messages, `digest` of its manifest; `summary`: what it is made of.
    """

    location: Location
    name: str
    digest: str
    summary: str

    def to_json(self) -> dict[str, Any]:
        return {**self._asdict(), "location": self.location.as_list()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        return cls(**{**values, "location": Location.from_list(values["location"])})


def get_converted(
    location: Location, ordinary: NotErofsError, options: ReadOptions, ask: Callable[[ConversionRequest], bool]
) -> ConvertedImage:
    """Return the converted image; where there is none yet, `ask` has it made, and tells whether it is done.

    Raises NotErofsError where it must not be or cannot be converted, MountError where it was not done.
    """
    if options.convert == "no" or obstacle(ordinary.manifest):
        raise ordinary
    directory = chosen_directory(options)
    found = find_converted(directory, ordinary.digest, ordinary.name, options)
    if found is None and ask(ConversionRequest(location, ordinary.name, ordinary.digest, summary(ordinary.manifest))):
        found = find_converted(directory, ordinary.digest, ordinary.name, options)
    if found is None:
        raise MountError(f"{ordinary.name} has not been converted")
    return found


class ConvertedBlobs(NamedTuple):
    """Where the bytes of a converted image come from that the cache does not have, or has lost.

    `remade` makes them again; `originals` has layers as they are, which are read by their chunk maps.
    """

    remade: RemadeBlobs
    originals: OriginalBlobs


def blobs_of(
    location: Location, name: str, options: ReadOptions, layers: Sequence[Layer], context: Context
) -> ConvertedBlobs:
    """Return the blobs of a converted image with these layers; no request is made. `name` for messages.

    Raises UsageError.
    """
    from .remade import RemadeBlobs

    directory = chosen_directory(options)

    def layers_of(digest: str) -> list[tuple[str, bool]] | None:
        found = _read(path_of(directory, digest))
        return [(name, number in found[0].stargz) for number, name in enumerate(found[0].layers)] if found else None

    remade = RemadeBlobs(location, name, options, layers_of)
    if not any(layer.map for layer in layers):
        return ConvertedBlobs(remade, OriginalBlobs(remade, remade))
    return ConvertedBlobs(remade, original_blobs(location, options, context))


def path_of(directory: str, digest: str) -> str:
    return os.path.join(directory, NAME, digest.replace(":", "-"))


def find_converted(directory: str, digest: str, name: str, options: ReadOptions) -> ConvertedImage | None:
    """Return what the image with this manifest became; None where it is not converted, or something of it is lost.

    `name`: of the image, for messages. `options`: what was made by an index that these do not allow is none. Raises
    UsageError, UnavailableError.
    """
    kept = _read(path_of(directory, digest))
    if kept is None or kept[0].digest != digest or not _is_allowed(kept[0].unbound, options):
        return None
    manifest = kept[1]
    found = ConvertedImage(Image(name, digest, manifest, digest, manifest), kept[0].layers, [])
    try:
        for number in range(len(manifest.layers)):
            layer = describe_converted(manifest, number)
            entry = hold_mapped(directory, layer) if layer.map else hold_complete(directory, layer)
            if entry is None:
                found.close()
                return None
            found._held.append(entry)
    except BaseException:
        found.close()
        raise
    with contextlib.suppress(OSError):  # at worst it is removed too early
        os.utime(os.path.join(path_of(directory, digest), "lock"), follow_symlinks=False)
    return found


def _is_allowed(unbound: str, options: ReadOptions) -> bool:
    """Whether the options allow what was made by an index that the manifest does not name; "": by none."""
    return not unbound or unbound == options.soci or (options.soci == "v1" and options.verify != "require")


def _read(path: str) -> tuple[ConversionInfo, Manifest] | None:
    try:
        with open(open_file(os.path.join(path, IMAGE), os.O_RDONLY), "rb") as file:
            head = json.loads(file.readline(_HEAD_MAX))
            body = file.read(MAX_SIZE + 1)
        if head["version"] != VERSION:
            return None
        verify_digest(body, head["digest"])
        manifest = parse(body)
        if not isinstance(manifest, Manifest):
            return None
        layers = [describe_converted(manifest, number) for number in range(len(manifest.layers))]
        keys = tuple(layer.verified_key for layer in layers)
        names, stargz = tuple(head["layers"]), tuple(head.get("stargz", ()))
        unbound = str(head.get("unbound", ""))
        return ConversionInfo(path, str(head["name"]), str(head["of"]), keys, names, stargz, unbound), manifest
    except (OSError, ValueError, KeyError, TypeError, ImageError):
        return None


def scan(directory: str) -> list[ConversionInfo]:
    """Every converted image, complete or not, by name."""
    return sorted((found[0] for path in _paths(directory) if (found := _read(path))), key=lambda row: row.name)


def _paths(directory: str) -> list[str]:
    try:
        return [entry.path for entry in os.scandir(os.path.join(directory, NAME))]
    except FileNotFoundError:
        return []


def prune(directory: str, keep: float) -> list[str]:
    """Remove images whose layers have gone, and what killed conversions have left; return the names of the former.

    Tables of layers that `pyerofs convert` used in the last `keep` seconds stay. Raises UsageError, UnavailableError.
    """
    gone = []
    for path in _paths(directory):
        found = _read(path)
        if found and all(_is_complete(directory, key) for key in found[0].keys):
            continue
        if remove(path) and found:
            gone.append(found[0].name)
    kept_layers.prune(
        directory,
        {digest for row in scan(directory) for digest in row.layers},
        lambda layer: layer.index is not None and _is_complete(directory, layer.verified_key),
        time.time() - keep,
    )
    return gone


def _is_complete(directory: str, key: str) -> bool:
    """Whether nothing of a device is lost: of one that is read by its chunk map nothing need be there."""
    contents = describe_key(directory, key)
    return contents is not None and (contents.complete or (is_mapped(key) and not contents.broken))


def is_mapped(key: str) -> bool:
    """Whether the device with this key is read by its chunk map, so that it may be incomplete."""
    return MAP in key.partition(":")[0]


def remove(path: str) -> bool:
    """Remove what is there but for the layers; return False while it is being converted. Raises UnavailableError."""
    try:
        lock = lock_entry(path, _busy)
    except BlockingIOError:
        return False
    except OSError as error:
        raise UnavailableError(f"{path}: {error.strerror}") from None
    if lock is None:
        return True
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(path, IMAGE))
        shutil.rmtree(os.path.join(path, WORK), ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(path, "lock"))
        # A process that arrives now has made a new lock in it, or will make a new directory.
        with contextlib.suppress(OSError):
            os.rmdir(path)
    finally:
        os.close(lock)
    return True


def _busy() -> None:
    raise BlockingIOError


def hold_complete(directory: str, layer: Layer) -> Entry | None:
    """Open the layer's cache entry, in use by the caller; None where anything of it is missing."""
    from .index_file import find_index

    if layer.index is None or find_index(layer, directory) is None:
        return None
    key = layer.verified_key
    entry = hold(EntryInfo(entry_path(directory, key), key, 0, 0.0))
    if entry is not None and entry.present() != entry.size:
        entry.close()
        return None
    return entry


@contextlib.contextmanager
def locked(path: str, waiting: Callable[[], None]) -> Iterator[None]:
    lock = None
    while lock is None:  # it was removed between the two steps
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, mode=0o700)
        lock = lock_entry(path, waiting)
    try:
        yield
    finally:
        os.close(lock)
