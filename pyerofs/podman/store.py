"""Adding images to an image store, listing and removing them, and bringing their mounts back."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ..config.kept import kept_options
from ..context import ignore
from ..errors import ImageError, MountError, PyerofsError, UsageError
from ..images.documents import ImageDocuments, options_of_mount, read_documents
from ..kernel import mountpoint
from ..mounting.mount import mount, unmount
from ..mounting.present import record_of
from ..oci.location import Location
from ..oci.reference import Reference
from .files import Entries, StoredImage, StoreFiles, layer_ids, no_digest
from .users import graph_roots, users_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

DIRECTORY = "/var/lib/pyerofs/store"
_DIGEST_KEY = "manifest-"  # containers/storage: of a manifest's document, before its digest


@dataclass(frozen=True, slots=True)
class ListedImage:
    """An image of the store: `state` is "mounted", "unmounted" or "dead"."""

    id: str
    digest: str
    names: list[str]
    source: str
    state: str

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id, "digest": self.digest, "names": self.names, "source": self.source, "state": self.state,
        }  # fmt: skip


class ImageStore:
    """The store in `directory`. `roots`: where else than the machine's configuration says podman keeps containers.

    Any number of processes. `report` gets a line for each thing that its user may want to know.
    """

    def __init__(
        self, directory: str = DIRECTORY, roots: Sequence[str] = (), report: Callable[[str], None] = ignore
    ) -> None:
        self._files = StoreFiles(directory)
        self._roots = graph_roots(roots)
        self._report = report

    def add(
        self, source: str, options: Sequence[str] = (), *, name: str | None = None, fstype: str = "erofs"
    ) -> ListedImage:
        """Mount an image, and have podman know it by its reference, or by `name`. One that is there gets the name.

        Raises PyerofsError, and then the store is as it was.
        """
        location = Location.parse(source)
        names = [check_name(name if name is not None else _name_of(location))]
        kept = kept_options(options, fstype)
        documents = read_documents(location, options_of_mount(location, kept, fstype).oci)
        image = _stored(documents, kept, fstype)
        self._files.make()
        with self._files.image_locked(image.id):
            there = self._files.find(image.id)
            if there is None or not self._is_listed(there.id):
                self._mount(image)
                try:
                    self._enter(image, documents, names)
                except BaseException:
                    with suppress(PyerofsError):
                        unmount(self._files.target(image), lazy=True)
                    raise
            else:
                image = there
                self._mount(image)
                with self._files.locked():
                    self._files.write_images(_named(self._files.images(), image.id, names))
        self._drop_nameless()
        return self._listed(image, self._files.images())

    def _is_listed(self, image: str) -> bool:
        return any(entry.get("id") == image for entry in self._files.images())

    def _mount(self, image: StoredImage) -> bool:
        """Mount the image unless it is; what is dead there is replaced. Return whether there was anything to do."""
        target = self._files.target(image)
        os.makedirs(target, mode=0o700, exist_ok=True)
        while (found := mountpoint.find(target)) is not None:
            record = record_of(found)
            if record is not None and (record.alive() or record.supervised()):
                return False
            unmount(target, lazy=True)
        location = Location.from_list(image.location)
        if location.is_local:  # by its name another image may be there by now
            now = read_documents(location, options_of_mount(location, image.options, image.fstype).oci)
            if now.manifest.digest != image.digest:
                raise ImageError(f"{location}: it is another image now, {now.manifest.digest}: add it again")
        mount(str(location), target, [*image.options, "ro"], fstype=image.fstype, report=self._report)
        return True

    def _enter(self, image: StoredImage, documents: ImageDocuments, names: list[str]) -> None:
        """Have podman know it: what is listed is there already."""
        created = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        self._files.write_directories(image)
        said = self._files.write_documents(
            image.id,
            {
                f"{_DIGEST_KEY}{documents.manifest.digest}": documents.manifest.body,
                "manifest": documents.manifest.body,
                documents.config_digest: documents.config,
            },
        )
        self._files.keep(image)
        with self._files.locked():
            ours = set(image.layers)
            layers = [entry for entry in self._files.layers() if entry.get("id") not in ours]
            for number, layer in enumerate(image.layers):
                parent = {"parent": image.layers[number - 1]} if number else {}
                size = self._size(image) if layer == image.top else 0
                said_of_layer = {"created": created, "diff-digest": no_digest(layer), "diff-size": size}
                layers.append({"id": layer, **parent, **said_of_layer})
            self._files.write_layers(layers)
            entry = {
                "id": image.id, "digest": documents.manifest.digest, "names": [], "layer": image.top,
                "metadata": "{}", "created": _created(documents.config) or created, **said,
            }  # fmt: skip
            others = [other for other in self._files.images() if other.get("id") != image.id]
            self._files.write_images(_named([*others, entry], image.id, names))

    def _size(self, image: StoredImage) -> int:
        """Return the bytes of all that is mounted for it."""
        found = mountpoint.find(self._files.target(image))
        record = record_of(found) if found else None
        return record.size if record else 0

    def _drop_nameless(self) -> None:
        """Remove what lost its name to a newer image, unless it is in use."""
        for entry in self._files.images():
            image = None if entry.get("names") else self._files.find(str(entry.get("id")))
            if image:
                try:
                    self._remove(image, [])
                except UsageError as e:
                    self._report(f"{image.id[:12]} has lost its name to a newer image, and is kept: {e}")

    def images(self) -> list[ListedImage]:
        """Return all of the store. Raises UnavailableError."""
        entries = self._files.images()
        return [self._listed(image, entries) for entry in entries if (image := self._files.find(str(entry.get("id"))))]

    def _listed(self, image: StoredImage, entries: Entries) -> ListedImage:
        names = next((entry.get("names") for entry in entries if entry.get("id") == image.id), None) or []
        return ListedImage(image.id, image.digest, names, str(Location.from_list(image.location)), self._state(image))

    def _state(self, image: StoredImage) -> str:
        found = mountpoint.find(self._files.target(image))
        if found is None:
            return "unmounted"
        record = record_of(found)
        return "mounted" if record and (record.alive() or record.supervised()) else "dead"

    def remove(self, what: str) -> None:
        """Remove a name, and with its last one the image; or an image by its ID, with all its names.

        Raises UsageError, also where something uses it, and MountError.
        """
        entry, name = self._find(what)
        image = self._files.find(str(entry.get("id")))
        if image is None:
            raise UsageError(f"{what}: this store's own record of it is gone: {self._files.path('pyerofs')}")
        self._remove(image, [name] if name else list(entry.get("names") or []))

    def _find(self, what: str) -> tuple[dict[str, Any], str]:
        """Return the entry of an image, and the name by which it was meant, "" for its ID."""
        entries = self._files.images()
        with suppress(UsageError):
            name = check_name(what)
            for entry in entries:
                if name in (entry.get("names") or []):
                    return entry, name
        short = what.removeprefix("sha256:")
        found = [entry for entry in entries if len(short) >= 4 and str(entry.get("id")).startswith(short)]
        if len(found) != 1:
            raise UsageError(f"{what}: {'several images' if found else 'no image'} of {self._files.directory}")
        return found[0], ""

    def _remove(self, image: StoredImage, names: Collection[str]) -> None:
        """Take these names from the image, and remove it if it has no others.

        Raises UsageError where something uses it then.
        """
        with self._files.image_locked(image.id):
            with self._files.locked():
                entries = self._files.images()
                entry = next((entry for entry in entries if entry.get("id") == image.id), None)
                if entry is None:
                    return  # another process has removed it
                entry["names"] = [name for name in entry.get("names") or [] if name not in names]
                if entry["names"]:
                    self._files.write_images(entries)
                    return
                if users := users_of(image, self._roots):
                    more = f", and {len(users) - 1} more" if len(users) > 1 else ""
                    raise UsageError(f"it is in use: {users[0]}{more}: `podman rm` what uses it first")
                self._files.write_images([entry for entry in entries if entry.get("id") != image.id])
                ours = set(image.layers)
                self._files.write_layers([entry for entry in self._files.layers() if entry.get("id") not in ours])
            target = self._files.target(image)
            if mountpoint.find(target):
                try:
                    unmount(target)
                except MountError as e:
                    self._report(f"{e}; it goes when it is no longer in use")
                    if mountpoint.find(target):
                        unmount(target, lazy=True)
            self._files.remove(image)

    def sync(self, wanted: Sequence[tuple[str, Sequence[str]]] | None = None) -> int:
        """Mount what is not mounted; return how many images failed, each with a line to `report`.

        `wanted`: which images are to be there, each with its mount options: those are added, and all others removed
        unless something uses them. None: those that are there.
        """
        failed = 0
        if wanted is not None:
            keep: set[str] = set()
            for source, options in wanted:
                try:
                    keep.add(self.add(source, options).id)
                except PyerofsError as e:
                    failed += 1
                    self._report(f"{source}: {e}")
                    with suppress(UsageError):  # what was there under that name stays
                        keep.add(str(self._find(_name_of(Location.parse(source)))[0].get("id")))
            for entry in self._files.images():
                if str(entry.get("id")) not in keep and (image := self._files.find(str(entry.get("id")))):
                    try:
                        self._remove(image, list(entry.get("names") or []))
                    except UsageError as e:
                        self._report(f"{image.id[:12]} is no longer wanted, and is kept: {e}")
        if not self._files.exists():
            return failed
        self._files.make()
        for entry in self._files.images():
            image = self._files.find(str(entry.get("id")))
            if image is None:
                continue
            try:
                with self._files.image_locked(image.id):
                    self._mount(image)
            except PyerofsError as e:
                failed += 1
                self._report(f"{', '.join(entry.get('names') or []) or image.id[:12]}: {e}")
        return failed


def _stored(documents: ImageDocuments, options: Sequence[str], fstype: str) -> StoredImage:
    algorithm, _, identifier = documents.config_digest.partition(":")
    if algorithm != "sha256":
        raise ImageError(f"{documents.name}: podman knows images by a sha256 of their config, and this has {algorithm}")
    layers = layer_ids(identifier, documents.layers)
    place = documents.location.as_list()
    return StoredImage(identifier, documents.manifest.digest, place, list(options), fstype, layers)


def _created(config: bytes) -> str:
    import json

    found = json.loads(config).get("created")
    with suppress(ValueError, TypeError):
        return f"{datetime.fromisoformat(found).astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
    return ""


def _named(entries: Entries, image: str, names: Sequence[str]) -> Entries:
    """Return the entries with these names given to an image, and taken from all others."""
    for entry in entries:
        others = [name for name in entry.get("names") or [] if name not in names]
        entry["names"] = [*others, *names] if entry.get("id") == image else others
    return entries


def _name_of(location: Location) -> str:
    if location.kind == "registry":
        return location.path
    name = location.name or ""
    if not name or name.startswith("@"):
        raise UsageError(f"{location}: podman needs a name for it: --name NAME")
    return name if "/" in name else f"localhost/{os.path.basename(location.path).lower()}:{name}"


def check_name(text: str) -> str:
    """Return an image's name as podman writes it. Raises UsageError."""
    found = Reference.parse(text)
    return str(found) if not (found.tag and found.digest) else f"{found.registry}/{found.repository}@{found.digest}"
