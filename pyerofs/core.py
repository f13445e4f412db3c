"""The face of the C core: the only module that touches pyerofs._core, and the one place where -errno becomes OSError.

What each call does, and which of them block, is said in csrc/pyerofs.h. Every method may be called from any thread;
close() only after all others have returned. File descriptors stay the caller's and must outlive the object.
"""

from __future__ import annotations

import os
import warnings
from array import array
from errno import EAGAIN, ENOMEM, ESHUTDOWN
from typing import TYPE_CHECKING, Any, NamedTuple

from ._core import ffi, lib
from .core_values import Latency as Latency
from .core_values import Run as Run
from .core_values import Stats as Stats
from .core_values import Touch as Touch

if TYPE_CHECKING:
    from typing_extensions import Buffer

GRANULE: int = lib.PE_GRANULE
REQUEST_MAX: int = lib.PE_REQUEST_MAX
DEMAND: int = lib.PE_DEMAND
FILL: int = lib.PE_FILL
IDLE: int = lib.PE_IDLE
SOFT_DISCONNECT: int = lib.PE_SOFT_DISCONNECT
READS: int = lib.PE_READS
PARKED_READS: int = lib.PE_PARKED_READS
# Where each bucket of a latency ends, in seconds: everything in it took less. The last one takes all that took longer.
LATENCY_BOUNDS: tuple[float, ...] = tuple(lib.pe_latency_bound(i) / 1e6 for i in range(lib.PE_LATENCY_BUCKETS))
HARD_DISCONNECT: int = lib.PE_HARD_DISCONNECT
DRAINED: int = lib.PE_DRAINED
PAUSED: int = lib.PE_PAUSED
WINDOW: int = lib.PE_WINDOW
SPAN_RIGHT: int = lib.PE_SPAN_RIGHT
SPAN_CORRUPT: int = lib.PE_SPAN_CORRUPT
SPAN_SHORT: int = lib.PE_SPAN_SHORT
GUNZIP_MORE: int = lib.PE_GUNZIP_MORE
GUNZIP_POINT: int = lib.PE_GUNZIP_POINT
GUNZIP_MEMBER: int = lib.PE_GUNZIP_MEMBER
GUNZIP_CORRUPT: int = lib.PE_GUNZIP_CORRUPT

# Transmission flags (NBD specification, "Transmission flags"): what every export of ours is.
FLAG_HAS_FLAGS = 1 << 0
FLAG_READ_ONLY = 1 << 1
FLAG_CAN_MULTI_CONN = 1 << 8
EXPORT_FLAGS = FLAG_HAS_FLAGS | FLAG_READ_ONLY | FLAG_CAN_MULTI_CONN


def _check(result: int) -> int:
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


def _run(result: int, run: Any) -> Run | None:
    if result == -ESHUTDOWN:
        return None
    _check(result)
    return Run(run.id, run.offset, run.length, run.kind, run.idle)


class _Handle:
    """Owns one object of C's. close() is explicit; the finaliser only warns, since it cannot know who still uses it."""

    _pointer: Any = None

    def __del__(self) -> None:
        if self._pointer is not None:
            warnings.warn(f"unclosed {type(self).__name__}", ResourceWarning, source=self, stacklevel=1)


