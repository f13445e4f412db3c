"""Everything is in the cache: what NBD itself costs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial

from rows import Bench, Line, faster, in_turns, row
from servers import Server, fio, nbdcopy, nbdkit, pyerofs, qemu_nbd
from stage import SIZE


@contextlib.contextmanager
def _warm(bench: Bench) -> Iterator[dict[str, Server]]:
    """All of them at once: who is not measured sleeps. Every page is in the page cache."""
    image, directory = bench.stage.image, bench.stage.directory()
    with contextlib.ExitStack() as stack:
        servers = {
            "pyerofs": stack.enter_context(pyerofs(image.reference(bench.stage.host), directory)),
            "nbdkit file": stack.enter_context(nbdkit(directory, "file", image.blob.path)),
            "qemu-nbd": stack.enter_context(qemu_nbd(directory, image.blob.path)),
        }
        for server in servers.values():
            nbdcopy(server)
        yield servers


@row("warm-nbdcopy")
def warm_nbdcopy(bench: Bench) -> Iterator[Line]:
    name = "warm, nbdcopy of the blob"
    with _warm(bench) as servers:
        found = in_turns(bench, {peer: partial(nbdcopy, s) for peer, s in servers.items()}, bench.runs * 3)
    yield faster(name, "s", found, "nbdkit file", must=1.5, aim=1.8)
    yield faster(name, "s", found, "qemu-nbd")


@row("warm-fio")
def warm_fio(bench: Bench) -> Iterator[Line]:
    with _warm(bench) as servers:
        for block, depth in (("4k", 16), ("4k", 64), ("128k", 16)):
            name = f"warm, fio randread {block[:-1]} KiB, depth {depth}"
            bench.say(name)

            def measure(server: Server, block: str = block, depth: int = depth) -> float:
                return fio(server, block=block, depth=depth, seconds=bench.seconds, size=SIZE)["iops"]

            found = in_turns(bench, {peer: partial(measure, s) for peer, s in servers.items()})
            yield faster(name, "IOPS", found, "nbdkit file", must=1.3, aim=1.6)
            yield faster(name, "IOPS", found, "qemu-nbd")
