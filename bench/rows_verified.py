"""What it costs to check every chunk before a byte of it is used: the same blob with and without, in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from proxy import Proxy
from rows import Bench, Line, faster, in_turns, row
from rows_cold import DELAY, RATE
from servers import Server, fio, nbdcopy, pyerofs, settle_memory
from stage import SIZE

PEER = "pyerofs, oci.verify=none"


def _contenders(bench: Bench, host: str, measure: Callable[[Server], float]) -> dict[str, Callable[[], float]]:
    image = bench.stage.indexed().reference(host)

    def run(verify: str) -> float:
        settle_memory()
        with pyerofs(image, bench.stage.directory(), f"oci.verify={verify}") as server:
            return measure(server)

    return {"pyerofs": lambda: run("require"), PEER: lambda: run("none")}


@row("verified")
def verified(bench: Bench) -> Iterator[Line]:
    found = in_turns(bench, _contenders(bench, bench.stage.host, nbdcopy))
    yield faster("verified: cold, nbdcopy of the blob, registry on loopback", "s", found, PEER, aim=0.8)
    with Proxy(bench.stage.port, delay=DELAY, rate=RATE) as network:
        found = in_turns(bench, _contenders(bench, network.host, nbdcopy))
        yield faster(f"the same, {DELAY * 1000:.0f} ms, {RATE / 1e9:.0f} Gbit/s", "s", found, PEER, must=0.9, aim=0.97)

        def measure(server: Server) -> float:
            return fio(server, block="4k", depth=16, seconds=2, size=SIZE)["iops"]

        found = in_turns(bench, _contenders(bench, network.host, measure))
        yield faster("the same, fio randread 4 KiB, depth 16", "IOPS", found, PEER, must=0.8, aim=0.95)
