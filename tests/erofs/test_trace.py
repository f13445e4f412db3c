"""Access traces: files of an image by where they lie and back, what is refused, and data arranged by a trace."""

from __future__ import annotations

import gzip
import hashlib
import io
import random
import stat
import struct
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest

from pyerofs.erofs.arrange import arrange
from pyerofs.erofs.data_map import DataMap
from pyerofs.erofs.device_file import DeviceFile
from pyerofs.erofs.layer_pass import read_layer
from pyerofs.erofs.merge import SMALL_MAX, LayerContent, MergedImage, merge_layers
from pyerofs.erofs.placed_files import PlacedFiles
from pyerofs.erofs.trace import (
    GRANULE,
    TRACE_MAX,
    Trace,
    TracedDevice,
    TracedImage,
    TracedRead,
    locate,
    locate_paths,
    merge,
    resolve,
)
from pyerofs.erofs.tree import Tree
from pyerofs.errors import ImageError
from tests.support.erofsreader import Reader
from tests.support.ordinary import LAYERS, Member, check_layer, directory, file, symlink
from tests.support.tarballs import archive

CHANCE = random.Random(7)
LARGE = CHANCE.randbytes(40 * GRANULE + 5)
OTHER = CHANCE.randbytes(9 * GRANULE)
FILES: list[Member] = [
    directory("usr"),
    file("usr/large", LARGE),
    file("usr/other", OTHER),
    file("usr/small", b"small"),
    file("usr/odd\n name", b"x" * 5000),
    symlink("lib", "usr/../usr"),
    symlink("loop", "loop"),
]
HEAD = "pyerofs-trace 1\ndevice sha256:ab 40960\nfile /a\n"


class Blob:
    """A layer in memory, as a stream."""

    def __init__(self, tar: bytes) -> None:
        self._file = io.BytesIO(gzip.compress(tar))

    def read(self, count: int, /) -> bytes:
        return self._file.read(count)

    def finish(self) -> None:
        """Nothing is to be compared."""


class Made:
    """Layers merged into one image: `image`, and `devices` beside it."""

    def __init__(
        self, path: Path, layers: Sequence[Sequence[Member]], trace: Trace | None = None, small: int | None = None
    ) -> None:
        contents, data = [], []
        for number, layer in enumerate(layers):
            tar = archive(*layer)
            with DeviceFile(str(path)) as device:
                table = read_layer(Blob(tar), device, f"sha256:{hashlib.sha256(tar).hexdigest()}")
                contents.append(LayerContent(f"sha256:{number:064}", table))
                data.append(device.read(0, device.size) if device.size else b"")
        self.found: MergedImage = merge_layers(contents, small, trace)
        primary = b"".join(data[number] for number in self.found.primary)
        if self.found.kept is not None:
            primary = b"".join(primary[start : start + length] for start, length in self.found.kept)
        moved = primary
        if self.found.parts is not None:
            moved = b"".join(primary[offset : offset + length] for offset, length in self.found.parts)
        assert len(moved) == len(primary)
        self.image = bytes(self.found.metadata.data) + moved
        self.devices = [data[number] for number in self.found.devices]

    @property
    def files(self) -> PlacedFiles:
        return PlacedFiles(lambda offset, length: self.image[offset : offset + length], len(self.image))

    @property
    def traced(self) -> TracedImage:
        return TracedImage(self.files, tuple(range(1 + len(self.devices))))

    @property
    def known(self) -> tuple[TracedDevice, ...]:
        return tuple(
            TracedDevice(f"sha256:{number}", len(data)) for number, data in enumerate((self.image, *self.devices))
        )


@pytest.mark.parametrize("small", [None, SMALL_MAX, 0])
def test_an_image_s_files_are_found_by_name_and_place(tmp_path: Path, small: int | None) -> None:
    """Against the tests' own reader, which knows the writer's format by the kernel's header."""
    made = Made(tmp_path, LAYERS, small=small)
    expected = Reader(made.image, made.devices).entries()
    found = {path.decode(errors="surrogateescape").lstrip("/"): inode for path, inode in made.files.walk()}
    assert found.keys() <= expected.keys() | {"", "."}  # one name of each
    assert {name for name, entry in expected.items() if len(entry.links) < 2} <= found.keys() | {"", "."}
    for name, inode in found.items():
        if not stat.S_ISREG(inode.mode):
            continue
        content = bytearray(inode.size)
        for place in made.files.placed(inode):
            device = (made.image, *made.devices)[place.device]
            piece = device[place.start : place.start + place.blocks * 4096]
            content[place.first * 4096 : place.first * 4096 + len(piece)] = piece
        whole = inode.size // 4096 * 4096 if inode.layout == 2 else inode.size
        sought = hashlib.sha256(content[:whole]).hexdigest()
        if whole == inode.size:
            assert sought == expected[name].content, name


