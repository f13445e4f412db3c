"""What N nodes cost a registry's line: python -m bench.fleet [N ...] [--svg FILE], by hand, in the sources' directory.

Each node is a reader with a cache of its own that reads what a container's start reads of an image, from one
docker-registry: a few dozen pieces, 2 MiB of 64. Then the same with the first node's cache as everyone's mirror
(`pyerofs serve --registry`), and with a docker-registry in between that is a pull-through cache. Requests and bytes of
blobs are counted by the registry's own log; a byte that is not the image's ends the run.
"""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from pyerofs.export.file import BlobFile, open_export
from tests.support.images import push_image
from tests.support.indexedlayers import image, raw
from tests.support.realregistry import LoggingRegistry

MIB = 1 << 20
IMAGE, PIECES, PIECE = 64 * MIB, 32, 64 << 10
AT_ONCE = 16  # nodes
_LINE = re.compile(r'"GET /v2/\S*/blobs/\S* HTTP/1\.1" (\d+) (\d+)')


class PullThrough(LoggingRegistry):
    """A docker-registry that fetches from another one what it is asked for, and keeps it."""

    upstream = ""

    def _config(self) -> dict[str, Any]:
        return {**super()._config(), "proxy": {"remoteurl": f"http://{self.upstream}"}}


class Cost(NamedTuple):
    """`requests` for blobs and `bytes` of them at the registry; `seconds` for all nodes."""

    requests: int
    bytes: int
    seconds: float


def _pieces() -> list[int]:
    """Return the offsets that a start reads, the same for all nodes."""
    random = Random(7)
    return sorted(random.randrange(IMAGE // PIECE) * PIECE for _ in range(PIECES))


def _start(directory: Path, reference: str, data: bytes, mirror: str) -> None:
    options = [f"oci.cache={directory}", "oci=0", *([f"oci.mirror=http://{mirror}"] if mirror else [])]
    with BlobFile(open_export(reference, ",".join(options))) as blob:
        for offset in _pieces():
            if blob.pread(PIECE, offset) != data[offset : offset + PIECE]:
                raise SystemExit(f"a wrong byte in the {PIECE} from {offset}")


@contextmanager
def _neighbour(cache: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "pyerofs", "serve", "-o", f"oci.cache={cache}", "--registry", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split("//")[1].strip()
        process.send_signal(signal.SIGTERM)


def _measure(registry: LoggingRegistry, work: Callable[[], None]) -> Cost:
    registry.requests()  # when it answers, all that came before is in its log
    before = len(registry.log.read_bytes())
    begun = time.monotonic()
    work()
    seconds = time.monotonic() - begun
    registry.requests()
    found = _LINE.findall(registry.log.read_bytes()[before:].decode(errors="replace"))
    return Cost(len(found), sum(int(size) for _, size in found), seconds)


def run(count: int, way: str, work: Path) -> Cost:
    """Start so many nodes in this way: alone, neighbour or cache."""
    data = image(IMAGE // 4096)
    with LoggingRegistry(work / "registry") as registry:
        push_image(registry, "app", "1", [raw(data, 128 << 10)])
        reference = f"{registry.host}/app:1"

        def start(numbers: Sequence[int], mirror: str) -> None:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(lambda number: _start(work / f"cache{number}", reference, data, mirror), numbers))

        def all_nodes() -> None:
            if way == "alone":
                start(range(count), "")
            elif way == "neighbour":
                start([0], "")
                with _neighbour(work / "cache0") as mirror:
                    start(range(1, count), mirror)
            else:
                between = PullThrough(work / "between")
                between.upstream = registry.host
                with between:
                    start(range(count), between.host)

        return _measure(registry, all_nodes)


def plot(costs: dict[str, list[tuple[int, Cost]]]) -> str:
    """Return an SVG: MiB at the registry by nodes, on logarithmic axes."""
    from math import log10

    def x(nodes: int) -> float:
        return 60 + log10(nodes) * 160

    def y(cost: Cost) -> float:
        return 260 - max(0.0, log10(max(cost.bytes, 1) / MIB)) * 70

    lines = [
        '<svg xmlns="http://www.w3.org/2000/svg" width="560" height="310" font-family="sans-serif" font-size="12">'
    ]
    lines += [f'<text x="{x(n):.0f}" y="285" text-anchor="middle">{n}</text>' for n in (1, 10, 100, 300)]
    lines += [
        f'<text x="50" y="{264 - 70 * power}" text-anchor="end">{10**power}</text>'
        f'<line x1="60" x2="480" y1="{260 - 70 * power}" y2="{260 - 70 * power}" stroke="#ddd"/>'
        for power in range(4)
    ]
    lines.append('<text x="60" y="20">MiB of blobs at the registry, by nodes</text>')
    for (way, found), color in zip(costs.items(), ("#c33", "#36c", "#393"), strict=False):
        points = " ".join(f"{x(nodes):.0f},{y(cost):.0f}" for nodes, cost in found)
        lines.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>')
        lines.append(f'<text x="{x(found[-1][0]) + 6:.0f}" y="{y(found[-1][1]):.0f}" fill="{color}">{way}</text>')
    return "\n".join([*lines, "</svg>", ""])


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.fleet")
    parser.add_argument("counts", type=int, nargs="*", default=[1, 10, 100, 300], metavar="N")
    parser.add_argument("--svg", type=Path)
    arguments = parser.parse_args()
    costs: dict[str, list[tuple[int, Cost]]] = {}
    print(f"{'nodes':>6} {'way':<10} {'requests':>9} {'MiB':>9} {'seconds':>8}")
    for way in ("alone", "neighbour", "cache"):
        for count in arguments.counts:
            with tempfile.TemporaryDirectory(prefix="pyerofs-fleet-") as directory:
                cost = run(count, way, Path(directory))
            costs.setdefault(way, []).append((count, cost))
            print(f"{count:>6} {way:<10} {cost.requests:>9} {cost.bytes / MIB:>9.1f} {cost.seconds:>8.1f}", flush=True)
    if arguments.svg:
        arguments.svg.write_text(plot(costs))


if __name__ == "__main__":
    main()
