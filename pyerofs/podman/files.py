"""The files of an image store as containers/storage (its overlay driver) reads them, and its locks.

    overlay/LAYER/{diff,link,lower}, overlay/l/LINK     layers; LINK is a short name for LAYER/diff
    overlay-layers/{layers.json,layers.lock}
    overlay-images/{images.json,images.lock}, overlay-images/IMAGE/KEY
    pyerofs/IMAGE.json, pyerofs/IMAGE.lock              ours: what is mounted for an image

The tree of the whole image is the diff of its uppermost layer, the layers below it are empty: so the image keeps its
manifest, its config and its ID, and one worker serves it. Layers here have names and digests that no other tool would
give them: podman puts a layer under every image that has one of that digest, and these do not hold what the image's
own digests are of.

`diff` of the uppermost layer is a symbolic link to where the mount is in /run: after a reboot it leads nowhere, and
what starts a container before the mount is back gets an error, not an empty container.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import UnavailableError
from ..files import atomic_write

RUN = "/run/pyerofs-store"
_LOCKS = ("overlay-layers/layers.lock", "overlay-images/images.lock", "storage.lock")
_LAYERS, _IMAGES = "overlay-layers/layers.json", "overlay-images/images.json"
_ID = re.compile(r"[0-9a-f]{64}")
_PLAIN_KEY = re.compile(r"[A-Za-z0-9.]+")

Entries = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class StoredImage:
    """What is mounted for an image of the store.

    `id`: as podman has it, the hex digits of the config's digest; `digest` of the manifest; `location`: the arguments
    of a Location; `options`: of its mount, `fstype` its type; `layers`: their IDs here, base first.
    """

    id: str
    digest: str
    location: list[str | None]
    options: list[str]
    fstype: str
    layers: list[str] = field(default_factory=list)

    @property
    def top(self) -> str:
        """The layer that has it all."""
        return self.layers[-1]


class StoreFiles:
    """Those of the store in `directory`. Any number of processes; each change is made under podman's own locks."""

    def __init__(self, directory: str) -> None:
        self.directory = os.path.realpath(directory)
        self._held: dict[str, int] = {}
        self.run = os.path.join(RUN, hashlib.sha256(os.fsencode(self.directory)).hexdigest()[:12])

    def path(self, *names: str) -> str:
        return os.path.join(self.directory, *names)

    def make(self) -> None:
        """Make what is not there of an empty store. Raises UnavailableError."""
        try:
            os.makedirs(self.directory, mode=0o755, exist_ok=True)
            for name in ("overlay/l", "overlay-layers", "overlay-images"):
                os.makedirs(self.path(name), mode=0o755, exist_ok=True)
            os.makedirs(self.path("pyerofs"), mode=0o700, exist_ok=True)
            os.makedirs(self.run, mode=0o700, exist_ok=True)
            for name in _LOCKS:
                os.close(os.open(self.path(name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644))
            with self.locked():
                for name in (_LAYERS, _IMAGES):
                    if not os.path.exists(self.path(name)):
                        atomic_write(self.path(name), b"[]", mode=0o644)
        except OSError as e:
            raise UnavailableError(f"image store {self.directory}: {e.strerror}") from None

    def exists(self) -> bool:
        return os.path.isfile(self.path(_IMAGES))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the locks under which podman reads the lists, in the order in which it takes them.

        POSIX locks, which are the process's: for one thread of it.
        """
        try:
            for name in _LOCKS[:2]:
                self._held[name] = fd = os.open(self.path(name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                fcntl.lockf(fd, fcntl.LOCK_EX)
            yield
        finally:
            while self._held:
                os.close(self._held.popitem()[1])

    @contextlib.contextmanager
    def image_locked(self, image: str) -> Iterator[None]:
        """Hold what two of us would do to one image apart. Its file stays."""
        fd = os.open(self.path("pyerofs", f"{image}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def layers(self) -> Entries:
        return read_list(self.path(_LAYERS))

    def images(self) -> Entries:
        return read_list(self.path(_IMAGES))

    def write_layers(self, entries: Entries) -> None:
        self._write(_LAYERS, _LOCKS[0], entries)

    def write_images(self, entries: Entries) -> None:
        self._write(_IMAGES, _LOCKS[1], entries)

    def _write(self, name: str, lock: str, entries: Entries) -> None:
        """Replace a list, and have those that have read it read it again: they compare what the lock's file holds.

        By the descriptor that holds the lock: closing another one of that file would drop it.
        """
        atomic_write(self.path(name), json.dumps(entries).encode(), durable=True, mode=0o644)
        os.pwrite(self._held[lock], os.urandom(32).hex().encode(), 0)

    def stored(self) -> list[StoredImage]:
        """Return what is known of each image here."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for name in sorted(os.listdir(self.path("pyerofs"))):
                if name.endswith(".json") and (image := self.find(name.removesuffix(".json"))):
                    found.append(image)
        return found

    def find(self, image: str) -> StoredImage | None:
        try:
            with open(self.path("pyerofs", f"{image}.json"), encoding="utf-8") as file:
                found = StoredImage(**json.load(file))
        except (OSError, ValueError, TypeError):
            return None
        return found if found.layers and all(map(_ID.fullmatch, (found.id, *found.layers))) else None

    def keep(self, image: StoredImage) -> None:
        atomic_write(self.path("pyerofs", f"{image.id}.json"), json.dumps(asdict(image)).encode(), durable=True)

    def target(self, image: StoredImage) -> str:
        """Where it is mounted."""
        return os.path.join(self.run, image.top)

    def write_directories(self, image: StoredImage) -> None:
        """Make the directories of an image's layers, as they are to be. Raises OSError."""
        lower: list[str] = []
        for layer in image.layers:
            place = self.path("overlay", layer)
            os.makedirs(place, mode=0o755, exist_ok=True)
            diff = os.path.join(place, "diff")
            if layer != image.top:
                os.makedirs(diff, mode=0o755, exist_ok=True)
            elif not os.path.islink(diff):
                os.symlink(self.target(image), diff)
            link = link_of(layer)
            atomic_write(os.path.join(place, "link"), link.encode(), mode=0o644)
            if lower:
                atomic_write(os.path.join(place, "lower"), ":".join(lower).encode(), mode=0o644)
            if not os.path.islink(self.path("overlay/l", link)):
                os.symlink(f"../{layer}/diff", self.path("overlay/l", link))
            lower.insert(0, f"l/{link}")

    def write_documents(self, image: str, documents: dict[str, bytes]) -> dict[str, Any]:
        """Put an image's documents where podman reads them; return what images.json says of them. Raises OSError."""
        os.makedirs(self.path("overlay-images", image), mode=0o755, exist_ok=True)
        for key, body in documents.items():
            atomic_write(self.path("overlay-images", image, _file_name(key)), body, mode=0o644)
        return {
            "big-data-names": list(documents),
            "big-data-sizes": {key: len(body) for key, body in documents.items()},
            "big-data-digests": {key: f"sha256:{hashlib.sha256(body).hexdigest()}" for key, body in documents.items()},
        }

    def remove(self, image: StoredImage) -> None:
        """Remove all files of an image that no list names any more. Raises OSError."""
        import shutil

        for layer in image.layers:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path("overlay/l", link_of(layer)))
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(self.path("overlay", layer))
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.path("overlay-images", image.id))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path("pyerofs", f"{image.id}.json"))
        with contextlib.suppress(OSError):  # it has gone after a reboot; or somebody has a mount there
            os.rmdir(self.target(image))


