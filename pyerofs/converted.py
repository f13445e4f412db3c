"""Ordinary images made native in the cache, once, so that they are mounted as native ones are.

    DIRECTORY/converted/ALGORITHM-HEX/        of the manifest of the ordinary image
        image   one line of JSON, then the manifest of what it became
        lock    held while it is being made; its mtime is the last use
        work    what is unpacked meanwhile

The layers are entries of the cache like all others, each of whose bytes has been checked against its chunk index; there
is no other copy. So they are found spoiled, evicted, verified and shared as those are, and a conversion brings back
what has been lost, for mounts too that are open. `image` is written when all layers are complete, and counts only as
long as they are.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from .cache import chosen_directory, entry_path, make_directory
from .cachedir import Place, hold
from .entrylock import lock_entry
from .errors import ImageError, MountFailure, SystemFailure
from .layer import Layer, describe
from .localblob import FileBlobs, LostBlobs, NoConnections
from .localimage import with_index
from .manifest import MAX_SIZE, Descriptor, Manifest, parse, verify_digest
from .ordinary import obstacle, summary
from .source import Image, parts_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .cache import Entry
    from .compose import Part
    from .copyimage import Meter
    from .document import Document
    from .layermaker import Made
    from .options import OCIOptions
    from .ordinary import OrdinaryImage
    from .source import Opener

NAME = "converted"
VERSION = 1  # of what a conversion makes: one by another version is made again
_HEAD_MAX = 4096  # bytes
_IMAGE, _WORK = "image", "work"


class Converted:
    """A converted image, all of which is in the cache, and stays there until close()."""

    def __init__(self, image: Image, held: list[Entry]) -> None:
        self.image = image
        self._held = held

    def parts(self, options: OCIOptions, cancel: Callable[[], bool]) -> list[tuple[Part, Opener]]:
        """As find_parts(). Raises ImageError."""
        blobs = LostBlobs(self.image.name)
        return parts_of(self.image, blobs, NoConnections(), with_index(options), cancel=cancel, converted=True)

    def close(self) -> None:
        for entry in self._held:
            entry.close()
        self._held = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Task(NamedTuple):
    """What is to be converted. `source`: as Place.parse() has it; `name` of the image for people, `digest` of its
    manifest; `summary`: what it is made of."""

    source: str
    name: str
    digest: str
    summary: str


def obtain(source: str, ordinary: OrdinaryImage, options: OCIOptions, ask: Callable[[Task], bool]) -> Converted:
    """The image, converted; where it is not yet, `ask` has somebody do it, and says whether it is done.

    Raises OrdinaryImage where it must not be or cannot be, MountFailure where it was not done.
    """
    if options.convert == "no" or obstacle(ordinary.manifest):
        raise ordinary
    directory = chosen_directory(options)
    found = find(directory, ordinary.digest, ordinary.name)
    if found is None and ask(Task(source, ordinary.name, ordinary.digest, summary(ordinary.manifest))):
        found = find(directory, ordinary.digest, ordinary.name)
    if found is None:
        raise MountFailure(f"{ordinary.name} has not been converted")
    return found


def path_of(directory: str, digest: str) -> str:
    return os.path.join(directory, NAME, digest.replace(":", "-"))


def find(directory: str, digest: str, name: str) -> Converted | None:
    """What the image with this manifest became; None where it has not been converted, or something of it is lost.
    `name`: of the image, for people. Raises UsageError, SystemFailure."""
    manifest = _read(path_of(directory, digest), digest)
    if manifest is None:
        return None
    found = Converted(Image(name, digest, manifest, digest, manifest), [])
    try:
        for number in range(len(manifest.layers)):
            entry = _hold_complete(directory, describe(manifest, number))
            if entry is None:
                found.close()
                return None
            found._held.append(entry)
    except BaseException:
        found.close()
        raise
    with contextlib.suppress(OSError):  # at worst it is removed too early
        os.utime(os.path.join(path_of(directory, digest), "lock"))
    return found


def _read(path: str, digest: str) -> Manifest | None:
    try:
        with open(os.path.join(path, _IMAGE), "rb") as file:
            head = json.loads(file.readline(_HEAD_MAX))
            body = file.read(MAX_SIZE + 1)
        if (head["version"], head["of"]) != (VERSION, digest):
            return None
        verify_digest(body, head["digest"])
        manifest = parse(body)
    except (OSError, ValueError, KeyError, TypeError, ImageError):
        return None
    return manifest if isinstance(manifest, Manifest) else None


def _hold_complete(directory: str, layer: Layer) -> Entry | None:
    """The layer's place in the cache, in use by the caller; None where anything is missing."""
    from .indexfile import find as find_index

    if layer.index is None or find_index(layer, directory) is None:
        return None
    key = layer.verified_key
    entry = hold(Place(entry_path(directory, key), key, 0, 0.0))
    if entry is not None and entry.present() != entry.size:
        entry.close()
        return None
    return entry


