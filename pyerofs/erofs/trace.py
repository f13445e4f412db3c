"""Access traces: what of an image was read first, in which order, and from which files.

As text, so that it can be looked at, compared and kept with an image's recipe:

    pyerofs-trace 1
    device sha256:... 230162432         the devices, by number, with their bytes
    file /usr/bin/python3.11            the files, by number; a byte that is not printable ASCII is %XX
    read 12 0 352 32 - 0                milliseconds, device, first granule, granules, file (or -), block of the file

A trace may come from a stranger: from_bytes() takes no more time and memory than TRACE_MAX bytes are worth.
"""

from __future__ import annotations

import re
import stat
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple
from urllib.parse import quote_from_bytes, unquote_to_bytes

from ..errors import ImageError
from .placed_files import PlacedFiles

GRANULE = 4096  # bytes
TRACE_MAX = 16 << 20  # bytes of a file
_HEAD = "pyerofs-trace 1"
_READS_MAX = 1 << 18
_SAFE = "/!#$&'()*+,-.:;<=>?@[]^_`{|}~"
_DEVICE = re.compile(r"device (\S{1,200}) (\d{1,14})")
_FILE = re.compile(r"file (/\S{0,12300})")
_READ = re.compile(r"read (\d{1,9}) (\d{1,4}) (\d{1,12}) (\d{1,9}) (-|\d{1,6}) (\d{1,12})")


class TracedDevice(NamedTuple):
    """A device by its layer's digest. `size` in bytes."""

    digest: str
    size: int


class TracedRead(NamedTuple):
    """`granules` from number `first` on of a device that were read for the first time after `ms`.

    `file`: by its number, -1 for metadata; `block`: of the file, where they begin.
    """

    ms: int
    device: int
    first: int
    granules: int
    file: int
    block: int


class Trace(NamedTuple):
    """`reads` in the order in which they came. `files`: paths in the image, with a slash in front."""

    devices: tuple[TracedDevice, ...]
    files: tuple[bytes, ...]
    reads: tuple[TracedRead, ...]

    def to_bytes(self) -> bytes:
        """Return the text of the trace."""
        lines = [_HEAD]
        lines += [f"device {device.digest or '-'} {device.size}" for device in self.devices]
        lines += [f"file {quote_from_bytes(path, safe=_SAFE)}" for path in self.files]
        for ms, device, first, count, file, block in self.reads:
            lines.append(f"read {ms} {device} {first} {count} {file if file >= 0 else '-'} {block}")
        return "\n".join([*lines, ""]).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Trace:
        """Read what to_bytes() gave, or somebody else. Raises ImageError for what is no trace."""
        if len(data) > TRACE_MAX:
            raise ImageError(f"the trace has {len(data)} bytes: at most {TRACE_MAX} are read")
        devices: list[TracedDevice] = []
        files: list[bytes] = []
        reads: list[TracedRead] = []
        lines = data.decode("ascii", "replace").split("\n")
        if lines[0] != _HEAD:
            raise ImageError(f"it is no trace: it does not begin with {_HEAD!r}")
        for number, line in enumerate(lines[1:], 2):
            if found := _READ.fullmatch(line):
                ms, device, first, count, block = (int(found[group]) for group in (1, 2, 3, 4, 6))
                read = TracedRead(ms, device, first, count, -1 if found[5] == "-" else int(found[5]), block)
                if device >= len(devices) or read.file >= len(files) or not count:
                    raise ImageError(f"line {number} of the trace names what it does not have")
                if (first + count - 1) * GRANULE >= devices[device].size:
                    raise ImageError(f"line {number} of the trace is about what lies beyond the device's end")
                reads.append(read)
            elif found := _DEVICE.fullmatch(line):
                devices.append(TracedDevice("" if found[1] == "-" else found[1], int(found[2])))
            elif found := _FILE.fullmatch(line):
                files.append(unquote_to_bytes(found[1]))
            elif line:
                raise ImageError(f"line {number} of the trace is none that is known")
            if len(reads) > _READS_MAX:
                raise ImageError(f"the trace has more than {_READS_MAX} reads")
        return cls(tuple(devices), tuple(files), tuple(reads))

    def ranges(self, device: int) -> list[tuple[int, int]]:
        """Return what of a device was read, as offsets and lengths in bytes, in order."""
        size = self.devices[device].size
        return [
            (read.first * GRANULE, min(read.granules * GRANULE, size - read.first * GRANULE))
            for read in self.reads
            if read.device == device
        ]

    def by_file(self) -> dict[bytes, list[tuple[int, int]]]:
        """Return what of each file was read, as blocks (the first, and how many), the files in order."""
        found: dict[bytes, list[tuple[int, int]]] = {}
        for read in self.reads:
            if read.file >= 0:
                found.setdefault(self.files[read.file], []).append((read.block, read.granules))
        return found


