"""A tar archive as a stream of entries: v7, ustar, pax and GNU, with long names, big numbers, xattrs and sparse files.

pax(1), "Extended Description"; GNU tar manual, "Basic Tar Format" and "Storing Sparse Files". Python's tarfile takes a
header that is damaged for the archive's end, and reads a pax header of any size into memory: here both are ImageError,
as is whatever else is wrong. Where extended headers contradict each other they are read as by Go's archive/tar, which
all container engines use: a GNU long name wins over a pax path, and a global header has no effect, but ends what was
announced for the next entry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from ..errors import ImageError

FILE, HARD_LINK, SYMLINK, CHARACTER, BLOCK, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
_OLD_FILE, _CONTIGUOUS, _GNU_SPARSE = b"\0", b"7", b"S"
_PAX, _PAX_SOLARIS, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK = b"x", b"X", b"g", b"L", b"K"
_FILES = (FILE, _OLD_FILE, _CONTIGUOUS, _GNU_SPARSE)
_KINDS = (*_FILES, HARD_LINK, SYMLINK, CHARACTER, BLOCK, DIRECTORY, FIFO)

_BLOCK = 512  # bytes
_SPECIAL_MAX = 1 << 20  # bytes of a long name, a pax header, a sparse map
_PIECE = 1 << 20  # bytes
_SIZE_MAX = 2**63 - 1
_XATTR = b"SCHILY.xattr."
_SPARSE = b"GNU.sparse."

Map = list[tuple[int, int]]  # of a sparse file: offset and length of what is no hole


class TarEntry(NamedTuple):
    """`kind`: one of the constants above. `size` of a file's content, holes included. `mtime` in nanoseconds."""

    name: bytes
    kind: bytes
    mode: int
    uid: int
    gid: int
    mtime: int
    size: int
    link: bytes
    device: tuple[int, int]
    xattrs: dict[bytes, bytes]

    def __str__(self) -> str:
        return show(self.name)


def show(name: bytes) -> str:
    """Return a name fit for one line of a message."""
    text = ascii(name.decode("utf-8", "backslashreplace"))
    return text if len(text) <= 120 else f"{text[:117]}...'"


