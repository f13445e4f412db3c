"""pyerofs and its peers, side by side: `python bench/compare.py --help`. BENCHMARKING.md says what the rows mean."""

from __future__ import annotations

import argparse
import fnmatch
import os
import shutil
import sys
import tempfile
from pathlib import Path

import proxy
import report
import rows_cold
import rows_daemon  # noqa: F401 - each registers its rows
import rows_kernel
import rows_start
import rows_verified  # noqa: F401
import rows_warm  # noqa: F401
import stage
from rows import ROWS, Bench, Line

NEEDED = {  # programs and the Debian packages that bring them
    "ab": "apache2-utils",
    "cc": "gcc",
    "curl": "curl",
    "docker-registry": "docker-registry",
    "fio": "fio",
    "mkfs.erofs": "erofs-utils",
    "nginx": "nginx-light",
    "nbdcopy": "libnbd-bin",
    "nbdfuse": "libnbd-bin",
    "nbdkit": "nbdkit",
    "qemu-nbd": "qemu-utils",
}


def erofs_utils() -> str | None:
    """mount.erofs: on PATH, or what EROFS_UTILS names, a program or a directory that holds it."""
    named = os.environ.get("EROFS_UTILS")
    if not named:
        return shutil.which("mount.erofs")
    for path in (Path(named), *(Path(named) / sub / "mount.erofs" for sub in (".", "mount", "sbin", "bin"))):
        if path.is_file() and os.access(path, os.X_OK):
            return str(path.resolve())
    raise SystemExit(f"compare.py: EROFS_UTILS={named}: there is no mount.erofs")


def missing(chosen: list[str]) -> str:
    """The command that installs what is not here, or nothing."""
    needed = dict(NEEDED)
    if any(name.startswith("kernel") for name in chosen):
        needed |= rows_kernel.NEEDED
    if "start" in chosen:
        needed |= rows_start.NEEDED
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin:/usr/lib/qemu:/usr/libexec"
    packages = sorted({package for program, package in needed.items() if not shutil.which(program, path=path)})
    return f"apt-get install {' '.join(packages)}" if packages else ""


def main() -> int:
    parser = argparse.ArgumentParser(description="pyerofs and its peers, side by side.", epilog="rows: see --list")
    parser.add_argument("--rows", default="*", metavar="PATTERN", help="only those: globs, with commas between")
    parser.add_argument("--list", action="store_true", help="name the rows and stop")
    parser.add_argument("--runs", type=int, metavar="N", help="how often each is measured (default: 3; with --quick 1)")
    parser.add_argument("--quick", action="store_true", help="one short run of each, to see that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every value there")
    parser.add_argument("--plot", type=Path, metavar="DIR", help="write a plot for each row there; needs matplotlib")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep the images there (default: nowhere)")
    arguments = parser.parse_args()
    patterns = arguments.rows.split(",")
    chosen = [name for name in ROWS if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
    if arguments.list:
        print("\n".join(ROWS))
        return 0
    if not chosen:
        parser.error(f"no row is called {arguments.rows}: {', '.join(ROWS)}")
    if command := missing(chosen):
        print(f"compare.py: programs are missing: {command}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="pyerofs-bench-", dir="/var/tmp") as temporary:
        return run(arguments, chosen, arguments.work or Path(temporary))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run(arguments: argparse.Namespace, chosen: list[str], work: Path) -> int:
    about = report.machine()
    measured = proxy.measure(rows_cold.DELAY, rows_cold.RATE)
    say("the proxy by itself:")
    for name, value in measured.items():
        say(f"  {name}: {value:.2f}")
    if measured["carries, Gbit/s"] < 3 * rows_cold.RATE / 1e9:
        say("  WARNING: it may be the bottleneck on this machine now")
    lines: list[Line] = []
    failed = []
    work.mkdir(parents=True, exist_ok=True)
    with stage.stage(work) as scene:
        utils = erofs_utils()
        runs = arguments.runs or (1 if arguments.quick else 3)
        bench = Bench(scene, runs, arguments.quick, utils, say)
        for name in chosen:
            say(name)
            try:
                lines += ROWS[name](bench)
            except Exception as error:  # one row that fails shall not cost the others' results
                failed.append(f"{name}: {type(error).__name__}: {error}")
                say(f"  FAILED: {error}")
            for leftover in work.glob("run-*"):
                shutil.rmtree(leftover, ignore_errors=True)
    print(report.describe(about) + "\n")
    print(report.table(lines))
    for text in failed:
        print(f"\nfailed: {text}")
    if arguments.json:
        report.write_json(arguments.json, about, measured, lines)
    if arguments.plot:
        report.plot(arguments.plot, lines)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
