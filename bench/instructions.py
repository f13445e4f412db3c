"""Instructions that the dispatch loop spends on a request, counted by Callgrind: a figure that knows no noise.

    python bench/instructions.py            prints a row for each kind of read
    python bench/instructions.py --json FILE

What the kernel does in the system calls is not in it. Needs valgrind.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUESTS = 2000
# name: (bytes of a read, requests that arrive together, all bytes present, compared with their sums before)
KINDS = {
    "4 KiB, 64 at once, complete blob": (4096, 64, True, True),
    "4 KiB, one at a time, complete blob": (4096, 1, True, True),
    "128 KiB, 16 at once, complete blob": (131072, 16, True, True),
    "512 KiB, one at a time, complete blob (sendfile)": (524288, 1, True, True),
    "4 KiB, 64 at once, present in an incomplete blob": (4096, 64, False, True),
    "4 KiB, 64 at once, for the first time": (4096, 64, True, False),
    "128 KiB, 16 at once, for the first time": (131072, 16, True, False),
}


def count(length: int, batch: int, complete: bool, trusted: bool, requests: int = REQUESTS) -> float:
    """Instructions a request within pe_conn_serve, what it calls included. Raises CalledProcessError."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory, "callgrind.out")
        subprocess.run(
            [
                *("valgrind", "--tool=callgrind", "--toggle-collect=pe_conn_serve", f"--callgrind-out-file={out}"),
                *(sys.executable, __file__, "--child"),
                *map(str, (length, batch, int(complete), int(trusted), requests)),
            ],
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
            check=True,
            capture_output=True,
        )
        found = re.search(r"^(?:summary|totals): (\d+)", out.read_text(), re.MULTILINE)
        if found is None:
            raise RuntimeError("callgrind wrote no total")
        return int(found[1]) / requests


def child(length: int, batch: int, complete: bool, trusted: bool, requests: int) -> None:
    """What is counted: a client that reads `requests` times, `batch` of them in each write."""
    from pyerofs.core import GRANULE
    from tests.support.coreharness import MIB, Rig, until

    size = 16 * MIB
    with Rig(size) as rig:
        rig.preset(0, size // GRANULE - (not complete))
        store = rig.open()  # which finds that
        if trusted:
            until(lambda: store.epoch() != 0)
            store.trust(store.epoch())
        client = rig.client(store)
        for start in range(0, requests, batch):
            many = min(batch, requests - start)
            client.reads([((start + n) * length % (size - 2 * length), length) for n in range(many)])
            client.replies(many)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=5, type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        length, batch, complete, trusted, requests = arguments.child
        child(length, batch, bool(complete), bool(trusted), requests)
        return
    rows = {name: round(count(*kind)) for name, kind in KINDS.items()}
    for name, instructions in rows.items():
        print(f"{instructions:>8}  {name}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