def merge(traces: Sequence[Trace]) -> Trace:
    """Return one trace with what is in any of them, by the time of each; what several have comes once."""
    devices: dict[TracedDevice, int] = {}
    files: dict[bytes, int] = {}
    reads: list[TracedRead] = []
    for trace in traces:
        device_of = [devices.setdefault(device, len(devices)) for device in trace.devices]
        file_of = [files.setdefault(path, len(files)) for path in trace.files]
        for read in trace.reads:
            file = file_of[read.file] if read.file >= 0 else -1
            reads.append(read._replace(device=device_of[read.device], file=file))
    reads.sort(key=lambda read: read.ms)
    seen = [Seen() for _ in devices]
    kept = [part for read in reads for part in _unseen(read, seen[read.device])]
    return Trace(tuple(devices), tuple(files), tuple(kept))


class Seen:
    """Numbers that have come, as ranges that do not touch."""

    def __init__(self) -> None:
        self._firsts: list[int] = []
        self._ends: list[int] = []

    def add(self, first: int, end: int) -> list[tuple[int, int]]:
        """Add a range, and return what of it had not come before."""
        at = bisect_left(self._ends, first)
        stop = bisect_right(self._firsts, end)
        new, here = [], first
        for number in range(at, stop):
            if here < self._firsts[number]:
                new.append((here, self._firsts[number]))
            here = max(here, self._ends[number])
        if here < end:
            new.append((here, end))
        if at < stop:
            first, end = min(first, self._firsts[at]), max(end, self._ends[stop - 1])
        self._firsts[at:stop], self._ends[at:stop] = [first], [end]
        return new


def _unseen(read: TracedRead, seen: Seen) -> Iterator[TracedRead]:
    for first, end in seen.add(read.first, read.first + read.granules):
        block = read.block + first - read.first if read.file >= 0 else 0
        yield read._replace(first=first, granules=end - first, block=block)


class TracedImage(NamedTuple):
    """An image that was read. `devices`: the numbers in the trace of its own devices, the primary one first."""

    files: PlacedFiles
    devices: tuple[int, ...]


