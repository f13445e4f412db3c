"""Nothing is in the cache. Each run gets a new cache directory; what the registry serves is in its page cache."""

from __future__ import annotations

import statistics
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import proxy
from proxy import Proxy, Request
from rows import Bench, Line, faster, in_turns, row
from servers import Reader, Server, ab, fio, nbdcopy, nbdkit, pyerofs, settle_memory, timed
from stage import MIB, SIZE, static

DELAY = 0.02  # seconds for a round trip
RATE = 1e9  # bits a second
_FORMULA = "depth / (delay + service time of a single request)"


def _pyerofs(bench: Bench, host: str, measure: Callable[[Server], float]) -> Callable[[], float]:
    def run() -> float:
        settle_memory()
        with pyerofs(bench.stage.image.reference(host), bench.stage.directory()) as server:
            return measure(server)

    return run


def _nbdkit(bench: Bench, host: str, measure: Callable[[Server], float]) -> Callable[[], float]:
    def run() -> float:
        settle_memory()
        with nbdkit(bench.stage.directory(), "curl", f"url={bench.stage.image.url(host)}") as server:
            return measure(server)

    return run


@row("cold-nbdcopy")
def cold_nbdcopy(bench: Bench) -> Iterator[Line]:
    name, host = "cold, nbdcopy of the blob, registry on loopback", bench.stage.host
    url = bench.stage.image.url(host)

    def curl_to_file() -> float:
        settle_memory()
        return timed(["curl", "-sf", "-o", bench.stage.directory() / "blob", url])

    contenders = {
        "pyerofs": _pyerofs(bench, host, nbdcopy),
        "curl of the blob": lambda: timed(["curl", "-sf", "-o", "/dev/null", url]),
        "curl of the blob to a file": curl_to_file,
        "nbdkit curl": _nbdkit(bench, host, nbdcopy),
    }
    found = in_turns(bench, contenders)
    yield faster(name, "s", found, "nbdkit curl", must=7)
    yield faster(name, "s", found, "curl of the blob", aim=0.5)
    yield faster(name, "s", found, "curl of the blob to a file")


@row("cold-fio")
def cold_fio(bench: Bench) -> Iterator[Line]:
    """Depth / (delay + service time) is what so many requests at a time can be, if each read costs a request.

    The service time of docker-registry is CPU time that grows with the depth, so what the formula gives is measured: by
    `ab` with as many warm connections through the same proxy. nginx with the same files takes next to no time.
    """
    with static(bench.stage.storage.directory, bench.stage.work) as nginx:
        for who, port in (("docker-registry", bench.stage.port), ("nginx", nginx)):
            bench.say(f" {who}")
            yield from _cold_fio(bench, who, port)


def _cold_fio(bench: Bench, who: str, port: int) -> Iterator[Line]:
    depth, seconds = 16, 2
    with Proxy(port, delay=DELAY) as network:
        service = proxy.answers(port, bench.stage.image.blob_path())
        bench.say(f"  {who} answers a single range of 4 KiB in {service * 1000:.2f} ms")

        def measure(server: Server) -> float:
            return fio(server, block="4k", depth=depth, seconds=seconds, size=SIZE)["iops"]

        peer = f"ab with {depth} connections"
        contenders = {
            "pyerofs": _pyerofs(bench, network.host, measure),
            peer: lambda: ab(bench.stage.image.url(network.host), size=4096, depth=depth, requests=1000),
            "nbdkit curl": _nbdkit(bench, network.host, measure),
        }
        found = in_turns(bench, contenders)
    name = f"cold, fio randread 4 KiB, depth {depth}, {DELAY * 1000:.0f} ms, {who}"
    cheap = who == "nginx"
    yield faster(name, "IOPS", found, peer, must=None if cheap else 0.9, aim=None if cheap else 1.0)
    yield faster(name, "IOPS", found, "nbdkit curl", must=1.0)
    limit = depth / (DELAY + service)
    score = [iops / limit for iops in found["pyerofs"]]
    must, aim = (0.9, 1.0) if cheap else (None, None)
    yield Line(name, "IOPS", found["pyerofs"], score, _FORMULA, [limit] * len(score), must=must, aim=aim)


