"""Runs inside the guest that rows_kernel.py boots: `python bench/guest.py WORK JOB RUNS [MOUNT.EROFS]`.

Mounts the image by each contender in turn, does the job on it, unmounts; each value is a line of JSON. The registry
runs in the guest too (it has no network but lo), its storage is the host's over virtiofs and has been read once, so
that it lies in the guest's page cache. Caches are in a tmpfs.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from servers import PYEROFS, TIMEOUT, nbdkit, timed
from stage import BIG, IMPORTS, MIB, Blob, Image, registry

RUN = Path("/run/bench")
MNT = RUN / "mnt"
DEVICE = "/dev/nbd15"

JOBS: dict[str, list[str]] = {
    "cat": ["cat", str(MNT / "big")],
    "ls": ["ls", "-lR", str(MNT)],
    "import": ["chroot", str(MNT), "/usr/bin/python3", "-S", "-c", IMPORTS],
}
Mount = contextlib.AbstractContextManager[None]


def call(*argv: str | Path) -> None:
    """Its output goes to a file: a daemon that it leaves behind may keep that open."""
    output = RUN / "output"
    with output.open("wb") as file:
        done = subprocess.run([str(a) for a in argv], stdin=subprocess.DEVNULL, stdout=file, stderr=file, timeout=600)
    if done.returncode:
        raise RuntimeError(f"{argv[0]}: {done.returncode}: {output.read_text(errors='replace')[-300:]}")


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + TIMEOUT
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError("a device does not come or go")
        time.sleep(0.05)


def sectors() -> int:
    return int(Path(f"/sys/block/{Path(DEVICE).name}/size").read_text())


@contextlib.contextmanager
def by_pyerofs(image: Image, host: str, run: Path) -> Iterator[None]:
    call(*PYEROFS, "mount", "-t", "erofs.nbd", "-o", f"oci.cache={run / 'cache'}", image.reference(host), MNT)
    try:
        yield
    finally:
        call(*PYEROFS, "umount", MNT)


@contextlib.contextmanager
def by_nbdkit(run: Path, *plugin: str | Path) -> Iterator[None]:
    with nbdkit(run, *plugin) as server:
        call("nbd-client", "-unix", server.socket, DEVICE)
        until(lambda: sectors() > 0)
        try:
            call("mount", "-t", "erofs", "-o", "ro", DEVICE, MNT)
            try:
                yield
            finally:
                call("umount", MNT)
        finally:
            call("nbd-client", "-d", DEVICE)
            until(lambda: sectors() == 0)


@contextlib.contextmanager
def by_mount_erofs(program: str, image: Image, host: str, how: str) -> Iterator[None]:
    options = "ro,oci.layer=0,oci.insecure,oci.platform=linux/amd64"
    call(program, "-t", f"erofs.{how}", "-o", options, image.reference(host), MNT)
    try:
        yield
    finally:
        call(program, "-u", MNT)


def contenders(image: Image, host: str, program: str) -> dict[str, Callable[[Path], Mount]]:
    found: dict[str, Callable[[Path], Mount]] = {
        "pyerofs": lambda run: by_pyerofs(image, host, run),
        "nbdkit curl + nbd-client": lambda run: by_nbdkit(run, "curl", f"url={image.url(host)}"),
        "nbdkit file + nbd-client": lambda run: by_nbdkit(run, "file", image.blob.path),
    }
    for how in ("ublk", "nbd") if program else ():
        found[f"mount.erofs {how}"] = lambda run, how=how: by_mount_erofs(program, image, host, how)  # type: ignore[misc]  # binds the loop's value
    return found


def tell(who: str, **values: object) -> None:
    print(json.dumps({"who": who, **values}), flush=True)


def main(work: Path, job: str, runs: int, program: str) -> None:
    RUN.mkdir()
    MNT.mkdir()
    subprocess.run(["modprobe", "ublk_drv"], check=False, capture_output=True)
    repository, path, digest, size = json.loads((work / "image.json").read_text())
    image = Image(repository, Blob(Path(path), digest, size))
    timed(["cat", image.blob.path])
    with registry(work / "storage", RUN) as port:
        host = f"127.0.0.1:{port}"
        call("curl", "-sf", "-o", "/dev/null", image.url(host))
        for number in range(runs):
            if job == "cat":
                command = ["curl", "-sf", "-o", "/dev/null", "-r", f"{MIB}-{MIB + BIG - 1}", image.url(host)]
                tell("curl of the bytes", seconds=timed(command))
            for who, mount in contenders(image, host, program).items():
                if who == "mount.erofs nbd" and number:  # minutes, and the same each time
                    continue
                run = RUN / f"{number}-{who.replace(' ', '-')}"
                run.mkdir()
                try:
                    with mount(run):
                        tell(who, seconds=timed(JOBS[job]))
                except Exception as error:  # a peer that fails is told of, and the others go on
                    tell(who, error=f"{type(error).__name__}: {error}")
                call("rm", "-rf", run)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4])