def layer_ids(image: str, count: int) -> list[str]:
    """Return names for an image's layers: the same each time, and not those that podman computes for theirs."""
    return [hashlib.sha256(f"pyerofs {image} {number}".encode()).hexdigest() for number in range(max(1, count))]


def no_digest(layer: str) -> str:
    """Return a digest that nothing has: podman wants one for each layer."""
    return f"sha256:{hashlib.sha256(f'pyerofs, no digest of {layer}'.encode()).hexdigest()}"


def link_of(layer: str) -> str:
    """Return the short name of a layer, 26 characters as the overlay driver makes them: mount(2) takes one page."""
    return base64.b32encode(hashlib.sha256(layer.encode()).digest())[:26].decode()


def _file_name(key: str) -> str:
    """As containers/storage names the file of a document: images.go, makeBigDataBaseName()."""
    return key if _PLAIN_KEY.fullmatch(key) else "=" + base64.b64encode(key.encode()).decode()


def read_list(path: str) -> Entries:
    """Return the objects of a list; none where there is no file. Raises UnavailableError."""
    try:
        with open(path, "rb") as file:
            found = json.loads(file.read() or b"[]")
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as e:
        raise UnavailableError(f"{path}: {getattr(e, 'strerror', None) or 'it is not JSON'}") from None
    return [entry for entry in found or [] if isinstance(entry, dict)] if isinstance(found, list | None) else []