def resolve(
    devices: Sequence[TracedDevice],
    touched: Sequence[Iterable[tuple[int, int, int]]],
    images: Iterable[TracedImage],
    files_max: int | None = None,
) -> Trace:
    """Make a trace of what was read: for each device granules (the first, how many, ms) in order.

    Files are found by walking through the `images`; those with more than `files_max` inodes are left without names.
    Raises ImageError, and what reading the images raises.
    """
    reads = sorted(
        (TracedRead(ms, number, first, count, -1, 0) for number, of in enumerate(touched) for first, count, ms in of),
        key=lambda read: read.ms,
    )
    index: list[list[tuple[int, int]]] = [[] for _ in devices]
    for read in reads:
        index[read.device].append((read.first, read.first + read.granules))
    for ranges in index:
        ranges.sort()
    paths: dict[bytes, int] = {}
    owners: list[list[tuple[int, int, int, int]]] = [[] for _ in devices]  # granules: first, end; file, its block
    for image in images:
        if files_max is not None and image.files.inodes > files_max:
            continue
        scale = GRANULE / image.files.block
        for path, inode in image.files.walk():
            if not stat.S_ISREG(inode.mode):
                continue
            for place in image.files.placed(inode):
                if place.device >= len(image.devices):
                    raise ImageError("a file is on a device that the image does not have")
                number = image.devices[place.device]
                first = place.start // GRANULE
                end = -(-(place.start + place.blocks * image.files.block) // GRANULE)
                ranges = index[number]
                at = bisect_right(ranges, (first, 1 << 62)) - 1
                touches = (at >= 0 and ranges[at][1] > first) or (at + 1 < len(ranges) and ranges[at + 1][0] < end)
                if touches:
                    file = paths.setdefault(path, len(paths))
                    owners[number].append((first, end, file, int(place.first / scale)))
    for owned in owners:
        owned.sort()
    found = [part for read in reads for part in _owned(read, owners[read.device])]
    return Trace(tuple(devices), tuple(paths), tuple(found))


def _owned(read: TracedRead, owned: list[tuple[int, int, int, int]]) -> Iterator[TracedRead]:
    """Divide a read where it goes from one file to another."""
    at, end = read.first, read.first + read.granules
    number = max(0, bisect_right(owned, (at, 1 << 62, 0, 0)) - 1)
    while at < end:
        while number < len(owned) and owned[number][1] <= at:
            number += 1
        if number == len(owned) or owned[number][0] >= end:
            yield read._replace(first=at, granules=end - at)
            return
        first, last, file, block = owned[number]
        if at < first:
            yield read._replace(first=at, granules=first - at)
            at = first
        stop = min(end, last)
        yield read._replace(first=at, granules=stop - at, file=file, block=block + at - first)
        at = stop


def locate(images: Sequence[TracedImage], trace: Trace) -> list[tuple[int, int, int]]:
    """Return where other images have what the trace tells of files: device, offset and length in bytes, in order.

    `images`: the uppermost first. What is not there is left out. Raises as resolve() does.
    """
    places: dict[bytes, tuple[TracedImage, list[tuple[int, int, int, int]]] | None] = {}
    found: list[tuple[int, int, int]] = []
    for read in trace.reads:
        if read.file < 0:
            continue
        path = trace.files[read.file]
        if path not in places:
            places[path] = _place(images, path)
        known = places[path]
        if known is None:
            continue
        image, pieces = known
        scale = GRANULE // min(GRANULE, image.files.block)
        first, end = read.block * scale, (read.block + read.granules) * scale
        for begin, count, device, start in pieces:
            low, high = max(first, begin), min(end, begin + count)
            if low < high:
                block = image.files.block
                found.append((image.devices[device], start + (low - begin) * block, (high - low) * block))
    return found


def locate_paths(images: Sequence[TracedImage], paths: Iterable[bytes]) -> list[tuple[int, int, int]]:
    """Return where all of these files, and all below these directories, lies, as locate() does.

    Raises ImageError for a path that no image has too.
    """
    found: list[tuple[int, int, int]] = []
    for path in paths:
        there = False
        for image in images:
            inode = image.files.lookup(path)
            if inode is None:
                continue
            there = True
            for _, inner in image.files.walk(inode):
                for place in image.files.placed(inner):
                    length = place.blocks * image.files.block
                    found.append((image.devices[place.device], place.start, length))
        if not there:
            raise ImageError(f"there is no {path.decode(errors='backslashreplace')} in the image")
    return found


def _place(images: Sequence[TracedImage], path: bytes) -> tuple[TracedImage, list[tuple[int, int, int, int]]] | None:
    for image in images:
        inode = image.files.lookup(path)
        if inode is not None and stat.S_ISREG(inode.mode):
            return image, [
                (place.first, place.blocks, place.device, place.start) for place in image.files.placed(inode)
            ]
    return None
