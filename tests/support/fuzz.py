"""Feeds the targets of fuzztargets.py for as long as you like, guided by coverage: each in a process of its own.

    .venv/bin/pip install atheris
    .venv/bin/python tests/support/fuzz.py --inputs 1000000          # in all
    .venv/bin/python tests/support/fuzz.py --target challenge --inputs 200000

An input that breaks a target is left in a file, whose name is printed: `fuzz.py --target challenge FILE` repeats it.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT = 3600.0  # seconds for one target


def run(name: str, inputs: int, seed: int) -> tuple[int, str]:
    """How many inputs were tried, and libFuzzer's last words."""
    from tests.support.fuzztargets import TARGETS

    with tempfile.TemporaryDirectory() as directory:
        for number, data in enumerate(TARGETS[name][1]):
            (Path(directory) / str(number)).write_bytes(data)
        command = [
            sys.executable,
            "-m",
            "tests.support.fuzz",
            "--target",
            name,
            "--",
            f"-runs={inputs}",
            f"-seed={seed}",
        ]
        command += [
            f"-artifact_prefix={tempfile.gettempdir()}/pyerofs-fuzz-",
            "-max_len=2048",
            "-timeout=120",
            "-print_final_stats=1",
            directory,
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    found = re.search(r"stat::number_of_executed_units:\s*(\d+)", done.stderr)
    words = "" if done.returncode == 0 else done.stderr[-4000:]
    return int(found[1]) if found else 0, words


def child(name: str, arguments: list[str]) -> None:
    import atheris

    with atheris.instrument_imports(include=["pyerofs", "tomllib"]):
        from tests.support.fuzztargets import TARGETS
    atheris.Setup([sys.argv[0], *arguments], TARGETS[name][0])
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1_000_000, help="for all targets together (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the random numbers (default: the time)")
    parser.add_argument("--target", help="this one alone")
    parser.add_argument("arguments", nargs="*", help="for libFuzzer, such as a file with one input")
    chosen = parser.parse_args()
    if chosen.arguments:
        child(chosen.target, chosen.arguments)
        return 0
    from tests.support.fuzztargets import TARGETS

    names = [chosen.target] if chosen.target else list(TARGETS)
    total = failed = 0
    print(f"seed {chosen.seed}")
    for name in names:
        started = time.monotonic()
        count, words = run(name, -(-chosen.inputs // len(names)), chosen.seed)
        total += count
        failed += bool(words)
        print(
            f"{name:14} {count:9} inputs, {time.monotonic() - started:6.1f} s  {'FAILED' if words else 'ok'}",
            flush=True,
        )
        if words:
            print(words)
    print(f"{total} inputs, {failed} targets failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