class Store(_Handle):
    """The bytes of one blob, and everything that waits for them.

    `map_fd` None: all of data_fd is present (a local file). `sums_fd` None: what is present is never doubted. Both
    files have their content from byte `map_offset` on. `timeout`: seconds that a connection's read may wait, 0 for no
    bound. `align`: bytes, a multiple of GRANULE; runs begin and end at multiples of it where that costs no byte twice.
    Raises OSError.
    """

    def __init__(
        self,
        data_fd: int,
        size: int,
        *,
        map_fd: int | None = None,
        sums_fd: int | None = None,
        map_offset: int = 0,
        timeout: float = 0,
        align: int = GRANULE,
    ):
        out = ffi.new("pe_store **")
        map_number, sums_number = (-1 if fd is None else fd for fd in (map_fd, sums_fd))
        _check(lib.pe_store_open(data_fd, map_number, sums_number, map_offset, size, int(timeout * 1000), out))
        self._pointer = out[0]
        self.size = size
        try:
            _check(lib.pe_store_set_align(self._pointer, align))
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        if self._pointer is not None:
            lib.pe_store_free(self._pointer)
            self._pointer = None

    def stop(self) -> None:
        lib.pe_store_stop(self._pointer)

    def stats(self) -> Stats:
        stats = ffi.new("struct pe_stats *")
        lib.pe_store_get_stats(self._pointer, stats)
        return Stats(*(getattr(stats, name) for name in Stats._fields))

    def latency(self, which: int) -> Latency:
        """Of NBD reads, READS or PARKED_READS, from their arrival here to their replies' departure."""
        latency: Any = ffi.new("struct pe_latency *")
        _check(lib.pe_store_get_latency(self._pointer, which, latency))
        return Latency(tuple(latency.bucket), latency.sum / 1e6, latency.max / 1e6)

    def health(self) -> tuple[int, int]:
        """Return the errno for which nothing can be cached now (0: none), and how many granules were spoiled."""
        healed = ffi.new("uint64_t *")
        return lib.pe_store_health(self._pointer, healed), healed[0]

    def copy_map(self) -> bytes:
        """Return the map as it is now, in little-endian words; empty where there is none."""
        buffer = ffi.new("char[]", (self.size // GRANULE // 64 + 1) * 8)
        return bytes(ffi.buffer(buffer, lib.pe_store_copy_map(self._pointer, buffer, len(buffer))))

    def has(self, offset: int, length: int) -> bool:
        return bool(_check(lib.pe_store_has(self._pointer, offset, length)))

    def take(self) -> Run | None:
        """Blocks until there is a run to fetch; None when the store is stopped."""
        run = ffi.new("struct pe_run *")
        return _run(lib.pe_store_take(self._pointer, run), run)

    def take_fill(self, kind: int, length: int, pause: float) -> Run | None:
        """Take a run that no read has asked for, at most `length` bytes.

        FILL: at any time; IDLE: when no read has waited for `pause` seconds. Blocks, also while nothing is absent; None
        when the store is stopped.
        """
        run = ffi.new("struct pe_run *")
        return _run(lib.pe_store_take_fill(self._pointer, kind, length, int(pause * 1000), run), run)

    def take_within(self, offset: int, end: int) -> Run | None:
        """Take a run for the first stretch of [offset, end) that is neither present nor on its way, if there is one.

        For who has its bytes already. Both are multiples of GRANULE, or the end is the blob's.
        """
        run = ffi.new("struct pe_run *")
        result = lib.pe_store_take_within(self._pointer, offset, end, run)
        return None if result == -EAGAIN else _run(result, run)

    def take_range(self, offset: int, length: int, most: int, pause: float) -> Run | None:
        """Take up to `most` bytes of a range, or None. `pause`: seconds without reads of something else. Blocks."""
        run = ffi.new("struct pe_run *")
        result = lib.pe_store_take_range(self._pointer, offset, length, most, int(pause * 1000), run)
        return None if result == lib.PE_NOTHING_LEFT else _run(result, run)

    def trace_length(self) -> int:
        """Return how many touches trace() has by now, without copying them."""
        return int(lib.pe_store_copy_trace(self._pointer, ffi.NULL, 0))

    def trace(self) -> list[Touch]:
        """Return what connections have read for the first time, in that order."""
        count = self.trace_length()
        touches: Any = ffi.new("struct pe_touch[]", count or 1)
        lib.pe_store_copy_trace(self._pointer, touches, count)
        return [Touch(t.first, t.count, t.ms) for t in touches[0:count]]

    def land(self, run: int, offset: int, piece: Buffer) -> bool:
        """Land the run's next bytes. Returns False where more is left of it, but it is no longer wanted."""
        with ffi.from_buffer(piece) as view:
            result = lib.pe_store_land(self._pointer, run, offset, view, len(view))
        return _check(result) == lib.PE_GO_ON

    def resume(self, run: int, *, whole: bool = False) -> tuple[int, int]:
        """Offset and length of what the next answer for the run has to bring; `whole`: it is the whole blob."""
        offset, length = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        _check(lib.pe_store_resume(self._pointer, run, whole, offset, length))
        return offset[0], length[0]

    def waiters(self, run: int) -> int:
        return _check(lib.pe_store_waiters(self._pointer, run))

    def finish(self, run: int, error: int = 0, until: int | None = None) -> None:
        """End the run.

        `error`: an errno for the reads that still wait for bytes of the run, of those before `until` if that is not
        None; all others are fetched again. 0: no read fails.
        """
        _check(lib.pe_store_finish(self._pointer, run, -error, until or 0))

    def forget_all(self) -> None:
        """Everything is absent again. Raises OSError for a store without a map."""
        _check(lib.pe_store_forget_all(self._pointer))

    def expire(self) -> None:
        """Fails the reads whose time is up, until the store is stopped: wants a thread of its own."""
        _check(lib.pe_store_expire(self._pointer))

    def wait(self, offset: int, length: int, timeout: float) -> bool:
        """Wait until the range (up to REQUEST_MAX bytes) is present; return False after `timeout` seconds."""
        result = lib.pe_store_wait(self._pointer, offset, length, int(timeout * 1000))
        return result != -EAGAIN and _check(result) == 0

    def read_into(self, buffer: Buffer, offset: int, timeout: float = 0) -> int:
        """Fill the buffer as its bytes come, up to REQUEST_MAX; return how many.

        They are fewer, or 0, where the rest did not come within `timeout` seconds.
        """
        # Released here and now: one that an error's traceback still holds breaks Python's garbage collector.
        with ffi.from_buffer(buffer, require_writable=True) as view:
            result = lib.pe_store_read(self._pointer, view, len(view), offset, int(timeout * 1000))
        return 0 if result == -EAGAIN else _check(result)

    def check(self, offset: int, length: int) -> bool:
        """Whether what is present of the range agrees with its sums; what does not is absent from now on."""
        return _check(lib.pe_store_check(self._pointer, offset, length)) == lib.PE_RIGHT

    def epoch(self) -> int:
        """Return a number that changes when the data file is written to; 0 when that has just happened."""
        return _check(lib.pe_store_epoch(self._pointer))

    def trust(self, epoch: int) -> None:
        """Note that the whole data file was read and found right since the epoch was asked for.

        That saves comparing its bytes with their sums. Nothing happens if the epoch is over.
        """
        lib.pe_store_mark_checked(self._pointer, epoch)

    def sendfile(self, out_fd: int, offset: int, count: int, timeout: float) -> int:
        """Bytes sent; fewer than count, or 0, when the rest did not come within timeout seconds."""
        result = lib.pe_store_sendfile(self._pointer, out_fd, offset, count, int(timeout * 1000))
        return 0 if result == -EAGAIN else _check(result)


class Connection(_Handle):
    """One NBD client on a connected stream socket, whose descriptor stays the caller's."""

    def __init__(self, store: Store, fd: int, flags: int = EXPORT_FLAGS):
        out = ffi.new("pe_conn **")
        _check(lib.pe_conn_open(store._pointer, fd, flags, out))
        self._pointer = out[0]

    def close(self) -> None:
        if self._pointer is not None:
            lib.pe_conn_free(self._pointer)
            self._pointer = None

    def handshake(self, name: str, description: str, timeout: float) -> bool:
        """Blocks. True: the transmission phase begins; False: the client is done, in good order."""
        result = lib.pe_conn_handshake(self._pointer, name.encode(), description.encode(), int(timeout * 1000))
        return _check(result) == lib.PE_TRANSMISSION

    def serve(self) -> int:
        """Blocks until the connection is over: SOFT_DISCONNECT, HARD_DISCONNECT, DRAINED or PAUSED."""
        return _check(lib.pe_conn_serve(self._pointer))

    def send(self) -> None:
        """Send the replies that had to wait; block until serve() is over."""
        _check(lib.pe_conn_send(self._pointer))

    def drain(self) -> None:
        lib.pe_conn_drain(self._pointer)

    def pause(self) -> None:
        """Ask serve() to stop between two requests; its thread needs a signal to see it."""
        lib.pe_conn_pause(self._pointer)

    def stop(self) -> None:
        lib.pe_conn_stop(self._pointer)


class GunzipStep(NamedTuple):
    """What Gunzip.step() did.

    `why` it stopped: GUNZIP_MORE and so on; `plain`: what came; `consumed` bytes of its input. Since the stream's
    beginning `at` bytes of it were used, and gave `out`; at a point the last one of them but for its `bits` upper bits.
    """

    why: int
    plain: bytes
    consumed: int
    at: int
    out: int
    bits: int


class Gunzip(_Handle):
    """A gzip stream that is inflated from its beginning on, `most` bytes at a time. For one thread.

    `spacing`: plain bytes between two points where spans may begin, 0 for none. Raises MemoryError, as step() does.
    """

    def __init__(self, most: int, spacing: int = 0):
        out = ffi.new("pe_gunzip **")
        _check_memory(lib.pe_gunzip_open(spacing, out))
        self._pointer = out[0]
        self._plain = ffi.new("char[]", most)
        self._most = most
        self._step: Any = ffi.new("struct pe_gunzip_step *")

    def close(self) -> None:
        if self._pointer is not None:
            lib.pe_gunzip_free(self._pointer)
            self._pointer = None

    def step(self, data: Buffer) -> GunzipStep:
        """Inflate what can be; with no data, what there was no room for before."""
        with ffi.from_buffer(data) as view:
            result = lib.pe_gunzip_step(self._pointer, view, len(view), self._plain, self._most, self._step)
        step = self._step
        plain = bytes(ffi.buffer(self._plain, step.produced))
        return GunzipStep(_check_memory(result), plain, step.consumed, getattr(step, "in"), step.out, step.bits)

    def window(self) -> bytes:
        """Return the WINDOW plain bytes before a point, zeros for those of other members; b"" where these are all."""
        window = ffi.new("char[]", WINDOW)
        found = _check(lib.pe_gunzip_window(self._pointer, window))
        return bytes(ffi.buffer(window)) if found else b""


def inflate_span(span: Buffer, bits: int, window: bytes, length: int) -> tuple[int, bytes]:
    """Inflate `length` bytes of a span, whose first byte has so many `bits`; `window`: WINDOW bytes, or none.

    Returns SPAN_RIGHT and the bytes, or what is wrong and none. Raises MemoryError; ValueError for what cannot be.
    """
    plain = ffi.new("char[]", length)
    before = ffi.from_buffer(_whole(window)) if window else ffi.NULL
    with ffi.from_buffer(span) as view:
        result = lib.pe_span_inflate(view, len(view), bits, before, plain, length)
    return _check_memory(result), bytes(ffi.buffer(plain)) if result == SPAN_RIGHT else b""


def reduce_window(span: Buffer, bits: int, window: bytes) -> bytes:
    """Return the window with zeros where the span, or so much as there is of it, does not refer to it.

    Raises MemoryError; ValueError for what cannot be.
    """
    reduced = ffi.new("char[]", WINDOW)
    with ffi.from_buffer(span) as view:
        _check_memory(lib.pe_span_reduce(view, len(view), bits, ffi.from_buffer(_whole(window)), reduced))
    return bytes(ffi.buffer(reduced))


def _whole(window: bytes) -> bytes:
    if len(window) != WINDOW:
        raise ValueError(f"a window of {len(window)} bytes")
    return window


def _check_memory(result: int) -> int:
    """As _check(), for what does no I/O."""
    if result == -ENOMEM:
        raise MemoryError
    if result < 0:
        raise ValueError(os.strerror(-result))
    return result


def crc32c(data: Buffer, *, portably: bool = False) -> int:
    """Return the sum of a granule; `portably`: without the processor's instruction for it."""
    with ffi.from_buffer(data) as view:
        return _check(lib.pe_crc32c(view, len(view), portably))


def granule_sums(data: Buffer) -> array[int]:
    """Return the sum of each granule of the data, the last of which may be shorter."""
    with ffi.from_buffer(data) as view:
        sums = array("I", bytes(4 * -(-len(view) // GRANULE)))
        with ffi.from_buffer("uint32_t[]", sums, True) as result:
            lib.pe_crc32c_granules(view, len(view), result)
    return sums
