"""Builds the C core for the sanitizers and runs the core's tests with it: python tests/core/san.py [address] [thread].

`address` is AddressSanitizer with UndefinedBehaviorSanitizer and LeakSanitizer, `thread` is ThreadSanitizer. Any report
fails the run, but for leaks without a frame of csrc/ (Python keeps much until its end). Everything goes to
build/san-NAME/; the instrumented core is found before the installed one, which coreharness.py asserts.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = {"address": ["libasan.so", "libubsan.so"], "thread": ["libtsan.so"]}
LEAK = "leak of "
# The C library frees a dead thread's TLS in the next thread that gets its stack; how it is ordered, TSan cannot see.
SUPPRESSIONS = "race:_dl_deallocate_tls\n"


def run(command: list[str], **kwargs: object) -> int:
    return subprocess.run(command, check=False, **kwargs).returncode  # type: ignore[call-overload,no-any-return]  # a fake


def build(name: str, place: Path) -> None:
    package = place / "pyerofs"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(ROOT / "pyerofs", package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    command = ["setup.py", "-q", "build_ext", "--force", f"--build-lib={place}", f"--build-temp={place / 'objects'}"]
    subprocess.run(
        [sys.executable, "-W", "ignore", *command], cwd=ROOT, env=os.environ | {"PYEROFS_SANITIZE": name}, check=True
    )


def library(name: str) -> str:
    return subprocess.run(
        ["gcc", f"-print-file-name={name}"], check=True, capture_output=True, text=True
    ).stdout.strip()


def environment(name: str, place: Path) -> dict[str, str]:
    log = f"log_path={place / 'report'}"
    variables = {
        "LD_PRELOAD": " ".join(library(each) for each in LIBRARIES[name]),
        "PYTHONPATH": f"{place}:{ROOT}",  # the tests, but not the package, are the latter's
        "PYEROFS_TEST_CORE": str(place / "pyerofs"),
        "ASAN_OPTIONS": f"{log}:abort_on_error=1:detect_leaks=1:detect_stack_use_after_return=1:strict_string_checks=1",
        "LSAN_OPTIONS": "exitcode=0",  # ours() tells whose the leaks are
        "UBSAN_OPTIONS": "print_stacktrace=1",  # it knows no log, and ends the process
        "TSAN_OPTIONS": f"{log}:history_size=4:second_deadlock_stack=1:suppressions={place / 'suppressions'}",
    }
    if name == "address":
        variables["PYTHONMALLOC"] = "malloc"  # Python's own allocator hides where a bytes object ends
    return os.environ | variables


def ours(report: str) -> bool:
    """Does a report tell of anything but leaks of Python's own?"""
    if "LeakSanitizer" not in report:
        return bool(report.strip())
    blocks = report.split("\n\n")
    leaks = [block for block in blocks if LEAK in block]
    others = [block for block in blocks if "ERROR: " in block and "LeakSanitizer" not in block]
    return bool(others) or any("csrc/" in leak for leak in leaks)


def check(name: str, arguments: list[str]) -> bool:
    place = ROOT / "build" / f"san-{name}"
    build(name, place)
    (place / "suppressions").write_text(SUPPRESSIONS)
    tests = sorted(str(path) for path in (ROOT / "tests" / "core").glob("test_core_*.py"))
    pytest = [
        "-P",
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:benchmark",
        "--noconftest",
        "--import-mode=importlib",
        "--capture=sys",
    ]
    began = time.monotonic()
    status = run(
        [sys.executable, *pytest, "-c", str(ROOT / "pyproject.toml"), f"--rootdir={ROOT}", *arguments, *tests],
        cwd=place,
        env=environment(name, place),
    )
    reports = {path.name: path.read_text(errors="replace") for path in sorted(place.glob("report.*"))}
    bad = {path: text for path, text in reports.items() if ours(text)}
    for path, text in bad.items():
        print(f"--- {path}\n{text[:20_000]}")
    print(f"{name}: exit status {status}, {len(bad)} reports, {time.monotonic() - began:.0f} s")
    return status == 0 and not bad


def main() -> int:
    names = [name for name in sys.argv[1:] if name in LIBRARIES] or list(LIBRARIES)
    arguments = [argument for argument in sys.argv[1:] if argument not in LIBRARIES]
    results = [check(name, arguments) for name in names]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
