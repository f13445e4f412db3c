"""Mounts in a real kernel: the guest that tests/support/vm.py boots, with guest.py in it. Its CPUs are emulated, so
that what a peer spends in user space weighs far more than on a real machine: seconds can be compared within a row only.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from rows import Bench, Line, faster, row

sys.path.append(str(Path(__file__).resolve().parent.parent))
from tests.support import vm

NEEDED = {
    "qemu-system-x86_64": "qemu-system-x86",
    "virtiofsd": "qemu-system-common",
    "nbd-client": "nbd-client",
    "modprobe": "kmod",
    "ip": "iproute2",
}
NBDKIT, FILE = "nbdkit curl + nbd-client", "nbdkit file + nbd-client"
UBLK, NBD, CURL = "mount.erofs ublk", "mount.erofs nbd", "curl of the bytes"


def _measure(bench: Bench, job: str) -> dict[str, list[float]]:
    image, work = bench.stage.image, bench.stage.work
    described = [image.repository, str(image.blob.path), image.blob.digest, image.blob.size]
    (work / "image.json").write_text(json.dumps(described))
    program = bench.erofs_utils or ""
    command: list[str | Path] = ["python", Path(__file__).with_name("guest.py"), work, job, str(bench.runs), program]
    done = _boot(bench, command)
    found: dict[str, list[float]] = {}
    for line in done.output.splitlines():
        if line.startswith("{"):
            said = json.loads(line)
            if "error" in said:
                bench.say(f"  {said['who']}: {said['error']}")
            else:
                found.setdefault(said["who"], []).append(said["seconds"])
    for name, values in found.items():
        bench.say(f"  {name}: {' '.join(f'{value:.4g}' for value in values)}")
    if done.exit_status or "pyerofs" not in found:
        raise RuntimeError(f"the guest's script ended with {done.exit_status}: {done.output[-2000:]}")
    return found


def _boot(bench: Bench, command: list[str | Path]) -> vm.Result:
    """Again when the guest died while it booted: an emulated kernel that patches its code sometimes does."""
    for _ in range(3):
        try:
            return vm.run_in_vm(command, timeout=600.0 + 600 * bench.runs)
        except vm.VMError as error:
            text = str(error)
            if "Kernel panic" not in text:
                raise
            bench.say("  the guest's kernel panicked while it booted; again")
    raise RuntimeError(text)


def _against(name: str, found: dict[str, list[float]], asked: dict[str, tuple[float, float | None]]) -> Iterator[Line]:
    for peer, (must, aim) in asked.items():
        if peer in found:
            yield faster(name, "s", found, peer, must=must, aim=aim)


@row("kernel-cat")
def kernel_cat(bench: Bench) -> Iterator[Line]:
    name = "kernel mount, cat of a 33 MB file, cold"
    found = _measure(bench, "cat")
    yield from _against(name, found, {NBD: (25, None), UBLK: (4, None), NBDKIT: (2, None)})
    if FILE in found:
        limit = [a + b for a, b in zip(found[CURL], found[FILE], strict=True)]
        yield faster(name, "s", {**found, f"{CURL} + {FILE}": limit}, f"{CURL} + {FILE}", must=None, aim=1 / 1.5)


def _no_slower(bench: Bench, job: str, name: str) -> Iterator[Line]:
    """Than any peer; the aim is half the time of the best."""
    found = _measure(bench, job)
    yield from _against(name, found, dict.fromkeys((NBD, UBLK, NBDKIT), (1, 2)))
    if FILE in found:
        yield faster(name, "s", found, FILE)


@row("kernel-ls")
def kernel_ls(bench: Bench) -> Iterator[Line]:
    return _no_slower(bench, "ls", "kernel mount, ls -lR, cold")


@row("kernel-import")
def kernel_import(bench: Bench) -> Iterator[Line]:
    return _no_slower(bench, "import", "kernel mount, python3 -c 'import ...' run from it, cold")
