"""Builds pyerofs._core, the cffi module around the C core; with PYEROFS_SANITIZE=address or thread for a sanitizer."""

from __future__ import annotations

import os
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
SOURCES = (
    *(
        "clock",
        "fault",
        "map",
        "io",
        "plan",
        "sum",
        "claim",
        "watch",
        "trust",
        "keep",
        "store",
        "others",
        "hist",
        "run",
        "land",
    ),
    *("outage", "fill", "reply", "conn", "handshake", "blob"),
)
HEADER = (HERE / "pyerofs.h").read_text(encoding="ascii")

flags = ["-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-fvisibility=hidden", "-pthread"]
sanitizer = os.environ.get("PYEROFS_SANITIZE")
sanitizers = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "thread": ["-fsanitize=thread"],
}
extra = [*sanitizers[sanitizer], "-O1", "-fno-omit-frame-pointer"] if sanitizer else []

ffi = FFI()
ffi.cdef(HEADER)
ffi.set_source(
    "pyerofs._core",
    '#include <stdint.h>\n#include "pyerofs.h"\n',
    sources=[os.path.relpath(HERE / f"{name}.c") for name in SOURCES],
    include_dirs=[str(HERE)],
    depends=[str(path) for path in sorted(HERE.glob("*.h"))],
    extra_compile_args=flags + extra,
    extra_link_args=["-pthread", *extra],
)

if __name__ == "__main__":
    ffi.compile(verbose=True)
