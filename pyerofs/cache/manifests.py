"""The manifests that have been seen: what an image's name led to, for the time when its registry cannot be reached.

    DIRECTORY/manifests/NAME        one line of JSON (image, reference, digest, media_type), then the body as it came

The image is named by its giver: registry and repository, and by whom and how it was asked for, where that is not the
registry alone. NAME is the SHA-256 of image and reference, the mtime when the registry was last asked for it. A body is
believed only with its digest. What was asked for by digest cannot change, so the registry is not asked for it again; a
tag is looked up here only when the registry does not answer, and the user is told so.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from typing import TYPE_CHECKING, NamedTuple

from ..errors import ImageError, RegistryError, UnavailableError
from ..files import atomic_write
from ..http.curlerror import TransportError
from ..oci.manifest import MAX_SIZE, digest_as, verify_digest
from ..oci.reference import is_digest
from ..quantity import show_age
from .files import open_file
from .paths import make_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..registry.client import ManifestResponse

_NAME = "manifests"
_HEAD_MAX = 4096  # bytes


class CachedManifest(NamedTuple):
    """`time`: seconds since 1970."""

    body: bytes
    media_type: str
    digest: str
    time: float


class ManifestCache:
    """Those below a cache directory. Thread- and process-safe. `log` gets messages for the log."""

    def __init__(self, directory: str, log: Callable[[str], None]):
        self._directory = os.path.join(directory, _NAME)
        self._parent = directory
        self._log = log

    def _path(self, image: str, what: str) -> str:
        return os.path.join(self._directory, hashlib.sha256(f"{image} {what}".encode()).hexdigest())

    def find(self, image: str, what: str) -> CachedManifest | None:
        """Return what the tag or digest `what` of an image was; None where that is not known."""
        found = _read(self._path(image, what))
        if found is None or found[:2] != (image, what) or (is_digest(what) and found[2].digest != what):
            return None
        return found[2]

    def all(self) -> Iterator[CachedManifest]:
        """Yield everything that is kept, whatever it was asked for by."""
        with contextlib.suppress(OSError):
            for name in os.listdir(self._directory):
                if found := _read(os.path.join(self._directory, name)):
                    yield found[2]

    def scan(self) -> list[tuple[str, str, bytes]]:
        """Return image, reference and body of each."""
        found = []
        with contextlib.suppress(OSError):
            for name in sorted(os.listdir(self._directory)):
                try:
                    with open(open_file(os.path.join(self._directory, name), os.O_RDONLY), "rb") as f:
                        head = json.loads(f.readline(_HEAD_MAX))
                        body = f.read(MAX_SIZE + 1)
                    verify_digest(body, head["digest"])
                    found.append((str(head["image"]), str(head["reference"]), body))
                except (OSError, ValueError, KeyError, TypeError, ImageError):
                    continue
        return found

    def keep(self, image: str, what: str, document: CachedManifest) -> None:
        """Remembers what the registry has answered. Where it cannot be remembered, that is worth a line."""
        head = {"image": image, "reference": what, "digest": document.digest, "media_type": document.media_type}
        try:
            make_directory(self._parent)
            make_directory(self._directory)
            atomic_write(self._path(image, what), json.dumps(head).encode() + b"\n" + document.body)
        except OSError as e:
            self._log(f"cannot store the manifest of {image} in the cache: {e.strerror}")

    def get(
        self, image: str, what: str, ask: Callable[[Callable[[RegistryError], bool]], ManifestResponse]
    ) -> CachedManifest:
        """Return a manifest from here or from the registry.

        `ask` asks the registry, several times if need be, but not once more after an error for which the function that
        it is given is true. Raises what `ask` raises.
        """
        found = self.find(image, what)
        if found and is_digest(what):
            with contextlib.suppress(OSError):
                os.utime(self._path(image, what), follow_symlinks=False)  # else remove_unused() would take it
            return found
        try:
            answer = ask(lambda error: found is not None and _is_unreachable(error))
        except RegistryError as error:
            if not (found and error.temporary):
                raise
            age = show_age(time.time() - found.time)
            self._log(f"{error}; continuing with what {image}:{what} was {age} ago, {found.digest}")
            return found
        document = CachedManifest(answer.body, answer.media_type, digest_as(what, answer.body), time.time())
        self.keep(image, what, document)
        return document

    def remove_unused(self, before: float) -> int:
        """Remove those last asked for before that time (seconds since 1970); return how many.

        Raises UnavailableError.
        """
        count = 0
        try:
            for name in os.listdir(self._directory):
                path = os.path.join(self._directory, name)
                with contextlib.suppress(FileNotFoundError):
                    if os.lstat(path).st_mtime < before:
                        os.unlink(path)
                        count += 1
        except FileNotFoundError:
            return 0
        except OSError as e:
            raise UnavailableError(f"{self._directory}: {e.strerror}") from None
        return count


def _read(path: str) -> tuple[str, str, CachedManifest] | None:
    """Return the image and the reference that it was asked for by, and the manifest; None for what is none."""
    try:
        with open(open_file(path, os.O_RDONLY), "rb") as f:
            head = json.loads(f.readline(_HEAD_MAX))
            body = f.read(MAX_SIZE + 1)
            seen = os.fstat(f.fileno()).st_mtime
        verify_digest(body, head["digest"])
        return head["image"], head["reference"], CachedManifest(body, str(head["media_type"]), head["digest"], seen)
    except (OSError, ValueError, KeyError, TypeError, ImageError):
        return None


def _is_unreachable(error: RegistryError) -> bool:
    """No request could even be sent: it would take long to find out that it stays so."""
    return isinstance(error, TransportError) and error.kind in ("resolve", "connect")
