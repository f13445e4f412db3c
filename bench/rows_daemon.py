"""The daemon itself: how soon it is there, its memory, what it costs when nothing reads, many of them at once."""

from __future__ import annotations

import contextlib
import random
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from rows import Bench, Line, in_turns, row
from servers import PYEROFS, Reader, Server, nbdcopy, pyerofs, settle_memory
from stage import MIB, SMALL, Image

MOUNTS = 64


@contextlib.contextmanager
def mounted(image: Image, host: str, directory: Path, fstype: str = "erofs.fuse") -> Iterator[Path]:
    """A mount with a cache of its own; unmounted at the end."""
    target = directory / "mnt"
    target.mkdir()
    options = f"oci.cache={directory / 'cache'}"
    command = [*PYEROFS, "mount", "-t", fstype, "-o", options, image.reference(host), str(target)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)  # no timeout: see servers.timed
    try:
        yield target
    finally:
        subprocess.run([*PYEROFS, "umount", str(target)], check=True, timeout=60)


@row("first-byte")
def first_byte(bench: Bench) -> Iterator[Line]:
    """From the start of `python -m pyerofs mount -t erofs.fuse` to the first byte of a file."""

    def measure() -> float:
        started = time.perf_counter()
        with mounted(bench.stage.image, bench.stage.host, bench.stage.directory()) as target:
            with (target / "big").open("rb", buffering=0) as file:
                assert len(file.read(1)) == 1
            return (time.perf_counter() - started) * 1000

    def python() -> float:
        started = time.perf_counter()
        subprocess.run([PYEROFS[0], "-c", "pass"], check=True)
        return (time.perf_counter() - started) * 1000

    found = in_turns(bench, {"pyerofs": measure, "python -c pass": python}, bench.runs * 3)
    name = "mount -t erofs.fuse to the first byte of a file"
    values = found["pyerofs"]
    yield Line(
        name, "ms", values, values, "python -c pass", found["python -c pass"],
        must=400, aim=200, least=False, ratio=False,
    )  # fmt: skip


def _memory(pid: int) -> dict[str, float]:
    """MiB by the names of /proc/PID/smaps_rollup, and "Private" for what no other process shares."""
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value = line.split()[:2]
        found[name.rstrip(":")] = int(value) / 1024
    found["Private"] = found["Private_Clean"] + found["Private_Dirty"]
    return found


@row("memory")
def memory(bench: Bench) -> Iterator[Line]:
    """Private memory of `serve`. Pages of the cache that it has mapped count as its own, though any may be dropped."""
    whole: list[dict[str, float]] = []
    sparse: list[dict[str, float]] = []
    large = bench.stage.sparse(100 << 30)
    for _ in range(bench.runs):
        with pyerofs(bench.stage.image.reference(bench.stage.host), bench.stage.directory()) as server:
            nbdcopy(server)
            whole.append(_memory(server.process.pid))
        with pyerofs(large.reference(bench.stage.host), bench.stage.directory()) as server:
            _scatter(server, 300)
            sparse.append(_memory(server.process.pid))
    for text, found in (("the whole blob has been read", whole), ("random reads of a 100 GiB blob", sparse)):
        values = [m["Private"] for m in found]
        anonymous = statistics.median(m["Anonymous"] for m in found)
        note = f"({anonymous:.0f} MiB of it anonymous)"
        name = f"private memory of the daemon after {text}"
        yield Line(name, "MiB", values, values, must=64, aim=40, least=False, ratio=False, note=note)


def _scatter(server: Server, count: int) -> None:
    chance = random.Random(1)
    with Reader(server.socket) as reader:
        for _ in range(count):
            reader.read(chance.randrange(reader.size // 4096) * 4096, 4096)


def _work(pids: list[int]) -> tuple[float, int]:
    """Seconds of CPU of these processes, threads that have ended included, and voluntary context switches of all
    threads that there are, so far."""
    ticks = switches = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
        for task in Path(f"/proc/{pid}/task").iterdir():
            line = next(s for s in (task / "status").read_text().splitlines() if s.startswith("voluntary"))
            switches += int(line.split()[1])
    return ticks / 100, switches


@row("idle")
def idle(bench: Bench) -> Iterator[Line]:
    """What the daemon does while a client is connected that reads nothing."""
    seconds = 3 if bench.quick else 10
    cpu: list[float] = []
    wakes: list[float] = []
    for _ in range(bench.runs):
        with (
            pyerofs(bench.stage.image.reference(bench.stage.host), bench.stage.directory()) as server,
            Reader(server.socket) as reader,
        ):
            reader.sequential(128 << 10, end=16 * MIB)
            time.sleep(2)  # what the reading set going has come to its end
            before = _work([server.process.pid])
            time.sleep(seconds)
            after = _work([server.process.pid])
        cpu.append((after[0] - before[0]) / seconds * 100)
        wakes.append((after[1] - before[1]) / seconds)
    yield Line("idle: CPU of the daemon", "%", cpu, cpu, must=0, least=False, ratio=False)
    yield Line("idle: wake-ups a second", "1/s", wakes, wakes, must=0.2, least=False, ratio=False)


@row("many")
def many(bench: Bench) -> Iterator[Line]:
    """64 exports at once, each of its own image and read by its own client, against one."""
    count = 8 if bench.quick else MOUNTS
    images = [bench.stage.small(number) for number in range(count)]
    idle_cpu: list[float] = []

    def together(of: list[Image]) -> float:
        with contextlib.ExitStack() as stack:
            servers = [
                stack.enter_context(pyerofs(image.reference(bench.stage.host), bench.stage.directory())) for image in of
            ]
            settle_memory()
            rate = _rate(servers, SMALL)
            if len(of) > 1:
                time.sleep(5)  # until each has been hashed
                pids = [server.process.pid for server in servers]
                before = _work(pids)
                time.sleep(5)
                idle_cpu.append((_work(pids)[0] - before[0]) / 5 * 100)
            return rate

    found = in_turns(bench, {"pyerofs": lambda: together(images), "one": lambda: together(images[:1])})
    score = [a / b for a, b in zip(found["pyerofs"], found["one"], strict=True)]
    name = f"{count} exports at once, each {SMALL // MIB} MiB read cold: total rate"
    yield Line(name, "MiB/s", found["pyerofs"], score, "one of them", found["one"], must=1.0)
    yield Line(f"{count} exports, idle: CPU of all", "%", idle_cpu, idle_cpu, must=1, least=False, ratio=False)


def _rate(servers: list[Server], size: int) -> float:
    def read(server: Server) -> None:
        with Reader(server.socket) as reader:
            reader.sequential(128 << 10)

    threads = [threading.Thread(target=read, args=(server,)) for server in servers]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(servers) * size / MIB / (time.perf_counter() - started)