def convert(task: Task, options: OCIOptions, report: Callable[[str], None], shown: Meter) -> Converted:
    """Converts the image into the cache, unless another process has done that or is about to: then it waits for it.

    `report` gets a line before it begins, `shown` how far it is. Raises PyerofsError. A conversion that fails or is
    interrupted leaves the layers that were complete, which the next one uses, and nothing else that counts; one that is
    killed also leaves what it had unpacked, which the next one removes.
    """
    directory = chosen_directory(options)
    path = path_of(directory, task.digest)
    try:
        make_directory(directory)
        make_directory(os.path.join(directory, NAME))
        with _locked(path, lambda: report(f"{task.name} is being converted by another process: waiting for it")):
            found = find(directory, task.digest, task.name)
            if found is None:
                report(
                    f"{task.name} has no EROFS layers ({task.summary}): converting it into {directory}, once "
                    "(oci.convert=no refuses)"
                )
                found = _convert(task, directory, options, shown)
            return found
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise SystemFailure(f"cannot convert {task.name}: {error.strerror or error}{where}") from None


def _convert(task: Task, directory: str, options: OCIOptions, shown: Meter) -> Converted:
    from .chunkindex import CHUNK_SIZE
    from .convert import convert_document
    from .place import open_origin

    path = path_of(directory, task.digest)
    with _work_directory(path) as work, _ended_in_order(), contextlib.ExitStack() as stack:
        origin = open_origin(task.source, options)
        stack.callback(origin.close)
        root = origin.root()
        if root.digest != task.digest:
            root = origin.document(Descriptor("", task.digest, 0))
        target = _CacheTarget(task, directory, options)
        stack.callback(target.close)
        convert_document(origin, target, root, CHUNK_SIZE, shown, os.environ.get("TMPDIR") or work)
        found = find(directory, task.digest, task.name)
    if found is None:
        raise SystemFailure(f"{task.name} was converted, but is not in {directory}: who has removed it?")
    return found


@contextlib.contextmanager
def _locked(path: str, waiting: Callable[[], None]) -> Iterator[None]:
    lock = None
    while lock is None:  # it was removed between the two steps
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, mode=0o700)
        lock = lock_entry(path, waiting)
    try:
        yield
    finally:
        os.close(lock)


@contextlib.contextmanager
def _work_directory(path: str) -> Iterator[str]:
    """Whoever holds the lock has it alone."""
    work = os.path.join(path, _WORK)
    shutil.rmtree(work, ignore_errors=True)  # of one that was killed
    os.mkdir(work, mode=0o700)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def _ended_in_order() -> Iterator[None]:
    """SIGTERM is as Ctrl-C, so that what was unpacked is removed. Only a main thread can see to that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _CacheTarget:
    """A Receiver: layers become complete entries of the cache, in use until close()."""

    def __init__(self, task: Task, directory: str, options: OCIOptions) -> None:
        self.name = directory
        self._task = task
        self._directory = directory
        self._options = replace(with_index(options), fill="none")
        self._held: list[Entry] = []

    def add_file(self, digest: str, path: str, progress: Callable[[int], None]) -> str:
        """The config, which no mount needs."""
        return "not kept"

    def add_layer(self, made: Made, progress: Callable[[int], None]) -> str:
        found = made.description
        descriptor = Descriptor(found["mediaType"], made.digest, made.size, found["annotations"])
        layer = describe(Manifest("", (descriptor,)), 0)
        how = "already there"
        entry = _hold_complete(self._directory, layer)
        if entry is None:
            self._write(layer, made.path, progress)
            how, entry = "written", _hold_complete(self._directory, layer)
        if entry is None:
            raise SystemFailure(
                f"cannot keep the converted layers of {self._task.name} in {self._directory}: "
                f"{self._problem or 'they are gone again'}"
            )
        self._held.append(entry)
        return how

    _problem = ""  # what the cache said last

    def _write(self, layer: Layer, path: str, progress: Callable[[int], None]) -> None:
        """Reads it through the cache: each chunk is checked, and what other mounts have lost of it is there again."""
        from .export import Export
        from .imagesource import open_source

        def log(text: str) -> None:
            self._problem = text

        blobs = FileBlobs(lambda _: path)
        source = open_source(self._task.name, layer, blobs, NoConnections(), self._options, log=log)
        export = Export(source, self._options, log)
        try:
            buffer = memoryview(bytearray(min(1 << 20, export.size)))
            for at in range(0, export.size, len(buffer)):
                export.read_into(buffer[: export.size - at], at)
                progress(min(at + len(buffer), export.size))
        finally:
            export.close()

    def add_document(self, document: Document, *, root: bool) -> None:
        head: dict[str, Any] = {
            "version": VERSION,
            "name": self._task.name,
            "of": self._task.digest,
            "digest": document.digest,
        }
        path = os.path.join(path_of(self._directory, self._task.digest), _IMAGE)
        temporary = f"{path}.new"
        with open(temporary, "wb") as file:
            file.write(json.dumps(head).encode() + b"\n" + document.body)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)

    def close(self) -> None:
        for entry in self._held:
            entry.close()
        self._held = []
