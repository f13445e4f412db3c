"""containerd with pyerofs and with its own overlayfs snapshotter, side by side: `python bench/containerd.py`, as root.

Each line is a figure: how long it takes by CRI from the pull of an image to the end of `python3 -c 'import json, ssl,
sqlite3'` in it, cold, at 100 Mbit/s and 5 ms; what the snapshotter takes of memory; how long its calls take under
--containers containers; how long an image of 20 layers takes to be mounted.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from proxy import Proxy

from pyerofs.grpc.client import GrpcClient
from pyerofs.snapshotter import protocol as said
from tests.support import rootfs, skopeo
from tests.support.containerdstage import ContainerdStage, busybox, layer
from tests.support.cri import EXITED, Cri
from tests.support.dockerregistry import DockerRegistry
from tests.support.ordinary import Layout, file
from tests.support.shelf import SLEEP

PYTHON = ("/usr/bin/python3", "-c", "import json, ssl, sqlite3")
DELAY, RATE = 0.005, 1e8  # seconds, bits a second
LAYERS = 20


def publish(registry: DockerRegistry, where: Path) -> None:
    """Push bench/python, bench/layers (both with EROFS images beside them) and bench/pause."""
    layout = Layout(where / "layout")
    script = file("pause", b"#!/bin/sh\nexec sleep 1000000\n", mode=0o755)
    pause = layout.tag(layout.image([layer(*busybox(), script)], command=["/pause"]), "pause")
    skopeo.copy(pause, f"docker://{registry.host}/bench/pause:1")
    tars = [layer(*busybox()), *(layer(file(f"data/{n}", b"%d" % n * 10000)) for n in range(LAYERS - 1))]
    system = layout.image(rootfs.system_layers())
    images = {"python": layout.tag(system, "python"), "layers": layout.tag(layout.image(tars), "layers")}
    for name, source in images.items():
        command = [
            sys.executable,
            "-m",
            "pyerofs",
            "convert",
            "-q",
            "--index",
            "--compress",
            "zstd",
            "-O",
            "oci.insecure",
        ]
        command += ["-o", f"oci.cache={where}/cache", source, f"{registry.host}/bench/{name}:1"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def start_and_end(where: Path, proxy: Proxy, snapshotter: str) -> tuple[float, float]:
    """Return seconds from the pull to the container's end, and bytes that came through the line."""
    host = f"127.0.0.1:{proxy.port}"
    with (
        ContainerdStage(where, host, f"{host}/bench/pause:1", snapshotter=snapshotter) as stage,
        Cri(stage.address) as cri,
    ):
        pod = cri.run_pod("bench")
        before = proxy.stats().down
        began = time.monotonic()
        cri.pull(f"{host}/bench/python:1")
        container = cri.run(pod, "c", f"{host}/bench/python:1", *PYTHON)
        while (status := cri.status(container))["state"] != EXITED:
            time.sleep(0.005)
        took = time.monotonic() - began
        assert status["exit_code"] == 0, status
        fetched = proxy.stats().down - before
        cri.clear()
    return took, fetched


def memory(pid: int) -> str:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    values = {name: int(value) / 1024 for name, value in re.findall(r"^(Rss|Pss):\s+(\d+) kB$", text, re.MULTILINE)}
    return f"{values['Rss']:.1f} MiB RSS, {values['Pss']:.1f} MiB PSS"


def times(calls: list[float]) -> str:
    calls.sort()
    return f"p50 {calls[len(calls) // 2] * 1e3:.2f} ms, p99 {calls[int(len(calls) * 0.99)] * 1e3:.2f} ms"


def calls(stage: ContainerdStage, parent: str, count: int) -> None:
    """Time what containerd calls for each of `count` containers."""
    client = GrpcClient(str(stage.root / "s.sock"))
    found: dict[str, list[float]] = {}

    def timed(name: str, request: bytes) -> None:
        began = time.perf_counter()
        client.call(said.SERVICE + name, request)
        found.setdefault(name, []).append(time.perf_counter() - began)

    for number in range(count):
        timed("Prepare", said.PREPARE.encode({"key": f"bench{number}", "parent": parent}))
        timed("Mounts", said.KEY.encode({"key": f"bench{number}"}))
    for number in range(count):
        for name in ("Stat", "Usage", "Mounts"):
            timed(name, said.KEY.encode({"key": f"bench{number}"}))
    for number in range(count):
        timed("Remove", said.KEY.encode({"key": f"bench{number}"}))
    client.close()
    for name, each in found.items():
        print(f"{name:<8} under {count} containers: {times(each)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--containers", type=int, default=100)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pyerofs-bench-") as directory:
        where = Path(directory)
        with DockerRegistry(where / "registry") as registry:
            publish(registry, where)
            port = int(registry.host.rpartition(":")[2])
            medians = {}
            for snapshotter in ("pyerofs", "overlayfs"):
                found = []
                for number in range(arguments.runs):
                    with Proxy(port, delay=DELAY, rate=RATE) as proxy:
                        run = where / f"{snapshotter}{number}"
                        run.mkdir()
                        found.append(start_and_end(run, proxy, snapshotter))
                medians[snapshotter] = statistics.median(took for took, _ in found)
                each = ", ".join(f"{took:.2f} s" for took, _ in found)
                print(f"pull and start by {snapshotter}: {each}; {found[-1][1] / 1e6:.1f} MB fetched", flush=True)
            print(f"pyerofs is {medians['overlayfs'] / medians['pyerofs']:.1f} times faster", flush=True)
            run = where / "calls"
            run.mkdir()
            with (
                ContainerdStage(run, registry.host, f"{registry.host}/bench/pause:1") as stage,
                Cri(stage.address) as cri,
            ):
                image = f"{registry.host}/bench/layers:1"
                cri.pull(image)
                container = cri.run(cri.run_pod("layers"), "c", image, *SLEEP)
                took = re.findall(r"mounted in ([\d.]+) s", stage.log())
                print(f"an image of {LAYERS} layers: mounted in {took[-1]} s", flush=True)
                [top] = [name for name in stage.snapshots() if _is_top(stage, name)]
                calls(stage, top, arguments.containers)
                assert stage.snapshotter is not None
                print(f"the snapshotter: {memory(stage.snapshotter.pid)}", flush=True)
                cri.remove(container)
                cri.clear()


def _is_top(stage: ContainerdStage, name: str) -> bool:
    """Whether it is the topmost lazy one."""
    infos = stage.snapshots()
    parents = {info["parent"] for info in infos.values() if info["kind"] == said.Kind.COMMITTED}
    return name.startswith("pyerofs/") and name not in parents


if __name__ == "__main__":
    main()
