"""Converting an ordinary image into the cache: what source/converted_cache.py finds there."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..cache.files import replace_file
from ..cache.paths import chosen_directory, make_directory
from ..erofs.layer import Layer, describe
from ..errors import UnavailableError
from ..export.base import Export
from ..oci.location import Location
from ..oci.manifest import Descriptor, Manifest
from ..source.blobs import FileBlobs, NoConnections
from ..source.converted_cache import IMAGE, NAME, VERSION, WORK, find_converted, hold_complete, locked, path_of
from ..source.image_reader import open_reader
from ..source.kinds import open_source
from ..source.open import with_index
from .convert import convert_document
from .layer import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..cache.entry import Entry
    from ..config.options import ReadOptions
    from ..oci.raw_manifest import RawManifest
    from ..source.converted_cache import ConversionRequest, ConvertedImage
    from .copy import Meter
    from .layer import BuiltLayer


def convert(
    task: ConversionRequest, options: ReadOptions, report: Callable[[str], None], shown: Meter
) -> ConvertedImage:
    """Convert the image into the cache, or wait for another process that is doing so.

    `report` gets a line before it begins and one for what cannot be taken over, `shown` how far it is. Raises
    PyerofsError. A conversion that fails or is interrupted leaves the layers that were complete, which the next one
    uses, and nothing else that counts; one that is killed also leaves what it had unpacked, which the next one removes.
    """
    directory = chosen_directory(options)
    path = path_of(directory, task.digest)
    try:
        make_directory(directory)
        make_directory(os.path.join(directory, NAME))
        with locked(path, lambda: report(f"{task.name} is being converted by another process: waiting for it")):
            found = find_converted(directory, task.digest, task.name)
            if found is None:
                report(
                    f"{task.name} has no EROFS layers ({task.summary}): converting it into {directory}, once "
                    "(oci.convert=no refuses)"
                )
                found = _convert(task, directory, options, shown, report)
            return found
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise UnavailableError(f"cannot convert {task.name}: {error.strerror or error}{where}") from None


def _convert(
    task: ConversionRequest, directory: str, options: ReadOptions, shown: Meter, report: Callable[[str], None]
) -> ConvertedImage:
    path = path_of(directory, task.digest)

    def warn(text: str) -> None:
        report(f"{task.name}: {text}")

    with _ended_in_order(), _work_directory(path) as work, contextlib.ExitStack() as stack:
        origin = open_reader(Location.parse(task.source), options)
        stack.callback(origin.close)
        root = origin.document(Descriptor("", task.digest, 0))  # whatever the tag means by now
        target = _CacheWriter(task, directory, options)
        stack.callback(target.close)
        room = os.environ.get("TMPDIR") or work
        convert_document(origin, target, root, Recipe(), shown, warn, options.unpacked_max, room)
        found = find_converted(directory, task.digest, task.name)
    if found is None:
        raise UnavailableError(f"{task.name} was converted, but is not in {directory}: who has removed it?")
    return found


@contextlib.contextmanager
def _work_directory(path: str) -> Iterator[str]:
    """Whoever holds the lock has it alone."""
    work = os.path.join(path, WORK)
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


class _CacheWriter:
    """A Receiver: layers become complete entries of the cache, in use until close()."""

    def __init__(self, task: ConversionRequest, directory: str, options: ReadOptions) -> None:
        self.name = directory
        self._task = task
        self._directory = directory
        self._options = replace(with_index(options), fill="none")
        self._held: list[Entry] = []

    def add_file(self, digest: str, path: str, progress: Callable[[int], None]) -> str:
        """Ignore the config, which no mount needs."""
        return "not kept"

    def add_layer(self, made: BuiltLayer, progress: Callable[[int], None]) -> str:
        found = made.description
        descriptor = Descriptor(found["mediaType"], made.digest, made.size, found["annotations"])
        layer = describe(Manifest("", (descriptor,)), 0)
        how = "already there"
        entry = hold_complete(self._directory, layer)
        if entry is None:
            self._write(layer, made.path, progress)
            how, entry = "written", hold_complete(self._directory, layer)
        if entry is None:
            raise UnavailableError(
                f"cannot keep the converted layers of {self._task.name} in {self._directory}: "
                f"{self._problem or 'they are gone again'}"
            )
        self._held.append(entry)
        return how

    _problem = ""  # what the cache said last

    def _write(self, layer: Layer, path: str, progress: Callable[[int], None]) -> None:
        """Read the layer through the cache.

        Each chunk is checked, and what other mounts have lost of it is restored.
        """

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

    def add_document(self, document: RawManifest, *, root: bool) -> None:
        head: dict[str, Any] = {
            "version": VERSION,
            "name": self._task.name,
            "of": self._task.digest,
            "digest": document.digest,
        }
        path = os.path.join(path_of(self._directory, self._task.digest), IMAGE)
        replace_file(path, json.dumps(head).encode() + b"\n" + document.body, durable=True)

    def close(self) -> None:
        for entry in self._held:
            entry.close()
        self._held = []
