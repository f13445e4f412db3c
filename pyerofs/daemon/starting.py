"""What is known and learned of a mount's start: what it will read is fetched before, and what it has read is noted.

Files are named through the image's own metadata, and found again by name in another image: so what one tag of an image
read at its start is fetched early for the next.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from ..cache.paths import chosen_directory
from ..core import GRANULE
from ..errors import ImageError, PyerofsError
from ..source.local import LocalSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ..config.options import MountOptions
    from ..erofs.trace import Trace, TracedDevice, TracedImage
    from ..oci.location import Location
    from .served_layer import ServedLayer

QUIET = 3.0  # seconds without anything new: the start is over
LONGEST = 60.0  # seconds that are watched
LOOK = 0.5  # seconds between two looks
PATIENCE = 20.0  # seconds for a look through an image
FILES_MAX = 50_000  # inodes of an image that is walked through for what one start read


class MountStart:
    """Watches and helps one mount's start. Owns a thread from begin() on; end() before the parts are closed.

    `log` gets a line for the user. Other methods: any thread.
    """

    def __init__(
        self,
        parts: Sequence[ServedLayer],
        location: Location,
        options: MountOptions,
        log: Callable[[str], None],
        debug: Callable[[str], None],
    ):
        self._parts = parts
        self._options = options
        self._log, self._debug = log, debug
        self._name = str(location)
        if location.kind == "registry":
            self._name = f"{location.reference.registry}/{location.reference.repository}"
        self._directory = "" if location.is_file else chosen_directory(options.oci)
        self._ending = threading.Event()
        self._threads: list[threading.Thread] = []

    def begin(self) -> None:
        """Fetch what the start will read, as far as oci.prefetch and earlier starts tell."""
        if self._directory and self._options.oci.prefetch != "none":
            self._spawn(self._prefetch_known)

    def mounted(self) -> None:
        """Learn what the start reads."""
        if self._directory and self._options.oci.prefetch == "auto" and not self._is_complete():
            self._spawn(self._learn)

    def end(self) -> None:
        """Return when nothing is under way any more."""
        self._ending.set()
        for thread in self._threads:
            thread.join()

    def _spawn(self, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                work()
            except (PyerofsError, OSError) as error:
                self._debug(f"the start's trace: {error}")

        thread = threading.Thread(target=run, name="pyerofs-start", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no memory: the mount does without it
            return
        self._threads.append(thread)

    def _is_complete(self) -> bool:
        return all(part.export.store.has(0, part.export.size) for part in self._parts)

    # What will be read

    def _prefetch_known(self) -> None:
        if self._is_complete():
            return
        wanted = self._options.oci.prefetch
        if wanted not in ("auto", "none"):
            try:
                self.prefetch(path.encode(errors="surrogateescape") for path in wanted)
            except ImageError as error:
                self._log(f"oci.prefetch: {error}")
            return
        from ..cache.traces import find_trace

        data = find_trace(self._directory, self._name)
        if not data:
            return
        from ..erofs.trace import Trace, locate

        try:
            known = Trace.from_bytes(data)
        except ImageError as error:
            self._log(f"what was learned of the start of {self._name} is of no use: {error}")
            return
        if known.devices == self._devices():
            for number, part in enumerate(self._parts):
                part.export.prefetch(known.ranges(number))
        else:
            self._fetch(locate(self._images(), known))

    def prefetch(self, paths: Iterable[bytes]) -> tuple[int, int]:
        """Fetch these files and all below these directories; all of the image for none.

        Return how many bytes they have, and how many of them are here. Raises ImageError for a path that is not there.
        """
        from ..erofs.trace import locate_paths

        chosen = list(paths)
        if chosen:
            found = locate_paths(self._images(), chosen)
        else:
            found = [(number, 0, part.export.size) for number, part in enumerate(self._parts)]
        self._fetch(found)
        wanted = here = 0
        for number, offset, length in set(found):
            export = self._parts[number].export
            end = min(offset + length, export.size)
            for at in range(offset, end, GRANULE):
                size = min(GRANULE, end - at)
                wanted += size
                here += size if export.store.has(at, size) else 0
        return wanted, here

    def _fetch(self, found: Sequence[tuple[int, int, int]]) -> None:
        for number, part in enumerate(self._parts):
            ranges = [(offset, length) for device, offset, length in found if device == number]
            if ranges:
                part.export.prefetch(ranges)

    # What was read

    def trace(self, files_max: int | None = None) -> Trace:
        """Return what has been read so far."""
        from ..erofs.trace import resolve

        touched = [
            [(touch.first, touch.granules, touch.ms) for touch in part.export.store.trace()] for part in self._parts
        ]
        try:
            return resolve(self._devices(), touched, self._images(), files_max)
        except (PyerofsError, OSError, ValueError) as error:
            self._debug(f"the trace has no names of files: {error}")
            return resolve(self._devices(), touched, ())

    def _devices(self) -> tuple[TracedDevice, ...]:
        from ..erofs.trace import TracedDevice

        return tuple(TracedDevice(_digest(part), part.export.size) for part in self._parts)

    def _images(self) -> list[TracedImage]:
        """Those that have names, the uppermost first."""
        from ..erofs.placed_files import PlacedFiles
        from ..erofs.trace import TracedImage

        numbers = {part.layer: number for number, part in enumerate(self._parts)}
        deadline = time.monotonic() + PATIENCE

        def check() -> None:
            if self._ending.is_set() or time.monotonic() > deadline:
                raise ImageError("looking through the image took too long")

        found = []
        for number, part in reversed(list(enumerate(self._parts))):
            if part.role == "lower":
                files = PlacedFiles(_reader(part, check), part.export.size, check)
                found.append(TracedImage(files, (number, *(numbers[device] for device in part.devices))))
        return found

    def _learn(self) -> None:
        started = time.monotonic()
        count, changed = -1, started
        while not self._ending.wait(LOOK):
            now = time.monotonic()
            noted = sum(part.export.store.trace_length() for part in self._parts)
            if noted != count:
                count, changed = noted, now
            if now - changed >= QUIET or now - started >= LONGEST:
                break
        self._keep()

    def _keep(self) -> None:
        """Keep what was learned, unless it is of this very image already."""
        from ..cache.traces import find_trace, keep_trace
        from ..erofs.trace import Trace

        before = find_trace(self._directory, self._name)
        if before:
            try:
                if Trace.from_bytes(before).devices == self._devices():
                    return
            except ImageError:
                pass  # it is replaced
        found = self.trace(FILES_MAX)
        if found.reads:
            keep_trace(self._directory, self._name, found.to_bytes())

    def write(self) -> None:
        """Write what oci.trace asks for."""
        if self._options.trace is None:
            return
        from ..files import atomic_write

        try:
            atomic_write(self._options.trace, self.trace().to_bytes(), mode=0o644)
        except OSError as error:
            self._log(f"cannot write {self._options.trace}: {error.strerror}")


def _digest(part: ServedLayer) -> str:
    source = part.export.source
    return "" if isinstance(source, LocalSource) else source.storage.key


def _reader(part: ServedLayer, check: Callable[[], None]) -> Callable[[int, int], bytes]:
    export = part.export

    def read(offset: int, length: int) -> bytes:
        buffer = bytearray(length)
        done = 0
        with export.reading():
            while done < length:
                check()
                done += export.store.read_into(memoryview(buffer)[done:], offset + done, LOOK)
        return bytes(buffer)

    return read
