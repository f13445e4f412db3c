"""From nothing to a program's end: a whole system out of a registry behind a slow line, mounted or pulled and unpacked.

The image is tests/support/rootfs.py's: Debian with Python in five layers, the ordinary one packed with gzip, the others
what
`pyerofs convert` makes of it, as it is and with zstd.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from proxy import Proxy
from rows import Bench, Line, faster, in_turns, row
from servers import PYEROFS, settle_memory

sys.path.append(str(Path(__file__).resolve().parent.parent))
from tests.support import rootfs

NEEDED = {"mmdebstrap": "mmdebstrap", "skopeo": "skopeo", "umoci": "umoci"}
DELAY = 0.005  # seconds for a round trip
RATE = 1e8  # bits a second
MIB = 1 << 20
AIM = 6.0  # times: what others publish of theirs begins there
_PEER = "skopeo copy + umoci unpack"
_OPTIMIZED = ["--compress", "zstd", "--merge", "--optimize-for", shlex.join(rootfs.COMMANDS[0])]
_IMAGES = {"pyerofs": "erofs", "pyerofs, --compress zstd": "zstd", "pyerofs, zstd, --optimize-for": "fast"}
_PLAIN = ["--src-tls-verify=false", "--dest-tls-verify=false"]


@row("start")
def start(bench: Bench) -> Iterator[Line]:
    _publish(bench.stage.host)
    fetched: dict[str, list[float]] = {name: [] for name in (*_IMAGES, _PEER)}
    with Proxy(bench.stage.port, delay=DELAY, rate=RATE) as network:

        def counted(name: str, run: Callable[[Path, str], float]) -> Callable[[], float]:
            def once() -> float:
                settle_memory()
                before = network.stats().down
                seconds = run(bench.stage.directory(), network.host)
                fetched[name].append((network.stats().down - before) / MIB)
                return seconds

            return once

        found = in_turns(
            bench,
            {name: counted(name, partial(_mount, tag)) for name, tag in _IMAGES.items()}
            | {_PEER: counted(_PEER, _unpack)},
        )
    name = f"python3 imports json, ssl, sqlite3; {DELAY * 1000:.0f} ms, {RATE / 1e6:.0f} Mbit/s"
    for ours in _IMAGES:
        which = f"start: {name}{ours.removeprefix('pyerofs')}"
        yield faster(which, "s", {"pyerofs": found[ours], _PEER: found[_PEER]}, _PEER, aim=AIM)
        score = [theirs / mine for mine, theirs in zip(fetched[ours], fetched[_PEER], strict=True)]
        yield Line(f"{which}: from the registry", "MiB", fetched[ours], score, _PEER, fetched[_PEER])


def _publish(host: str) -> None:
    source = rootfs.rootfs().name
    _run("skopeo", "--insecure-policy", "copy", "--quiet", *_PLAIN, source, f"docker://{host}/system:tar")
    _run(*PYEROFS, "convert", "-q", source, f"{host}/system:erofs")
    _run(*PYEROFS, "convert", "-q", "--compress", "zstd", source, f"{host}/system:zstd")
    _run(*PYEROFS, "convert", "-q", *_OPTIMIZED, source, f"{host}/system:fast")


def _mount(tag: str, directory: Path, host: str) -> float:
    root = directory / "root"
    root.mkdir()
    options = f"ro,oci.cache={directory / 'cache'}"
    started = time.perf_counter()
    _run(*PYEROFS, "mount", "-t", "erofs.fuse", "-o", options, f"{host}/system:{tag}", root)
    try:
        rootfs.run_in(root, rootfs.COMMANDS[0])
        return time.perf_counter() - started
    finally:
        _run(*PYEROFS, "umount", root)


def _unpack(directory: Path, host: str) -> float:
    layout, bundle = directory / "layout", directory / "bundle"
    started = time.perf_counter()
    source = f"docker://{host}/system:tar"
    _run("skopeo", "--insecure-policy", "copy", "--quiet", *_PLAIN, source, f"oci:{layout}:app")
    _run("umoci", "unpack", "--image", f"{layout}:app", bundle)
    rootfs.run_in(bundle / "rootfs", rootfs.COMMANDS[0])
    return time.perf_counter() - started


def _run(*argv: str | Path) -> None:
    done = subprocess.run([str(word) for word in argv], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{argv[0]}: {done.stderr[-500:]}")
