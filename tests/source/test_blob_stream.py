"""A blob as a stream: every byte once and in order, whatever breaks off; compared with its digest at the end."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable

import pytest

from pyerofs import retry
from pyerofs.errors import ImageError, NotFoundError, RegistryError
from pyerofs.source.blob_stream import AHEAD, BlobStream

DATA = random.Random(1).randbytes(3 << 20)
Sink = Callable[[int, bytes], bool]


class Blob:
    """Breaks off after each of `pieces` bytes; then it goes on to the end. `whole`: it begins anew each time."""

    def __init__(self, data: bytes = DATA, pieces: tuple[int, ...] = (), *, whole: bool = False) -> None:
        self.digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.size = len(data)
        self.checked = False
        self.directory: str | None = None
        self.asked: list[int] = []
        self.error: Callable[[], RegistryError] = lambda: RegistryError("it broke off", temporary=True)
        self._data, self._pieces, self._whole = data, list(pieces), whole

    def read_range(
        self,
        offset: int,
        length: int,
        sink: Sink,
        *,
        whole: Callable[[], None] | None = None,
        cancel: Callable[[], bool] | None = None,
        begun: Callable[[], bool] | None = None,
    ) -> int:
        self.asked.append(offset)
        at = 0 if self._whole else offset
        end = at + self._pieces.pop(0) if self._pieces else self.size
        for place in range(at, end, 65536):
            if not sink(place, self._data[place : min(end, place + 65536)]):
                return 0
        if end < self.size:
            raise self.error()
        return length


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same policy with shorter pauses."""
    monkeypatch.setattr(retry, "FIRST", 0.001)


def everything(stream: BlobStream) -> bytes:
    found = bytearray()
    while piece := stream.read(100_000):
        found += piece
    stream.finish()
    return bytes(found)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("pieces", [(), (1,), (100_000, 5), (0, 0, 1_000_000)])
def test_every_byte_comes_once_and_in_order(pieces: tuple[int, ...], whole: bool) -> None:
    blob = Blob(pieces=pieces, whole=whole)
    with BlobStream(blob, 20) as stream:
        assert everything(stream) == DATA
    assert len(blob.asked) == len(pieces) + 1
    assert blob.checked


def test_it_goes_on_with_the_next_byte() -> None:
    blob = Blob(pieces=(100_001, 7))
    with BlobStream(blob, 20) as stream:
        assert everything(stream) == DATA
    assert blob.asked == [0, 100_001, 100_008]


def test_another_digest_is_said_at_the_end() -> None:
    blob = Blob()
    blob.digest = "sha256:" + "0" * 64
    with BlobStream(blob, 20) as stream, pytest.raises(ImageError, match="0000 are sha256:"):
        everything(stream)


def test_a_failure_that_is_final_ends_it() -> None:
    blob = Blob(pieces=(5,))
    blob.error = lambda: NotFoundError("it is gone")
    with BlobStream(blob, 20) as stream, pytest.raises(NotFoundError):
        everything(stream)
    assert blob.asked == [0]


def test_it_is_given_up_when_nothing_comes_for_long() -> None:
    blob = Blob(pieces=(5, *([0] * 100_000)))
    with BlobStream(blob, 0.3) as stream, pytest.raises(RegistryError, match="broke off"):
        everything(stream)


def test_memory_is_bounded_and_closing_ends_it() -> None:
    data = bytes(AHEAD * 2)
    blob = Blob(data)
    stream = BlobStream(blob, 20)
    assert stream.read(10) == data[:10]
    assert stream._held <= AHEAD + 65536
    stream.close()


def test_a_reader_that_is_cancelled_hears_it() -> None:
    ended = False
    blob = Blob(pieces=(5, *([0] * 100_000)))
    with BlobStream(blob, 20, cancel=lambda: ended) as stream:
        assert stream.read(5) == DATA[:5]
        ended = True
        with pytest.raises((InterruptedError, RegistryError)):
            everything(stream)
