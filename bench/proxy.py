"""A network between pyerofs and a registry: bench/proxy.c, compiled on the fly, and what can be asked of it.

    with Proxy(port, delay=0.02, rate=1e9) as proxy:     # a round trip takes 20 ms, one line carries 1 Gbit/s
        ...                                              # connect to 127.0.0.1:proxy.port
        proxy.requests()

A new connection costs one round trip before its first request, as TCP's handshake does. TCP's slow start is not
imitated: it is the kernel's, on loopback, and no different for anybody measured here.
"""

from __future__ import annotations

import functools
import http.client
import socket
import statistics
import struct
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

_STATS = struct.Struct("=4Q")


class Request(NamedTuple):
    """A request that passed. `first`, `end`: the range asked for, or None, None."""

    at: float  # time.monotonic()
    connection: int
    method: str
    path: str
    first: int | None
    end: int | None

    @property
    def length(self) -> int:
        return self.end - self.first if self.first is not None and self.end is not None else 0


class Stats(NamedTuple):
    connections: int
    requests: int
    up: int  # bytes from the clients
    down: int  # bytes to them


@functools.cache
def _program() -> tuple[tempfile.TemporaryDirectory[str], Path]:
    directory = tempfile.TemporaryDirectory(prefix="pyerofs-bench-proxy-")
    program = Path(directory.name) / "proxy"
    source = Path(__file__).with_name("proxy.c")
    subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-o", program, source], check=True)
    return directory, program


class Proxy:
    """To the server on 127.0.0.1:`target`. `delay`: seconds for a round trip; `rate`: bits a second, 0: no bound."""

    def __init__(self, target: int, *, delay: float = 0.0, rate: float = 0.0):
        self._arguments = [str(target), str(round(delay * 1e6)), str(round(rate))]
        self.port = 0

    def __enter__(self) -> Self:
        self._directory = tempfile.TemporaryDirectory(prefix="pyerofs-bench-proxy-")
        self._stats, self._log = Path(self._directory.name) / "stats", Path(self._directory.name) / "log"
        command = [str(_program()[1]), *self._arguments, str(self._stats), str(self._log)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout
        self.port = int(self._process.stdout.readline())
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()
        self._directory.cleanup()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def stats(self) -> Stats:
        return Stats(*_STATS.unpack(self._stats.read_bytes()))

    def requests(self, part: str = "/blobs/") -> list[Request]:
        """Those so far whose path has this part, oldest first."""
        found = []
        for line in self._log.read_text().splitlines():
            at, connection, method, path, wanted = line.split()
            if part in path:
                first, dash, last = wanted.partition("-")
                both = bool(first and dash and last)
                numbers = (int(first), int(last) + 1) if both else (None, None)
                found.append(Request(float(at), int(connection), method, path, *numbers))
        return found


class _Echo:
    """A server that answers `N\\n` with N bytes, for measuring the proxy by itself."""

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        try:
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._answer, args=(client,), daemon=True).start()
        except OSError:
            return

    def _answer(self, client: socket.socket) -> None:
        block = bytes(1 << 20)
        with client, client.makefile("rb") as lines:
            for line in lines:
                left = int(line)
                while left:
                    left -= client.send(block[: min(left, len(block))])


def _ask(port: int, count: int, times: int = 1) -> list[float]:
    """Seconds from each request for `count` bytes to the last of them, on one connection that has been used before."""
    buffer = bytearray(1 << 20)
    seconds = []
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for wanted in [1, *[count] * times]:
            started = time.perf_counter()
            sock.sendall(b"%d\n" % wanted)
            while wanted:
                wanted -= sock.recv_into(buffer, min(wanted, len(buffer)))
            seconds.append(time.perf_counter() - started)
    return seconds[1:]


def measure(delay: float, rate: float) -> dict[str, float]:
    """The proxy by itself: what it carries when it need not wait, and how exact its delay and its rate are."""
    size = 256 << 20
    found = {}
    with _Echo() as echo:
        with Proxy(echo.port) as proxy:
            direct = min(_ask(echo.port, size, 3))
            found["carries, Gbit/s"] = size * 8 / min(_ask(proxy.port, size, 3)) / 1e9
            found["carries without it, Gbit/s"] = size * 8 / direct / 1e9
            bare = statistics.median(_ask(echo.port, 1, 200))
            found["adds at no delay, us"] = (statistics.median(_ask(proxy.port, 1, 200)) - bare) * 1e6
        with Proxy(echo.port, delay=delay) as proxy:
            found["round trip, ms"] = statistics.median(_ask(proxy.port, 1, 50)) * 1e3
            found["round trip asked for, ms"] = delay * 1e3
            found["carries with the delay, Gbit/s"] = size * 8 / min(_ask(proxy.port, size, 2)) / 1e9
        with Proxy(echo.port, delay=delay, rate=rate) as proxy:
            part = 64 << 20
            found["rate, Gbit/s"] = part * 8 / (_ask(proxy.port, part)[0] - delay) / 1e9
            together: list[float] = []
            threads = [threading.Thread(target=lambda: together.extend(_ask(proxy.port, part // 8))) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            found["rate of 8 connections, Gbit/s"] = part * 8 / (max(together) - delay) / 1e9
            found["rate asked for, Gbit/s"] = rate / 1e9
    return found


def answers(port: int, path: str) -> float:
    """Seconds that a registry takes to answer a range request of 4 KiB on a warm connection: its service time."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    seconds = []
    for number in range(60):
        started = time.perf_counter()
        connection.request("GET", path, headers={"Range": f"bytes={number << 20}-{(number << 20) + 4095}"})
        connection.getresponse().read()
        seconds.append(time.perf_counter() - started)
    connection.close()
    return statistics.median(seconds[10:])


if __name__ == "__main__":
    for name, value in measure(0.02, 1e9).items():
        print(f"{name:>32}: {value:.2f}")