class Tar:
    """The entries in `read`, which gives up to n bytes, and none only at its end. For one thread.

    `skip`, where there is one, passes over n bytes and says whether they were there.
    """

    def __init__(self, read: Callable[[int], bytes], skip: Callable[[int], bool] | None = None) -> None:
        self._read = read
        self._pass_over = skip
        self.position = 0  # bytes that have been read
        self._left = 0  # of the entry's stored content
        self._padding = 0
        self._map: Map = []

    def __iter__(self) -> Iterator[TarEntry]:
        """Each entry is good until the next one is asked for. Raises ImageError."""
        pax: dict[bytes, bytes] = {}
        sparse: list[tuple[bytes, bytes]] = []
        long_name = long_link = b""
        while True:
            self._skip()
            header = self._header()
            if header is None:
                return
            kind, size = header[156:157], _number(header[124:136])
            if not 0 <= size <= _SIZE_MAX:
                raise _broken(f"a size of {size}")
            if kind in (_PAX, _PAX_SOLARIS):
                records = _records(self._special(size))
                pax = dict(records)
                sparse = [record for record in records if record[0].startswith(_SPARSE)]
            elif kind == _LONG_NAME:
                long_name = self._special(size).partition(b"\0")[0]
            elif kind == _LONG_LINK:
                long_link = self._special(size).partition(b"\0")[0]
            else:
                if kind == _PAX_GLOBAL:
                    self._expect(size)
                else:
                    yield self._entry(header, pax, sparse, long_name, long_link)
                pax, sparse, long_name, long_link = {}, [], b"", b""

    @property
    def is_whole(self) -> bool:
        """Whether the content of the file just given lies in one piece in the archive, from `position` on."""
        return self._map == [(0, self._left)]

    def data(self) -> Iterator[tuple[int, bytes]]:
        """Yield the content of the file just given, in pieces with their offsets; what no piece covers is zeros."""
        for offset, length in self._map:
            end = offset + length
            while offset < end:
                piece = self._some(min(end - offset, _PIECE))
                self._left -= len(piece)
                yield offset, piece
                offset += len(piece)
        self._map = []

    def _entry(
        self,
        header: bytes,
        pax: dict[bytes, bytes],
        sparse: list[tuple[bytes, bytes]],
        long_name: bytes,
        long_link: bytes,
    ) -> TarEntry:
        kind = header[156:157]
        if kind not in _KINDS:
            raise _broken(f"an entry of the unknown type {kind!r}")
        name = long_name or pax.get(b"path") or _name(header)
        link = long_link or pax.get(b"linkpath") or _text(header[157:257])
        if kind == _OLD_FILE and name.endswith(b"/"):
            kind = DIRECTORY
        stored = _digits(pax[b"size"]) if pax.get(b"size") else _number(header[124:136])
        size = stored
        if kind in _FILES:
            self._expect(stored)
            if kind == _GNU_SPARSE:
                size = self._old_sparse(header, stored)
            elif sparse:
                size = self._pax_sparse(sparse)
                name = pax.get(b"GNU.sparse.name") or name
            kind = FILE
        else:
            size = 0
        if b"\0" in name or b"\0" in link:
            raise _broken(f"a NUL in the name {show(name)}")
        return TarEntry(
            name=name,
            kind=kind,
            mode=_number(header[100:108]) & 0o7777,
            uid=_owner(pax, b"uid", header[108:116]),
            gid=_owner(pax, b"gid", header[116:124]),
            mtime=_time(pax, header[136:148]),
            size=size,
            link=link,
            device=_device(header) if kind in (CHARACTER, BLOCK) else (0, 0),
            xattrs={key[len(_XATTR) :]: value for key, value in pax.items() if key.startswith(_XATTR)},
        )

    # Sparse files

    def _old_sparse(self, header: bytes, stored: int) -> int:
        fields, more = header[386:482], header[482]
        found: Map = []
        while True:
            for at in range(0, len(fields) // 24 * 24, 24):
                if fields[at] == 0:
                    break
                found.append((_number(fields[at : at + 12]), _number(fields[at + 12 : at + 24])))
            if not more:
                break
            if len(found) * 24 > _SPECIAL_MAX:
                raise _broken("a sparse file in too many pieces")
            block = self._exactly(_BLOCK)  # which the size does not count
            fields, more = block[:504], block[504]
        size = _number(header[483:495])
        self._set_map(found, stored, size)
        return size

    def _pax_sparse(self, records: list[tuple[bytes, bytes]]) -> int:
        values = {key.removeprefix(_SPARSE): value for key, value in records}
        if values.get(b"major") == b"1" and values.get(b"minor") == b"0":
            numbers = self._map_in_data()
        elif b"map" in values:
            numbers = [_digits(word) for word in values[b"map"].split(b",")] if values[b"map"] else []
        elif b"numblocks" in values:
            wanted = (_SPARSE + b"offset", _SPARSE + b"numbytes")
            numbers = [_digits(value) for key, value in records if key in wanted]
        else:
            return self._left  # only other facts of the file
        if len(numbers) % 2:
            raise _broken("a sparse map with an odd number of numbers")
        size = _digits(values.get(b"realsize") or values.get(b"size") or b"")
        self._set_map(list(zip(numbers[::2], numbers[1::2], strict=True)), self._left, size)
        return size

    def _map_in_data(self) -> list[int]:
        """GNU format 1.0: decimal lines in front of the content, padded to whole blocks."""
        text = b""
        numbers: list[int] = []
        while not numbers or len(numbers) < 1 + 2 * numbers[0]:
            if self._left < _BLOCK or (numbers and numbers[0] * 4 > _SPECIAL_MAX):
                raise _broken("a sparse map that does not end")
            *lines, text = (text + self._exactly(_BLOCK)).split(b"\n")
            self._left -= _BLOCK
            numbers += map(_digits, lines)
        return numbers[1 : 1 + 2 * numbers[0]]

    def _set_map(self, found: Map, stored: int, size: int) -> None:
        end = total = 0
        for offset, length in found:
            if offset < end or length < 0:
                raise _broken("a sparse map that is not in order")
            end = offset + length
            total += length
        if end > size or total != stored or size > _SIZE_MAX:
            raise _broken("a sparse map that does not fit its file")
        self._map = found

    # Blocks

    def _header(self) -> bytes | None:
        """Return the next header; None at the archive's end."""
        block = self._up_to(_BLOCK)
        if not block:
            return None
        if len(block) < _BLOCK:
            raise _broken("an end within a header")
        if not any(block):
            if any(self._up_to(_BLOCK)):
                raise _broken("an empty header in the middle")
            return None
        stated = _number(block[148:156])
        rest = block[:148] + b" " * 8 + block[156:]
        if stated != sum(rest) and stated != sum(rest) - 256 * sum(byte > 127 for byte in rest):
            raise _broken("a header with a wrong checksum" if self.position > _BLOCK else "no tar header at its start")
        return block

    def _special(self, size: int) -> bytes:
        if size > _SPECIAL_MAX:
            raise _broken(f"an extended header of {size} bytes")
        self._expect(size)
        self._left, self._map = 0, []
        return self._exactly(size)

    def _expect(self, size: int) -> None:
        if not 0 <= size <= _SIZE_MAX:
            raise _broken(f"a size of {size}")
        self._left, self._padding, self._map = size, -size % _BLOCK, [(0, size)]

    def _skip(self) -> None:
        left, self._left, self._padding, self._map = self._left + self._padding, 0, 0, []
        if left and self._pass_over:
            if not self._pass_over(left):
                raise _broken("an end within an entry")
            self.position += left
            return
        while left:
            left -= len(self._some(min(left, _PIECE)))

    def _some(self, most: int) -> bytes:
        piece = self._read(most)
        if not piece:
            raise _broken("an end within an entry")
        self.position += len(piece)
        return piece

    def _exactly(self, count: int) -> bytes:
        found = self._up_to(count)
        if len(found) < count:
            raise _broken("an end within an entry")
        return found

    def _up_to(self, count: int) -> bytes:
        found = b""
        while len(found) < count and (piece := self._read(count - len(found))):
            found += piece
        self.position += len(found)
        return found


def _records(text: bytes) -> list[tuple[bytes, bytes]]:
    """Of a pax header: "LENGTH KEY=VALUE\\n", the length counting all of it. The value may hold anything."""
    found = []
    at = 0
    while at < len(text):
        blank = text.find(b" ", at, at + 20)
        if blank < 0:
            raise _broken("a broken pax header")
        length = _digits(text[at:blank])
        key, equals, value = text[blank + 1 : at + length - 1].partition(b"=")
        sound = length > blank - at + 2 and at + length <= len(text) and text[at + length - 1 : at + length] == b"\n"
        if not sound or not equals or b"\0" in key:
            raise _broken("a broken pax header")
        found.append((key, value))
        at += length
    return found


def _name(header: bytes) -> bytes:
    name = _text(header[:100])
    prefix = b""
    if header[257:263] == b"ustar\0":
        prefix = _text(header[345:476] if header[508:512] == b"tar\0" else header[345:500])
    return prefix + b"/" + name if prefix else name


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # GNU: two's complement, the first bit a mark
        value = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
        return value - (1 << (8 * len(field) - 1)) if field[0] & 0x40 else value
    digits = field.strip(b" \0")
    try:
        return int(digits.partition(b"\0")[0], 8) if digits else 0
    except ValueError:
        raise _broken(f"a header with {field!r} for a number") from None


def _digits(text: bytes) -> int:
    if not text.isdigit() or len(text) > 20:
        raise _broken(f"{show(text)} for a number")
    return int(text)


def _owner(pax: dict[bytes, bytes], key: bytes, field: bytes) -> int:
    value = _digits(pax[key]) if pax.get(key) else _number(field)
    if not 0 <= value < 2**32 - 1:  # the last one means "leave it" to chown(2)
        raise _broken(f"an owner with the number {value}")
    return value


def _device(header: bytes) -> tuple[int, int]:
    major, minor = _number(header[329:337]), _number(header[337:345])
    if not (0 <= major < 1 << 12 and 0 <= minor < 1 << 20):  # all that Linux has
        raise _broken(f"a device with the numbers {major}:{minor}")
    return major, minor


def _time(pax: dict[bytes, bytes], field: bytes) -> int:
    """Nanoseconds, of a pax header's decimal fraction exactly; what is finer is cut off."""
    text = pax.get(b"mtime")
    if text:
        seconds, _, fraction = text.removeprefix(b"-").partition(b".")
        if fraction and not fraction.isdigit():
            raise _broken(f"{show(text)} for a time")
        time = _digits(seconds) * 10**9 + int(fraction[:9].ljust(9, b"0"))
        time = -time if text.startswith(b"-") else time
    else:
        time = _number(field) * 10**9
    if abs(time) >= 1 << 70:  # tens of thousands of years
        raise _broken(f"a time of {time // 10**9} s")
    return time


def _broken(what: str) -> ImageError:
    return ImageError(f"the layer is not a valid tar archive: it has {what}")
