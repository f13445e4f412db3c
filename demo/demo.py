"""What `make demo` shows: an EROFS image in a registry, mounted without downloading it, read a little, unmounted.

Needs root, and either a kernel with NBD or one that mounts EROFS from a file (6.12) with nbdfuse.
"""

from __future__ import annotations

import os
import random
import select
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from registry import Registry

from pyerofs.daemon.record import DIRECTORY, read_all

MIB = 1 << 20


def say(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


def run(*arguments: str | Path) -> None:
    """Shows a command and runs it."""
    words = [str(word) for word in arguments]
    print("  $", shlex.join("python" if word == sys.executable else word for word in words), flush=True)
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    for line in done.stdout.splitlines():
        print("   ", line, flush=True)
    if done.returncode:
        raise SystemExit(f"{words[0]}: exit status {done.returncode}")


def pyerofs(*arguments: str | Path) -> None:
    run(sys.executable, "-m", "pyerofs", *arguments)


def make_image(directory: Path) -> bytes:
    """About 100 MiB of a made-up application."""
    tree = directory / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "usr/lib").mkdir(parents=True)
    (tree / "etc/motd").write_text("Hello from an EROFS layer that was never downloaded.\n")
    chance = random.Random(1)
    for number in range(12):
        (tree / f"usr/lib/libdemo{number}.so").write_bytes(chance.randbytes(8 * MIB))
    layout = directory / "layout"
    pyerofs("build", "-q", "-o", f"oci.cache={directory / 'made'}", tree, f"oci:{layout}:demo")
    return max((layout / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size).read_bytes()


def show_fetched(registry: Registry, size: int) -> None:
    requests, fetched = registry.fetched()
    print(f"  fetched so far: {requests} requests, {fetched / MIB:.2f} MiB of {size / MIB:.0f} MiB "
          f"({100 * fetched / size:.1f} %)", flush=True)  # fmt: skip


def leftovers(mnt: Path) -> list[str]:
    """What is left of the mount: mounts, daemons, records."""
    mounts = [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(mnt) in line]
    processes = [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(mnt).encode() in _read(path)]
    records = [path for path in Path(DIRECTORY).glob("*.json") if str(mnt).encode() in _read(path)]
    return [*mounts, *map(str, (*processes, *records))]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""  # it ended meanwhile


def main() -> None:
    if os.geteuid() != 0:
        raise SystemExit("the demo mounts a filesystem: run it as root")
    with tempfile.TemporaryDirectory(prefix="pyerofs-demo-") as name:
        directory = Path(name)
        mnt = directory / "mnt"
        mnt.mkdir()
        say("1. An image with one EROFS layer, in a registry on this machine")
        image = make_image(directory)
        registry = Registry(image)
        options = f"oci=0,oci.cache={directory / 'cache'}"
        try:
            pyerofs("inspect", registry.reference)
            show(registry, len(image), mnt, options)
        finally:
            if mnt.is_mount():
                subprocess.run(["umount", "--lazy", mnt], check=False)
            registry.close()


def show(registry: Registry, size: int, mnt: Path, options: str) -> None:
    say("2. Mounted lazily")
    pyerofs("mount", "-v", "-t", "erofs", "-o", options, registry.reference, mnt)
    pyerofs("list")
    show_fetched(registry, size)
    say("3. Used: only what is read is fetched")
    run("ls", "-l", mnt, mnt / "usr/lib")
    run("cat", mnt / "etc/motd")
    show_fetched(registry, size)
    run("sha256sum", mnt / "usr/lib/libdemo7.so")
    show_fetched(registry, size)
    say("4. Unmounted, and mounted again: what was fetched once is in the cache")
    pyerofs("umount", mnt)
    before = registry.fetched()
    pyerofs("mount", "-o", options, registry.reference, mnt)
    run("sha256sum", mnt / "usr/lib/libdemo7.so")
    print(f"  fetched for that: {registry.fetched()[0] - before[0]} requests", flush=True)
    say("5. Unmounted by umount(8): the daemon goes by itself")
    [record] = [record for record in read_all() if record.target == str(mnt)]
    processes = [os.pidfd_open(pid) for pid in (record.pid, record.supervisor) if pid]
    run("umount", mnt)
    for process in processes:
        select.select([process], [], [], 20)
        os.close(process)
    left = leftovers(mnt)
    print("  left behind: " + ("; ".join(left) or "no mount, no daemon, no record"), flush=True)
    if left:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