def test_paths_lead_through_links(tmp_path: Path) -> None:
    files = Made(tmp_path, [FILES]).files
    for path in (b"/usr/large", b"usr/large", b"/lib/large", b"/lib/../lib//./large", b"/../usr/large"):
        inode = files.lookup(path)
        assert inode is not None and inode.size == len(LARGE), path
    for path in (b"/loop", b"/usr/large/x", b"/nothing", b"/lib/nothing"):
        assert files.lookup(path) is None, path


def cut(data: bytes, offset: int, length: int) -> bytes:
    return data[offset : offset + length]


def test_an_image_may_say_anything(tmp_path: Path) -> None:
    """Never anything but an ImageError, nor more work than there are bytes."""
    image = Made(tmp_path, [FILES]).image
    chance = random.Random(3)
    for _ in range(1500):
        data = bytearray(image[: 16 * 4096])
        for _ in range(chance.randrange(1, 6)):
            data[chance.randrange(1024, len(data))] = chance.randrange(256)
        steps = 0

        def check() -> None:
            nonlocal steps
            steps += 1
            if steps > 10_000:
                raise ImageError("too many")

        try:
            files = PlacedFiles(partial(cut, bytes(data)), len(data), check)
            for _, inode in files.walk():
                for _ in files.placed(inode):
                    pass
            files.lookup(b"/lib/large")
        except ImageError:
            pass


def test_a_directory_on_a_device_of_contents_is_none(tmp_path: Path) -> None:
    made = Made(tmp_path, [FILES], small=0)
    assert made.devices
    inode = made.files.lookup(b"/usr/odd\n name")  # shorter than the image, and so not refused for its size
    assert inode is not None and inode.size < len(made.image)
    head = struct.pack("<H", stat.S_IFREG | stat.S_IMODE(inode.mode))
    at = next(
        at for at in range(0, len(made.image), 32)
        if made.image[at + 4 : at + 6] == head and inode.size.to_bytes(8, "little") == made.image[at + 8 : at + 16]
    )  # fmt: skip
    made.image = made.image[: at + 4] + struct.pack("<H", stat.S_IFDIR | 0o755) + made.image[at + 6 :]
    with pytest.raises(ImageError, match="not to be read"):
        list(made.files.walk())


def touched(made: Made, path: bytes, first: int, granules: int, ms: int = 0) -> tuple[int, int, int]:
    """What a read of a file touches of an image that lies on one device."""
    inode = made.files.lookup(path)
    assert inode is not None
    (place,) = made.files.placed(inode)
    return place.start // GRANULE + first, granules, ms


def trace_of(made: Made, *reads: tuple[bytes, int, int]) -> Trace:
    touches = [touched(made, path, first, count, ms) for ms, (path, first, count) in enumerate(reads)]
    return resolve(made.known, [touches], [made.traced])


def test_reads_are_of_files(tmp_path: Path) -> None:
    made = Made(tmp_path, [FILES])
    begin, _, _ = touched(made, b"/usr/large", 0, 1)
    end, _, _ = touched(made, b"/usr/other", 0, 1)
    assert end - begin == 41  # the one lies behind the other
    found = resolve(made.known, [[(0, 1, 2), (begin + 39, 4, 5), (begin + 3, 1, 7)]], [made.traced])
    assert found.files == (b"/usr/large", b"/usr/other")
    assert found.reads == (
        TracedRead(2, 0, 0, 1, -1, 0),
        TracedRead(5, 0, begin + 39, 2, 0, 39),
        TracedRead(5, 0, end, 2, 1, 0),
        TracedRead(7, 0, begin + 3, 1, 0, 3),
    )
    assert Trace.from_bytes(found.to_bytes()) == found
    assert found.ranges(0)[0] == (0, GRANULE)
    assert found.by_file() == {b"/usr/large": [(39, 2), (3, 1)], b"/usr/other": [(0, 2)]}


def test_names_of_any_bytes_survive(tmp_path: Path) -> None:
    made = Made(tmp_path, [FILES])
    found = trace_of(made, (b"/usr/odd\n name", 0, 1))
    assert found.files == (b"/usr/odd\n name",)
    assert Trace.from_bytes(found.to_bytes()) == found
    assert b"odd%0A%20name" in found.to_bytes()


def test_what_one_image_s_start_read_is_found_in_another(tmp_path: Path) -> None:
    made = Made(tmp_path, [FILES])
    known = trace_of(made, (b"/usr/other", 2, 3), (b"/usr/large", 39, 2))
    other = Made(tmp_path, [[directory("etc"), file("etc/a", b"x" * 60_000)], [*FILES[:1], file("usr/other", OTHER)]])
    inode = other.files.lookup(b"/usr/other")
    assert inode is not None
    (place,) = other.files.placed(inode)
    assert locate([other.traced], known) == [(0, place.start + 2 * GRANULE, 3 * GRANULE)]
    assert locate_paths([other.traced], [b"/usr"]) == [(0, place.start, 9 * GRANULE)]
    with pytest.raises(ImageError, match="there is no /nothing in the image"):
        locate_paths([other.traced], [b"/nothing"])


