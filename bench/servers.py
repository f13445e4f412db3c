"""pyerofs and its peers as NBD servers on a Unix socket, and the clients that measure them."""

from __future__ import annotations

import contextlib
import json
import mmap
import re
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Self

TIMEOUT = 60.0
_POPULATE_WRITE = 23  # madvise(2), since Linux 5.14
PYEROFS = [sys.executable, "-m", "pyerofs"]


class Server(NamedTuple):
    uri: str
    socket: Path
    process: subprocess.Popen[bytes]


@contextlib.contextmanager
def server(argv: Sequence[str | Path], path: Path) -> Iterator[Server]:
    """Runs a server until the end of the with statement; it has been connected to once when that begins."""
    process = subprocess.Popen([str(word) for word in argv], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + TIMEOUT
        while not _answers(path):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{argv[0]} does not serve")
            time.sleep(0.01)
        yield Server(f"nbd+unix:///?socket={path}", path, process)
    finally:
        process.terminate()
        try:
            process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


def _answers(path: Path) -> bool:
    try:
        Reader(path).close()
    except (OSError, ConnectionError):
        return False
    return True


def pyerofs(image: str, directory: Path, *options: str) -> contextlib.AbstractContextManager[Server]:
    """With an empty cache, where the directory is a new one."""
    path = directory / "pyerofs.sock"
    said = ",".join([f"oci.cache={directory / 'cache'}", *options])
    return server([*PYEROFS, "serve", "-q", "-o", said, "--unix", path, image], path)


def nbdkit(directory: Path, *plugin: str | Path) -> contextlib.AbstractContextManager[Server]:
    path = directory / "nbdkit.sock"
    return server(["nbdkit", "-f", "-r", "-U", path, *plugin], path)


def qemu_nbd(directory: Path, file: Path) -> contextlib.AbstractContextManager[Server]:
    path = directory / "qemu.sock"
    return server(["qemu-nbd", "-t", "-r", "-e", "64", "-f", "raw", "-k", path, file], path)


def settle_memory() -> None:
    """Touches memory that a cold run will need for new page cache, and frees it again.

    In a virtual machine whose host takes unused memory back, the first touch of a page costs several times what
    copying into it does; without this a cold run measures the host.
    """
    with mmap.mmap(-1, 1 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory, contextlib.suppress(OSError):
        memory.madvise(_POPULATE_WRITE)


def nbdcopy(at: Server) -> float:
    """Seconds to read the whole export."""
    return timed(["nbdcopy", at.uri, "null:"])


def timed(argv: Sequence[str | Path]) -> float:
    """Seconds that a program takes. No timeout: with one, subprocess looks for the end every 50 ms only."""
    started = time.perf_counter()
    subprocess.run([str(word) for word in argv], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def fio(at: Server, *, block: str, depth: int, seconds: float, size: int, jobs: int = 1) -> dict[str, float]:
    """Random reads: {"iops": ..., "p50": ..., "p99": ...}, the latter in seconds."""
    command = [
        *("fio", "--name=x", "--ioengine=nbd", f"--uri={at.uri}", "--rw=randread", f"--bs={block}"),
        *(f"--iodepth={depth}", f"--runtime={seconds}", "--time_based", f"--size={size}", f"--numjobs={jobs}"),
        *("--group_reporting", "--randrepeat=1", "--output-format=json"),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=seconds + TIMEOUT)
    job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    if job["error"]:
        raise RuntimeError(f"fio: error {job['error']}")
    percentile = job["read"]["clat_ns"].get("percentile", {})
    found = {f"p{name}": percentile.get(f"{name}.000000", 0) / 1e9 for name in (50, 99)}
    return {"iops": job["read"]["iops"], **found}


def ab(url: str, *, size: int, depth: int, requests: int) -> float:
    """Range requests a second that a plain HTTP client with `depth` warm connections gets."""
    wanted = ["-H", f"Range: bytes=1048576-{(1 << 20) + size - 1}"]
    command = ["ab", "-q", "-k", "-n", str(requests), "-c", str(depth), *wanted, url]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT)
    return float(re.findall(r"Requests per second: +([\d.]+)", done.stdout)[0])


class Reader:
    """A client that reads one range after the other, as a process does that needs its bytes before it goes on."""

    _REQUEST = struct.Struct(">IHHQQI")

    def __init__(self, path: Path):
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(TIMEOUT)
        try:
            self._socket.connect(str(path))
            self._take(18)  # the two magic numbers, flags
            self._socket.sendall(struct.pack(">IQII", 3, 0x49484156454F5054, 1, 0))  # NBD_OPT_EXPORT_NAME, ""
            self.size = struct.unpack(">QH", self._take(10))[0]
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.sendall(self._REQUEST.pack(0x25609513, 0, 2, 0, 0, 0))  # NBD_CMD_DISC
        self._socket.close()

    def read(self, offset: int, length: int) -> None:
        self._socket.sendall(self._REQUEST.pack(0x25609513, 0, 0, offset, offset, length))
        error = struct.unpack(">IIQ", self._take(16))[1]
        if error:
            raise OSError(error, f"reading {length} bytes at {offset}")
        self._take(length)

    def sequential(self, block: int, *, end: int | None = None, seconds: float | None = None) -> int:
        """Bytes read from 0 on, up to `end` or until so many seconds are over."""
        stop = None if seconds is None else time.monotonic() + seconds
        at, end = 0, self.size if end is None else end
        while at < end and (stop is None or time.monotonic() < stop):
            length = min(block, end - at)
            self.read(at, length)
            at += length if stop is None or time.monotonic() < stop else 0
        return at

    def _take(self, length: int) -> memoryview:
        buffer = memoryview(bytearray(length))
        left = buffer
        while left:
            count = self._socket.recv_into(left)
            if not count:
                raise ConnectionResetError("the server hung up")
            left = left[count:]
        return buffer