@row("cold-sequential")
def cold_sequential(bench: Bench) -> Iterator[Line]:
    """How much of the line's rate one reader gets within its first second."""
    with Proxy(bench.stage.port, delay=DELAY, rate=RATE) as network:

        def measure(server: Server) -> float:
            with Reader(server.socket) as reader:
                return reader.sequential(128 << 10, seconds=1) / MIB

        def curl() -> float:
            url = bench.stage.image.url(network.host)
            command = ["curl", "-s", "-m", "1", "-o", "/dev/null", "-w", "%{size_download}", url]
            return int(subprocess.run(command, capture_output=True, text=True, check=False).stdout) / MIB

        contenders = {
            "pyerofs": _pyerofs(bench, network.host, measure),
            "curl of the blob": curl,
            "nbdkit curl": _nbdkit(bench, network.host, measure),
        }
        found = in_turns(bench, contenders)
    name = f"cold, one reader, 128 KiB reads, {DELAY * 1000:.0f} ms, {RATE / 1e9:.0f} Gbit/s: the first second"
    line = RATE / 8 / MIB
    score = [mib / line for mib in found["pyerofs"]]
    yield Line(name, "MiB/s", found["pyerofs"], score, "the line", [line] * len(score), must=0.8, aim=0.9)
    yield faster(name, "MiB/s", found, "curl of the blob")
    yield faster(name, "MiB/s", found, "nbdkit curl")


@row("requests")
def requests(bench: Bench) -> Iterator[Line]:
    """Range requests for the whole blob, read from start to end by one reader and by nbdcopy's four connections."""
    counts: dict[str, list[float]] = {"one reader": [], "nbdcopy": []}
    twice: list[float] = []
    for _ in range(bench.runs):
        for reader in counts:
            with Proxy(bench.stage.port) as network:
                _pyerofs(bench, network.host, nbdcopy if reader == "nbdcopy" else _read_all)()
                made = network.requests()
                counts[reader].append(len(made))
                twice.append(_fetched_twice(made) / MIB)
    bench.say(f"  {counts}")
    for reader, values in counts.items():
        yield Line(
            f"requests for the whole blob, sequential ({reader})", "requests", values, values, "1 per 8 MiB",
            [SIZE / 8 / MIB] * len(values), must=SIZE / 8 / MIB, least=False, ratio=False,
        )  # fmt: skip
    yield Line("the same: fetched more than once", "MiB", twice, twice, must=0, least=False, ratio=False)


def _read_all(server: Server) -> float:
    with Reader(server.socket) as reader:
        return reader.sequential(128 << 10)


def _fetched_twice(made: list[Request]) -> int:
    """Bytes that were asked for beyond what asking for each once would have been."""
    total, covered, at = 0, 0, 0
    for first, end in sorted((r.first, r.end) for r in made if r.first is not None and r.end is not None):
        total += end - first
        covered += max(0, end - max(first, at))
        at = max(at, end)
    return total - covered


@row("shared")
def shared(bench: Bench) -> Iterator[Line]:
    """Many readers of one cold range at once: every byte comes once."""
    readers, end = 16, 64 * MIB
    twice: list[float] = []
    for _ in range(bench.runs):
        with Proxy(bench.stage.port, delay=DELAY) as network:

            def measure(server: Server) -> float:
                return _all_at_once(server.socket, readers, end)

            _pyerofs(bench, network.host, measure)()
            made = network.requests()
            bench.say(f"  {len(made)} requests, {sum(r.length for r in made) / MIB:.1f} MiB asked for")
            twice.append(_fetched_twice(made) / MIB)
    name = f"{readers} readers of the same cold {end // MIB} MiB: fetched more than once"
    yield Line(name, "MiB", twice, twice, must=0, least=False, ratio=False)


def _all_at_once(path: Path, readers: int, end: int) -> float:
    counts: list[int] = []

    def one() -> None:
        with Reader(path) as reader:
            counts.append(reader.sequential(128 << 10, end=end))

    threads = [threading.Thread(target=one) for _ in range(readers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [end] * readers
    return statistics.mean(counts)