def test_traces_are_merged_by_time(tmp_path: Path) -> None:
    made = Made(tmp_path, [FILES])
    first = trace_of(made, (b"/usr/large", 0, 4), (b"/usr/large", 8, 4))
    second = trace_of(made, (b"/usr/other", 0, 1), (b"/usr/large", 2, 8))
    found = merge([first, second])
    assert found.by_file() == {b"/usr/large": [(0, 4), (8, 4), (4, 4)], b"/usr/other": [(0, 1)]}
    assert merge([found, found, first]) == found
    assert merge([]) == Trace((), (), ())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\0" * 100,
        "pyerofs-trace 2\n",
        HEAD + "read 0 0 10 1 0 0\n",  # beyond the end
        HEAD + "read 0 0 0 1000000000 0 0\n",
        HEAD + "read 0 0 999999999999 1 0 0\n",
        HEAD + "read 0 1 0 1 0 0\n",  # no such device
        HEAD + "read 0 0 0 1 1 0\n",  # no such file
        HEAD + "read 0 0 0 0 0 0\n",
        HEAD + "read 0 0 -1 1 0 0\n",
        HEAD + "read 0 0 0 99999999999999999999 0 0\n",
        HEAD + "file not/absolute\n",
        HEAD + "other\n",
        HEAD + "read 0 0 0 1 - 0\n" * 262_145,
        HEAD + "#" * TRACE_MAX,
    ],
)
def test_what_is_no_trace_is_refused(text: str) -> None:
    with pytest.raises(ImageError, match=r"^[^\n]+$"):
        Trace.from_bytes(text.encode())


def test_a_trace_cut_anywhere_is_read_or_refused(tmp_path: Path) -> None:
    data = trace_of(Made(tmp_path, [FILES]), (b"/usr/large", 0, 4), (b"/usr/other", 1, 2)).to_bytes()
    for end in range(len(data)):
        try:
            Trace.from_bytes(data[:end])
        except ImageError:
            continue


def test_what_a_start_reads_comes_first(tmp_path: Path) -> None:
    made = Made(tmp_path, LAYERS)
    plain = Made(tmp_path, [FILES, *LAYERS])
    trace = trace_of(plain, (b"/usr/other", 0, 2), (b"/usr/large", 17, 3))
    hot = Made(tmp_path, [FILES, *LAYERS], trace)
    again = Made(tmp_path, [FILES, *LAYERS], trace)
    assert hot.image == again.image
    assert Reader(hot.image).entries() == Reader(plain.image).entries()
    assert len(hot.image) - len(hot.found.metadata.data) == len(plain.image) - len(plain.found.metadata.data)
    start = len(hot.found.metadata.data)
    unit = 4 * GRANULE
    assert hot.image[start : start + hot.found.hot] == OTHER[:unit] + LARGE[4 * unit : 5 * unit]
    path = tmp_path / "image"
    path.write_bytes(hot.image)
    check_layer(path)
    assert made.found.hot == 0


def test_a_file_that_is_read_whole_stays_in_one_piece(tmp_path: Path) -> None:
    trace = trace_of(Made(tmp_path, [FILES]), (b"/usr/other", 0, 5), (b"/usr/other", 5, 4))
    hot = Made(tmp_path, [FILES], trace)
    inode = hot.files.lookup(b"/usr/other")
    assert inode is not None and inode.layout == 0
    assert hot.found.hot == 9 * GRANULE


def test_a_trace_of_another_image_arranges_what_there_is(tmp_path: Path) -> None:
    """And nothing that it tells of what lies beyond a file's end."""
    other = [directory("usr"), file("usr/large", LARGE * 3), file("usr/none", OTHER)]
    trace = trace_of(Made(tmp_path, [other]), (b"/usr/none", 0, 9), (b"/usr/large", 100, 5), (b"/usr/large", 39, 9))
    hot = Made(tmp_path, [FILES], trace)
    assert Reader(hot.image).entries() == Reader(Made(tmp_path, [FILES]).image).entries()
    assert hot.found.hot == 5 * GRANULE


def test_random_traces_change_no_content(tmp_path: Path) -> None:
    expected = Reader(Made(tmp_path, [FILES]).image).entries()
    plain = Made(tmp_path, [FILES])
    chance = random.Random(11)
    for _ in range(30):
        reads = []
        for _ in range(chance.randrange(1, 12)):
            path, blocks = chance.choice(((b"/usr/large", 41), (b"/usr/other", 9), (b"/usr/odd\n name", 2)))
            first = chance.randrange(blocks)
            reads.append((path, first, chance.randrange(1, blocks - first + 1)))
        hot = Made(tmp_path, [FILES], trace_of(plain, *reads))
        assert Reader(hot.image).entries() == expected


def test_data_of_another_device_stay_where_they_are() -> None:
    found = arrange(Tree(), 0, DataMap(), 0, 0, Trace((), (), ()))
    assert (found.parts, found.hot) == ((), 0)
