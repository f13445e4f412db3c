"""A day in minutes (`make soak`): tokens run out, the registry is restarted, as often as in 24 hours, while one daemon
serves bytes that it has not got yet. Every byte is compared; memory and descriptors stay flat.

For its length not among the tests of `make test`: PYEROFS_SOAK seconds, by default 300. A token mostly lives
for 300 s, which makes 288 of them a day; here it lives for that share of the soak.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import statistics
import threading
import time
from pathlib import Path

from tests.support.dockerregistry import DockerRegistry
from tests.support.images import Layer, push_image
from tests.support.nbdclient import Client
from tests.support.scene import Scene
from tests.support.tokenserver import LEEWAY, TokenServer

SECONDS = float(os.environ.get("PYEROFS_SOAK", "300"))
TOKENS = 288  # a day's
RESTARTS = 24
MIB = 1 << 20
SIZE = 512 * MIB
STEP = 128 << 10  # what one miss fetches: each is read once, so that every read goes to the registry
SAMPLE = 2.0  # seconds
GROWTH = 3 * MIB


def blob() -> bytes:
    """Random bytes with a superblock of EROFS before them."""
    data = bytearray(random.Random(1).randbytes(MIB) * (SIZE // MIB))
    for at in range(0, SIZE, 4096):
        data[at : at + 8] = at.to_bytes(8, "little")  # no two granules are the same
    data[1024 : 1024 + 128] = bytes(128)
    data[1024 : 1024 + 4] = (0xE0F5E1E2).to_bytes(4, "little")
    data[1024 + 12] = 12
    data[1024 + 36 : 1024 + 40] = (16).to_bytes(4, "little")  # blocks
    return bytes(data)


class Watch(threading.Thread):
    """Samples a process: anonymous memory in bytes, descriptors, threads."""

    def __init__(self, pid: int):
        super().__init__()
        self.samples: list[tuple[int, int, int]] = []
        self._proc = Path(f"/proc/{pid}")
        self.end = threading.Event()

    def run(self) -> None:
        while not self.end.wait(SAMPLE):
            rollup = (self._proc / "smaps_rollup").read_text().splitlines()
            private = sum(int(line.split()[1]) << 10 for line in rollup if line.startswith("Anonymous:"))
            self.samples.append(
                (private, len(list((self._proc / "fd").iterdir())), len(list((self._proc / "task").iterdir())))
            )


def test_a_day(scene: Scene, tmp_path: Path) -> None:
    data = blob()
    with contextlib.ExitStack() as stack:
        tokens = stack.enter_context(TokenServer(tmp_path, lifetime=max(1, round(SECONDS / TOKENS))))
        tokens.offset = -LEEWAY
        registry = stack.enter_context(DockerRegistry(tmp_path / "registry", token=tokens))
        push_image(registry, "app", "1", [Layer(data)])
        path = tmp_path / "socket"
        process = scene.start(
            "serve", "--unix", str(path), "-o", f"oci=0,oci.cache={scene.cache}", f"{registry.host}/app:1"
        )
        said: list[str] = []
        reader = threading.Thread(target=lambda: said.extend(process.stderr or ()))
        reader.start()
        stack.callback(reader.join)
        stack.callback(process.kill)
        assert process.stdout and process.stdout.readline().startswith("ready: ")
        watch = Watch(process.pid)
        watch.start()
        stack.callback(watch.end.set)
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(path))
        client = stack.enter_context(Client(sock))
        client.greet()
        client.negotiate(7, bytes(6))  # NBD_OPT_GO of the default export
        places = list(range(0, SIZE, STEP))
        random.Random(2).shuffle(places)
        began, restarts, longest, reads = time.monotonic(), 0, 0.0, 0
        for number, at in enumerate(places):
            due = began + SECONDS * number / len(places)
            time.sleep(max(0.0, due - time.monotonic()))  # a day has its pace
            asked = time.monotonic()
            cookie = client.read(at, 4096)
            assert client.reply() == (cookie, 0, data[at : at + 4096])
            longest = max(longest, time.monotonic() - asked)
            reads += 1
            if number * RESTARTS // len(places) > restarts:
                restarts += 1
                registry.restart()
        watch.end.set()
        watch.join()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    quarter = len(watch.samples) // 4
    early, late = watch.samples[quarter : 2 * quarter], watch.samples[-quarter:]
    before, after = (statistics.median(sample[0] for sample in part) for part in (early, late))
    fds = [max(sample[1] for sample in part) for part in (early, late)]
    print(f"{reads} reads, {len(tokens.asked)} tokens, {restarts} restarts; the longest read {longest:.1f} s")
    print(f"anonymous memory {before / MIB:.1f} -> {after / MIB:.1f} MiB, descriptors {fds[0]} -> {fds[1]}")
    assert restarts >= RESTARTS - 1 and len(tokens.asked) > TOKENS / 2
    assert after - before < GROWTH
    assert fds[1] <= fds[0] + 2
